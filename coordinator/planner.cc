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

// The first layer of each stage; empty if no partition fits the workers' memory. A dynamic program: best[s][l] is the
// time of the slowest of the first s stages when they run the first l layers, and cut[s][l] the first layer of stage
// s - 1 then.
std::vector<int> BalancedSplit(const Costs& costs, int layers, absl::Span<const WorkerResources> workers,
                               const PartitionOptions& options) {
  const int stages = static_cast<int>(workers.size());
  std::vector<std::vector<double>> best(stages + 1, std::vector<double>(layers + 1, kNever));
  std::vector<std::vector<int>> cut(stages + 1, std::vector<int>(layers + 1, 0));
  best[0][0] = 0;
  for (int s = 1; s <= stages; ++s) {
    for (int last = s; last <= layers; ++last) {
      for (int first = s - 1; first < last; ++first) {
        if (best[s - 1][first] == kNever) continue;
        const double slowest = std::max(best[s - 1][first], costs.Seconds(first, last, workers[s - 1]));
        if (slowest >= best[s][last]) continue;
        if (CacheTokensMax(options, first, last, stages - s, workers[s - 1]) < CacheTokensMin(options)) continue;
        best[s][last] = slowest;
        cut[s][last] = first;
      }
    }
  }
  if (best[stages][layers] == kNever) return {};
  std::vector<int> split(stages);
  for (int s = stages, last = layers; s > 0; --s) last = split[s - 1] = cut[s][last];
  return split;
}

}  // namespace

absl::StatusOr<Partition> PartitionLayers(const cluster::v1::Described& model,
                                          absl::Span<const WorkerResources> workers, const PartitionOptions& options) {
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
    int64_t tokens = CacheTokensMax(options, first, last, later_stages, workers[s]);
    if (tokens < CacheTokensMin(options)) {
      return absl::ResourceExhaustedError(
          absl::StrCat("stage ", s, " (layers ", first, "-", last - 1,
                       ") does not fit its worker: ", Shortage(options, first, last, later_stages, workers[s])));
    }
    if (last > layers - static_cast<int>(model.gold_layers())) {
      // Caches that took all the memory would leave none for kept rows.
      const auto kept_pages = static_cast<int64_t>(kKeptRowsFraction * static_cast<double>(tokens / kCachePageTokens));
      tokens = std::max(CacheTokensMin(options), tokens - kept_pages * kCachePageTokens);
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

}  // namespace goldfinch
