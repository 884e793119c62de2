#include "coordinator/contexts/snapshot_plan.h"

#include <algorithm>
#include <cstddef>
#include <iterator>
#include <limits>
#include <set>

namespace goldfinch {
namespace {

constexpr int64_t kNever = std::numeric_limits<int64_t>::max();
// Partings of one prompt; they are few unless somebody wants them to be many.
constexpr int kPartingsMax = 8;

// At most `count` of the positions in (begin, end): the last one in each of so many equal parts. In their order.
std::vector<int64_t> Thin(absl::Span<const int64_t> positions, int64_t begin, int64_t end, int count) {
  std::vector<int64_t> last(static_cast<size_t>(std::max(count, 0)), -1);
  if (last.empty()) return last;
  const double part = static_cast<double>(end - begin) / count;
  std::vector<int64_t> kept;
  for (const int64_t position : positions) {
    if (position <= begin || position >= end) continue;
    const auto index = static_cast<size_t>(static_cast<double>(position - begin) / part);
    int64_t& newest = last[std::min(index, last.size() - 1)];
    newest = std::max(newest, position);
    if (kept.size() <= last.size()) kept.push_back(position);
  }
  if (kept.size() > last.size()) kept = std::move(last);
  std::sort(kept.begin(), kept.end());
  kept.erase(std::unique(kept.begin(), kept.end()), kept.end());
  if (!kept.empty() && kept[0] == -1) kept.erase(kept.begin());
  return kept;
}

// Positions of which some are closer to each other than a snapshot costs.
class Plan {
 public:
  Plan(int64_t begin, int64_t gap) : positions_{begin}, gap_(std::max<int64_t>(gap, 1)) {}

  void Add(int64_t position) { positions_.insert(position); }
  bool AddIfApart(int64_t position) {
    const auto after = positions_.lower_bound(position);
    if (after != positions_.end() && *after - position < gap_) return false;
    if (position - *std::prev(after) < gap_) return false;  // begin is before all
    positions_.insert(after, position);
    return true;
  }
  // Others go on from here: what comes soon after does not spare them anything.
  void AddIfBeyond(int64_t position) {
    const auto after = positions_.lower_bound(position);
    if (after != positions_.end() && *after == position) return;
    if (position - *std::prev(after) >= gap_) positions_.insert(after, position);
  }
  std::vector<int64_t> Positions() const { return {std::next(positions_.begin()), positions_.end()}; }

 private:
  std::set<int64_t> positions_;
  const int64_t gap_;
};

}  // namespace

int64_t NextGrowing(const SnapshotOptions& options, int64_t position) {
  const int64_t first = options.first_tokens;
  if (first <= 0) return kNever;
  int64_t next = first;
  while (next <= position) {
    const int64_t distance = std::max(first, next / 2);
    if (next > kNever - distance) return kNever;
    next += distance;
  }
  return next;
}

void PlanAnswer(const SnapshotOptions& options, int64_t begin, int64_t end_max, std::vector<int64_t>* positions) {
  for (int64_t position = NextGrowing(options, begin); position <= end_max; position = NextGrowing(options, position)) {
    if (position == kNever) return;
    if (position - begin >= options.cost_tokens) positions->push_back(position);
  }
}

std::vector<int64_t> PlanSnapshots(const SnapshotOptions& options, const SnapshotWishes& wishes) {
  const auto [begin, end, breakpoints, borders, partings] = wishes;
  if (begin < 0 || end <= begin) return {};
  Plan plan(begin, options.cost_tokens);
  plan.Add(end);
  for (const int64_t position : Thin(breakpoints, begin, end, options.breakpoints_max)) plan.Add(position);
  for (const int64_t position : Thin(partings, begin, end, kPartingsMax)) plan.AddIfBeyond(position);

  const double affordable = options.cost_share_max * static_cast<double>(end - begin);
  int64_t left = static_cast<int64_t>(affordable / static_cast<double>(std::max<int64_t>(options.cost_tokens, 1)));
  // Growing distances come first: they are few, and bound what anybody reads again.
  for (int64_t position = NextGrowing(options, begin); position < end && left > 0;
       position = NextGrowing(options, position)) {
    if (plan.AddIfApart(position)) --left;
  }
  const std::vector<int64_t> last_borders = Thin(borders, begin, end, options.borders_max);
  for (auto border = last_borders.rbegin(); border != last_borders.rend() && left > 0; ++border) {
    if (plan.AddIfApart(*border)) --left;
  }
  return plan.Positions();
}

}  // namespace goldfinch
