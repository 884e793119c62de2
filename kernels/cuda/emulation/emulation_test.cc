// The emulation itself: it computes as a device does, and detects the errors that it must detect.
#include "kernels/cuda/emulation/emulation.h"

#include <cmath>
#include <cstdlib>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/emulation/stream.h"

namespace goldfinch::cuda {
namespace {

template <typename... Parameters, typename... Arguments>
void Start(void (*kernel)(Parameters...), unsigned blocks, unsigned threads, size_t shared, Arguments... arguments) {
  Launch(nullptr, kernel, {dim3(blocks), dim3(threads), shared}, arguments...);
}

__global__ void ReverseKernel(int* out, bool waits) {
  int* const shared = DynamicShared<int>();
  shared[threadIdx.x] = static_cast<int>(threadIdx.x);
  if (waits) __syncthreads();
  out[blockIdx.x * blockDim.x + threadIdx.x] = shared[blockDim.x - 1 - threadIdx.x];
}

TEST(EmulationTest, BarriersHoldAndMissingOnesShow) {
  std::vector<int> out(3 * 256);
  Start(ReverseKernel, 3, 256, 1024, out.data(), true);
  for (int i = 0; i < 3 * 256; ++i) EXPECT_EQ(out[i], 255 - i % 256);
  Start(ReverseKernel, 3, 256, 1024, out.data(), false);
  int wrong = 0;
  for (int i = 0; i < 3 * 256; ++i) wrong += out[i] != 255 - i % 256 ? 1 : 0;
  EXPECT_GT(wrong, 0);
}

__global__ void WarpKernel(float* out) {
  const int lane = static_cast<int>(threadIdx.x);
  const float x = static_cast<float>(lane);
  out[lane] = WarpSum(x);
  out[32 + lane] = WarpMax(-x);
  out[64 + lane] = Shfl(x, 7);
  out[96 + lane] = ShflUp(x, 3);
  out[128 + lane] = ShflDown(x, 3);
  out[160 + lane] = Ballot(lane % 3 == 0) == 0x49249249 ? 1 : 0;
}

TEST(EmulationTest, WarpOperations) {
  std::vector<float> out(192);
  Start(WarpKernel, 1, 32, 0, out.data());
  for (int i = 0; i < 32; ++i) {
    EXPECT_EQ(out[i], 496);
    EXPECT_EQ(out[32 + i], 0);
    EXPECT_EQ(out[64 + i], 7);
    EXPECT_EQ(out[96 + i], i < 3 ? i : i - 3);
    EXPECT_EQ(out[128 + i], i > 28 ? i : i + 3);
    EXPECT_EQ(out[160 + i], 1);
  }
}

// d [16, 8] = a [16, 16] b [16, 8] through shared memory, as kernels do it.
__global__ void ProductKernel(const bf16_t* a, const bf16_t* b, float* d) {
  auto* const shared = DynamicShared<bf16_t>();
  bf16_t* const shared_b = shared + 256;
  const int lane = static_cast<int>(threadIdx.x);
  CopyAsync16(shared + lane * 8, a + lane * 8, true);
  CopyAsync16(shared_b + lane * 8, b + lane % 16 * 8, lane < 16);
  CopyAsyncCommit();
  CopyAsyncWait<0>();
  __syncwarp();
  uint32_t rows[4], columns[4];
  LdMatrix4(rows, shared + lane % 16 * 16 + lane / 16 * 8);
  LdMatrix4Trans(columns, shared_b + lane * 8);
  float sums[4] = {};
  Mma16816<bf16_t>(sums, rows, {columns[0], columns[1]});
  for (int i = 0; i < 4; ++i) d[(lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2] = sums[i];
}

TEST(EmulationTest, MatrixUnits) {
  std::vector<bf16_t> a(256), b(128);
  for (int i = 0; i < 256; ++i) a[i] = FromFloat<bf16_t>(std::sin(static_cast<float>(i)));
  for (int i = 0; i < 128; ++i) b[i] = FromFloat<bf16_t>(std::cos(static_cast<float>(3 * i)));
  std::vector<float> d(128);
  Start(ProductKernel, 1, 32, 1024, a.data(), b.data(), d.data());
  for (int row = 0; row < 16; ++row) {
    for (int column = 0; column < 8; ++column) {
      double sum = 0;
      for (int i = 0; i < 16; ++i) sum += double{ToFloat(a[row * 16 + i])} * double{ToFloat(b[i * 8 + column])};
      EXPECT_NEAR(d[row * 8 + column], sum, 1e-5) << row << ", " << column;
    }
  }
}

__global__ void LateKernel(const float* from, float* out, bool waits) {
  auto* const shared = DynamicShared<float>();
  if (threadIdx.x == 0) {
    CopyAsync16(shared, from, true);
    CopyAsyncCommit();
    if (waits) CopyAsyncWait<0>();
  }
  __syncthreads();
  out[threadIdx.x] = shared[threadIdx.x % 4];
}

TEST(EmulationTest, CopiesThatNobodyWaitedForHaveNotHappened) {
  alignas(16) const float from[4] = {1, 2, 3, 4};
  std::vector<float> out(32);
  Start(LateKernel, 1, 32, 16, from, out.data(), true);
  EXPECT_EQ(out[5], 2);
  Start(LateKernel, 1, 32, 16, from, out.data(), false);
  EXPECT_TRUE(std::isnan(out[5]));
}

TEST(EmulationTest, SixteenBitNumbers) {
  for (const float x : {0.f, 0x1p-14f, 0x1p-24f, 0x1p-25f, 0x1.8p-24f, 0x1.ffcp-15f}) {
    EXPECT_EQ(ToFloat(FromFloat<f16_t>(-x)), std::nearbyint(-x * 0x1p24f) * 0x1p-24f) << x;
  }
  for (const float x : {65504.f, 65519.f, 1e6f}) EXPECT_EQ(ToFloat(FromFloat<f16_t>(-x)), -65504) << x;
  EXPECT_EQ(FromFloat<f16_t>(1.f).bits, 0x3C00);
  EXPECT_EQ(FromFloat<bf16_t>(1.f).bits, 0x3F80);
  EXPECT_EQ(ToFloat(FromFloat<bf16_t>(1.00390625f)), 1);  // ties to even
  EXPECT_TRUE(std::isnan(ToFloat(FromFloat<f16_t>(NAN))));
  EXPECT_TRUE(std::isnan(ToFloat(FromFloat<bf16_t>(NAN))));
}

__global__ void DivergentKernel() {
  if (threadIdx.x % 2 == 0) {
    ShflXor(1, 1);
  } else {
    Ballot(true);
  }
}
__global__ void DesertedKernel() {
  if (threadIdx.x != 5) __syncwarp();
}
__global__ void TouchKernel(int* memory) { memory[threadIdx.x] = 1; }

TEST(EmulationDeathTest, WhatWouldHangOrBeUndefinedEnds) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_DEATH(Start(DivergentKernel, 1, 32, 0), "lanes of one warp meet in");
  EXPECT_DEATH(Start(DesertedKernel, 1, 64, 0), "waits for ever at __syncwarp, with 31 threads");
  EXPECT_DEATH(Start(TouchKernel, 1, 33, 0, static_cast<int*>(nullptr)), "33 threads in a block");
}

TEST(EmulationDeathTest, DeviceMemoryIsTheDevices) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  auto* const memory = static_cast<int*>(emulation::Allocate(256 * sizeof(int)));
  Start(TouchKernel, 1, 256, 0, memory);
  {
    const emulation::Access access;
    EXPECT_EQ(memory[255], 1);
  }
#ifndef __SANITIZE_ADDRESS__
  EXPECT_DEATH(std::printf("%d", memory[0]), "");
#endif
  EXPECT_DEATH(Start(TouchKernel, 1, 288, 0, memory), "");
  emulation::Free(memory);
}

// Work of a stream happens when somebody waits for it, or for a stream that waits for it, and not before.
TEST(StreamTest, WorkIsAsLateAsItMayBe) {
  emulation::Stream first, second;
  std::vector<int> done;
  const int64_t one = first.Push([&] {
    done.push_back(1);
    return true;
  });
  emulation::Queue(&first, [&] { done.push_back(2); });
  second.Push([&] { return first.RunTo(one); });
  emulation::Queue(&second, [&] { done.push_back(3); });
  EXPECT_TRUE(done.empty());
  EXPECT_TRUE(second.RunTo(second.end()));
  EXPECT_EQ(done, (std::vector<int>{1, 3})) << "no more of the first stream than the second waits for";
  first.WaitFor(first.end());
  EXPECT_EQ(done, (std::vector<int>{1, 3, 2}));
}

TEST(StreamTest, WorkThatCannotGoOnHoldsUpWhatFollows) {
  emulation::Stream stream;
  bool ready = false, after = false;
  stream.Push([&] { return ready; });
  emulation::Queue(&stream, [&] { after = true; });
  EXPECT_FALSE(stream.RunTo(stream.end()));
  EXPECT_FALSE(after);
  ready = true;
  EXPECT_TRUE(stream.RunTo(stream.end()));
  EXPECT_TRUE(after);
}

// A kernel in a stream is given its arguments when it is launched.
TEST(StreamTest, KernelsRunInTheirStream) {
  emulation::Stream stream;
  std::vector<int> out(256, -1);
  int* to = out.data();
  Launch(&stream, ReverseKernel, {dim3(1), dim3(256), 1024}, to, true);
  to = nullptr;
  EXPECT_EQ(out[0], -1);
  stream.WaitFor(stream.end());
  EXPECT_EQ(out[0], 255);
}

}  // namespace
}  // namespace goldfinch::cuda
