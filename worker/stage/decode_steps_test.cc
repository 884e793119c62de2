// Decode steps of whole models on the CUDA back end, emulated: what they cost the host.
#include <cstdint>
#include <iostream>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "gtest/gtest.h"
#include "kernels/backend.h"
#include "kernels/cuda/cuda_backend.h"
#include "worker/model/model.h"
#include "worker/model/random_model.h"
#include "worker/stage/stage.h"

namespace goldfinch {
namespace {

class DecodeSteps {
 public:
  DecodeSteps(const std::vector<std::string>& layers, int sequences)
      : backend_(*MakeCudaBackend({.activation_dtype = DType::kBf16})) {
    // Sizes at which the kernels of real models run.
    const RandomModelSpec spec{
        .layers = layers, .width = 128, .vocab_size = kVocab, .hidden = 256, .mix_rank = 32, .lora_rank = 64};
    stage_ =
        *Stage::Create(*backend_, *LoadModel(*backend_, OpenTensors(RandomModel(spec)), {}),
                       {.max_sequences = sequences, .cache_tokens = 1024, .max_step_tokens = 64, .max_logit_rows = 16});
    for (int i = 0; i < sequences; ++i) slots_.push_back(*stage_->Open());
    // Every id is in the tables by id from now on.
    std::vector<int32_t> all(kVocab);
    for (int32_t id = 0; id < kVocab; ++id) all[id] = id;
    Forward({{slots_[0], all, 1}});
  }

  // One token of every sequence.
  CudaCounters Decode() {
    const CudaCounters before = CountersOf(*backend_);
    std::vector<Chunk> chunks;
    for (size_t i = 0; i < slots_.size(); ++i) {
      ids_[i] = static_cast<int32_t>((token_ * 11 + i * 5) % kVocab);
      chunks.push_back({slots_[i], {&ids_[i], 1}, 1});
    }
    ++token_;
    Forward(chunks);
    const CudaCounters after = CountersOf(*backend_);
    return {.launches = after.launches - before.launches,
            .uploads = after.uploads - before.uploads,
            .captures = after.captures - before.captures,
            .graph_launches = after.graph_launches - before.graph_launches};
  }

 private:
  static constexpr int64_t kVocab = 48;

  void Forward(const std::vector<Chunk>& chunks) {
    StageOutput output;
    const absl::Status status = stage_->Forward(chunks, {}, &output);
    EXPECT_TRUE(status.ok()) << status;
  }

  const std::unique_ptr<Backend> backend_;
  std::unique_ptr<Stage> stage_;
  std::vector<int> slots_;
  int32_t ids_[16] = {};
  int64_t token_ = 0;
};

void ExpectOneLaunch(const CudaCounters& counters) {
  EXPECT_EQ(counters.launches, 0);
  EXPECT_EQ(counters.uploads, 1);
  EXPECT_EQ(counters.graph_launches, 1);
}

TEST(DecodeStepsTest, OfTheReleasedModelAreOneCopyAndOneLaunch) {
  std::vector<std::string> layers(16, "finch_c2");
  layers.insert(layers.end(), 8, "gold");
  DecodeSteps steps(layers, 1);
  const CudaCounters first = steps.Decode();
  EXPECT_EQ(first.uploads, 1);
  EXPECT_EQ(first.graph_launches, 0);
  std::cout << "L24 decode step: " << first.launches << " launches and " << first.uploads << " upload, one by one\n";
  EXPECT_EQ(steps.Decode().captures, 1);
  const CudaCounters third = steps.Decode();
  ExpectOneLaunch(third);
  std::cout << "L24 decode step: " << third.graph_launches << " graph launch and " << third.uploads
            << " upload, repeated\n";
}

// Across the ends of a page, and of what chunks of positions are filled up to; and past the end of a chunk, which in
// the emulation has 96 positions.
TEST(DecodeStepsTest, StayTheSameFromTokenToToken) {
  struct Run {
    int sequences;
    int tokens;
    int alone;  // steps launched one by one, at most
  };
  for (const Run& run : {Run{1, 52, 5}, Run{2, 24, 5}}) {
    DecodeSteps steps({"finch_c2", "gold"}, run.sequences);
    int alone = 0, captures = 0;
    for (int i = 0; i < run.tokens; ++i) {
      const CudaCounters counters = steps.Decode();
      EXPECT_EQ(counters.uploads, 1);
      if (counters.graph_launches == 0) ++alone;
      captures += static_cast<int>(counters.captures);
    }
    std::cout << run.tokens << " tokens of " << run.sequences << " sequences: " << alone
              << " steps launched one by one, " << captures << " graphs\n";
    EXPECT_LE(alone, run.alone);
  }
}

TEST(DecodeStepsTest, OfEveryFamily) {
  for (const std::vector<std::string>& layers :
       std::vector<std::vector<std::string>>{{"eagle", "finch"}, {"finch_c2", "gptalpha"}, {"llama", "llama"}}) {
    DecodeSteps steps(layers, 2);
    for (int i = 0; i < 2; ++i) steps.Decode();
    for (int i = 0; i < 3; ++i) ExpectOneLaunch(steps.Decode());
  }
}

}  // namespace
}  // namespace goldfinch
