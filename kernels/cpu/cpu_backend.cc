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
#include "kernels/cpu/ops.h"

namespace goldfinch {
namespace {

constexpr DType kActivations = DType::kF32;

class CpuBackend : public Backend {
 public:
  explicit CpuBackend(int threads) : Backend(kActivations), threads_(threads), context_(threads) {}

  DeviceKind kind() const override { return DeviceKind::kCpu; }
  bool reads_weights_in_place() const override { return true; }
  bool host_accessible() const override { return true; }

  std::string Describe() const override {
    return absl::StrCat("cpu, ", context_.pool.threads(), " threads, ", cpu::TargetName());
  }

  int threads() const override { return context_.pool.threads(); }
  void UseThreads(int threads) override { context_.pool.Resize(std::clamp(threads, 1, threads_)); }
  cpu::ThreadPool::Times thread_times() const { return context_.pool.times(); }
  bool multiplies_quantized() const override { return true; }

  int64_t FreeBytes() const override { return TotalBytes(); }
  int64_t TotalBytes() const override { return int64_t{sysconf(_SC_PHYS_PAGES)} * sysconf(_SC_PAGESIZE); }
  OpMemory PlanOps(int64_t width, int64_t /*vocab_size*/) const override {
    // What one thread takes: panels of a product, or a tile of positions in several forms, each of 64 rows.
    constexpr int64_t kTileRows = 64, kForms = 32;
    const int64_t thread_bytes = kTileRows * kForms * width * SizeOf(kActivations);
    return {.fixed_bytes = threads() * thread_bytes, .bytes_per_row = 0, .bytes_per_logit_row = 0};
  }
  absl::Status Synchronize() override { return absl::OkStatus(); }
  void Submit(bool /*repeats*/, absl::FunctionRef<void()> ops) override { ops(); }

  Queue& queue() override { return queue_; }
  std::unique_ptr<Queue> MakeQueue() override { return std::make_unique<HostQueue>(); }
  absl::Status status() const override { return absl::OkStatus(); }
  uint64_t progress() const override { return context_.pool.progress(); }

  int64_t GoldSharedPageBytes(int64_t width, absl::Span<const GoldKvWeights> layers, int /*head_size*/,
                              int64_t page_tokens) const override {
    const int64_t bytes = cpu::GoldSharedPageBytes(width, layers, page_tokens);
    return (bytes + 255) / 256 * 256;
  }

  bool shares_in_part() const override { return true; }
  bool can_sample(int64_t /*vocab*/) const override { return true; }

 private:
  absl::StatusOr<std::shared_ptr<void>> DoAllocate(int64_t bytes, std::string_view purpose) override {
    const size_t size = std::max<int64_t>(bytes, 1);
    void* memory = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) {
      return absl::ResourceExhaustedError(absl::StrCat("cannot allocate ", bytes, " bytes for ", std::string(purpose)));
    }
    return std::shared_ptr<void>(memory, [size](void* p) { munmap(p, size); });
  }

  void DoCopyFromHost(const void* host, const Tensor& to) override { std::memcpy(to.data, host, to.bytes()); }

  void DoCopyToHost(const ConstTensor& from, void* host) override { std::memcpy(host, from.data, from.bytes()); }

  void DoZero(const Tensor& tensor) override { std::memset(tensor.data, 0, tensor.bytes()); }

  void DoCopy(const ConstTensor& from, const Tensor& to) override { std::memcpy(to.data, from.data, from.bytes()); }

  absl::StatusOr<std::shared_ptr<void>> DoAllocateStaging(int64_t bytes, std::string_view purpose) override {
    return DoAllocate(bytes, purpose);
  }

  void DoEmbed(const ConstTensor& table, absl::Span<const int32_t> ids, const Tensor& out) override {
    cpu::Embed(context_, table, ids, out);
  }

  void DoCopyRows(const ConstTensor& from, absl::Span<const RowCopy> copies, const Tensor& to) override {
    const int64_t width = from.dim(1);
    for (const RowCopy& copy : copies) {
      std::memmove(to.f32() + copy.to * width, from.f32() + copy.from * width, width * sizeof(float));
    }
  }

  void DoConvert(const ConstTensor& from, const Tensor& to) override { cpu::Convert(context_, from, to); }

  void DoGroupNorm(const ConstTensor& x, int groups, const NormWeights& norm, float epsilon, const ConstTensor& gate,
                   const Tensor& out) override {
    cpu::GroupNorm(context_, x, groups, norm, epsilon, gate, out);
  }

