// Random histories against a model that knows every text and every copy in full, and what it may not lose.
#include <algorithm>
#include <map>
#include <optional>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "coordinator/contexts/segment_tree.h"
#include "coordinator/contexts/segment_tree_model.h"
#include "coordinator/contexts/segment_tree_test_util.h"
#include "gtest/gtest.h"

namespace goldfinch {
namespace {

class History : private SegmentModel {
 public:
  explicit History(uint32_t seed) : random_(seed) {
    for (int i = 0; i < 2; ++i) shelves_.push_back(tree_.OpenTier(TestTier(TierKind::kMemory, 9000 + Below(9000))));
    disk_ = tree_.OpenTier(TestTier(TierKind::kDisk, 15000 + Below(15000)));
  }

  void Run(int steps) {
    for (int i = 0; i < steps; ++i) {
      now_ += 0.1 * Below(5);
      operation_ = Below(16);
      switch (operation_) {
        case 0:
        case 1:
        case 2:
          Begin();
          break;
        case 3:
        case 4:
        case 5:
          Store();
          break;
        case 6:
        case 7:
        case 8:
          Answer();
          break;
        case 9:
          Bring();
          break;
        case 10:
        case 11:
          Release();
          break;
        case 12:
          Name();
          break;
        case 13:
          ChangeNamed();
          break;
        case 14:
          Lose();
          break;
        case 15:
          Trim();
          break;
      }
      Check();
      if (testing::Test::HasFatalFailure() || testing::Test::HasNonfatalFailure()) {
        FAIL() << "in step " << i;
      }
    }
    Finish();
  }

  int64_t evictions() const { return tree_.counters().evictions; }
  int hits() const { return hits_; }
  int refused() const { return refused_; }

 private:
  int Below(int limit) { return static_cast<int>(random_() % static_cast<uint32_t>(limit)); }
  std::string SomeSpace() { return std::string(1, static_cast<char>('a' + Below(3))); }
  int SomeTier() { return Below(3) == 0 ? disk_ : shelves_[static_cast<size_t>(Below(2))]; }

