#include "worker/model_description.h"

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "protos/cluster.pb.h"
#include "worker/model/model_memory.h"
#include "worker/model/random_model.h"

namespace goldfinch {
namespace {

cluster::v1::Described DescribeTensors(const std::vector<TestTensor>& tensors, DType cache_dtype = DType::kBf16) {
  const auto checkpoint = OpenTensors(tensors);
  const auto measured = MeasureModel(*checkpoint, {}, /*in_place=*/true);
  EXPECT_TRUE(measured.ok()) << measured.status();
  const std::unique_ptr<Backend> backend = MakeCpuBackend(/*threads=*/1);
  cluster::v1::Described described;
  DescribeModel(*checkpoint, (*measured)->shape, {.vocabulary = "bytes"}, cache_dtype,
                MemoryOf(**measured, cache_dtype, *backend), &described);
  return described;
}

TEST(ModelDescription, GoldFinch) {
  // D = 64, one head of 64, F = 80, vocabulary 40.
  const RandomModelSpec spec{.layers = {"finch_c2", "finch_c2", "gold"}};
  const std::vector<TestTensor> tensors = RandomModel(spec);
  const cluster::v1::Described described = DescribeTensors(tensors);
  ASSERT_EQ(described.layers_size(), 3);
  EXPECT_EQ(described.layers(0).kind(), "finch_c2");
  EXPECT_EQ(described.layers(2).kind(), "gold");
  EXPECT_EQ(described.gold_layers(), 1u);
  EXPECT_EQ(described.width(), 64u);
  EXPECT_EQ(described.vocab_size(), 40u);
  EXPECT_EQ(described.vocabulary(), "bytes");
  EXPECT_EQ(described.compressed_width(), 4u);
  EXPECT_EQ(described.compressed_bytes_per_token(), 2u + 4 * 2);
  EXPECT_EQ(described.transformer_cache_bytes_per_token(), 2u * 3 * 64 * 2);
  EXPECT_EQ(described.embedding_bytes(), 2u * (40 * 64 + 2 * 64));
  EXPECT_EQ(described.head_bytes(), 2u * (40 * 64 + 2 * 64));
  EXPECT_EQ(described.gold_shared_bytes(), 2u * 64 * 68) << "W_b";
  EXPECT_EQ(described.layers(0).state_bytes(), 4u * (64 * 64 + 2 * 64));
  EXPECT_EQ(described.layers(1).state_bytes(), 4u * (64 * 64 + 2 * 64 + 2 * 64)) << "and the newest rows";
  EXPECT_EQ(described.layers(2).state_bytes(), 4u * 2 * 64);
  // W_a goes with the last Finch layer.
  EXPECT_EQ(described.layers(1).weight_bytes() - described.layers(0).weight_bytes(), 2u * 4 * 64);
  // Products: r, k, v, output; LoRAs of the shift (5 targets of rank 8), decay and v2 (rank 16); bonus is no matrix of
  // more than one head; channel mix.
  const double matrices = 4 * 64 * 64 + 2 * 5 * 8 * 64 + 2 * 2 * 16 * 64 + 2 * 64 * 80 + 64 * 64;
  EXPECT_EQ(described.layers(0).prefill_flops(), 2 * matrices + 6 * 64 * 64);
  EXPECT_EQ(described.layers(1).prefill_flops(), 2 * (matrices + 4 * 64) + 6 * 64 * 64);
  EXPECT_EQ(described.layers(2).prefill_flops(), 0) << "GOLD runs for a prompt's end only";
  uint64_t all = described.embedding_bytes() + described.head_bytes() + described.gold_shared_bytes();
  for (const auto& layer : described.layers()) {
    EXPECT_EQ(layer.decode_bytes(), static_cast<double>(layer.weight_bytes() + layer.state_bytes()));
    EXPECT_EQ(layer.cache_bytes_per_token(), 0u);
    all += layer.weight_bytes();
  }
  uint64_t file = 0;
  for (const TestTensor& tensor : tensors) file += 2 * tensor.values.size();
  EXPECT_EQ(all, file) << "every tensor is of one part";
  EXPECT_TRUE(described.error().empty());

  const cluster::v1::ModelMemory& memory = described.memory();
  ASSERT_EQ(memory.layers_size(), 3);
  EXPECT_EQ(memory.layers(0).wkv_bytes(), 4u * 64 * 64);
  EXPECT_EQ(memory.layers(0).shift_bytes(), 4u * 2 * 64);
  EXPECT_EQ(memory.layers(2).table_bytes(), 4u * 40 * 2 * 2 * 8) << "a mix LoRA of two targets of rank 8";
  EXPECT_EQ(memory.key_table_bytes(), 4u * 40 * 64);
  EXPECT_EQ(memory.compressed_row_bytes(), 2u * 4);
  EXPECT_GT(memory.back_end_bytes(), 0u);
  for (int i = 0; i < 3; ++i) EXPECT_GE(memory.layers(i).weight_bytes(), described.layers(i).weight_bytes());
}

TEST(ModelDescription, KeysAndValues) {
  const cluster::v1::Described described = DescribeTensors(RandomModel({.layers = {"finch", "gptalpha"}}), DType::kF32);
  EXPECT_EQ(described.layers(0).cache_bytes_per_token(), 0u);
  EXPECT_EQ(described.layers(1).cache_bytes_per_token(), 2u * 64 * 4);
  EXPECT_GT(described.layers(1).prefill_flops(), 0);
  EXPECT_EQ(described.compressed_bytes_per_token(), 0u);
  EXPECT_EQ(described.gold_shared_bytes(), 0u);
}

}  // namespace
}  // namespace goldfinch
