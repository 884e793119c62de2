// A whole model beside what the device can do, both measured in the same run: pre-fill against the rate of a large
// product, decode against the bytes that a step must move, a pipeline of several stages on the one device against a
// single stage. The weights are random: no speed depends on what they say.
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/cleanup/cleanup.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/types/span.h"
#include "base/check.h"
#include "kernels/backend.h"
#include "kernels/open_backend.h"
#include "nlohmann/json.hpp"
#include "spdlog/spdlog.h"
#include "tests/bench/model_costs.h"
#include "tests/bench/random_checkpoint.h"
#include "tests/cluster/local_cluster.h"
#include "tests/gpu/bench.h"
#include "worker/checkpoint/checkpoint.h"
#include "worker/model/model.h"
#include "worker/stage/gold_tiers.h"
#include "worker/stage/stage.h"

namespace goldfinch {
namespace {

struct Options {
  BenchOptions bench;
  std::string model;
  RandomCheckpointSpec spec;
  int64_t chunk_tokens = 8192;
};

template <typename T>
T Value(absl::StatusOr<T> value) {
  GF_CHECK(value.ok()) << value.status();
  return *std::move(value);
}

void Check(const absl::Status& status) { GF_CHECK(status.ok()) << status; }

// A model on the device, and what its speed is held against.
struct TestBed {
  Bench& bench;
  const Options& options;
  std::string path;
  std::shared_ptr<const Checkpoint> checkpoint;
  std::shared_ptr<const Model> model;
  ModelShape shape;
  ModelCosts costs;
  nlohmann::json stage_times = nlohmann::json::array();
  nlohmann::json pipelines = nlohmann::json::array();

  std::vector<int32_t> Ids(int64_t count, uint32_t seed) const {
    std::vector<int32_t> ids(count);
    for (int64_t i = 0; i < count; ++i) {
      const uint32_t bits = RandomBits()[(seed * 7919 + i) % RandomBits().size()];
      ids[i] = static_cast<int32_t>(bits % static_cast<uint32_t>(shape.vocab_size));
    }
    return ids;
  }
};

// A tier of what GOLD layers keep of a sequence, and its name in the table.
struct Tier {
  GoldTier tier;
  const char* name;
};

// All layers in one stage, driven as a server's worker drives it: chunks of a prompt, then a token at a time, each
// drawn on the device.
class SingleStage {
 public:
  SingleStage(TestBed& bed, const StageOptions& options)
      : bed_(bed), backend_(bed.bench.backend()), stage_(Stage::Create(backend_, bed.model, options)) {}

  const absl::Status& status() const { return stage_.status(); }
  Stage& stage() { return **stage_; }

  // The part of the memory that is left which tiers above the compressed one may take.
  void ReserveKept(double share) {
    Check(stage().ReserveKept(static_cast<int64_t>(share * static_cast<double>(backend_.FreeBytes()))));
  }
  int Open() { return Value(stage().Open()); }
  // Seconds until the first token is drawn.
  double Prefill(int slot, absl::Span<const int32_t> ids) {
    const double start = Now();
    const auto count = static_cast<int64_t>(ids.size()), most = stage().options().max_step_tokens;
    StageOutput output;
    for (int64_t begin = 0; begin < count; begin += most) {
      const int64_t tokens = std::min(most, count - begin);
      const Chunk chunk{slot, ids.subspan(begin, tokens), begin + tokens == count ? 1 : 0};
      Check(stage().Forward({&chunk, 1}, {}, &output));
    }
    drawn_.resize(1);
    Draw(output);
    return Now() - start;
  }
  // The same for many sequences of the same length at once.
  void PrefillTogether(const std::vector<int>& slots, absl::Span<const int32_t> ids) {
    std::vector<Chunk> chunks;
    for (int slot : slots) chunks.push_back({slot, ids, 1});
    StageOutput output;
    Check(stage().Forward(chunks, {}, &output));
    drawn_.resize(slots.size());
    Draw(output);
  }
  // Seconds of a step in which every slot takes the token that was drawn for it: a median.
  double Decode(const std::vector<int>& slots, int steps) {
    std::vector<double> seconds;
    std::vector<Chunk> chunks(slots.size());
    StageOutput output;
    for (int step = 0; step < steps; ++step) {
      const double start = Now();
      for (size_t i = 0; i < slots.size(); ++i) chunks[i] = {slots[i], {&drawn_[i], 1}, 1};
      Check(stage().Forward(chunks, {}, &output));
      Draw(output);
      seconds.push_back(Now() - start);
    }
    return Median(seconds);
  }

