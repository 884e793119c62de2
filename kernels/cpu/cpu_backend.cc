#include "kernels/cpu/cpu_backend.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <string>
#include <thread>

#include "absl/strings/str_cat.h"
#include "kernels/backend.h"
#include "kernels/backend_checks.h"
#include "kernels/cpu/ops.h"

namespace goldfinch {
namespace {

constexpr DType kActivations = DType::kF32;

// memcpy wants real pointers even for nothing.
void CopyBytes(const void* from, void* to, int64_t bytes) {
  if (bytes > 0) std::memcpy(to, from, bytes);
}

class CpuBackend : public Backend {
 public:
  explicit CpuBackend(int threads) : context_(threads) {}

  std::string Describe() const override {
    return absl::StrCat("cpu, ", context_.pool.threads(), " threads, ", cpu::TargetName());
  }

  int threads() const override { return context_.pool.threads(); }
  cpu::ThreadPool::Times thread_times() const { return context_.pool.times(); }
  DType activation_dtype() const override { return kActivations; }
  bool multiplies_quantized() const override { return true; }

  absl::StatusOr<std::shared_ptr<void>> Allocate(int64_t bytes, std::string_view purpose) override {
    GF_CHECK_GE(bytes, 0);
    const size_t size = std::max<int64_t>(bytes, 1);
    void* memory = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) {
      return absl::ResourceExhaustedError(absl::StrCat("cannot allocate ", bytes, " bytes for ", std::string(purpose)));
    }
    return std::shared_ptr<void>(memory, [size](void* p) { munmap(p, size); });
  }

  int64_t FreeBytes() const override { return TotalBytes(); }
  int64_t TotalBytes() const override { return int64_t{sysconf(_SC_PHYS_PAGES)} * sysconf(_SC_PAGESIZE); }
  OpMemory PlanOps(int64_t width, int64_t /*vocab_size*/) const override {
    // Of each thread: panels of a product, or a tile of positions in several forms, each of 64 rows.
    constexpr int64_t kTileRows = 64, kForms = 32;
    const int64_t thread_bytes = kTileRows * kForms * width * SizeOf(kActivations);
    return {.fixed_bytes = threads() * thread_bytes, .bytes_per_row = 0, .bytes_per_logit_row = 0};
  }
  bool reads_host_memory() const override { return true; }
  void CopyFromHost(const void* host, Tensor to) override { CopyBytes(host, to.data, to.bytes()); }
  void CopyToHost(ConstTensor from, void* host) override { CopyBytes(from.data, host, from.bytes()); }
  void Zero(Tensor tensor) override {
    if (tensor.bytes() > 0) std::memset(tensor.data, 0, tensor.bytes());
  }
  void Copy(ConstTensor from, Tensor to) override {
    checks::Copy(from, to);
    CopyBytes(from.data, to.data, from.bytes());
  }
  absl::Status Synchronize() override { return absl::OkStatus(); }
  void Submit(bool /*repeats*/, absl::FunctionRef<void()> ops) override { ops(); }

  Queue& queue() override { return queue_; }
  std::unique_ptr<Queue> MakeQueue() override { return std::make_unique<HostQueue>(); }
  absl::StatusOr<std::shared_ptr<void>> AllocateStaging(int64_t bytes, std::string_view purpose) override {
    return Allocate(bytes, purpose);
  }
  absl::Status status() const override { return absl::OkStatus(); }

  void Embed(ConstTensor table, absl::Span<const int32_t> ids, Tensor out) override {
    checks::Embed(table, ids, out);
    cpu::Embed(context_, table, ids, out);
  }

  void CopyRows(ConstTensor from, absl::Span<const RowCopy> copies, Tensor to) override {
    checks::CopyRows(from, copies, to, kActivations);
    const int64_t width = from.dim(1);
    for (const RowCopy& copy : copies) {
      std::memmove(to.f32() + copy.to * width, from.f32() + copy.from * width, width * sizeof(float));
    }
  }

  void Convert(ConstTensor from, Tensor to) override {
    checks::Convert(from, to, kActivations);
    cpu::Convert(context_, from, to);
  }

  void GroupNorm(ConstTensor x, int groups, NormWeights norm, float epsilon, ConstTensor gate, Tensor out) override {
    checks::GroupNorm(x, groups, norm, gate, out, kActivations);
    cpu::GroupNorm(context_, x, groups, norm, epsilon, gate, out);
  }

  void MatMul(ConstTensor x, Matrix weight, const Epilogue& epilogue, Tensor out) override {
    checks::MatMul(x, weight, epilogue, out, kActivations);
    if (IsQuantized(weight.data.dtype)) {
      cpu::QuantizedMatMul(context_, x, weight, epilogue, out);
    } else {
      cpu::MatMul(context_, x, weight, epilogue, out);
    }
  }

  void TokenShift(ConstTensor x, RowSpans spans, Tensor shift, ConstTensor mix, Tensor out) override {
    checks::TokenShift(x, spans, shift, mix, out, kActivations);
    cpu::TokenShift(context_, x, spans, shift, mix, out);
  }

  void DdLerp(ConstTensor x, RowSpans spans, Tensor shift, const DdLerpWeights& weights, Tensor out) override {
    checks::DdLerp(x, spans, shift, weights, out, kActivations);
    cpu::DdLerp(context_, x, spans, shift, weights, out);
  }

