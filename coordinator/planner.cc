#include "coordinator/planner.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/status.h"
#include "protos/cluster.pb.h"

namespace goldfinch {
namespace {

constexpr double kNever = std::numeric_limits<double>::infinity();
constexpr double kGain = 0.01;  // the least for which another partition is taken

// What ranges of layers cost. Sums from layer 0 on, so that each range takes two look-ups.
class Costs {
 public:
  explicit Costs(const cluster::v1::Described& model) : model_(model) {
    sums_.resize(model.layers_size() + 1);
    for (int i = 0; i < model.layers_size(); ++i) {
      const cluster::v1::LayerDescription& layer = model.layers(i);
      sums_[i + 1] = sums_[i];
      sums_[i + 1].flops += layer.prefill_flops();
      sums_[i + 1].decode_bytes += layer.decode_bytes();
    }
  }

  // The seconds that one token of pre-fill takes in these layers.
  double PrefillSeconds(int first, int last, const WorkerResources& worker) const {
    return (sums_[last].flops - sums_[first].flops) / worker.flops;
  }

  // The same for kPromptTokensPerCompletionToken tokens of pre-fill and one of decoding.
  double Seconds(int first, int last, const WorkerResources& worker) const {
    double bytes = sums_[last].decode_bytes - sums_[first].decode_bytes;
    if (last == model_.layers_size()) bytes += static_cast<double>(model_.head_bytes());
    return kPromptTokensPerCompletionToken * PrefillSeconds(first, last, worker) + bytes / worker.read_bytes_per_second;
  }

 private:
  struct Sums {
    double flops = 0;
    double decode_bytes = 0;
  };

