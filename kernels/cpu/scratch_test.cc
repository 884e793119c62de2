#include "kernels/cpu/scratch.h"

#include <algorithm>
#include <vector>

#include "gtest/gtest.h"

namespace goldfinch::cpu {
namespace {

constexpr int64_t kVector = 16;  // floats of the widest vector
constexpr int kWarmUp = 2;       // steps until memory no longer grows

TEST(ScratchTest, ArraysAreAlignedPaddedAndApart) {
  Scratch scratch;
  std::vector<std::pair<float*, int64_t>> arrays;
  for (int64_t count : {0, 1, 15, 16, 17, 1000, 300'000, 3, 5'000'000, 70'000}) {
    float* array = scratch.Floats(count);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(array) % 64, 0u);
    arrays.emplace_back(array, count);
    std::fill_n(array, count, static_cast<float>(arrays.size()));
  }
  for (size_t i = 0; i < arrays.size(); ++i) {
    const auto [array, count] = arrays[i];
    EXPECT_EQ(std::count(array, array + count, static_cast<float>(i + 1)), count) << "array " << i;
    // A whole vector may be loaded or stored at the last element: the padding belongs to the array.
    std::fill_n(array + std::max<int64_t>(count - 1, 0), kVector, static_cast<float>(i + 1));
  }
  for (size_t i = 0; i < arrays.size(); ++i) {
    const auto [array, count] = arrays[i];
    EXPECT_EQ(std::count(array, array + count, static_cast<float>(i + 1)), count) << "array " << i;
  }
}

TEST(ScratchTest, FramesGiveBack) {
  Scratch scratch;
  float* outer = scratch.Floats(100);
  std::fill_n(outer, 100, 1.f);
  float* first = nullptr;
  {
    const Scratch::Frame frame(scratch);
    first = scratch.Floats(50);
    {
      const Scratch::Frame inner(scratch);
      // More than is left in the block, so that the frame ends in another block.
      std::fill_n(scratch.Floats(2'000'000), 2'000'000, 2.f);
    }
    float* second = scratch.Floats(50);
    EXPECT_GE(second, first + 50);
    EXPECT_LT(second, first + 200) << "the inner frame was not given back";
  }
  EXPECT_EQ(scratch.Floats(50), first);
  EXPECT_EQ(std::count(outer, outer + 100, 1.f), 100);
}

// Blocks grow in the first steps; after that a step of the same sizes gets the same memory every time.
TEST(ScratchTest, SteadyLoopsAllocateNothing) {
  Scratch scratch;
  const auto step = [&] {
    std::vector<float*> arrays;
    const Scratch::Frame frame(scratch);
    for (int64_t count : {1000, 200'000, 100'000, 5, 700'000, 64}) {
      arrays.push_back(scratch.Floats(count));
      const Scratch::Frame inner(scratch);
      arrays.push_back(scratch.Floats(90'000));
      arrays.push_back(scratch.Floats(400'000));
    }
    return arrays;
  };
  for (int i = 0; i < kWarmUp; ++i) step();
  const std::vector<float*> settled = step();
  for (int i = 0; i < 100; ++i) ASSERT_EQ(step(), settled) << "step " << i;
}

// A block that grows holds no array, also where frames end in other blocks than they began in.
TEST(ScratchTest, GrowthLeavesLiveArraysAlone) {
  Scratch scratch;
  for (int64_t big = 1000; big < 8'000'000; big *= 3) {
    const Scratch::Frame frame(scratch);
    float* kept = scratch.Floats(big);
    std::fill_n(kept, big, 1.f);
    for (int64_t inner = big; inner < 4 * big; inner += big) {
      const Scratch::Frame inner_frame(scratch);
      std::fill_n(scratch.Floats(inner), inner, 2.f);
      std::fill_n(scratch.Floats(2 * inner), 2 * inner, 3.f);
    }
    ASSERT_EQ(std::count(kept, kept + big, 1.f), big);
  }
}

// Steps of changing sizes soon need no more memory than the largest ones.
TEST(ScratchTest, ChangingStepsSettle) {
  Scratch scratch;
  const auto round = [&] {
    std::vector<float*> arrays;
    for (int64_t count = 1; count < 3'000'000; count = count * 7 / 2 + 1) {
      const Scratch::Frame frame(scratch);
      arrays.push_back(scratch.Floats(count));
      arrays.push_back(scratch.Floats(3'000'000 / count));
    }
    return arrays;
  };
  for (int i = 0; i < kWarmUp; ++i) round();
  const std::vector<float*> settled = round();
  for (int i = 0; i < 20; ++i) ASSERT_EQ(round(), settled) << "round " << i;
}

TEST(ScratchDeathTest, NegativeSizes) {
  Scratch scratch;
  EXPECT_DEATH(scratch.Floats(-1), "CHECK failed");
}

}  // namespace
}  // namespace goldfinch::cpu
