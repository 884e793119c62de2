// Where the time of a model goes on the CPU: seconds of each op in pre-fill and in decoding, and how much of that time
// threads were idle.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/functional/function_ref.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/types/span.h"
#include "base/status.h"
#include "kernels/cpu/cpu_backend.h"
#include "tests/bench/ceilings.h"
#include "worker/stage/engine.h"
#include "worker/stage/gold_tiers.h"

namespace goldfinch {
namespace {

// The cost of an op, or of a whole phase.
struct Cost {
  double seconds = 0;
  double idle_seconds = 0;  // of all threads together
  int64_t calls = 0;
  int64_t units = 0;  // rows, or positions that are read

  Cost& operator-=(const Cost& other) {
    seconds -= other.seconds;
    idle_seconds -= other.idle_seconds;
    return *this;
  }
};

// Op, and for products the inputs and outputs of the weight.
struct OpKey {
  std::string op;
  std::string unit;
  int64_t in = 0;
  int64_t out = 0;
  auto operator<=>(const OpKey&) const = default;

  std::string ToString() const { return in == 0 ? op : absl::StrCat(op, " ", in, " x ", out); }
};

// A clock over the threads of a CPU back end.
class Stopwatch {
 public:
  explicit Stopwatch(const Backend& cpu) : cpu_(cpu), times_(CpuThreadTimes(cpu)), start_(Now()) {}

  void AddTo(Cost& cost) const {
    const double seconds = Now() - start_;
    const cpu::ThreadPool::Times times = CpuThreadTimes(cpu_);
    cost.seconds += seconds;
    cost.idle_seconds += (cpu_.threads() - 1) * seconds -
                         1e-9 * static_cast<double>(times.working_ns - times_.working_ns) +
                         1e-9 * static_cast<double>(times.waiting_ns - times_.waiting_ns);
  }

 private:
  const Backend& cpu_;
  const cpu::ThreadPool::Times times_;
  const double start_;
};

int64_t RowsOf(RowSpans spans) {
  int64_t rows = 0;
  for (const RowSpan& span : spans) rows += span.row_count;
  return rows;
}

int64_t PositionsOf(RowSpans spans) {
  int64_t positions = 0;
  for (const RowSpan& span : spans) positions += span.position + span.row_count;
  return positions;
}

// The CPU back end, each op of which is timed.
class ProfiledBackend : public Backend {
 public:
  explicit ProfiledBackend(int threads) : ProfiledBackend(MakeCpuBackend(threads)) {}

  const Backend& cpu() const { return *cpu_; }
  std::map<OpKey, Cost>& costs() { return costs_; }

  std::string Describe() const override { return cpu_->Describe(); }
  int threads() const override { return cpu_->threads(); }
  uint64_t progress() const override { return cpu_->progress(); }
  bool multiplies_quantized() const override { return cpu_->multiplies_quantized(); }
  int64_t FreeBytes() const override { return cpu_->FreeBytes(); }
  int64_t TotalBytes() const override { return cpu_->TotalBytes(); }
  OpMemory PlanOps(int64_t width, int64_t vocab_size) const override { return cpu_->PlanOps(width, vocab_size); }
  DeviceKind kind() const override { return cpu_->kind(); }
  bool reads_weights_in_place() const override { return cpu_->reads_weights_in_place(); }
  bool host_accessible() const override { return cpu_->host_accessible(); }
  absl::Status Synchronize() override { return cpu_->Synchronize(); }
  void Submit(bool repeats, absl::FunctionRef<void()> ops) override { cpu_->Submit(repeats, ops); }
  Queue& queue() override { return cpu_->queue(); }
  std::unique_ptr<Queue> MakeQueue() override { return cpu_->MakeQueue(); }
  absl::Status status() const override { return cpu_->status(); }
  int64_t GoldSharedPageBytes(int64_t width, absl::Span<const GoldKvWeights> layers, int head_size,
                              int64_t page_tokens) const override {
    return cpu_->GoldSharedPageBytes(width, layers, head_size, page_tokens);
  }
  bool can_sample(int64_t vocab) const override { return cpu_->can_sample(vocab); }

