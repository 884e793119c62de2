// The vocabulary of device code. Kernels (*.cu) include this header and no header of CUDA, so that they compile twice:
// with nvcc for the device, and with the host compiler for the emulation, which runs them on the CPU in unit tests
// (kernels/cuda/emulation/emulation.h).
//
// Therefore all kernels follow these rules: shared memory is always dynamic (DynamicShared); blocks have a multiple of
// 32 threads; all 32 lanes of a warp call its warp operations; kernels are started by Launch.
#ifndef GOLDFINCH_KERNELS_CUDA_DEVICE_H_
#define GOLDFINCH_KERNELS_CUDA_DEVICE_H_

#include <cstddef>
#include <cstdint>

#ifdef __CUDACC__
#include "kernels/cuda/device_cuda.h"
#else
#include "kernels/cuda/emulation/device_emulated.h"
#endif

#include "kernels/cuda/device_span.h"
#include "kernels/tensor.h"

namespace goldfinch::cuda {

// Both of the headers above define:
//
//   bf16_t, f16_t            storage types
//   threadIdx, blockIdx, blockDim, gridDim, __syncthreads(), __syncwarp(), atomicAdd, __threadfence()
//   V LoadBits(const V*), void StoreBits(V, V*)   16 bytes at a time if sizeof(V) is a multiple of 16
//   float ToFloat(T)         of float, bf16_t, f16_t
//   T FromFloat<T>(float)    to nearest, ties to even; f16_t beyond its range becomes its largest; NaN stays
//   uint32_t Pack2<T>(float low, float high), float2 Unpack2<T>(uint32_t)   of two 16-bit numbers, low one first
//   float FastExp(float), FastExp2(float), FastTanh(float)   relative error 2^-21 (FastTanh: absolute 2^-11)
//   T ShflXor(T, int mask), Shfl(T, int lane), ShflUp(T, int delta), ShflDown(T, int delta)   of a whole warp
//   uint32_t Ballot(bool)
//   float WarpSum(float), WarpMax(float)   for every lane, by ShflXor with 16, 8, 4, 2 and 1
//   T* DynamicShared<T>()    the block's dynamic shared memory, aligned to 128 bytes; not initialized
//   void LdMatrix4(uint32_t (&r)[4], const void* shared_row)       ldmatrix.x4: lane l gives row l % 8 of matrix l / 8
//   void LdMatrix4Trans(uint32_t (&r)[4], const void* shared_row)  and .trans
//   void Mma16816<T>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2])   d += a b, mma.m16n8k16, fp32 sums
//   void CopyAsync16(void* shared, const void* global, bool there)  cp.async of 16 bytes; zeros where it is not there
//   void CopyAsyncCommit(), CopyAsyncWait<N>()                      until at most the N newest groups are under way
//   void Launch(stream, kernel, LaunchShape, arguments...)

// --- Small things that need no device --------------------------------------------------------------------------------

constexpr int kWarp = 32;

template <typename T>
__host__ __device__ constexpr T CeilDiv(T a, T b) {
  return (a + b - 1) / b;
}

// N elements that are loaded and stored at once. Addresses must be multiples of the size.
template <typename T, int N>
struct alignas(sizeof(T) * N) Vec {
  T v[N];
};

template <int N, typename T>
__device__ inline void LoadFloats(const T* from, float (&to)[N]) {
  const Vec<T, N> vec = LoadBits(reinterpret_cast<const Vec<T, N>*>(from));
#pragma unroll
  for (int i = 0; i < N; ++i) to[i] = ToFloat(vec.v[i]);
}

template <int N, typename T>
__device__ inline void StoreFloats(const float (&from)[N], T* to) {
  Vec<T, N> vec;
#pragma unroll
  for (int i = 0; i < N; ++i) vec.v[i] = FromFloat<T>(from[i]);
  StoreBits(vec, reinterpret_cast<Vec<T, N>*>(to));
}

// The sum over the block, for every thread, in a fixed order. `scratch` [32] shared; all threads of the block call.
__device__ inline float BlockSum(float x, float* scratch) {
  x = WarpSum(x);
  const int warps = static_cast<int>(blockDim.x) / kWarp, lane = threadIdx.x % kWarp;
  if (warps == 1) return x;
  __syncthreads();  // scratch may still be read
  if (lane == 0) scratch[threadIdx.x / kWarp] = x;
  __syncthreads();
  return WarpSum(lane < warps ? scratch[lane] : 0.f);
}

// Index of the span that contains the row. Spans, or other structs with a row_begin, are in order and cover every row.
template <typename Span>
__device__ inline int FindSpan(const Span* spans, int count, int row) {
  int low = 0, high = count - 1;
  while (low < high) {
    const int middle = (low + high + 1) / 2;
    if (spans[middle].row_begin <= row) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return low;
}

// The C++ type of a DType.
template <typename T>
constexpr DType DTypeOf();
template <>
constexpr DType DTypeOf<float>() {
  return DType::kF32;
}
template <>
constexpr DType DTypeOf<f16_t>() {
  return DType::kF16;
}
template <>
constexpr DType DTypeOf<bf16_t>() {
  return DType::kBf16;
}

template <typename T>
struct TypeTag {
  using type = T;
};

// Calls use(TypeTag<T>()) with the type of a floating-point dtype.
template <typename Use>
void VisitFloatType(DType dtype, Use use) {
  switch (dtype) {
    case DType::kF32:
      return use(TypeTag<float>());
    case DType::kF16:
      return use(TypeTag<f16_t>());
    case DType::kBf16:
      return use(TypeTag<bf16_t>());
    default:
      GF_CHECK(false) << Name(dtype);
  }
}

}  // namespace goldfinch::cuda

#endif  // GOLDFINCH_KERNELS_CUDA_DEVICE_H_
