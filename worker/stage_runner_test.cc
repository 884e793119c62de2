// Back ends that draw tokens themselves draw the tokens that the host draws.
#include "worker/stage_runner.h"

#include <cstdint>
#include <limits>
#include <memory>
#include <ostream>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/backend.h"
#include "kernels/cuda/cuda_backend.h"
#include "protos/cluster.pb.h"
#include "worker/model/fake_device.h"
#include "worker/model/random_model.h"

namespace goldfinch {
namespace {

using cluster::v1::Step;
using cluster::v1::StepDone;
using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr int64_t kVocab = 40;
constexpr int kLayers = 2;

enum class Kind { kFakeDevice, kFakeDeviceThatCannotSample, kEmulatedCuda };
void PrintTo(Kind kind, std::ostream* out) { *out << static_cast<int>(kind); }

std::unique_ptr<Backend> MakeBackend(Kind kind) {
  if (kind == Kind::kEmulatedCuda) return *MakeCudaBackend({.activation_dtype = DType::kF32});
  auto device = std::make_unique<FakeDevice>(MakeCpuBackend(1));
  if (kind == Kind::kFakeDeviceThatCannotSample) device->set_sample_vocab_max(kVocab - 1);
  return device;
}

// A single stage sends and receives nothing.
class NoTransport : public Transport {
 public:
  absl::Status Send(int, ConstTensor) override { return absl::InternalError("sent"); }
  absl::Status Recv(int, Tensor) override { return absl::InternalError("received"); }
  absl::Status status() const override { return absl::OkStatus(); }
  void Abort() override {}
};

class StageRunnerTest : public testing::TestWithParam<Kind> {
 public:
  void SetUp() override { Make(RandomModel({.layers = {"finch_c2", "gold"}})); }
  void Make(const std::vector<TestTensor>& tensors) {
    StageAssignment assignment;
    assignment.stages = 1;
    assignment.last_layer = kLayers;
    assignment.options = {.max_sequences = 8, .cache_tokens = 1024, .max_step_tokens = 100, .max_logit_rows = 20};
    std::vector<bool> sampleable(kVocab, true), repeats(kVocab, false);
    sampleable[38] = sampleable[7] = false;
    assignment.vocabulary = std::make_shared<const SamplerVocabulary>(sampleable, repeats);
    stage = *Stage::Create(*backend, *LoadModel(*backend, OpenTensors(tensors), {}), assignment.options);
    runner = *StageRunner::Create(assignment, *backend, *stage);
  }

  static void Open(Step& step, uint64_t sequence, uint64_t seed, bool logprobs) {
    cluster::v1::NewSequence* opened = step.add_open();
    opened->set_sequence(sequence);
    cluster::v1::Sampling* sampling = opened->mutable_sampling();
    sampling->set_temperature(seed % 3 == 0 ? 0 : 1.2);
    sampling->set_top_p(0.9);
    sampling->set_presence_penalty(0.3);
    sampling->set_frequency_penalty(0.3);
    sampling->set_penalty_decay(0.99);
    sampling->set_seed(seed);
    sampling->add_banned_tokens(2);
    if (logprobs) sampling->set_logprobs(0);
  }
  static cluster::v1::Chunk* AddChunk(Step& step, uint64_t sequence, uint64_t position, const std::vector<int32_t>& ids,
                                      uint32_t logit_rows) {
    cluster::v1::Chunk* chunk = step.add_chunks();
    chunk->set_sequence(sequence);
    chunk->set_position(position);
    chunk->set_tokens(ids.size());
    for (const int32_t id : ids) chunk->mutable_ids()->append({static_cast<char>(id), '\0'});
    chunk->set_logit_rows(logit_rows);
    return chunk;
  }
  StepDone Run(const Step& step) {
    StepDone done;
    RunningStep running;
    const absl::Status status = runner->Run(step, transport, &done, &running);
    EXPECT_TRUE(status.ok()) << status;
    return done;
  }

  NoTransport transport;
  const std::unique_ptr<Backend> backend = MakeBackend(GetParam());
  std::unique_ptr<Stage> stage;
  std::unique_ptr<StageRunner> runner;
};

// Sequences come in pairs with the same options, of which one asks for log-probabilities, so that the host draws for
// it. Rows that are scored lie between them.
TEST_P(StageRunnerTest, TheDeviceDrawsWhatTheHostDraws) {
  constexpr uint64_t kPairs = 3;
  std::vector<int32_t> next(2 * kPairs, 11);
  uint64_t scored = 0;
  for (uint64_t position = 0; position < 20; ++position) {
    Step step;
    for (uint64_t id = 0; id < 2 * kPairs; ++id) {
      if (position == 0) Open(step, id, id / 2, id % 2 == 1);
      if (id == 3) {
        if (position == 0) step.add_open()->set_sequence(100);
        cluster::v1::Chunk* chunk = AddChunk(step, 100, scored, {4, 5}, 2);
        chunk->add_targets(5);
        chunk->add_targets(6);
        scored += 2;
      }
      AddChunk(step, id, position, {next[id]}, 1)->set_sample(true);
    }
    const StepDone done = Run(step);
    ASSERT_EQ(done.results_size(), static_cast<int>(2 * kPairs + 1));
    for (const auto& result : done.results()) {
      EXPECT_EQ(result.error(), "");
      EXPECT_EQ(result.logprobs_size(), result.sequence() == 100 ? 2 : static_cast<int>(result.sequence() % 2));
      if (result.sequence() < next.size()) next[result.sequence()] = static_cast<int32_t>(result.token());
    }
    for (uint64_t id = 0; id < 2 * kPairs; id += 2) EXPECT_EQ(next[id], next[id + 1]) << "position " << position;
  }
}

TEST_P(StageRunnerTest, ARowThatIsNotFiniteEndsItsSequence) {
  runner.reset();
  std::vector<TestTensor> tensors = RandomModel({.layers = {"finch_c2", "gold"}});
  ASSERT_EQ(tensors.front().name, "emb.weight");
  for (int64_t i = 0; i < 64; ++i) tensors.front().values[9 * 64 + i] = std::numeric_limits<float>::quiet_NaN();
  Make(tensors);
  Step step;
  for (const uint64_t id : {1, 2}) Open(step, id, id, /*logprobs=*/false);
  AddChunk(step, 1, 0, {1, 9, 3}, 1)->set_sample(true);
  AddChunk(step, 2, 0, {1, 8, 3}, 1)->set_sample(true);
  const StepDone done = Run(step);
  ASSERT_EQ(done.results_size(), 2);
  EXPECT_THAT(done.results(0).error(), AllOf(HasSubstr("position 3"), HasSubstr("nan")));
  EXPECT_EQ(done.results(1).error(), "");
}

INSTANTIATE_TEST_SUITE_P(Devices, StageRunnerTest,
                         testing::Values(Kind::kFakeDevice, Kind::kFakeDeviceThatCannotSample, Kind::kEmulatedCuda),
                         testing::PrintToStringParamName());

}  // namespace
}  // namespace goldfinch
