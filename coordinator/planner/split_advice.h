// Whether another split would serve a group's traffic in less time than the one it has. Pure.
#ifndef GOLDFINCH_COORDINATOR_PLANNER_SPLIT_ADVICE_H_
#define GOLDFINCH_COORDINATOR_PLANNER_SPLIT_ADVICE_H_

#include <memory>
#include <vector>

#include "base/stage_memory.h"
#include "coordinator/planner/planner.h"
#include "coordinator/planner/stage_cost.h"

namespace goldfinch {

namespace cluster::v1 {
class Described;
}  // namespace cluster::v1

// A group, its limits and its traffic. It owns what it refers to, so that any thread can answer it.
struct SplitQuestion {
  std::shared_ptr<const cluster::v1::Described> model;
  std::vector<std::shared_ptr<const ModelMemory>> memories;
  std::vector<WorkerResources> workers;  // [stages]; their models are in `memories`
  PartitionOptions options;              // without a split; max_sequences is that of the group
  std::vector<int> first_layers;         // of the split that the group has
  int64_t cache_tokens = 0;              // that its caches hold
};

struct SplitAdvice {
  ExpectedTraffic traffic;        // that was asked about
  std::vector<int> first_layers;  // of the best split
  // The part of the present split's time that the best one saves, by what options.aim minimizes: 0 to 1. It is 0 if the
  // present split is the best, or if caches would not hold the traffic any more.
  double gain = 0;
};

SplitAdvice AdviseOnSplit(const SplitQuestion& question);

}  // namespace goldfinch

#endif  // GOLDFINCH_COORDINATOR_PLANNER_SPLIT_ADVICE_H_
