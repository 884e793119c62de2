#include "coordinator/planner/split_search.h"

#include <algorithm>
#include <functional>
#include <limits>
#include <random>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace goldfinch {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

constexpr double kNever = std::numeric_limits<double>::infinity();

struct Costs {
  int layers, stages;
  std::vector<SearchCost> table;

  SearchCost At(int stage, int first, int last) const {
    return table[(static_cast<size_t>(stage) * layers + first) * (layers + 1) + last];
  }
};

double ValueOf(const Costs& costs, const std::vector<int>& first_layers, const SearchWeights& weights) {
  SearchCost all;
  for (int stage = 0; stage < costs.stages; ++stage) {
    const int last = stage + 1 < costs.stages ? first_layers[stage + 1] : costs.layers;
    const SearchCost cost = costs.At(stage, first_layers[stage], last);
    all = {std::max(all.request, cost.request), std::max(all.token, cost.token), all.first + cost.first};
  }
  return weights.request * all.request + weights.token * all.token + weights.first * all.first;
}

// The least value of all splits that have `cut`, by trying them all.
double BruteForce(const Costs& costs, int cut, const SearchWeights& weights) {
  double best = kNever;
  std::vector<int> first_layers = {0};
  const std::function<void()> extend = [&] {
    if (static_cast<int>(first_layers.size()) == costs.stages) {
      const bool has_cut = cut == 0 || std::find(first_layers.begin(), first_layers.end(), cut) != first_layers.end();
      if (has_cut) best = std::min(best, ValueOf(costs, first_layers, weights));
      return;
    }
    for (int next = first_layers.back() + 1; next < costs.layers; ++next) {
      first_layers.push_back(next);
      extend();
      first_layers.pop_back();
    }
  };
  extend();
  return best;
}

TEST(SplitSearchTest, IsAsGoodAsTryingAllSplits) {
  std::mt19937 random(1);
  const auto number = [&](int most) { return static_cast<double>(random() % (most + 1)); };
  for (int round = 0; round < 400; ++round) {
    Costs costs;
    costs.layers = 2 + static_cast<int>(random() % 8);
    costs.stages = 1 + static_cast<int>(random() % std::min(costs.layers, 5));
    // Few values make many ties; some layers together are no stage.
    const int most = random() % 2 == 0 ? 4 : 1000;
    costs.table.resize(static_cast<size_t>(costs.stages) * costs.layers * (costs.layers + 1));
    for (SearchCost& cost : costs.table) {
      cost = {random() % 8 == 0 ? kNever : number(most), number(most), number(most)};
    }
    const SearchWeights weights{number(3) + 0.1, number(3), number(3)};
    const int cut = static_cast<int>(random() % costs.layers);
    const double best = BruteForce(costs, cut, weights);
    const auto cost_of = [&](int stage, int first, int last) { return costs.At(stage, first, last); };
    // In every other round the search also knows what these layers and more of them cost at least.
    const auto least_of = [&](int stage, int first, int last) {
      double least = kNever;
      for (int end = last; end <= costs.layers; ++end) least = std::min(least, costs.At(stage, first, end).request);
      return least;
    };
    const SearchResult result = round % 2 == 0 ? FindSplit(costs.layers, costs.stages, cut, weights, cost_of)
                                               : FindSplit(costs.layers, costs.stages, cut, weights, cost_of, least_of);
    if (best == kNever) {
      EXPECT_THAT(result.first_layers, IsEmpty()) << round;
      continue;
    }
    ASSERT_EQ(static_cast<int>(result.first_layers.size()), costs.stages) << round;
    EXPECT_NEAR(result.cost, best, 1e-9 * best) << round;
    EXPECT_NEAR(ValueOf(costs, result.first_layers, weights), best, 1e-9 * best) << round;
  }
}

// The best by the slowest stage alone would begin its stages at 0 and 2, the best by the sum at 0 and 1. Neither is the
// best by both.
TEST(SplitSearchTest, WeighsTheSlowestStageAndTheSumTogether) {
  Costs costs{.layers = 4, .stages = 2, .table = std::vector<SearchCost>(40, {kNever, 0, 0})};
  const auto set = [&](int stage, int first, int last, SearchCost cost) {
    costs.table[(static_cast<size_t>(stage) * 4 + first) * 5 + last] = cost;
  };
  set(0, 0, 1, {9, 0, 0});
  set(0, 0, 2, {2, 0, 8});
  set(0, 0, 3, {3, 0, 1});
  for (int first = 1; first < 4; ++first) set(1, first, 4, {1, 0, 1});
  const auto cost_of = [&](int stage, int first, int last) { return costs.At(stage, first, last); };
  EXPECT_THAT(FindSplit(4, 2, 0, {.request = 1, .token = 0, .first = 0}, cost_of).first_layers, ElementsAre(0, 2));
  EXPECT_THAT(FindSplit(4, 2, 0, {.request = 0, .token = 0, .first = 1}, cost_of).first_layers, ElementsAre(0, 1));
  EXPECT_THAT(FindSplit(4, 2, 0, {.request = 1, .token = 0, .first = 1}, cost_of).first_layers, ElementsAre(0, 3));
  EXPECT_THAT(FindSplit(4, 2, 1, {.request = 1, .token = 0, .first = 1}, cost_of).first_layers, ElementsAre(0, 1));
}

// Stages that are too long to be part of a good split are not weighed one by one.
TEST(SplitSearchTest, PassesOverWhatIsTooLong) {
  constexpr int kLayers = 200, kStages = 50;
  const auto cost_of = [](int, int first, int last) {
    const double layers = last - first;
    return SearchCost{.request = layers, .token = layers, .first = 1};
  };
  const SearchWeights weights{.request = 1, .token = 0.1, .first = 0.1};
  const SearchResult slow = FindSplit(kLayers, kStages, 0, weights, cost_of);
  const SearchResult fast = FindSplit(kLayers, kStages, 0, weights, cost_of, [&](int stage, int first, int last) {
    return cost_of(stage, first, last).request;
  });
  EXPECT_EQ(fast.cost, slow.cost);
  EXPECT_LT(fast.steps, slow.steps / 10);
}

TEST(SplitSearchTest, ThereMayBeNone) {
  const auto cost_of = [](int, int first, int last) { return SearchCost{last - first > 2 ? kNever : 1}; };
  EXPECT_THAT(FindSplit(4, 2, 0, {}, cost_of).first_layers, ElementsAre(0, 2));
  EXPECT_THAT(FindSplit(5, 2, 0, {}, cost_of).first_layers, IsEmpty());
  EXPECT_THAT(FindSplit(4, 2, 1, {}, cost_of).first_layers, IsEmpty());
}

}  // namespace
}  // namespace goldfinch
