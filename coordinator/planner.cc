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

// What layers cost, summed up from layer 0 on, so that a range costs two look-ups.
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

  double PrefillSeconds(int first, int last, const WorkerResources& worker) const {
    return (sums_[last].flops - sums_[first].flops) / worker.flops;
  }

  double Seconds(int first, int last, const WorkerResources& worker) const {
    double bytes = sums_[last].decode_bytes - sums_[first].decode_bytes;
    if (last == model_.layers_size()) bytes += static_cast<double>(model_.head_bytes());
    return kPromptTokens * PrefillSeconds(first, last, worker) + kDecodedTokens * bytes / worker.read_bytes_per_second;
  }

 private:
  struct Sums {
    double flops = 0;
    double decode_bytes = 0;
  };

  const cluster::v1::Described& model_;
  std::vector<Sums> sums_;
};

// The least cache that a group must hold.
int64_t CacheTokensMin(const PartitionOptions& options) {
  return options.cache_tokens > 0 ? options.cache_tokens : options.max_sequence_tokens;
}

// Of layers [first, last) as one stage with the least cache, and so many after it.
StageSettings SettingsOf(const PartitionOptions& options, int first, int last, int later_stages) {
  return {.first_layer = first,
          .last_layer = last,
          .later_stages = later_stages,
          .max_sequences = options.max_sequences,
          .cache_tokens = CacheTokensMin(options),
          .max_step_tokens = options.max_step_tokens,
          .max_logit_rows = options.max_logit_rows};
}

// Tokens of cache that fit beside the rest; negative if the rest does not fit.
int64_t CacheTokens(const PartitionOptions& options, int first, int last, int later_stages,
                    const WorkerResources& worker) {
  return CacheTokensThatFit(*worker.model, SettingsOf(options, first, last, later_stages), worker.memory_bytes);
}

// Why layers [first, last) do not fit.
std::string Shortage(const PartitionOptions& options, int first, int last, int later_stages,
                     const WorkerResources& worker) {
  const std::string caches =
      options.cache_tokens > 0
          ? absl::StrCat(options.cache_tokens, " tokens of cache (--cache-tokens)")
          : absl::StrCat("caches of one sequence of ", options.max_sequence_tokens, " tokens (--max-model-len)");
  return absl::StrCat("with ", options.max_sequences, " sequences (--max-num-seqs) and ", caches, ", ",
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

// best[s][l]: the time of the slowest of the first s stages, which run the first l layers.
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
        if (CacheTokens(options, first, last, stages - s, workers[s - 1]) < CacheTokensMin(options)) continue;
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
  const Costs costs(model);
  Partition plan;
  if (options.split.empty()) {
    plan.first_layers = BalancedSplit(costs, layers, workers, options);
    if (plan.first_layers.empty()) {
      // As one, so that what to save on shows.
      WorkerResources all = workers[0];
      for (const WorkerResources& worker : workers.subspan(1)) all.memory_bytes += worker.memory_bytes;
      return absl::ResourceExhaustedError(
          absl::StrCat("the model does not fit ", workers.size(),
                       workers.size() == 1 ? " worker: " : " workers, however it is cut: in one stage, ",
                       Shortage(options, 0, layers, 0, all)));
    }
  } else {
    GF_RETURN_IF_ERROR(CheckSplit(options, layers, workers.size()));
    plan.first_layers = options.split;
  }
  // No more than all sequences at full length can use.
  plan.cache_tokens_wanted =
      options.cache_tokens > 0 ? options.cache_tokens : options.max_sequence_tokens * options.max_sequences;
  plan.cache_tokens = plan.cache_tokens_wanted;
  for (size_t s = 0; s < workers.size(); ++s) {
    const int first = plan.first_layers[s];
    const int last = s + 1 < workers.size() ? plan.first_layers[s + 1] : layers;
    const int later_stages = static_cast<int>(workers.size() - s) - 1;
    int64_t tokens = CacheTokens(options, first, last, later_stages, workers[s]);
    if (tokens < CacheTokensMin(options)) {
      return absl::ResourceExhaustedError(
          absl::StrCat("stage ", s, " (layers ", first, "-", last - 1,
                       ") does not fit its worker: ", Shortage(options, first, last, later_stages, workers[s])));
    }
    if (last > layers - static_cast<int>(model.gold_layers())) {
      // Caches that take all would leave GOLD layers nothing to keep what they derive from them.
      const auto kept_pages = static_cast<int64_t>(kKeptShare * static_cast<double>(tokens / kCachePageTokens));
      tokens = std::max(CacheTokensMin(options), tokens - kept_pages * kCachePageTokens);
    }
    if (tokens < plan.cache_tokens) {
      plan.cache_tokens = tokens;
      plan.tightest_stage = static_cast<int>(s);
    }
    plan.seconds_per_prompt_token =
        std::max(plan.seconds_per_prompt_token, costs.PrefillSeconds(first, last, workers[s]));
  }
  return plan;
}

ModelMemory ReadModelMemory(const cluster::v1::Described& model) {
  const cluster::v1::ModelMemory& from = model.memory();
  ModelMemory memory;
  for (const cluster::v1::LayerMemory& layer : from.layers()) {
    memory.layers.push_back({.weight_bytes = static_cast<int64_t>(layer.weight_bytes()),
                             .table_bytes = static_cast<int64_t>(layer.table_bytes()),
                             .shift_bytes = static_cast<int64_t>(layer.shift_bytes()),
                             .wkv_bytes = static_cast<int64_t>(layer.wkv_bytes()),
                             .cache_bytes_per_token = static_cast<int64_t>(layer.cache_bytes_per_token()),
                             .activation_bytes = static_cast<int64_t>(layer.activation_bytes())});
  }
  memory.gold_layers = static_cast<int>(model.gold_layers());
  memory.width = model.width();
  memory.vocab_size = model.vocab_size();
  memory.compressed_width = model.compressed_width();
  memory.compressed_row_bytes = static_cast<int64_t>(from.compressed_row_bytes());
  memory.compressed_bytes_per_token = static_cast<int64_t>(model.compressed_bytes_per_token());
  memory.embedding_bytes = static_cast<int64_t>(from.embedding_bytes());
  memory.gold_shared_bytes = static_cast<int64_t>(from.gold_shared_bytes());
  memory.key_table_bytes = static_cast<int64_t>(from.key_table_bytes());
  memory.head_bytes = static_cast<int64_t>(from.head_bytes());
  memory.back_end_bytes = static_cast<int64_t>(from.back_end_bytes());
  memory.back_end_bytes_per_row = static_cast<int64_t>(from.back_end_bytes_per_row());
  memory.back_end_bytes_per_logit_row = static_cast<int64_t>(from.back_end_bytes_per_logit_row());
  return memory;
}

}  // namespace goldfinch
