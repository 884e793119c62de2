// What the engine does with whole models, beside what the machine could do: each figure beside its ceiling, measured in
// the same run. One model after another, by default all parts of each; one table at the end, in Markdown.
//
// decode: one sequence, tokens 64 to 112 of it, at the median time of a token. What it must touch: every weight but the
//   embedding once, of weights that lie by inputs (kernels/quantize.h) the inputs that are not zero (counted on the
//   same tokens) and all scales; the sequence's states, read and written; keys and values that GOLD layers keep of the
//   context, read. Weights that lie by outputs count whole: a cache line has 32 inputs of bf16, some of them not zero.
//   The ceiling is the rate of reading so many bytes of memory. Activations, and tables by token id, are not counted.
// prefill: prompts in steps of 512. The ceiling is oneDNN's product [512, D] x [D, 3.5 D]: of fp32, and for quantized
//   models of u8 by s8. What counts are the multiply-adds of products of Finch-side layers, whatever their type.
// flat: what a token of a prompt costs when so many are before it, beside the same at 1,024. A long prompt is read; at
//   each length steps of it alternate with steps of a short one, so that no disturbance meets one of them alone. To
//   the median step comes what the GOLD layers take at the end of such a prompt, shared out among its tokens.
// batch: 64 sequences of 64 tokens, one more token of each in one step, beside one more of one.
// tiers: what a position of context costs a decoded token in all GOLD layers, by what is kept
// (worker/stage/gold_tiers.h),
//   from two sequences in turns. The ceilings: for keys and values the rate of reading memory, else that of oneDNN's
//   fp32 product for the multiply-adds that rebuild them. Once, with the model that reads prompts fastest.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "base/check.h"
#include "base/status.h"
#include "nlohmann/json.hpp"
#include "tests/bench/ceilings.h"
#include "tests/bench/harness.h"
#include "tests/bench/machine.h"
#include "tests/bench/model_costs.h"
#include "worker/model/fake_device.h"
#include "worker/stage/engine.h"
#include "worker/stage/gold_tiers.h"

namespace goldfinch {
namespace {

constexpr int64_t kStep = 512;          // tokens of a prompt in one step
constexpr int64_t kShortContext = 64;   // before the tokens that are decoded
constexpr int64_t kFirstLength = 1024;  // where a prompt's token has its first price
constexpr int kPairs = 6;               // of steps in turns
constexpr int kBatch = 64;
constexpr int kDecodesInTurns = 8;
constexpr double kNotMeasured = std::numeric_limits<double>::quiet_NaN();

struct Options {
  std::vector<std::string> models;
  std::vector<std::string> parts = {"decode", "prefill", "flat", "batch", "tiers"};
  std::vector<int64_t> prompts = {512, 4096};
  std::vector<int64_t> lengths = {4096, 16384, 65536};
  double flat_seconds = 300;
  int64_t context = 4096;
  int64_t decode_tokens = 48;
  int threads = 0;
  std::string gold_tier = "auto";
  int64_t kept_bytes = int64_t{4} << 30;
  std::string json;

  bool Has(const std::string& part) const { return std::find(parts.begin(), parts.end(), part) != parts.end(); }
};

// Bytes of one position in all GOLD layers, as the full tier keeps keys and values on a CPU.
double KeyValueBytes(const ModelShape& shape) {
  return 2.0 * sizeof(float) * static_cast<double>(shape.width * shape.gold_layers());
}

// Counts how many inputs of products with input-major quantized weights are not zero.
class CountingDevice : public FakeDevice {
 public:
  explicit CountingDevice(int threads) : FakeDevice(MakeCpuBackend(threads)) {}

  void DoMatMul(const ConstTensor& x, const Matrix& weight, const Epilogue& epilogue, const Tensor& out) override {
    if (counts_ && IsQuantized(weight.data.dtype) && weight.layout == Matrix::Layout::kInOut) {
      values_.resize(x.shape.elements());
      CopyToHost(x, values_.data());
      all_ += static_cast<double>(values_.size());
      for (const float value : values_) nonzero_ += value != 0 ? 1 : 0;
    }
    FakeDevice::DoMatMul(x, weight, epilogue, out);
  }

