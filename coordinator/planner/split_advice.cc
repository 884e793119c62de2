#include "coordinator/planner/split_advice.h"

#include <algorithm>
#include <cstdint>
#include <optional>

#include "absl/status/statusor.h"
#include "protos/cluster.pb.h"

namespace goldfinch {

SplitAdvice AdviseOnSplit(const SplitQuestion& question) {
  const PartitionOptions& options = question.options;
  SplitAdvice advice{.traffic = options.traffic, .first_layers = question.first_layers};
  const absl::StatusOr<Partition> best = PartitionLayers(*question.model, question.workers, options);
  if (!best.ok() || best->first_layers == question.first_layers) return advice;
  const auto estimate = [&](const std::vector<int>& first_layers) {
    return EstimateSplit(*question.model, question.workers, options, first_layers);
  };
  const std::optional<SplitEstimate> now = estimate(question.first_layers), then = estimate(best->first_layers);
  if (!now || !then) return advice;
  const int64_t held = then->traffic.sequences * then->traffic.context_tokens;
  if (best->cache_tokens < std::min(question.cache_tokens, held)) return advice;
  const double cost = CostOf(*now, options.aim);
  if (cost <= 0) return advice;
  advice.first_layers = best->first_layers;
  advice.gain = std::clamp(1 - CostOf(*then, options.aim) / cost, 0.0, 1.0);
  return advice;
}

}  // namespace goldfinch
