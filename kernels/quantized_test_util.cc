#include "kernels/quantized_test_util.h"

#include <cmath>
#include <cstring>

namespace goldfinch {
namespace {

float HalfToFloat(uint16_t bits) {
  const int exponent = bits >> 10 & 31, mantissa = bits & 1023;
  const double magnitude = exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25);
  return static_cast<float>((bits & 0x8000) != 0 ? -magnitude : magnitude);
}

}  // namespace

int Packed::q(int64_t o, int64_t i) const {
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

float Packed::scale(int64_t o, int64_t i) const {
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

Packed RandomPacked(TestRandom& random, DType dtype, int64_t out, int64_t in) {
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

}  // namespace goldfinch
