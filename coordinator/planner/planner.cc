#include "coordinator/planner/planner.h"

#include <algorithm>
#include <limits>
#include <optional>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "base/status.h"
#include "coordinator/planner/split_search.h"
#include "protos/cluster.pb.h"

namespace goldfinch {
namespace {

// A split for the first token alone, or for the slowest stage alone, is as good as it can be by the other.
constexpr double kTieWeight = 1e-6;
constexpr size_t kOthersShown = 2;
constexpr double kUnknown = -1;
// The most positions of all sequences that are expected together: their bytes are far from overflowing.
constexpr int64_t kPositionsMax = int64_t{1} << 32;
constexpr size_t kKnownMax = size_t{1} << 20;

// The smallest cache that a group can do with.
int64_t CacheTokensMin(const PartitionOptions& options) {
  return options.cache_tokens > 0 ? options.cache_tokens : options.max_sequence_tokens;
}

// Layers [first, last) as one stage with the smallest cache.
StageSettings SettingsOf(const PartitionOptions& options, int first, int last, int later_stages) {
  return {.first_layer = first,
          .last_layer = last,
          .later_stages = later_stages,
          .max_sequences = options.max_sequences,
          .cache_tokens = CacheTokensMin(options),
          .max_step_tokens = options.max_step_tokens,
          .max_logit_rows = options.max_logit_rows};
}

// How many tokens of cache fit beside everything else; negative if that alone does not fit.
int64_t CacheTokensMax(const PartitionOptions& options, int first, int last, int later_stages,
                       const WorkerResources& worker) {
  return CacheTokensThatFit(*worker.model, SettingsOf(options, first, last, later_stages), worker.memory_bytes);
}

// Why layers [first, last) do not fit.
std::string Shortage(const PartitionOptions& options, int first, int last, int later_stages,
                     const WorkerResources& worker) {
  const std::string caches =
      options.cache_tokens > 0
          ? absl::StrCat(options.cache_tokens, " tokens of cache (cache_tokens)")
          : absl::StrCat("caches of one sequence of ", options.max_sequence_tokens, " tokens (max_model_len)");
  return absl::StrCat("with ", options.max_sequences, " sequences (max_sequences) and ", caches, ", ",
                      MemoryShortage(PlanStageMemory(*worker.model, SettingsOf(options, first, last, later_stages)),
                                     worker.memory_bytes));
}

absl::Status CheckSplit(const PartitionOptions& options, int layers, size_t workers) {
  const absl::Span<const int> split = options.split;
  const auto refuse = [&](const auto&... why) {
    return absl::InvalidArgumentError(absl::StrCat("the split ", absl::StrJoin(split, ","), why...));
  };
  if (split.size() != workers) return refuse(" has ", split.size(), " stages, there are ", workers, " workers");
  if (split[0] != 0) return refuse(" does not begin with layer 0");
  for (size_t i = 1; i < split.size(); ++i) {
    if (split[i] <= split[i - 1]) return refuse(" does not ascend");
  }
  if (options.split_layers != layers) {
    return refuse(" is for ", options.split_layers, " layers, the model has ", layers);
  }
  if (split.back() >= layers) return refuse(" has an empty last stage");
  return absl::OkStatus();
}

StageCosts CostsOf(const cluster::v1::Described& model, absl::Span<const WorkerResources> workers,
                   const PartitionOptions& options) {
  return StageCosts(model, workers, options.links, TrafficWithinLimits(options),
                    {.max_sequences = options.max_sequences,
                     .cache_tokens_least = CacheTokensMin(options),
                     .max_step_tokens = options.max_step_tokens,
                     .max_logit_rows = options.max_logit_rows});
}

// The best splits by one measure or another.
class Splits {
 public:
  explicit Splits(const StageCosts& costs) : costs_(costs) {
    const ExpectedTraffic& traffic = costs.traffic();
    sequences_ = static_cast<double>(traffic.sequences);
    // While the rest of a prompt streams through, after its first chunk, the slowest stage counts.
    streamed_ = static_cast<double>(traffic.prompt_tokens) - costs.chunk_tokens();
    free_ = static_cast<size_t>(costs.layers() - costs.stages() + 1);
    if (free_ * free_ * costs.stages() <= kKnownMax) known_.resize(free_ * free_ * costs.stages(), {kUnknown});
  }

