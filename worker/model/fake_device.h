// A back end for tests of what the CPU never does: memory that the host cannot touch, activations narrower than fp32,
// allocations that fail.
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

// Computes with another back end, which must read host memory. The addresses of its own memory mean something to its
// ops alone: who reads or writes there, as code for the CPU would, is killed by SIGSEGV. That every tensor of an op is
// in its memory and of a type that backend.h allows is a CHECK.
//
// Activations are of the type given: ops compute in fp32, and what they write is rounded at their end.
class FakeDevice : public Backend {
 public:
  // `inner` must outlive the device.
  explicit FakeDevice(Backend& inner, DType activations = DType::kF32);
  explicit FakeDevice(std::unique_ptr<Backend> inner, DType activations = DType::kF32);

  // While marks are held none is reached, as if the device were still at its work, which nobody waits for. Any thread.
  void HoldMarks(bool held);
  // A fault of the device. Any thread.
  void Fail(absl::Status fault);

  // How many more allocations succeed.
  void set_allocations_left(int64_t count) { allocations_left_ = count; }
  void set_sample_vocab_max(int64_t vocab) { sample_vocab_max_ = vocab; }
  // Given out and not released.
  int64_t allocated_bytes() const;

  std::string Describe() const override { return "fake"; }
  int threads() const override { return inner_.threads(); }
  DType activation_dtype() const override { return activations_; }
  bool multiplies_quantized() const override { return inner_.multiplies_quantized(); }
  absl::StatusOr<std::shared_ptr<void>> Allocate(int64_t bytes, std::string_view purpose) override;
  int64_t FreeBytes() const override { return inner_.FreeBytes(); }
  int64_t TotalBytes() const override { return inner_.TotalBytes(); }
  OpMemory PlanOps(int64_t width, int64_t vocab_size) const override { return inner_.PlanOps(width, vocab_size); }
  bool reads_host_memory() const override { return false; }
  void CopyFromHost(const void* host, Tensor to) override;
  void CopyToHost(ConstTensor from, void* host) override;
  void Zero(Tensor tensor) override;
  void Copy(ConstTensor from, Tensor to) override;
  absl::Status Synchronize() override { return status(); }
  void Submit(bool /*repeats*/, absl::FunctionRef<void()> ops) override { ops(); }
  Queue& queue() override { return queue_; }
  std::unique_ptr<Queue> MakeQueue() override { return std::make_unique<FakeQueue>(progress_); }
  absl::StatusOr<std::shared_ptr<void>> AllocateStaging(int64_t bytes, std::string_view purpose) override {
    return inner_.Allocate(bytes, purpose);
  }
  absl::Status status() const override;
  void Embed(ConstTensor table, absl::Span<const int32_t> ids, Tensor out) override;
  void CopyRows(ConstTensor from, absl::Span<const RowCopy> copies, Tensor to) override;
  void Convert(ConstTensor from, Tensor to) override;
  void GroupNorm(ConstTensor x, int groups, NormWeights norm, float epsilon, ConstTensor gate, Tensor out) override;
  void MatMul(ConstTensor x, Matrix weight, const Epilogue& epilogue, Tensor out) override;
  void TokenShift(ConstTensor x, RowSpans spans, Tensor shift, ConstTensor mix, Tensor out) override;
  void DdLerp(ConstTensor x, RowSpans spans, Tensor shift, const DdLerpWeights& weights, Tensor out) override;
  void WkvForward(ConstTensor r, ConstTensor k, ConstTensor v, ConstTensor w, ConstTensor bonus, RowSpans spans,
                  Tensor state, const WkvOptions& options, Tensor out) override;
  void GoldAppend(absl::Span<const int32_t> ids, ConstTensor c, RowSpans spans, const GoldCache& cache) override;
  void GoldKeyTableRows(absl::Span<const int32_t> ids, ConstTensor embedding, NormWeights ln0, Matrix key_x0,
                        Tensor table) override;
  void GoldMixTableRows(absl::Span<const int32_t> ids, ConstTensor embedding, NormWeights ln0, ConstTensor mix_lora,
                        Matrix mix_down, Tensor table) override;
  void GoldAttention(ConstTensor q, RowSpans spans, const GoldSharedWeights& shared, const GoldKvWeights& weights,
                     const GoldCache& cache, int head_size, Tensor out) override;
  void GoldMakeKeysValues(RowSpans spans, const GoldSharedWeights& shared, const GoldKvWeights& weights,
                          const GoldCache& cache, int head_size, const KvCache& kv) override;
  int64_t GoldSharedPageBytes(int64_t width, absl::Span<const GoldKvWeights> layers, int head_size,
                              int64_t page_tokens) const override;
  void GoldMakeSharedRows(RowSpans spans, const GoldSharedWeights& shared, absl::Span<const GoldKvWeights> layers,
                          const GoldCache& cache, int head_size, const GoldSharedRows& rows) override;
  void GoldSharedAttention(ConstTensor q, RowSpans spans, const GoldSharedWeights& shared,
                           absl::Span<const GoldKvWeights> layers, int layer, const GoldSharedRows& rows, int head_size,
                           Tensor out) override;
  void Rope(Tensor x, RowSpans spans, int head_size, double base) override;
  void KvAppend(ConstTensor k, ConstTensor v, RowSpans spans, const KvCache& cache) override;
  void KvAttention(ConstTensor q, RowSpans spans, const KvCache& cache, int head_size, Tensor out) override;
  bool can_sample(int64_t vocab) const override { return vocab <= sample_vocab_max_; }
  void Sample(ConstTensor logits, int64_t limit, absl::Span<const int32_t> holes, absl::Span<const SampleRow> rows,
              absl::Span<int32_t> tokens) override;

 private:
  class Memory;
  class Op;
  class Progress;
  // Does all at once, and copies between fake devices as well.
  class FakeQueue : public HostQueue {
   public:
    explicit FakeQueue(std::shared_ptr<Progress> progress) : progress_(std::move(progress)) {}
    std::shared_ptr<const Mark> Record() override;
    void WaitFor(const Mark& /*mark*/) override {}
    void Copy(const void* from, void* to, int64_t bytes) override;

   private:
    const std::shared_ptr<Progress> progress_;
  };

  // Fp32 memory of the inner back end, the next one of the op that runs.
  void* Scratch(size_t index, int64_t bytes);

  std::unique_ptr<Backend> owned_;  // null: somebody else's
  Backend& inner_;
  const DType activations_;
  const std::shared_ptr<Memory> memory_;  // allocations may outlive the device
  int64_t allocations_left_ = std::numeric_limits<int64_t>::max();
  int64_t sample_vocab_max_ = std::numeric_limits<int64_t>::max();
  struct Buffer {
    std::shared_ptr<void> memory;
    int64_t bytes = 0;
  };
  std::vector<Buffer> scratch_;
  const std::shared_ptr<Progress> progress_;  // what the host sees of it
  FakeQueue queue_;
};

}  // namespace goldfinch

#endif  // GOLDFINCH_WORKER_MODEL_FAKE_DEVICE_H_
