// Stages that queue their steps on devices: rows go from device to device, and the host waits only at the end. The
// devices are emulated, so that everything happens as late as possible.
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
struct DeviceStage {
  std::unique_ptr<Backend> backend = *MakeCudaBackend({.activation_dtype = DType::kF32});
  StageAssignment assignment;
  std::unique_ptr<Stage> stage;
  std::unique_ptr<StageRunner> runner;
  std::unique_ptr<TransportSetup> setup;
  std::unique_ptr<Transport> transport;
  std::vector<StepDone> dones;
  std::vector<RunningStep> running;
};

class StageChainTest : public testing::TestWithParam<std::unique_ptr<TransportFactory> (*)()> {
 public:
  void SetUp() override {
    const std::string path = testing::TempDir() + "/stage_chain_test.safetensors";
    ASSERT_TRUE(WriteSafetensors(path, RandomModel({.layers = {"finch_c2", "finch_c2", "gold", "gold"}})).ok());
    checkpoint = *Checkpoint::Open(path);
    shape = *ReadModelShape(*checkpoint, {});
  }

  // Makes a group whose stages begin with these layers and are connected.
  std::vector<DeviceStage> MakeGroup(const std::vector<int>& first_layers) {
    std::vector<DeviceStage> group(first_layers.size());
    const std::unique_ptr<TransportFactory> factory = GetParam()();
    for (size_t i = 0; i < group.size(); ++i) {
      Form form;
      form.set_generation(1);
      form.set_stage(i);
      for (const int first : first_layers) form.add_first_layers(first);
      form.set_max_sequences(2);
      form.set_max_sequence_tokens(200);
      form.set_cache_tokens(400);
      form.set_max_step_tokens(20);
      form.set_max_logit_rows(20);
      form.set_transport_key(std::string(32, 'k'));
      form.set_sampleable(std::string(kVocab / 8, '\xFF'));
      form.set_repeats_freely(std::string(kVocab / 8, '\0'));
      DeviceStage& member = group[i];
      member.assignment = *AssignStage(form, shape, DType::kBf16);
      auto model =
          *LoadModel(*member.backend, checkpoint, {}, member.assignment.first_layer, member.assignment.last_layer);
      member.stage = *Stage::Create(*member.backend, std::move(model), member.assignment.options);
      member.runner = *StageRunner::Create(member.assignment, *member.backend, *member.stage);
      member.setup = *factory->Setup("a key", static_cast<int>(i), member.assignment.Traffic(shape), *member.backend);
    }
    std::vector<std::thread> threads;
    for (size_t i = 0; i < group.size(); ++i) {
      threads.emplace_back([&, i] {
        std::vector<std::string> addresses;
        for (const DeviceStage& peer : group) addresses.push_back(peer.setup->addresses()[i]);
        auto transport = group[i].setup->Connect(addresses, 60);
        ASSERT_TRUE(transport.ok()) << transport.status();
        group[i].transport = *std::move(transport);
      });
    }
    for (std::thread& thread : threads) thread.join();
    return group;
  }

  // Steps of one sequence: a prompt in chunks, then single tokens. Each asks for the logits of its last tokens.
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

  // Runs all steps on all stages, each on a thread of its own, and returns the logits of the last stage.
  static std::vector<std::string> Run(std::vector<DeviceStage>& group) {
    const std::vector<Step> steps = Steps();
    std::vector<std::thread> threads;
    for (DeviceStage& member : group) {
      threads.emplace_back([&member, &steps] {
        member.dones.resize(steps.size());
        member.running.resize(steps.size());
        for (size_t i = 0; i < steps.size(); ++i) {
          ASSERT_EQ(member.runner->Run(steps[i], *member.transport, &member.dones[i], &member.running[i]),
                    absl::OkStatus());
        }
        for (RunningStep& running : member.running) {
          while (!running.Poll()) std::this_thread::yield();
        }
        EXPECT_EQ(member.transport->status(), absl::OkStatus());
      });
    }
    for (std::thread& thread : threads) thread.join();
    std::vector<std::string> logits;
    for (const StepDone& done : group.back().dones) {
      for (const auto& result : done.results()) logits.push_back(result.logits());
    }
    return logits;
  }

  std::shared_ptr<const Checkpoint> checkpoint;
  ModelShape shape;
};

// The stages do the same ops on the same rows, so the logits are the same bit for bit.
TEST_P(StageChainTest, LogitsAreThoseOfOneStage) {
  std::vector<DeviceStage> one = MakeGroup({0});
  const std::vector<std::string> expected = Run(one);
  ASSERT_EQ(expected.size(), 4u);
  EXPECT_EQ(expected.back().size(), 5 * kVocab * sizeof(float));
  for (const std::vector<int>& split : {std::vector<int>{0, 2}, {0, 1, 3}, {0, 1, 2, 3}}) {
    std::vector<DeviceStage> group = MakeGroup(split);
    EXPECT_TRUE(Run(group) == expected) << testing::PrintToString(split);
    for (const DeviceStage& member : group) {
      for (size_t i = 0; i < member.running.size(); ++i) {
        StepDone done;
        member.running[i].FillTimes(i == 0 ? std::chrono::steady_clock::time_point() : member.running[i - 1].end(),
                                    &done);
        EXPECT_GE(done.busy_seconds(), 0);
        EXPECT_GE(done.bubble_seconds(), 0);
      }
    }
  }
}

// A group ends while steps are queued and not done; its devices can be used for the next one.
TEST_P(StageChainTest, AnAbortedGroupLeavesItsDevicesUsable) {
  std::vector<DeviceStage> group = MakeGroup({0, 2});
  const std::vector<Step> steps = Steps();
  StepDone done;
  RunningStep running;
  ASSERT_EQ(group[0].runner->Run(steps[0], *group[0].transport, &done, &running), absl::OkStatus());
  ASSERT_EQ(group[1].runner->Run(steps[0], *group[1].transport, &done, &running), absl::OkStatus());
  for (DeviceStage& member : group) member.transport->Abort();
  EXPECT_FALSE(group[0].runner->Run(steps[1], *group[0].transport, &done, &running).ok());
  for (DeviceStage& member : group) {
    EXPECT_FALSE(member.transport->status().ok());
    member.transport.reset();
    member.runner.reset();
    EXPECT_EQ(member.backend->Synchronize(), absl::OkStatus());
    member.runner = *StageRunner::Create(member.assignment, *member.backend, *member.stage);
  }
}

INSTANTIATE_TEST_SUITE_P(Transports, StageChainTest, testing::Values(Local, Nccl),
                         [](const auto& info) { return info.param == Local ? "local" : "nccl"; });

}  // namespace
}  // namespace goldfinch
