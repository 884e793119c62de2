// A back end for tests of what the CPU never does: memory that the host cannot touch, activations narrower than fp32,
// allocations that fail.
#ifndef GOLDFINCH_WORKER_FAKE_DEVICE_H_
#define GOLDFINCH_WORKER_FAKE_DEVICE_H_

#include <cstdint>
#include <limits>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
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

  // How many more allocations succeed.
  void set_allocations_left(int64_t count) { allocations_left_ = count; }

  std::string Describe() const override { return "fake"; }
  int threads() const override { return inner_.threads(); }
  DType activation_dtype() const override { return activations_; }
  bool multiplies_quantised() const override { return inner_.multiplies_quantised(); }
  absl::StatusOr<std::shared_ptr<void>> Allocate(int64_t bytes, std::string_view purpose) override;
  int64_t FreeBytes() const override { return inner_.FreeBytes(); }
  bool reads_host_memory() const override { return false; }
  void CopyFromHost(const void* host, Tensor to) override;
  void CopyToHost(ConstTensor from, void* host) override;
  void Zero(Tensor tensor) override;
  void Copy(ConstTensor from, Tensor to) override;
  absl::Status Synchronize() override { return inner_.Synchronize(); }
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
  void GoldAttention(ConstTensor q, RowSpans spans, const GoldShared& shared, const GoldKvWeights& weights,
                     const GoldCache& cache, int head_size, Tensor out) override;
  void GoldKeysValues(RowSpans spans, const GoldShared& shared, const GoldKvWeights& weights, const GoldCache& cache,
                      int head_size, const KvCache& kv) override;
  void Rope(Tensor x, RowSpans spans, int head_size, double base) override;
  void KvAppend(ConstTensor k, ConstTensor v, RowSpans spans, const KvCache& cache) override;
  void KvAttention(ConstTensor q, RowSpans spans, const KvCache& cache, int head_size, Tensor out) override;
  void Sample(ConstTensor logits, int64_t limit, absl::Span<const int32_t> holes, absl::Span<const SampleRow> rows,
              absl::Span<int32_t> tokens) override;

 private:
  class Memory;
  class Op;

  // Fp32 memory of the inner back end, the next one of the op that runs.
  void* Scratch(size_t index, int64_t bytes);

  std::unique_ptr<Backend> owned_;  // null: somebody else's
  Backend& inner_;
  const DType activations_;
  const std::shared_ptr<Memory> memory_;  // allocations may outlive the device
  int64_t allocations_left_ = std::numeric_limits<int64_t>::max();
  struct Buffer {
    std::shared_ptr<void> memory;
    int64_t bytes = 0;
  };
  std::vector<Buffer> scratch_;
};

}  // namespace goldfinch

#endif  // GOLDFINCH_WORKER_FAKE_DEVICE_H_