  const cluster::v1::Described& model_;
  std::vector<Sums> sums_;
};

// The smallest cache that a group can do with.
int64_t CacheTokensMin(const PartitionOptions& options) {
  return options.cache_tokens > 0 ? options.cache_tokens : options.max_sequence_tokens;
}

// As many sequences as run at once, each of the length that is expected.
int64_t ExpectedContext(const PartitionOptions& options) {
  return std::min(options.max_sequence_tokens, kExpectedContextTokens);
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

// The seconds in which the GOLD layers of [first, last) attend to one sequence of the expected load, at the tiers that
// the worker has memory for. Each tier costs what it computes for a position: the compressed tier makes the shared key
// row and both sides of all LoRAs, the shared tier their outer sides; the full tier only reads.
double TierSeconds(const PartitionOptions& options, int first, int last, int later_stages,
                   const WorkerResources& worker) {
  const ModelMemory& model = *worker.model;
  const KeptTokenBytes per_token = KeptBytesPerToken(model, first, last);
  if (per_token.full == 0) return 0;
  StageSettings settings = SettingsOf(options, first, last, later_stages);
  const int64_t tokens = ExpectedContext(options) * options.max_sequences;
  settings.cache_tokens = tokens;
  const int64_t left = worker.memory_bytes - PlanStageMemory(model, settings).total();
  const KeptTokens kept = ShareKeptBytes(per_token, left, tokens);
  const auto gold_begin = static_cast<int>(model.layers.size()) - model.gold_layers;
  double compressed_numbers = 0, shared_numbers = 0;  // that are multiplied by D numbers each
  for (int i = std::max(first, gold_begin); i < last; ++i) {
    const auto rank = static_cast<double>(GoldLoraRank(model, i));
    shared_numbers += 3 * rank;
    compressed_numbers += 5 * rank + static_cast<double>(model.compressed_width);
  }
  const double flops = 2 * static_cast<double>(model.width) *
                       (kept.compressed * compressed_numbers + kept.shared * shared_numbers) / worker.flops;
  const double reads = kept.full * per_token.full / worker.read_bytes_per_second;
  return (flops + reads) / options.max_sequences;
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

struct Split {
  std::vector<int> first_layers;  // empty if no partition fits the workers' memory
  double slowest = kNever;        // the cost of the slowest stage
  double tiers = 0;               // TierSecondsOf it; 0 unless asked for
};

// Finds the partition with the least TierSeconds in all among those whose stages take at most `limit` seconds each; if
// there are several, the one whose slowest stage is fastest. Without `tiers` all TierSeconds count as 0. A dynamic
// program: best[s][l] is what the first s stages take when they run the first l layers, and cut[s][l] the first layer
// of stage s - 1 then.
Split BestSplit(const Costs& costs, int layers, absl::Span<const WorkerResources> workers,
                const PartitionOptions& options, bool tiers, double limit) {
  struct Best {
    double tiers = kNever;
    double slowest = kNever;
    auto operator<=>(const Best&) const = default;
  };
  const int stages = static_cast<int>(workers.size());
  std::vector<std::vector<Best>> best(stages + 1, std::vector<Best>(layers + 1));
  std::vector<std::vector<int>> cut(stages + 1, std::vector<int>(layers + 1, 0));
  best[0][0] = {0, 0};
  for (int s = 1; s <= stages; ++s) {
    const WorkerResources& worker = workers[s - 1];
    for (int last = s; last <= layers; ++last) {
      for (int first = s - 1; first < last; ++first) {
        Best next = best[s - 1][first];
        if (next.slowest == kNever) continue;
        next.slowest = std::max(next.slowest, costs.Seconds(first, last, worker));
        if (next.slowest > limit || next >= best[s][last]) continue;
        if (CacheTokensMax(options, first, last, stages - s, worker) < CacheTokensMin(options)) continue;
        if (tiers) next.tiers += TierSeconds(options, first, last, stages - s, worker);
        if (next >= best[s][last]) continue;
        best[s][last] = next;
        cut[s][last] = first;
      }
    }
  }
  Split split;
  if (best[stages][layers].slowest == kNever) return split;
  split.slowest = best[stages][layers].slowest;
  split.tiers = best[stages][layers].tiers;
  split.first_layers.resize(stages);
  for (int s = stages, last = layers; s > 0; --s) last = split.first_layers[s - 1] = cut[s][last];
  return split;
}

// TierSeconds of all stages.
double TierSecondsOf(absl::Span<const int> first_layers, int layers, absl::Span<const WorkerResources> workers,
                     const PartitionOptions& options) {
  double seconds = 0;
  for (size_t s = 0; s < workers.size(); ++s) {
    const int last = s + 1 < workers.size() ? first_layers[s + 1] : layers;
    seconds += TierSeconds(options, first_layers[s], last, static_cast<int>(workers.size() - s) - 1, workers[s]);
  }
  return seconds;
}

// The first layer of each stage; empty if no partition fits the workers' memory.
std::vector<int> BalancedSplit(const Costs& costs, int layers, absl::Span<const WorkerResources> workers,
                               const PartitionOptions& options) {
  Split best = BestSplit(costs, layers, workers, options, /*tiers=*/false, kNever);
  if (best.first_layers.empty() || workers[0].model->gold_layers == 0 || workers.size() == 1) return best.first_layers;
  const double fastest = best.slowest;
  best.tiers = TierSecondsOf(best.first_layers, layers, workers, options);
  for (const double slower : {1.1, 1.2, 1.3, 1.4, kSlowerForTiers}) {
    Split split = BestSplit(costs, layers, workers, options, /*tiers=*/true, slower * fastest);
    // Not for rounding errors.
    if (split.slowest + split.tiers < (1 - kGain) * (best.slowest + best.tiers)) best = std::move(split);
  }
  return best.first_layers;
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
  const Costs costs(model);
  Partition partition;
  partition.max_sequences = options.max_sequences;
  partition.max_logit_rows = options.max_logit_rows;
  if (options.split.empty()) {
    partition.first_layers = BalancedSplit(costs, layers, workers, options);
    if (partition.first_layers.empty()) {
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
    partition.seconds_per_prompt_token =
        std::max(partition.seconds_per_prompt_token, costs.PrefillSeconds(first, last, workers[s]));
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

}  // namespace goldfinch
