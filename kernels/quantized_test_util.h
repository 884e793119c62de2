// Quantized matrices on the host, for tests: read by the layout that kernels/quantize.h describes, not by its code.
#ifndef GOLDFINCH_KERNELS_QUANTIZED_TEST_UTIL_H_
#define GOLDFINCH_KERNELS_QUANTIZED_TEST_UTIL_H_

#include <cstdint>
#include <vector>

#include "kernels/backend_test_util.h"
#include "kernels/quantize.h"

namespace goldfinch {

// A quantized matrix [out, in] on the host.
struct Packed {
  DType dtype;
  int64_t out, in;
  bool by_input = false;
  std::vector<uint8_t> panels;  // or rows, if by_input
  std::vector<char> scales;

  Packed(DType dtype, int64_t out, int64_t in)
      : dtype(dtype),
        out(out),
        in(in),
        panels(QuantizedPanels(dtype, out, in).bytes()),
        scales(QuantizedScales(dtype, out, in).bytes()) {}

  // The number that stands for weight (o, i), as kernels/quantize.h describes the layouts.
  int q(int64_t o, int64_t i) const;
  float scale(int64_t o, int64_t i) const;
  double weight(int64_t o, int64_t i) const { return static_cast<double>(scale(o, i)) * q(o, i); }
};

// The matrix [out, in] with QuantizePanel.
Packed Quantize(const std::vector<float>& weights, DType dtype, int64_t out, int64_t in);
// The same matrix with ArrangeByInput.
Packed ByInput(const Packed& packed);
// Any bytes are weights, because files may hold them. Scales are ordinary numbers.
Packed RandomPacked(TestRandom& random, DType dtype, int64_t out, int64_t in);

std::vector<float> Floats(const Values& values);

}  // namespace goldfinch

#endif  // GOLDFINCH_KERNELS_QUANTIZED_TEST_UTIL_H_
