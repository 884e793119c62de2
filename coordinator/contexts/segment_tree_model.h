// A naive model of a tree of segments, for its property test: it knows every text and every copy in full, and what may
// not be evicted.
#ifndef GOLDFINCH_COORDINATOR_CONTEXTS_SEGMENT_TREE_MODEL_H_
#define GOLDFINCH_COORDINATOR_CONTEXTS_SEGMENT_TREE_MODEL_H_

#include <algorithm>
#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "coordinator/contexts/segment_tree.h"
#include "coordinator/contexts/segment_tree_test_util.h"
#include "gtest/gtest.h"

namespace goldfinch {

using Text = std::vector<int32_t>;

inline int64_t CommonPrefix(const Text& a, const Text& b) {
  return std::mismatch(a.begin(), a.begin() + std::min(a.size(), b.size()), b.begin()).first - a.begin();
}

// What the caller knows of a segment.
struct Mirror {
  std::string name_space;
  Text text;
  int holds = 0;
  double arrived = -1e9;
  struct Contents {
    SegmentContents present = 0, coming = 0;
  };
  std::map<int, Contents> in;

  SegmentContents PresentBeside(int tier) const {
    SegmentContents contents = 0;
    for (const auto& [other, there] : in) contents |= other == tier ? 0 : there.present;
    return contents;
  }
};

struct Named {
  uint64_t segment = 0;
  bool pinned = false;
  uint64_t etag = 0;
  std::optional<double> seconds_to_live, expires;
};

// Whoever calls the tree tells the model what it has answered.
class SegmentModel {
 protected:
  SegmentModel() : tree_(TestIdentity()) {}

  enum class Cause { kRoom, kOther };
  void Apply(const SegmentDrops& drops, Cause cause) {
    for (const SegmentDrop& drop : drops) {
      const auto found = mirrors_.find(drop.segment);
      ASSERT_NE(found, mirrors_.end()) << drop.segment;
      Mirror& mirror = found->second;
      Mirror::Contents& there = mirror.in[drop.tier];
      ASSERT_EQ((there.present | there.coming) & drop.contents, drop.contents)
          << "what was dropped was there: " << drop.segment << " from " << drop.tier << ", operation " << operation_;
      if (cause == Cause::kRoom) {
        EXPECT_EQ(mirror.holds, 0) << "evicted in use";
        EXPECT_EQ(there.coming, 0) << "evicted on its way";
        EXPECT_GE(now_, mirror.arrived + SegmentTree::kFreshSeconds) << "evicted though just stored";
        for (const auto& [key, named] : named_) {
          if (named.segment != drop.segment) continue;
          EXPECT_FALSE(named.pinned) << "evicted though pinned";
          EXPECT_EQ(mirror.PresentBeside(drop.tier) & drop.contents, drop.contents) << "evicted though named";
        }
      }
      there.present &= ~drop.contents;
      there.coming &= ~drop.contents;
      if ((there.present | there.coming) == 0) mirror.in.erase(drop.tier);
    }
    if (cause != Cause::kRoom) return;
    std::set<std::pair<uint64_t, int>> rows;
    for (const SegmentDrop& drop : drops) {
      if ((drop.contents & kRows) != 0) rows.emplace(drop.segment, drop.tier);
    }
    for (const auto& [number, mirror] : mirrors_) {
      const auto info = tree_.Find(number);
      if (!info || info->parent == 0) continue;
      for (const auto& [tier, there] : mirror.in) {
        if (((there.present | there.coming) & kRows) == 0) continue;
        EXPECT_FALSE(rows.contains({info->parent, tier})) << "evicted though a child has rows there";
      }
      if (mirror.holds == 0 && info->contexts == 0) continue;
      for (const uint64_t link : tree_.Chain(number)) {
        for (const int tier : {shelves_[0], shelves_[1], disk_}) {
          if (!rows.contains({link, tier})) continue;
          EXPECT_NE(mirrors_.at(link).PresentBeside(0) & kRows, 0) << "last rows evicted that others need";
        }
      }
    }
  }

  bool ChainPresent(uint64_t number) const {
    for (const uint64_t link : tree_.Chain(number)) {
      if ((mirrors_.at(link).PresentBeside(0) & kRows) == 0) return false;
    }
    return true;
  }