  // `at_border`: a stage begins with the first GOLD layer.
  SearchResult ForTraffic(bool at_border) { return Find(1, 1 / sequences_, at_border); }
  SearchResult ForThroughput() { return Find(1, kTieWeight, false); }
  SearchResult ForFirstToken() { return Find(kTieWeight, 1, false); }
  int64_t steps() const { return steps_; }

  SplitEstimate Estimate(absl::Span<const WorkerResources> workers, std::vector<int> first_layers) const {
    SplitEstimate estimate;
    estimate.traffic = costs_.traffic();
    double slowest_token = 0, slowest_output = 0, all_output = 0;
    for (int stage = 0; stage < costs_.stages(); ++stage) {
      const StageCost cost = costs_.Of(stage, first_layers[stage], EndOf(first_layers, stage));
      if (cost.request > estimate.request_seconds) {
        estimate.request_seconds = cost.request;
        estimate.slowest_stage = stage;
        estimate.slowest_sends = cost.send_request > cost.compute_request;
      }
      slowest_token = std::max(slowest_token, cost.token);
      slowest_output = std::max(slowest_output, cost.output_token);
      all_output += cost.output_token;
      estimate.first_token_seconds += cost.first_token;
      estimate.stages.push_back(cost);
      estimate.received.push_back(ReceivedForRequest(*workers[stage].model, first_layers, stage,
                                                     estimate.traffic.prompt_tokens, estimate.traffic.output_tokens));
    }
    estimate.first_token_seconds += streamed_ * slowest_token;
    estimate.cost = estimate.request_seconds + estimate.first_token_seconds / sequences_;
    estimate.prefill_tokens_per_second = slowest_token > 0 ? 1 / slowest_token : 0;
    // Fewer sequences than stages do not fill the pipeline: each of their tokens goes through all stages.
    if (slowest_output > 0) estimate.decode_tokens_per_second = std::min(1 / slowest_output, sequences_ / all_output);
    estimate.first_layers = std::move(first_layers);
    return estimate;
  }

  bool Fits(const std::vector<int>& first_layers) const {
    if (first_layers.size() != static_cast<size_t>(costs_.stages()) || first_layers[0] != 0) return false;
    for (int stage = 0; stage < costs_.stages(); ++stage) {
      const int first = first_layers[stage], last = EndOf(first_layers, stage);
      if (first >= last || !costs_.Fits(stage, first, last)) return false;
    }
    return true;
  }

  // Whether a stage can begin with the first GOLD layer and another be before it.
  bool has_border() const {
    return costs_.finch_layers() > 0 && costs_.finch_layers() < costs_.layers() && costs_.stages() > 1;
  }
  bool IsAtBorder(const std::vector<int>& first_layers) const {
    return std::find(first_layers.begin(), first_layers.end(), costs_.finch_layers()) != first_layers.end();
  }

 private:
  int EndOf(const std::vector<int>& first_layers, int stage) const {
    return stage + 1 < costs_.stages() ? first_layers[stage + 1] : costs_.layers();
  }

  SearchResult Find(double throughput, double first_token, bool at_border) {
    const SearchWeights weights{throughput, first_token * streamed_, first_token};
    SearchResult result = FindSplit(
        costs_.layers(), costs_.stages(), at_border ? costs_.finch_layers() : 0, weights,
        [this](int stage, int first, int last) { return CostOf(stage, first, last); },
        [this](int stage, int first, int last) { return costs_.LeastRequest(stage, first, last); });
    steps_ += result.steps;
    return result;
  }

  // Each search weighs most stages, and some of them more than once.
  SearchCost CostOf(int stage, int first, int last) {
    SearchCost unknown{kUnknown};
    SearchCost& cost = known_.empty()
                           ? unknown
                           : known_[(static_cast<size_t>(stage) * free_ + first - stage) * free_ + last - stage - 1];
    if (cost.request != kUnknown) return cost;
    cost.request = std::numeric_limits<double>::infinity();
    if (costs_.Fits(stage, first, last)) {
      const StageCost of_stage = costs_.Of(stage, first, last);
      cost = {of_stage.request, of_stage.token, of_stage.first_token};
    }
    return cost;
  }

