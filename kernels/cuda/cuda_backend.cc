#include "kernels/cuda/cuda_backend.h"

#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "kernels/backend_checks.h"
#include "kernels/cuda/context.h"
#include "kernels/cuda/ops.h"

namespace goldfinch {
namespace {

// Tensor cores with bf16, asynchronous copies.
constexpr int kMajorMin = 8;

class CudaBackend : public Backend {
 public:
  CudaBackend(std::unique_ptr<cuda::Runtime> runtime, std::unique_ptr<cuda::GemmRunner> gemm, DType activation_dtype)
      : context_(std::move(runtime), std::move(gemm), activation_dtype), act_(activation_dtype) {}

  std::string Describe() const override {
    const cuda::DeviceFacts& facts = context_.facts();
    return absl::StrCat("cuda, ", facts.name, ", compute capability ", facts.major, ".", facts.minor, ", ",
                        facts.memory_bytes >> 20, " MiB, activations ", Name(act_));
  }
  int threads() const override { return 1; }
  DType activation_dtype() const override { return act_; }
  bool multiplies_quantized() const override { return false; }

  absl::StatusOr<std::shared_ptr<void>> Allocate(int64_t bytes, std::string_view purpose) override {
    GF_CHECK_GE(bytes, 0);
    return Ready().runtime().Allocate(bytes, purpose);
  }
  int64_t FreeBytes() const override {
    context_.runtime().Use();
    return context_.runtime().FreeBytes();
  }
  int64_t TotalBytes() const override { return context_.facts().memory_bytes; }
  OpMemory PlanOps(int64_t width, int64_t vocab_size) const override {
    // cuBLASLt's workspace (32 MiB), kernels that the driver loads when they are first used, what attention rebuilds
    // within the L2 cache, page tables.
    constexpr int64_t kFixedBytes = int64_t{512} << 20;
    // The largest op is a product of the channel mix: rows rounded and sums in fp32 of at most 4 D columns (6 bytes a
    // number). Scratch grows to twice what it was, and the smaller block is let go at the next Synchronize.
    constexpr int64_t kMixWidths = 4, kNumberBytes = 6, kGrowth = 3;
    constexpr int64_t kLogitBytes = 4;  // Sample's scores
    return {.fixed_bytes = kFixedBytes,
            .bytes_per_row = kGrowth * kNumberBytes * kMixWidths * width,
            .bytes_per_logit_row = kGrowth * kLogitBytes * vocab_size};
  }
  bool reads_host_memory() const override { return false; }
  void CopyFromHost(const void* host, Tensor to) override {
    GF_CHECK(!context_.in_step()) << "a copy from the host within a step";
    if (to.bytes() > 0) Ready().runtime().CopyToDevice(host, to.data, to.bytes());
  }
  void CopyToHost(ConstTensor from, void* host) override {
    GF_CHECK(!context_.in_step()) << "a copy to the host within a step";
    if (from.bytes() > 0) Ready().runtime().CopyToHost(from.data, host, from.bytes());
  }
  void Zero(Tensor tensor) override {
    if (tensor.bytes() > 0) Ready().Zero(tensor.data, tensor.bytes());
  }
  void Copy(ConstTensor from, Tensor to) override {
    checks::Copy(from, to);
    if (from.bytes() > 0) Ready().CopyOnDevice(from.data, to.data, from.bytes());
  }
  absl::Status Synchronize() override { return Ready().Synchronize(); }
  void Submit(bool repeats, absl::FunctionRef<void()> ops) override { Ready().Submit(repeats, ops); }

  Queue& queue() override { return Ready().runtime().queue(); }
  std::unique_ptr<Queue> MakeQueue() override { return Ready().runtime().MakeQueue(); }
  absl::StatusOr<std::shared_ptr<void>> AllocateStaging(int64_t bytes, std::string_view purpose) override {
    GF_CHECK_GE(bytes, 0);
    return Ready().runtime().AllocateStaging(bytes, purpose);
  }
  absl::Status status() const override { return context_.runtime().status(); }

