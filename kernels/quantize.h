// Quantized weight matrices: how they are made, and their layout, which is the same in files and in memory.
//
// A matrix [out, in] is cut into panels of 16 outputs and groups of 32 inputs. A panel holds its groups in order, so
// that a product reads it from end to end. Matrices of other sizes are not quantized.
//
//   kInt8: w = q * scale with q in -127 .. 127, and one fp32 scale for each output. A group is 512 bytes: 8 times
//          [16 outputs, 4 inputs] of q + 128.
//   kInt4: w = q * scale with q in -8 .. 7, and one fp16 scale for each output and group. A group is 256 bytes: 4 times
//          [16 outputs, 4] of two q + 8, inputs 0 to 3 of each eight in the low halves and 4 to 7 in the high halves.
//
// A matrix whose inputs are often zero (after relu^2) may be stored by inputs instead (Matrix::Layout::kInOut), so that
// a product of a few rows reads only the inputs that are not zero. Its outputs are cut into blocks of B, which is 512
// if that divides them, else 128; one thread reads a block from end to end:
//
//   kInt8: [out / B, in, B] of q + 128, with scales as above.
//   kInt4: [out / B, in, B / 2], with the first 64 of each 128 outputs in the low halves, and fp16 scales
//   [in / 32, out].
//
// Within each 64 outputs, output 16 v + 4 b + k is stored at 16 b + 4 v + k: interleaving four inputs in blocks of 16
// bytes, as vector instructions do, then gives the vectors of the panels.
#ifndef GOLDFINCH_KERNELS_QUANTIZE_H_
#define GOLDFINCH_KERNELS_QUANTIZE_H_

#include <cstdint>

#include "kernels/tensor.h"

namespace goldfinch {

constexpr int64_t kPanelOut = 16;
constexpr int64_t kGroupIn = 32;

constexpr bool CanQuantize(int64_t out, int64_t in) {
  return out > 0 && in > 0 && out % kPanelOut == 0 && in % kGroupIn == 0;
}

// Type and shape, without data, of the panels as bytes and of the scales, for a matrix [out, in] that CanQuantize.
inline ConstTensor QuantizedPanels(DType dtype, int64_t out, int64_t in) {
  return {nullptr, DType::kU8, {out / kPanelOut, dtype == DType::kInt8 ? in / 4 : in / 8, kPanelOut, 4}};
}
inline ConstTensor QuantizedScales(DType dtype, int64_t out, int64_t in) {
  if (dtype == DType::kInt8) return {nullptr, DType::kF32, {out}};
  return {nullptr, DType::kF16, {out / kPanelOut, in / kGroupIn, kPanelOut}};
}

constexpr int64_t kStripOut = 64;

constexpr bool CanQuantizeByInput(int64_t out, int64_t in) {
  return CanQuantize(out, in) && out % (2 * kStripOut) == 0;
}
constexpr int64_t ByInputBlock(int64_t out) { return out % 512 == 0 ? 512 : 128; }
// The same for a matrix that CanQuantizeByInput and is stored by inputs.
inline ConstTensor QuantizedRows(DType dtype, int64_t out, int64_t in) {
  const int64_t block = ByInputBlock(out);
  return {nullptr, DType::kU8, {out / block, in, dtype == DType::kInt8 ? block : block / 2}};
}
inline ConstTensor QuantizedRowScales(DType dtype, int64_t out, int64_t in) {
  if (dtype == DType::kInt8) return {nullptr, DType::kF32, {out}};
  return {nullptr, DType::kF16, {in / kGroupIn, out}};
}

// Quantizes one panel of finite weights [16, in] into its part of the panels and of the scales. For kInt8 the largest
// weight of an output becomes 127. For kInt4 a few scales are tried, and the one with the least square error is taken.
void QuantizePanel(const float* weights, int64_t in, DType dtype, uint8_t* panel, void* scales);

// Rearranges a matrix by inputs: all its panels and scales into its rows and row scales.
void ArrangeByInput(DType dtype, int64_t out, int64_t in, const uint8_t* panels, const void* scales, uint8_t* rows,
                    void* row_scales);

}  // namespace goldfinch

#endif  // GOLDFINCH_KERNELS_QUANTIZE_H_
