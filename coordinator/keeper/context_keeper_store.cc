// ContextKeeper: the store beside the shelves.
#include <algorithm>
#include <utility>

#include "base/check.h"
#include "coordinator/keeper/context_keeper.h"
#include "coordinator/scheduler/dispatcher.h"

namespace goldfinch {

void ContextKeeper::SetStore(const StoreTierOptions& options, StoreContents contents, const ShelfCapacity& capacity,
                             double token_seconds, double now) {
  GF_CHECK(tree_ != nullptr && store_ == nullptr && groups_.empty());
  store_bytes_max_ = options.bytes_max;
  if (token_seconds_ == 0) token_seconds_ = token_seconds;
  segment_bytes_ = {.per_token = capacity.bytes_per_token, .snapshot = capacity.snapshot_bytes};
  store_ = std::make_unique<StoreTier>(options, std::move(contents), segment_bytes_, token_seconds, tree_.get(), now);
}

bool ContextKeeper::Prepare(int replica, uint64_t request_number, const Request& request, absl::Span<const int32_t> ids,
                            double token_seconds, double now) {
  const auto found = groups_.find(replica);
  if (store_ == nullptr || store_->bytes() == 0 || found == groups_.end()) return true;
  if (!request.cache && request.context.empty()) return true;
  Group& group = found->second;
  const auto size = static_cast<int64_t>(ids.size());
  int64_t limit = size;
  if (request.score) {
    limit = request.score->score_prompt ? 0 : std::min(size, static_cast<int64_t>(request.prompt.size()) - 1);
  } else if (request.generate->max_tokens == 0 && !request.keep_as) {
    limit = size - 1;
  }
  if (!request.cache) limit = std::min(limit, request.context_tokens.value_or(0));
  const ContextMatch match = tree_->Match(NamespaceOf(request), ids, limit, request.tuned);
  const ContextChoice choice = tree_->Choose(
      match, group.tier, [&](int64_t begin) { return token_seconds * static_cast<double>(size - begin); });
  if (choice.segment == 0) return true;
  SegmentDrops drops;
  const bool waits = store_->Wait(
      replica, request_number, choice.segment, [&](uint64_t segment) { return MayPut(group, segment); }, now, &drops);
  Note(&drops);
  return !waits;
}

bool ContextKeeper::MayPut(const Group& group, uint64_t segment) const {
  if (group.leaving.contains(segment)) return false;
  const auto drops = drops_.find(group.tier);
  if (drops == drops_.end()) return true;
  const auto has = [&](const std::vector<uint64_t>& segments) {
    return std::find(segments.begin(), segments.end(), segment) != segments.end();
  };
  return !has(drops->second.segments) && !has(drops->second.snapshots);
}

bool ContextKeeper::AllFreed(const Group& group) const {
  const auto drops = drops_.find(group.tier);
  return (drops == drops_.end() || drops->second.empty()) && group.answered_step >= group.freed_after;
}

std::vector<StoreAction>& ContextKeeper::TakeStoreActions(double now) {
  GF_CHECK(store_ != nullptr);
  SegmentDrops drops;
  std::vector<StoreAction>& actions = store_->TakeActions(
      [this](int replica) {
        const auto group = groups_.find(replica);
        return group == groups_.end() || AllFreed(group->second);
      },
      now, &drops);
  Note(&drops);
  for (const StoreAction& action : actions) {
    if (action.kind != StoreAction::Kind::kBring) continue;
    const auto group = groups_.find(action.bring.replica);
    if (group != groups_.end()) group->second.segments.insert(action.bring.segment);
  }
  return actions;
}

void ContextKeeper::Moved(uint64_t move, const StoreMoved& moved, double now) {
  if (store_ == nullptr) return;
  SegmentDrops drops;
  const uint64_t saved = store_->SavedBy(move);
  store_->Moved(move, moved, now, &drops);
  Note(&drops);
  if (saved != 0) NoteMoved(saved, moved.status);
  EndImport(move, moved, now);
  LookAtExports();
}

void ContextKeeper::NamePut(const ContextName& asked, const absl::StatusOr<ContextName>& kept, double now) {
  if (store_ != nullptr) store_->NamePut(asked, kept, now);
}

const std::vector<uint64_t>& ContextKeeper::TakePrepared(double now) {
  GF_CHECK(store_ != nullptr);
  SegmentDrops drops;
  const std::vector<uint64_t>& prepared = store_->TakePrepared(now, &drops);
  Note(&drops);
  return prepared;
}

}  // namespace goldfinch
