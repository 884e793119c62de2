#include "kernels/cuda/emulation/products.h"

#include <cstring>

#include "kernels/cuda/emulation/block.h"
#include "kernels/cuda/emulation/emulation.h"
#include "kernels/cuda/emulation/numbers.h"

namespace goldfinch::emulation {

namespace {

// What a lane gives.
struct Registers {
  uint16_t a[4][2];
  uint16_t b[2][2];
};

// Replaces the registers of each lane by its elements of A B, double [4].
template <float (*ToFloat)(uint16_t)>
void Multiply(char* places) {
  double a[16][16], b[16][8];
  for (int lane = 0; lane < kLanes; ++lane) {
    Registers given;
    std::memcpy(&given, places + lane * kExchangeBytes, sizeof(given));
    // Lane 4g + t has columns 2t, 2t + 1, 2t + 8, 2t + 9 of rows g, g + 8 of A, and these rows of column g of B.
    const int group = lane / 4, column = lane % 4 * 2;
    for (int half = 0; half < 2; ++half) {
      for (int i = 0; i < 2; ++i) {
        const int inner = 8 * half + column + i;
        a[group][inner] = static_cast<double>(ToFloat(given.a[2 * half][i]));
        a[group + 8][inner] = static_cast<double>(ToFloat(given.a[2 * half + 1][i]));
        b[inner][group] = static_cast<double>(ToFloat(given.b[half][i]));
      }
    }
  }
  for (int row = 0; row < 16; ++row) {
    double sums[8] = {};
    for (int pair = 0; pair < 4; ++pair) {
      for (int half = 0; half < 2; ++half) {
        const int inner = 8 * half + 2 * pair;
        const double x = a[row][inner], y = a[row][inner + 1];
        for (int column = 0; column < 8; ++column) sums[column] += x * b[inner][column] + y * b[inner + 1][column];
      }
    }
    // Lane 4g + t gets columns 2t, 2t + 1 of rows g, g + 8.
    for (int pair = 0; pair < 4; ++pair) {
      char* const place = places + (row % 8 * 4 + pair) * kExchangeBytes;
      std::memcpy(place + row / 8 * 2 * sizeof(double), sums + 2 * pair, 2 * sizeof(double));
    }
  }
}

}  // namespace

void MultiplyMatrices(bool brain, const uint32_t (&a)[4], const uint32_t (&b)[2], float (&d)[4]) {
  Registers given;
  std::memcpy(given.a, a, sizeof(a));
  std::memcpy(given.b, b, sizeof(b));
  const char* all = Exchange("Mma16816", &given, sizeof(given), brain ? Multiply<BrainToFloat> : Multiply<HalfToFloat>);
  double sums[4];
  std::memcpy(sums, all + static_cast<size_t>(Lane()) * kExchangeBytes, sizeof(sums));
  for (int i = 0; i < 4; ++i) d[i] = static_cast<float>(static_cast<double>(d[i]) + sums[i]);
}

void MultiplyRow(const float* x, const float* weight, int64_t inner, int64_t columns, double* sums) {
  // Several sums at a time, because each addition waits for the one before it.
  constexpr int kAtOnce = 8;
  for (int64_t begin = 0; begin < columns; begin += kAtOnce) {
    const int64_t count = columns - begin < kAtOnce ? columns - begin : kAtOnce;
    // An incomplete block computes its last column several times.
    const float* rows[kAtOnce];
    for (int64_t i = 0; i < kAtOnce; ++i) rows[i] = weight + (begin + (i < count ? i : count - 1)) * inner;
    double block[kAtOnce] = {};
    for (int64_t at = 0; at < inner; ++at) {
      const auto value = static_cast<double>(x[at]);
      for (int i = 0; i < kAtOnce; ++i) block[i] += value * static_cast<double>(rows[i][at]);
    }
    for (int64_t i = 0; i < count; ++i) sums[begin + i] = block[i];
  }
}

}  // namespace goldfinch::emulation