 private:
  absl::StatusOr<std::shared_ptr<void>> DoAllocate(int64_t bytes, std::string_view purpose) override {
    return cpu_->Allocate(bytes, purpose);
  }
  absl::StatusOr<std::shared_ptr<void>> DoAllocateStaging(int64_t bytes, std::string_view purpose) override {
    return cpu_->AllocateStaging(bytes, purpose);
  }
  void DoCopyFromHost(const void* host, const Tensor& to) override {
    Time({"CopyFromHost", ""}, 0, [&] { cpu_->CopyFromHost(host, to); });
  }
  void DoCopyToHost(const ConstTensor& from, void* host) override {
    Time({"CopyToHost", ""}, 0, [&] { cpu_->CopyToHost(from, host); });
  }
  void DoZero(const Tensor& tensor) override {
    Time({"Zero", ""}, 0, [&] { cpu_->Zero(tensor); });
  }
  void DoCopy(const ConstTensor& from, const Tensor& to) override {
    Time({"Copy", ""}, 0, [&] { cpu_->Copy(from, to); });
  }
  void DoEmbed(const ConstTensor& table, absl::Span<const int32_t> ids, const Tensor& out) override {
    Time({"Embed", "row"}, out.dim(0), [&] { cpu_->Embed(table, ids, out); });
  }
  void DoCopyRows(const ConstTensor& from, absl::Span<const RowCopy> copies, const Tensor& to) override {
    Time({"CopyRows", "row"}, static_cast<int64_t>(copies.size()), [&] { cpu_->CopyRows(from, copies, to); });
  }
  void DoConvert(const ConstTensor& from, const Tensor& to) override {
    Time({"Convert", "row"}, from.dim(0), [&] { cpu_->Convert(from, to); });
  }
  void DoGroupNorm(const ConstTensor& x, int groups, const NormWeights& norm, float epsilon, const ConstTensor& gate,
                   const Tensor& out) override {
    Time({"GroupNorm", "row"}, x.dim(0), [&] { cpu_->GroupNorm(x, groups, norm, epsilon, gate, out); });
  }
  void DoMatMul(const ConstTensor& x, const Matrix& weight, const Epilogue& epilogue, const Tensor& out) override {
    Time({"MatMul", "row", weight.in(), weight.out()}, x.dim(0), [&] { cpu_->MatMul(x, weight, epilogue, out); });
  }
  void DoTokenShift(const ConstTensor& x, RowSpans spans, const Tensor& shift, const ConstTensor& mix,
                    const Tensor& out) override {
    Time({"TokenShift", "row"}, x.dim(0), [&] { cpu_->TokenShift(x, spans, shift, mix, out); });
  }
  void DoDdLerp(const ConstTensor& x, RowSpans spans, const Tensor& shift, const DdLerpWeights& weights,
                const Tensor& out) override {
    Time({"DdLerp", "row"}, x.dim(0), [&] { cpu_->DdLerp(x, spans, shift, weights, out); });
  }
  void DoWkvForward(const ConstTensor& r, const ConstTensor& k, const ConstTensor& v, const ConstTensor& w,
                    const ConstTensor& bonus, RowSpans spans, const Tensor& state, const WkvOptions& options,
                    const Tensor& out) override {
    Time({"WkvForward", "row"}, r.dim(0), [&] { cpu_->WkvForward(r, k, v, w, bonus, spans, state, options, out); });
  }
  void DoGoldAppend(absl::Span<const int32_t> ids, const ConstTensor& c, RowSpans spans,
                    const GoldCache& cache) override {
    Time({"GoldAppend", "row"}, c.dim(0), [&] { cpu_->GoldAppend(ids, c, spans, cache); });
  }
  void DoGoldKeyTableRows(absl::Span<const int32_t> ids, const ConstTensor& embedding, const NormWeights& ln0,
                          const Matrix& key_x0, const Tensor& table) override {
    Time({"GoldKeyTableRows", "id"}, static_cast<int64_t>(ids.size()),
         [&] { cpu_->GoldKeyTableRows(ids, embedding, ln0, key_x0, table); });
  }
  void DoGoldMixTableRows(absl::Span<const int32_t> ids, const ConstTensor& embedding, const NormWeights& ln0,
                          const ConstTensor& mix_lora, const Matrix& mix_down, const Tensor& table) override {
    Time({"GoldMixTableRows", "id"}, static_cast<int64_t>(ids.size()),
         [&] { cpu_->GoldMixTableRows(ids, embedding, ln0, mix_lora, mix_down, table); });
  }
  void DoGoldAttention(const ConstTensor& q, RowSpans spans, const GoldSharedWeights& shared,
                       const GoldKvWeights& weights, const GoldCache& cache, int head_size,
                       const Tensor& out) override {
    Time({"GoldAttention", "position"}, PositionsOf(spans),
         [&] { cpu_->GoldAttention(q, spans, shared, weights, cache, head_size, out); });
  }
  void DoGoldMakeKeysValues(RowSpans spans, const GoldSharedWeights& shared, const GoldKvWeights& weights,
                            const GoldCache& cache, int head_size, const KvCache& kv) override {
    Time({"GoldMakeKeysValues", "row"}, RowsOf(spans),
         [&] { cpu_->GoldMakeKeysValues(spans, shared, weights, cache, head_size, kv); });
  }
  void DoGoldMakeSharedRows(RowSpans spans, const GoldSharedWeights& shared, absl::Span<const GoldKvWeights> layers,
                            const GoldCache& cache, int head_size, const GoldSharedRows& rows) override {
    Time({"GoldMakeSharedRows", "row"}, RowsOf(spans),
         [&] { cpu_->GoldMakeSharedRows(spans, shared, layers, cache, head_size, rows); });
  }
  void DoGoldSharedAttention(const ConstTensor& q, RowSpans spans, const GoldSharedWeights& shared,
                             absl::Span<const GoldKvWeights> layers, int layer, const GoldSharedRows& rows,
                             int head_size, const Tensor& out) override {
    Time({"GoldSharedAttention", "position"}, PositionsOf(spans),
         [&] { cpu_->GoldSharedAttention(q, spans, shared, layers, layer, rows, head_size, out); });
  }
  void DoRope(const Tensor& x, RowSpans spans, int head_size, double base) override {
    Time({"Rope", "row"}, x.dim(0), [&] { cpu_->Rope(x, spans, head_size, base); });
  }
  void DoKvAppend(const ConstTensor& k, const ConstTensor& v, RowSpans spans, const KvCache& cache) override {
    Time({"KvAppend", "row"}, k.dim(0), [&] { cpu_->KvAppend(k, v, spans, cache); });
  }
  void DoKvAttention(const ConstTensor& q, RowSpans spans, const KvCache& cache, int head_size,
                     const Tensor& out) override {
    Time({"KvAttention", "position"}, PositionsOf(spans), [&] { cpu_->KvAttention(q, spans, cache, head_size, out); });
  }
  void DoSample(const ConstTensor& logits, int64_t limit, absl::Span<const int32_t> holes,
                absl::Span<const SampleRow> rows, absl::Span<int32_t> tokens) override {
    Time({"Sample", "row"}, logits.dim(0), [&] { cpu_->Sample(logits, limit, holes, rows, tokens); });
  }

