// Groups form, end and form again, and workers and devices are lost.
#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "gtest/gtest.h"
#include "protos/cluster.pb.h"
#include "worker/worker_test_util.h"

namespace goldfinch {
namespace {

using cluster::v1::FromWorker;
using cluster::v1::Step;
using cluster::v1::ToWorker;

// The group ends in the middle of a stream of steps and forms again, with another split and other workers: the answer
// goes on as if nothing had happened.
TEST_P(WorkerTest, GroupsFormAgainWhileStepsAreUnderWay) {
  StartAll(3);
  ReferenceStage reference(path, Options());
  const std::vector<int32_t> prompt = RandomTokens(50, kVocab, 3);
  const std::vector<int32_t> expected = reference.Generate(prompt, 100, 30, SomeSampling(7));
  const std::vector<std::vector<int>> splits = {{0, 1, 2}, {0, 2}, {0, 1, 3}, {0, 3}, {0, 1, 2}, {0, 1, 2}, {0}};
  std::vector<int32_t> answer;
  for (size_t round = 0; round < splits.size(); ++round) {
    Form(splits[round]);
    answer = Generate(1000, prompt, 9, answer.size() + 4, SomeSampling(7), answer);
    EXPECT_EQ(answer, Part(expected, 0, answer.size()));
    // Not all of these steps will end.
    for (uint64_t i = 0; i < 20; ++i) {
      Step step;
      if (i == 0) step = OpenStep(5);
      AddChunk(step, 5, 5 * i, Part(prompt, 0, 5), 1);
      SendStep(step);
    }
    if (round % 2 == 0) EndGeneration();
    for (TestWorker& worker : workers) worker.mailbox->Clear();
  }
}

// A worker dies in the middle of the work.
TEST_P(WorkerTest, ALostWorkerIsReplacedByTheRest) {
  ReferenceStage reference(path, Options());
  const std::vector<int32_t> prompt = RandomTokens(50, kVocab, 3);
  const std::vector<int32_t> expected = reference.Generate(prompt, 100, 12, SomeSampling(7));
  for (const int lost : {0, 1, 2}) {
    StartAll(3);
    Form({0, 1, 3});
    const std::vector<int32_t> begun = Generate(1, prompt, 50, 5, SomeSampling(7));
    for (uint64_t i = 0; i < 20; ++i) {
      Step step;
      if (i == 0) step = OpenStep(5);
      AddChunk(step, 5, 5 * i, Part(prompt, 0, 5), 1);
      SendStep(step);
    }
    workers.erase(workers.begin() + lost);
    EndGeneration();
    const auto start = std::chrono::steady_clock::now();
    Form({0, 2});
    EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(20));
    EXPECT_EQ(Generate(2, prompt, 50, 12, SomeSampling(7), begun), expected);
  }
}

// A spare does not keep the stage of a former group for ever, but can form again.
TEST_P(WorkerTest, AWorkerWithoutAGroupGivesItsMemoryBack) {
  ReferenceStage reference(path, Options());
  const std::vector<int32_t> prompt = RandomTokens(50, kVocab, 3);
  const std::vector<int32_t> expected = reference.Generate(prompt, 100, 12, SomeSampling(7));
  const auto released = std::make_shared<std::atomic<int>>(0);
  WorkerOptions options;
  options.keep_stage_seconds = 0.05;
  options.log = [released](const std::string& line) { *released += line.find("given back") != std::string::npos; };
  workers.push_back(Start(options));
  EXPECT_EQ(Welcome(workers[0]).error(), "");
  FakeDevice* const device = workers[0].device;
  const int64_t before = device != nullptr ? device->allocated_bytes() : 0;
  for (int round = 1; round <= 2; ++round) {
    Form({0});
    EXPECT_EQ(Generate(1, prompt, 50, 12, SomeSampling(7)), expected);
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
    EXPECT_EQ(*released, round - 1) << "not while there is a group";
    if (device != nullptr) {
      EXPECT_GT(device->allocated_bytes(), before);
    }
    EndGeneration();
    const auto start = std::chrono::steady_clock::now();
    while (*released < round && std::chrono::steady_clock::now() - start < kPatience) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    EXPECT_EQ(*released, round);
    if (device != nullptr) {
      EXPECT_EQ(device->allocated_bytes(), before);
    }
  }
}

// A worker that notices the loss of a peer reports it, as the coordinator may not know yet.
TEST_P(WorkerTest, ALostPeerEndsTheGeneration) {
  StartAll(2);
  Form({0, 2});
  workers[0].worker.reset();
  Step step = OpenStep(1);
  AddChunk(step, 1, 0, {1, 2, 3}, 1);
  SendStep(step);
  const FromWorker failed = workers[1].mailbox->Await(FromWorker::kEndGeneration);
  EXPECT_EQ(failed.end_generation().generation(), generation);
  EXPECT_FALSE(workers[1]->in_group());
}

// One worker waits for its peer to connect or to send rows of a step; the peer is alive and does nothing.
TEST_P(WorkerTest, PingIsAnsweredAndTheEndHeardWhileTheWorkThreadWaits) {
  StartAll(2);
  TestWorker& waiting = workers[1];
  for (const bool connected : {false, true, false, true}) {
    for (const bool tell_end : {false, true}) {
      if (connected) {
        Form({0, 2});
        Step step = OpenStep(1);
        AddChunk(step, 1, 0, {1, 2, 3}, 1);
        step.set_generation(generation);
        step.set_id(1);
        ToWorker message;
        *message.mutable_step() = step;
        const int before = waiting.watch->entered();
        waiting->Received(message);
        waiting.watch->Await(before + 1);
      } else {
        ++generation;
        for (int stage = 0; stage < 2; ++stage) workers[stage]->Received(FormMessage(stage, {0, 2}));
        ToWorker connect;
        connect.mutable_connect()->set_generation(generation);
        connect.mutable_connect()->add_addresses(workers[0].mailbox->Await(FromWorker::kJoined).joined().addresses(1));
        connect.mutable_connect()->add_addresses("");
        waiting.mailbox->Await(FromWorker::kJoined);
        const int before = waiting.watch->entered();
        waiting->Received(connect);
        waiting.watch->Await(before + 1);
      }
      ToWorker message;
      message.mutable_ping()->set_number(17);
      waiting->Received(message);
      EXPECT_EQ(waiting.mailbox->Await(FromWorker::kPong).pong().number(), 17u);
      if (tell_end) {
        message.mutable_end_generation()->set_generation(generation);
        waiting->Received(message);
        EXPECT_FALSE(waiting->in_group());
      }
      // The next generation has this worker only.
      ++generation;
      const auto start = std::chrono::steady_clock::now();
      waiting->Received(FormMessage(0, {0}));
      EXPECT_EQ(waiting.mailbox->Await(FromWorker::kJoined).joined().generation(), generation);
      EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(15))
          << "the worker must not wait for a timeout";
    }
  }
}

