// 16-bit numbers: IEEE 754's binary16 (half) and bfloat16 (brain), as bits.
#ifndef GOLDFINCH_KERNELS_CUDA_EMULATION_NUMBERS_H_
#define GOLDFINCH_KERNELS_CUDA_EMULATION_NUMBERS_H_

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>

namespace goldfinch::emulation {

inline float HalfToFloat(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits >> 15) << 31, exponent = bits >> 10 & 31, fraction = bits & 1023;
  if (exponent == 31) return std::bit_cast<float>(sign | 0x7F800000 | fraction << 13);
  if (exponent == 0) {
    const float magnitude = static_cast<float>(fraction) * 0x1p-24f;
    return sign != 0 ? -magnitude : magnitude;
  }
  return std::bit_cast<float>(sign | (exponent + 112) << 23 | fraction << 13);
}

// To nearest, ties to even; beyond the range the largest number; NaN stays.
inline uint16_t FloatToHalf(float x) {
  if (std::isnan(x)) return 0x7FFF;
  const uint32_t sign = std::signbit(x) ? 0x8000 : 0;
  x = std::min(std::abs(x), 65504.f);
  // Below the normal numbers, units of 2^-24; the carry of a rounding leads to the next exponent.
  if (x < 0x1p-14f) return static_cast<uint16_t>(sign | static_cast<uint32_t>(std::nearbyint(x * 0x1p24f)));
  const auto bits = std::bit_cast<uint32_t>(x);
  return static_cast<uint16_t>(sign | (((bits + 0xFFF + (bits >> 13 & 1)) >> 13) - (112u << 10)));
}

inline float BrainToFloat(uint16_t bits) { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }

inline uint16_t FloatToBrain(float x) {
  if (std::isnan(x)) return 0x7FFF;
  const auto bits = std::bit_cast<uint32_t>(x);
  return static_cast<uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

}  // namespace goldfinch::emulation

#endif  // GOLDFINCH_KERNELS_CUDA_EMULATION_NUMBERS_H_
