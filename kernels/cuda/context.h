// What every op of the CUDA back end runs on: the queue, products, scratch memory, and small arrays from the host.
//
// A submission that repeats is first run without launching anything: its ops choose their launches and upload their
// arrays as always, but the launches are noted in a log, with all arguments, instead of being queued. If a submission
// with the same log was seen before, it becomes a graph, or is one already, and the whole submission is one copy of the
// arrays and one launch. A graph is used only if it would do exactly the same launches. So it cannot become stale, only
// unused (docs/decisions/0012-steps-on-the-device.md).
#ifndef GOLDFINCH_KERNELS_CUDA_CONTEXT_H_
#define GOLDFINCH_KERNELS_CUDA_CONTEXT_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <list>
#include <memory>
#include <type_traits>
#include <unordered_map>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/types/span.h"
#include "kernels/backend.h"
#include "kernels/cuda/cuda_counters.h"
#include "kernels/cuda/device_span.h"
#include "kernels/cuda/gemm.h"
#include "kernels/cuda/launch_tap.h"
#include "kernels/cuda/runtime.h"
#include "kernels/cuda/upload_arena.h"

namespace goldfinch::cuda {

class Context : private LaunchTap {
 public:
  Context(std::unique_ptr<Runtime> runtime, std::unique_ptr<GemmRunner> gemm, DType activation_dtype);

  Runtime& runtime() const { return *runtime_; }
  const DeviceFacts& facts() const { return runtime_->facts(); }
  void* stream() const { return runtime_->stream(); }
  int multiprocessors() const { return runtime_->facts().multiprocessors; }
  DType activation_dtype() const { return activation_dtype_; }

  void RunGemm(const Gemm& gemm);
  void CopyOnDevice(const void* from, void* to, int64_t bytes);
  void Zero(void* device, int64_t bytes);

  absl::Status Synchronize();

  // Scratch memory of the current op: on the device, not initialized, aligned to 256 bytes, valid until the Frame that
  // it was taken in ends. The queue keeps order, so the next op may reuse it at once. A CHECK fails if the device lacks
  // the memory: ops cannot return errors, and their needs are bounded by the shapes of the first calls.
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

  // ComputeDevice::Submit.
  void Submit(bool repeats, absl::FunctionRef<void()> ops);
  bool in_submission() const { return in_submission_; }
  // How many have begun. Any thread may call it.
  uint64_t submissions() const { return submissions_.load(std::memory_order_relaxed); }

  // Copies an array of the host to device memory. The copy is valid as long as Scratch memory would be; within a
  // submission, until its end. Graphs are reused only if the sizes of arrays do not depend on positions.
  template <typename T>
  const T* Upload(absl::Span<const T> values) {
    return static_cast<const T*>(UploadBytes(values.data(), Bytes(values), /*shared=*/false));
  }
  // The same for arrays that many ops of a submission upload: equal ones are copied once.
  template <typename T>
  const T* UploadShared(absl::Span<const T> values) {
    static_assert(std::has_unique_object_representations_v<T> || std::is_floating_point_v<T>, "bytes are compared");
    return static_cast<const T*>(UploadBytes(values.data(), Bytes(values), /*shared=*/true));
  }
  // Copies spans, with their page tables, to device memory. `page_tokens` and `kept_tokens` are the sizes of the pages
  // of RowSpan::pages and kept_pages; 0 leaves out those tables. Equal spans of a submission are copied once.
  const DeviceSpan* UploadSpans(RowSpans spans, int64_t page_tokens, int64_t kept_tokens = 0);

  // Counts of all submissions so far.
  CudaCounters counters() const;

 private:
  // The result of one Upload.
  struct Uploaded {
    const void* device;
    int64_t bytes;
  };
  struct SharedUpload {
    const void* device;
    int64_t begin;  // where its bytes begin in shared_bytes_
    int64_t bytes;
  };
  struct SpansUpload {
    const DeviceSpan* device;
    size_t begin;  // where they begin in submission_spans_
    size_t count;
    int64_t page_tokens;
    int64_t kept_tokens;
  };
  // A submission that was seen before.
  struct KnownSubmission {
    std::vector<char> log;
    std::unique_ptr<Runtime::Graph> graph;  // null until it is seen again
  };

  template <typename T>
  static int64_t Bytes(absl::Span<const T> values) {
    return static_cast<int64_t>(values.size() * sizeof(T));
  }

  void BeforeWork() override {
    arena_.Flush();
    ++counters_.launches;
  }
  void RunOnce(absl::FunctionRef<void()> ops);
  void RunAgain(absl::FunctionRef<void()> ops);
  void RunRepeated(absl::FunctionRef<void()> ops);

  const void* UploadBytes(const void* host, int64_t bytes, bool shared);
  const void* PutShared(const void* host, int64_t bytes);
  const DeviceSpan* PutSpans(RowSpans spans, int64_t page_tokens, int64_t kept_tokens);
  const int32_t* PutPages(const int32_t* pages, int64_t count);
  template <typename Put>
  const void* Given(int64_t bytes, Put put);

  const std::unique_ptr<Runtime> runtime_;
  const std::unique_ptr<GemmRunner> gemm_;
  const DType activation_dtype_;

  std::shared_ptr<void> scratch_;
  size_t scratch_bytes_ = 0;
  size_t scratch_used_ = 0;
  std::vector<std::shared_ptr<void>> outgrown_;  // may still be in use; kept until the next Synchronize

  UploadArena arena_;
  std::list<KnownSubmission> known_submissions_;  // the latest first
  bool captures_ = true;
  CudaCounters counters_;

  // State of the current submission. The vectors are kept to reuse their memory.
  bool in_submission_ = false;
  std::atomic<uint64_t> submissions_ = 0;
  bool again_ = false;              // its ops are called again: their uploads return what they did before
  std::vector<Uploaded> uploaded_;  // in call order
  size_t uploaded_again_ = 0;       // how many of these the repeated call has asked for
  std::vector<SharedUpload> shared_;
  size_t shared_next_ = 0;  // where the next one is likely to be found: ops upload them in turn
  std::vector<char> shared_bytes_;
  std::vector<SpansUpload> spans_uploads_;
  std::vector<RowSpan> submission_spans_;
  std::unordered_map<const int32_t*, Uploaded> pages_;
  std::vector<DeviceSpan> device_spans_;
};

}  // namespace goldfinch::cuda

#endif  // GOLDFINCH_KERNELS_CUDA_CONTEXT_H_
