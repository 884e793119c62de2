#include "coordinator/planner/split_search.h"

#include <algorithm>
#include <array>
#include <limits>
#include <utility>

namespace goldfinch {
namespace {

constexpr double kNever = std::numeric_limits<double>::infinity();
// Sums of the same numbers in another order differ by less.
constexpr double kRounding = 1 + 1e-12;

constexpr int kFewBeginnings = 2;
// How closely the time is found in which all layers can be dealt out, and how often it is doubled at most before.
constexpr int kHalvings = 6, kDoublings = 64;

using CostOf = absl::FunctionRef<SearchCost(int stage, int first, int last)>;
using LeastOf = absl::FunctionRef<double(int stage, int first, int last)>;

// The stages up to one, which ends where its node says.
struct Beginning {
  SearchCost cost;
  double least = 0;  // that the whole split can cost
  int first = 0;     // layer of the last of these stages
  int previous = 0;  // the beginning without it, in the list of the stage before
};

class Search {
 public:
  Search(int layers, int stages, int cut, const SearchWeights& weights, CostOf cost_of, LeastOf least_of)
      : layers_(layers), stages_(stages), cut_(cut), weights_(weights), cost_of_(cost_of), least_of_(least_of) {}

  SearchResult Run() {
    SearchResult result;
    std::vector<int> dealt_out = DealOut(&too_much_);
    FindRests();
    if (Rest(0, 0).best.request != kNever) {
      result.first_layers = BestByOne(&result.cost);
      // The better the bound, the fewer are left.
      Improve(kFewBeginnings, &result.first_layers, &result.cost);
      Improve(kBeginningsMax, &result.first_layers, &result.cost);
      if (result.cost > too_much_ * kRounding) {
        result.first_layers = std::move(dealt_out);
        result.cost = too_much_;
      }
    }
    result.steps = steps_;
    return result;
  }

 private:
  // The least of each sum that the stages from one on can have if they begin with a layer, and the end of the first of
  // them by which it is reached.
  struct Remainder {
    SearchCost best{kNever, kNever, kNever};
    std::array<int, 3> last{};
  };

  Remainder& Rest(int stage, int first) { return rests_[static_cast<size_t>(stage) * (layers_ + 1) + first]; }
  // Where a stage may end: each later stage has a layer too.
  int LastEnd(int stage) const { return layers_ - (stages_ - 1 - stage); }
  int FirstEnd(int stage, int first) const { return stage + 1 == stages_ ? layers_ : first + 1; }
  bool Crosses(int first, int last) const { return cut_ > first && cut_ < last; }

  SearchCost Weigh(int stage, int first, int last) {
    if (Crosses(first, last)) return {kNever, kNever, kNever};
    ++steps_;
    return cost_of_(stage, first, last);
  }

  // Whether a stage with these layers, or with more from `first` on, makes the split cost too much.
  bool IsTooLong(int stage, int first, int last) const {
    return weights_.request * least_of_(stage, first, last) > too_much_ * kRounding;
  }

  static SearchCost Join(const SearchCost& a, const SearchCost& b) {
    return {std::max(a.request, b.request), std::max(a.token, b.token), a.first + b.first};
  }
  double Value(const SearchCost& cost) const {
    return weights_.request * cost.request + weights_.token * cost.token + weights_.first * cost.first;
  }

  // A good split, and its value: each stage has as many layers as it can do in a time, which is nearly the least in
  // which all of them are dealt out. Empty and infinite if there is none, or if nothing is known of what stages cost at
  // least.
  std::vector<int> DealOut(double* value) {
    *value = kNever;
    std::vector<int> best;
    double limit = least_of_(0, 0, layers_) / stages_;
    if (limit <= 0) return best;
    const auto deals_out = [&](double seconds) {
      std::vector<int> first_layers = DealOutIn(seconds);
      if (first_layers.empty()) return false;
      SearchCost cost;
      for (int stage = 0; stage < stages_; ++stage) {
        cost = Join(cost, Weigh(stage, first_layers[stage], stage + 1 < stages_ ? first_layers[stage + 1] : layers_));
      }
      if (Value(cost) < *value) {
        *value = Value(cost);
        best = std::move(first_layers);
      }
      return true;
    };
    int doublings = 0;
    while (!deals_out(limit) && ++doublings <= kDoublings) limit *= 2;
    if (best.empty()) return best;
    double too_little = limit / 2;
    for (int i = 0; i < kHalvings; ++i) {
      const double middle = (too_little + limit) / 2;
      (deals_out(middle) ? limit : too_little) = middle;
    }
    return best;
  }

  std::vector<int> DealOutIn(double seconds) {
    std::vector<int> first_layers;
    int first = 0;
    for (int stage = 0; stage < stages_; ++stage) {
      first_layers.push_back(first);
      int end = -1;
      for (int last = FirstEnd(stage, first); last <= LastEnd(stage); ++last) {
        if (least_of_(stage, first, last) > seconds) break;
        if (Weigh(stage, first, last).request <= seconds) end = last;
      }
      if (end < 0) return {};
      first = end;
    }
    return first_layers;
  }

