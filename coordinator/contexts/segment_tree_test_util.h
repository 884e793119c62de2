// What tests of the tree of segments share.
#ifndef GOLDFINCH_COORDINATOR_CONTEXTS_SEGMENT_TREE_TEST_UTIL_H_
#define GOLDFINCH_COORDINATOR_CONTEXTS_SEGMENT_TREE_TEST_UTIL_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/types/span.h"
#include "coordinator/contexts/segment_tree.h"
#include "gtest/gtest.h"

namespace goldfinch {

inline constexpr int64_t kTestRowBytes = 10, kTestSnapshotBytes = 1000;
inline constexpr double kTestTokenSeconds = 0.01;

inline ContextIdentity TestIdentity(const std::string& fingerprint = "model-a") {
  return {fingerprint, "vocabulary", "bf16", "cpu-f32", 1};
}

inline TierOptions TestTier(TierKind kind, int64_t bytes_max) {
  TierOptions options;
  options.kind = kind;
  options.name = kind == TierKind::kDisk ? "the disk" : "the memory of replica 0";
  options.bytes_max = bytes_max;
  return options;
}

inline SegmentBytes TestBytes(bool logits = false) { return {kTestRowBytes, kTestSnapshotBytes, logits}; }

// Ids that differ from those of another seed everywhere.
inline std::vector<int32_t> TestText(int64_t tokens, int32_t seed = 1) {
  std::vector<int32_t> ids(static_cast<size_t>(tokens));
  for (size_t i = 0; i < ids.size(); ++i) ids[i] = seed * 1000 + static_cast<int32_t>(i % 997);
  return ids;
}

inline std::vector<int32_t> operator+(std::vector<int32_t> text, const std::vector<int32_t>& more) {
  text.insert(text.end(), more.begin(), more.end());
  return text;
}

// Adds the text as one segment (beyond what is kept of it) and stores it; it stays held.
inline uint64_t StoreHeld(SegmentTree& tree, const std::string& name_space, absl::Span<const int32_t> text, int tier,
                          double now, bool logits = false, uint64_t parent = 0) {
  SegmentDrops drops;
  const double seconds = kTestTokenSeconds * static_cast<double>(text.size());
  const auto added = tree.Add(name_space, parent, text, TestBytes(logits), seconds, now);
  EXPECT_TRUE(added.ok()) << added.status();
  const auto saving = tree.Store(added->number, tier, now, &drops);
  EXPECT_TRUE(saving.ok()) << saving.status();
  if (saving.ok()) tree.Arrived(added->number, tier, saving->contents, now, &drops);
  return added->number;
}

// The same, and nobody holds it.
inline uint64_t StoreText(SegmentTree& tree, const std::string& name_space, absl::Span<const int32_t> text, int tier,
                          double now, bool logits = false, uint64_t parent = 0) {
  const uint64_t number = StoreHeld(tree, name_space, text, tier, now, logits, parent);
  SegmentDrops drops;
  tree.Release(number, &drops);
  return number;
}

}  // namespace goldfinch

#endif  // GOLDFINCH_COORDINATOR_CONTEXTS_SEGMENT_TREE_TEST_UTIL_H_