  void Count() { counts_ = true; }
  double share() const { return all_ > 0 ? nonzero_ / all_ : 1; }

 private:
  bool counts_ = false;
  double all_ = 0, nonzero_ = 0;
  std::vector<float> values_;
};

// One model's part of the bench.
class ModelBench {
 public:
  ModelBench(const Options& options, std::string path, std::string name, Figures& figures)
      : options_(options), path_(std::move(path)), name_(std::move(name)), figures_(figures) {}

  absl::Status Run() {
    GF_ASSIGN_OR_RETURN(checkpoint_, Checkpoint::Open(path_));
    file_bytes_ = static_cast<double>(checkpoint_->file_bytes());
    for (const CheckpointTensor& tensor : checkpoint_->tensors()) {
      if (IsQuantized(tensor.data.dtype)) dtype_ = std::max(dtype_, tensor.data.dtype);
    }
    GF_RETURN_IF_ERROR(Alone());
    if (options_.Has("flat")) GF_RETURN_IF_ERROR(Flat());
    if (options_.Has("batch")) GF_RETURN_IF_ERROR(Batch());
    return absl::OkStatus();
  }

  absl::Status Tiers();

  double prompt_rate() const { return prompt_rate_; }
  nlohmann::json Shape() const {
    return {{"path", path_},
            {"layers", shape_.layers()},
            {"gold_layers", shape_.gold_layers()},
            {"width", shape_.width},
            {"vocab_size", shape_.vocab_size},
            {"file_bytes", checkpoint_->file_bytes()},
            {"decode_weight_bytes", costs_.decode_bytes},
            {"prefill_flops", costs_.prefill_flops}};
  }

 private:
  bool quantized() const { return IsQuantized(dtype_); }
  void Add(const std::string& row, double value, int decimals, Aim aim = {}) {
    std::fprintf(stderr, "%s: %s: %.*f\n", name_.c_str(), row.c_str(), decimals, value);
    figures_.Add(row, name_, value, decimals, aim);
  }

  absl::StatusOr<std::unique_ptr<Engine>> Load(int sequences, int64_t tokens, const std::string& tier,
                                               std::unique_ptr<Backend> backend = nullptr) {
    EngineOptions options;
    options.model_path = path_;
    options.max_model_len = tokens;
    options.stage.max_sequences = sequences;
    options.stage.max_step_tokens = kStep;
    options.stage.gold_tier = *ParseGoldTier(tier);
    options.kept_bytes = options_.kept_bytes;
    if (!backend) backend = MakeCpuBackend(options_.threads);
    GF_ASSIGN_OR_RETURN(std::unique_ptr<Engine> engine, Engine::Load(options, std::move(backend)));
    shape_ = engine->shape();
    if (static_cast<int64_t>(ids_.size()) < tokens) {
      std::mt19937 random(1);
      ids_.resize(tokens);
      for (int32_t& id : ids_) id = static_cast<int32_t>(random() % shape_.vocab_size);
    }
    return engine;
  }
  absl::Span<const int32_t> Ids(int64_t first, int64_t count) const {
    GF_CHECK_LE(first + count, static_cast<int64_t>(ids_.size()));
    return absl::MakeSpan(ids_).subspan(first, count);
  }

  // Seconds of one step.
  static absl::StatusOr<double> Time(Engine& engine, absl::Span<const Chunk> chunks) {
    StageOutput output;
    const double start = Now();
    GF_RETURN_IF_ERROR(engine.stage().Forward(chunks, {}, &output));
    return Now() - start;
  }
  absl::StatusOr<double> TimeStep(Engine& engine, int slot) const {
    const Chunk chunk{slot, Ids(engine.stage().position(slot), kStep), 0};
    return Time(engine, {&chunk, 1});
  }
  absl::StatusOr<double> TimeDecode(Engine& engine, int slot) const {
    const Chunk chunk{slot, Ids(engine.stage().position(slot), 1), 1};
    return Time(engine, {&chunk, 1});
  }
  // A new sequence of so many tokens.
  absl::StatusOr<int> OpenAt(Engine& engine, int64_t tokens) const {
    GF_ASSIGN_OR_RETURN(const int slot, engine.stage().Open());
    GF_RETURN_IF_ERROR(engine.Prefill(slot, Ids(0, tokens), [](int64_t) {}).status());
    return slot;
  }

