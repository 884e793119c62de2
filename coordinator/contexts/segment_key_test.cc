#include "coordinator/contexts/segment_key.h"

#include <set>
#include <string>
#include <vector>

#include "gtest/gtest.h"

namespace goldfinch {
namespace {

using Ids = std::vector<int32_t>;

TEST(SegmentKeyTest, WhatDiffersInAnythingHasAnotherKey) {
  const ContextIdentity identity = {"a", "b", "bf16", "cpu-f32", 1};
  const SegmentKey root = KeyOf(identity, "alice", nullptr, Ids{1, 2, 3});
  EXPECT_EQ(KeyOf(identity, "alice", nullptr, Ids{1, 2, 3}), root);
  std::set<SegmentKey> keys = {root};
  const auto add = [&](const ContextIdentity& of, const std::string& name_space, const SegmentKey* parent,
                       const Ids& ids) { EXPECT_TRUE(keys.insert(KeyOf(of, name_space, parent, ids)).second); };
  add(identity, "bob", nullptr, {1, 2, 3});
  add(identity, "", nullptr, {1, 2, 3});
  add(identity, "alice", &root, {1, 2, 3});
  add(identity, "alice", nullptr, {1, 2});
  add(identity, "alice", nullptr, {1, 2, 3, 0});
  add(identity, "alice", nullptr, {1, 2, 65539});
  add(identity, "alice", nullptr, {});
  add({"ab", "", "bf16", "cpu-f32", 1}, "alice", nullptr, {1, 2, 3});  // the same letters, cut elsewhere
  add({"a", "b", "int8", "cpu-f32", 1}, "alice", nullptr, {1, 2, 3});
  add({"a", "b", "bf16", "cuda-bf16", 1}, "alice", nullptr, {1, 2, 3});
  add({"a", "b", "bf16", "cpu-f32", 2}, "alice", nullptr, {1, 2, 3});
}

// Files outlive the program: the key of a text must never change.
TEST(SegmentKeyTest, IsTheDocumentedDigest) {
  std::string hex;
  for (const uint8_t byte : KeyOf({"f", "v", "bf16", "cpu-f32", 1}, "n", nullptr, Ids{1, 70000})) {
    constexpr char kDigits[] = "0123456789abcdef";
    hex += {kDigits[byte >> 4], kDigits[byte & 15]};
  }
  EXPECT_EQ(hex, "1a37e8381d5932eff1c8b89069fdcc475cf2ca3a76e9b5246289476f302bd481");
}

TEST(SegmentKeyTest, LongTextsAreHashedInPieces) {
  Ids ids(5000, 7);
  const SegmentKey key = KeyOf({}, "", nullptr, ids);
  ids[4999] = 8;
  EXPECT_NE(KeyOf({}, "", nullptr, ids), key);
}

}  // namespace
}  // namespace goldfinch