  void Embed(ConstTensor table, absl::Span<const int32_t> ids, Tensor out) override {
    checks::Embed(table, ids, out);
    if (!ids.empty()) cuda::Embed(Ready(), table, ids, out);
  }
  void CopyRows(ConstTensor from, absl::Span<const RowCopy> copies, Tensor to) override {
    checks::CopyRows(from, copies, to, act_);
    if (!copies.empty()) cuda::CopyRows(Ready(), from, copies, to);
  }
  void Convert(ConstTensor from, Tensor to) override {
    checks::Convert(from, to, act_);
    if (from.shape.elements() > 0) cuda::Convert(Ready(), from, to);
  }
  void GroupNorm(ConstTensor x, int groups, NormWeights norm, float epsilon, ConstTensor gate, Tensor out) override {
    checks::GroupNorm(x, groups, norm, gate, out, act_);
    if (x.dim(0) > 0) cuda::GroupNorm(Ready(), x, groups, norm, epsilon, gate, out);
  }
  void MatMul(ConstTensor x, Matrix weight, const Epilogue& epilogue, Tensor out) override {
    checks::MatMul(x, weight, epilogue, out, act_);
    if (x.dim(0) > 0) cuda::MatMul(Ready(), x, weight, epilogue, out);
  }
  void TokenShift(ConstTensor x, RowSpans spans, Tensor shift, ConstTensor mix, Tensor out) override {
    checks::TokenShift(x, spans, shift, mix, out, act_);
    if (!spans.empty()) cuda::TokenShift(Ready(), x, spans, shift, mix, out);
  }
  void DdLerp(ConstTensor x, RowSpans spans, Tensor shift, const DdLerpWeights& weights, Tensor out) override {
    checks::DdLerp(x, spans, shift, weights, out, act_);
    if (!spans.empty()) cuda::DdLerp(Ready(), x, spans, shift, weights, out);
  }
  void WkvForward(ConstTensor r, ConstTensor k, ConstTensor v, ConstTensor w, ConstTensor bonus, RowSpans spans,
                  Tensor state, const WkvOptions& options, Tensor out) override {
    checks::WkvForward(r, k, v, w, bonus, spans, state, out, act_);
    if (!spans.empty()) cuda::WkvForward(Ready(), r, k, v, w, bonus, spans, state, options, out);
  }
  void GoldAppend(absl::Span<const int32_t> ids, ConstTensor c, RowSpans spans, const GoldCache& cache) override {
    checks::GoldAppend(ids, c, spans, cache, act_);
    if (!spans.empty()) cuda::GoldAppend(Ready(), ids, c, spans, cache);
  }
  void GoldKeyTableRows(absl::Span<const int32_t> ids, ConstTensor embedding, NormWeights ln0, Matrix key_x0,
                        Tensor table) override {
    checks::GoldKeyTableRows(ids, embedding, ln0, key_x0, table, act_);
    if (!ids.empty()) cuda::GoldKeyTableRows(Ready(), ids, embedding, ln0, key_x0, table);
  }
  void GoldMixTableRows(absl::Span<const int32_t> ids, ConstTensor embedding, NormWeights ln0, ConstTensor mix_lora,
                        Matrix mix_down, Tensor table) override {
    checks::GoldMixTableRows(ids, embedding, ln0, mix_lora, mix_down, table);
    if (!ids.empty()) cuda::GoldMixTableRows(Ready(), ids, embedding, ln0, mix_lora, mix_down, table);
  }
  void GoldAttention(ConstTensor q, RowSpans spans, const GoldSharedWeights& shared, const GoldKvWeights& weights,
                     const GoldCache& cache, int head_size, Tensor out) override {
    checks::GoldAttention(q, spans, shared, weights, cache, head_size, out, act_);
    if (!spans.empty()) cuda::GoldAttention(Ready(), q, spans, shared, weights, cache, head_size, out);
  }
  void GoldMakeKeysValues(RowSpans spans, const GoldSharedWeights& shared, const GoldKvWeights& weights,
                          const GoldCache& cache, int head_size, const KvCache& kv) override {
    checks::GoldMakeKeysValues(spans, shared, weights, cache, head_size, kv, act_);
    if (!spans.empty()) cuda::GoldMakeKeysValues(Ready(), spans, shared, weights, cache, head_size, kv);
  }
  int64_t GoldSharedPageBytes(int64_t width, absl::Span<const GoldKvWeights> layers, int /*head_size*/,
                              int64_t page_tokens) const override {
    return cuda::GoldSharedPageBytes(width, layers, page_tokens, act_);
  }
  void GoldMakeSharedRows(RowSpans spans, const GoldSharedWeights& shared, absl::Span<const GoldKvWeights> layers,
                          const GoldCache& cache, int head_size, const GoldSharedRows& rows) override {
    checks::GoldMakeSharedRows(*this, spans, shared, layers, cache, head_size, rows);
    if (!spans.empty()) cuda::GoldMakeSharedRows(Ready(), spans, shared, layers, cache, head_size, rows);
  }
  void GoldSharedAttention(ConstTensor q, RowSpans spans, const GoldSharedWeights& shared,
                           absl::Span<const GoldKvWeights> layers, int layer, const GoldSharedRows& rows, int head_size,
                           Tensor out) override {
    checks::GoldSharedAttention(*this, q, spans, shared, layers, layer, rows, head_size, out);
    if (!spans.empty()) cuda::GoldSharedAttention(Ready(), q, spans, shared, layers, layer, rows, head_size, out);
  }
  void Rope(Tensor x, RowSpans spans, int head_size, double base) override {
    checks::Rope(x, spans, head_size, act_);
    if (!spans.empty()) cuda::Rope(Ready(), x, spans, head_size, base);
  }
  void KvAppend(ConstTensor k, ConstTensor v, RowSpans spans, const KvCache& cache) override {
    checks::KvAppend(k, v, spans, cache, act_);
    if (!spans.empty()) cuda::KvAppend(Ready(), k, v, spans, cache);
  }
  void KvAttention(ConstTensor q, RowSpans spans, const KvCache& cache, int head_size, Tensor out) override {
    checks::KvAttention(q, spans, cache, head_size, out, act_);
    if (!spans.empty()) cuda::KvAttention(Ready(), q, spans, cache, head_size, out);
  }
  bool can_sample(int64_t vocab) const override { return vocab <= cuda::kSampleVocabMax; }
  void Sample(ConstTensor logits, int64_t limit, absl::Span<const int32_t> holes, absl::Span<const SampleRow> rows,
              absl::Span<int32_t> tokens) override {
    checks::Sample(logits, limit, holes, rows, tokens);
    if (!rows.empty()) cuda::Sample(Ready(), logits, limit, holes, rows, tokens);
  }