  absl::Status Alone();
  absl::Status Decode(Engine& engine);
  absl::Status Prompts(Engine& engine);
  absl::StatusOr<double> ShareNotZero();
  absl::Status Flat();
  absl::StatusOr<double> TailSeconds(Engine& engine, int slot) const;
  absl::Status Batch();

  const Options& options_;
  const std::string path_, name_;
  Figures& figures_;
  std::unique_ptr<Checkpoint> checkpoint_;
  DType dtype_ = DType::kBf16;  // of the quantized matrices, if there are any
  double file_bytes_ = 0;
  ModelShape shape_;
  ModelCosts costs_;
  std::vector<int32_t> ids_;
  double prompt_rate_ = 0;  // tokens a second
  bool forgot_peak_ = false;
};

// One sequence at a time.
absl::Status ModelBench::Alone() {
  forgot_peak_ = ForgetPeakMemory();
  const double start = Now();
  GF_ASSIGN_OR_RETURN(const std::unique_ptr<Engine> engine, Load(1, int64_t{1} << 20, options_.gold_tier));
  GF_RETURN_IF_ERROR(engine->VerifyWeights(/*checksums=*/true, nullptr).status());
  const double seconds = Now() - start;
  costs_ = CostsOf(*checkpoint_, shape_);
  Add("load, every weight checked, s", seconds, 2);
  Add("the same, GB/s", file_bytes_ / seconds / 1e9, 1);
  if (options_.Has("decode")) GF_RETURN_IF_ERROR(Decode(*engine));
  if (options_.Has("prefill")) GF_RETURN_IF_ERROR(Prompts(*engine));
  return absl::OkStatus();
}

absl::StatusOr<double> ModelBench::ShareNotZero() {
  if (costs_.by_input_bytes == 0) return 1;
  auto device = std::make_unique<CountingDevice>(options_.threads);
  CountingDevice& counts = *device;
  GF_ASSIGN_OR_RETURN(const std::unique_ptr<Engine> engine, Load(1, 1 << 10, "compressed", std::move(device)));
  GF_ASSIGN_OR_RETURN(const int slot, OpenAt(*engine, kShortContext));
  counts.Count();
  for (int i = 0; i < 4; ++i) GF_RETURN_IF_ERROR(TimeDecode(*engine, slot).status());
  return counts.share();
}

absl::Status ModelBench::Decode(Engine& engine) {
  std::vector<double> seconds;
  // A whole step first: what it takes is in the peak.
  GF_ASSIGN_OR_RETURN(const int prompt, OpenAt(engine, kStep));
  engine.stage().Close(prompt);
  GF_ASSIGN_OR_RETURN(const int slot, OpenAt(engine, kShortContext));
  for (int64_t i = 0; i < options_.decode_tokens; ++i) {
    GF_ASSIGN_OR_RETURN(seconds.emplace_back(), TimeDecode(engine, slot));
  }
  const bool kept =
      engine.stage().gold_tiers() != nullptr && engine.stage().gold_tiers()->tier(slot) == GoldTier::kFull;
  engine.stage().Close(slot);
  const double peak = forgot_peak_ ? static_cast<double>(ProcessBytes("VmHWM")) : kNotMeasured;

  GF_ASSIGN_OR_RETURN(const double share, ShareNotZero());
  double touched =
      costs_.decode_bytes - costs_.by_input_bytes * (1 - share) + 2 * static_cast<double>(shape_.StateBytes());
  const double context = static_cast<double>(kShortContext) + static_cast<double>(options_.decode_tokens) / 2;
  if (kept) touched += context * KeyValueBytes(shape_);
  const double reading = ReadBytesPerSecond(engine.backend().threads(), static_cast<int64_t>(touched));
  const double rate = 1 / Median(seconds);
  const Aim aim = dtype_ == DType::kInt8 ? Aim{.low = 10} : dtype_ == DType::kInt4 ? Aim{.low = 15} : Aim{};
  Add(absl::StrFormat("decode, %d to %d tokens of context, tokens/s", kShortContext,
                      kShortContext + options_.decode_tokens),
      rate, 2, aim);
  if (share < 1) Add("inputs of ffn.value that are not zero", share, 3);
  Add("bytes that a token must touch, GB", touched / 1e9, 3);
  Add("reading memory, GB/s", reading / 1e9, 1);
  Add("decode, of reading those bytes", rate * touched / reading, 2, {.low = 0.85});
  Add("peak memory, GB", peak / 1e9, 2);
  Add("peak memory, of the file", peak / file_bytes_, 2, {.high = 1.2});
  return absl::OkStatus();
}

absl::Status ModelBench::Prompts(Engine& engine) {
  const Aim aim = quantized() ? Aim{.low = 220} : Aim{.low = 80};
  double product = OneDnnFlopsPerSecond(kStep, shape_.width, quantized());
  for (const int64_t tokens : options_.prompts) {
    std::vector<double> seconds;
    do {
      const double start = Now();
      GF_ASSIGN_OR_RETURN(const int slot, OpenAt(engine, tokens));
      seconds.push_back(Now() - start);
      engine.stage().Close(slot);
    } while (static_cast<int64_t>(seconds.size()) * tokens < 3 * kStep);
    prompt_rate_ = static_cast<double>(tokens) / Median(seconds);
    Add(absl::StrCat("pre-fill, ", tokens, " tokens, tokens/s"), prompt_rate_, 1, aim);
  }
  product = std::max(product, OneDnnFlopsPerSecond(kStep, shape_.width, quantized()));
  Add("oneDNN's product, fp32 or u8s8, GFLOP/s", product / 1e9, 0);
  Add("pre-fill, of that product", prompt_rate_ * costs_.prefill_flops / product, 2,
      quantized() ? Aim{} : Aim{.low = 0.7});
  return absl::OkStatus();
}

// What the GOLD layers take at the end of the prompt that `slot` has read: the first token decoded, less the next.
absl::StatusOr<double> ModelBench::TailSeconds(Engine& engine, int slot) const {
  GF_ASSIGN_OR_RETURN(const int copy, engine.stage().Fork(slot));
  GF_ASSIGN_OR_RETURN(const double first, TimeDecode(engine, copy));
  std::vector<double> others;
  for (int i = 0; i < 3; ++i) {
    GF_ASSIGN_OR_RETURN(others.emplace_back(), TimeDecode(engine, copy));
  }
  engine.stage().Close(copy);
  return std::max(0.0, first - Median(others));
}

absl::Status ModelBench::Flat() {
  const int64_t longest = *std::max_element(options_.lengths.begin(), options_.lengths.end());
  GF_ASSIGN_OR_RETURN(const std::unique_ptr<Engine> engine,
                      Load(4, longest + (kPairs + 1) * kStep, options_.gold_tier));
  Stage& stage = engine->stage();
  GF_ASSIGN_OR_RETURN(const int prompt, stage.Open());
  GF_ASSIGN_OR_RETURN(const int before, stage.Open());  // a step before where tokens have their first price
  while (stage.position(before) < kFirstLength - kStep) GF_RETURN_IF_ERROR(TimeStep(*engine, before).status());
  const double start = Now();
  for (const int64_t length : options_.lengths) {
    // Half of the steps in turns come before the length, half after.
    const int64_t from = length - kPairs / 2 * kStep;
    // One step costs what the last did, or a little more.
    const double elapsed = Now() - start, read = static_cast<double>(stage.position(prompt));
    const std::string row = absl::StrCat("a prompt's token at ", length, ", of one at ", kFirstLength);
    const Aim aim = {.low = 0.95, .high = 1.05};
    if (read > 0 && elapsed * static_cast<double>(length) / read > options_.flat_seconds) {
      Add(row, kNotMeasured, 3, aim);
      continue;
    }
    while (stage.position(prompt) < from) GF_RETURN_IF_ERROR(TimeStep(*engine, prompt).status());
    std::vector<double> ratios, shorts, tails;
    double tail = 0;
    for (int pair = 0; pair < kPairs; ++pair) {
      GF_ASSIGN_OR_RETURN(const int other, stage.Fork(before));
      GF_ASSIGN_OR_RETURN(const double short_step, TimeStep(*engine, other));
      GF_ASSIGN_OR_RETURN(const double step, TimeStep(*engine, prompt));
      ratios.push_back(step / short_step);
      shorts.push_back(short_step);
      GF_ASSIGN_OR_RETURN(tails.emplace_back(), TailSeconds(*engine, other));
      stage.Close(other);
      if (stage.position(prompt) == length) {
        GF_ASSIGN_OR_RETURN(tail, TailSeconds(*engine, prompt));
      }
    }
    const double step = Median(shorts) / kStep;
    const double cost = step * Median(ratios) + tail / static_cast<double>(length);
    Add(row, cost / (step + Median(tails) / static_cast<double>(kFirstLength)), 3, aim);
    Add(absl::StrCat("GOLD layers at the end of ", length, " tokens, s"), tail, 2);
  }
  return absl::OkStatus();
}

absl::Status ModelBench::Batch() {
  GF_ASSIGN_OR_RETURN(const std::unique_ptr<Engine> engine, Load(kBatch, 2 * kShortContext, options_.gold_tier));
  std::vector<Chunk> chunks;
  for (int i = 0; i < kBatch; ++i) {
    GF_ASSIGN_OR_RETURN(const int slot, engine->stage().Open());
    chunks.push_back({slot, Ids(0, kShortContext), 1});
    if (static_cast<int64_t>(chunks.size()) * kShortContext < kStep) continue;
    GF_RETURN_IF_ERROR(Time(*engine, chunks).status());
    chunks.clear();
  }
  std::vector<double> one, all;
  for (int i = 0; i < kDecodesInTurns; ++i) {
    chunks.clear();
    for (int slot = 0; slot < kBatch; ++slot) {
      chunks.push_back({slot, Ids((i * kBatch + slot) % kShortContext, 1), 1});
    }
    GF_ASSIGN_OR_RETURN(all.emplace_back(), Time(*engine, chunks));
    GF_ASSIGN_OR_RETURN(one.emplace_back(), Time(*engine, absl::MakeSpan(chunks).first(1)));
  }
  Add(absl::StrCat("decode, ", kBatch, " sequences, tokens/s"), kBatch / Median(all), 1);
  Add(absl::StrCat("decode, ", kBatch, " sequences, of one"), kBatch * Median(one) / Median(all), 2, {.low = 8});
  return absl::OkStatus();
}

absl::Status ModelBench::Tiers() {
  if (shape_.gold_layers() == 0) return absl::OkStatus();
  struct Tier {
    const char* option;
    const char* name;
    GoldTier tier;
    double flops;
  };
  for (const auto& [option, name, tier, flops] :
       {Tier{"full", "full", GoldTier::kFull, 0}, Tier{"shared", "shared", GoldTier::kShared, costs_.gold_spread_flops},
        Tier{"compressed", "compressed", GoldTier::kCompressed, costs_.gold_rebuild_flops}}) {
    const double product = OneDnnFlopsPerSecond(kStep, shape_.width, /*quantized=*/false);
    GF_ASSIGN_OR_RETURN(const std::unique_ptr<Engine> engine,
                        Load(2, options_.context + 2 * kStep + kDecodesInTurns, option));
    GF_ASSIGN_OR_RETURN(const int near, OpenAt(*engine, kStep));
    GF_ASSIGN_OR_RETURN(const int far, OpenAt(*engine, kStep + options_.context));
    std::vector<double> seconds;
    for (int i = 0; i < kDecodesInTurns; ++i) {
      GF_ASSIGN_OR_RETURN(const double near_seconds, TimeDecode(*engine, near));
      GF_ASSIGN_OR_RETURN(const double far_seconds, TimeDecode(*engine, far));
      seconds.push_back(far_seconds - near_seconds);
    }
    const GoldTiers& tiers = *engine->stage().gold_tiers();
    const bool at_tier = tiers.tier(near) == tier && tiers.tier(far) == tier;
    const double position = at_tier ? Median(seconds) / static_cast<double>(options_.context) : kNotMeasured;
    double least = flops / std::max(product, OneDnnFlopsPerSecond(kStep, shape_.width, /*quantized=*/false));
    if (flops == 0) {
      const double bytes = KeyValueBytes(shape_);
      const double read = bytes * static_cast<double>(options_.context);
      least = bytes / ReadBytesPerSecond(engine->backend().threads(), static_cast<int64_t>(read));
    }
    Add(absl::StrCat("decode, ", name, ", a position of context, us"), position * 1e6, 2);
    Add(absl::StrCat("its ceiling, ", flops == 0 ? "keys and values read" : "rebuilding at oneDNN's fp32 rate",
                     ", us, ", name),
        least * 1e6, 2);
    Add(absl::StrCat("of its ceiling, ", name), least / position, 2);
  }
  return absl::OkStatus();
}

// "int8" of ".../model-int8.safetensors": what the names do not share.
std::vector<std::string> ShortNames(const std::vector<std::string>& paths) {
  std::vector<std::string> names;
  for (const std::string& path : paths) {
    const std::string stem = std::filesystem::path(path).stem();
    names.push_back(stem.substr(stem.rfind('-') + 1));
  }
  for (size_t i = 0; i < names.size(); ++i) {
    if (std::count(names.begin(), names.end(), names[i]) > 1) return paths;
  }
  return names;
}

absl::Status Run(const Options& options) {
  for (size_t i = 0; i < options.lengths.size(); ++i) {
    if (options.lengths[i] % kStep == 0 && (i == 0 || options.lengths[i] > options.lengths[i - 1])) continue;
    return absl::InvalidArgumentError(
        absl::StrCat("--lengths: ", options.lengths[i], " is no multiple of ", kStep, " above the one before"));
  }
  const std::vector<std::string> names = ShortNames(options.models);
  Figures figures(names);
  std::vector<std::unique_ptr<ModelBench>> models;
  nlohmann::json json;
  for (size_t i = 0; i < names.size(); ++i) {
    models.push_back(std::make_unique<ModelBench>(options, options.models[i], names[i], figures));
    GF_RETURN_IF_ERROR(models.back()->Run());
    json["models"][names[i]] = models.back()->Shape();
  }
  if (options.Has("tiers")) {
    GF_RETURN_IF_ERROR((*std::max_element(models.begin(), models.end(), [](const auto& a, const auto& b) {
                         return a->prompt_rate() < b->prompt_rate();
                       }))->Tiers());
  }
  std::printf("%s", figures.Table().c_str());
  const std::vector<std::string> missed = figures.Missed();
  std::printf("missed: %s\n", missed.empty() ? "nothing" : absl::StrJoin(missed, "; ").c_str());
  json["figures"] = figures.Json();
  json["missed"] = missed;
  return WriteJson(options.json, json);
}

}  // namespace
}  // namespace goldfinch

