#include "kernels/cuda/cuda_backend.h"

#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "kernels/cuda/context.h"
#include "kernels/cuda/ops.h"

namespace goldfinch {
namespace {

// The first with bf16 on tensor cores and with asynchronous copies.
constexpr int kMajorMin = 8;

class CudaBackend : public Backend {
 public:
  CudaBackend(std::unique_ptr<cuda::Runtime> runtime, std::unique_ptr<cuda::GemmRunner> gemm, DType activation_dtype)
      : Backend(activation_dtype), context_(std::move(runtime), std::move(gemm), activation_dtype) {}

  DeviceKind kind() const override { return DeviceKind::kCuda; }
  bool reads_weights_in_place() const override { return false; }
  bool host_accessible() const override { return false; }

  std::string Describe() const override {
    const cuda::DeviceFacts& facts = context_.facts();
    return absl::StrCat("cuda, ", facts.name, ", compute capability ", facts.major, ".", facts.minor, ", ",
                        facts.memory_bytes >> 20, " MiB, activations ", Name(activation_dtype()));
  }
  std::string Uuid() const override { return context_.facts().uuid; }
  int threads() const override { return 1; }
  bool multiplies_quantized() const override { return false; }

  int64_t FreeBytes() const override {
    context_.runtime().Use();
    return context_.runtime().FreeBytes();
  }
  int64_t TotalBytes() const override { return context_.facts().memory_bytes; }
  OpMemory PlanOps(int64_t width, int64_t vocab_size) const override {
    // cuBLASLt's workspace (32 MiB), kernels that the driver loads when they are first used, keys and values that
    // attention rebuilds within the L2 cache, and page tables.
    constexpr int64_t kFixedBytes = int64_t{512} << 20;
    // The largest op is a product of the channel mix, with rounded rows and fp32 sums of at most 4 D columns (6 bytes a
    // number). Scratch grows to twice its size, and the smaller block is freed at the next Synchronize.
    constexpr int64_t kMixWidths = 4, kNumberBytes = 6, kGrowth = 3;
    constexpr int64_t kLogitBytes = 4;  // Sample's scores
    return {.fixed_bytes = kFixedBytes,
            .bytes_per_row = kGrowth * kNumberBytes * kMixWidths * width,
            .bytes_per_logit_row = kGrowth * kLogitBytes * vocab_size};
  }
  absl::Status Synchronize() override { return Ready().Synchronize(); }
  void Submit(bool repeats, absl::FunctionRef<void()> ops) override { Ready().Submit(repeats, ops); }

  Queue& queue() override { return Ready().runtime().queue(); }
  std::unique_ptr<Queue> MakeQueue() override { return Ready().runtime().MakeQueue(); }
  absl::Status status() const override { return context_.runtime().status(); }
  uint64_t progress() const override { return context_.submissions(); }

  int64_t GoldSharedPageBytes(int64_t width, absl::Span<const GoldKvWeights> layers, int /*head_size*/,
                              int64_t page_tokens) const override {
    return cuda::GoldSharedPageBytes(width, layers, page_tokens, activation_dtype());
  }
  bool can_sample(int64_t vocab) const override { return vocab <= cuda::kSampleVocabMax; }

  CudaCounters counters() const { return context_.counters(); }

