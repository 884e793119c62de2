#include "base/state_part_kind.h"

#include "gtest/gtest.h"

namespace goldfinch {
namespace {

TEST(StatePartKindTest, EveryKindIsFoundByItsName) {
  for (const StatePartFacts& facts : kStatePartKinds) {
    EXPECT_EQ(ParseKindName(facts.name), facts.kind) << facts.name;
    EXPECT_STREQ(KindName(facts.kind), facts.name);
    EXPECT_EQ(IsPerToken(facts.kind), facts.per_token);
  }
  EXPECT_EQ(ParseKindName("WKV"), std::nullopt);
  EXPECT_EQ(ParseKindName(""), std::nullopt);
}

// Files and workers of other versions have these names.
TEST(StatePartKindTest, NamesDoNotChange) {
  EXPECT_EQ(ParseKindName("time_shift"), StatePartKind::kTimeShift);
  EXPECT_EQ(ParseKindName("channel_shift"), StatePartKind::kChannelShift);
  EXPECT_EQ(ParseKindName("wkv"), StatePartKind::kWkv);
  EXPECT_EQ(ParseKindName("tail_rows"), StatePartKind::kTailRows);
  EXPECT_EQ(ParseKindName("logits"), StatePartKind::kLogits);
  EXPECT_EQ(ParseKindName("keys"), StatePartKind::kKeys);
  EXPECT_EQ(ParseKindName("values"), StatePartKind::kValues);
  EXPECT_EQ(ParseKindName("ids"), StatePartKind::kIds);
  EXPECT_EQ(ParseKindName("rows"), StatePartKind::kRows);
}

}  // namespace
}  // namespace goldfinch
