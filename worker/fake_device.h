// A back end for tests of what the CPU never does: ops that cannot read host memory, allocations that fail.
#ifndef GOLDFINCH_WORKER_FAKE_DEVICE_H_
#define GOLDFINCH_WORKER_FAKE_DEVICE_H_

#include <cstdint>
#include <limits>
#include <memory>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "kernels/backend.h"

namespace goldfinch {

// Computes with another back end, which must outlive it.
class FakeDevice : public Backend {
 public:
  explicit FakeDevice(Backend& inner) : inner_(inner) {}

  // How many more allocations succeed.
  void set_allocations_left(int64_t count) { allocations_left_ = count; }

  std::string Describe() const override { return "fake"; }
  int threads() const override { return inner_.threads(); }
  absl::StatusOr<std::shared_ptr<void>> Allocate(int64_t bytes, std::string_view purpose) override {
    if (allocations_left_ == 0) {
      return absl::ResourceExhaustedError(
          absl::StrCat("no memory for ", std::string(purpose), " of ", bytes, " bytes"));
    }
    --allocations_left_;
    return inner_.Allocate(bytes, purpose);
  }
  bool reads_host_memory() const override { return false; }
  void CopyFromHost(const void* host, Tensor to) override { inner_.CopyFromHost(host, to); }
  void CopyToHost(ConstTensor from, void* host) override { inner_.CopyToHost(from, host); }
  void Zero(Tensor tensor) override { inner_.Zero(tensor); }
  void Copy(ConstTensor from, Tensor to) override { inner_.Copy(from, to); }
  absl::Status Synchronize() override { return inner_.Synchronize(); }
  void Embed(ConstTensor table, absl::Span<const int32_t> ids, Tensor out) override { inner_.Embed(table, ids, out); }
  void CopyRows(ConstTensor from, absl::Span<const RowCopy> copies, Tensor to) override {
    inner_.CopyRows(from, copies, to);
  }
  void Convert(ConstTensor from, Tensor to) override { inner_.Convert(from, to); }
  void GroupNorm(ConstTensor x, int groups, NormWeights norm, float epsilon, ConstTensor gate, Tensor out) override {
    inner_.GroupNorm(x, groups, norm, epsilon, gate, out);
  }
  void MatMul(ConstTensor x, Matrix weight, const Epilogue& epilogue, Tensor out) override {
    inner_.MatMul(x, weight, epilogue, out);
  }
  void TokenShift(ConstTensor x, RowSpans spans, Tensor shift, ConstTensor mix, Tensor out) override {
    inner_.TokenShift(x, spans, shift, mix, out);
  }
  void DdLerp(ConstTensor x, RowSpans spans, Tensor shift, const DdLerpWeights& weights, Tensor out) override {
    inner_.DdLerp(x, spans, shift, weights, out);
  }
  void WkvForward(ConstTensor r, ConstTensor k, ConstTensor v, ConstTensor w, ConstTensor bonus, RowSpans spans,
                  Tensor state, const WkvOptions& options, Tensor out) override {
    inner_.WkvForward(r, k, v, w, bonus, spans, state, options, out);
  }
  void GoldAppend(absl::Span<const int32_t> ids, ConstTensor c, RowSpans spans, const GoldCache& cache) override {
    inner_.GoldAppend(ids, c, spans, cache);
  }
  void GoldKeyTableRows(absl::Span<const int32_t> ids, ConstTensor embedding, NormWeights ln0, Matrix key_x0,
                        Tensor table) override {
    inner_.GoldKeyTableRows(ids, embedding, ln0, key_x0, table);
  }
  void GoldAttention(ConstTensor q, RowSpans spans, const GoldShared& shared, const GoldKvWeights& weights,
                     const GoldCache& cache, int head_size, Tensor out) override {
    inner_.GoldAttention(q, spans, shared, weights, cache, head_size, out);
  }
  void Rope(Tensor x, RowSpans spans, int head_size, double base) override { inner_.Rope(x, spans, head_size, base); }
  void KvAppend(ConstTensor k, ConstTensor v, RowSpans spans, const KvCache& cache) override {
    inner_.KvAppend(k, v, spans, cache);
  }
  void KvAttention(ConstTensor q, RowSpans spans, const KvCache& cache, int head_size, Tensor out) override {
    inner_.KvAttention(q, spans, cache, head_size, out);
  }

 private:
  Backend& inner_;
  int64_t allocations_left_ = std::numeric_limits<int64_t>::max();
};

}  // namespace goldfinch

#endif  // GOLDFINCH_WORKER_FAKE_DEVICE_H_
