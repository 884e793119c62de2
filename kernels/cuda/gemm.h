// Matrix products on the device's matrix units. gemm_cublaslt.cu implements them with cuBLASLt,
// emulation/gemm_emulated.cc in plain code.
#ifndef GOLDFINCH_KERNELS_CUDA_GEMM_H_
#define GOLDFINCH_KERNELS_CUDA_GEMM_H_

#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "kernels/cuda/runtime.h"
#include "kernels/tensor.h"

namespace goldfinch::cuda {

// out[rows, columns] = x[rows, inner] times the weight (+ bias) (+ out if it accumulates), all row-major, for each of
// `batch` products; sums are fp32. x and the weight are of one type, fp16 or bf16, or fp32 (multiplied as fp32, not as
// tf32); out is of that type or fp32. Sums beyond fp16's range become infinite in an fp16 out. Pointers are in device
// memory.
struct Gemm {
  const void* x = nullptr;
  const void* weight = nullptr;  // [columns, inner] if out_in, else [inner, columns]
  void* out = nullptr;
  const float* bias = nullptr;  // [columns] or null; only with an fp32 out
  DType in_dtype = DType::kBf16;
  DType out_dtype = DType::kBf16;
  bool out_in = true;
  bool accumulate = false;
  int64_t rows = 0;
  int64_t columns = 0;
  int64_t inner = 0;
  int64_t ldx = 0;       // elements from row to row
  int64_t ldweight = 0;  // likewise for the weight as it is stored
  int64_t ldout = 0;
  int64_t batch = 1;
  int64_t x_stride = 0;  // elements from product to product
  int64_t weight_stride = 0;
  int64_t out_stride = 0;
};

class GemmRunner {
 public:
  virtual ~GemmRunner() = default;
  // Queues the product. The library's plan for a shape is made once and kept.
  virtual void Run(const Gemm& gemm) = 0;
};

// `runtime` must outlive the runner. UNAVAILABLE if the library cannot be found; the message says where it was looked
// for.
absl::StatusOr<std::unique_ptr<GemmRunner>> MakeGemmRunner(Runtime& runtime);

}  // namespace goldfinch::cuda

#endif  // GOLDFINCH_KERNELS_CUDA_GEMM_H_
