#include "coordinator/store/segment.h"

#include "coordinator/store/store_test_util.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace goldfinch {
namespace {

using ::testing::HasSubstr;

TEST(SegmentTest, IdsAndLogitsAreNoPartsOfAModel) {
  EXPECT_EQ(ParseContextPartKind("rows"), StatePartKind::kRows);
  EXPECT_EQ(ParseContextPartKind("moods"), std::nullopt);
  for (const StatePartKind kind : {StatePartKind::kIds, StatePartKind::kLogits}) {
    EXPECT_FALSE(IsContextPart(kind));
    EXPECT_EQ(ParseContextPartKind(KindName(kind)), std::nullopt);
    SegmentSpec segment = MakeTestSegment(3).segment;
    segment.model.parts.push_back({7, kind, ElementType::kF32, {8}});
    EXPECT_THAT(std::string(LayOut(segment).status().message()), HasSubstr(KindName(kind)));
  }
}

TEST(SegmentTest, LayersAreThoseThatAModelMayHave) {
  SegmentSpec segment = MakeTestSegment(3).segment;
  segment.model.parts.push_back({1023, StatePartKind::kTimeShift, ElementType::kF32, {8}});
  EXPECT_TRUE(LayOut(segment).ok()) << LayOut(segment).status();
  segment.model.parts.back().layer = 1024;
  EXPECT_THAT(std::string(LayOut(segment).status().message()),
              HasSubstr("layer of a part is 1024, it must be from 0 to 1023"));
}

}  // namespace
}  // namespace goldfinch
