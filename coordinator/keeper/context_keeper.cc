#include "coordinator/keeper/context_keeper.h"

#include <algorithm>
#include <utility>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "coordinator/scheduler/dispatcher.h"

namespace goldfinch {
namespace {

// Copies within the host's memory, or between it and a device; learned from then on.
constexpr double kShelfBytesPerSecond = 4e9, kShelfSeconds = 1e-4;

// What a token of a context counts at least: far more than it takes to restore it.
constexpr double kNamedTokenSeconds = 1e-3;

// A request that refuses the cache begins with its context alone.
int64_t LimitOf(const Request& request) { return request.cache ? INT64_MAX : *request.context_tokens; }

}  // namespace

absl::Status NoRoomOnShelf(int64_t used_bytes, int64_t bytes_max) {
  return absl::ResourceExhaustedError(absl::StrCat("a worker's context_memory is full: the group's contexts take ",
                                                   used_bytes, " of ", bytes_max, " bytes"));
}

const std::string& NamespaceOf(const Request& request) {
  static const std::string* const everybody = new std::string;
  return request.client == nullptr ? *everybody : request.client->name_space;
}

void ContextKeeper::SetModel(const ContextIdentity& identity, const TextBytes& bytes) {
  GF_CHECK(groups_.empty());
  EndTransfers(absl::UnavailableError("the server serves another model from now on"));
  drops_.clear();
  store_.reset();
  if (tree_ != nullptr) first_etag_ = tree_->next_etag();
  tree_ = std::make_unique<SegmentTree>(identity, first_etag_);
  ++trees_;
  text_bytes_ = bytes;
  with_quota_.clear();
}

void ContextKeeper::GenerationReady(int replica, const ShelfCapacity& capacity) {
  GF_CHECK(groups_.find(replica) == groups_.end()) << "replica " << replica;
  if (tree_ == nullptr || capacity.bytes_max <= 0) {
    empty_handed_.insert(replica);
    return;
  }
  Group& group = groups_[replica];
  group.tier = tree_->OpenTier({.kind = TierKind::kMemory,
                                .name = "the shelves of replica " + std::to_string(replica),
                                .bytes_max = capacity.bytes_max,
                                .rows_share = capacity.rows_share,
                                .snapshots_share = capacity.snapshots_share,
                                .lends_to_shelves = false,
                                .rate = TransferRate(kShelfBytesPerSecond, kShelfSeconds)});
  group.bytes = {.per_token = capacity.bytes_per_token, .snapshot = capacity.snapshot_bytes};
  if (store_ != nullptr) store_->GenerationReady(replica, group.tier);
  segment_bytes_ = group.bytes;
  // Over all layers, as the tree counts what a namespace has.
  group.bytes_max = static_cast<int64_t>(static_cast<double>(capacity.bytes_max) /
                                         std::max(capacity.rows_share, capacity.snapshots_share));
  with_quota_.clear();
}

// If there are several API keys, none can take all room from the others.
void ContextKeeper::SetQuota(const std::string& name_space) {
  if (name_space.empty() || groups_.empty() || !with_quota_.insert(name_space).second) return;
  if (with_quota_.size() < 2) return;
  const auto least = std::min_element(groups_.begin(), groups_.end(), [](const auto& a, const auto& b) {
    return a.second.bytes_max < b.second.bytes_max;
  });
  const int64_t bytes_max = (least->second.bytes_max + store_bytes_max_) / 2;
  for (const std::string& one : with_quota_) tree_->SetQuota(one, {.bytes_max = bytes_max});
}

ShelfDrops ContextKeeper::GenerationEnded(int replica) {
  empty_handed_.erase(replica);
  const auto found = groups_.find(replica);
  if (found == groups_.end()) return {};
  const Group group = std::move(found->second);
  groups_.erase(found);
  SegmentDrops drops;
  if (store_ != nullptr) store_->GenerationEnded(replica, &drops);
  tree_->CloseTier(group.tier, &drops);
  const auto release = [&](const std::vector<Saving>& savings) {
    for (const Saving& saving : savings) tree_->Release(saving.segment, &drops);
  };
  release(group.planned);
  for (const Step& step : group.steps) release(step.saved);
  for (const uint64_t segment : group.restored) tree_->Release(segment, &drops);
  Note(&drops);
  drops_.erase(group.tier);
  LookAtExports();
  // Their tokens are kept, and are read again.
  FinishSaved([&](const NamedFinishing& one) {
    return one.replica == replica ? std::optional<absl::Status>(absl::OkStatus()) : std::nullopt;
  });
  return {{group.segments.begin(), group.segments.end()}, {}};
}

int64_t ContextKeeper::Kept(int replica, const Request& request, absl::Span<const int32_t> ids) const {
  const auto found = groups_.find(replica);
  if (found == groups_.end() || !request.uses_kept()) return 0;
  const ContextMatch match = tree_->Match(NamespaceOf(request), ids, LimitOf(request), request.tuned);
  // The longest, whatever it takes to load.
  const auto compute_seconds = [&](int64_t begin) { return static_cast<double>(match.tokens - begin); };
  return tree_->Choose(match, found->second.tier, compute_seconds, /*only_here=*/store_ == nullptr).position;
}

ContextKeeper::Found ContextKeeper::Find(const Group& group, const Request& request, absl::Span<const int32_t> ids,
                                         int64_t tokens_max, double token_seconds) const {
  const auto size = static_cast<int64_t>(ids.size());
  Found found;
  found.match = tree_->Match(NamespaceOf(request), ids, std::min(tokens_max, LimitOf(request)), request.tuned);
  // Who names a context wants it to be used.
  const double seconds = request.context.empty() ? token_seconds : std::max(token_seconds, kNamedTokenSeconds);
  found.choice = tree_->Choose(
      found.match, group.tier, [&](int64_t begin) { return seconds * static_cast<double>(size - begin); },
      /*only_here=*/true);
  return found;
}

PrefixKeeper::Beginning ContextKeeper::Found::Chain() const {
  Beginning beginning;
  beginning.tokens = choice.position;
  const auto last = std::find_if(match.steps.begin(), match.steps.end(),
                                 [&](const ContextMatch::Step& step) { return step.segment == choice.segment; });
  if (last == match.steps.end()) return beginning;
  for (auto i = static_cast<int>(last - match.steps.begin()); i >= 0; i = match.steps[static_cast<size_t>(i)].parent) {
    const ContextMatch::Step& step = match.steps[static_cast<size_t>(i)];
    if (step.segment == match.tuned && step.segment != choice.segment) break;  // its texts do without it
    beginning.segments.push_back(step.segment);
    beginning.ends.push_back(step.end);
  }
  std::reverse(beginning.segments.begin(), beginning.segments.end());
  std::reverse(beginning.ends.begin(), beginning.ends.end());
  return beginning;
}

PrefixKeeper::Beginning ContextKeeper::Peek(int replica, const Request& request, absl::Span<const int32_t> ids,
                                            int64_t tokens_max, double token_seconds) const {
  const auto found = groups_.find(replica);
  if (found == groups_.end() || !request.uses_kept()) return {};
  return Find(found->second, request, ids, tokens_max, token_seconds).Chain();
}

PrefixKeeper::Beginning ContextKeeper::Begin(int replica, const Request& request, absl::Span<const int32_t> ids,
                                             int64_t tokens_max, double token_seconds, double now) {
  const auto found = groups_.find(replica);
  if (found == groups_.end() || !request.uses_kept()) {
    return {.status = request.tuned == 0 ? absl::OkStatus() : NoTunedState(request)};
  }
  Group& group = found->second;
  group.token_seconds = token_seconds_ = token_seconds;
  const auto size = static_cast<int64_t>(ids.size());
  const Found kept = Find(group, request, ids, tokens_max, token_seconds);
  const ContextChoice& choice = kept.choice;
  Beginning beginning = kept.Chain();
  if (choice.position > 0) {
    tree_->CountHit(choice);
  } else {
    tree_->CountMiss(choice.reason);
  }
  if (choice.segment == 0 && request.tuned != 0) return {.status = NoTunedState(request)};
  if (choice.segment != 0) {
    tree_->Hold(choice.segment, now);
    if (store_ != nullptr) store_->Used(choice.segment);
  }
  if (!request.cache) return beginning;
  std::vector<int64_t> breakpoints = request.breakpoints;
  if (request.context_tokens) breakpoints.push_back(*request.context_tokens);  // which may have lost its snapshot
  // What is short is read again faster than it is kept, but for what was asked for.
  if (size - beginning.tokens >= options_.cost_tokens) {
    beginning.save_at = PlanSnapshots(
        options_,
        {.begin = beginning.tokens, .end = size, .breakpoints = breakpoints, .partings = kept.match.partings});
  } else if (std::any_of(breakpoints.begin(), breakpoints.end(),
                         [&](int64_t at) { return at > beginning.tokens && at < size; })) {
    beginning.save_at = PlanSnapshots(options_, {.begin = beginning.tokens, .end = size, .breakpoints = breakpoints});
    beginning.save_at.pop_back();
  }
  if (request.generate) {
    // The last token of an answer is run only if it is kept.
    const int64_t answer = request.generate->max_tokens - (request.keep_as ? 0 : 1);
    PlanAnswer(options_, size, static_cast<int64_t>(request.prompt.size()) + answer, &beginning.save_at);
  }
  return beginning;
}

// Why a request cannot begin with its tuned state.
absl::Status ContextKeeper::NoTunedState(const Request& request) const {
  const std::optional<SegmentInfo> info = tree_->Find(request.tuned);
  const bool lost = !info || std::none_of(info->copies.begin(), info->copies.end(), [](const SegmentInfo::Copy& copy) {
    return (copy.present & kSnapshot) != 0;
  });
  const std::string what = absl::StrCat("the tuned state that context \"", request.context, "\" begins with ");
  if (lost) return absl::DataLossError(absl::StrCat(what, "is lost: import it again"));
  return absl::UnavailableError(absl::StrCat(what, "could not be brought to the workers"));
}

void ContextKeeper::Release(int replica, const Beginning& beginning) {
  const auto found = groups_.find(replica);
  if (found == groups_.end()) {
    // The group has ended since.
    SegmentDrops drops;
    tree_->Release(beginning.segments.back(), &drops);
    return Note(&drops);
  }
  found->second.restored.push_back(beginning.segments.back());
}

PrefixKeeper::Saved ContextKeeper::Save(int replica, const Request& request, absl::Span<const int32_t> ids,
                                        const SavePoint& point, double now) {
  const auto found = groups_.find(replica);
  if (found == groups_.end() || (!request.cache && !point.end)) return {};
  Group& group = found->second;
  const std::string& name_space = NamespaceOf(request);
  SetQuota(name_space);
  SegmentBytes bytes = group.bytes;
  bytes.logits = point.logits;
  const absl::StatusOr<AddedSegment> added =
      tree_->Add(name_space, request.tuned, ids, bytes, group.token_seconds * static_cast<double>(ids.size()), now);
  const auto refuse = [&](const absl::Status& status) {
    if (point.end) group.refused.insert_or_assign(name_space, status);
  };
  if (!added.ok()) {
    refuse(added.status());
    return {};
  }
  SegmentDrops drops;
  absl::StatusOr<goldfinch::Saving> saving = absl::NotFoundError("nothing is missing");
  if (added->missing != 0) saving = tree_->Store(added->number, group.tier, now, &drops);
  if (!saving.ok() || saving->contents == 0) {
    if (!saving.ok() && added->missing != 0) refuse(saving.status());
    tree_->Release(added->number, &drops);
    Note(&drops);
    return {};
  }
  const uint64_t parent = tree_->Find(added->number)->parent;
  if (parent != 0 && !point.end && !HasRows(parent, group.tier)) {
    // Another group has what comes before it: nobody could begin with it here, but by way of the store.
    tree_->Lost(added->number, group.tier, saving->contents, &drops);
    tree_->Release(added->number, &drops);
    Note(&drops);
    return {};
  }
  Note(&drops);
  group.planned.push_back({added->number, saving->contents});
  group.segments.insert(added->number);
  // Workers leave out what they have of it.
  return {added->number, tree_->Find(added->number)->begin};
}

bool ContextKeeper::HasRows(uint64_t segment, int tier) const {
  const std::optional<SegmentInfo> info = tree_->Find(segment);
  if (!info || info->end == 0) return info.has_value();  // a tuned state has none
  return std::any_of(info->copies.begin(), info->copies.end(), [&](const SegmentInfo::Copy& copy) {
    return copy.tier == tier && ((copy.present | copy.coming) & kRows) != 0;
  });
}

const ShelfDrops& ContextKeeper::TakeDrops(int replica) {
  ShelfDrops& drops = taken_drops_;
  drops.Clear();
  const auto found = groups_.find(replica);
  if (found == groups_.end()) return drops;
  Group& group = found->second;
  std::swap(drops, drops_[group.tier]);
  for (const uint64_t segment : drops.segments) {
    // The Step that is being planned may save it anew.
    const bool saved = std::any_of(group.planned.begin(), group.planned.end(),
                                   [&](const Saving& saving) { return saving.segment == segment; });
    if (!saved) group.segments.erase(segment);
  }
  for (const auto* const dropped : {&drops.segments, &drops.snapshots}) {
    for (const uint64_t segment : *dropped) group.leaving[segment] = 0;
  }
  if (!drops.empty()) group.freed_after = group.planned_step;
  return drops;
}

void ContextKeeper::StepPlanned(int replica, uint64_t step) {
  const auto found = groups_.find(replica);
  if (found == groups_.end()) return;
  Group& group = found->second;
  group.planned_step = step;
  for (auto& [segment, until] : group.leaving) until = until == 0 ? step : until;
  if (!group.planned.empty()) group.steps.push_back({step, std::exchange(group.planned, {})});
  SegmentDrops drops;
  for (const uint64_t segment : group.restored) tree_->Release(segment, &drops);
  group.restored.clear();
  Note(&drops);
}

std::vector<uint64_t> ContextKeeper::Unsaved(int replica, absl::Span<const uint64_t> segments) {
  const auto found = groups_.find(replica);
  if (found == groups_.end() || segments.empty()) return {};
  Group& group = found->second;
  const std::set<uint64_t> said(segments.begin(), segments.end());
  std::vector<uint64_t> unsaved;
  for (const Step& step : group.steps) {
    for (const Saving& saving : step.saved) {
      if (said.contains(saving.segment)) unsaved.push_back(saving.segment);
    }
  }
  group.unsaved.insert(unsaved.begin(), unsaved.end());
  return unsaved;
}

void ContextKeeper::StepAnswered(int replica, uint64_t step, absl::Span<const uint64_t> unsaved, double now) {
  const auto found = groups_.find(replica);
  if (found == groups_.end()) return;
  Group& group = found->second;
  group.answered_step = step;
  std::erase_if(group.leaving, [&](const auto& entry) { return entry.second != 0 && entry.second <= step; });
  SegmentDrops drops;
  while (!group.steps.empty() && group.steps.front().number <= step) {
    for (const Saving& saving : group.steps.front().saved) {
      if (std::find(unsaved.begin(), unsaved.end(), saving.segment) == unsaved.end()) {
        tree_->Arrived(saving.segment, group.tier, saving.contents, now, &drops);
        if (store_ != nullptr) {
          store_->Stored(saving.segment);
          // Its rows were to be brought meanwhile, which has failed: the snapshot went with them.
          if (!store_->Has(saving.segment, group.tier, saving.contents)) {
            drops_[group.tier].segments.push_back(saving.segment);
          }
        }
      } else {
        tree_->Lost(saving.segment, group.tier, saving.contents, &drops);
        // Another worker may have saved its part.
        ShelfDrops& shelf = drops_[group.tier];
        (saving.contents & kRows ? shelf.segments : shelf.snapshots).push_back(saving.segment);
      }
      group.unsaved.erase(saving.segment);
      tree_->Release(saving.segment, &drops);
    }
    group.steps.pop_front();
  }
  Note(&drops);
  FinishSaved([&](const NamedFinishing& one) -> std::optional<absl::Status> {
    if (one.replica != replica || SavedBy(one.segment.segment) == replica) return std::nullopt;
    if (std::find(unsaved.begin(), unsaved.end(), one.segment.segment) == unsaved.end()) return absl::OkStatus();
    return NoRoomOnShelf(tree_->TierBytes(group.tier), group.bytes_max);
  });
}

void ContextKeeper::Note(SegmentDrops* drops) {
  for (const SegmentDrop& drop : *drops) {
    if (store_ != nullptr && drop.tier == store_->tier()) {
      store_->Dropped(drop);
      continue;
    }
    ShelfDrops& shelf = drops_[drop.tier];
    (drop.contents & kRows ? shelf.segments : shelf.snapshots).push_back(drop.segment);
  }
  drops->clear();
}

}  // namespace goldfinch