  void Check() {
    std::map<int, int64_t> tier_bytes;
    std::map<std::string, int64_t> space_bytes;
    for (auto mirror = mirrors_.begin(); mirror != mirrors_.end();) {
      const auto info = tree_.Find(mirror->first);
      if (!info) {
        EXPECT_TRUE(mirror->second.in.empty()) << mirror->first << " is gone, and its bytes were not dropped";
        EXPECT_EQ(mirror->second.holds, 0);
        mirror = mirrors_.erase(mirror);
        continue;
      }
      EXPECT_EQ(info->name_space, mirror->second.name_space);
      EXPECT_EQ(info->end, static_cast<int64_t>(mirror->second.text.size()));
      EXPECT_EQ(info->holds, mirror->second.holds);
      EXPECT_EQ(info->copies.size(), mirror->second.in.size());
      SegmentContents any = 0;
      for (const SegmentInfo::Copy& copy : info->copies) {
        const auto& there = mirror->second.in[copy.tier];
        EXPECT_EQ(copy.present, there.present);
        EXPECT_EQ(copy.coming, there.coming);
        const SegmentContents contents = copy.present | copy.coming;
        any |= contents;
        tier_bytes[copy.tier] += (contents & kRows) != 0 ? info->row_bytes : 0;
        tier_bytes[copy.tier] += (contents & kSnapshot) != 0 ? info->snapshot_bytes : 0;
      }
      space_bytes[info->name_space] += (any & kRows) != 0 ? info->row_bytes : 0;
      space_bytes[info->name_space] += (any & kSnapshot) != 0 ? info->snapshot_bytes : 0;
      EXPECT_EQ(info->row_bytes, (info->end - info->begin) * kTestRowBytes);
      // Rows of parents are there for as long as anybody needs them.
      if (info->parent != 0) {
        const auto parent = tree_.Find(info->parent);
        ASSERT_TRUE(parent.has_value());
        EXPECT_EQ(parent->end, info->begin);
        const Mirror& above = mirrors_.at(info->parent);
        EXPECT_EQ(above.name_space, info->name_space);
        EXPECT_EQ(CommonPrefix(above.text, mirror->second.text), parent->end);
      }
      if (any != 0 && info->holds == 0) {
        for (uint64_t link : tree_.Chain(mirror->first)) {
          SegmentContents rows = 0;
          for (const auto& [tier, there] : mirrors_.at(link).in) rows |= there.present | there.coming;
          EXPECT_NE(rows & kRows, 0) << "rows of " << link << " are missing for " << mirror->first;
        }
      }
      EXPECT_TRUE(any != 0 || info->holds > 0 || info->contexts > 0 || info->children > 0) << "left over";
      ++mirror;
    }
    EXPECT_EQ(tree_.segments(), mirrors_.size());
    for (const int tier : {shelves_[0], shelves_[1], disk_}) {
      EXPECT_EQ(tree_.TierBytes(tier), tier_bytes[tier]);
    }
    for (const std::string name_space : {"a", "b", "c"}) {
      EXPECT_EQ(tree_.NamespaceBytes(name_space), space_bytes[name_space]);
    }
    for (const auto& [key, named] : named_) {
      const auto info = tree_.Get(key.first, key.second);
      ASSERT_TRUE(info.ok()) << info.status();
      EXPECT_EQ(info->segment, named.segment);
      EXPECT_EQ(info->pinned, named.pinned);
      EXPECT_EQ(info->etag, named.etag);
      EXPECT_EQ(info->expires, named.expires);
      ASSERT_TRUE(mirrors_.contains(named.segment)) << "a named segment is gone";
    }
    CheckKept();
  }

