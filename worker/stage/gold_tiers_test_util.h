// A stage of a small model whose GOLD tiers are tested.
#ifndef GOLDFINCH_WORKER_STAGE_GOLD_TIERS_TEST_UTIL_H_
#define GOLDFINCH_WORKER_STAGE_GOLD_TIERS_TEST_UTIL_H_

#include <algorithm>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/backend.h"
#include "worker/model/fake_device.h"
#include "worker/model/model.h"
#include "worker/model/random_model.h"
#include "worker/stage/gold_tiers.h"
#include "worker/stage/stage.h"

namespace goldfinch {

inline constexpr int64_t kVocab = 40;
inline constexpr int kSlots = 6;
inline constexpr GoldTier kCompressed = GoldTier::kCompressed, kShared = GoldTier::kShared, kFull = GoldTier::kFull;

// A stage of a small model that has so many blocks for kept rows, pages of shared rows, and borrows others or not.
class Kept {
 public:
  struct Setup {
    std::vector<std::string> layers = {"finch_c2", "gold", "gold"};
    int64_t width = 128;
    GoldTier most = kFull;
    int64_t blocks = 0;
    DType activations = DType::kF32;
    bool fake = true;  // a device takes sequences as a whole or not at all; the CPU itself also in part
    int64_t cache_tokens = 4096;
    bool borrow = false;
  };

  explicit Kept(const Setup& setup) : backend_(MakeCpuBackend(/*threads=*/1)) {
    if (setup.fake) backend_ = std::make_unique<FakeDevice>(std::move(backend_), setup.activations);
    auto model = LoadModel(*backend_, OpenTensors(RandomModel({.layers = setup.layers, .width = setup.width})), {});
    EXPECT_TRUE(model.ok()) << model.status();
    auto stage = Stage::Create(*backend_, *model,
                               {.max_sequences = kSlots,
                                .max_sequence_tokens = 2048,
                                .cache_tokens = setup.cache_tokens,
                                .max_step_tokens = 600,
                                .max_logit_rows = 100,
                                .cache_dtype = DType::kF32,
                                .gold_tier = setup.most});
    EXPECT_TRUE(stage.ok()) << stage.status();
    stage_ = *std::move(stage);
    const absl::Status reserved = stage_->ReserveKept(setup.blocks * BlockBytes(), setup.borrow);
    EXPECT_TRUE(reserved.ok()) << reserved;
  }

  Stage& stage() { return *stage_; }
  const GoldTiers& tiers() const { return *stage_->gold_tiers(); }
  int64_t BlockBytes() const { return tiers().TierBytes(kShared, 1); }
  int64_t blocks() const { return tiers().kept_bytes() / BlockBytes(); }
  GoldTier tier(int slot) const { return tiers().tier(slot); }

  int Open(int64_t tokens = 0) {
    const int slot = *stage_->Open();
    if (tokens > 0) Run(slot, tokens);
    return slot;
  }
  // More tokens of a prompt that goes on.
  void Read(int slot, int64_t tokens) {
    for (; tokens > 0; tokens -= 600) Forward({{slot, std::min<int64_t>(tokens, 600), 0}});
  }
  // More tokens, the GOLD layers included.
  void Run(int slot, int64_t tokens) { Forward({{slot, tokens, 1}}); }

  struct Part {
    int slot;
    int64_t tokens;
    int64_t logit_rows;
  };
  // Tokens are a function of slot and position. Returns the logits.
  std::vector<float> Forward(const std::vector<Part>& parts) {
    std::vector<std::vector<int32_t>> ids;
    std::vector<Chunk> chunks;
    for (const Part& part : parts) {
      const int64_t begin = stage_->position(part.slot);
      ids.emplace_back();
      for (int64_t i = begin; i < begin + part.tokens; ++i) {
        ids.back().push_back(static_cast<int32_t>((i * i + 7 * part.slot + i / 3) % kVocab));
      }
    }
    for (size_t i = 0; i < parts.size(); ++i) chunks.push_back({parts[i].slot, ids[i], parts[i].logit_rows});
    StageOutput output;
    const absl::Status status = stage_->Forward(chunks, {}, &output);
    EXPECT_TRUE(status.ok()) << status;
    if (!output.logits) return {};
    std::vector<float> logits(output.logits.shape.elements());
    backend_->CopyToHost(output.logits, logits.data());
    return logits;
  }

 private:
  std::unique_ptr<Backend> backend_;
  std::unique_ptr<Stage> stage_;
};

// A block is as large as 32 pages of this model.
inline constexpr int64_t kBlockTokens = 32 * 64;
constexpr int64_t CacheTokensOf(int64_t blocks) { return blocks * kBlockTokens - 64 * kSlots; }

}  // namespace goldfinch

#endif  // GOLDFINCH_WORKER_STAGE_GOLD_TIERS_TEST_UTIL_H_
