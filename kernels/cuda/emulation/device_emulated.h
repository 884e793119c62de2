// The emulation of what device.h declares; only device.h includes it.
#ifndef GOLDFINCH_KERNELS_CUDA_EMULATION_DEVICE_EMULATED_H_
#define GOLDFINCH_KERNELS_CUDA_EMULATION_DEVICE_EMULATED_H_

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <functional>
#include <tuple>
#include <type_traits>

#include "base/check.h"
#include "kernels/cuda/emulation/emulation.h"
#include "kernels/cuda/emulation/stream.h"
#include "kernels/cuda/launch_tap.h"

// CUDA's own names, spelled as CUDA does.
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define threadIdx (::goldfinch::emulation::index->thread)
#define blockIdx (::goldfinch::emulation::index->block)
#define blockDim (::goldfinch::emulation::index->block_dim)
#define gridDim (::goldfinch::emulation::index->grid_dim)

namespace goldfinch::cuda {

using dim3 = emulation::Dim3;
using Stream = void*;

struct float2 {
  float x, y;
};
inline float2 make_float2(float x, float y) { return {x, y}; }

struct bf16_t {
  uint16_t bits;
};
struct f16_t {
  uint16_t bits;
};

struct LaunchShape {
  dim3 grid;
  dim3 block;
  size_t shared_bytes = 0;
};

template <typename... Parameters, typename... Arguments>
void Launch(Stream stream, void (*kernel)(Parameters...), const LaunchShape& shape, Arguments&&... arguments) {
  if (shape.grid.x == 0 || shape.grid.y == 0 || shape.grid.z == 0) return;
  if (launch_tap != nullptr &&
      !launch_tap->Pass(LaunchTap::Work::kKernel, reinterpret_cast<const void*>(kernel), shape.grid, shape.block,
                        shape.shared_bytes, static_cast<Parameters>(arguments)...)) {
    return;
  }
  emulation::Queue(stream, [kernel, shape, ... copies = static_cast<Parameters>(arguments)] {
    const emulation::Access access;
    emulation::Run(shape.grid, shape.block, shape.shared_bytes, [&] { kernel(copies...); });
  });
}

inline void __syncthreads() { emulation::BlockBarrier(); }
inline void __syncwarp() { emulation::WarpBarrier(); }
inline void __threadfence() {}
template <typename T>
T atomicAdd(T* to, T value) {
  const T old = *to;
  *to += value;
  return old;
}
template <typename T>
T atomicMax(T* to, T value) {
  const T old = *to;
  *to = std::max(old, value);
  return old;
}
inline float rsqrtf(float x) { return 1 / std::sqrt(x); }
using std::max;
using std::min;

template <typename V>
V LoadBits(const V* from) {
  return *from;
}
template <typename V>
void StoreBits(const V& value, V* to) {
  *to = value;
}

inline float HalfToFloat(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits >> 15) << 31, exponent = bits >> 10 & 31, fraction = bits & 1023;
  if (exponent == 31) return std::bit_cast<float>(sign | 0x7F800000 | fraction << 13);
  if (exponent == 0) {
    const float magnitude = std::ldexp(static_cast<float>(fraction), -24);
    return sign != 0 ? -magnitude : magnitude;
  }
  return std::bit_cast<float>(sign | (exponent + 112) << 23 | fraction << 13);
}

inline uint16_t FloatToHalf(float x) {
  if (std::isnan(x)) return 0x7FFF;
  const uint16_t sign = std::signbit(x) ? 0x8000 : 0;
  x = std::min(std::abs(x), 65504.f);
  int exponent;
  std::frexp(x, &exponent);
  exponent = x == 0 ? -13 : std::max(exponent, -13);
  // In units of the last digit. The hidden digit, if it is set, carries into the exponent.
  const auto units = static_cast<uint32_t>(std::nearbyint(std::ldexp(x, 11 - exponent)));
  return static_cast<uint16_t>(sign | ((static_cast<uint32_t>(exponent + 13) << 10) + units));
}

inline float BrainToFloat(uint16_t bits) { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }

