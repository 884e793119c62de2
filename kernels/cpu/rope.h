// Rotary embedding of one row: adjacent pairs of every head turned by position * base^(-2i/N).
#ifndef GOLDFINCH_KERNELS_CPU_ROPE_H_
#define GOLDFINCH_KERNELS_CPU_ROPE_H_

#include <cmath>
#include <cstdint>

namespace goldfinch::cpu {

// Angles are taken in double: at position 10^6 an fp32 angle has lost its fraction.
inline void RopeRow(float* x, int64_t width, int head_size, int64_t position, double base) {
  for (int i = 0; i < head_size; i += 2) {
    const double angle = static_cast<double>(position) * std::pow(base, -static_cast<double>(i) / head_size);
    const auto cosine = static_cast<float>(std::cos(angle)), sine = static_cast<float>(std::sin(angle));
    for (int64_t head = 0; head < width; head += head_size) {
      const float a = x[head + i], b = x[head + i + 1];
      x[head + i] = a * cosine - b * sine;
      x[head + i + 1] = a * sine + b * cosine;
    }
  }
}

}  // namespace goldfinch::cpu

#endif  // GOLDFINCH_KERNELS_CPU_ROPE_H_