  Text SomeText(const std::string& name_space) {
    std::vector<const Text*> texts;
    for (const auto& [number, mirror] : mirrors_) {
      if (mirror.name_space == name_space) texts.push_back(&mirror.text);
    }
    Text text;
    if (!texts.empty() && Below(5) > 0) {
      text = *texts[static_cast<size_t>(Below(static_cast<int>(texts.size())))];
      if (Below(2) == 0) text.resize(static_cast<size_t>(Below(static_cast<int>(text.size()) + 1)));
    }
    const int more = text.empty() ? 1 + Below(40) : Below(3) * Below(20);
    // Wide ids now and then, that do not fit two bytes.
    for (int i = 0; i < more; ++i) text.push_back(Below(3) + (Below(40) == 0 ? 100'000 : 0));
    return text.empty() ? Text{1} : text;
  }

  // ---- What callers do

  void Begin() {
    const std::string name_space = SomeSpace();
    const Text prompt = SomeText(name_space);
    const ContextMatch match = CheckedMatch(name_space, prompt, Below(4) == 0 ? Below(30) : INT64_MAX);
    const double seconds = 1e-4 * (1 << Below(10));
    const auto choice = tree_.Choose(
        match, SomeTier(), [&](int64_t begin) { return seconds * static_cast<double>(match.tokens - begin); });
    CheckChoice(match, choice, seconds);
    uint64_t parent = 0;
    int64_t position = 0;
    if (choice.segment != 0) {
      ++hits_;
      EXPECT_LE(choice.position, match.position);
      parent = choice.segment;
      position = choice.position;
      tree_.Hold(parent, now_);
      Held(parent);
    }
    while (position < match.tokens) {
      const int64_t end = std::min<int64_t>(match.tokens, position + 1 + Below(25));
      const auto added =
          tree_.Add(name_space, parent, absl::MakeConstSpan(prompt).subspan(position, end - position),
                    TestBytes(end == match.tokens && Below(2) == 0), 0.001 * static_cast<double>(end - position), now_);
      ASSERT_TRUE(added.ok()) << added.status();
      Mirror& mirror = mirrors_[added->number];
      mirror.name_space = name_space;
      mirror.text = Text(prompt.begin(), prompt.begin() + end);
      Held(added->number);
      parent = added->number;
      position = end;
    }
  }

  void Held(uint64_t number) {
    ++mirrors_.at(number).holds;
    held_.push_back(number);
  }

  uint64_t SomeHeld() { return held_.empty() ? 0 : held_[static_cast<size_t>(Below(static_cast<int>(held_.size())))]; }

  void Store() {
    const uint64_t number = SomeHeld();
    if (number == 0) return;
    const int tier = SomeTier();
    SegmentDrops drops;
    // What is on its way counts while room is made: nothing of it may go.
    const auto saving = tree_.Store(number, tier, now_, &drops);
    // A snapshot with last logits takes the place of one without: this drop is no eviction.
    const auto own = std::stable_partition(drops.begin(), drops.end(),
                                           [&](const SegmentDrop& drop) { return drop.segment == number; });
    Apply(SegmentDrops(drops.begin(), own), Cause::kOther);
    Apply(SegmentDrops(own, drops.end()), Cause::kRoom);
    if (!saving.ok()) {
      EXPECT_TRUE(absl::IsResourceExhausted(saving.status())) << saving.status();
      ++refused_;
      return;
    }
    if (saving->contents == 0) return;
    mirrors_.at(number).in[tier].coming |= saving->contents;
    moving_.push_back({number, tier, saving->contents});
  }

  void Bring() {
    const uint64_t number = SomeHeld();
    if (number == 0) return;
    const int tier = SomeTier();
    SegmentDrops drops;
    const auto plan = tree_.Bring(number, tier, now_, &drops);
    Apply(drops, Cause::kRoom);
    if (!plan.ok()) return;
    for (const BringMove& move : plan->moves) {
      Mirror& mirror = mirrors_.at(move.segment);
      EXPECT_EQ(mirror.in.at(move.source).present & move.contents, move.contents);
      mirror.in[tier].coming |= move.contents;
      moving_.push_back({move.segment, tier, move.contents});
    }
  }

  void Answer() {
    if (moving_.empty()) return;
    const size_t index = static_cast<size_t>(Below(static_cast<int>(moving_.size())));
    const Move move = moving_[index];
    moving_.erase(moving_.begin() + static_cast<int64_t>(index));
    SegmentDrops drops;
    const auto found = mirrors_.find(move.segment);
    const bool known = found != mirrors_.end() && found->second.in.contains(move.tier) &&
                       (found->second.in[move.tier].coming & move.contents) != 0;
    if (Below(8) > 0) {
      tree_.Arrived(move.segment, move.tier, move.contents, now_, &drops);
      if (known) {
        found->second.arrived = now_;
        Mirror::Contents& there = found->second.in[move.tier];
        there.present |= there.coming & move.contents;
        there.coming &= ~move.contents;
      }
    } else {
      if (found != mirrors_.end() && found->second.in.contains(move.tier))
        Forget(move.segment, move.tier, move.contents);
      tree_.Lost(move.segment, move.tier, move.contents, &drops);
    }
    Apply(drops, Cause::kOther);
  }

  void Release() {
    if (held_.empty()) return;
    for (int i = 1 + Below(4); i > 0 && !held_.empty(); --i) {
      const size_t index = static_cast<size_t>(Below(static_cast<int>(held_.size())));
      const uint64_t number = held_[index];
      held_.erase(held_.begin() + static_cast<int64_t>(index));
      --mirrors_.at(number).holds;
      SegmentDrops drops;
      tree_.Release(number, &drops);
      Apply(drops, Cause::kOther);
    }
  }

  void Name() {
    const uint64_t number = SomeHeld();
    if (number == 0) return;
    const std::string name_space = mirrors_.at(number).name_space,
                      name = std::string(1, static_cast<char>('p' + Below(6)));
    const auto key = std::make_pair(name_space, name);
    Named named;
    named.segment = number;
    if (Below(2) == 0) named.seconds_to_live = 1 + Below(20);
    const auto created = tree_.Create(name_space, name, number, named.seconds_to_live, now_);
    if (named_.contains(key)) {
      EXPECT_TRUE(absl::IsAlreadyExists(created.status()));
      SegmentDrops drops;
      Named& old = named_[key];
      const uint64_t etag = Below(2) == 0 ? old.etag : old.etag + 1;
      const auto advanced = tree_.Advance(name_space, name, etag, number, now_, &drops);
      EXPECT_EQ(advanced.ok(), etag == old.etag);
      if (advanced.ok()) {
        old.segment = number;
        old.etag = advanced->etag;
        PutOff(old);
      }
      Apply(drops, Cause::kOther);
      return;
    }
    ASSERT_TRUE(created.ok()) << created.status();
    named.etag = created->etag;
    PutOff(named);
    named_[key] = named;
  }

  // It was used now.
  void PutOff(Named& named) const {
    named.expires.reset();
    if (named.seconds_to_live && !named.pinned) named.expires = now_ + *named.seconds_to_live;
  }

  void ChangeNamed() {
    SegmentDrops drops;
    int expired = 0;
    for (auto named = named_.begin(); named != named_.end();) {
      const bool over = named->second.expires && *named->second.expires <= now_;
      expired += over;
      named = over ? named_.erase(named) : std::next(named);
    }
    EXPECT_EQ(static_cast<int>(tree_.Expire(now_, &drops).size()), expired);
    Apply(drops, Cause::kOther);
    if (named_.empty()) return;
    const auto chosen = std::next(named_.begin(), Below(static_cast<int>(named_.size())));
    const auto [name_space, name] = chosen->first;
    switch (Below(4)) {
      case 0: {
        SegmentDrops deleted;
        EXPECT_TRUE(tree_.Delete(name_space, name, 0, &deleted).ok());
        named_.erase(chosen);
        Apply(deleted, Cause::kOther);
        break;
      }
      case 1: {
        const bool pinned = Below(3) == 0;
        const auto info = tree_.Pin(name_space, name, pinned, chosen->second.etag);
        ASSERT_TRUE(info.ok());
        if (chosen->second.pinned != pinned) {
          chosen->second.pinned = pinned;
          PutOff(chosen->second);
        }
        chosen->second.etag = info->etag;
        break;
      }
      case 2: {
        const std::string to = std::string(1, static_cast<char>('p' + Below(6)));
        const auto info = tree_.Rename(name_space, name, to, 0);
        EXPECT_EQ(info.ok(), !named_.contains({name_space, to}));
        if (!info.ok()) break;
        Named named = chosen->second;
        named.etag = info->etag;
        named_.erase(chosen);
        named_[{name_space, to}] = named;
        break;
      }
      case 3: {
        const auto info = tree_.Use(name_space, name, now_);
        ASSERT_TRUE(info.ok());
        PutOff(chosen->second);
        Held(info->segment);
        break;
      }
    }
  }

  void Lose() {
    SegmentDrops drops;
    if (Below(6) == 0) {  // a generation ends
      int& shelf = shelves_[static_cast<size_t>(Below(2))];
      for (auto& [number, mirror] : mirrors_) mirror.in.erase(shelf);
      tree_.CloseTier(shelf, &drops);
      Apply(drops, Cause::kOther);
      shelf = tree_.OpenTier(TestTier(TierKind::kMemory, 9000 + Below(9000)));
      return;
    }
    if (mirrors_.empty()) return;
    const auto chosen = std::next(mirrors_.begin(), Below(static_cast<int>(mirrors_.size())));
    if (chosen->second.in.empty()) return;
    const uint64_t number = chosen->first;
    const int tier = chosen->second.in.begin()->first;
    const SegmentContents contents = static_cast<SegmentContents>(1 + Below(3));
    Forget(number, tier, contents);
    tree_.Lost(number, tier, contents, &drops);
    Apply(drops, Cause::kOther);
  }

  void Trim() {
    SegmentDrops drops;
    if (Below(3) == 0) {
      const std::string name_space = SomeSpace();
      NamespaceQuota quota;
      if (Below(2) == 0) quota.bytes_max = 3000 + Below(12000);
      tree_.SetQuota(name_space, quota);
      return;
    }
    const int tier = SomeTier();
    const int64_t bytes = Below(12000);
    const absl::Status made = tree_.MakeRoom(tier, bytes, now_, &drops);
    Apply(drops, Cause::kRoom);
    EXPECT_TRUE(made.ok() || absl::IsResourceExhausted(made)) << made;
  }

  // Everything goes, and nothing is left.
  void Finish() {
    while (!held_.empty()) Release();
    while (!moving_.empty()) Answer();
    for (const auto& [key, named] : named_) {
      SegmentDrops drops;
      EXPECT_TRUE(tree_.Delete(key.first, key.second, named.etag, &drops).ok());
      Apply(drops, Cause::kOther);
    }
    named_.clear();
    now_ += 2 * SegmentTree::kFreshSeconds;
    Check();
    // Rows of one tier wait for those of others that need them.
    for (int round = 0; round < 3; ++round) {
      for (const int tier : {shelves_[0], shelves_[1], disk_}) {
        SegmentDrops drops;
        tree_.MakeRoom(tier, tier == disk_ ? 15000 : 9000, now_, &drops).IgnoreError();
        Apply(drops, Cause::kRoom);
        Check();
      }
    }
    for (const int tier : {shelves_[0], shelves_[1], disk_}) {
      SegmentDrops drops;
      for (auto& [number, mirror] : mirrors_) mirror.in.erase(tier);
      tree_.CloseTier(tier, &drops);
      Apply(drops, Cause::kOther);
    }
    EXPECT_EQ(tree_.segments(), 0u);
    EXPECT_EQ(tree_.index_bytes(), 0);
  }

  struct Move {
    uint64_t segment = 0;
    int tier = 0;
    SegmentContents contents = 0;
  };

  std::mt19937 random_;
  std::vector<uint64_t> held_;
  std::vector<Move> moving_;
  int hits_ = 0;
  int refused_ = 0;
};

TEST(SegmentTreePropertyTest, NothingIsLostLeftOverOrEvictedThatMustStay) {
  int64_t evictions = 0;
  int hits = 0, refused = 0;
  for (uint32_t seed = 0; seed < 60; ++seed) {
    SCOPED_TRACE(seed);
    History history(seed);
    history.Run(600);
    if (testing::Test::HasFatalFailure()) return;
    evictions += history.evictions();
    hits += history.hits();
    refused += history.refused();
  }
  RecordProperty("evictions", std::to_string(evictions));
  RecordProperty("hits", std::to_string(hits));
  RecordProperty("refused", std::to_string(refused));
  EXPECT_GT(evictions, 500);
  EXPECT_GT(hits, 500);
  EXPECT_GT(refused, 100);
}

}  // namespace
}  // namespace goldfinch
