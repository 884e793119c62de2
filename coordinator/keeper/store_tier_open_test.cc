// What a store's tier does with what it finds at the start, where some of it could not be read.
#include <memory>
#include <string>
#include <vector>

#include "coordinator/contexts/segment_key.h"
#include "coordinator/contexts/segment_tree.h"
#include "coordinator/keeper/store_tier.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace goldfinch {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

const ContextIdentity& Identity() {
  static const ContextIdentity* const identity = new ContextIdentity{"f", "bytes", "bf16", "cpu-f32"};
  return *identity;
}

StoreContents::Found FoundSegment(const std::vector<int32_t>& ids, const StoreContents::Found* parent, bool snapshot) {
  StoreContents::Found found;
  StoredSegment& segment = found.segment;
  if (parent != nullptr) segment.parent = parent->segment.key;
  segment.key = KeyOf(Identity(), "", parent == nullptr ? nullptr : &parent->segment.key, ids);
  segment.identity = std::make_shared<const ContextIdentity>(Identity());
  segment.begin = parent == nullptr ? 0 : parent->segment.end;
  segment.end = segment.begin + static_cast<int64_t>(ids.size());
  segment.has_snapshot = snapshot;
  segment.bytes_without_snapshot = 10 * static_cast<int64_t>(ids.size());
  segment.bytes = segment.bytes_without_snapshot + (snapshot ? 100 : 0);
  found.ids = ids;
  return found;
}

ContextName NameOf(const std::string& name, const StoreContents::Found& segment) {
  ContextName kept;
  kept.id = 1 + name.size();
  kept.name = name;
  kept.segment = segment.segment.key;
  kept.position = segment.segment.end;
  kept.revision = 1;
  return kept;
}

// What is to be done with the store once it has been looked through.
std::vector<StoreAction> ActionsAfter(const StoreContents& contents) {
  SegmentTree tree(Identity());
  StoreTier tier({.bytes_max = 1 << 20}, contents, {.per_token = 10, .snapshot = 100}, 0.01, &tree, 0);
  SegmentDrops drops;
  return tier.TakeActions([](int) { return true; }, 0, &drops);
}

std::vector<SegmentKey> Deleted(const std::vector<StoreAction>& actions) {
  std::vector<SegmentKey> keys;
  for (const StoreAction& action : actions) {
    if (action.kind == StoreAction::Kind::kDelete) keys.push_back(action.key);
  }
  return keys;
}

std::vector<std::string> DeletedNames(const std::vector<StoreAction>& actions) {
  std::vector<std::string> names;
  for (const StoreAction& action : actions) {
    if (action.kind == StoreAction::Kind::kDeleteName) names.push_back(action.name.name);
  }
  return names;
}

TEST(StoreTier, WhatNeedsASegmentThatIsLostGoes) {
  const auto root = FoundSegment({1, 2, 3}, nullptr, false), middle = FoundSegment({4, 5}, &root, false),
             leaf = FoundSegment({6}, &middle, true);
  StoreContents contents;
  contents.segments = {leaf, root};
  contents.names = {NameOf("doc", leaf), NameOf("middle", middle)};
  const std::vector<StoreAction> actions = ActionsAfter(contents);
  EXPECT_THAT(Deleted(actions), ElementsAre(leaf.segment.key, root.segment.key));
  EXPECT_THAT(DeletedNames(actions), ElementsAre("doc", "middle"));
}

TEST(StoreTier, WhatNeedsASegmentThatCannotBeReadStays) {
  const auto root = FoundSegment({1, 2, 3}, nullptr, false), middle = FoundSegment({4, 5}, &root, false),
             leaf = FoundSegment({6}, &middle, true), alone = FoundSegment({9}, nullptr, true);
  StoreContents contents;
  contents.segments = {leaf, root, alone};
  contents.names = {NameOf("doc", leaf), NameOf("middle", middle), NameOf("alone", alone)};
  contents.unread = {middle.segment.key};
  const std::vector<StoreAction> actions = ActionsAfter(contents);
  EXPECT_THAT(Deleted(actions), IsEmpty()) << "neither what goes on from it, nor what it goes on from";
  EXPECT_THAT(DeletedNames(actions), IsEmpty());
}

}  // namespace
}  // namespace goldfinch
