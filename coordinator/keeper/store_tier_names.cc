// StoreTier: names of contexts.
#include <algorithm>
#include <cmath>
#include <utility>

#include "coordinator/keeper/store_tier.h"

namespace goldfinch {

void StoreTier::AdoptNames(const std::vector<ContextName>& names, const std::map<SegmentKey, uint64_t>& numbers,
                           const Keys& left_alone, double now) {
  for (const ContextName& name : names) {
    if (left_alone.contains(name.segment)) {
      // Whoever makes a context of this name now takes its place.
      names_[{name.name_space, name.name}] = {.id = name.id, .revision = name.revision};
      continue;
    }
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
      const Name key(name.name_space, name.name);
      KeptName& kept = names_[key];
      kept = {.id = name.id, .revision = name.revision, .etag = made->etag, .key = name.segment};
      SetSegment(key, &kept, segment->second);
      continue;
    }
    Do(StoreAction::Kind::kDeleteName, {});
    actions_.back().name = name;
  }
}

void StoreTier::NameChanged(const std::string& name_space, const std::string& name) {
  if (!options_.durable) return;
  changed_names_.emplace(name_space, name);
  if (const absl::StatusOr<ContextInfo> info = tree_->Get(name_space, name); info.ok()) Stored(info->segment);
}

void StoreTier::PlanNames(double now) {
  if (!failed_names_.empty() && now >= names_paused_until_) changed_names_.merge(failed_names_);
  if (changed_names_.empty()) return;
  // What was renamed is written down under its new name before the old one goes.
  std::vector<StoreAction> deletes;
  for (const Name& name : std::exchange(changed_names_, {})) PlanName(name, now, &deletes);
  std::move(deletes.begin(), deletes.end(), std::back_inserter(actions_));
}

void StoreTier::SetSegment(const Name& name, KeptName* kept, uint64_t segment) {
  if (kept->segment == segment) return;
  if (const auto before = names_at_.find(kept->segment); before != names_at_.end()) {
    before->second.erase(name);
    if (before->second.empty()) names_at_.erase(before);
  }
  kept->segment = segment;
  if (segment != 0) names_at_[segment].insert(name);
}

void StoreTier::PlanName(const Name& name, double now, std::vector<StoreAction>* deletes) {
  KeptName& kept = names_[name];
  if (kept.putting) {
    kept.changed = true;
    return;
  }
  const absl::StatusOr<ContextInfo> info = tree_->Get(name.first, name.second);
  SetSegment(name, &kept, info.ok() ? info->segment : 0);
  StoreAction action;
  action.name.id = kept.id;
  action.name.revision = kept.revision;
  action.name.name_space = name.first;
  action.name.name = name.second;
  if (!info.ok()) {
    action.kind = StoreAction::Kind::kDeleteName;
    if (kept.id != 0) deletes->push_back(std::move(action));
    names_.erase(name);
    return;
  }
  const auto segment = kept_.find(info->segment);
  if (segment == kept_.end() || segment->second.contents != kRowsAndSnapshot) return;
  const bool is_new = kept.id == 0 || kept.etag != info->etag || kept.key != segment->second.key;
  if (!is_new && !info->expires) return;  // it was only used
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
  kept.key = segment->second.key;
  actions_.push_back(std::move(action));
}

void StoreTier::NamePut(const ContextName& asked, const absl::StatusOr<ContextName>& kept, double now) {
  const Name name(asked.name_space, asked.name);
  const auto found = names_.find(name);
  if (found == names_.end()) return;
  found->second.putting = false;
  if (std::exchange(found->second.changed, false)) changed_names_.insert(name);
  if (kept.ok()) {
    found->second.id = kept->id;
    found->second.revision = kept->revision;
    return;
  }
  found->second.etag = 0;
  failed_names_.insert(name);
  names_paused_until_ = now + options_.pause_seconds;
}

}  // namespace goldfinch
