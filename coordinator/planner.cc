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

// Layers [first, last) of the model as one stage.
class StageModel {
 public:
  StageModel(const cluster::v1::Described& model, const PlanOptions& options, int first, int last)
      : model_(model), options_(options), first_(first), last_(last) {}

  // Without the caches.
  int64_t FixedBytes() const {
    const int layers = model_.layers_size(), finch = layers - static_cast<int>(model_.gold_layers());
    const bool has_gold = model_.gold_layers() > 0 && last_ > finch;
    int64_t bytes = 0;
    for (int i = first_; i < last_; ++i) {
      bytes += static_cast<int64_t>(model_.layers(i).weight_bytes());
      bytes += static_cast<int64_t>(model_.layers(i).state_bytes()) * options_.max_sequences;
    }
    if (first_ == 0 || has_gold) bytes += static_cast<int64_t>(model_.embedding_bytes());
    if (has_gold) bytes += static_cast<int64_t>(model_.gold_shared_bytes());
    if (last_ == layers) {
      bytes += static_cast<int64_t>(model_.head_bytes());
      bytes += int64_t{4} * model_.vocab_size() * options_.max_sequences;  // logits
    }
    constexpr int64_t kActivations = 20;  // rows of D numbers for a token of a Step
    return bytes + kActivations * 4 * model_.width() * options_.max_step_tokens;
  }

  int64_t CacheBytesPerToken() const {
    const int layers = model_.layers_size(), finch = layers - static_cast<int>(model_.gold_layers());
    int64_t bytes = 0;
    for (int i = first_; i < last_; ++i) bytes += static_cast<int64_t>(model_.layers(i).cache_bytes_per_token());
    if (model_.gold_layers() > 0 && last_ > finch) bytes += static_cast<int64_t>(model_.compressed_bytes_per_token());
    return bytes;
  }

  double Seconds(const WorkerResources& worker) const {
    double flops = 0, bytes = 0;
    for (int i = first_; i < last_; ++i) {
      flops += kPromptTokens * model_.layers(i).prefill_flops();
      bytes += kDecodedTokens * model_.layers(i).decode_bytes();
    }
    if (last_ == model_.layers_size()) bytes += kDecodedTokens * static_cast<double>(model_.head_bytes());
    return flops / worker.flops + bytes / worker.read_bytes_per_second;
  }

  double PrefillSeconds(const WorkerResources& worker) const {
    double flops = 0;
    for (int i = first_; i < last_; ++i) flops += model_.layers(i).prefill_flops();
    return flops / worker.flops;
  }

  // Tokens of cache that fit beside the rest; negative if the rest does not fit.
  int64_t CacheTokens(const WorkerResources& worker) const {
    const auto memory = static_cast<int64_t>(kMemoryShare * static_cast<double>(worker.memory_bytes));
    const int64_t left = memory - FixedBytes();
    if (left < 0) return -1;
    const int64_t each = CacheBytesPerToken();
    return each == 0 ? std::numeric_limits<int64_t>::max() : left / each;
  }

 private:
  const cluster::v1::Described& model_;
  const PlanOptions& options_;
  const int first_, last_;
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
std::vector<int> BalancedSplit(const cluster::v1::Described& model, absl::Span<const WorkerResources> workers,
                               const PlanOptions& options) {
  const int layers = model.layers_size(), stages = static_cast<int>(workers.size());
  std::vector<std::vector<double>> best(stages + 1, std::vector<double>(layers + 1, kNever));
  std::vector<std::vector<int>> cut(stages + 1, std::vector<int>(layers + 1, 0));
  best[0][0] = 0;
  for (int s = 1; s <= stages; ++s) {
    for (int last = s; last <= layers; ++last) {
      for (int first = s - 1; first < last; ++first) {
        if (best[s - 1][first] == kNever) continue;
        const StageModel stage(model, options, first, last);
        if (stage.CacheTokens(workers[s - 1]) < CacheTokensMin(options)) continue;
        const double slowest = std::max(best[s - 1][first], stage.Seconds(workers[s - 1]));
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
  Plan plan;
  if (options.split.empty()) {
    plan.first_layers = BalancedSplit(model, workers, options);
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
    const StageModel stage(model, options, first, last);
    const int64_t tokens = stage.CacheTokens(workers[s]);
    if (tokens < CacheTokensMin(options)) {
      return absl::ResourceExhaustedError(absl::StrCat(
          "stage ", s, " (layers ", first, "-", last - 1, ") needs ",
          stage.FixedBytes() + CacheTokensMin(options) * stage.CacheBytesPerToken(), " bytes, its worker has ",
          static_cast<int64_t>(kMemoryShare * static_cast<double>(workers[s].memory_bytes))));
    }
    plan.cache_tokens = std::min(plan.cache_tokens, tokens);
    plan.seconds_per_prompt_token = std::max(plan.seconds_per_prompt_token, stage.PrefillSeconds(workers[s]));
  }
  return plan;
}

}  // namespace goldfinch
