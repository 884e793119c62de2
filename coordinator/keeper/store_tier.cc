#include "coordinator/keeper/store_tier.h"

#include <algorithm>
#include <limits>

#include "base/check.h"

namespace goldfinch {
namespace {

// How far up a chain is looked for what is in the store.
constexpr int kLookUp = 64;
constexpr size_t kCandidatesMax = 4096;
constexpr int kDoublingsMax = 6;

}  // namespace

void StoreTier::GenerationEnded(int replica, SegmentDrops* drops) {
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

// What the store has of a segment.
void StoreTier::SetKept(uint64_t segment, const SegmentKey& key, SegmentContents contents) {
  if (const auto found = kept_.find(segment); found != kept_.end()) {
    protected_bytes_ -= found->second.protected_bytes;
    kept_.erase(found);
  }
  if (contents == 0) return;
  Kept& kept = kept_[segment];
  kept.key = key;
  kept.contents = contents;
  if (const std::optional<SegmentInfo> info = tree_->Find(segment); info && info->end >= options_.protect_tokens) {
    kept.protected_bytes =
        ((contents & kRows) != 0 ? info->row_bytes : 0) + ((contents & kSnapshot) != 0 ? info->snapshot_bytes : 0);
  }
  protected_bytes_ += kept.protected_bytes;
  if (contents != kRowsAndSnapshot) return;
  if (const auto names = names_at_.find(segment); names != names_at_.end()) {
    changed_names_.insert(names->second.begin(), names->second.end());
  }
}

// Deletes what the store has of a segment beyond what the tree counts.
void StoreTier::Tidy(uint64_t segment) {
  const auto found = kept_.find(segment);
  if (found == kept_.end() || writing_.contains(segment)) return;  // the end of what is written looks again
  const Kept kept = found->second;
  const SegmentContents left = Present(segment, tier_);
  if (left == 0) {
    Do(StoreAction::Kind::kDelete, kept.key);
    SetKept(segment, kept.key, 0);
  } else if ((left & kSnapshot) == 0 && (kept.contents & kSnapshot) != 0) {
    Do(StoreAction::Kind::kDropSnapshot, kept.key);
    SetKept(segment, kept.key, kRows);
  }
}

void StoreTier::Dropped(const SegmentDrop& drop) { dropped_.push_back(drop.segment); }

void StoreTier::Used(uint64_t segment) {
  if (const auto kept = kept_.find(segment); kept != kept_.end()) Do(StoreAction::Kind::kTouch, kept->second.key);
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
  if (!move.save) coming_.emplace(move.segment, move.tier);
  return number;
}

// Ends one that was not given out: nothing of it comes.
void StoreTier::EndMove(uint64_t number, SegmentDrops* drops) {
  const auto found = moves_.find(number);
  const Move move = found->second;
  moves_.erase(found);
  std::deque<uint64_t>& waiting = move.save ? saves_ : brings_;
  waiting.erase(std::find(waiting.begin(), waiting.end(), number));
  if (move.save) {
    tree_->Lost(move.segment, move.tier, move.contents, drops);
  } else {
    coming_.erase({move.segment, move.tier});
    const SegmentContents before = Present(move.segment, move.tier);
    LoseBrought(move, drops);
    if (before != Present(move.segment, move.tier)) {
      drops->push_back({.segment = move.segment, .tier = move.tier, .contents = before});
    }
  }
  tree_->Release(move.segment, drops);
  look_at_waits_ = true;
}

// None: it cannot be carried out any more.
std::optional<StoreAction> StoreTier::Begin(uint64_t number, Move& move, SegmentDrops* drops) {
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
  if (!ChainHasRows(move.segment) || (move.contents & ~PresentOrComing(move.segment, tier_)) != 0) return std::nullopt;
  const std::optional<SegmentInfo> info = tree_->Find(move.segment);
  const SegmentKey key = tree_->Key(move.segment);
  if (const auto kept = kept_.find(move.segment); kept != kept_.end() && kept->second.key != key) {
    // It begins elsewhere since its parents were lost: the file is of no use beside a new one.
    tree_->Lost(move.segment, tier_, kRowsAndSnapshot, drops);
    dropped_.push_back(move.segment);
    return std::nullopt;
  }
  move.key = key;
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

void StoreTier::BeginMoves(absl::FunctionRef<bool(const Move& move)> may, std::deque<uint64_t>* waiting, int* running,
                           int running_max, SegmentDrops* drops) {
  for (size_t i = 0; i < waiting->size() && *running < running_max;) {
    const uint64_t number = (*waiting)[i];
    Move& move = moves_.at(number);
    if (!may(move)) {
      ++i;
      continue;
    }
    std::optional<StoreAction> action = Begin(number, move, drops);
    if (!action) {
      EndMove(number, drops);
      continue;
    }
    waiting->erase(waiting->begin() + static_cast<std::ptrdiff_t>(i));
    ++*running;
    if (move.save) writing_.insert(move.segment);
    actions_.push_back(*std::move(action));
  }
}

std::vector<StoreAction>& StoreTier::TakeActions(absl::FunctionRef<bool(int replica)> freed, double now,
                                                 SegmentDrops* drops) {
  PlanSaves(now, drops);
  PlanNames(now);
  for (const SegmentDrop& drop : *drops) {
    if (drop.tier == tier_) Dropped(drop);
  }
  DropFiles();
  BeginMoves([&](const Move& move) { return freed(move.replica); }, &brings_, &bringing_, options_.brings_max, drops);
  // One after the other, as each says what the store has of the segment then.
  BeginMoves([&](const Move& move) { return !writing_.contains(move.segment); }, &saves_, &saving_, options_.saves_max,
             drops);
  taken_actions_.clear();
  std::swap(taken_actions_, actions_);
  return taken_actions_;
}

// Has the files lose what the tier has lost.
void StoreTier::DropFiles() {
  std::swap(looked_at_, dropped_);
  for (const uint64_t segment : looked_at_) Tidy(segment);
  looked_at_.clear();
}

void StoreTier::Moved(uint64_t number, const StoreMoved& moved, double now, SegmentDrops* drops) {
  const auto found = moves_.find(number);
  GF_CHECK(found != moves_.end()) << "move " << number;
  const Move move = found->second;
  moves_.erase(found);
  --(move.save ? saving_ : bringing_);
  if (!moved.status.ok()) {
    ++moves_failed_;
  } else if (!move.imported) {
    ++(move.save ? saved_ : brought_);
  }
  if (move.save) {
    writing_.erase(move.segment);
    EndSave(move, moved, now, drops);
  } else {
    coming_.erase({move.segment, move.tier});
    EndBring(move, moved, now, drops);
  }
  tree_->Release(move.segment, drops);
  look_at_waits_ = true;
}

void StoreTier::EndSave(const Move& move, const StoreMoved& moved, double now, SegmentDrops* drops) {
  if ((move.contents & ~moved.stored) == 0) {
    failures_ = 0;
    tree_->Arrived(move.segment, tier_, move.contents, now, drops);
  } else {
    if (absl::IsResourceExhausted(moved.status) || absl::IsPermissionDenied(moved.status) ||
        absl::IsDataLoss(moved.status) || absl::IsInternal(moved.status)) {
      paused_until_ = now + options_.pause_seconds * (1 << std::min(failures_, kDoublingsMax));
      ++failures_;
    }
    // With what was there before, if that was found damaged when it was to be copied.
    tree_->Lost(move.segment, tier_, move.contents | (Present(move.segment, tier_) & ~moved.stored), drops);
  }
  // Without its rows, nothing of it can be used, nor what of it waits to be saved.
  if ((Present(move.segment, tier_) & kRows) == 0) tree_->Lost(move.segment, tier_, kRowsAndSnapshot, drops);
  SetKept(move.segment, move.key, moved.stored);
  dropped_.push_back(move.segment);
}

// What was to be brought is not there.
void StoreTier::LoseBrought(const Move& move, SegmentDrops* drops) {
  // Without its rows, a snapshot that is there already is of no use.
  tree_->Lost(move.segment, move.tier, (move.contents & kRows) != 0 ? kRowsAndSnapshot : move.contents, drops);
}

void StoreTier::EndBring(const Move& move, const StoreMoved& moved, double now, SegmentDrops* drops) {
  const auto group = groups_.find(move.replica);
  if (moved.status.ok()) {
    tree_->Arrived(move.segment, move.tier, move.contents, now, drops);
    tree_->MeasuredMove(tier_, moved.bytes, moved.seconds);
  } else {
    LoseBrought(move, drops);
    if ((move.contents & ~moved.stored) != 0) {
      const SegmentContents gone = (moved.stored & kRows) == 0 ? kRowsAndSnapshot : kRowsAndSnapshot & ~moved.stored;
      tree_->Lost(move.segment, tier_, gone, drops);
      if (const auto kept = kept_.find(move.segment); kept != kept_.end()) {
        SetKept(move.segment, SegmentKey(kept->second.key), moved.stored);
      }
      dropped_.push_back(move.segment);
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
    SaveNow(segment, now, drops).IgnoreError();
    tree_->Release(segment, drops);
  }
}

absl::Status StoreTier::SaveNow(uint64_t segment, double now, SegmentDrops* drops) {
  const absl::StatusOr<BringPlan> plan = tree_->Bring(segment, tier_, now, drops);
  if (!plan.ok()) return plan.status();
  absl::Status status;
  // Rows and snapshot of a segment follow each other, and are one move.
  for (size_t i = 0; i < plan->moves.size();) {
    Move move = {.save = true, .tier = tier_, .segment = plan->moves[i].segment};
    for (; i < plan->moves.size() && plan->moves[i].segment == move.segment; ++i) {
      move.contents |= plan->moves[i].contents;
    }
    move.replica = SourceOf(*tree_->Find(move.segment), move.contents);
    if (move.replica >= 0) {
      AddMove(move, now);
    } else {
      tree_->Lost(move.segment, tier_, move.contents, drops);
      status = absl::FailedPreconditionError("one group of workers has the rows of the text, another one its snapshot");
    }
  }
  return status;
}

// ---- Bringing

bool StoreTier::StillComes(const Waiting& waiting) const {
  bool comes = false;
  for (const uint64_t link : tree_->Chain(waiting.segment)) {
    const SegmentContents wanted = link == waiting.segment ? kRowsAndSnapshot : kRows;
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
    return (Present(move.segment, tier_) & move.contents) != 0 && usable(move.segment) &&
           !coming_.contains({move.segment, tier});
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
  const double until = now + options_.wait_seconds_max;
  if (waits_.empty()) first_wait_until_ = until;  // later ones wait longer
  waits_[request] = {replica, tier, segment, until};
  return true;
}

const std::vector<uint64_t>& StoreTier::TakePrepared(double now, SegmentDrops* drops) {
  prepared_.clear();
  if (waits_.empty()) return prepared_;
  const bool look = std::exchange(look_at_waits_, false);
  if (!look && now < first_wait_until_) return prepared_;
  first_wait_until_ = std::numeric_limits<double>::infinity();
  for (auto wait = waits_.begin(); wait != waits_.end();) {
    if (now < wait->second.until && (!look || StillComes(wait->second))) {
      first_wait_until_ = std::min(first_wait_until_, wait->second.until);
      ++wait;
      continue;
    }
    prepared_.push_back(wait->first);
    tree_->Release(wait->second.segment, drops);
    wait = waits_.erase(wait);
  }
  return prepared_;
}

}  // namespace goldfinch