  explicit ProfiledBackend(std::unique_ptr<Backend> cpu) : Backend(cpu->activation_dtype()), cpu_(std::move(cpu)) {}

  template <class Op>
  void Time(const OpKey& key, int64_t units, Op op) {
    const Stopwatch stopwatch(*cpu_);
    op();
    Cost& cost = costs_[key];
    stopwatch.AddTo(cost);
    ++cost.calls;
    cost.units += units;
  }

  const std::unique_ptr<Backend> cpu_;
  std::map<OpKey, Cost> costs_;
};

struct Options {
  std::string model;
  std::vector<int64_t> prompts = {512, 4096};
  int64_t decode_tokens = 8;
  int threads = 0;
  std::string gold_tier = "auto";
  int64_t kept_bytes = int64_t{4} << 30;
};

// Runs `phase` and prints what its ops cost.
absl::Status Profile(const std::string& what, int64_t tokens, ProfiledBackend& backend,
                     absl::FunctionRef<absl::Status()> phase) {
  backend.costs().clear();
  const Stopwatch stopwatch(backend.cpu());
  GF_RETURN_IF_ERROR(phase());
  Cost all;
  stopwatch.AddTo(all);
  const int threads = backend.threads();
  absl::PrintF("\n%s: %.4f s, %.2f ms a token, threads idle %.1f %%\n", what, all.seconds,
               all.seconds * 1e3 / static_cast<double>(tokens), 100 * all.idle_seconds / (threads * all.seconds));
  absl::PrintF("  %-22s %7s %9s %7s %14s %20s %18s\n", "op", "calls", "ms", "share", "threads idle",
               "share of all idle", "us");
  std::vector<std::pair<OpKey, Cost>> ops(backend.costs().begin(), backend.costs().end());
  Cost between = all;
  for (const auto& [key, cost] : ops) between -= cost;
  ops.push_back({{"between ops", ""}, between});
  std::sort(ops.begin(), ops.end(), [](const auto& a, const auto& b) { return a.second.seconds > b.second.seconds; });
  for (const auto& [key, cost] : ops) {
    const std::string unit =
        cost.units == 0 ? ""
                        : absl::StrFormat("%.2f a %s", cost.seconds * 1e6 / static_cast<double>(cost.units), key.unit);
    absl::PrintF("  %-22s %7d %9.2f %5.1f %% %12.1f %% %18.1f %% %18s\n", key.ToString(), cost.calls,
                 cost.seconds * 1e3, 100 * cost.seconds / all.seconds,
                 100 * cost.idle_seconds / (threads * cost.seconds),
                 all.idle_seconds > 0 ? 100 * cost.idle_seconds / all.idle_seconds : 0, unit);
  }
  std::fflush(stdout);
  return absl::OkStatus();
}

absl::Status Run(const Options& options) {
  EngineOptions engine_options;
  engine_options.model_path = options.model;
  engine_options.stage.gold_tier = *ParseGoldTier(options.gold_tier);
  engine_options.kept_bytes = options.kept_bytes;
  auto owned = std::make_unique<ProfiledBackend>(options.threads);
  ProfiledBackend& backend = *owned;
  GF_ASSIGN_OR_RETURN(const std::unique_ptr<Engine> engine, Engine::Load(engine_options, std::move(owned)));
  // This reads all weights, so that nothing that follows waits for the file.
  GF_RETURN_IF_ERROR(engine->VerifyWeights(/*checksums=*/false, nullptr).status());
  absl::PrintF("%s, %s\n", options.model, backend.Describe());

  std::mt19937 random(1);
  std::vector<int32_t> ids(*std::max_element(options.prompts.begin(), options.prompts.end()) + 1 +
                           options.decode_tokens);
  for (int32_t& id : ids) id = static_cast<int32_t>(random() % engine->shape().vocab_size);
  const auto all_ids = absl::MakeConstSpan(ids);
  for (const int64_t prompt : options.prompts) {
    GF_ASSIGN_OR_RETURN(const int slot, engine->stage().Open());
    GF_RETURN_IF_ERROR(Profile(absl::StrFormat("pre-fill of %d tokens", prompt), prompt, backend,
                               [&] { return engine->Prefill(slot, all_ids.first(prompt), [](int64_t) {}).status(); }));
    // The first one warms up: it may have to derive what GOLD layers keep.
    GF_RETURN_IF_ERROR(engine->Decode(slot, ids[prompt]).status());
    GF_RETURN_IF_ERROR(
        Profile(absl::StrFormat("decoding after %d tokens", prompt), options.decode_tokens, backend, [&] {
          for (const int32_t id : all_ids.subspan(prompt + 1, options.decode_tokens)) {
            GF_RETURN_IF_ERROR(engine->Decode(slot, id).status());
          }
          return absl::OkStatus();
        }));
    engine->stage().Close(slot);
  }
  return absl::OkStatus();
}

}  // namespace
}  // namespace goldfinch

int main(int argc, char** argv) {
  goldfinch::Options options;
  CLI::App app("Where the time of a model goes on the CPU, op by op.", "op_profile");
  app.add_option("--model", options.model, "checkpoint")->required();
  app.add_option("--prompts", options.prompts, "prompt lengths, tokens")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  app.add_option("--decode-tokens", options.decode_tokens, "tokens to decode after each")
      ->check(CLI::Range(1, 100000))
      ->capture_default_str();
  app.add_option("--threads", options.threads, "threads; 0: one per core")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
  app.add_option("--gold-tier", options.gold_tier, "the most that GOLD layers keep: compressed, shared, full or auto")
      ->check(CLI::IsMember({"auto", "compressed", "shared", "full"}))
      ->capture_default_str();
  app.add_option("--kept-bytes", options.kept_bytes, "memory for it")
      ->check(CLI::Range(int64_t{0}, int64_t{1} << 50))
      ->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  const absl::Status status = goldfinch::Run(options);
  if (!status.ok()) std::fprintf(stderr, "op_profile: %s\n", std::string(status.message()).c_str());
  return status.ok() ? 0 : 1;
}
