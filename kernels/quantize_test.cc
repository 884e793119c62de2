// How quantized weights are made from numbers, and their two layouts.
#include "kernels/quantize.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/quantized_test_util.h"

namespace goldfinch {
namespace {

TEST(QuantizeTest, WhichSizes) {
  EXPECT_TRUE(CanQuantize(16, 32));
  EXPECT_TRUE(CanQuantize(65536, 2048));
  for (const auto& [out, in] : {std::pair{0, 32}, {16, 0}, {8, 32}, {24, 32}, {257, 128}, {16, 16}, {16, 40}}) {
    EXPECT_FALSE(CanQuantize(out, in)) << out << ", " << in;
  }
}

TEST(QuantizeTest, ByInputsTheWeightsAreTheSame) {
  TestRandom random(5);
  for (DType dtype : {DType::kInt8, DType::kInt4}) {
    const Packed packed = RandomPacked(random, dtype, 1024, 96), rows = ByInput(packed);
    for (int64_t o = 0; o < 1024; ++o) {
      for (int64_t i = 0; i < 96; ++i) ASSERT_EQ(rows.weight(o, i), packed.weight(o, i)) << o << ", " << i;
    }
  }
  EXPECT_TRUE(CanQuantizeByInput(2048, 7168));
  EXPECT_FALSE(CanQuantizeByInput(64, 32));
  EXPECT_FALSE(CanQuantizeByInput(128, 16));
}

TEST(QuantizeTest, EveryWeightOf8BitsIsWithinHalfAStep) {
  TestRandom random(2);
  const int64_t in = 160;
  std::vector<float> weights = Floats(random.Normal(32 * in, 1));
  for (int64_t out = 0; out < 32; ++out) {  // from very small to large
    for (int64_t i = 0; i < in; ++i) weights[out * in + i] *= std::ldexp(1.f, static_cast<int>(8 * out - 130));
  }
  std::fill_n(weights.begin() + 5 * in, in, 0.f);
  const Packed packed = Quantize(weights, DType::kInt8, 32, in);
  for (int64_t out = 0; out < 32; ++out) {
    int largest = 0;
    for (int64_t i = 0; i < in; ++i) {
      const double error = std::abs(packed.weight(out, i) - weights[out * in + i]);
      ASSERT_LE(error, packed.scale(out, i) * 0.5001) << out << ", " << i;
      largest = std::max(largest, std::abs(packed.q(out, i)));
    }
    EXPECT_EQ(largest, out == 5 ? 0 : 127) << out;
  }
}

TEST(QuantizeTest, WeightsOf4BitsThatFitComeBack) {
  TestRandom random(3);
  const int64_t in = 96;
  std::vector<float> weights(16 * in);
  for (int64_t i = 0; i < 16 * in; ++i) {
    const float scale = std::ldexp(1.f, static_cast<int>(i / 32 % 9) - 8);
    const bool negative = i / 32 % 2 == 0;
    // Each group has its -8 or, where scales are negative, 8.
    const int q = i % 32 == 7 ? -8 : static_cast<int>(random.Below(16)) - 8;
    weights[i] = (negative ? -scale : scale) * static_cast<float>(q);
  }
  const Packed packed = Quantize(weights, DType::kInt4, 16, in);
  for (int64_t i = 0; i < 16 * in; ++i) ASSERT_EQ(packed.weight(i / in, i % in), weights[i]) << i;
}

// The scale is searched for: the plain choice, which puts the largest weight at -8, has a larger error.
TEST(QuantizeTest, ScalesOf4BitsAreGoodOnes) {
  TestRandom random(4);
  const int64_t in = 2048;
  const std::vector<float> weights = Floats(random.Normal(16 * in, 0.02));
  const Packed packed = Quantize(weights, DType::kInt4, 16, in);
  double error = 0, plain_error = 0, square = 0;
  for (int64_t begin = 0; begin < 16 * in; begin += 32) {
    float largest = 0;
    for (int64_t i = begin; i < begin + 32; ++i) {
      if (std::abs(weights[i]) > std::abs(largest)) largest = weights[i];
    }
    for (int64_t i = begin; i < begin + 32; ++i) {
      const double difference = packed.weight(i / in, i % in) - weights[i];
      const double step = largest / -8.0;
      const double plain = step * std::clamp(std::nearbyint(weights[i] / step), -8., 7.) - weights[i];
      error += difference * difference;
      plain_error += plain * plain;
      square += double{weights[i]} * weights[i];
    }
  }
  EXPECT_LE(std::sqrt(error / square), 0.082);
  EXPECT_LE(error, 0.92 * plain_error);
}

TEST(QuantizeTest, ExtremeWeightsOf4Bits) {
  std::vector<float> weights(16 * 32, 0);
  const float rows[] = {0, 1e-44f, 0x1p-25f, 0x1p-20f, 1e-6f, 3e38f, -3e38f, 5e5f, -1};
  for (int64_t out = 0; out < 9; ++out) weights[out * 32 + out] = rows[out];
  const Packed packed = Quantize(weights, DType::kInt4, 16, 32);
  for (int64_t out = 0; out < 16; ++out) {
    for (int64_t i = 0; i < 32; ++i) {
      ASSERT_TRUE(std::isfinite(packed.weight(out, i)));
      if (weights[out * 32 + i] == 0) {
        ASSERT_EQ(packed.weight(out, i), 0);
      }
    }
  }
  for (int64_t out : {0, 1, 2}) EXPECT_EQ(packed.weight(out, out), 0) << "too small for a scale in fp16";
  for (int64_t out : {3, 4}) EXPECT_NEAR(packed.weight(out, out) / rows[out], 1, 0.1);
  EXPECT_NEAR(packed.weight(7, 7), 5e5, 500);
  EXPECT_NEAR(packed.weight(8, 8), -1, 1e-3);
  EXPECT_GE(std::abs(packed.weight(5, 5)), 7 * 65504.) << "beyond fp16's range its largest";
}

}  // namespace
}  // namespace goldfinch
