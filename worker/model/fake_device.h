// A back end for tests of what the CPU back end never does: memory that the host cannot touch, activations narrower
// than fp32, allocations that fail.
#ifndef GOLDFINCH_WORKER_MODEL_FAKE_DEVICE_H_
#define GOLDFINCH_WORKER_MODEL_FAKE_DEVICE_H_

#include <cstdint>
#include <limits>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "base/check.h"
#include "kernels/backend.h"

namespace goldfinch {

// Computes with a CPU back end. Its memory can be accessed only by its own ops: code that reads or writes there, as
// code for the CPU would, is killed by SIGSEGV. A tensor of an op that is not in its memory is a CHECK.
//
// Activations have the type given: ops compute in fp32, and what they write is rounded at their end.
class FakeDevice : public Backend {
 public:
  // `inner` must outlive the device.
  explicit FakeDevice(Backend& inner, DType activations = DType::kF32);
  explicit FakeDevice(std::unique_ptr<Backend> inner, DType activations = DType::kF32);

  // While marks are held, none is reached, as if the device were still working. Any thread may call it.
  void HoldMarks(bool held);
  // Makes the device fail with this status. Any thread may call it.
  void Fail(absl::Status fault);

  // How many more allocations succeed.
  void set_allocations_left(int64_t count) { allocations_left_ = count; }
  // The most bytes that may be allocated.
  void set_bytes_max(int64_t bytes) { bytes_max_ = bytes; }
  void set_sample_vocab_max(int64_t vocab) { sample_vocab_max_ = vocab; }
  // The bytes that are allocated now.
  int64_t allocated_bytes() const;

  // It stands for a GPU wherever the two kinds are treated differently.
  DeviceKind kind() const override { return DeviceKind::kCuda; }
  bool reads_weights_in_place() const override { return false; }
  bool host_accessible() const override { return false; }
  std::string Describe() const override { return "fake"; }
  int threads() const override { return inner_.threads(); }
  bool multiplies_quantized() const override { return inner_.multiplies_quantized(); }
  int64_t FreeBytes() const override { return inner_.FreeBytes(); }
  int64_t TotalBytes() const override { return inner_.TotalBytes(); }
  OpMemory PlanOps(int64_t width, int64_t vocab_size) const override { return inner_.PlanOps(width, vocab_size); }
  absl::Status Synchronize() override { return status(); }
  void Submit(bool /*repeats*/, absl::FunctionRef<void()> ops) override { ops(); }
  Queue& queue() override { return queue_; }
  std::unique_ptr<Queue> MakeQueue() override { return std::make_unique<FakeQueue>(progress_); }
  absl::Status status() const override;
  uint64_t progress() const override { return inner_.progress(); }
  int64_t GoldSharedPageBytes(int64_t width, absl::Span<const GoldKvWeights> layers, int head_size,
                              int64_t page_tokens) const override;
  bool can_sample(int64_t vocab) const override { return vocab <= sample_vocab_max_; }

 protected:
  void DoMatMul(const ConstTensor& x, const Matrix& weight, const Epilogue& epilogue, const Tensor& out) override;