  void CheckKept() {
    std::map<uint64_t, int> contexts;  // by segments of their chains
    for (const auto& [key, named] : named_) {
      for (const uint64_t link : tree_.Chain(named.segment)) ++contexts[link];
    }
    for (const auto& [key, named] : named_) {
      TextKept expected;
      std::map<int, bool> whole = {{shelves_[0], true}, {shelves_[1], true}, {disk_, true}};
      for (const uint64_t link : tree_.Chain(named.segment)) {
        const auto info = tree_.Find(link);
        Mirror& mirror = mirrors_.at(link);
        const bool shared = contexts[link] > 1;
        if ((mirror.PresentBeside(0) & kRows) != 0) {
          expected.row_tokens += info->end - info->begin;
          expected.shared_row_tokens += shared ? info->end - info->begin : 0;
        }
        if ((mirror.PresentBeside(0) & kSnapshot) != 0) {
          expected.snapshots.push_back(info->end);
          expected.shared_snapshots += shared ? 1 : 0;
        }
        for (auto& [tier, all] : whole) {
          const auto there = mirror.in.find(tier);
          const SegmentContents present = there == mirror.in.end() ? SegmentContents{0} : there->second.present;
          all = all && (present & kRows) != 0;
          if (all && (present & kSnapshot) != 0) (tier == disk_ ? expected.on_disk : expected.in_memory) = true;
        }
      }
      const TextKept kept = tree_.Kept(named.segment);
      EXPECT_EQ(kept.row_tokens, expected.row_tokens);
      EXPECT_EQ(kept.shared_row_tokens, expected.shared_row_tokens);
      EXPECT_EQ(kept.snapshots, expected.snapshots);
      EXPECT_EQ(kept.shared_snapshots, expected.shared_snapshots);
      EXPECT_EQ(kept.in_memory, expected.in_memory);
      EXPECT_EQ(kept.on_disk, expected.on_disk);
    }
  }

  ContextMatch CheckedMatch(const std::string& name_space, const Text& prompt, int64_t limit) {
    const ContextMatch match = tree_.Match(name_space, prompt, limit);
    int64_t matched = 0, position = 0;
    for (const auto& [number, mirror] : mirrors_) {
      if (mirror.name_space != name_space) continue;
      const int64_t common = CommonPrefix(mirror.text, prompt), end = static_cast<int64_t>(mirror.text.size());
      matched = std::max(matched, common);
      if (common < end || end > limit || (mirror.PresentBeside(0) & kSnapshot) == 0) continue;
      if (end == match.tokens && !tree_.Find(number)->logits) continue;
      if (ChainPresent(number)) position = std::max(position, end);
    }
    EXPECT_EQ(match.matched, matched);
    EXPECT_EQ(match.position, position);
    EXPECT_EQ(match.segment != 0, position > 0);
    if (match.segment != 0) {
      EXPECT_EQ(tree_.Ids(match.segment, 0, position), Text(prompt.begin(), prompt.begin() + position));
    }
    EXPECT_TRUE(std::is_sorted(match.partings.begin(), match.partings.end()));
    for (const int64_t parting : match.partings) {
      EXPECT_GT(parting, position);
      EXPECT_LE(parting, matched);
    }
    if (matched > position) {
      EXPECT_EQ(match.partings.back(), matched);
    }
    return match;
  }

  // It is never worse than computing all, and says why it is none.
  void CheckChoice(const ContextMatch& match, const ContextChoice& choice, double token_seconds) {
    const double all = token_seconds * static_cast<double>(match.tokens);
    EXPECT_LE(choice.load_seconds + choice.compute_seconds, all);
    if (choice.segment == 0) {
      EXPECT_EQ(choice.reason == ContextMiss::kCheaperToCompute, match.segment != 0);
      tree_.CountMiss(choice.reason);
    } else {
      const bool whole = choice.position == match.tokens;
      EXPECT_EQ(choice.compute_seconds,
                whole ? 0 : token_seconds * static_cast<double>(match.tokens - choice.position));
      tree_.CountHit(choice);
    }
  }

  void Forget(uint64_t number, int tier, SegmentContents contents) {
    Mirror& mirror = mirrors_.at(number);
    Mirror::Contents& there = mirror.in[tier];
    there.present &= ~contents;
    there.coming &= ~contents;
    if ((there.present | there.coming) == 0) mirror.in.erase(tier);
  }

  SegmentTree tree_;
  std::vector<int> shelves_;  // tiers
  int disk_ = 0;
  double now_ = 0;
  int operation_ = 0;  // for messages
  std::map<uint64_t, Mirror> mirrors_;
  std::map<std::pair<std::string, std::string>, Named> named_;  // by namespace and name
};

}  // namespace goldfinch

#endif  // GOLDFINCH_COORDINATOR_CONTEXTS_SEGMENT_TREE_MODEL_H_
