// Groups whose workers cannot reach each other: those that can serve go on without the others, whoever reports it.
#include <cstdint>
#include <vector>

#include "coordinator/membership/membership.h"
#include "coordinator/membership/membership_test_util.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace goldfinch {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::Not;
using ::testing::SizeIs;
using ::testing::UnorderedElementsAre;

constexpr uint64_t kLayerBytes = 1 << 20;

class BlameTest : public testing::Test {
 protected:
  BlameTest() {
    for (auto& layer : *cluster.described.mutable_described()->mutable_memory()->mutable_layers()) {
      layer.set_weight_bytes(kLayerBytes);
    }
  }
  // Workers of which any `enough` can hold the model.
  void Add(std::vector<uint64_t> ids, int enough) {
    for (const uint64_t id : ids) cluster.Add(id, (6 / enough) * kLayerBytes + kLayerBytes / 2);
  }
  void Pass(double seconds) {
    for (double passed = 0; passed < seconds; passed += 0.5) cluster.Tick(0.5);
  }
  void EndGeneration() {
    cluster.membership.EndGeneration(0, "for the test", cluster.now);
    cluster.Settle();
  }

  TestCluster cluster{TestCluster::Options(3)};
};

TEST_F(BlameTest, ANewcomerThatNobodyReachesIsLeftOut) {
  Add({1, 2, 3}, /*enough=*/2);
  cluster.membership.Disconnected(3, cluster.now);
  Pass(2);
  ASSERT_THAT(cluster.Stages(), ElementsAre(1, 2));
  cluster.apart = {4};
  Add({4}, /*enough=*/2);
  cluster.Tick(0.1, /*idle=*/true);
  EXPECT_FALSE(cluster.membership.ready(0));
  Pass(2);
  ASSERT_TRUE(cluster.membership.ready(0)) << cluster.log.back();
  EXPECT_THAT(cluster.Stages(), ElementsAre(1, 2));
}

class BlameOneTest : public BlameTest, public testing::WithParamInterface<uint64_t> {};

TEST_P(BlameOneTest, AStageThatNobodyReachesAnyMoreIsLeftOut) {
  Add({1, 2, 3}, /*enough=*/2);
  ASSERT_THAT(cluster.Stages(), ElementsAre(1, 2, 3));
  cluster.apart = {GetParam()};
  EndGeneration();
  Pass(20);
  ASSERT_TRUE(cluster.membership.ready(0)) << cluster.log.back();
  EXPECT_THAT(cluster.Stages(), SizeIs(2));
  EXPECT_THAT(cluster.Stages(), Not(Contains(GetParam())));
}

INSTANTIATE_TEST_SUITE_P(Workers, BlameOneTest, testing::Values(1, 2, 3));

TEST_F(BlameTest, OneOfTwoThatCannotReachEachOtherServesAlone) {
  Add({1, 2, 3}, /*enough=*/1);
  cluster.membership.Disconnected(3, cluster.now);
  Pass(2);
  ASSERT_THAT(cluster.Stages(), ElementsAre(1, 2));
  cluster.apart = {2};
  EndGeneration();
  Pass(10);
  ASSERT_TRUE(cluster.membership.ready(0)) << cluster.log.back();
  EXPECT_THAT(cluster.Stages(), SizeIs(1));
}

TEST_F(BlameTest, AllOfTheFirstGroupAreTriedInTurn) {
  cluster.apart = {1};
  Add({1, 2, 3}, /*enough=*/2);
  Pass(5);
  EXPECT_FALSE(cluster.membership.ready(0));
  Add({4}, /*enough=*/2);
  Pass(60);
  ASSERT_TRUE(cluster.membership.ready(0)) << cluster.log.back();
  EXPECT_THAT(cluster.Stages(), UnorderedElementsAre(2, 3, 4));
}

}  // namespace
}  // namespace goldfinch
