// StoreTier: what the store had when it was opened.
#include <algorithm>
#include <map>
#include <optional>
#include <utility>
#include <vector>

#include "coordinator/keeper/store_tier.h"

namespace goldfinch {
namespace {

// What a store takes beside the bytes of segments: headers, names, and blocks of the file system.
constexpr double kUsableShare = 0.95;

}  // namespace

StoreTier::StoreTier(const StoreTierOptions& options, StoreContents contents, const SegmentBytes& bytes,
                     double token_seconds, SegmentTree* tree, double now)
    : options_(options), tree_(tree) {
  const Keys left_alone = SetAside(&contents);
  const double usable = kUsableShare * static_cast<double>(options.bytes_max - contents.other_bytes);
  tier_ = tree->OpenTier({.kind = TierKind::kDisk,
                          .name = options.name,
                          .bytes_max = std::max<int64_t>(static_cast<int64_t>(usable), 0),
                          .rate = options.rate});
  Adopt(std::move(contents), left_alone, bytes, token_seconds, now);
}

// Takes out of the contents all that goes on from what could not be read. Returns the keys of both.
StoreTier::Keys StoreTier::SetAside(StoreContents* contents) {
  Keys keys(contents->unread.begin(), contents->unread.end());
  if (keys.empty()) return keys;
  std::vector<StoreContents::Found>& found = contents->segments;
  std::multimap<SegmentKey, const StoredSegment*> children;
  for (const StoreContents::Found& one : found) {
    if (one.segment.parent) children.emplace(*one.segment.parent, &one.segment);
  }
  std::vector<SegmentKey> above = contents->unread;
  while (!above.empty()) {
    const SegmentKey key = above.back();
    above.pop_back();
    for (auto [child, end] = children.equal_range(key); child != end; ++child) {
      if (keys.insert(child->second->key).second) above.push_back(child->second->key);
    }
  }
  for (const StoreContents::Found& one : found) {
    if (keys.contains(one.segment.key)) contents->other_bytes += one.segment.bytes;
  }
  std::erase_if(found, [&](const StoreContents::Found& one) { return keys.contains(one.segment.key); });
  return keys;
}

void StoreTier::Adopt(StoreContents contents, const Keys& left_alone, const SegmentBytes& bytes, double token_seconds,
                      double now) {
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
    SetKept(*number, stored.key, stored.has_snapshot ? kRowsAndSnapshot : kRows);
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
  AdoptNames(contents.names, numbers, left_alone, now);
  if (!left_alone.empty()) return;  // any of these segments may be the parent of one that could not be read
  SegmentDrops drops;
  tree_->Tidy(&drops);
  for (const SegmentDrop& drop : drops) {
    if (drop.tier == tier_) Dropped(drop);
  }
}

}  // namespace goldfinch
