// Quantized weights: how they are made, and that products with them are what plain integer code gives, to the bit, on
// every instruction set.
#include "kernels/quantize.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "hwy/targets.h"
#include "kernels/backend_test_util.h"

namespace goldfinch {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

float HalfToFloat(uint16_t bits) {
  const int exponent = bits >> 10 & 31, mantissa = bits & 1023;
  const double magnitude = exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25);
  return static_cast<float>((bits & 0x8000) != 0 ? -magnitude : magnitude);
}

// A quantized matrix on the host.
struct Packed {
  DType dtype;
  int64_t out, in;
  bool by_input = false;
  std::vector<uint8_t> panels;  // or rows
  std::vector<char> scales;

  Packed(DType dtype, int64_t out, int64_t in)
      : dtype(dtype),
        out(out),
        in(in),
        panels(QuantizedPanels(dtype, out, in).bytes()),
        scales(QuantizedScales(dtype, out, in).bytes()) {}

  // As the header describes the layout.
  int q(int64_t o, int64_t i) const {
    if (by_input) {
      const int64_t v = o % 64 / 16, b = o % 16 / 4, k = o % 4, place = 16 * b + 4 * v + k;
      const int64_t block = out % 512 == 0 ? 512 : 128, row = o / block * in + i, of_block = o % block;
      if (dtype == DType::kInt8) return panels[row * block + of_block / 64 * 64 + place] - 128;
      const uint8_t both = panels[row * (block / 2) + of_block / 128 * 64 + place];
      return (o % 128 < 64 ? both & 15 : both >> 4) - 8;
    }
    const int64_t panel = o / 16, row = o % 16;
    if (dtype == DType::kInt8) return panels[((panel * (in / 4) + i / 4) * 16 + row) * 4 + i % 4] - 128;
    const uint8_t both = panels[((panel * (in / 8) + i / 8) * 16 + row) * 4 + i % 4];
    return (i % 8 < 4 ? both & 15 : both >> 4) - 8;
  }
  float scale(int64_t o, int64_t i) const {
    if (dtype == DType::kInt8) {
      float value;
      std::memcpy(&value, scales.data() + o * 4, 4);
      return value;
    }
    uint16_t bits;
    if (by_input) {
      std::memcpy(&bits, scales.data() + (i / 32 * out + o) * 2, 2);
      return HalfToFloat(bits);
    }
    std::memcpy(&bits, scales.data() + (o / 16 * (in / 32) + i / 32) * 32 + o % 16 * 2, 2);
    return HalfToFloat(bits);
  }
  double weight(int64_t o, int64_t i) const { return static_cast<double>(scale(o, i)) * q(o, i); }
};

Packed Quantize(const std::vector<float>& weights, DType dtype, int64_t out, int64_t in) {
  Packed packed(dtype, out, in);
  const int64_t panels = out / kPanelOut;
  for (int64_t panel = 0; panel < panels; ++panel) {
    QuantizePanel(weights.data() + panel * kPanelOut * in, in, dtype,
                  packed.panels.data() + panel * (static_cast<int64_t>(packed.panels.size()) / panels),
                  packed.scales.data() + panel * (static_cast<int64_t>(packed.scales.size()) / panels));
  }
  return packed;
}

Packed ByInput(const Packed& packed) {
  Packed rows(packed.dtype, packed.out, packed.in);
  rows.by_input = true;
  ArrangeByInput(packed.dtype, packed.out, packed.in, packed.panels.data(), packed.scales.data(), rows.panels.data(),
                 rows.scales.data());
  return rows;
}

std::vector<float> Floats(const Values& values) { return {values.begin(), values.end()}; }

// Any bytes are weights: files may hold them. Scales are ordinary numbers.
Packed RandomPacked(Random& random, DType dtype, int64_t out, int64_t in) {
  Packed packed(dtype, out, in);
  for (uint8_t& byte : packed.panels) byte = static_cast<uint8_t>(random.Next());
  for (size_t i = 0; i < packed.scales.size(); i += dtype == DType::kInt8 ? 4 : 2) {
    if (dtype == DType::kInt8) {
      const auto scale = static_cast<float>(random.Uniform(1, -0.01, 0.01)[0]);
      std::memcpy(packed.scales.data() + i, &scale, 4);
    } else {  // of either sign, between 2^-14 and 2
      const auto bits = static_cast<uint16_t>((random.Next() & 0x8000) | (0x0400 + random.Next() % 0x3C00));
      std::memcpy(packed.scales.data() + i, &bits, 2);
    }
  }
  return packed;
}

// What a product with quantized weights is, in plain code.
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
    hwy::GetChosenTarget().DeInit();  // the next op chooses anew
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

  Random random;
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

// Around the tiles of kernels, and over the parts that threads get.
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

// Weights that lie by inputs, for rows with any share of zeros: a few rows alone skip them.
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

// A fault upstream has to stay visible, in its own row.
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

// By inputs, more than are made panels at once, and so many rows that blocks are cut: each row is as it is alone.
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

// Against the weights as they were: what rounding both sides costs.
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

// --- Making them ----------------------------------------------------------------------------------------------------

TEST(QuantizeTest, WhichSizes) {
  EXPECT_TRUE(CanQuantize(16, 32));
  EXPECT_TRUE(CanQuantize(65536, 2048));
  for (const auto& [out, in] : {std::pair{0, 32}, {16, 0}, {8, 32}, {24, 32}, {257, 128}, {16, 16}, {16, 40}}) {
    EXPECT_FALSE(CanQuantize(out, in)) << out << ", " << in;
  }
}

TEST(QuantizeTest, ByInputsTheWeightsAreTheSame) {
  Random random(5);
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
  Random random(2);
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
  Random random(3);
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

// The scale is searched for: the plain choice, the largest weight at -8, leaves more.
TEST(QuantizeTest, ScalesOf4BitsAreGoodOnes) {
  Random random(4);
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
