// What is in which tier, and what goes to make room.
#include <algorithm>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/units.h"
#include "coordinator/contexts/segment_tree_state.h"

namespace goldfinch {
namespace {

// How far up a chain the snapshot before is looked for: beyond that, the seconds hardly change.
constexpr int kLookUp = 64;
// What a tuned state is worth, which cannot be computed: more than it takes to load any.
constexpr double kTunedSeconds = 10;

}  // namespace

// What the segment's snapshot saves, beyond the one before it.
double SegmentTree::State::SavedSeconds(const Segment& segment) const {
  if (segment.is_tuned()) return kTunedSeconds;
  const Segment* before = segment.parent;
  for (int i = 0; i < kLookUp && before != nullptr && (before->present() & kSnapshot) == 0; ++i) {
    before = before->parent;
  }
  return segment.seconds - (before == nullptr ? 0 : before->seconds);
}

// Contents of the copy that may go, or 0.
SegmentContents SegmentTree::State::Evictable(const Segment& segment, const Copy& copy) const {
  if (segment.holds > 0 || segment.pins > 0 || segment.coming() != 0 || now < segment.fresh_until) return 0;
  const SegmentContents beside = segment.PresentBeside(copy.tier);
  SegmentContents contents = copy.present;
  if (copy.children > 0 || (segment.children > 0 && (beside & kRows) == 0)) contents &= ~kRows;
  if (segment.contexts > 0 || segment.is_tuned()) contents &= beside;
  // A snapshot is of no use without the rows beside it.
  if ((copy.present & kSnapshot) != (contents & kSnapshot)) contents = 0;
  return contents;
}

// The same for all copies at once.
SegmentContents SegmentTree::State::EvictableEverywhere(const Segment& segment) const {
  if (segment.needed() || segment.is_tuned() || segment.coming() != 0 || now < segment.fresh_until) return 0;
  return segment.present() & (segment.children > 0 ? kSnapshot : kRowsAndSnapshot);
}

// The fastest tier, other than `beside`, that has this content; 0: none.
int SegmentTree::State::BestSource(const Segment& segment, SegmentContents content, int beside) const {
  const bool to_shelves = beside != 0 && tiers.at(beside).options.kind == TierKind::kMemory;
  int best = 0;
  double best_seconds = std::numeric_limits<double>::infinity();
  for (const Copy& copy : segment.copies) {
    if (copy.tier == beside || (copy.present & content) == 0) continue;
    if (to_shelves && !tiers.at(copy.tier).options.lends_to_shelves) continue;
    const double seconds = MoveSeconds(copy.tier, segment.Bytes(content));
    if (seconds < best_seconds || (seconds == best_seconds && copy.tier < best)) {
      best = copy.tier;
      best_seconds = seconds;
    }
  }
  return best;
}

double SegmentTree::State::MoveSeconds(int tier, int64_t bytes) const {
  return tiers.at(tier).options.rate.Seconds(static_cast<double>(bytes));
}

// Seconds for each byte that are lost if these contents of the copy go.
double SegmentTree::State::Score(const Segment& segment, const Copy& copy, SegmentContents contents) const {
  const SegmentContents last = contents & ~segment.PresentBeside(copy.tier);
  double seconds = std::numeric_limits<double>::infinity();
  if ((contents & kSnapshot) != 0 || last != 0) seconds = SavedSeconds(segment);
  if (last == 0) {
    double load = 0;
    for (const SegmentContents content : {kRows, kSnapshot}) {
      if ((contents & content) == 0) continue;
      const int source = BestSource(segment, content, copy.tier);
      load += source == 0 ? SavedSeconds(segment) : MoveSeconds(source, segment.Bytes(content));
    }
    seconds = std::min(seconds, load);
  }
  return seconds / static_cast<double>(std::max<int64_t>(segment.Bytes(contents), 1));
}

double SegmentTree::State::ScoreEverywhere(const Segment& segment, SegmentContents contents) const {
  return SavedSeconds(segment) / static_cast<double>(std::max<int64_t>(segment.Bytes(contents), 1));
}

void SegmentTree::State::List(Pool& pool, uint64_t number, EvictionOrder& order, bool listed, double score) {
  std::optional<Pool::Entry> entry;
  if (listed) entry.emplace(order.base + score, order.used, number);
  if (entry == order.listed) return;
  if (order.listed) pool.evictable.erase(*order.listed);
  if (entry) pool.evictable.insert(*entry);
  order.listed = entry;
}

// To be called when anything has changed that says whether the segment may be evicted. What others' changes do to its
// score is seen when it is about to be evicted.
void SegmentTree::State::Reindex(Segment& segment) {
  for (Copy& copy : segment.copies) {
    const SegmentContents contents = Evictable(segment, copy);
    List(tiers.at(copy.tier).pool, segment.number, copy.order, contents != 0,
         contents == 0 ? 0 : Score(segment, copy, contents));
  }
  const SegmentContents contents = EvictableEverywhere(segment);
  List(segment.space->name_space->pool, segment.number, segment.order, contents != 0,
       contents == 0 ? 0 : ScoreEverywhere(segment, contents));
}

// What was just stored, and is not any more.
void SegmentTree::State::Ripen() {
  for (; !fresh.empty() && fresh.front().first <= now; fresh.pop_front()) {
    if (Segment* const segment = Lookup(fresh.front().second); segment != nullptr) Reindex(*segment);
  }
}

bool SegmentTree::State::EvictFrom(int tier, SegmentDrops* drops) {
  Pool& pool = tiers.at(tier).pool;
  while (!pool.evictable.empty()) {
    const auto [priority, used, number] = *pool.evictable.begin();
    Segment& segment = *segments.at(number);
    Copy& copy = *segment.In(tier);
    const SegmentContents contents = Evictable(segment, copy);
    GF_CHECK_NE(contents, 0);
    const double score = Score(segment, copy, contents);
    if (copy.order.base + score > priority) {  // others of its chain have gone: it is worth more than it was
      List(pool, number, copy.order, true, score);
      continue;
    }
    pool.inflation = std::max(pool.inflation, priority);
    ++counters.evictions;
    RemoveContents(segment, tier, contents, drops);
    segment.snapshot_evicted |= (segment.present() & kSnapshot) == 0;
    if ((segment.present() & kRows) == 0) RemoveEverywhere(segment, kRowsAndSnapshot, drops);
    Settle(&segment, Why::kEvicted, drops);
    return true;
  }
  return false;
}

bool SegmentTree::State::EvictOf(Namespace& name_space, SegmentDrops* drops) {
  Pool& pool = name_space.pool;
  while (!pool.evictable.empty()) {
    const auto [priority, used, number] = *pool.evictable.begin();
    Segment& segment = *segments.at(number);
    const SegmentContents contents = EvictableEverywhere(segment);
    GF_CHECK_NE(contents, 0);
    const double score = ScoreEverywhere(segment, contents);
    if (segment.order.base + score > priority) {
      List(pool, number, segment.order, true, score);
      continue;
    }
    pool.inflation = std::max(pool.inflation, priority);
    counters.evictions += static_cast<int64_t>(segment.copies.size());
    RemoveEverywhere(segment, contents, drops);
    segment.snapshot_evicted = true;
    Settle(&segment, Why::kEvicted, drops);
    return true;
  }
  return false;
}

absl::Status SegmentTree::State::FitQuota(Namespace& name_space, SegmentDrops* drops) {
  const Pool& pool = name_space.pool;
  while (pool.bytes > pool.bytes_max) {
    if (EvictOf(name_space, drops)) continue;
    return absl::ResourceExhaustedError(absl::StrCat("contexts of namespace \"", name_space.name, "\" would take ",
                                                     WithCommas(pool.bytes), " bytes, and its quota is ",
                                                     WithCommas(pool.bytes_max)));
  }
  return absl::OkStatus();
}

absl::Status SegmentTree::State::FitTier(int tier, SegmentDrops* drops) {
  const Tier& full = tiers.at(tier);
  const Pool& pool = full.pool;
  while (pool.bytes > pool.bytes_max) {
    if (EvictFrom(tier, drops)) continue;
    return absl::ResourceExhaustedError(absl::StrCat("contexts that must stay and a new one would take ",
                                                     WithCommas(pool.bytes), " bytes of ", full.options.name,
                                                     ", which has ", WithCommas(pool.bytes_max)));
  }
  return absl::OkStatus();
}

// Whether so many bytes more fit as it is.
absl::Status SegmentTree::State::CheckFits(const Tier& tier, const Namespace& name_space, int64_t bytes) const {
  for (const Pool* const pool : {&tier.pool, &name_space.pool}) {
    if (bytes <= pool->bytes_max - pool->bytes) continue;
    const std::string name =
        pool == &tier.pool ? tier.options.name : absl::StrCat("namespace \"", name_space.name, "\"");
    return absl::ResourceExhaustedError(absl::StrCat(name, " has ", WithCommas(pool->bytes), " bytes of ",
                                                     WithCommas(pool->bytes_max), ", and a segment that was found has ",
                                                     WithCommas(bytes)));
  }
  return absl::OkStatus();
}

// ---- The interface

absl::StatusOr<Saving> SegmentTree::Store(uint64_t number, int tier, double now, SegmentDrops* drops) {
  State& state = *state_;
  state.Now(now);
  state.Ripen();
  Segment& segment = state.Held(number);
  const Tier* const target = state.LookupTier(tier);
  if (target == nullptr) return absl::UnavailableError("the group has ended");
  if (segment.wants_logits && segment.holds == 1 && segment.coming() == 0) {
    state.RemoveEverywhere(segment, kSnapshot, drops);
    segment.snapshot_bytes = segment.wanted_bytes;
    segment.logits = true;
  }
  segment.wants_logits = false;
  if ((segment.contents() & kRows) == 0) state.Rebase(segment, drops);
  Saving saving;
  saving.contents = kRowsAndSnapshot & ~segment.contents();
  // A snapshot is of use with the rows beside it.
  const Copy* const here = segment.In(tier);
  if ((saving.contents & kSnapshot) != 0) saving.contents |= kRows & ~(here == nullptr ? 0 : here->contents());
  saving.begin = (saving.contents & kRows) != 0 ? segment.begin : segment.end();
  if (saving.contents == 0) return saving;
  const int64_t bytes = target->Bytes(segment, saving.contents);
  if (bytes > target->pool.bytes_max) {  // nothing need be evicted to know it
    return absl::ResourceExhaustedError(absl::StrCat("a segment of ", WithCommas(bytes), " bytes does not fit ",
                                                     target->options.name, ", which has ",
                                                     WithCommas(target->pool.bytes_max)));
  }
  state.AddContents(segment, tier, saving.contents, /*coming=*/true);
  absl::Status fits = state.FitQuota(*segment.space->name_space, drops);
  if (fits.ok()) fits = state.FitTier(tier, drops);
  if (!fits.ok()) {
    state.RemoveContents(segment, tier, saving.contents, nullptr);
    return fits;
  }
  return saving;
}

absl::StatusOr<BringPlan> SegmentTree::Bring(uint64_t number, int tier, double now, SegmentDrops* drops) {
  State& state = *state_;
  state.Now(now);
  state.Ripen();
  Segment& last = state.Held(number);
  if (state.LookupTier(tier) == nullptr) return absl::UnavailableError("the group has ended");
  BringPlan plan;
  const std::vector<uint64_t> chain = Chain(number);
  for (const uint64_t link : chain) {
    const Segment& segment = *state.Lookup(link);
    const Copy* const there = segment.In(tier);
    bool awaited = false;
    for (const SegmentContents content : {kRows, kSnapshot}) {
      if (content == kSnapshot ? &segment != &last : segment.is_tuned()) continue;
      if (there != nullptr && (there->contents() & content) != 0) {
        awaited |= (there->coming & content) != 0;
        continue;
      }
      const int source = state.BestSource(segment, content, tier);
      if (source == 0) return absl::FailedPreconditionError("not all of the context is kept any more");
      plan.moves.push_back({link, content, source, segment.Bytes(content)});
    }
    if (awaited) plan.awaited.push_back(link);
  }
  for (const BringMove& move : plan.moves) {
    state.AddContents(*state.Lookup(move.segment), tier, move.contents, /*coming=*/true);
  }
  if (absl::Status fits = state.FitTier(tier, drops); !fits.ok()) {
    for (auto move = plan.moves.rbegin(); move != plan.moves.rend(); ++move) {
      state.RemoveContents(*state.Lookup(move->segment), tier, move->contents, nullptr);
    }
    return fits;
  }
  return plan;
}

void SegmentTree::Arrived(uint64_t number, int tier, SegmentContents contents, double now, SegmentDrops* drops) {
  State& state = *state_;
  state.Now(now);
  Segment* const segment = state.Lookup(number);
  Copy* const copy = segment == nullptr ? nullptr : segment->In(tier);
  if (copy == nullptr || (copy->coming & contents) == 0) return;
  contents &= copy->coming;
  copy->coming &= ~contents;
  copy->present |= contents;
  if ((contents & kSnapshot) != 0) segment->snapshot_evicted = false;
  segment->fresh_until = state.now + kFreshSeconds;
  state.fresh.emplace_back(segment->fresh_until, number);
  state.Touch(*segment);
  state.Reindex(*segment);
  state.Settle(segment, State::Why::kUnneeded, drops);
}

absl::Status SegmentTree::MakeRoom(int tier, int64_t bytes, double now, SegmentDrops* drops) {
  state_->Now(now);
  state_->Ripen();
  Tier* const found = state_->LookupTier(tier);
  if (found == nullptr) return absl::UnavailableError("the group has ended");
  if (bytes > found->pool.bytes_max) {
    return absl::ResourceExhaustedError(absl::StrCat(found->options.name, " has ", WithCommas(found->pool.bytes_max),
                                                     " bytes in all, and ", WithCommas(bytes), " are wanted"));
  }
  found->pool.bytes += bytes;
  absl::Status fits = state_->FitTier(tier, drops);
  found->pool.bytes -= bytes;
  return fits;
}

absl::Status SegmentTree::Reserve(int tier, const std::string& name_space, int64_t bytes, double now,
                                  SegmentDrops* drops) {
  State& state = *state_;
  state.Now(now);
  state.Ripen();
  Tier* const found = state.LookupTier(tier);
  if (found == nullptr) return absl::UnavailableError("the tier is closed");
  if (bytes > found->pool.bytes_max) {  // nothing need be evicted to know it
    return absl::ResourceExhaustedError(absl::StrCat("a context of ", WithCommas(bytes), " bytes does not fit ",
                                                     found->options.name, ", which has ",
                                                     WithCommas(found->pool.bytes_max)));
  }
  Namespace& space = state.NamespaceOf(name_space);
  found->pool.bytes += bytes;
  space.pool.bytes += bytes;
  absl::Status fits = state.FitQuota(space, drops);
  if (fits.ok()) fits = state.FitTier(tier, drops);
  if (!fits.ok()) Unreserve(tier, name_space, bytes);
  return fits;
}

void SegmentTree::Unreserve(int tier, const std::string& name_space, int64_t bytes) {
  state_->tiers.at(tier).pool.bytes -= bytes;
  state_->NamespaceOf(name_space).pool.bytes -= bytes;
}

}  // namespace goldfinch