  void FindRests() {
    rests_.assign(static_cast<size_t>(stages_ + 1) * (layers_ + 1), {});
    Rest(stages_, layers_).best = {0, 0, 0};
    for (int stage = stages_; stage-- > 0;) {
      for (int first = stage; first < LastEnd(stage); ++first) {
        if (stage == 0 && first > 0) break;
        Remainder& rest = Rest(stage, first);
        for (int last = FirstEnd(stage, first); last <= LastEnd(stage); ++last) {
          if (IsTooLong(stage, first, last)) break;
          const SearchCost& after = Rest(stage + 1, last).best;
          if (after.request == kNever) continue;
          const SearchCost cost = Weigh(stage, first, last);
          if (cost.request == kNever) continue;
          const SearchCost joined = Join(cost, after);
          const auto take = [&](double value, double& best, int& end) {
            if (value < best) best = value, end = last;
          };
          take(joined.request, rest.best.request, rest.last[0]);
          take(joined.token, rest.best.token, rest.last[1]);
          take(joined.first, rest.best.first, rest.last[2]);
        }
      }
    }
  }

  // The best of those that are best by one of the three sums alone.
  std::vector<int> BestByOne(double* value) {
    std::vector<int> best = BestBy(0, value);
    for (int sum = 1; sum < 3; ++sum) {
      double other_value = 0;
      std::vector<int> other = BestBy(sum, &other_value);
      if (other_value >= *value) continue;
      *value = other_value;
      best = std::move(other);
    }
    return best;
  }

  std::vector<int> BestBy(int sum, double* value) {
    std::vector<int> first_layers;
    SearchCost cost;
    int first = 0;
    for (int stage = 0; stage < stages_; ++stage) {
      const int last = Rest(stage, first).last[sum];
      first_layers.push_back(first);
      cost = Join(cost, Weigh(stage, first, last));
      first = last;
    }
    *value = Value(cost);
    return first_layers;
  }

  // The best split, which is exact if at most `most` beginnings were left of every stage and layer.
  void Improve(int most, std::vector<int>* best_layers, double* best_value) {
    const double bound = *best_value;  // whoever cannot beat it is dropped
    // kept[stage][layer]: the beginnings of so many stages that end before the layer.
    std::vector<std::vector<std::vector<Beginning>>> kept(stages_ + 1);
    for (auto& of_stage : kept) of_stage.resize(layers_ + 1);
    kept[0][0] = {{}};
    for (int stage = 0; stage < stages_; ++stage) {
      for (int first = stage; first < LastEnd(stage); ++first) {
        const std::vector<Beginning>& begun = kept[stage][first];
        if (begun.empty()) continue;
        for (int last = FirstEnd(stage, first); last <= LastEnd(stage); ++last) {
          if (IsTooLong(stage, first, last)) break;
          const SearchCost& after = Rest(stage + 1, last).best;
          if (after.request == kNever) continue;
          const SearchCost cost = Weigh(stage, first, last);
          if (cost.request == kNever) continue;
          for (size_t i = 0; i < begun.size(); ++i) {
            ++steps_;
            const SearchCost joined = Join(begun[i].cost, cost);
            const double least = Value(Join(joined, after));
            if (least * kRounding >= bound || least > too_much_ * kRounding) continue;
            Keep({joined, least, first, static_cast<int>(i)}, most, kept[stage + 1][last]);
          }
        }
      }
    }
    const std::vector<Beginning>& whole = kept[stages_][layers_];
    const auto best = std::min_element(whole.begin(), whole.end(),
                                       [](const Beginning& a, const Beginning& b) { return a.least < b.least; });
    if (best == whole.end()) return;
    *best_value = best->least;
    const Beginning* beginning = &*best;
    for (int stage = stages_; stage > 0; --stage) {
      (*best_layers)[stage - 1] = beginning->first;
      beginning = &kept[stage - 1][beginning->first][beginning->previous];
    }
  }

  // Adds it to `list`, unless another is as good in all sums, and takes off those that are no better than it.
  static void Keep(const Beginning& added, int most, std::vector<Beginning>& list) {
    const auto no_worse = [](const SearchCost& a, const SearchCost& b) {
      return a.request <= b.request * kRounding && a.token <= b.token * kRounding && a.first <= b.first * kRounding;
    };
    for (const Beginning& other : list) {
      if (no_worse(other.cost, added.cost)) return;
    }
    std::erase_if(list, [&](const Beginning& other) { return no_worse(added.cost, other.cost); });
    list.push_back(added);
    if (static_cast<int>(list.size()) <= most) return;
    list.erase(std::max_element(list.begin(), list.end(),
                                [](const Beginning& a, const Beginning& b) { return a.least < b.least; }));
  }

  const int layers_, stages_, cut_;
  const SearchWeights weights_;
  const CostOf cost_of_;
  const LeastOf least_of_;
  double too_much_ = kNever;      // the value of a split that there is
  std::vector<Remainder> rests_;  // [stages + 1][layers + 1]
  int64_t steps_ = 0;
};

}  // namespace

SearchResult FindSplit(int layers, int stages, int cut, const SearchWeights& weights, CostOf cost_of,
                       LeastOf least_of) {
  return Search(layers, stages, cut, weights, cost_of, least_of).Run();
}

}  // namespace goldfinch
