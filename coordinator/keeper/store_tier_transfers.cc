// StoreTier: what is exported and imported.
#include <algorithm>
#include <utility>

#include "base/status.h"
#include "coordinator/keeper/store_tier.h"

namespace goldfinch {

bool StoreTier::HasText(uint64_t segment) const {
  const std::vector<uint64_t> chain = tree_->Chain(segment);
  return std::all_of(chain.begin(), chain.end(), [&](uint64_t link) {
    const SegmentContents wanted = link == segment ? kRowsAndSnapshot : kRows;
    return (wanted & ~Present(link, tier_)) == 0 && kept_.contains(link);
  });
}

bool StoreTier::TextComes(uint64_t segment) const {
  return StillComes({.replica = 0, .tier = tier_, .segment = segment, .until = 0});
}

std::vector<SegmentKey> StoreTier::KeysOf(uint64_t segment) const {
  std::vector<SegmentKey> keys;
  for (const uint64_t link : tree_->Chain(segment)) keys.push_back(kept_.at(link).key);
  return keys;
}

uint64_t StoreTier::SavedBy(uint64_t move) const {
  const auto found = moves_.find(move);
  return found != moves_.end() && found->second.save ? found->second.segment : 0;
}

absl::StatusOr<StoreTier::Importing> StoreTier::Import(const std::string& name_space, absl::Span<const int32_t> ids,
                                                       const SegmentBytes& bytes, double seconds,
                                                       std::shared_ptr<SegmentWriter> writer, double now,
                                                       SegmentDrops* drops) {
  DropFiles();  // what was had of the text before may be a file of the same name
  GF_ASSIGN_OR_RETURN(const uint64_t segment, tree_->Import(name_space, ids, bytes, tier_, seconds, now, drops));
  const SegmentKey key = writer->key();
  return Publish(segment, kRowsAndSnapshot, key, std::move(writer));
}

absl::StatusOr<StoreTier::Importing> StoreTier::ImportTuned(const std::string& name_space, const SegmentKey& key,
                                                            int64_t snapshot_bytes,
                                                            std::shared_ptr<SegmentWriter> writer, double now,
                                                            SegmentDrops* drops) {
  DropFiles();
  GF_ASSIGN_OR_RETURN(const uint64_t segment, tree_->ImportTuned(name_space, key, snapshot_bytes, tier_, now, drops));
  return Publish(segment, kSnapshot, key, std::move(writer));
}

// The move has the hold on the segment.
StoreTier::Importing StoreTier::Publish(uint64_t segment, SegmentContents contents, const SegmentKey& key,
                                        std::shared_ptr<SegmentWriter> writer) {
  const uint64_t number = ++last_move_;
  Move move = {.save = true, .imported = true, .tier = tier_, .segment = segment, .contents = contents};
  move.key = key;
  moves_.emplace(number, move);
  writing_.insert(segment);
  ++saving_;
  StoreAction& action = actions_.emplace_back();
  action.kind = StoreAction::Kind::kPublish;
  action.move = number;
  action.key = key;
  action.writer = std::move(writer);
  return {number, segment};
}

void StoreTier::Discard(std::shared_ptr<SegmentWriter> writer) {
  StoreAction& action = actions_.emplace_back();
  action.kind = StoreAction::Kind::kDiscard;
  action.writer = std::move(writer);
}

}  // namespace goldfinch
