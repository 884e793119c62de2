// Products with quantized weights are what plain integer code gives, to the bit, on every instruction set.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "hwy/targets.h"
#include "kernels/backend_test_util.h"
#include "kernels/quantize.h"
#include "kernels/quantized_test_util.h"

namespace goldfinch {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

// A product with quantized weights in plain code.
std::vector<float> PlainProduct(const std::vector<float>& x, int64_t rows, const Packed& w) {
  std::vector<float> out(rows * w.out);
  for (int64_t row = 0; row < rows; ++row) {
    const float* xr = x.data() + row * w.in;
    std::vector<int> q(w.in);
    std::vector<float> scales(w.in / 32);
    for (int64_t group = 0; group < w.in / 32; ++group) {
      float largest = 0;
      bool finite = true;
      for (int64_t i = group * 32; i < group * 32 + 32; ++i) {
        largest = std::max(largest, std::abs(xr[i]));
        finite = finite && std::isfinite(xr[i]);
      }
      scales[group] = !finite ? kNan : largest < 0x1p-100f ? 0 : largest / 127;
      for (int64_t i = group * 32; i < group * 32 + 32; ++i) {
        const float inverse = 127 / largest;
        q[i] = finite && largest >= 0x1p-100f ? static_cast<int>(std::nearbyint(xr[i] * inverse)) : 0;
      }
    }
    for (int64_t o = 0; o < w.out; ++o) {
      float total = 0;
      for (int64_t group = 0; group < w.in / 32; ++group) {
        int sum = 0;
        for (int64_t i = group * 32; i < group * 32 + 32; ++i) sum += q[i] * w.q(o, i);
        const float scale = w.dtype == DType::kInt8 ? scales[group] : scales[group] * w.scale(o, group * 32);
        total = std::fma(static_cast<float>(sum), scale, total);
      }
      out[row * w.out + o] = w.dtype == DType::kInt8 ? total * w.scale(o, 0) : total;
    }
  }
  return out;
}

struct Target {
  std::string name;
  int64_t bit;
};
void PrintTo(const Target& target, std::ostream* out) { *out << target.name; }

std::vector<Target> Targets() {
  std::vector<Target> targets;
  for (int64_t bit : {HWY_AVX3_DL, HWY_AVX3, HWY_AVX2, HWY_SSE4}) {
    if ((hwy::SupportedTargets() & bit) != 0) targets.push_back({hwy::TargetName(bit), bit});
  }
  return targets;
}

class QuantizedProductTest : public testing::TestWithParam<Target> {
 public:
  QuantizedProductTest() : random(1), device(MakeBackend(2)) {}
  ~QuantizedProductTest() override { hwy::SetSupportedTargetsForTest(0); }

  std::unique_ptr<Backend> MakeBackend(int threads) const {
    hwy::SetSupportedTargetsForTest(GetParam().bit);
    hwy::GetChosenTarget().DeInit();  // the next op chooses again
    return MakeCpuBackend(threads);
  }

  Matrix Put(const Packed& packed) {
    Tensor data = device.New(DType::kU8, {static_cast<int64_t>(packed.panels.size())});
    device->CopyFromHost(packed.panels.data(), data);
    ConstTensor scales = packed.by_input ? QuantizedRowScales(packed.dtype, packed.out, packed.in)
                                         : QuantizedScales(packed.dtype, packed.out, packed.in);
    const Tensor bytes = device.New(DType::kU8, {scales.bytes()});
    device->CopyFromHost(packed.scales.data(), bytes);
    scales.data = bytes.data;
    if (packed.by_input) return {{data.data, packed.dtype, {packed.in, packed.out}}, Matrix::Layout::kInOut, scales};
    return {{data.data, packed.dtype, {packed.out, packed.in}}, Matrix::Layout::kOutIn, scales};
  }

  std::vector<float> Product(const std::vector<float>& x, int64_t rows, const Packed& packed,
                             const Epilogue& epilogue = {}) {
    const Tensor out = device.New({rows, packed.out});
    device->MatMul(device.Put(Values(x.begin(), x.end()), {rows, packed.in}), Put(packed), epilogue, out);
    return Floats(device.Get(out));
  }

