// The arithmetic of the emulation's products, in double. It is compiled without sanitizers, like block.cc.
#ifndef GOLDFINCH_KERNELS_CUDA_EMULATION_PRODUCTS_H_
#define GOLDFINCH_KERNELS_CUDA_EMULATION_PRODUCTS_H_

#include <cstdint>

namespace goldfinch::emulation {

// d += A B of a warp's lanes, as mma.m16n8k16: each gives its registers of A and B, two 16-bit numbers in each, and
// gets its elements of the sum. `brain`: bfloat16, else half.
void MultiplyMatrices(bool brain, const uint32_t (&a)[4], const uint32_t (&b)[2], float (&d)[4]);

// sums [columns] = weight [columns, inner] x [inner], summed in the order of `inner`.
void MultiplyRow(const float* x, const float* weight, int64_t inner, int64_t columns, double* sums);

}  // namespace goldfinch::emulation

#endif  // GOLDFINCH_KERNELS_CUDA_EMULATION_PRODUCTS_H_
