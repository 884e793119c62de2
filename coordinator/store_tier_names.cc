// StoreTier: names of contexts.
#include <algorithm>
#include <cmath>
#include <utility>

#include "coordinator/store_tier.h"

namespace goldfinch {

void StoreTier::AdoptNames(const StoreContents& contents, const std::map<SegmentKey, uint64_t>& numbers, double now) {
  for (const ContextName& name : contents.names) {
    const auto segment = numbers.find(name.segment);
    absl::StatusOr<ContextInfo> made = absl::NotFoundError("its text is not in the store");
    if (segment != numbers.end() && tree_->Find(segment->second)->name_space == name.name_space) {
      const std::optional<double> seconds_to_live =
          name.keep_seconds > 0 ? std::optional<double>(static_cast<double>(name.keep_seconds)) : std::nullopt;
      tree_->Hold(segment->second, now);
      made = tree_->Create(name.name_space, name.name, segment->second, seconds_to_live, now);
      if (made.ok() && name.pinned) made = tree_->Pin(name.name_space, name.name, true, 0);
      SegmentDrops drops;  // none: it has rows
      tree_->Release(segment->second, &drops);
    }
    if (made.ok()) {
      names_[{name.name_space, name.name}] = {.id = name.id, .revision = name.revision, .etag = made->etag};
      continue;
    }
    if (segment == numbers.end() && contents.unread.contains(name.segment)) continue;
    Do(StoreAction::Kind::kDeleteName, {});
    actions_.back().name = name;
  }
}

void StoreTier::NameChanged(const std::string& name_space, const std::string& name) {
  if (!options_.durable) return;
  changed_names_.emplace(name_space, name);
  look_at_names_ = true;
  if (const absl::StatusOr<ContextInfo> info = tree_->Get(name_space, name); info.ok()) Stored(info->segment);
}

void StoreTier::PlanNames(double now) {
  look_at_names_ = false;
  for (auto changed = changed_names_.begin(); changed != changed_names_.end();) {
    KeptName& kept = names_[*changed];
    if (kept.putting) {
      ++changed;
      continue;
    }
    const absl::StatusOr<ContextInfo> info = tree_->Get(changed->first, changed->second);
    StoreAction action;
    action.name.id = kept.id;
    action.name.revision = kept.revision;
    action.name.name_space = changed->first;
    action.name.name = changed->second;
    if (!info.ok()) {
      action.kind = StoreAction::Kind::kDeleteName;
      if (kept.id != 0) actions_.push_back(std::move(action));
      names_.erase(*changed);
    } else if (kept.id == 0 || kept.etag != info->etag || info->expires) {  // else it was only used
      const auto segment = kept_.find(info->segment);
      if (segment == kept_.end() || segment->second.contents != kRowsAndSnapshot) {  // once it is in the store
        ++changed;
        continue;
      }
      action.kind = StoreAction::Kind::kPutName;
      action.name.segment = segment->second.key;
      action.name.position = info->tokens;
      action.name.pinned = info->pinned;
      if (info->expires) {
        action.name.keep_seconds = std::max<int64_t>(std::llround(*info->expires - info->last_use), 1);
        action.expires_in_seconds = *info->expires - now;
      }
      kept.putting = true;
      kept.etag = info->etag;
      actions_.push_back(std::move(action));
    }
    changed = changed_names_.erase(changed);
  }
}

void StoreTier::NamePut(const ContextName& asked, const absl::StatusOr<ContextName>& kept) {
  const auto found = names_.find({asked.name_space, asked.name});
  if (found == names_.end()) return;
  found->second.putting = false;
  if (!kept.ok()) {  // with the next look, which the next move or use brings
    found->second.etag = 0;
    changed_names_.emplace(asked.name_space, asked.name);
    return;
  }
  found->second.id = kept->id;
  found->second.revision = kept->revision;
  look_at_names_ = true;
}

}  // namespace goldfinch