  CudaCounters counters() const { return context_.counters(); }

 private:
  // For calls of this thread.
  cuda::Context& Ready() {
    context_.runtime().Use();
    return context_;
  }

  cuda::Context context_;
  const DType act_;
};

}  // namespace

CudaCounters CountersOf(const Backend& backend) {
  const auto* cuda = dynamic_cast<const CudaBackend*>(&backend);
  GF_CHECK(cuda != nullptr) << backend.Describe();
  return cuda->counters();
}

absl::StatusOr<std::unique_ptr<Backend>> MakeCudaBackend(const CudaOptions& options) {
  GF_ASSIGN_OR_RETURN(std::unique_ptr<cuda::Runtime> runtime, cuda::OpenRuntime(options.device));
  const cuda::DeviceFacts& facts = runtime->facts();
  if (facts.major < kMajorMin) {
    return absl::FailedPreconditionError(absl::StrCat("CUDA device ", options.device, ", ", facts.name,
                                                      ", has compute capability ", facts.major, ".", facts.minor,
                                                      ", the least is ", kMajorMin, ".0"));
  }
  GF_ASSIGN_OR_RETURN(std::unique_ptr<cuda::GemmRunner> gemm, cuda::MakeGemmRunner(*runtime));
  return std::make_unique<CudaBackend>(std::move(runtime), std::move(gemm), options.activation_dtype);
}

}  // namespace goldfinch
