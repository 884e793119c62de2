#include "kernels/quantize.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>

#include "base/check.h"

namespace goldfinch {
namespace {

constexpr int kLanes = 8;  // partial sums of a group, which a compiler can keep in vectors

using Group = std::array<float, kGroupIn>;

// Rounds to nearest, ties to even; values beyond fp16's range become its largest.
uint16_t ToHalf(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const auto sign = static_cast<uint16_t>(bits >> 16 & 0x8000);
  const float magnitude = std::min(std::abs(value), 65504.f);
  if (magnitude < 0x1p-14f) {  // adding 1/2 rounds at fp16's last digit
    return sign | static_cast<uint16_t>(std::bit_cast<uint32_t>(magnitude + 0.5f) - std::bit_cast<uint32_t>(0.5f));
  }
  const auto wide = std::bit_cast<uint32_t>(magnitude);
  return sign | static_cast<uint16_t>((wide - (112u << 23) + 0xFFF + (wide >> 13 & 1)) >> 13);
}

// Rounds to nearest, ties to even, for |x| < 2^22.
float Round(float x) { return (x + 0x1.8p23f) - 0x1.8p23f; }

float Sum(const std::array<float, kLanes>& lanes) {
  float sum = 0;
  for (float lane : lanes) sum += lane;
  return sum;
}

// For q = x * inverse, rounded and limited to -8 .. 7: the best scale for these q, and how much lower the square error
// is with it than with zeros.
struct Fit {
  float scale = 0;
  float gain = 0;
};

Fit FitGroup(const Group& x, float inverse) {
  std::array<float, kLanes> xq{}, qq{};
  for (int64_t begin = 0; begin < kGroupIn; begin += kLanes) {
    for (int i = 0; i < kLanes; ++i) {
      const float q = std::clamp(Round(x[begin + i] * inverse), -8.f, 7.f);
      xq[i] += x[begin + i] * q;
      qq[i] += q * q;
    }
  }
  const float dot = Sum(xq), square = Sum(qq);
  if (square == 0) return {};
  return {dot / square, dot * dot / square};
}

// Writes q + 8 of a group; returns the scale.
float QuantizeGroup(const Group& x, std::array<uint8_t, kGroupIn>* q) {
  q->fill(8);
  float largest = 0;
  for (float value : x) {
    if (std::abs(value) > std::abs(largest)) largest = value;
  }
  // Weights that are too small for a scale in fp16.
  if (std::abs(largest) < 0x1p-24f) return 0;
  // Scales that put the largest weight on q = -8, on 7, or a little beside them.
  Fit best;
  float best_inverse = 0;
  const auto attempt = [&](float target) {
    const float inverse = target / largest;
    const Fit fit = FitGroup(x, inverse);
    if (fit.gain > best.gain) {
      best = fit;
      best_inverse = inverse;
    }
  };
  attempt(-8);
  for (float target = 6.25f; target <= 9.5f; target += 0.25f) {
    attempt(-target);
    attempt(target);
  }
  for (int64_t i = 0; i < kGroupIn; ++i) {
    (*q)[i] = static_cast<uint8_t>(std::clamp(Round(x[i] * best_inverse), -8.f, 7.f) + 8);
  }
  return best.scale;
}

void QuantizePanel8(const float* weights, int64_t in, uint8_t* panel, float* scales) {
  for (int64_t out = 0; out < kPanelOut; ++out) {
    const float* row = weights + out * in;
    float largest = 0;
    for (int64_t i = 0; i < in; ++i) largest = std::max(largest, std::abs(row[i]));
    scales[out] = largest / 127;
    for (int64_t i = 0; i < in; ++i) {
      // Not a product with the inverse, which is infinite for the smallest numbers.
      const float q = scales[out] == 0 ? 0 : std::clamp(Round(row[i] / scales[out]), -127.f, 127.f);
      panel[(i / 4 * kPanelOut + out) * 4 + i % 4] = static_cast<uint8_t>(q + 128);
    }
  }
}

void QuantizePanel4(const float* weights, int64_t in, uint8_t* panel, uint16_t* scales) {
  Group x;
  std::array<uint8_t, kGroupIn> q;
  for (int64_t group = 0; group < in / kGroupIn; ++group) {
    uint8_t* to = panel + group * (kPanelOut * kGroupIn / 2);
    for (int64_t out = 0; out < kPanelOut; ++out) {
      std::copy_n(weights + out * in + group * kGroupIn, kGroupIn, x.begin());
      scales[group * kPanelOut + out] = ToHalf(QuantizeGroup(x, &q));
      for (int64_t i = 0; i < kGroupIn / 2; ++i) {
        const int64_t low = i / 4 * 8 + i % 4;
        to[(i / 4 * kPanelOut + out) * 4 + i % 4] = static_cast<uint8_t>(q[low] | q[low + 4] << 4);
      }
    }
  }
}

}  // namespace

void QuantizePanel(const float* weights, int64_t in, DType dtype, uint8_t* panel, void* scales) {
  GF_CHECK(IsQuantized(dtype) && in > 0 && in % kGroupIn == 0) << Name(dtype) << ", " << in << " inputs";
  if (dtype == DType::kInt8) {
    QuantizePanel8(weights, in, panel, static_cast<float*>(scales));
  } else {
    QuantizePanel4(weights, in, panel, static_cast<uint16_t*>(scales));
  }
}

void ArrangeByInput(DType dtype, int64_t out, int64_t in, const uint8_t* panels, const void* scales, uint8_t* rows,
                    void* row_scales) {
  GF_CHECK(IsQuantized(dtype) && CanQuantizeByInput(out, in)) << Name(dtype) << " [" << out << ", " << in << "]";
  const bool is_int8 = dtype == DType::kInt8;
  const int64_t block = ByInputBlock(out), row_bytes = is_int8 ? block : block / 2;
  const int64_t fours = is_int8 ? in / 4 : in / 8, groups = in / kGroupIn;
  std::fill_n(rows, BytesOf(dtype, out * in), uint8_t{0});
  for (int64_t o = 0; o < out; ++o) {
    uint8_t* block_rows = rows + o / block * in * row_bytes;
    const int64_t strip = o % block / kStripOut, within = o % kStripOut;
    const int64_t place = within / 4 % 4 * 16 + within / 16 * 4 + within % 4;
    const uint8_t* panel = panels + (o / kPanelOut * fours * kPanelOut + o % kPanelOut) * 4;
    for (int64_t i = 0; i < in; ++i) {
      if (is_int8) {
        block_rows[i * row_bytes + strip * kStripOut + place] = panel[i / 4 * kPanelOut * 4 + i % 4];
      } else {
        const uint8_t both = panel[i / 8 * kPanelOut * 4 + i % 4];
        const int q = i % 8 < 4 ? both & 0x0F : both >> 4;
        block_rows[i * row_bytes + strip / 2 * kStripOut + place] |= static_cast<uint8_t>(strip % 2 == 0 ? q : q << 4);
      }
    }
    for (int64_t group = 0; group < groups && !is_int8; ++group) {
      static_cast<uint16_t*>(row_scales)[group * out + o] =
          static_cast<const uint16_t*>(scales)[(o / kPanelOut * groups + group) * kPanelOut + o % kPanelOut];
    }
  }
  if (is_int8) std::copy_n(static_cast<const float*>(scales), out, static_cast<float*>(row_scales));
}

}  // namespace goldfinch