 private:
  absl::StatusOr<std::shared_ptr<void>> DoAllocate(int64_t bytes, std::string_view purpose) override {
    return Ready().runtime().Allocate(bytes, purpose);
  }
  void DoCopyFromHost(const void* host, const Tensor& to) override {
    GF_CHECK(!context_.in_submission()) << "a copy from the host within a submission";
    Ready().runtime().CopyToDevice(host, to.data, to.bytes());
  }
  void DoCopyToHost(const ConstTensor& from, void* host) override {
    GF_CHECK(!context_.in_submission()) << "a copy to the host within a submission";
    Ready().runtime().CopyToHost(from.data, host, from.bytes());
  }
  void DoZero(const Tensor& tensor) override { Ready().Zero(tensor.data, tensor.bytes()); }
  void DoCopy(const ConstTensor& from, const Tensor& to) override {
    Ready().CopyOnDevice(from.data, to.data, from.bytes());
  }
  absl::StatusOr<std::shared_ptr<void>> DoAllocateStaging(int64_t bytes, std::string_view purpose) override {
    return Ready().runtime().AllocateStaging(bytes, purpose);
  }
  void DoEmbed(const ConstTensor& table, absl::Span<const int32_t> ids, const Tensor& out) override {
    cuda::Embed(Ready(), table, ids, out);
  }
  void DoCopyRows(const ConstTensor& from, absl::Span<const RowCopy> copies, const Tensor& to) override {
    cuda::CopyRows(Ready(), from, copies, to);
  }
  void DoConvert(const ConstTensor& from, const Tensor& to) override { cuda::Convert(Ready(), from, to); }
  void DoGroupNorm(const ConstTensor& x, int groups, const NormWeights& norm, float epsilon, const ConstTensor& gate,
                   const Tensor& out) override {
    cuda::GroupNorm(Ready(), x, groups, norm, epsilon, gate, out);
  }
  void DoMatMul(const ConstTensor& x, const Matrix& weight, const Epilogue& epilogue, const Tensor& out) override {
    cuda::MatMul(Ready(), x, weight, epilogue, out);
  }
  void DoTokenShift(const ConstTensor& x, RowSpans spans, const Tensor& shift, const ConstTensor& mix,
                    const Tensor& out) override {
    cuda::TokenShift(Ready(), x, spans, shift, mix, out);
  }
  void DoDdLerp(const ConstTensor& x, RowSpans spans, const Tensor& shift, const DdLerpWeights& weights,
                const Tensor& out) override {
    cuda::DdLerp(Ready(), x, spans, shift, weights, out);
  }
  void DoWkvForward(const ConstTensor& r, const ConstTensor& k, const ConstTensor& v, const ConstTensor& w,
                    const ConstTensor& bonus, RowSpans spans, const Tensor& state, const WkvOptions& options,
                    const Tensor& out) override {
    cuda::WkvForward(Ready(), r, k, v, w, bonus, spans, state, options, out);
  }
  void DoGoldAppend(absl::Span<const int32_t> ids, const ConstTensor& c, RowSpans spans,
                    const GoldCache& cache) override {
    cuda::GoldAppend(Ready(), ids, c, spans, cache);
  }
  void DoGoldKeyTableRows(absl::Span<const int32_t> ids, const ConstTensor& embedding, const NormWeights& ln0,
                          const Matrix& key_x0, const Tensor& table) override {
    cuda::GoldKeyTableRows(Ready(), ids, embedding, ln0, key_x0, table);
  }
  void DoGoldMixTableRows(absl::Span<const int32_t> ids, const ConstTensor& embedding, const NormWeights& ln0,
                          const ConstTensor& mix_lora, const Matrix& mix_down, const Tensor& table) override {
    cuda::GoldMixTableRows(Ready(), ids, embedding, ln0, mix_lora, mix_down, table);
  }
  void DoGoldAttention(const ConstTensor& q, RowSpans spans, const GoldSharedWeights& shared,
                       const GoldKvWeights& weights, const GoldCache& cache, int head_size,
                       const Tensor& out) override {
    cuda::GoldAttention(Ready(), q, spans, shared, weights, cache, head_size, out);
  }
  void DoGoldMakeKeysValues(RowSpans spans, const GoldSharedWeights& shared, const GoldKvWeights& weights,
                            const GoldCache& cache, int head_size, const KvCache& kv) override {
    cuda::GoldMakeKeysValues(Ready(), spans, shared, weights, cache, head_size, kv);
  }
  void DoGoldMakeSharedRows(RowSpans spans, const GoldSharedWeights& shared, absl::Span<const GoldKvWeights> layers,
                            const GoldCache& cache, int head_size, const GoldSharedRows& rows) override {
    cuda::GoldMakeSharedRows(Ready(), spans, shared, layers, cache, head_size, rows);
  }
  void DoGoldSharedAttention(const ConstTensor& q, RowSpans spans, const GoldSharedWeights& shared,
                             absl::Span<const GoldKvWeights> layers, int layer, const GoldSharedRows& rows,
                             int head_size, const Tensor& out) override {
    cuda::GoldSharedAttention(Ready(), q, spans, shared, layers, layer, rows, head_size, out);
  }
  void DoRope(const Tensor& x, RowSpans spans, int head_size, double base) override {
    cuda::Rope(Ready(), x, spans, head_size, base);
  }
  void DoKvAppend(const ConstTensor& k, const ConstTensor& v, RowSpans spans, const KvCache& cache) override {
    cuda::KvAppend(Ready(), k, v, spans, cache);
  }
  void DoKvAttention(const ConstTensor& q, RowSpans spans, const KvCache& cache, int head_size,
                     const Tensor& out) override {
    cuda::KvAttention(Ready(), q, spans, cache, head_size, out);
  }
  void DoSample(const ConstTensor& logits, int64_t limit, absl::Span<const int32_t> holes,
                absl::Span<const SampleRow> rows, absl::Span<int32_t> tokens) override {
    cuda::Sample(Ready(), logits, limit, holes, rows, tokens);
  }

  // The context, with its device as the current one of this thread.
  cuda::Context& Ready() {
    context_.runtime().Use();
    return context_;
  }

  cuda::Context context_;
};

}  // namespace

std::vector<std::string> CudaDeviceUuids() { return cuda::DeviceUuids(); }

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