  void WkvForward(ConstTensor r, ConstTensor k, ConstTensor v, ConstTensor w, ConstTensor bonus, RowSpans spans,
                  Tensor state, const WkvOptions& options, Tensor out) override {
    checks::WkvForward(r, k, v, w, bonus, spans, state, out, kActivations);
    cpu::WkvForward(context_, r, k, v, w, bonus, spans, state, options, out);
  }

  void GoldAppend(absl::Span<const int32_t> ids, ConstTensor c, RowSpans spans, const GoldCache& cache) override {
    checks::GoldAppend(ids, c, spans, cache, kActivations);
    cpu::GoldAppend(context_, ids, c, spans, cache);
  }

  void GoldKeyTableRows(absl::Span<const int32_t> ids, ConstTensor embedding, NormWeights ln0, Matrix key_x0,
                        Tensor table) override {
    checks::GoldKeyTableRows(ids, embedding, ln0, key_x0, table, kActivations);
    cpu::GoldKeyTableRows(context_, ids, embedding, ln0, key_x0, table);
  }

  void GoldMixTableRows(absl::Span<const int32_t> ids, ConstTensor embedding, NormWeights ln0, ConstTensor mix_lora,
                        Matrix mix_down, Tensor table) override {
    checks::GoldMixTableRows(ids, embedding, ln0, mix_lora, mix_down, table);
    cpu::GoldMixTableRows(context_, ids, embedding, ln0, mix_lora, mix_down, table);
  }

  void GoldAttention(ConstTensor q, RowSpans spans, const GoldSharedWeights& shared, const GoldKvWeights& weights,
                     const GoldCache& cache, int head_size, Tensor out) override {
    checks::GoldAttention(q, spans, shared, weights, cache, head_size, out, kActivations);
    cpu::GoldAttention(context_, q, spans, shared, weights, cache, head_size, out);
  }

  void GoldMakeKeysValues(RowSpans spans, const GoldSharedWeights& shared, const GoldKvWeights& weights,
                          const GoldCache& cache, int head_size, const KvCache& kv) override {
    checks::GoldMakeKeysValues(spans, shared, weights, cache, head_size, kv, kActivations);
    cpu::GoldMakeKeysValues(context_, spans, shared, weights, cache, head_size, kv);
  }

  int64_t GoldSharedPageBytes(int64_t width, absl::Span<const GoldKvWeights> layers, int /*head_size*/,
                              int64_t page_tokens) const override {
    const int64_t bytes = cpu::GoldSharedPageBytes(width, layers, page_tokens);
    return (bytes + 255) / 256 * 256;
  }

  void GoldMakeSharedRows(RowSpans spans, const GoldSharedWeights& shared, absl::Span<const GoldKvWeights> layers,
                          const GoldCache& cache, int head_size, const GoldSharedRows& rows) override {
    checks::GoldMakeSharedRows(*this, spans, shared, layers, cache, head_size, rows);
    cpu::GoldMakeSharedRows(context_, spans, shared, layers, cache, rows);
  }

  void GoldSharedAttention(ConstTensor q, RowSpans spans, const GoldSharedWeights& shared,
                           absl::Span<const GoldKvWeights> layers, int layer, const GoldSharedRows& rows, int head_size,
                           Tensor out) override {
    checks::GoldSharedAttention(*this, q, spans, shared, layers, layer, rows, head_size, out);
    cpu::GoldSharedAttention(context_, q, spans, shared, layers, layer, rows, head_size, out);
  }

  void Rope(Tensor x, RowSpans spans, int head_size, double base) override {
    checks::Rope(x, spans, head_size, kActivations);
    cpu::Rope(context_, x, spans, head_size, base);
  }

  void KvAppend(ConstTensor k, ConstTensor v, RowSpans spans, const KvCache& cache) override {
    checks::KvAppend(k, v, spans, cache, kActivations);
    cpu::KvAppend(context_, k, v, spans, cache);
  }

  void KvAttention(ConstTensor q, RowSpans spans, const KvCache& cache, int head_size, Tensor out) override {
    checks::KvAttention(q, spans, cache, head_size, out, kActivations);
    cpu::KvAttention(context_, q, spans, cache, head_size, out);
  }

  bool can_sample(int64_t /*vocab*/) const override { return true; }
  void Sample(ConstTensor logits, int64_t limit, absl::Span<const int32_t> holes, absl::Span<const SampleRow> rows,
              absl::Span<int32_t> tokens) override {
    checks::Sample(logits, limit, holes, rows, tokens);
    cpu::Sample(context_, logits, limit, holes, rows, tokens);
  }

 private:
  cpu::Context context_;
  HostQueue queue_;
};

}  // namespace

cpu::ThreadPool::Times CpuThreadTimes(const Backend& backend) {
  const auto* cpu = dynamic_cast<const CpuBackend*>(&backend);
  GF_CHECK(cpu != nullptr) << backend.Describe();
  return cpu->thread_times();
}

std::unique_ptr<Backend> MakeCpuBackend(int threads) {
  if (threads <= 0) threads = std::max(1u, std::thread::hardware_concurrency());
  return std::make_unique<CpuBackend>(threads);
}

}  // namespace goldfinch
