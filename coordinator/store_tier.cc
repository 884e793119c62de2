#include "coordinator/store_tier.h"

#include <algorithm>
#include <limits>

#include "base/check.h"

namespace goldfinch {
namespace {

// What a store takes beside the bytes of segments: headers, names, and blocks of the file system.
constexpr double kUsableShare = 0.95;
// How far up a chain is looked for what is in the store.
constexpr int kLookUp = 64;
constexpr size_t kCandidatesMax = 4096;
constexpr int kDoublingsMax = 6;

}  // namespace

StoreTier::StoreTier(const StoreTierOptions& options, StoreContents contents, const SegmentBytes& bytes,
                     double token_seconds, SegmentTree* tree, double now)
    : options_(options), tree_(tree), snapshot_bytes_(bytes.snapshot) {
  const double usable = kUsableShare * static_cast<double>(options.bytes_max - contents.other_bytes);
  tier_ = tree->OpenTier({.kind = TierKind::kDisk,
                          .name = options.name,
                          .bytes_max = std::max<int64_t>(static_cast<int64_t>(usable), 0),
                          .rate = options.rate});
  Adopt(std::move(contents), bytes, token_seconds, now);
}

// ---- The start

void StoreTier::Adopt(StoreContents contents, const SegmentBytes& bytes, double token_seconds, double now) {
  std::vector<StoreContents::Found>& found = contents.segments;
  // What was used last is adopted last, and so is evicted last; but parents come first.
  std::sort(found.begin(), found.end(),
            [](const auto& a, const auto& b) { return a.segment.used_unix_seconds < b.segment.used_unix_seconds; });
  std::map<SegmentKey, size_t> places;
  for (size_t i = 0; i < found.size(); ++i) places.emplace(found[i].segment.key, i);
  std::map<SegmentKey, uint64_t> numbers;
  std::vector<bool> done(found.size());
  const auto adopt = [&](size_t i) {
    const StoredSegment& stored = found[i].segment;
    const bool served = *stored.identity == tree_->identity();
    const auto parent = stored.parent ? numbers.find(*stored.parent) : numbers.end();
    absl::StatusOr<uint64_t> number = absl::NotFoundError("the parent of a segment is not in the store");
    const int64_t begin = parent == numbers.end() ? 0 : tree_->Find(parent->second)->end;
    if (stored.end == 0) {
      const int64_t snapshot = served ? bytes.snapshot : stored.bytes - stored.bytes_without_snapshot;
      if (stored.has_snapshot) {
        number = tree_->AdoptTuned(*stored.identity, stored.name_space, stored.key, snapshot, tier_, now);
      }
    } else if ((!stored.parent || parent != numbers.end()) && stored.begin == begin) {
      SegmentBytes size = bytes;
      if (!served) {
        size.per_token = stored.bytes_without_snapshot / (stored.end - stored.begin);
        size.snapshot = stored.bytes - stored.bytes_without_snapshot;
      }
      size.logits = stored.has_logits;
      number = tree_->Adopt(*stored.identity, stored.name_space, stored.parent ? parent->second : 0, found[i].ids, size,
                            tier_, stored.has_snapshot ? kRowsAndSnapshot : kRows,
                            token_seconds * static_cast<double>(found[i].ids.size()), now);
    }
    if (!number.ok()) return Do(StoreAction::Kind::kDelete, stored.key);
    numbers.emplace(stored.key, *number);
    kept_[*number].key = stored.key;
    SetKept(*number, stored.has_snapshot ? kRowsAndSnapshot : kRows);
  };
  std::vector<size_t> chain;
  for (size_t i = 0; i < found.size(); ++i) {
    for (size_t next = i; !done[next];) {
      done[next] = true;
      chain.push_back(next);
      const std::optional<SegmentKey>& parent = found[next].segment.parent;
      const auto above = parent ? places.find(*parent) : places.end();
      if (above == places.end()) break;
      next = above->second;
    }
    for (; !chain.empty(); chain.pop_back()) adopt(chain.back());
  }
  AdoptNames(contents.names, numbers, now);
  SegmentDrops drops;
  tree_->Tidy(&drops);
  for (const SegmentDrop& drop : drops) {
    if (drop.tier == tier_) Dropped(drop);
  }
}

absl::StatusOr<uint64_t> StoreTier::AdoptTuned(const std::string& name_space, const SegmentKey& key, double now,
                                               SegmentDrops* drops) {
  uint64_t number = tree_->FindTuned(key);
  if (number == 0) {
    absl::Status status = tree_->MakeRoom(tier_, snapshot_bytes_, now, drops);
    if (status.ok()) {
      const auto adopted = tree_->AdoptTuned(tree_->identity(), name_space, key, snapshot_bytes_, tier_, now);
      status = adopted.status();
      number = adopted.value_or(0);
    }
    if (!status.ok()) {
      Do(StoreAction::Kind::kDelete, key);
      return status;
    }
  }
  kept_[number].key = key;
  SetKept(number, kRowsAndSnapshot);
  return number;
}

void StoreTier::GroupEnded(int replica, SegmentDrops* drops) {
  const auto group = groups_.find(replica);
  if (group == groups_.end()) return;
  const int tier = group->second;
  groups_.erase(group);
  for (auto wait = waits_.begin(); wait != waits_.end();) {
    if (wait->second.tier == tier) {
      tree_->Release(wait->second.segment, drops);
      wait = waits_.erase(wait);
    } else {
      ++wait;
    }
  }
  // Those that have been given out will be ended by the mover.
  std::vector<uint64_t> ended;
  for (std::deque<uint64_t>* const waiting : {&saves_, &brings_}) {
    for (const uint64_t number : *waiting) {
      if (moves_.at(number).replica == replica) ended.push_back(number);
    }
  }
  for (const uint64_t number : ended) EndMove(number, drops);
}

// ---- What is there

SegmentContents StoreTier::Present(uint64_t segment, int tier) const {
  const std::optional<SegmentInfo> info = tree_->Find(segment);
  if (!info) return 0;
  for (const SegmentInfo::Copy& copy : info->copies) {
    if (copy.tier == tier) return copy.present;
  }
  return 0;
}

SegmentContents StoreTier::PresentOrComing(uint64_t segment, int tier) const {
  const std::optional<SegmentInfo> info = tree_->Find(segment);
  if (!info) return 0;
  for (const SegmentInfo::Copy& copy : info->copies) {
    if (copy.tier == tier) return copy.present | copy.coming;
  }
  return 0;
}

// A chain that was broken by a loss stays for as long as somebody holds it.
bool StoreTier::ChainHasRows(uint64_t segment) const {
  for (uint64_t next = segment; next != 0;) {
    const std::optional<SegmentInfo> info = tree_->Find(next);
    if (info->end == 0) return true;  // a tuned state
    SegmentContents contents = 0;
    for (const SegmentInfo::Copy& copy : info->copies) contents |= copy.present | copy.coming;
    if ((contents & kRows) == 0) return false;
    next = info->parent;
  }
  return true;
}

// What the store has of a segment that is in kept_.
void StoreTier::SetKept(uint64_t segment, SegmentContents contents) {
  const auto found = kept_.find(segment);
  Kept& kept = found->second;
  long_bytes_ -= kept.long_bytes;
  if (contents == 0 && PresentOrComing(segment, tier_) == 0) {
    kept_.erase(found);
    return;
  }
  kept.contents = contents;
  kept.long_bytes = 0;
  if (const std::optional<SegmentInfo> info = tree_->Find(segment); info && info->end >= options_.protect_tokens) {
    kept.long_bytes =
        ((contents & kRows) != 0 ? info->row_bytes : 0) + ((contents & kSnapshot) != 0 ? info->snapshot_bytes : 0);
  }
  long_bytes_ += kept.long_bytes;
}

void StoreTier::Dropped(const SegmentDrop& drop) { dropped_.insert(drop.segment); }

void StoreTier::Used(uint64_t segment) {
  const auto kept = kept_.find(segment);
  if (kept != kept_.end() && kept->second.contents != 0) Do(StoreAction::Kind::kTouch, kept->second.key);
}

void StoreTier::Do(StoreAction::Kind kind, const SegmentKey& key) {
  StoreAction& action = actions_.emplace_back();
  action.kind = kind;
  action.key = key;
}

// ---- Moves

uint64_t StoreTier::AddMove(const Move& move, double now) {
  const uint64_t number = ++last_move_;
  tree_->Hold(move.segment, now);
  moves_.emplace(number, move);
  (move.save ? saves_ : brings_).push_back(number);
  return number;
}

bool StoreTier::HasMove(uint64_t segment, int tier) const {
  return std::any_of(moves_.begin(), moves_.end(),
                     [&](const auto& entry) { return entry.second.segment == segment && entry.second.tier == tier; });
}

// Ends one that was not given out: nothing of it comes.
void StoreTier::EndMove(uint64_t number, SegmentDrops* drops) {
  const auto found = moves_.find(number);
  const Move move = found->second;
  moves_.erase(found);
  std::deque<uint64_t>& waiting = move.save ? saves_ : brings_;
  waiting.erase(std::find(waiting.begin(), waiting.end(), number));
  tree_->Lost(move.segment, move.tier, move.contents, drops);
  tree_->Release(move.segment, drops);
  look_at_waits_ = true;
}

std::optional<StoreAction> StoreTier::Begin(uint64_t number, Move& move) {
  StoreAction action;
  action.move = number;
  if (!move.save) {
    const auto kept = kept_.find(move.segment);
    if (kept == kept_.end() || (move.contents & ~kept->second.contents) != 0) return std::nullopt;  // lost meanwhile
    action.kind = StoreAction::Kind::kBring;
    action.bring = {
        .replica = move.replica, .segment = move.segment, .key = kept->second.key, .contents = move.contents};
    return action;
  }
  if (!ChainHasRows(move.segment)) return std::nullopt;
  const std::optional<SegmentInfo> info = tree_->Find(move.segment);
  const SegmentKey key = tree_->Key(move.segment);
  move.key = kept_[move.segment].key = key;
  action.kind = StoreAction::Kind::kSave;
  action.save = {.replica = move.replica,
                 .segment = move.segment,
                 .name_space = info->name_space,
                 .key = key,
                 .parent = info->parent == 0 ? std::nullopt : std::optional<SegmentKey>(tree_->Key(info->parent)),
                 .begin = info->begin,
                 .end = info->end,
                 .ids = tree_->Ids(move.segment, info->begin, info->end),
                 .snapshot = (move.contents & kSnapshot) != 0,
                 .logits = (move.contents & kSnapshot) != 0 && info->logits};
  return action;
}

void StoreTier::BeginMoves(absl::FunctionRef<bool(int replica)> may, std::deque<uint64_t>* waiting, int* running,
                           int running_max, SegmentDrops* drops) {
  std::deque<uint64_t> later;
  while (!waiting->empty() && *running < running_max) {
    const uint64_t number = waiting->front();
    if (!may(moves_.at(number).replica)) {
      later.push_back(number);
      waiting->pop_front();
      continue;
    }
    std::optional<StoreAction> action = Begin(number, moves_.at(number));
    if (!action) {
      EndMove(number, drops);
      continue;
    }
    waiting->pop_front();
    ++*running;
    actions_.push_back(*std::move(action));
  }
  waiting->insert(waiting->begin(), later.begin(), later.end());
}

std::vector<StoreAction> StoreTier::TakeActions(absl::FunctionRef<bool(int replica)> freed, double now,
                                                SegmentDrops* drops) {
  PlanSaves(now, drops);
  if (look_at_names_) PlanNames(now);
  for (const SegmentDrop& drop : *drops) {
    if (drop.tier == tier_) Dropped(drop);
  }
  for (const uint64_t segment : std::exchange(dropped_, {})) {
    const auto kept = kept_.find(segment);
    if (kept == kept_.end()) continue;
    if (HasMove(segment, tier_)) continue;  // its end looks again
    const SegmentContents left = PresentOrComing(segment, tier_);
    if (left == 0) {
      Do(StoreAction::Kind::kDelete, kept->second.key);
      SetKept(segment, 0);
    } else if ((left & kSnapshot) == 0 && (kept->second.contents & kSnapshot) != 0) {
      Do(StoreAction::Kind::kDropSnapshot, kept->second.key);
      SetKept(segment, kRows);
    }
  }
  BeginMoves(freed, &brings_, &bringing_, options_.brings_max, drops);
  BeginMoves([](int) { return true; }, &saves_, &saving_, options_.saves_max, drops);
  return std::exchange(actions_, {});
}

void StoreTier::Moved(uint64_t number, const StoreMoved& moved, double now, SegmentDrops* drops) {
  const auto found = moves_.find(number);
  GF_CHECK(found != moves_.end()) << "move " << number;
  const Move move = found->second;
  moves_.erase(found);
  --(move.save ? saving_ : bringing_);
  ++(!moved.status.ok() ? moves_failed_ : move.save ? saved_ : brought_);
  if (move.save) {
    EndSave(move, moved, now, drops);
  } else {
    EndBring(move, moved, now, drops);
  }
  tree_->Release(move.segment, drops);
  look_at_waits_ = look_at_names_ = true;
}

void StoreTier::EndSave(const Move& move, const StoreMoved& moved, double now, SegmentDrops* drops) {
  if ((move.contents & ~moved.stored) == 0) {
    failures_ = 0;
    tree_->Arrived(move.segment, tier_, move.contents, now, drops);
  } else {
    if (absl::IsResourceExhausted(moved.status) || absl::IsPermissionDenied(moved.status) ||
        absl::IsDataLoss(moved.status)) {
      paused_until_ = now + options_.pause_seconds * (1 << std::min(failures_, kDoublingsMax));
      ++failures_;
    }
    tree_->Lost(move.segment, tier_, move.contents, drops);
  }
  kept_[move.segment].key = move.key;
  SetKept(move.segment, moved.stored);
  dropped_.insert(move.segment);
}

void StoreTier::EndBring(const Move& move, const StoreMoved& moved, double now, SegmentDrops* drops) {
  const auto group = groups_.find(move.replica);
  if (moved.status.ok()) {
    tree_->Arrived(move.segment, move.tier, move.contents, now, drops);
    tree_->MeasuredMove(tier_, moved.bytes, moved.seconds);
  } else {
    // Without its rows, a snapshot that is there already is of no use.
    const SegmentContents lost = (move.contents & kRows) != 0 ? kRowsAndSnapshot : move.contents;
    tree_->Lost(move.segment, move.tier, lost, drops);
    if ((move.contents & ~moved.stored) != 0) {
      const SegmentContents gone = (moved.stored & kRows) == 0 ? kRowsAndSnapshot : kRowsAndSnapshot & ~moved.stored;
      tree_->Lost(move.segment, tier_, gone, drops);
      if (kept_.contains(move.segment)) SetKept(move.segment, moved.stored);
      dropped_.insert(move.segment);
    }
  }
  // Shelves may have what nobody knows of: of a move that has failed, or of a group that has ended since.
  if (group == groups_.end()) return;
  const SegmentContents there = PresentOrComing(move.segment, group->second);
  const SegmentContents unknown = move.contents & ~there;
  if (unknown == 0) return;
  // What has come of a tuned state is of use when it comes again, which must not wait for a Step, as there may be none.
  if (const std::optional<SegmentInfo> info = tree_->Find(move.segment); info && info->end == 0) return;
  SegmentDrop& drop = drops->emplace_back();
  drop.segment = move.segment;
  drop.tier = group->second;
  drop.contents = there == 0 ? kRowsAndSnapshot : unknown;
}

// ---- Saving

void StoreTier::Stored(uint64_t segment) {
  look_at_waits_ = true;
  if (!WorthSaving(segment)) return;
  const bool is_long = tree_->Find(segment)->end >= options_.protect_tokens;
  candidates_.emplace(!is_long, segment);
  if (candidates_.size() > kCandidatesMax) candidates_.erase(std::prev(candidates_.end()));
}

int StoreTier::SourceOf(const SegmentInfo& info, SegmentContents contents) const {
  for (const auto& [replica, tier] : groups_) {
    for (const SegmentInfo::Copy& copy : info.copies) {
      if (copy.tier == tier && (contents & ~copy.present) == 0) return replica;
    }
  }
  return -1;
}

bool StoreTier::WorthSaving(uint64_t segment) const {
  const std::optional<SegmentInfo> last = tree_->Find(segment);
  if (!last || (PresentOrComing(segment, tier_) & kSnapshot) != 0 || SourceOf(*last, kSnapshot) < 0) return false;
  if (last->contexts > 0) return true;
  if (!options_.durable && last->end < options_.protect_tokens) return false;
  double seconds = 0;
  int64_t bytes = last->snapshot_bytes;
  uint64_t next = segment;
  for (int i = 0; i < kLookUp && next != 0; ++i) {
    const std::optional<SegmentInfo> info = tree_->Find(next);
    SegmentContents present = 0, stored = 0;
    for (const SegmentInfo::Copy& copy : info->copies) {
      present |= copy.present;
      if (copy.tier == tier_) stored = copy.present | copy.coming;
    }
    if ((stored & kSnapshot) != 0) break;
    if ((present & kSnapshot) != 0) seconds += info->saved_seconds;
    bytes += info->row_bytes;
    next = info->parent;
  }
  return seconds > tree_->Rate(tier_).Seconds(static_cast<double>(bytes));
}

void StoreTier::PlanSaves(double now, SegmentDrops* drops) {
  while (saving_ + static_cast<int>(saves_.size()) < options_.saves_max && !candidates_.empty() &&
         now >= paused_until_) {
    const uint64_t segment = candidates_.begin()->second;
    candidates_.erase(candidates_.begin());
    if (!WorthSaving(segment)) continue;
    tree_->Hold(segment, now);
    const absl::StatusOr<BringPlan> plan = tree_->Bring(segment, tier_, now, drops);
    if (plan.ok()) {
      // Rows and snapshot of a segment follow each other, and are one move.
      for (size_t i = 0; i < plan->moves.size();) {
        Move move = {.save = true, .tier = tier_, .segment = plan->moves[i].segment};
        for (; i < plan->moves.size() && plan->moves[i].segment == move.segment; ++i) {
          move.contents |= plan->moves[i].contents;
        }
        move.replica = SourceOf(*tree_->Find(move.segment), move.contents);
        if (move.replica >= 0) {
          AddMove(move, now);
        } else {  // one group has the rows, another one the snapshot
          tree_->Lost(move.segment, tier_, move.contents, drops);
        }
      }
    }
    tree_->Release(segment, drops);
  }
}

// ---- Bringing

SegmentContents StoreTier::Wanted(uint64_t link, uint64_t last) const {
  if (link != last) return kRows;
  return tree_->Find(link)->end == 0 ? kSnapshot : kRowsAndSnapshot;
}

bool StoreTier::StillComes(const Waiting& waiting) const {
  bool comes = false;
  for (const uint64_t link : tree_->Chain(waiting.segment)) {
    const SegmentContents wanted = Wanted(link, waiting.segment);
    if ((wanted & ~PresentOrComing(link, waiting.tier)) != 0) return false;
    comes |= (wanted & ~Present(link, waiting.tier)) != 0;
  }
  return comes;
}

bool StoreTier::Wait(int replica, uint64_t request, uint64_t segment, absl::FunctionRef<bool(uint64_t segment)> usable,
                     double now, SegmentDrops* drops) {
  if (waits_.contains(request)) return true;
  const auto group = groups_.find(replica);
  if (group == groups_.end() || static_cast<int>(waits_.size()) >= options_.waits_max) return false;
  const int tier = group->second;
  tree_->Hold(segment, now);
  const absl::StatusOr<BringPlan> plan = tree_->Bring(segment, tier, now, drops);
  if (!plan.ok() || (plan->moves.empty() && plan->awaited.empty())) {
    tree_->Release(segment, drops);
    return false;
  }
  const bool can = std::all_of(plan->moves.begin(), plan->moves.end(), [&](const BringMove& move) {
    return (Present(move.segment, tier_) & move.contents) != 0 && usable(move.segment) && !HasMove(move.segment, tier);
  });
  // Something is on the shelves of another group alone, or was just dropped from these, or its other half is coming.
  if (!can) {
    for (const BringMove& move : plan->moves) tree_->Lost(move.segment, tier, move.contents, drops);
    tree_->Release(segment, drops);
    return false;
  }
  for (size_t i = 0; i < plan->moves.size();) {
    Move move = {.save = false, .replica = replica, .tier = tier, .segment = plan->moves[i].segment};
    for (; i < plan->moves.size() && plan->moves[i].segment == move.segment; ++i) {
      move.contents |= plan->moves[i].contents;
    }
    AddMove(move, now);
  }
  waits_[request] = {replica, tier, segment, now + options_.wait_seconds_max};
  return true;
}

std::vector<uint64_t> StoreTier::TakePrepared(double now, SegmentDrops* drops) {
  const bool look = std::exchange(look_at_waits_, false);
  std::vector<uint64_t> prepared;
  for (auto wait = waits_.begin(); wait != waits_.end();) {
    if (now < wait->second.until && (!look || StillComes(wait->second))) {
      ++wait;
      continue;
    }
    prepared.push_back(wait->first);
    tree_->Release(wait->second.segment, drops);
    wait = waits_.erase(wait);
  }
  return prepared;
}

}  // namespace goldfinch
