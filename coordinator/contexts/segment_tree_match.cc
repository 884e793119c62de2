// What of a prompt is kept, and whether it is worth using.
#include <algorithm>
#include <cstddef>
#include <limits>
#include <utility>

#include "base/check.h"
#include "coordinator/contexts/segment_tree_state.h"

namespace goldfinch {
namespace {

// FNV-1a, which goes on from any beginning.
uint64_t Mix(uint64_t hash, uint32_t value) {
  for (int i = 0; i < 4; ++i) hash = (hash ^ ((value >> (8 * i)) & 0xff)) * 0x100000001b3;
  return hash;
}

uint64_t Mix(const std::string& name_space) {
  uint64_t hash = Mix(0xcbf29ce484222325, static_cast<uint32_t>(name_space.size()));
  for (const char c : name_space) hash = Mix(hash, static_cast<unsigned char>(c));
  return hash;
}

// Whether a segment of the space is a beginning of the prompt from which it could go on.
bool HasSnapshotOf(const Space* space, absl::Span<const int32_t> prompt) {
  if (space == nullptr) return false;
  bool found = false;
  // A walk does not change the tree.
  TextTree& texts = const_cast<Space*>(space)->texts;
  texts.Walk(texts.root(), prompt, [&](const TextTree::Node* node) {
    found = node->segment != nullptr && (node->segment->present() & kSnapshot) != 0;
    return !found;
  });
  return found;
}

// So many identities are looked through to tell why a prompt finds nothing.
constexpr int kOtherIdentitiesMax = 4;

}  // namespace

void EvictedTexts::Add(const std::string& name_space, absl::Span<const int32_t> ids) {
  uint64_t hash = Mix(name_space);
  for (const int32_t id : ids.subspan(0, kIds)) hash = Mix(hash, static_cast<uint32_t>(id));
  order_.push_back(hash);
  ++counts_[hash];
  if (order_.size() <= kTexts) return;
  const auto oldest = counts_.find(order_.front());
  if (--oldest->second == 0) counts_.erase(oldest);
  order_.pop_front();
}

bool EvictedTexts::HasBeginningOf(const std::string& name_space, absl::Span<const int32_t> prompt) const {
  uint64_t hash = Mix(name_space);
  for (const int32_t id : prompt.subspan(0, kIds)) {
    hash = Mix(hash, static_cast<uint32_t>(id));
    if (counts_.contains(hash)) return true;
  }
  return false;
}

ContextMatch SegmentTree::Match(const std::string& name_space, absl::Span<const int32_t> prompt, int64_t limit,
                                uint64_t tuned) const {
  const State& state = *state_;
  ContextMatch match;
  match.tuned = tuned;
  match.tokens = static_cast<int64_t>(prompt.size());
  const auto usable = [&](const Segment& segment) {
    return (segment.present() & kSnapshot) != 0 && segment.end() <= limit &&
           (segment.end() < match.tokens || segment.logits);
  };
  bool evicted = false;
  const auto visit = [&](const TextTree::Node* node) {
    if (node->children != 1) match.partings.push_back(node->end);
    const Segment* const segment = node->segment;
    if (segment == nullptr) return true;
    evicted |= (segment->present() & kSnapshot) == 0 && segment->snapshot_evicted;
    if ((segment->present() & kRows) == 0) return true;
    ContextMatch::Step step;
    step.segment = segment->number;
    step.end = segment->end();
    if (segment->parent != nullptr) {
      // Steps are in the order of their ends; no two have the same.
      const auto above = std::lower_bound(match.steps.begin(), match.steps.end(), segment->begin,
                                          [](const ContextMatch::Step& a, int64_t end) { return a.end < end; });
      if (above == match.steps.end() || above->segment != segment->parent->number) return true;  // rows are missing
      step.parent = static_cast<int>(above - match.steps.begin());
    }
    step.usable = usable(*segment);
    match.steps.push_back(step);
    return true;
  };
  const Space* const space = tuned == 0 ? state.FindSpace(state.identity, name_space) : state.Held(tuned).space;
  if (space != nullptr) {
    TextTree& texts = const_cast<Space*>(space)->texts;  // a walk does not change it
    if (tuned != 0) visit(texts.root());
    match.matched = texts.Walk(texts.root(), prompt, visit).matched;
  }
  if (match.partings.empty() || match.partings.back() != match.matched) match.partings.push_back(match.matched);

  auto best = std::find_if(match.steps.rbegin(), match.steps.rend(), [](const auto& step) { return step.usable; });
  if (best != match.steps.rend()) {
    match.segment = best->segment;
    match.position = best->end;
  } else if (evicted || state.evicted_texts.HasBeginningOf(name_space, prompt)) {
    match.reason = ContextMiss::kEvicted;
  } else {
    int looked = 0;
    for (const auto& identity : state.identities) {
      if (identity.get() == state.identity) continue;
      if (++looked > kOtherIdentitiesMax) break;
      if (!HasSnapshotOf(state.FindSpace(identity.get(), name_space), prompt)) continue;
      match.reason = ContextMiss::kOtherModel;
      break;
    }
  }
  const auto beyond = std::upper_bound(match.partings.begin(), match.partings.end(), match.position);
  match.partings.erase(match.partings.begin(), beyond);
  if (match.partings.size() > ContextMatch::kPartingsMax) {
    match.partings.erase(match.partings.begin(), match.partings.end() - ContextMatch::kPartingsMax);
  }
  return match;
}

ContextChoice SegmentTree::Choose(const ContextMatch& match, int tier,
                                  absl::FunctionRef<double(int64_t begin)> compute_seconds, bool only_here) const {
  const State& state = *state_;
  // What the rows of a chain take.
  struct Rows {
    double moving = 0;  // without what is fixed
    double fixed = 0;   // of the slowest tier: tiers work at the same time
    int64_t bytes = 0;
    bool here = true;        // all of it is in the tier
    bool elsewhere = false;  // some of it is where it cannot be loaded from
  };
  const auto add = [&](const Segment& segment, SegmentContents content, Rows* rows) {
    if (content == kRows && segment.is_tuned()) return;
    const Copy* const there = segment.In(tier);
    rows->bytes += state.tiers.at(tier).Bytes(segment, content);
    rows->here = rows->here && there != nullptr && (there->present & content) != 0;
    if (there != nullptr && (there->contents() & content) != 0) return;
    const int source = state.BestSource(segment, content, tier);
    if (source == 0 && (segment.present() & content) != 0) rows->elsewhere = true;
    if (source == 0) return;  // on its way to another tier only, from where it can be had soon
    const TransferRate& rate = Rate(source);
    rows->moving += static_cast<double>(segment.Bytes(content)) / rate.bytes_per_second();
    rows->fixed = std::max(rows->fixed, rate.fixed_seconds());
  };
  std::vector<Rows> rows(match.steps.size());
  ContextChoice choice;
  choice.compute_seconds = compute_seconds(0);
  choice.reason = match.reason;
  double least = match.tuned == 0 ? choice.compute_seconds : std::numeric_limits<double>::infinity();
  for (size_t i = 0; i < match.steps.size(); ++i) {
    const ContextMatch::Step& step = match.steps[i];
    const Segment* const segment = state.Lookup(step.segment);
    GF_CHECK(segment != nullptr) << "a match is of another state of the tree";
    if (step.parent >= 0) rows[i] = rows[static_cast<size_t>(step.parent)];
    add(*segment, kRows, &rows[i]);
    if (!step.usable) continue;
    Rows all = rows[i];
    add(*segment, kSnapshot, &all);
    if (all.elsewhere || (only_here && !all.here)) continue;
    const double load = all.moving + all.fixed + Rate(tier).Seconds(static_cast<double>(all.bytes));
    const double compute = step.end == match.tokens ? 0 : compute_seconds(step.end);
    // The longest of equals.
    if (choice.segment != 0 ? load + compute <= least : load + compute < least) {
      least = load + compute;
      choice.segment = step.segment;
      choice.position = step.end;
      choice.load_seconds = load;
      choice.compute_seconds = compute;
    }
  }
  if (choice.segment == 0 && match.segment != 0) choice.reason = ContextMiss::kCheaperToCompute;
  return choice;
}

void SegmentTree::CountHit(const ContextChoice& choice) {
  GF_CHECK_NE(choice.segment, 0u);
  ++state_->counters.hits;
  state_->counters.tokens_saved += choice.position;
}

void SegmentTree::CountMiss(ContextMiss reason) { ++state_->counters.misses[static_cast<size_t>(reason)]; }

}  // namespace goldfinch