int main(int argc, char** argv) {
  goldfinch::Options options;
  CLI::App app("Times whole models beside what the machine could do: one table of all of them.", "engine_bench");
  app.add_option("--model", options.models, "checkpoints")->required();
  app.add_option("--parts", options.parts, "what to measure")
      ->check(CLI::IsMember({"decode", "prefill", "flat", "batch", "tiers"}))
      ->capture_default_str();
  app.add_option("--prompts", options.prompts, "prompt lengths, tokens")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 20))
      ->capture_default_str();
  app.add_option("--lengths", options.lengths, "where a long prompt's tokens are timed, ascending, multiples of 512")
      ->check(CLI::Range(int64_t{2048}, int64_t{1} << 20))
      ->capture_default_str();
  app.add_option("--flat-seconds", options.flat_seconds, "longer prompts than can be read in so many are left out")
      ->check(CLI::Range(1.0, 1e6))
      ->capture_default_str();
  app.add_option("--context", options.context, "tokens between the two sequences of the tiers")
      ->check(CLI::Range(int64_t{64}, int64_t{1} << 20))
      ->capture_default_str();
  app.add_option("--decode-tokens", options.decode_tokens, "tokens to decode")
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
  app.add_option("--json", options.json, "a file for all figures, too");
  CLI11_PARSE(app, argc, argv);
  const absl::Status status = goldfinch::Run(options);
  if (!status.ok()) std::fprintf(stderr, "engine_bench: %s\n", std::string(status.message()).c_str());
  return status.ok() ? 0 : 1;
}