 private:
  absl::StatusOr<std::shared_ptr<void>> DoAllocate(int64_t bytes, std::string_view purpose) override;
  void DoCopyFromHost(const void* host, const Tensor& to) override;
  void DoCopyToHost(const ConstTensor& from, void* host) override;
  void DoZero(const Tensor& tensor) override;
  void DoCopy(const ConstTensor& from, const Tensor& to) override;
  absl::StatusOr<std::shared_ptr<void>> DoAllocateStaging(int64_t bytes, std::string_view purpose) override {
    return inner_.AllocateStaging(bytes, purpose);
  }
  void DoEmbed(const ConstTensor& table, absl::Span<const int32_t> ids, const Tensor& out) override;
  void DoCopyRows(const ConstTensor& from, absl::Span<const RowCopy> copies, const Tensor& to) override;
  void DoConvert(const ConstTensor& from, const Tensor& to) override;
  void DoGroupNorm(const ConstTensor& x, int groups, const NormWeights& norm, float epsilon, const ConstTensor& gate,
                   const Tensor& out) override;
  void DoTokenShift(const ConstTensor& x, RowSpans spans, const Tensor& shift, const ConstTensor& mix,
                    const Tensor& out) override;
  void DoDdLerp(const ConstTensor& x, RowSpans spans, const Tensor& shift, const DdLerpWeights& weights,
                const Tensor& out) override;
  void DoWkvForward(const ConstTensor& r, const ConstTensor& k, const ConstTensor& v, const ConstTensor& w,
                    const ConstTensor& bonus, RowSpans spans, const Tensor& state, const WkvOptions& options,
                    const Tensor& out) override;
  void DoGoldAppend(absl::Span<const int32_t> ids, const ConstTensor& c, RowSpans spans,
                    const GoldCache& cache) override;
  void DoGoldKeyTableRows(absl::Span<const int32_t> ids, const ConstTensor& embedding, const NormWeights& ln0,
                          const Matrix& key_x0, const Tensor& table) override;
  void DoGoldMixTableRows(absl::Span<const int32_t> ids, const ConstTensor& embedding, const NormWeights& ln0,
                          const ConstTensor& mix_lora, const Matrix& mix_down, const Tensor& table) override;
  void DoGoldAttention(const ConstTensor& q, RowSpans spans, const GoldSharedWeights& shared,
                       const GoldKvWeights& weights, const GoldCache& cache, int head_size, const Tensor& out) override;
  void DoGoldMakeKeysValues(RowSpans spans, const GoldSharedWeights& shared, const GoldKvWeights& weights,
                            const GoldCache& cache, int head_size, const KvCache& kv) override;
  void DoGoldMakeSharedRows(RowSpans spans, const GoldSharedWeights& shared, absl::Span<const GoldKvWeights> layers,
                            const GoldCache& cache, int head_size, const GoldSharedRows& rows) override;
  void DoGoldSharedAttention(const ConstTensor& q, RowSpans spans, const GoldSharedWeights& shared,
                             absl::Span<const GoldKvWeights> layers, int layer, const GoldSharedRows& rows,
                             int head_size, const Tensor& out) override;
  void DoRope(const Tensor& x, RowSpans spans, int head_size, double base) override;
  void DoKvAppend(const ConstTensor& k, const ConstTensor& v, RowSpans spans, const KvCache& cache) override;
  void DoKvAttention(const ConstTensor& q, RowSpans spans, const KvCache& cache, int head_size,
                     const Tensor& out) override;
  void DoSample(const ConstTensor& logits, int64_t limit, absl::Span<const int32_t> holes,
                absl::Span<const SampleRow> rows, absl::Span<int32_t> tokens) override;

  class Memory;
  class Op;
  class Progress;
  // Does everything at once, and also copies between fake devices.
  class FakeQueue : public HostQueue {
   public:
    explicit FakeQueue(std::shared_ptr<Progress> progress) : progress_(std::move(progress)) {}
    std::shared_ptr<const Mark> Record() override;
    void WaitFor(const Mark& /*mark*/) override {}
    void Copy(const void* from, void* to, int64_t bytes) override;

   private:
    const std::shared_ptr<Progress> progress_;
  };

  // Memory of the inner back end for an op's fp32 copies; each copy of an op has another index.
  void* Scratch(size_t index, int64_t bytes);

  std::unique_ptr<Backend> owned_;  // null: somebody else's
  Backend& inner_;
  const std::shared_ptr<Memory> memory_;  // allocations may outlive the device
  int64_t allocations_left_ = std::numeric_limits<int64_t>::max();
  int64_t bytes_max_ = std::numeric_limits<int64_t>::max();
  int64_t sample_vocab_max_ = std::numeric_limits<int64_t>::max();
  struct Buffer {
    std::shared_ptr<void> memory;
    int64_t bytes = 0;
  };
  std::vector<Buffer> scratch_;
  const std::shared_ptr<Progress> progress_;  // the marks and faults that the host sees
  FakeQueue queue_;
};

}  // namespace goldfinch

#endif  // GOLDFINCH_WORKER_MODEL_FAKE_DEVICE_H_
