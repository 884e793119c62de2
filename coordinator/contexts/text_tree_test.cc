#include "coordinator/contexts/text_tree.h"

#include <algorithm>
#include <cstdint>
#include <map>
#include <random>
#include <vector>

#include "absl/types/span.h"
#include "coordinator/contexts/packed_ids.h"
#include "gtest/gtest.h"

namespace goldfinch {
namespace {

using Ids = std::vector<int32_t>;

// The tree of texts does not look into segments.
int some_segment;
Segment* const kSome = reinterpret_cast<Segment*>(&some_segment);

Ids All(const PackedIds& packed) {
  Ids ids(packed.size());
  packed.CopyTo(ids.data());
  return ids;
}

Ids Numbers(int count, int32_t from = 0) {
  Ids ids(static_cast<size_t>(count));
  for (int i = 0; i < count; ++i) ids[static_cast<size_t>(i)] = from + i;
  return ids;
}

TEST(PackedIdsTest, SmallIdsTakeTwoBytesAndLargeOnesFour) {
  EXPECT_EQ(PackedIds(Ids(1000, 65535)).bytes(), 2000);
  EXPECT_EQ(PackedIds(Ids(1000, 65536)).bytes(), 4000);
}

TEST(PackedIdsTest, CutsJoinsAndComparesAtEveryPlace) {
  for (const int32_t from : {0, 65'500, 100'000}) {
    const Ids ids = Numbers(200, from);
    for (int cut = 0; cut <= 200; ++cut) {
      PackedIds back(ids);
      PackedIds front = back.TakeFront(static_cast<size_t>(cut));
      EXPECT_EQ(front.size(), static_cast<size_t>(cut));
      Ids other = ids;
      if (cut < 200) other[static_cast<size_t>(cut)] += 1 << 16;  // differs beyond two bytes only
      EXPECT_EQ(PackedIds(ids).CommonPrefix(other), static_cast<size_t>(cut));
      EXPECT_EQ(PackedIds(other).CommonPrefix(ids), static_cast<size_t>(cut));
      EXPECT_EQ(front.CommonPrefix(ids), static_cast<size_t>(cut));
      front.Append(back);
      EXPECT_EQ(All(front), ids);
    }
  }
  PackedIds narrow(Ids{1, 2});
  narrow.Append(PackedIds(Ids{1 << 20}));
  EXPECT_EQ(All(narrow), (Ids{1, 2, 1 << 20}));
  EXPECT_EQ(narrow[2], 1 << 20);
}

// Texts come and go in random order; the tree must always know the longest common beginnings, and be empty at the end.
TEST(TextTreeTest, KnowsTheTextsThatAreInIt) {
  std::mt19937 random(7);
  const auto below = [&](int limit) { return static_cast<int>(random() % static_cast<uint32_t>(limit)); };
  TextTree tree;
  std::map<Ids, TextTree::Node*> texts;
  for (int step = 0; step < 5000; ++step) {
    Ids ids;
    for (int i = 1 + below(30); i > 0; --i) ids.push_back(below(2) + (below(50) == 0 ? 70'000 : 0));
    int visited = 0;
    const auto place = tree.Walk(tree.root(), ids, [&](const TextTree::Node* node) {
      EXPECT_EQ(TextTree::Ids(node, 0, node->end), Ids(ids.begin(), ids.begin() + node->end));
      ++visited;
      return true;
    });
    int64_t matched = 0;
    for (const auto& [text, node] : texts) {
      const size_t least = std::min(text.size(), ids.size());
      matched = std::max<int64_t>(
          matched,
          std::mismatch(ids.begin(), ids.begin() + static_cast<int64_t>(least), text.begin()).first - ids.begin());
    }
    EXPECT_EQ(place.matched, matched);
    if (below(2) == 0 || texts.empty()) {
      TextTree::Node* const node =
          tree.Insert(place, absl::MakeConstSpan(ids).subspan(static_cast<size_t>(place.node->end)));
      node->segment = kSome;
      texts[ids] = node;
      const int64_t from = below(static_cast<int>(ids.size()) + 1);
      EXPECT_EQ(TextTree::Ids(node, from, node->end), Ids(ids.begin() + from, ids.end()));
      EXPECT_EQ(TextTree::Ids(node, 0, from), Ids(ids.begin(), ids.begin() + from));
    } else {
      const auto gone = std::next(texts.begin(), below(static_cast<int>(texts.size())));
      gone->second->segment = nullptr;
      tree.Tidy(gone->second);
      texts.erase(gone);
    }
  }
  for (const auto& [text, node] : texts) {
    ASSERT_EQ(TextTree::Ids(node, 0, node->end), text);
    node->segment = nullptr;
    tree.Tidy(node);
  }
  EXPECT_TRUE(tree.empty());
  EXPECT_EQ(tree.bytes(), 0);
}

TEST(TextTreeTest, TextsThatShareABeginningShareItsMemory) {
  TextTree tree;
  const Ids document = Numbers(50'000);
  for (int i = 0; i < 100; ++i) {
    Ids text = document;
    text.push_back(60'000 + i);
    const auto place = tree.Walk(tree.root(), text, [](const TextTree::Node*) { return true; });
    tree.Insert(place, absl::MakeConstSpan(text).subspan(static_cast<size_t>(place.node->end)))->segment = kSome;
  }
  EXPECT_LT(tree.bytes(), 100'000 + 102 * 300);
}

}  // namespace
}  // namespace goldfinch
