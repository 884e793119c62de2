// The device's part of device.h, which alone includes this.
#ifndef GOLDFINCH_KERNELS_CUDA_DEVICE_CUDA_H_
#define GOLDFINCH_KERNELS_CUDA_DEVICE_CUDA_H_

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <type_traits>
#include <utility>

#include "kernels/cuda/launch_tap.h"

namespace goldfinch::cuda {

using bf16_t = __nv_bfloat16;
using f16_t = __half;
using Stream = cudaStream_t;

using LaunchShape = LaunchShapeOf<dim3>;

// PrepareLaunch lets `function` use more than 48 KB of shared memory; FinishLaunch remembers the first failure for
// Runtime::Synchronize.
void PrepareLaunch(const void* function, const LaunchShape& shape);
void FinishLaunch(cudaError_t error);

template <typename... Parameters, typename... Arguments>
void Launch(Stream stream, void (*kernel)(Parameters...), const LaunchShape& shape, Arguments&&... arguments) {
  if (shape.grid.x == 0 || shape.grid.y == 0 || shape.grid.z == 0) return;
  if (launch_tap != nullptr &&
      !launch_tap->Pass(LaunchTap::Work::kKernel, reinterpret_cast<const void*>(kernel), shape.grid, shape.block,
                        shape.shared_bytes, static_cast<Parameters>(arguments)...)) {
    return;
  }
  PrepareLaunch(reinterpret_cast<const void*>(kernel), shape);
  cudaLaunchConfig_t config = {};
  config.gridDim = shape.grid;
  config.blockDim = shape.block;
  config.dynamicSmemBytes = shape.shared_bytes;
  config.stream = stream;
  FinishLaunch(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(std::forward<Arguments>(arguments))...));
}

template <typename T>
__device__ inline float ToFloat(T x) {
  if constexpr (std::is_same_v<T, float>) {
    return x;
  } else if constexpr (std::is_same_v<T, bf16_t>) {
    return __bfloat162float(x);
  } else {
    return __half2float(x);
  }
}

// In words of 16 bytes, whatever the compiler would make of the parts.
template <typename V>
__device__ inline V LoadBits(const V* from) {
  V value;
  if constexpr (sizeof(V) % sizeof(uint4) == 0) {
    uint4 words[sizeof(V) / sizeof(uint4)];
#pragma unroll
    for (int i = 0; i < static_cast<int>(sizeof(V) / sizeof(uint4)); ++i) {
      words[i] = reinterpret_cast<const uint4*>(from)[i];
    }
    memcpy(&value, words, sizeof(V));
  } else {
    value = *from;
  }
  return value;
}
template <typename V>
__device__ inline void StoreBits(const V& value, V* to) {
  if constexpr (sizeof(V) % sizeof(uint4) == 0) {
    uint4 words[sizeof(V) / sizeof(uint4)];
    memcpy(words, &value, sizeof(V));
#pragma unroll
    for (int i = 0; i < static_cast<int>(sizeof(V) / sizeof(uint4)); ++i) reinterpret_cast<uint4*>(to)[i] = words[i];
  } else {
    *to = value;
  }
}

__device__ inline float ClampToHalf(float x) { return x != x ? x : fminf(fmaxf(x, -65504.f), 65504.f); }

template <typename T>
__device__ inline T FromFloat(float x) {
  if constexpr (std::is_same_v<T, float>) {
    return x;
  } else if constexpr (std::is_same_v<T, bf16_t>) {
    return __float2bfloat16_rn(x);
  } else {
    return __float2half_rn(ClampToHalf(x));
  }
}

template <typename T>
__device__ inline uint32_t Pack2(float low, float high) {
  if constexpr (std::is_same_v<T, bf16_t>) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<const uint32_t*>(&pair);
  } else {
    const __half2 pair = __floats2half2_rn(ClampToHalf(low), ClampToHalf(high));
    return *reinterpret_cast<const uint32_t*>(&pair);
  }
}

template <typename T>
__device__ inline float2 Unpack2(uint32_t bits) {
  if constexpr (std::is_same_v<T, bf16_t>) {
    return __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(&bits));
  } else {
    return __half22float2(*reinterpret_cast<const __half2*>(&bits));
  }
}

__device__ inline float FastExp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ inline float FastExp(float x) { return __expf(x); }
__device__ inline float FastTanh(float x) {
  float y;
  asm("tanh.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

constexpr unsigned kAllLanes = 0xFFFFFFFF;
template <typename T>
__device__ inline T ShflXor(T x, int mask) {
  return __shfl_xor_sync(kAllLanes, x, mask);
}
template <typename T>
__device__ inline T Shfl(T x, int lane) {
  return __shfl_sync(kAllLanes, x, lane);
}
template <typename T>
__device__ inline T ShflUp(T x, int delta) {
  return __shfl_up_sync(kAllLanes, x, delta);
}
template <typename T>
__device__ inline T ShflDown(T x, int delta) {
  return __shfl_down_sync(kAllLanes, x, delta);
}
__device__ inline uint32_t Ballot(bool condition) { return __ballot_sync(kAllLanes, condition); }
__device__ inline float WarpSum(float x) {
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) x += ShflXor(x, mask);
  return x;
}
__device__ inline float WarpMax(float x) {
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) x = fmaxf(x, ShflXor(x, mask));
  return x;
}

template <typename T>
__device__ inline T* DynamicShared() {
  extern __shared__ __align__(128) unsigned char dynamic_shared[];
  return reinterpret_cast<T*>(dynamic_shared);
}

__device__ inline uint32_t SharedAddress(const void* shared) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
}

__device__ inline void LdMatrix4(uint32_t (&r)[4], const void* shared_row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(SharedAddress(shared_row))
               : "memory");
}
__device__ inline void LdMatrix4Trans(uint32_t (&r)[4], const void* shared_row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(SharedAddress(shared_row))
               : "memory");
}

template <typename T>
__device__ inline void Mma16816(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  if constexpr (std::is_same_v<T, bf16_t>) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, "
        "%2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  } else {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
        "%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }
}

__device__ inline void CopyAsync16(void* shared, const void* global, bool there) {
  // The address must be valid even where nothing is read.
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(SharedAddress(shared)), "l"(global),
               "r"(there ? 16 : 0)
               : "memory");
}
__device__ inline void CopyAsyncCommit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N>
__device__ inline void CopyAsyncWait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

}  // namespace goldfinch::cuda

#endif  // GOLDFINCH_KERNELS_CUDA_DEVICE_CUDA_H_