 private:
  void Draw(const StageOutput& output) {
    how_.assign(drawn_.size(), {.temperature = 0});
    backend_.Sample(output.logits, bed_.shape.vocab_size, {}, how_, absl::MakeSpan(drawn_));
  }

  TestBed& bed_;
  Backend& backend_;
  absl::StatusOr<std::unique_ptr<Stage>> stage_;
  std::vector<int32_t> drawn_;  // one a slot
  std::vector<SampleRow> how_;
};

StageOptions OneSequence(const TestBed& bed, int64_t tokens) {
  return {.max_sequence_tokens = tokens,
          .cache_tokens = tokens,
          .max_step_tokens = bed.bench.Size(bed.options.chunk_tokens, 32),
          .max_logit_rows = 1};
}

// --- One stage -------------------------------------------------------------------------------------------------------

// A server that has run for a while has met every id: what stages keep by id is there.
void MeetAllIds(TestBed& bed, SingleStage& stage) {
  std::vector<int32_t> ids(bed.shape.vocab_size);
  for (size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<int32_t>(i);
  const int slot = stage.Open();
  stage.Prefill(slot, ids);
  stage.stage().Close(slot);
}

void Prefill(TestBed& bed) {
  if (!bed.bench.Wants("pre-fill, one prompt") && !bed.bench.Wants("resident cache")) return;
  const std::vector<int64_t> lengths = {bed.bench.Size(8 << 10, 64), bed.bench.Size(64 << 10, 128),
                                        bed.bench.Size(1 << 20, 1024)};
  const std::vector<int> repeats = {5, 3, 1};
  const int64_t longest = std::max(lengths.back(), bed.shape.vocab_size);
  SingleStage stage(bed, OneSequence(bed, longest));
  if (!stage.status().ok()) return bed.bench.NotMeasured("pre-fill", stage.status().message());
  MeetAllIds(bed, stage);
  double first_token_seconds = 0;  // a token's, of the first length
  for (size_t i = 0; i < lengths.size(); ++i) {
    const auto tokens = static_cast<double>(lengths[i]);
    const std::vector<int32_t> ids = bed.Ids(lengths[i], static_cast<uint32_t>(i));
    std::vector<double> seconds;
    for (int repeat = 0; repeat < (bed.bench.tiny() ? 1 : repeats[i]); ++repeat) {
      const int slot = stage.Open();
      seconds.push_back(stage.Prefill(slot, ids));
      if (lengths[i] == lengths.back()) {
        const double full = tokens * static_cast<double>(bed.shape.TransformerBytesPerToken());
        const auto kept = static_cast<double>(stage.stage().CacheBytes());
        bed.bench.AddValue(absl::StrCat("resident cache, ", Thousands(lengths[i]), " tokens, keys and values / it"),
                           full / kept, "x", absl::StrFormat("%.1f bytes/token", kept / tokens), 756);
      }
      stage.stage().Close(slot);
    }
    const std::string name = absl::StrCat("pre-fill, one prompt, ", Thousands(lengths[i]));
    const Work work{.operations = bed.costs.prefill_flops * tokens, .tokens = tokens};
    bed.bench.Add(name, Median(seconds), work, Goal::Ceiling(0.7, "the product"));
    if (i == 0) {
      first_token_seconds = Median(seconds) / tokens;
    } else {
      bed.bench.Add(absl::StrCat(name, ", flat"), Median(seconds), work,
                    Goal::Times(1.03, first_token_seconds * tokens, "8k's rate"));
    }
  }
}

void DecodeTogether(TestBed& bed, int sequences, const Goal& goal) {
  const std::string name = absl::StrCat("decode, ", sequences, sequences == 1 ? " sequence" : " sequences", ", short");
  if (!bed.bench.Wants(name)) return;
  constexpr int64_t kContext = 16, kSteps = 64;
  StageOptions options = OneSequence(bed, 4 * kContext + 2 * kSteps);
  options.max_sequences = sequences;
  options.cache_tokens = options.max_sequence_tokens * sequences;
  options.max_step_tokens = kContext * sequences;
  options.max_logit_rows = sequences;
  SingleStage stage(bed, options);
  if (!stage.status().ok()) return bed.bench.NotMeasured(name, stage.status().message());
  stage.ReserveKept(0.25);  // as a server does
  std::vector<int> slots(sequences);
  for (int& slot : slots) slot = stage.Open();
  stage.PrefillTogether(slots, bed.Ids(kContext, 1));
  stage.Decode(slots, bed.bench.tiny() ? 1 : 8);
  const double seconds = stage.Decode(slots, bed.bench.tiny() ? 1 : kSteps);
  // One sequence is held against its weights alone, as its state is a three-hundredth of them.
  const double state_bytes = sequences == 1 ? 0 : 2.0 * sequences * static_cast<double>(bed.shape.StateBytes());
  bed.bench.Add(name, seconds,
                {.bytes = bed.costs.decode_bytes + state_bytes, .tokens = static_cast<double>(sequences)}, goal);
}

// Each tier at each length: what a decoded token takes, and what is kept for it.
void DecodeLong(TestBed& bed) {
  const std::vector<int64_t> lengths = {bed.bench.Size(128 << 10, 128), bed.bench.Size(1 << 20, 320)};
  std::vector<double> full_seconds(lengths.size()), full_bytes(lengths.size());
  for (const Tier& tier :
       {Tier{GoldTier::kCompressed, "compressed"}, Tier{GoldTier::kFull, "full"}, Tier{GoldTier::kShared, "shared"}}) {
    const std::string name = absl::StrCat("decode at ", Thousands(lengths.back()), ", ", tier.name);
    if (!bed.bench.Wants("decode at")) continue;
    StageOptions options = OneSequence(bed, lengths.back() + 4096);
    options.gold_tier = tier.tier;
    SingleStage stage(bed, options);
    if (!stage.status().ok()) {
      bed.bench.NotMeasured(name, stage.status().message());
      continue;
    }
    if (tier.tier != GoldTier::kCompressed) stage.ReserveKept(0.9);
    const int slot = stage.Open();
    const std::vector<int32_t> ids = bed.Ids(lengths.back(), 2);
    for (size_t i = 0; i < lengths.size(); ++i) {
      const int64_t begin = stage.stage().position(slot);
      stage.Prefill(slot, absl::MakeConstSpan(ids).subspan(begin, lengths[i] - begin));
      stage.Decode({slot}, 1);  // derives what is kept
      const double seconds = stage.Decode({slot}, bed.bench.tiny() ? 1 : 8);
      const auto kept = static_cast<double>(stage.stage().gold_tiers()->kept_bytes());
      const double bytes = kept + static_cast<double>(stage.stage().CacheBytes());
      const std::string where = absl::StrCat("decode at ", Thousands(lengths[i]), ", ", tier.name);
      if (stage.stage().gold_tiers()->tier(slot) != tier.tier) {
        bed.bench.NotMeasured(where, "what memory is left holds a lower tier");
        continue;
      }
      const bool shared = tier.tier == GoldTier::kShared && full_seconds[i] > 0;
      bed.bench.Add(absl::StrFormat("%s, %.0f MB kept", where, bytes / 1e6), seconds,
                    {.bytes = bed.costs.decode_bytes + bytes, .tokens = 1},
                    shared ? Goal::Times(1, full_seconds[i], "full") : Goal());
      if (shared) {
        bed.bench.AddValue(absl::StrCat("kept at ", Thousands(lengths[i]), ", full / shared"), full_bytes[i] / kept,
                           "x", "", 8);
      }
      if (tier.tier == GoldTier::kFull) {
        full_seconds[i] = seconds;
        full_bytes[i] = kept;
      }
    }
  }
}

// --- Stages ----------------------------------------------------------------------------------------------------------

std::unique_ptr<Backend> OpenOne(const Options& options) {
  return Value(OpenBackend({.device = options.bench.device, .threads = options.bench.device == "cpu" ? 1 : 0}));
}

// One prompt through the service without its sockets, all stages on this device.
void Pipelines(TestBed& bed) {
  const int64_t tokens = bed.bench.Size(64 << 10, 256);
  double single_seconds = 0;
  for (const int stages : {1, 3, 8}) {
    const std::string name = absl::StrCat("pre-fill through the service, ", Thousands(tokens), ", S = ", stages);
    if (!bed.bench.Wants(name)) continue;
    const auto sized = [&](CoordinatorOptions* options) {
      options->membership.cache_dtype = "bf16";
      options->membership.partition.max_sequences = 1;
      options->membership.partition.max_sequence_tokens = tokens + 64;
      options->membership.partition.cache_tokens = tokens + 64;
      // Chunks enough to keep every stage at work.
      options->membership.partition.max_step_tokens = bed.bench.Size(bed.options.chunk_tokens / 4, 16);
    };
    LocalCluster cluster(bed.path, stages, sized, [&] { return OpenOne(bed.options); });
    cluster.AwaitReady();
    std::vector<double> seconds;
    // The first one meets the ids.
    for (int repeat = 0; repeat < (bed.bench.tiny() ? 2 : 4); ++repeat) {
      const double start = Now();
      const auto request = cluster.Generate(bed.Ids(tokens, 3), 1);
      Check(request->Wait());
      if (repeat > 0) seconds.push_back(Now() - start);
    }
    const double median = Median(seconds);
    if (stages == 1) single_seconds = median;
    bed.bench.Add(
        name, median,
        {.operations = bed.costs.prefill_flops * static_cast<double>(tokens), .tokens = static_cast<double>(tokens)},
        stages == 1 || single_seconds == 0 ? Goal() : Goal::Times(1.05, single_seconds, "S = 1"));
    nlohmann::json entry = {{"stages", stages}, {"tokens", tokens}, {"seconds", median}};
    const v1::GetClusterInfoResponse info = cluster.Info();
    for (const v1::StageInfo& stage : info.groups(0).stages()) {
      entry["by_stage"].push_back({{"first_layer", stage.first_layer()}, {"last_layer", stage.last_layer()}});
    }
    bed.pipelines.push_back(entry);
  }
}

// Each stage of a split alone on the device, for a chunk of a long prompt: what tests/gpu/scaling.py computes pipelines
// of several devices from. The Finch-side layers are dealt out evenly, the GOLD layers go with the last of them.
void StageTimes(TestBed& bed) {
  if (!bed.bench.Wants("a chunk's time, stage")) return;
  Backend& backend = bed.bench.backend();
  const int64_t tokens = bed.bench.Size(bed.options.chunk_tokens, 32), width = bed.shape.width;
  const int finch = bed.shape.finch_layers();
  for (const int stages : {1, 2, 4, 8}) {
    if (finch % stages != 0) continue;
    nlohmann::json entry = {{"stages", stages},
                            {"chunk_tokens", tokens},
                            {"seconds", nlohmann::json::array()},
                            {"sent_bytes", nlohmann::json::array()}};
    for (int s = 0; s < stages; ++s) {
      const int first = finch / stages * s, last = s + 1 == stages ? -1 : finch / stages * (s + 1);
      const std::string name = absl::StrCat("a chunk's time, stage ", s + 1, " of ", stages);
      const auto model = LoadModel(backend, bed.checkpoint, {}, first, last);
      if (!model.ok()) return bed.bench.NotMeasured(name, model.status().message());
      constexpr int kChunks = 10;
      StageOptions options = OneSequence(bed, std::max(kChunks * tokens, bed.shape.vocab_size));
      const auto stage = Stage::Create(backend, *model, options);
      Memory memory(backend);
      const Tensor rows = memory.F32({tokens, width}), hidden = memory.New(DType::kF32, {tokens, width});
      if (!stage.ok()) return bed.bench.NotMeasured(name, stage.status().message());
      if (!memory.status().ok()) return bed.bench.NotMeasured(name, memory.status().message());
      const int slot = Value((*stage)->Open());
      std::vector<double> seconds;
      const std::vector<int32_t> ids = bed.Ids(tokens, 4);
      for (int chunk = 0; chunk < kChunks; ++chunk) {
        StageInput input;
        if (first > 0) {
          backend.Copy(rows, hidden);
          input.hidden = hidden;
        }
        Check(backend.Synchronize());
        const double start = Now();
        const Chunk one{slot, ids, 0};
        StageOutput output;
        Check((*stage)->Forward({&one, 1}, input, &output));
        Check(backend.Synchronize());
        seconds.push_back(Now() - start);
      }
      const double median = Median(seconds);
      bed.bench.Add(name, median, {.tokens = static_cast<double>(tokens)}, {});
      entry["seconds"].push_back(median);
      entry["sent_bytes"].push_back(s + 1 == stages ? 0 : tokens * width * 4);
    }
    bed.stage_times.push_back(entry);
  }
}

// --- The table -------------------------------------------------------------------------------------------------------

void Run(TestBed& bed) {
  bed.bench.MeasureCeilings();
  Prefill(bed);
  DecodeTogether(bed, 1, Goal::Ceiling(0.75));
  DecodeTogether(bed, static_cast<int>(bed.bench.Size(256, 3)), Goal::Ceiling(0.6));
  DecodeLong(bed);
  StageTimes(bed);
  bed.model = nullptr;  // the stages of the service load their own weights
  Pipelines(bed);
}

// Writes the model to `path` unless there is one. Seconds that it took.
absl::StatusOr<double> MakeModel(const RandomCheckpointSpec& spec, const std::string& path) {
  if (std::filesystem::exists(path)) return 0;
  const double start = Now();
  const std::string partial = path + ".partial";
  const absl::Status status = WriteRandomCheckpoint(spec, partial);
  if (!status.ok()) return status;
  std::filesystem::rename(partial, path);
  return Now() - start;
}

absl::Status RunWith(const Options& options, std::unique_ptr<Backend> backend) {
  std::string path = options.model;
  if (path.empty()) {
    path = std::filesystem::temp_directory_path() / absl::StrCat("goldfinch-bench-", getpid(), ".safetensors");
  }
  const auto remove = absl::MakeCleanup([&] {
    if (options.model.empty()) std::filesystem::remove(path);
  });
  const absl::StatusOr<double> made = MakeModel(options.spec, path);
  if (!made.ok()) return made.status();
  const double start = Now();
  absl::StatusOr<std::shared_ptr<const Checkpoint>> checkpoint = Checkpoint::Open(path);
  if (!checkpoint.ok()) return checkpoint.status();
  absl::StatusOr<std::shared_ptr<const Model>> model = LoadModel(*backend, *checkpoint, {});
  if (!model.ok()) return model.status();
  Check(backend->Synchronize());
  const ModelShape shape = (*model)->shape;
  absl::PrintF(
      "GoldFinch with random weights: %d layers, %d of them GOLD, width %d, %.2f GB; made in %.1f s, loaded in "
      "%.1f s\n",
      shape.layers(), shape.gold_layers(), shape.width, static_cast<double>((*checkpoint)->file_bytes()) / 1e9, *made,
      Now() - start);
  Bench bench(*backend, options.bench);
  TestBed bed{.bench = bench,
              .options = options,
              .path = path,
              .checkpoint = *checkpoint,
              .model = *std::move(model),
              .shape = shape,
              .costs = CostsOf(**checkpoint, shape)};
  Run(bed);
  nlohmann::json json = bench.Json();
  json["model"] = {{"layers", bed.shape.layers()},
                   {"width", bed.shape.width},
                   {"prefill_flops", bed.costs.prefill_flops},
                   {"decode_bytes", bed.costs.decode_bytes}};
  json["stage_times"] = bed.stage_times;
  json["pipelines"] = bed.pipelines;
  return WriteJson(options.bench.json, json);
}

int Main(int argc, char** argv) {
  Options options;
  CLI::App app{"Measures a whole model beside what the device can do. Without a device: says SKIPPED, and why."};
  AddBenchFlags(app, options.bench);
  app.add_option("--model", options.model, "a checkpoint; one that is not there is made there [made, then removed]");
  CLI::Option* layers = app.add_option("--layers", options.spec.layers, "of a model that is made")
                            ->check(CLI::Range(3, 100))
                            ->capture_default_str();
  CLI::Option* width = app.add_option("--width", options.spec.width, "likewise; a multiple of 64")
                           ->check(CLI::Range(64, 16384))
                           ->capture_default_str();
  app.add_option("--max-num-batched-tokens", options.chunk_tokens, "most tokens of a step")
      ->check(CLI::Range(64, 1 << 16))
      ->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  spdlog::set_level(spdlog::level::warn);  // the coordinator's log goes where the table does
  if (options.bench.tiny) {
    if (layers->count() == 0) options.spec.layers = 12;
    if (width->count() == 0) options.spec.width = 128;
    options.spec.vocab_size = 512;
  }
  absl::StatusOr<std::unique_ptr<Backend>> backend = OpenBackend({.device = options.bench.device});
  if (!backend.ok()) {
    absl::PrintF("SKIPPED: %s\n", backend.status().message());
    const nlohmann::json json = {{"skipped", std::string(backend.status().message())}};
    return ExitStatus(WriteJson(options.bench.json, json));
  }
  const absl::Status status = RunWith(options, *std::move(backend));
  if (!status.ok()) std::fprintf(stderr, "model_bench: %s\n", std::string(status.message()).c_str());
  return status.ok() ? 0 : 1;
}

}  // namespace
}  // namespace goldfinch

int main(int argc, char** argv) { return goldfinch::Main(argc, argv); }
