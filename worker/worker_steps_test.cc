// Steps give the same results however the layers are split over workers.
#include <chrono>
#include <cstdint>
#include <limits>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "protos/cluster.pb.h"
#include "worker/worker_test_util.h"

namespace goldfinch {
namespace {

using cluster::v1::ChunkResult;
using cluster::v1::FromWorker;
using cluster::v1::Step;
using cluster::v1::StepDone;
using ::testing::AllOf;
using ::testing::HasSubstr;

// Steps mix chunks of prompts, decoding and scoring. The logits are the same bit for bit whatever the split, and
// exactly the rows that the pre-fill rule asks for cross each boundary.
TEST_P(WorkerTest, LogitsOfEverySplitAreThoseOfOneStage) {
  const std::vector<int32_t> ids = RandomTokens(200, kVocab, 5);
  struct Turn {
    uint64_t sequence;
    size_t tokens;
    uint32_t logit_rows;
  };
  const std::vector<std::vector<Turn>> turns = {
      {{1, 40, 0}, {2, 30, 0}}, {{1, 1, 1}, {2, 2, 2}},  {{2, 1, 1}, {1, 1, 1}, {3, 64, 0}},
      {{1, 1, 1}, {2, 30, 5}},  {{3, 1, 1}, {1, 20, 0}}, {{1, 2, 1}, {3, 4, 4}},
  };
  for (const std::vector<std::string>& layers :
       {std::vector<std::string>{"finch_c2", "finch_c2", "gold", "gold"}, {"finch", "gptalpha", "finch", "llama"}}) {
    UseModel({.layers = layers});
    const bool gold = layers.back() == "gold";
    StartAll(4);
    for (const std::vector<int>& split : std::vector<std::vector<int>>{{0}, {0, 1}, {0, 3}, {0, 2, 3}, {0, 1, 2, 3}}) {
      SCOPED_TRACE(testing::PrintToString(split));
      ReferenceStage reference(path, Options());
      Form(split);
      std::vector<int> slots = {0, *reference.stage().Open(), *reference.stage().Open(), *reference.stage().Open()};
      std::vector<size_t> positions(4);
      for (size_t turn = 0; turn < turns.size(); ++turn) {
        Step step;
        for (uint64_t id = 1; turn == 0 && id <= 3; ++id) step.add_open()->set_sequence(id);
        std::vector<Chunk> chunks;
        std::vector<std::vector<int32_t>> parts;
        int64_t tokens = 0;
        for (const Turn& t : turns[turn]) {
          parts.push_back(Part(ids, positions[t.sequence] + t.sequence, t.tokens));
          WantLogits(AddChunk(step, t.sequence, positions[t.sequence], parts.back(), t.logit_rows));
          if (t.logit_rows == 0) {
            step.mutable_chunks()->rbegin()->set_top_logprobs(0);
            step.mutable_chunks()->rbegin()->set_logits(false);
          }
          positions[t.sequence] += t.tokens;
          tokens += static_cast<int64_t>(t.tokens);
        }
        for (size_t i = 0; i < parts.size(); ++i) {
          chunks.push_back({slots[turns[turn][i].sequence], parts[i], turns[turn][i].logit_rows});
        }
        std::vector<float> logits;
        const StepDone done = RunStep(step);
        for (const ChunkResult& result : done.results()) {
          const std::vector<float> part = LogitsOf(result);
          logits.insert(logits.end(), part.begin(), part.end());
          EXPECT_EQ(result.logprobs_size(), static_cast<int>(part.size()) / kVocab);
          EXPECT_EQ(result.top_size(), result.logprobs_size());
          EXPECT_EQ(result.top(0).ids_size(), 3);
        }
        EXPECT_EQ(logits, reference.Forward(chunks)) << "step " << turn;
        for (int stage = 0; stage < stages; ++stage) {
          const bool gets_compressed = gold && split[stage] >= 2;
          EXPECT_EQ(dones[stage].compressed_bytes(), gets_compressed ? tokens * 4 * 2 : 0u) << "stage " << stage;
          EXPECT_EQ(dones[stage].id_bytes(), gets_compressed ? tokens * 2 : 0u);
          uint64_t hidden_rows = stage == 0 ? 0 : tokens;
          if (gets_compressed && turn == 0) hidden_rows = 0;
          if (gets_compressed && turn == 4) hidden_rows = 5 - 2 * (split[stage] - 2);
          if (!gets_compressed || turn == 0 || turn == 4) {
            EXPECT_EQ(dones[stage].hidden_bytes(), hidden_rows * 64 * 4) << "stage " << stage;
          }
        }
      }
    }
  }
}

TEST_P(WorkerTest, SampledTokensAreThoseOfOneStage) {
  StartAll(3);
  ReferenceStage reference(path, Options());
  const std::vector<int32_t> prompt = RandomTokens(73, kVocab, 8);
  Form({0, 1, 3});
  uint64_t sequence = 100;
  for (const uint64_t seed : {1, 2, 3}) {
    for (const size_t chunk : {7, 73}) {
      EXPECT_EQ(Generate(++sequence, prompt, chunk, 25, SomeSampling(seed)),
                reference.Generate(prompt, 100, 25, SomeSampling(seed)));
    }
  }
}

// Rows of the steps before and after are not mixed up with what is sent to measure.
TEST_P(WorkerTest, LinksAreMeasuredBetweenSteps) {
  StartAll(4);
  ReferenceStage reference(path, Options());
  const std::vector<int32_t> prompt = RandomTokens(40, kVocab, 6);
  const std::vector<int32_t> answer = reference.Generate(prompt, 100, 5, SomeSampling(1));
  Form({0, 1, 2, 3});
  for (uint64_t sequence = 1; sequence <= 3; ++sequence) {
    EXPECT_EQ(Generate(sequence, prompt, 7, 5, SomeSampling(1)), answer);
    cluster::v1::ToWorker measure;
    measure.mutable_measure_links()->set_generation(generation);
    for (TestWorker& worker : workers) worker->Received(measure);
    // Stage 1 has the boundary, and sends to all later stages.
    const std::vector<std::vector<uint32_t>> links_to = {{1}, {2, 3}, {3}, {}};
    for (size_t stage = 0; stage < workers.size(); ++stage) {
      const FromWorker reply = workers[stage].mailbox->Await(FromWorker::kLinksMeasured);
      EXPECT_EQ(reply.links_measured().generation(), generation);
      std::vector<uint32_t> measured;
      for (const cluster::v1::MeasuredLink& link : reply.links_measured().links()) {
        measured.push_back(link.stage());
        EXPECT_GT(link.round_trip_seconds(), 0);
        EXPECT_TRUE(link.bytes_per_second() == 0 || link.bytes_per_second() >= 1) << link.bytes_per_second();
      }
      EXPECT_EQ(measured, links_to[stage]) << stage;
    }
  }
}

// Forks share the work of a prompt and then draw independently.
TEST_P(WorkerTest, ForksDrawAsSequencesOfTheirOwn) {
  StartAll(2);
  ReferenceStage reference(path, Options());
  const std::vector<int32_t> prompt = RandomTokens(70, kVocab, 9);
  for (const std::vector<int>& split : std::vector<std::vector<int>>{{0, 1}, {0, 3}}) {
    Form(split);
    Step step = OpenStep(1);
    FillSampling(SomeSampling(1), step.mutable_open(0)->mutable_sampling());
    cluster::v1::Chunk* chunk = AddChunk(step, 1, 0, Part(prompt, 0, 69), 0);
    for (const uint64_t fork : {2, 3}) {
      cluster::v1::NewSequence* forked = chunk->add_forks();
      forked->set_sequence(fork);
      forked->set_seed(fork);
    }
    EXPECT_TRUE(RunStep(step).results().empty());
    std::vector<std::vector<int32_t>> answers(4);
    std::vector<int32_t> next(4, prompt.back());
    for (int i = 0; i < 20; ++i) {
      Step decode;
      for (uint64_t id = 1; id <= 3; ++id) AddChunk(decode, id, 69 + i, {next[id]}, 1)->set_sample(true);
      const StepDone done = RunStep(decode);
      ASSERT_EQ(done.results_size(), 3);
      for (const ChunkResult& result : done.results()) {
        next[result.sequence()] = static_cast<int32_t>(result.token());
        answers[result.sequence()].push_back(next[result.sequence()]);
      }
    }
    for (uint64_t id = 1; id <= 3; ++id) {
      EXPECT_EQ(answers[id], reference.Generate(prompt, 100, 20, SomeSampling(id))) << "sequence " << id;
    }
  }
}

TEST_P(WorkerTest, ClosedSequencesMakeRoom) {
  StartAll(2);
  Form({0, 2});
  const std::vector<int32_t> ids = RandomTokens(60, kVocab, 4);
  std::vector<float> first;
  for (uint64_t round = 0; round < 5; ++round) {
    Step step;
    for (uint64_t i = 0; i < 6; ++i) {
      if (round > 0) step.add_close(round * 10 + i - 10);
      step.add_open()->set_sequence(round * 10 + i);
    }
    WantLogits(AddChunk(step, round * 10 + round, 0, ids, 2));
    const StepDone done = RunStep(step);
    ASSERT_EQ(done.results_size(), 1);
    if (round == 0) first = LogitsOf(done.results(0));
    EXPECT_EQ(LogitsOf(done.results(0)), first);
    EXPECT_EQ(done.cache_bytes(), 64u * (2 + 4 * 2)) << "one page";
  }
}

// Only the sequences whose results depend on the bad number end.
TEST_P(WorkerTest, LogitsThatAreNotFiniteEndOneSequence) {
  std::vector<TestTensor> tensors = RandomModel({.layers = {"finch_c2", "gold"}});
  ASSERT_EQ(tensors.front().name, "emb.weight");
  for (int64_t i = 0; i < 64; ++i) tensors.front().values[7 * 64 + i] = std::numeric_limits<float>::quiet_NaN();
  UseTensors(tensors);
  std::mutex mutex;
  std::vector<std::string> lines;
  for (int i = 0; i < 2; ++i) {
    workers.push_back(Start({.log = [&](const std::string& line) {
      if (line.find("NaN") == std::string::npos) return;
      const std::lock_guard<std::mutex> lock(mutex);
      lines.push_back(line);
    }}));
    Welcome(workers.back());
  }
  Form({0, 1});
  Step step;
  for (uint64_t id = 1; id <= 4; ++id) {
    step.add_open()->set_sequence(id);
    FillSampling(SomeSampling(id), step.mutable_open()->rbegin()->mutable_sampling());
  }
  AddChunk(step, 1, 0, {1, 7, 2}, 1)->set_sample(true);
  AddChunk(step, 2, 0, {1, 6, 2}, 1)->set_sample(true);
  WantLogits(AddChunk(step, 3, 0, {1, 7, 2}, 2));
  WantLogits(AddChunk(step, 4, 0, {1, 6, 2}, 2));
  const StepDone done = RunStep(step);
  ASSERT_EQ(done.results_size(), 4);
  EXPECT_THAT(done.results(0).error(), AllOf(HasSubstr("position 3"), HasSubstr("nan")));
  EXPECT_EQ(done.results(1).error(), "");
  EXPECT_THAT(done.results(2).error(), AllOf(HasSubstr("position 2"), HasSubstr("nan")));
  EXPECT_EQ(done.results(2).logprobs_size(), 0);
  EXPECT_EQ(done.results(3).error(), "");
  EXPECT_EQ(done.results(3).logprobs_size(), 2);
  workers.clear();
  ASSERT_EQ(lines.size(), 2u);
  EXPECT_THAT(lines[0], AllOf(HasSubstr("emb.weight"), HasSubstr("NaN")));
}

TEST_P(DeviceWorkerTest, StepsAreQueuedAheadAndAnsweredWhenTheyAreDone) {
  QueueSteps(4);
  std::this_thread::sleep_for(std::chrono::milliseconds(30));
  EXPECT_TRUE(workers[0].mailbox->empty()) << "nothing is done";
  EXPECT_TRUE(workers[1].mailbox->empty()) << "no more than two are queued";
  workers[0].device->HoldMarks(false);
  for (uint64_t id = 1; id <= 4; ++id) {
    const StepDone done = workers[0].mailbox->Await(FromWorker::kStepDone).step_done();
    EXPECT_EQ(done.id(), id);
    if (id == 1) {
      EXPECT_GT(done.busy_seconds(), 0.03) << "the device's time, not the host's";
    }
    if (id == 2) {
      EXPECT_LT(done.busy_seconds(), 0.03) << "the time before is the first one's";
      EXPECT_EQ(done.idle_seconds(), 0);
    }
  }
  for (uint64_t id = 3; id <= 4; ++id) {
    EXPECT_EQ(workers[1].mailbox->Await(FromWorker::kStepDone).step_done().id(), id);
  }
}

INSTANTIATE_TEST_SUITE_P(Transports, WorkerTest, testing::ValuesIn(AllWorkerTestCases()),
                         [](const auto& info) { return testing::PrintToString(info.param); });

INSTANTIATE_TEST_SUITE_P(Devices, DeviceWorkerTest, testing::Values(WorkerTestCase{"local", true}),
                         [](const auto& info) { return testing::PrintToString(info.param); });

}  // namespace
}  // namespace goldfinch
