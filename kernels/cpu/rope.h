// Rotary embedding of one row: adjacent pairs within every head are rotated by position * base^(-2i/N).
#ifndef GOLDFINCH_KERNELS_CPU_ROPE_H_
#define GOLDFINCH_KERNELS_CPU_ROPE_H_

#include <cmath>
#include <cstdint>

namespace goldfinch::cpu {

// The angle of one position for each pair of a head: base^(-2i/N), [head_size / 2].
struct RopeFrequencies {
  static constexpr int kMaxHeadSize = 1024;

  // With base 0 there is no rotary embedding: all angles are 0.
  RopeFrequencies(int head_size, double base) {
    if (base == 0) return;
    for (int i = 0; i < head_size; i += 2) per_position[i / 2] = std::pow(base, -static_cast<double>(i) / head_size);
  }

  double per_position[kMaxHeadSize / 2] = {};
};

// Angles are computed in double: at position 10^6 an fp32 angle has no fraction left.
inline void RopeRow(float* x, int64_t width, int head_size, int64_t position, const RopeFrequencies& frequencies) {
  for (int i = 0; i < head_size; i += 2) {
    const double angle = static_cast<double>(position) * frequencies.per_position[i / 2];
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
