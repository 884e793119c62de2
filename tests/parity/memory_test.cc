// What is planned of a stage's memory is what the stage takes, in every family and however the layers are cut; and the
// coordinator plans by the same numbers.
#include <algorithm>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/stage_memory.h"
#include "coordinator/planner/model_description.h"
#include "gtest/gtest.h"
#include "kernels/backend.h"
#include "protos/cluster.pb.h"
#include "tests/parity/golden_case.h"
#include "worker/model/fake_device.h"
#include "worker/model/model.h"
#include "worker/model/model_memory.h"
#include "worker/model_description.h"
#include "worker/stage/stage.h"
#include "worker/stage_assignment.h"
#include "worker/stage_runner.h"

namespace goldfinch {
namespace {

constexpr DType kCacheType = DType::kBf16;  // of all families

// A Form for the stage of layers [first, last), between stages that have the other layers.
cluster::v1::Form FormOf(const ModelShape& shape, int first, int last) {
  cluster::v1::Form form;
  form.add_first_layers(0);
  if (first > 0) form.add_first_layers(first);
  form.set_stage(first > 0 ? 1 : 0);
  if (last < shape.layers()) form.add_first_layers(last);
  form.set_max_sequences(3);
  form.set_max_sequence_tokens(200);
  form.set_cache_tokens(333);
  form.set_max_step_tokens(17);
  form.set_max_logit_rows(5);
  form.set_transport_key(std::string(32, 'k'));
  form.set_sampleable(std::string((shape.vocab_size + 7) / 8, '\x01'));
  form.set_repeats_freely(std::string((shape.vocab_size + 7) / 8, '\0'));
  return form;
}

std::vector<int64_t> Bytes(const StageMemory& memory) {
  std::vector<int64_t> bytes;
  for (const MemoryPart& part : memory.Parts()) bytes.push_back(part.bytes);
  return bytes;
}

// Bytes of all channels: for each peer, as many of the largest message to or from it as the transports keep.
int64_t ChannelBytes(const StageAssignment& assignment, const ModelShape& shape, DType cache_dtype) {
  const int64_t hidden = assignment.hidden_rows_max * shape.width * SizeOf(DType::kF32);
  const int64_t compressed = assignment.options.max_step_tokens * shape.CompressedRowBytes(cache_dtype);
  std::map<int, int64_t> messages;
  const auto raise = [&messages](int peer, int64_t bytes) {
    if (peer >= 0) messages[peer] = std::max(messages[peer], bytes);
  };
  raise(assignment.links.hidden_from, hidden);
  raise(assignment.links.hidden_to, hidden);
  raise(assignment.links.compressed_from, compressed);
  for (const int peer : assignment.links.compressed_to) raise(peer, compressed);
  int64_t sum = 0;
  for (const auto& [peer, bytes] : messages) {
    sum += kChannelMessages * ((bytes + kMessageAlignment - 1) / kMessageAlignment * kMessageAlignment);
  }
  return sum;
}

class MemoryTest : public testing::TestWithParam<std::string> {
 public:
  // In every part of its layers, planned and then taken.
  void CheckDevice(FakeDevice& device, DType cache_dtype) {
    const auto measured = MeasureModel(*golden.checkpoint, golden.config, device.reads_weights_in_place());
    ASSERT_TRUE(measured.ok()) << measured.status();
    const ModelShape& shape = (*measured)->shape;
    ModelMemory memory = MemoryOf(**measured, cache_dtype, device);
    memory.snapshot_copies = kSnapshotCopies;
    cluster::v1::Described described;
    DescribeModel(*golden.checkpoint, shape, golden.config, cache_dtype, memory, &described);
    const ModelMemory told = ReadModelMemory(described);
    for (int first = 0; first < shape.layers(); ++first) {
      for (int last = first + 1; last <= shape.layers(); ++last) {
        SCOPED_TRACE(testing::Message() << "layers " << first << " to " << last);
        const auto assignment = AssignStage(FormOf(shape, first, last), shape, cache_dtype);
        ASSERT_TRUE(assignment.ok()) << assignment.status();
        const StageSettings settings =
            MemorySettings(first, last, assignment->options, assignment->stages - assignment->stage - 1);
        const StageMemory planned = PlanStageMemory(memory, settings);
        EXPECT_EQ(Bytes(PlanStageMemory(told, settings)), Bytes(planned)) << "as the coordinator is told";

        const auto model = LoadModel(device, golden.checkpoint, golden.config, first, last);
        ASSERT_TRUE(model.ok()) << model.status();
        EXPECT_EQ(device.allocated_bytes(), planned.weights);
        const auto stage = Stage::Create(device, *model, assignment->options);
        ASSERT_TRUE(stage.ok()) << stage.status();
        EXPECT_EQ((*stage)->memory().total() - (*stage)->memory().channels,
                  planned.total() - planned.channels - planned.snapshots);
        const int64_t others = planned.received_rows + planned.channels + planned.back_end + planned.snapshots;
        EXPECT_EQ(device.allocated_bytes(), planned.total() - others);
        EXPECT_EQ((*stage)->ReservedBytes(), planned.total() - others - planned.weights);
        const auto runner = StageRunner::Create(*assignment, device, **stage);
        ASSERT_TRUE(runner.ok()) << runner.status();
        EXPECT_EQ(device.allocated_bytes(), planned.total() - planned.channels - planned.back_end - planned.snapshots);
        (*stage)->ReserveSaving();
        EXPECT_EQ(device.allocated_bytes(), planned.total() - planned.channels - planned.back_end);
        EXPECT_EQ((*stage)->ReservedBytes(), planned.total() - others - planned.weights + planned.snapshots);
        // With GOLD layers in the stage before, one channel may be counted that is none of its own.
        const bool known = shape.gold_layers() == 0 || first <= shape.finch_layers();
        EXPECT_GE(planned.channels, ChannelBytes(*assignment, shape, cache_dtype));
        EXPECT_TRUE(!known || planned.channels == ChannelBytes(*assignment, shape, cache_dtype)) << planned.channels;
      }
    }
  }

