// Stages whose steps are queued on devices and end later: rows go from device to device, and nobody waits before the
// end. The devices are emulated, so that all of it happens as late as it may.
#include <cstdint>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/cuda/cuda_backend.h"
#include "protos/cluster.pb.h"
#include "worker/model/model.h"
#include "worker/model/random_model.h"
#include "worker/stage_runner.h"
#include "worker/transport/fake_nccl.h"
#include "worker/transport/nccl_transport.h"
#include "worker/transport/transport.h"

namespace goldfinch {
namespace {

using cluster::v1::Form;
using cluster::v1::Step;
using cluster::v1::StepDone;

constexpr int64_t kVocab = 40;

std::unique_ptr<TransportFactory> Local() { return MakeLocalTransportFactory(); }
std::unique_ptr<TransportFactory> Nccl() { return MakeNcclTransportFactory(FakeNccl(), 60); }

// A stage on a device of its own.
struct Place {
  std::unique_ptr<Backend> backend = *MakeCudaBackend({.activation_dtype = DType::kF32});
  StageAssignment assignment;
  std::unique_ptr<Stage> stage;
  std::unique_ptr<StageRunner> runner;
  std::unique_ptr<TransportSetup> setup;
  std::unique_ptr<Transport> transport;
  std::vector<StepDone> dones;
  std::vector<RunningStep> running;
};

class StageRunnerTest : public testing::TestWithParam<std::unique_ptr<TransportFactory> (*)()> {
 public:
  void SetUp() override {
    const std::string path = testing::TempDir() + "/stage_runner_test.safetensors";
    ASSERT_TRUE(WriteSafetensors(path, RandomModel({.layers = {"finch_c2", "finch_c2", "gold", "gold"}})).ok());
    checkpoint = *Checkpoint::Open(path);
    shape = *ReadModelShape(*checkpoint, {});
  }

  // A group with these first layers, connected.
  std::vector<Place> MakeGroup(const std::vector<int>& first_layers) {
    std::vector<Place> places(first_layers.size());
    const std::unique_ptr<TransportFactory> factory = GetParam()();
    for (size_t stage = 0; stage < places.size(); ++stage) {
      Form form;
      form.set_generation(1);
      form.set_stage(stage);
      for (const int first : first_layers) form.add_first_layers(first);
      form.set_max_sequences(2);
      form.set_max_sequence_tokens(200);
      form.set_cache_tokens(400);
      form.set_max_step_tokens(20);
      form.set_max_logit_rows(20);
      form.set_sampleable(std::string(kVocab / 8, '\xFF'));
      form.set_repeats_freely(std::string(kVocab / 8, '\0'));
      Place& place = places[stage];
      place.assignment = *AssignStage(form, shape, DType::kBf16);
      auto model =
          *LoadModel(*place.backend, checkpoint, {}, place.assignment.first_layer, place.assignment.last_layer);
      place.stage = *Stage::Create(*place.backend, std::move(model), place.assignment.options);
      place.runner = *StageRunner::Create(place.assignment, *place.backend, *place.stage);
      place.setup = *factory->Setup(1, static_cast<int>(stage), place.assignment.Traffic(shape), *place.backend);
    }
    std::vector<std::thread> threads;
    for (size_t stage = 0; stage < places.size(); ++stage) {
      threads.emplace_back([&, stage] {
        std::vector<std::string> addresses;
        for (const Place& peer : places) addresses.push_back(peer.setup->addresses()[stage]);
        auto transport = places[stage].setup->Connect(addresses, 60);
        ASSERT_TRUE(transport.ok()) << transport.status();
        places[stage].transport = *std::move(transport);
      });
    }
    for (std::thread& thread : threads) thread.join();
    return places;
  }

