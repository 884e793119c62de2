// What every op of the CUDA back end runs on: the queue, products, scratch memory, and small arrays from the host.
#ifndef GOLDFINCH_KERNELS_CUDA_CONTEXT_H_
#define GOLDFINCH_KERNELS_CUDA_CONTEXT_H_

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <unordered_map>
#include <vector>

#include "absl/types/span.h"
#include "kernels/backend.h"
#include "kernels/cuda/device_span.h"
#include "kernels/cuda/gemm.h"
#include "kernels/cuda/runtime.h"

namespace goldfinch::cuda {

class Context {
 public:
  Context(std::unique_ptr<Runtime> runtime, std::unique_ptr<GemmRunner> gemm, DType activation_dtype);

  Runtime& runtime() const { return *runtime_; }
  const DeviceFacts& facts() const { return runtime_->facts(); }
  void* stream() const { return runtime_->stream(); }
  int multiprocessors() const { return runtime_->facts().multiprocessors; }
  void RunGemm(const Gemm& gemm) { gemm_->Run(gemm); }
  DType activation_dtype() const { return activation_dtype_; }

  absl::Status Synchronize();

  // Scratch of the op that runs: device memory, not initialised, aligned to 256 bytes, until the Frame that it was
  // taken in ends. The queue keeps order, so the next op may have it at once. CHECKs that the device has the memory:
  // ops cannot fail, and sizes are bounded by the shapes of the first calls.
  class Frame {
   public:
    explicit Frame(Context& context) : context_(context), used_(context.scratch_used_) {}
    ~Frame() { context_.scratch_used_ = used_; }
    Frame(const Frame&) = delete;
    Frame& operator=(const Frame&) = delete;

   private:
    Context& context_;
    const size_t used_;
  };
  void* Scratch(int64_t bytes);
  template <typename T>
  T* Scratch(int64_t count) {
    return static_cast<T*>(Scratch(count * static_cast<int64_t>(sizeof(T))));
  }

  // A copy in device memory of an array of the host, valid as Scratch is.
  template <typename T>
  const T* Upload(absl::Span<const T> values) {
    return static_cast<const T*>(UploadBytes(values.data(), static_cast<int64_t>(values.size() * sizeof(T))));
  }
  // Spans with page tables in device memory where they have any; `page_tokens`, `kept_tokens` 0: without the one or the
  // other. Valid as Scratch is.
  const DeviceSpan* UploadSpans(RowSpans spans, int64_t page_tokens, int64_t kept_tokens = 0);

 private:
  const void* UploadBytes(const void* host, int64_t bytes);
  const int32_t* MirrorPages(const int32_t* pages, int64_t count);

  // A page table as the device has it. Sequences' tables grow at their end and seldom change otherwise, so what is
  // equal is not sent again.
  struct Mirror {
    std::vector<int32_t> host;
    std::shared_ptr<void> device;
    int64_t capacity = 0;
  };

  const std::unique_ptr<Runtime> runtime_;
  const std::unique_ptr<GemmRunner> gemm_;
  const DType activation_dtype_;

  std::shared_ptr<void> scratch_;
  size_t scratch_bytes_ = 0;
  size_t scratch_used_ = 0;
  std::vector<std::shared_ptr<void>> outgrown_;  // may still be in use; kept until the next Synchronize
  std::unordered_map<const int32_t*, Mirror> mirrors_;
  std::vector<DeviceSpan> spans_;
};

}  // namespace goldfinch::cuda

#endif  // GOLDFINCH_KERNELS_CUDA_CONTEXT_H_