  const GoldenCase golden = ReadGoldenCase(GetParam());
};

TEST_P(MemoryTest, WhatIsPlannedIsWhatIsTaken) {
  for (const DType activations : {DType::kF32, DType::kBf16}) {
    FakeDevice device(MakeCpuBackend(/*threads=*/1), activations);
    CheckDevice(device, kCacheType);
    const ModelShape shape = *ReadModelShape(*golden.checkpoint, golden.config);
    if (CheckCacheDType(*golden.checkpoint, shape, DType::kInt8).ok()) CheckDevice(device, DType::kInt8);
    EXPECT_EQ(device.allocated_bytes(), 0);
  }
}

// By the page allocator's count: what resident pages take, and what a transformer of the shape would keep for them.
TEST_P(MemoryTest, ResidentPagesAreCounted) {
  const std::unique_ptr<Backend> backend = MakeCpuBackend(/*threads=*/1);
  const auto model = LoadModel(*backend, golden.checkpoint, golden.config);
  ASSERT_TRUE(model.ok()) << model.status();
  const ModelShape& shape = (*model)->shape;
  const auto stage = Stage::Create(*backend, *model, {.max_sequences = 2, .cache_tokens = 512, .max_step_tokens = 512});
  ASSERT_TRUE(stage.ok()) << stage.status();
  const int slot = *(*stage)->Open();
  StageOutput output;
  const Chunk chunk{slot, golden.tokens, 1};
  ASSERT_TRUE((*stage)->Forward({&chunk, 1}, {}, &output).ok());
  const int64_t each = shape.CacheBytesPerToken(kCacheType);
  const auto tokens = static_cast<int64_t>(golden.tokens.size());
  const int64_t pages = each == 0 ? 0 : (tokens + kCachePageTokens - 1) / kCachePageTokens;
  EXPECT_EQ((*stage)->CacheTokens(), pages * kCachePageTokens);
  EXPECT_EQ((*stage)->CacheBytes(), pages * kCachePageTokens * each);
  if (shape.gold_layers() > 0 && shape.CacheBytesPerToken(kCacheType) == shape.CompressedBytesPerToken(kCacheType)) {
    EXPECT_GT((*stage)->CacheTokens() * shape.TransformerBytesPerToken(), 10 * (*stage)->CacheBytes());
  }
  (*stage)->Close(slot);
  EXPECT_EQ((*stage)->CacheTokens(), 0);
}

INSTANTIATE_TEST_SUITE_P(Families, MemoryTest, testing::ValuesIn(GoldenNames()),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace goldfinch