  void DoMatMul(const ConstTensor& x, const Matrix& weight, const Epilogue& epilogue, const Tensor& out) override {
    if (IsQuantized(weight.data.dtype)) {
      cpu::QuantizedMatMul(context_, x, weight, epilogue, out);
    } else {
      cpu::MatMul(context_, x, weight, epilogue, out);
    }
  }

  void DoTokenShift(const ConstTensor& x, RowSpans spans, const Tensor& shift, const ConstTensor& mix,
                    const Tensor& out) override {
    cpu::TokenShift(context_, x, spans, shift, mix, out);
  }

  void DoDdLerp(const ConstTensor& x, RowSpans spans, const Tensor& shift, const DdLerpWeights& weights,
                const Tensor& out) override {
    cpu::DdLerp(context_, x, spans, shift, weights, out);
  }

  void DoWkvForward(const ConstTensor& r, const ConstTensor& k, const ConstTensor& v, const ConstTensor& w,
                    const ConstTensor& bonus, RowSpans spans, const Tensor& state, const WkvOptions& options,
                    const Tensor& out) override {
    cpu::WkvForward(context_, r, k, v, w, bonus, spans, state, options, out);
  }

  void DoGoldAppend(absl::Span<const int32_t> ids, const ConstTensor& c, RowSpans spans,
                    const GoldCache& cache) override {
    cpu::GoldAppend(context_, ids, c, spans, cache);
  }

  void DoGoldKeyTableRows(absl::Span<const int32_t> ids, const ConstTensor& embedding, const NormWeights& ln0,
                          const Matrix& key_x0, const Tensor& table) override {
    cpu::GoldKeyTableRows(context_, ids, embedding, ln0, key_x0, table);
  }

  void DoGoldMixTableRows(absl::Span<const int32_t> ids, const ConstTensor& embedding, const NormWeights& ln0,
                          const ConstTensor& mix_lora, const Matrix& mix_down, const Tensor& table) override {
    cpu::GoldMixTableRows(context_, ids, embedding, ln0, mix_lora, mix_down, table);
  }

  void DoGoldAttention(const ConstTensor& q, RowSpans spans, const GoldSharedWeights& shared,
                       const GoldKvWeights& weights, const GoldCache& cache, int head_size,
                       const Tensor& out) override {
    cpu::GoldAttention(context_, q, spans, shared, weights, cache, head_size, out);
  }

  void DoGoldMakeKeysValues(RowSpans spans, const GoldSharedWeights& shared, const GoldKvWeights& weights,
                            const GoldCache& cache, int head_size, const KvCache& kv) override {
    cpu::GoldMakeKeysValues(context_, spans, shared, weights, cache, head_size, kv);
  }

  void DoGoldMakeSharedRows(RowSpans spans, const GoldSharedWeights& shared, absl::Span<const GoldKvWeights> layers,
                            const GoldCache& cache, int /*head_size*/, const GoldSharedRows& rows) override {
    cpu::GoldMakeSharedRows(context_, spans, shared, layers, cache, rows);
  }

  void DoGoldSharedAttention(const ConstTensor& q, RowSpans spans, const GoldSharedWeights& shared,
                             absl::Span<const GoldKvWeights> layers, int layer, const GoldSharedRows& rows,
                             int head_size, const Tensor& out) override {
    cpu::GoldSharedAttention(context_, q, spans, shared, layers, layer, rows, head_size, out);
  }

  void DoRope(const Tensor& x, RowSpans spans, int head_size, double base) override {
    cpu::Rope(context_, x, spans, head_size, base);
  }

  void DoKvAppend(const ConstTensor& k, const ConstTensor& v, RowSpans spans, const KvCache& cache) override {
    cpu::KvAppend(context_, k, v, spans, cache);
  }

  void DoKvAttention(const ConstTensor& q, RowSpans spans, const KvCache& cache, int head_size,
                     const Tensor& out) override {
    cpu::KvAttention(context_, q, spans, cache, head_size, out);
  }

  void DoSample(const ConstTensor& logits, int64_t limit, absl::Span<const int32_t> holes,
                absl::Span<const SampleRow> rows, absl::Span<int32_t> tokens) override {
    cpu::Sample(context_, logits, limit, holes, rows, tokens);
  }

  const int threads_;  // the most
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