  const StageCosts& costs_;
  double sequences_;
  double streamed_;
  int64_t steps_ = 0;
  size_t free_;                    // how many layers the first stage, or any other, can begin or end at
  std::vector<SearchCost> known_;  // [stages * free_ * free_], or empty if that were too many
};

// Keeps options.kept_split in place of the best one if it is nearly as good.
void Keep(const Splits& splits, absl::Span<const WorkerResources> workers, const PartitionOptions& options, int layers,
          Partition* partition) {
  const std::vector<int>& kept = options.kept_split;
  if (kept == partition->first_layers || !splits.Fits(kept)) return;
  if (options.aim == SplitAim::kBorder && splits.has_border() && !splits.IsAtBorder(kept)) return;
  const double cost = CostOf(splits.Estimate(workers, kept), options.aim);
  const double best = CostOf(splits.Estimate(workers, partition->first_layers), options.aim);
  if (cost > best * (1 + kKeepMargin)) return;
  partition->why =
      absl::StrFormat("as it was: %s would take %.1f %% less time, which is too little to load other layers",
                      SplitText(partition->first_layers, layers), cost > 0 ? 100 * (1 - best / cost) : 0);
  partition->first_layers = kept;
}

// Fills first_layers, which stays empty if nothing fits, and `why`.
void Choose(const StageCosts& costs, absl::Span<const WorkerResources> workers, const PartitionOptions& options,
            Partition* partition) {
  const SplitAim aim = options.aim;
  Splits splits(costs);
  const bool has_border = splits.has_border();
  SearchResult best = aim == SplitAim::kBalanced
                          ? splits.ForThroughput()
                          : splits.ForTraffic(/*at_border=*/aim == SplitAim::kBorder && has_border);
  if (has_border && !best.first_layers.empty()) {
    const std::string border = absl::StrCat("at the border, layer ", costs.finch_layers());
    if (splits.IsAtBorder(best.first_layers)) {
      partition->why = absl::StrCat("a stage begins ", border,
                                    ": only compressed rows, ids, a prompt's last rows and a row for each output token "
                                    "cross it");
    } else if (aim != SplitAim::kAuto) {
      partition->why = absl::StrCat("no stage begins ", border, ": the split was asked to be balanced");
    } else {
      SearchResult at_border = splits.ForTraffic(/*at_border=*/true);
      const double longer = best.cost > 0 ? at_border.cost / best.cost : 1;
      if (at_border.first_layers.empty()) {
        partition->why = absl::StrCat("no stage begins ", border, ": no such split fits the workers' memory");
      } else if (longer > 1 + kBorderMargin) {
        const bool before = std::any_of(best.first_layers.begin() + 1, best.first_layers.end(),
                                        [&](int first) { return first < costs.finch_layers(); });
        partition->why =
            absl::StrFormat("no stage begins %s: the best such split, %s, takes %.2f times as long as this one%s",
                            border, SplitText(at_border.first_layers, costs.layers()), longer,
                            before ? "" : "; later stages begin after the border, so no more crosses than there");
      } else {
        partition->why =
            absl::StrFormat("a stage begins %s: it takes %.1f %% longer than %s, which is within the margin", border,
                            100 * (longer - 1), SplitText(best.first_layers, costs.layers()));
        best = std::move(at_border);
      }
    }
  }
  partition->first_layers = std::move(best.first_layers);
  partition->search_steps = splits.steps();
  if (!partition->first_layers.empty()) Keep(splits, workers, options, costs.layers(), partition);
}

// For options.max_sequences, which is not 0.
absl::StatusOr<Partition> PartitionFor(const cluster::v1::Described& model, absl::Span<const WorkerResources> workers,
                                       const PartitionOptions& options) {
  const int layers = model.layers_size();
  if (workers.empty() || static_cast<int>(workers.size()) > layers) {
    return absl::InvalidArgumentError(absl::StrCat(workers.size(), " stages for a model of ", layers, " layers"));
  }
  for (const WorkerResources& worker : workers) {
    if (static_cast<int>(worker.model->layers.size()) == layers) continue;
    return absl::InvalidArgumentError(
        absl::StrCat("a worker's memory is that of ", worker.model->layers.size(), " layers, the model has ", layers));
  }
  if (options.aim == SplitAim::kBorder && options.split.empty() && model.gold_layers() == 0) {
    return absl::InvalidArgumentError("the split is \"border\", but the model has no GOLD layers");
  }
  Partition partition;
  partition.max_sequences = options.max_sequences;
  partition.max_logit_rows = options.max_logit_rows;
  if (options.split.empty()) {
    Choose(CostsOf(model, workers, options), workers, options, &partition);
    if (partition.first_layers.empty()) {
      if (options.aim == SplitAim::kBorder && static_cast<int>(model.gold_layers()) < layers) {
        return absl::ResourceExhaustedError(
            absl::StrCat("no split with a stage that begins at the border, layer ",
                         layers - static_cast<int>(model.gold_layers()), ", fits the memory of ", workers.size(),
                         workers.size() == 1 ? " worker" : " workers", " (the split is \"border\")"));
      }
      // The message tells of a single stage on all memory, for that shows which parts are large.
      WorkerResources all = workers[0];
      for (const WorkerResources& worker : workers.subspan(1)) all.memory_bytes += worker.memory_bytes;
      return absl::ResourceExhaustedError(absl::StrCat(
          "the model does not fit ", workers.size(),
          workers.size() == 1 ? " worker: " : " workers, however its layers are partitioned: as one stage, ",
          Shortage(options, 0, layers, 0, all)));
    }
  } else {
    GF_RETURN_IF_ERROR(CheckSplit(options, layers, workers.size()));
    partition.first_layers = options.split;
    partition.why = "as it was given";
  }
  partition.cache_tokens_wanted =
      options.cache_tokens > 0 ? options.cache_tokens : options.max_sequence_tokens * options.max_sequences;
  partition.cache_tokens = partition.cache_tokens_wanted;
  for (size_t s = 0; s < workers.size(); ++s) {
    const int first = partition.first_layers[s];
    const int last = s + 1 < workers.size() ? partition.first_layers[s + 1] : layers;
    const int later_stages = static_cast<int>(workers.size() - s) - 1;
    const int64_t tokens = CacheTokensMax(options, first, last, later_stages, workers[s]);
    if (tokens < CacheTokensMin(options)) {
      return absl::ResourceExhaustedError(
          absl::StrCat("stage ", s, " (layers ", first, "-", last - 1,
                       ") does not fit its worker: ", Shortage(options, first, last, later_stages, workers[s])));
    }
    if (tokens < partition.cache_tokens) {
      partition.cache_tokens = tokens;
      partition.tightest_stage = static_cast<int>(s);
    }
    double operations = 0;  // of a token of a prompt
    for (int i = first; i < last; ++i) operations += model.layers(i).prefill_flops();
    partition.seconds_per_prompt_token = std::max(partition.seconds_per_prompt_token, operations / workers[s].flops);
  }
  return partition;
}

// Whether states of sequences leave each stage enough for all else.
bool StatesAreModest(const Partition& partition, absl::Span<const WorkerResources> workers,
                     const PartitionOptions& options) {
  for (size_t s = 0; s < workers.size(); ++s) {
    const bool is_last = s + 1 == workers.size();
    const int last = is_last ? static_cast<int>(workers[s].model->layers.size()) : partition.first_layers[s + 1];
    const StageMemory memory = PlanStageMemory(*workers[s].model, SettingsOf(options, partition.first_layers[s], last,
                                                                             static_cast<int>(workers.size() - s) - 1));
    const int64_t left = workers[s].memory_bytes - memory.weights - memory.tables;
    const int64_t states = memory.shift_states + memory.wkv_states + memory.tail_rows;
    if (static_cast<double>(states) > kStatesFraction * static_cast<double>(left)) return false;
  }
  return true;
}

}  // namespace

ExpectedTraffic TrafficWithinLimits(const PartitionOptions& options) {
  ExpectedTraffic traffic = options.traffic;
  const int64_t tokens = traffic.prompt_tokens + traffic.output_tokens;
  traffic.context_tokens =
      std::clamp<int64_t>(std::max(traffic.context_tokens, tokens), 1, options.max_sequence_tokens);
  if (tokens > traffic.context_tokens) {
    const double shorter = static_cast<double>(traffic.context_tokens) / static_cast<double>(tokens);
    const auto scaled = [shorter](int64_t count) {
      return std::max<int64_t>(1, static_cast<int64_t>(shorter * static_cast<double>(count)));
    };
    traffic.prompt_tokens = scaled(traffic.prompt_tokens);
    traffic.output_tokens = scaled(traffic.output_tokens);
  }
  int64_t sequences = std::min<int64_t>(options.max_sequences, kPositionsMax / traffic.context_tokens);
  if (options.cache_tokens > 0) sequences = std::min(sequences, options.cache_tokens / traffic.context_tokens);
  traffic.sequences = std::clamp<int64_t>(traffic.sequences, 1, std::max<int64_t>(sequences, 1));
  return traffic;
}

std::string SplitText(absl::Span<const int> first_layers, int layers) {
  std::string text;
  for (size_t stage = 0; stage < first_layers.size(); ++stage) {
    const int end = stage + 1 < first_layers.size() ? first_layers[stage + 1] : layers;
    absl::StrAppend(&text, stage > 0 ? "," : "", first_layers[stage], "-", end - 1);
  }
  return text;
}

int AutoSequences(absl::Span<const WorkerResources> workers) {
  const bool many = std::all_of(workers.begin(), workers.end(),
                                [](const WorkerResources& worker) { return worker.flops >= kManyFlops; });
  return many ? kSequencesManyMax : kSequencesFewMax;
}

absl::StatusOr<Partition> PartitionLayers(const cluster::v1::Described& model,
                                          absl::Span<const WorkerResources> workers, const PartitionOptions& options) {
  if (options.max_sequences > 0) return PartitionFor(model, workers, options);
  PartitionOptions some = options;
  // As many as fit with modest states, or else one.
  const int64_t most = std::min<int64_t>(AutoSequences(workers), std::max<int64_t>(options.max_step_tokens, 1));
  for (some.max_sequences = static_cast<int>(most);; some.max_sequences /= 2) {
    some.max_logit_rows = options.max_logit_rows + some.max_sequences;
    absl::StatusOr<Partition> partition = PartitionFor(model, workers, some);
    if (some.max_sequences == 1) return partition;
    if (partition.ok() ? StatesAreModest(*partition, workers, some)
                       : partition.status().code() != absl::StatusCode::kResourceExhausted) {
      return partition;
    }
  }
}

absl::StatusOr<Partition> PartitionWithLongSteps(const cluster::v1::Described& model,
                                                 absl::Span<const WorkerResources> workers, int64_t most, int64_t least,
                                                 PartitionOptions* options) {
  int64_t tokens = std::max<int64_t>(most, options->max_sequences);
  for (;; tokens /= 2) {
    options->max_step_tokens = tokens;
    absl::StatusOr<Partition> partition = PartitionLayers(model, workers, *options);
    const bool may_fit =
        absl::IsResourceExhausted(partition.status()) && tokens / 2 >= std::max<int64_t>(least, options->max_sequences);
    if (!may_fit) return partition;
  }
}

std::optional<SplitEstimate> EstimateSplit(const cluster::v1::Described& model,
                                           absl::Span<const WorkerResources> workers, const PartitionOptions& options,
                                           const std::vector<int>& first_layers) {
  const StageCosts costs = CostsOf(model, workers, options);
  const Splits splits(costs);
  if (!splits.Fits(first_layers)) return std::nullopt;
  return splits.Estimate(workers, first_layers);
}

std::vector<SplitEstimate> CompareSplits(const cluster::v1::Described& model, absl::Span<const WorkerResources> workers,
                                         const PartitionOptions& options, const Partition& partition) {
  PartitionOptions limits = options;
  limits.max_sequences = partition.max_sequences;
  limits.max_logit_rows = partition.max_logit_rows;
  const StageCosts costs = CostsOf(model, workers, limits);
  Splits splits(costs);
  std::vector<SplitEstimate> others;
  const auto add = [&](std::vector<int> first_layers) {
    if (first_layers.empty() || first_layers == partition.first_layers || !splits.Fits(first_layers)) return;
    const bool known = std::any_of(others.begin(), others.end(),
                                   [&](const SplitEstimate& other) { return other.first_layers == first_layers; });
    if (!known) others.push_back(splits.Estimate(workers, std::move(first_layers)));
  };
  if (splits.has_border()) add(splits.ForTraffic(/*at_border=*/true).first_layers);
  add(splits.ForTraffic(/*at_border=*/false).first_layers);
  add(splits.ForThroughput().first_layers);
  add(splits.ForFirstToken().first_layers);
  for (size_t stage = 1; stage < partition.first_layers.size(); ++stage) {
    for (const int moved : {-1, 1}) {
      std::vector<int> first_layers = partition.first_layers;
      first_layers[stage] += moved;
      add(std::move(first_layers));
    }
  }
  std::stable_sort(others.begin(), others.end(),
                   [](const SplitEstimate& a, const SplitEstimate& b) { return a.cost < b.cost; });
  std::vector<SplitEstimate> compared = {splits.Estimate(workers, partition.first_layers)};
  bool shows_border = !splits.has_border() || splits.IsAtBorder(partition.first_layers);
  for (SplitEstimate& other : others) {
    const bool is_at_border = splits.IsAtBorder(other.first_layers);
    if (compared.size() > kOthersShown && (shows_border || !is_at_border)) continue;
    shows_border |= is_at_border;
    compared.push_back(std::move(other));
  }
  return compared;
}

}  // namespace goldfinch
