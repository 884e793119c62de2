// Tiles of 16-bit numbers in shared memory, and what kernels do with the fragments of mma.m16n8k16.
//
// Lane 4 g + t of a warp has rows g and g + 8, and columns 2 t and 2 t + 1, of each 8 columns of a product.
#ifndef GOLDFINCH_KERNELS_CUDA_MATRIX_TILE_H_
#define GOLDFINCH_KERNELS_CUDA_MATRIX_TILE_H_

#include <cstdint>

#include "kernels/cuda/device.h"

namespace goldfinch::cuda {

// Where a thread is in its block, and its lane in the fragments of a product.
struct LanePlace {
  int warp;
  int lane;
  int g;
  int t;

  __device__ LanePlace()
      : warp(static_cast<int>(threadIdx.x) / kWarp), lane(threadIdx.x % kWarp), g(lane / 4), t(lane % 4) {}
};

// Offset of the 16-byte piece `piece` of a row of a tile with kColumns columns, 64 or more. Each row has its pieces in
// an order of its own, so that the 8 rows of an 8x8 matrix lie in different banks.
template <int kColumns>
__device__ inline int PieceOffset(int row, int piece) {
  return row * kColumns + (piece ^ (row & 7)) * 8;
}

// d += a b for 16 columns: `b` is as one LdMatrix4 gives it, `low` has the first 8 columns of d and `high` the others.
template <typename T>
__device__ inline void Mma161616(float (&low)[4], float (&high)[4], const uint32_t (&a)[4], const uint32_t (&b)[4]) {
  Mma16816<T>(low, a, {b[0], b[1]});
  Mma16816<T>(high, a, {b[2], b[3]});
}

// Two 16 x 8 products side by side, rounded: the first operand of a product with 16 rows of another matrix.
template <typename T>
__device__ inline void PackOperand(const float (&low)[4], const float (&high)[4], uint32_t (&a)[4]) {
  a[0] = Pack2<T>(low[0], low[1]);
  a[1] = Pack2<T>(low[2], low[3]);
  a[2] = Pack2<T>(high[0], high[1]);
  a[3] = Pack2<T>(high[2], high[3]);
}

// Over the four lanes that share a row of a product.
__device__ inline float RowSum(float x) {
  x += ShflXor(x, 1);
  return x + ShflXor(x, 2);
}
__device__ inline float RowMax(float x) {
  x = fmaxf(x, ShflXor(x, 1));
  return fmaxf(x, ShflXor(x, 2));
}

}  // namespace goldfinch::cuda

#endif  // GOLDFINCH_KERNELS_CUDA_MATRIX_TILE_H_