  TestRandom random;
  Device device;
};

testing::AssertionResult SameBits(const std::vector<float>& actual, const std::vector<float>& expected) {
  if (actual.size() != expected.size()) return testing::AssertionFailure() << actual.size() << " numbers";
  for (size_t i = 0; i < actual.size(); ++i) {
    const bool same = std::isnan(expected[i])
                          ? std::isnan(actual[i])
                          : std::bit_cast<uint32_t>(actual[i]) == std::bit_cast<uint32_t>(expected[i]);
    if (!same) return testing::AssertionFailure() << "number " << i << " is " << actual[i] << ", not " << expected[i];
  }
  return testing::AssertionSuccess();
}

TEST_P(QuantizedProductTest, IsWhatPlainIntegersGive) {
  for (DType dtype : {DType::kInt8, DType::kInt4}) {
    for (int64_t out : {16, 48, 64, 80, 208}) {
      for (int64_t in : {32, 64, 96, 448, 1056}) {
        const Packed packed = RandomPacked(random, dtype, out, in);
        for (int64_t rows : {0, 1, 2, 3, 7, 13}) {
          const std::vector<float> x = Floats(random.Normal(rows * in, 1));
          EXPECT_TRUE(SameBits(Product(x, rows, packed), PlainProduct(x, rows, packed)))
              << Name(dtype) << " [" << out << ", " << in << "], " << rows << " rows";
        }
      }
    }
  }
}

// Numbers of rows around the tiles of kernels and around the parts that threads get.
TEST_P(QuantizedProductTest, EveryRowCount) {
  for (DType dtype : {DType::kInt8, DType::kInt4}) {
    const Packed packed = RandomPacked(random, dtype, 96, 64);
    std::vector<int64_t> counts = {63, 96, 515, 516, 517, 1040};
    for (int64_t rows = 1; rows <= 26; ++rows) counts.push_back(rows);
    const std::vector<float> x = Floats(random.Normal(1040 * 64, 1));
    const std::vector<float> expected = PlainProduct(x, 1040, packed);
    for (int64_t rows : counts) {
      EXPECT_TRUE(SameBits(Product({x.begin(), x.begin() + rows * 64}, rows, packed),
                           {expected.begin(), expected.begin() + rows * 96}))
          << Name(dtype) << ", " << rows << " rows";
    }
  }
}

// Weights stored by inputs, for rows with any share of zeros, which only products of a few rows skip.
TEST_P(QuantizedProductTest, ByInputs) {
  for (DType dtype : {DType::kInt8, DType::kInt4}) {
    for (int64_t out : {128, 640, 1024}) {
      for (int64_t in : {32, 96, 448}) {
        const Packed packed = RandomPacked(random, dtype, out, in), rows_first = ByInput(packed);
        for (int64_t rows : {0, 1, 2, 3, 4, 5, 8, 14}) {
          for (int64_t zeros_of_100 : {0, 60, 97, 100}) {
            std::vector<float> x = Floats(random.Normal(rows * in, 1));
            for (float& value : x) value = random.Below(100) < zeros_of_100 ? 0 : value;
            if (rows == 5) x[2 * in + 7] = kNan;
            const std::vector<float> expected = PlainProduct(x, rows, packed);
            ASSERT_TRUE(SameBits(Product(x, rows, rows_first), expected))
                << Name(dtype) << " [" << out << ", " << in << "], " << rows << " rows, " << zeros_of_100;
            if (rows > 0) {
              x.resize(in);
              x[in - 1] = kNan;
              ASSERT_TRUE(SameBits(Product(x, 1, rows_first), PlainProduct(x, 1, packed)));
            }
          }
        }
      }
    }
  }
}

// Sums of the largest numbers that bytes can make: 8-bit products added in 16 bits would overflow.
TEST_P(QuantizedProductTest, LargestNumbers) {
  for (DType dtype : {DType::kInt8, DType::kInt4}) {
    for (uint8_t byte : {0x00, 0xFF, 0x0F}) {
      Packed packed = RandomPacked(random, dtype, 16, 64);
      std::fill(packed.panels.begin(), packed.panels.end(), byte);
      for (float sign : {1.f, -1.f}) {
        const std::vector<float> x(2 * 64, sign * 3e38f);
        EXPECT_TRUE(SameBits(Product(x, 2, packed), PlainProduct(x, 2, packed))) << Name(dtype) << ", " << int{byte};
      }
    }
  }
}

// Groups of very different size, zeros, and numbers too small to scale.
TEST_P(QuantizedProductTest, EveryMagnitude) {
  for (DType dtype : {DType::kInt8, DType::kInt4}) {
    const int64_t in = 12 * 32;
    const Packed packed = RandomPacked(random, dtype, 32, in);
    std::vector<float> x = Floats(random.Normal(3 * in, 1));
    const float magnitudes[] = {1, 1e30f, 1e-30f, 0, 1e-38f, 1e-44f, 0x1p-100f, 0x1p-101f, 1e4f, 1e-4f, 65504, 1e-10f};
    for (size_t i = 0; i < x.size(); ++i) x[i] *= magnitudes[i / 32 % 12];
    EXPECT_TRUE(SameBits(Product(x, 3, packed), PlainProduct(x, 3, packed))) << Name(dtype);
    const std::vector<float> zeros(in, 0);
    EXPECT_EQ(Product(zeros, 1, packed), std::vector<float>(32, 0));
  }
}

// A NaN or infinity in the input must stay visible, in its own row only.
TEST_P(QuantizedProductTest, NanAndInfinity) {
  for (DType dtype : {DType::kInt8, DType::kInt4}) {
    const int64_t in = 96, rows = 15;
    const Packed packed = RandomPacked(random, dtype, 32, in);
    std::vector<float> x = Floats(random.Normal(rows * in, 1));
    const std::vector<float> before = Product(x, rows, packed);
    x[3 * in + 40] = kNan;
    x[7 * in] = std::numeric_limits<float>::infinity();
    x[13 * in + 95] = -std::numeric_limits<float>::infinity();
    const std::vector<float> after = Product(x, rows, packed);
    for (int64_t i = 0; i < rows * 32; ++i) {
      const int64_t row = i / 32;
      if (row == 3 || row == 7 || row == 13) {
        EXPECT_TRUE(std::isnan(after[i])) << "row " << row;
      } else {
        EXPECT_EQ(after[i], before[i]) << "row " << row;
      }
    }
  }
}

TEST_P(QuantizedProductTest, EveryEpilogue) {
  for (DType dtype : {DType::kInt8, DType::kInt4}) {
    const int64_t rows = 5, in = 64, out = 80;
    const Packed packed = RandomPacked(random, dtype, out, in);
    const std::vector<float> x = Floats(random.Normal(rows * in, 1));
    const std::vector<float> plain = PlainProduct(x, rows, packed);
    const Values bias = random.Normal(out, 1), factor = random.Normal(rows * out, 1);
    const Values before = random.Normal(rows * out, 1);
    for (Activation activation : {Activation::kNone, Activation::kRelu2, Activation::kSilu, Activation::kSigmoid}) {
      Values expected(plain.begin(), plain.end());
      for (size_t i = 0; i < expected.size(); ++i) {
        expected[i] = before[i] + factor[i] * reference::Activate(activation, expected[i] + bias[i % out]);
      }
      const Tensor result = device.Put(before, {rows, out});
      device->MatMul(device.Put(Values(x.begin(), x.end()), {rows, in}), Put(packed),
                     {.activation = activation,
                      .bias = device.Put(bias, {out}),
                      .multiply = device.Put(factor, {rows, out}),
                      .accumulate = true},
                     result);
      ExpectClose(device.Get(result), expected, out, kFp32Tolerance,
                  std::string(Name(dtype)) + ", activation " + std::to_string(static_cast<int>(activation)), 1);
    }
  }
}

// Weights by inputs, with more inputs than are made into panels at once and so many rows that blocks are divided: each
// row is as it is alone.
TEST_P(QuantizedProductTest, ByInputsInParts) {
  for (DType dtype : {DType::kInt8, DType::kInt4}) {
    const int64_t out = 1024, in = 39 * 32, rows = 270;
    const Packed packed = RandomPacked(random, dtype, out, in), by_input = ByInput(packed);
    std::vector<float> x = Floats(random.Normal(rows * in, 1));
    for (float& value : x) value = std::max(value, 0.f);
    const std::vector<float> expected = Product(x, rows, packed);
    for (int64_t count : {1, 4, 5, 64, 130, 270}) {
      EXPECT_TRUE(SameBits(Product({x.begin(), x.begin() + count * in}, count, by_input),
                           {expected.begin(), expected.begin() + count * out}))
          << Name(dtype) << ", " << count << " rows";
    }
    EXPECT_TRUE(SameBits({expected.begin(), expected.begin() + 2 * out},
                         PlainProduct({x.begin(), x.begin() + 2 * in}, 2, packed)));
  }
}

TEST_P(QuantizedProductTest, AnyNumberOfThreads) {
  for (DType dtype : {DType::kInt8, DType::kInt4}) {
    const Packed packed = RandomPacked(random, dtype, 1024, 512), by_input = ByInput(packed);
    const std::vector<float> x = Floats(random.Normal(40 * 512, 1)), row(x.begin(), x.begin() + 512);
    const std::vector<float> expected = Product(x, 40, packed), expected_row = Product(row, 1, packed);
    for (int threads : {1, 3, 5}) {
      device = Device(MakeBackend(threads));
      EXPECT_TRUE(SameBits(Product(x, 40, packed), expected)) << threads << " threads";
      EXPECT_TRUE(SameBits(Product(row, 1, by_input), expected_row)) << threads << " threads";
      EXPECT_TRUE(SameBits(Product(x, 40, by_input), expected)) << threads << " threads";
    }
  }
}

// Against the weights before quantization: the error of rounding both sides.
TEST_P(QuantizedProductTest, IsCloseToTheProductInDouble) {
  const int64_t rows = 6, in = 1024, out = 64;
  const Values weights = random.Normal(out * in, 0.03), x = random.Normal(rows * in, 1);
  const Values exact = reference::Product(x, {weights, in, out});
  for (const auto& [dtype, tolerance] : {std::pair{DType::kInt8, 0.012}, std::pair{DType::kInt4, 0.09}}) {
    const std::vector<float> actual = Product(Floats(x), rows, Quantize(Floats(weights), dtype, out, in));
    double error = 0, square = 0;
    for (size_t i = 0; i < exact.size(); ++i) {
      error += (actual[i] - exact[i]) * (actual[i] - exact[i]);
      square += exact[i] * exact[i];
    }
    EXPECT_LE(std::sqrt(error / square), tolerance) << Name(dtype);
    EXPECT_GE(std::sqrt(error / square), tolerance / 4) << Name(dtype) << ": was it quantized at all?";
  }
}

TEST_P(QuantizedProductTest, WrongScalesAreRefused) {
  const Packed packed = RandomPacked(random, DType::kInt4, 32, 64);
  const ConstTensor x = device.Put(Values(64, 0), {1, 64});
  const Tensor out = device.New({1, 32});
  Matrix weight = Put(packed);
  weight.scales.shape = {2, 16, 2};
  EXPECT_DEATH(device->MatMul(x, weight, {}, out), "scales is \\[2, 16, 2\\], expected \\[2, 2, 16\\]");
  weight = Put(packed);
  weight.scales.dtype = DType::kBf16;
  EXPECT_DEATH(device->MatMul(x, weight, {}, out), "scales is bf16, expected f16");
}

INSTANTIATE_TEST_SUITE_P(Targets, QuantizedProductTest, testing::ValuesIn(Targets()),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace goldfinch