  // A prompt in chunks, and tokens that follow one by one; every step's logits are wanted by `logit_rows` of it.
  static std::vector<Step> Steps() {
    const std::vector<int32_t> ids = RandomTokens(60, kVocab, 5);
    std::vector<Step> steps;
    size_t position = 0;
    for (const auto& [tokens, logit_rows] :
         std::vector<std::pair<size_t, uint32_t>>{{9, 0}, {20, 0}, {13, 1}, {1, 1}, {1, 1}, {6, 0}, {5, 5}}) {
      Step step;
      if (position == 0) step.add_open()->set_sequence(1);
      cluster::v1::Chunk& chunk = *step.add_chunks();
      chunk.set_sequence(1);
      chunk.set_position(position);
      chunk.set_tokens(tokens);
      for (size_t i = 0; i < tokens; ++i) *chunk.mutable_ids() += {static_cast<char>(ids[position + i]), '\0'};
      chunk.set_logit_rows(logit_rows);
      for (uint32_t i = 0; i < logit_rows; ++i) chunk.add_targets(i);
      chunk.set_logits(logit_rows > 0);
      position += tokens;
      steps.push_back(step);
    }
    return steps;
  }

  // All steps on all stages, each stage as fast as its thread goes. The last stage's logits.
  static std::vector<std::string> Run(std::vector<Place>& places) {
    const std::vector<Step> steps = Steps();
    std::vector<std::thread> threads;
    for (Place& place : places) {
      threads.emplace_back([&place, &steps] {
        place.dones.resize(steps.size());
        place.running.resize(steps.size());
        for (size_t i = 0; i < steps.size(); ++i) {
          ASSERT_EQ(place.runner->Run(steps[i], *place.transport, &place.dones[i], &place.running[i]),
                    absl::OkStatus());
        }
        for (RunningStep& running : place.running) {
          while (!running.Poll()) std::this_thread::yield();
        }
        EXPECT_EQ(place.transport->status(), absl::OkStatus());
      });
    }
    for (std::thread& thread : threads) thread.join();
    std::vector<std::string> logits;
    for (const StepDone& done : places.back().dones) {
      for (const auto& result : done.results()) logits.push_back(result.logits());
    }
    return logits;
  }

  std::shared_ptr<const Checkpoint> checkpoint;
  ModelShape shape;
};

// The same ops on the same rows: the same bits.
TEST_P(StageRunnerTest, LogitsAreThoseOfOneStage) {
  std::vector<Place> one = MakeGroup({0});
  const std::vector<std::string> expected = Run(one);
  ASSERT_EQ(expected.size(), 4u);
  EXPECT_EQ(expected.back().size(), 5 * kVocab * sizeof(float));
  for (const std::vector<int>& split : {std::vector<int>{0, 2}, {0, 1, 3}, {0, 1, 2, 3}}) {
    std::vector<Place> places = MakeGroup(split);
    EXPECT_TRUE(Run(places) == expected) << testing::PrintToString(split);
    for (const Place& place : places) {
      for (size_t i = 0; i < place.running.size(); ++i) {
        StepDone done;
        place.running[i].FillTimes(i == 0 ? std::chrono::steady_clock::time_point() : place.running[i - 1].end(),
                                   &done);
        EXPECT_GE(done.busy_seconds(), 0);
        EXPECT_GE(done.bubble_seconds(), 0);
      }
    }
  }
}

// A group ends in the middle of its work, with steps queued and not done; the devices go on to the next one.
TEST_P(StageRunnerTest, AnAbortedGroupLeavesItsDevicesUsable) {
  std::vector<Place> places = MakeGroup({0, 2});
  const std::vector<Step> steps = Steps();
  StepDone done;
  RunningStep running;
  ASSERT_EQ(places[0].runner->Run(steps[0], *places[0].transport, &done, &running), absl::OkStatus());
  ASSERT_EQ(places[1].runner->Run(steps[0], *places[1].transport, &done, &running), absl::OkStatus());
  for (Place& place : places) place.transport->Abort();
  EXPECT_FALSE(places[0].runner->Run(steps[1], *places[0].transport, &done, &running).ok());
  for (Place& place : places) {
    EXPECT_FALSE(place.transport->status().ok());
    place.transport.reset();
    place.runner.reset();
    EXPECT_EQ(place.backend->Synchronize(), absl::OkStatus());
    place.runner = *StageRunner::Create(place.assignment, *place.backend, *place.stage);
  }
}

INSTANTIATE_TEST_SUITE_P(Transports, StageRunnerTest, testing::Values(Local, Nccl),
                         [](const auto& info) { return info.param == Local ? "local" : "nccl"; });

}  // namespace
}  // namespace goldfinch
