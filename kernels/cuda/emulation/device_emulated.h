// The emulation's part of device.h, which alone includes this.
#ifndef GOLDFINCH_KERNELS_CUDA_EMULATION_DEVICE_EMULATED_H_
#define GOLDFINCH_KERNELS_CUDA_EMULATION_DEVICE_EMULATED_H_

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <tuple>
#include <type_traits>

#include "base/check.h"
#include "kernels/cuda/emulation/emulation.h"
#include "kernels/cuda/emulation/numbers.h"
#include "kernels/cuda/emulation/products.h"
#include "kernels/cuda/emulation/stream.h"
#include "kernels/cuda/launch_tap.h"

// CUDA's own names.
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

using LaunchShape = LaunchShapeOf<dim3>;

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

template <typename T>
inline float ToFloat(T x) {
  if constexpr (std::is_same_v<T, float>) {
    return x;
  } else if constexpr (std::is_same_v<T, bf16_t>) {
    return emulation::BrainToFloat(x.bits);
  } else {
    return emulation::HalfToFloat(x.bits);
  }
}

template <typename T>
inline T FromFloat(float x) {
  if constexpr (std::is_same_v<T, float>) {
    return x;
  } else if constexpr (std::is_same_v<T, bf16_t>) {
    return {emulation::FloatToBrain(x)};
  } else {
    return {emulation::FloatToHalf(x)};
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
  static_assert(sizeof(T) == sizeof(uint32_t) || sizeof(T) == sizeof(uint64_t));
  using Bits = std::conditional_t<sizeof(T) == sizeof(uint32_t), uint32_t, uint64_t>;
  return std::bit_cast<T>(static_cast<Bits>(emulation::FromLane(operation, std::bit_cast<Bits>(x), lane)));
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
inline uint32_t Ballot(bool condition) { return emulation::Ballot(condition); }
inline float WarpSum(float x) { return emulation::WarpSum(x); }
inline float WarpMax(float x) { return emulation::WarpMax(x); }

template <typename T>
T* DynamicShared() {
  return static_cast<T*>(emulation::Shared());
}

// Each lane gives the address of one row of the four 8x8 matrices.
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
  emulation::MultiplyMatrices(std::is_same_v<T, bf16_t>, a, b, d);
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
