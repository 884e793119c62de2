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
  Costs(const cluster::v1::Described& model, const PlanOptions& options)
      : model_(model), options_(options), finch_(model.layers_size() - static_cast<int>(model.gold_layers())) {
    sums_.resize(model.layers_size() + 1);
    for (int i = 0; i < model.layers_size(); ++i) {
      const cluster::v1::LayerDescription& layer = model.layers(i);
      sums_[i + 1] = sums_[i];
      sums_[i + 1].fixed_bytes += static_cast<int64_t>(layer.weight_bytes()) +
                                  static_cast<int64_t>(layer.state_bytes()) * options.max_sequences;
      sums_[i + 1].cache_bytes += static_cast<int64_t>(layer.cache_bytes_per_token());
      sums_[i + 1].flops += layer.prefill_flops();
      sums_[i + 1].decode_bytes += layer.decode_bytes();
    }
  }

  // Of layers [first, last) as one stage, without the caches.
  int64_t FixedBytes(int first, int last) const {
    int64_t bytes = sums_[last].fixed_bytes - sums_[first].fixed_bytes;
    if (first == 0 || has_gold(last)) bytes += static_cast<int64_t>(model_.embedding_bytes());
    if (has_gold(last)) bytes += static_cast<int64_t>(model_.gold_shared_bytes());
    if (is_last(last)) {
      bytes += static_cast<int64_t>(model_.head_bytes());
      bytes += int64_t{4} * model_.vocab_size() * options_.max_sequences;  // logits
    }
    constexpr int64_t kActivations = 20;  // rows of D numbers for a token of a Step
    return bytes + kActivations * 4 * model_.width() * options_.max_step_tokens;
  }

  bool has_gold(int last) const { return model_.gold_layers() > 0 && last > finch_; }

  int64_t CacheBytesPerToken(int first, int last) const {
    const int64_t bytes = sums_[last].cache_bytes - sums_[first].cache_bytes;
    return bytes + (has_gold(last) ? static_cast<int64_t>(model_.compressed_bytes_per_token()) : 0);
  }

  double PrefillSeconds(int first, int last, const WorkerResources& worker) const {
    return (sums_[last].flops - sums_[first].flops) / worker.flops;
  }

  double Seconds(int first, int last, const WorkerResources& worker) const {
    double bytes = sums_[last].decode_bytes - sums_[first].decode_bytes;
    if (is_last(last)) bytes += static_cast<double>(model_.head_bytes());
    return kPromptTokens * PrefillSeconds(first, last, worker) + kDecodedTokens * bytes / worker.read_bytes_per_second;
  }

  // Tokens of cache that fit beside the rest; negative if the rest does not fit.
  int64_t CacheTokens(int first, int last, const WorkerResources& worker) const {
    const auto memory = static_cast<int64_t>(kMemoryShare * static_cast<double>(worker.memory_bytes));
    const int64_t left = memory - FixedBytes(first, last);
    if (left < 0) return -1;
    const int64_t each = CacheBytesPerToken(first, last);
    return each == 0 ? std::numeric_limits<int64_t>::max() : left / each;
  }

 private:
  struct Sums {
    int64_t fixed_bytes = 0;
    int64_t cache_bytes = 0;
    double flops = 0;
    double decode_bytes = 0;
  };

  bool is_last(int last) const { return last == model_.layers_size(); }

  const cluster::v1::Described& model_;
  const PlanOptions& options_;
  const int finch_;
  std::vector<Sums> sums_;
};

absl::Status CheckSplit(const PlanOptions& options, int layers, size_t workers) {
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

// The least cache that a group must hold.
int64_t CacheTokensMin(const PlanOptions& options) {
  return options.cache_tokens > 0 ? options.cache_tokens : options.max_sequence_tokens;
}

// best[s][l]: the time of the slowest of the first s stages, which run the first l layers.
std::vector<int> BalancedSplit(const Costs& costs, int layers, absl::Span<const WorkerResources> workers,
                               int64_t cache_tokens_min) {
  const int stages = static_cast<int>(workers.size());
  std::vector<std::vector<double>> best(stages + 1, std::vector<double>(layers + 1, kNever));
  std::vector<std::vector<int>> cut(stages + 1, std::vector<int>(layers + 1, 0));
  best[0][0] = 0;
  for (int s = 1; s <= stages; ++s) {
    for (int last = s; last <= layers; ++last) {
      for (int first = s - 1; first < last; ++first) {
        if (best[s - 1][first] == kNever) continue;
        if (costs.CacheTokens(first, last, workers[s - 1]) < cache_tokens_min) continue;
        const double slowest = std::max(best[s - 1][first], costs.Seconds(first, last, workers[s - 1]));
        if (slowest < best[s][last]) {
          best[s][last] = slowest;
          cut[s][last] = first;
        }
      }
    }
  }
  if (best[stages][layers] == kNever) return {};
  std::vector<int> split(stages);
  for (int s = stages, last = layers; s > 0; --s) last = split[s - 1] = cut[s][last];
  return split;
}

}  // namespace

absl::StatusOr<Plan> PlanStages(const cluster::v1::Described& model, absl::Span<const WorkerResources> workers,
                                const PlanOptions& options) {
  const int layers = model.layers_size();
  if (workers.empty() || static_cast<int>(workers.size()) > layers) {
    return absl::InvalidArgumentError(absl::StrCat(workers.size(), " stages for a model of ", layers, " layers"));
  }
  const Costs costs(model, options);
  Plan plan;
  if (options.split.empty()) {
    plan.first_layers = BalancedSplit(costs, layers, workers, CacheTokensMin(options));
    if (plan.first_layers.empty()) {
      return absl::ResourceExhaustedError(absl::StrCat(
          "the model does not fit ", workers.size(), " workers with ", options.max_sequences,
          " sequences (--max-num-seqs) and ", CacheTokensMin(options),
          options.cache_tokens > 0 ? " tokens of cache (--cache-tokens)" : " tokens of cache (--max-model-len)"));
    }
  } else {
    GF_RETURN_IF_ERROR(CheckSplit(options, layers, workers.size()));
    plan.first_layers = options.split;
  }
  // No more than all sequences at full length can use.
  plan.cache_tokens =
      options.cache_tokens > 0 ? options.cache_tokens : options.max_sequence_tokens * options.max_sequences;
  for (size_t s = 0; s < workers.size(); ++s) {
    const int first = plan.first_layers[s];
    const int last = s + 1 < workers.size() ? plan.first_layers[s + 1] : layers;
    const int64_t tokens = costs.CacheTokens(first, last, workers[s]);
    if (tokens < CacheTokensMin(options)) {
      return absl::ResourceExhaustedError(
          absl::StrCat("stage ", s, " (layers ", first, "-", last - 1, ") needs ",
                       costs.FixedBytes(first, last) + CacheTokensMin(options) * costs.CacheBytesPerToken(first, last),
                       " bytes, its worker has ",
                       static_cast<int64_t>(kMemoryShare * static_cast<double>(workers[s].memory_bytes))));
    }
    // Caches that take all would leave GOLD layers nothing to keep what they derive from them.
    const int64_t left_to_keep =
        costs.has_gold(last) ? static_cast<int64_t>(kKeptShare * static_cast<double>(tokens)) : 0;
    plan.cache_tokens = std::min(plan.cache_tokens, std::max(CacheTokensMin(options), tokens - left_to_keep));
    plan.seconds_per_prompt_token =
        std::max(plan.seconds_per_prompt_token, costs.PrefillSeconds(first, last, workers[s]));
  }
  return plan;
}

}  // namespace goldfinch