TEST_P(WorkerTest, MessagesOfOtherGenerationsAreIgnored) {
  StartAll(1);
  Form({0});
  for (const uint64_t other : {generation - 1, generation + 1}) {
    ToWorker message;
    message.mutable_step()->set_generation(other);
    workers[0]->Received(message);
    message.mutable_connect()->set_generation(other);
    workers[0]->Received(message);
    message.mutable_end_generation()->set_generation(other);
    workers[0]->Received(message);
  }
  EXPECT_EQ(RunStep(OpenStep(1)).id(), 1u);
}

TEST_P(DeviceWorkerTest, AFaultOfTheDeviceEndsTheGeneration) {
  for (const int steps : {1, 4}) {
    QueueSteps(steps);
    workers[0].device->Fail(absl::InternalError("the device is lost"));
    EXPECT_EQ(workers[0].mailbox->Await(FromWorker::kEndGeneration).end_generation().reason(), "the device is lost");
    workers[0].device->HoldMarks(false);
  }
}

// A transfer may fail after it was queued; what the device then computes must not be answered.
TEST_P(DeviceWorkerTest, AFailureOfTheTransportEndsTheGeneration) {
  for (const bool late : {false, true}) {
    QueueSteps(1);
    workers[0].watch->Fail(absl::UnavailableError("a transfer has made no progress"));
    if (late) workers[0].device->HoldMarks(false);
    EXPECT_EQ(workers[0].mailbox->Await(FromWorker::kEndGeneration).end_generation().reason(),
              "a transfer has made no progress");
    workers[0].device->HoldMarks(false);
  }
}

TEST_P(DeviceWorkerTest, TheNextGenerationForgetsWhatWasUnderWay) {
  QueueSteps(4);
  EndGeneration();
  workers[0].device->HoldMarks(false);
  Form({0, 2});
  Step step = OpenStep(7);
  AddChunk(step, 7, 0, {1, 2, 3}, 1);
  EXPECT_EQ(RunStep(step).id(), 1u);
}

INSTANTIATE_TEST_SUITE_P(Transports, WorkerTest, testing::ValuesIn(AllWorkerTestCases()),
                         [](const auto& info) { return testing::PrintToString(info.param); });

INSTANTIATE_TEST_SUITE_P(Devices, DeviceWorkerTest, testing::Values(WorkerTestCase{"local", true}),
                         [](const auto& info) { return testing::PrintToString(info.param); });

}  // namespace
}  // namespace goldfinch
