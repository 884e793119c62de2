// Finds the cheapest way to cut a row of layers into stages. Pure: it knows nothing of models.
#ifndef GOLDFINCH_COORDINATOR_PLANNER_SPLIT_SEARCH_H_
#define GOLDFINCH_COORDINATOR_PLANNER_SPLIT_SEARCH_H_

#include <cstdint>
#include <vector>

#include "absl/functional/function_ref.h"

namespace goldfinch {

// The costs of one stage. None is negative.
struct SearchCost {
  double request = 0;  // the largest of all stages counts; infinite: the layers cannot be one stage
  double token = 0;    // likewise
  double first = 0;    // the sum of all stages counts
};

// What a split costs: request_weight * max request + token_weight * max token + first_weight * sum of first.
struct SearchWeights {
  double request = 1;
  double token = 0;
  double first = 0;
};

struct SearchResult {
  std::vector<int> first_layers;  // of each stage, ascending from 0; empty if there is none
  double cost = 0;
  int64_t steps = 0;  // how often a stage was weighed
};

// The cheapest split of `layers` layers into `stages` stages. `cost_of(stage, first, last)` is the cost of layers
// [first, last) as a stage. If `cut` is above 0, a stage must begin with that layer.
//
// Exact: a dynamic program over the stages keeps every beginning that is better than the others in one of the three
// sums, and drops those that can no longer be part of the best split, by lower bounds of what is still to come. Only
// if more than kBeginningsMax are left of one stage and layer, those with the highest bounds are dropped.
//
// `least_of` says what `request` is at least for layers [first, last), and for more of them from `first` on. It never
// falls with `last`. With it the search passes over stages that are too long to be part of the best split, by the cost
// of one that gives each stage as many layers as it can do in some time; without it, it weighs all stages.
inline constexpr int kBeginningsMax = 256;
inline double NothingAtLeast(int /*stage*/, int /*first*/, int /*last*/) { return 0; }
SearchResult FindSplit(int layers, int stages, int cut, const SearchWeights& weights,
                       absl::FunctionRef<SearchCost(int stage, int first, int last)> cost_of,
                       absl::FunctionRef<double(int stage, int first, int last)> least_of = NothingAtLeast);

}  // namespace goldfinch

#endif  // GOLDFINCH_COORDINATOR_PLANNER_SPLIT_SEARCH_H_
