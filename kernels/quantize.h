// Quantized weight matrices: how they are made, and how they lie in files and in memory, which is the same.
//
// A matrix [out, in] is cut into panels of 16 outputs and groups of 32 inputs. A panel holds its groups in order, so
// that a product reads it from end to end; sizes that leave a rest are not quantized.
//
//   kInt8: w = q * scale, q in -127 .. 127, one fp32 scale an output. A group is 512 bytes: 8 times [16 outputs, 4
//        inputs] of q + 128.
//   kInt4: w = q * scale, q in -8 .. 7, one fp16 scale an output and group. A group is 256 bytes: 4 times [16 outputs,
//   4]
//        of two q + 8, inputs 0 to 3 of each eight in the low halves and 4 to 7 in the high halves.
//
// A matrix whose inputs are often zero (after relu^2) may lie by inputs instead, so that a product of a few rows
// reads those inputs alone that are not (Matrix::Layout::kInOut). Its outputs are cut into blocks of B, 512 if that
// divides them, else 128; one thread reads a block from end to end:
//
//   kInt8: [out / B, in, B] of q + 128, scales as above.
//   kInt4: [out / B, in, B / 2]: of each 128 outputs the first 64 in the low halves; fp16 scales [in / 32, out].
//
// Of each 64 outputs there, output 16 v + 4 b + k stands at 16 b + 4 v + k: interleaving four inputs in blocks of 16
// bytes, as vectors do, gives the vectors of the panels.
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

// Type and shape of the panels as bytes, and of the scales, of a matrix [out, in] that CanQuantize; without data.
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
// The same of a matrix that CanQuantizeByInput and lies by inputs.
inline ConstTensor QuantizedRows(DType dtype, int64_t out, int64_t in) {
  const int64_t block = ByInputBlock(out);
  return {nullptr, DType::kU8, {out / block, in, dtype == DType::kInt8 ? block : block / 2}};
}
inline ConstTensor QuantizedRowScales(DType dtype, int64_t out, int64_t in) {
  if (dtype == DType::kInt8) return {nullptr, DType::kF32, {out}};
  return {nullptr, DType::kF16, {in / kGroupIn, out}};
}

// Quantizes one panel of finite weights [16, in] into its part of the panels and of the scales. kInt8: the largest
// weight of an output becomes 127. kInt4: the scale of a few that leaves the least square error.
void QuantizePanel(const float* weights, int64_t in, DType dtype, uint8_t* panel, void* scales);

// The same weights by inputs: all panels and scales of a matrix to its rows and row scales.
void ArrangeByInput(DType dtype, int64_t out, int64_t in, const uint8_t* panels, const void* scales, uint8_t* rows,
                    void* row_scales);

}  // namespace goldfinch

#endif  // GOLDFINCH_KERNELS_QUANTIZE_H_