inline uint16_t FloatToBrain(float x) {
  if (std::isnan(x)) return 0x7FFF;
  const auto bits = std::bit_cast<uint32_t>(x);
  return static_cast<uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

template <typename T>
inline float ToFloat(T x) {
  if constexpr (std::is_same_v<T, float>) {
    return x;
  } else if constexpr (std::is_same_v<T, bf16_t>) {
    return BrainToFloat(x.bits);
  } else {
    return HalfToFloat(x.bits);
  }
}

template <typename T>
inline T FromFloat(float x) {
  if constexpr (std::is_same_v<T, float>) {
    return x;
  } else if constexpr (std::is_same_v<T, bf16_t>) {
    return {FloatToBrain(x)};
  } else {
    return {FloatToHalf(x)};
  }
}

template <typename T>
inline uint32_t Pack2(float low, float high) {
  return FromFloat<T>(low).bits | static_cast<uint32_t>(FromFloat<T>(high).bits) << 16;
}
template <typename T>
inline float2 Unpack2(uint32_t bits) {
  return {ToFloat(T{static_cast<uint16_t>(bits)}), ToFloat(T{static_cast<uint16_t>(bits >> 16)})};
}

inline float FastExp(float x) { return std::exp(x); }
inline float FastExp2(float x) { return std::exp2(x); }
inline float FastTanh(float x) { return std::tanh(x); }

// The value of another lane.
template <typename T>
T FromLane(const char* operation, const T& x, int lane) {
  static_assert(sizeof(T) <= emulation::kExchangeBytes);
  const char* all = emulation::Exchange(operation, &x, sizeof(T));
  T value;
  std::memcpy(&value, all + static_cast<size_t>(lane) * emulation::kExchangeBytes, sizeof(T));
  return value;
}
template <typename T>
T ShflXor(T x, int mask) {
  return FromLane("ShflXor", x, emulation::Lane() ^ mask);
}
template <typename T>
T Shfl(T x, int lane) {
  return FromLane("Shfl", x, lane & 31);
}
template <typename T>
T ShflUp(T x, int delta) {
  return FromLane("ShflUp", x, emulation::Lane() < delta ? emulation::Lane() : emulation::Lane() - delta);
}
template <typename T>
T ShflDown(T x, int delta) {
  return FromLane("ShflDown", x, emulation::Lane() + delta > 31 ? emulation::Lane() : emulation::Lane() + delta);
}
inline uint32_t Ballot(bool condition) {
  const char* all = emulation::Exchange("Ballot", &condition, sizeof(condition));
  uint32_t lanes = 0;
  for (size_t lane = 0; lane < 32; ++lane) {
    if (all[lane * emulation::kExchangeBytes] != 0) lanes |= uint32_t{1} << lane;
  }
  return lanes;
}

template <typename T>
T* DynamicShared() {
  return static_cast<T*>(emulation::Shared());
}

// Loads 8x8 matrices; each lane passes the address of a row.
inline void LdMatrix4(uint32_t (&r)[4], const void* shared_row) {
  GF_CHECK_EQ(reinterpret_cast<uintptr_t>(shared_row) % 16, 0u);
  const char* all = emulation::Exchange("LdMatrix4", &shared_row, sizeof(shared_row));
  const int lane = emulation::Lane();
  for (int i = 0; i < 4; ++i) {
    const char* row;
    std::memcpy(&row, all + (8 * i + lane / 4) * emulation::kExchangeBytes, sizeof(row));
    std::memcpy(&r[i], row + 4 * (lane % 4), 4);
  }
}
inline void LdMatrix4Trans(uint32_t (&r)[4], const void* shared_row) {
  GF_CHECK_EQ(reinterpret_cast<uintptr_t>(shared_row) % 16, 0u);
  const char* all = emulation::Exchange("LdMatrix4Trans", &shared_row, sizeof(shared_row));
  const int lane = emulation::Lane();
  for (int i = 0; i < 4; ++i) {
    uint16_t pair[2];
    for (int j = 0; j < 2; ++j) {
      const char* row;
      std::memcpy(&row, all + (8 * i + 2 * (lane % 4) + j) * emulation::kExchangeBytes, sizeof(row));
      std::memcpy(&pair[j], row + 2 * (lane / 4), 2);
    }
    std::memcpy(&r[i], pair, 4);
  }
}

template <typename T>
void Mma16816(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  struct Fragments {
    uint32_t a[4];
    uint32_t b[2];
  } mine;
  std::memcpy(mine.a, a, sizeof(a));
  std::memcpy(mine.b, b, sizeof(b));
  const char* all = emulation::Exchange("Mma16816", &mine, sizeof(mine));
  const auto fragments = [all](int lane) {
    Fragments other;
    std::memcpy(&other, all + static_cast<size_t>(lane) * emulation::kExchangeBytes, sizeof(other));
    return other;
  };
  const int group = emulation::Lane() / 4, pair = emulation::Lane() % 4;
  double sums[4] = {};
  for (int t = 0; t < 4; ++t) {
    // Lane 4g + t has columns 2t, 2t + 1, 2t + 8, 2t + 9 of rows g, g + 8 of A, and these rows of column g of B.
    const Fragments rows = fragments(4 * group + t);
    for (int column = 0; column < 2; ++column) {
      const Fragments columns = fragments(4 * (2 * pair + column) + t);
      for (int half = 0; half < 2; ++half) {
        const float2 y = Unpack2<T>(columns.b[half]);
        for (int below = 0; below < 2; ++below) {
          const float2 x = Unpack2<T>(rows.a[2 * half + below]);
          sums[2 * below + column] +=
              static_cast<double>(x.x) * static_cast<double>(y.x) + static_cast<double>(x.y) * static_cast<double>(y.y);
        }
      }
    }
  }
  for (int i = 0; i < 4; ++i) d[i] = static_cast<float>(static_cast<double>(d[i]) + sums[i]);
}

inline void CopyAsync16(void* shared, const void* global, bool there) {
  GF_CHECK_EQ(reinterpret_cast<uintptr_t>(shared) % 16, 0u);
  GF_CHECK_EQ(reinterpret_cast<uintptr_t>(global) % 16, 0u);
  emulation::CopyAsync(shared, global, there ? 16 : 0, there ? 0 : 16);
}
inline void CopyAsyncCommit() { emulation::CopyAsyncCommit(); }
template <int N>
void CopyAsyncWait() {
  emulation::CopyAsyncWait(N);
}

}  // namespace goldfinch::cuda

#endif  // GOLDFINCH_KERNELS_CUDA_EMULATION_DEVICE_EMULATED_H_
