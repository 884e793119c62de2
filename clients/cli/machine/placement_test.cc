#include "clients/cli/machine/placement.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace goldfinch {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

TEST(PlaceStagesTest, OneEach) {
  EXPECT_THAT(PlaceStages(4, {80, 80, 80, 80}), ElementsAre(0, 1, 2, 3));
  EXPECT_THAT(PlaceStages(1, {80}), ElementsAre(0));
  EXPECT_THAT(PlaceStages(2, {80, 10}), ElementsAre(0, 1)) << "a small device is not left out";
}

TEST(PlaceStagesTest, FewerStagesThanDevicesTakeTheFirst) {
  EXPECT_THAT(PlaceStages(2, {80, 80, 80, 80}), ElementsAre(0, 1));
}

TEST(PlaceStagesTest, StagesThatShareADeviceFollowEachOther) {
  EXPECT_THAT(PlaceStages(8, {80, 80, 80, 80}), ElementsAre(0, 0, 1, 1, 2, 2, 3, 3));
  EXPECT_THAT(PlaceStages(5, {80, 80}), ElementsAre(0, 0, 0, 1, 1));
  EXPECT_THAT(PlaceStages(3, {80}), ElementsAre(0, 0, 0));
}

TEST(PlaceStagesTest, LargerDevicesHaveMore) {
  EXPECT_THAT(PlaceStages(3, {40, 80}), ElementsAre(0, 1, 1));
  EXPECT_THAT(PlaceStages(6, {40, 80}), ElementsAre(0, 0, 1, 1, 1, 1));
  EXPECT_THAT(PlaceStages(4, {10, 80}), ElementsAre(0, 1, 1, 1));
}

TEST(PlaceStagesTest, EveryDeviceAndEveryStageHasItsPart) {
  for (int devices = 1; devices <= 9; ++devices) {
    std::vector<int64_t> sizes;
    for (int device = 0; device < devices; ++device) sizes.push_back(10 + device * 37 % 50);
    for (int stages = 1; stages <= 40; ++stages) {
      const std::vector<int> placed = PlaceStages(stages, sizes);
      ASSERT_EQ(placed.size(), static_cast<size_t>(stages));
      EXPECT_TRUE(std::is_sorted(placed.begin(), placed.end()));
      const std::vector<int> counts = StagesOnEach(placed, devices);
      for (int device = 0; device < devices; ++device) {
        EXPECT_EQ(counts[device] > 0, device < stages) << stages << " stages, " << devices << " devices";
        // No stage would have more by moving to another device.
        for (int other = 0; other < devices && counts[device] > 1; ++other) {
          EXPECT_GE(static_cast<double>(sizes[device]) / counts[device],
                    static_cast<double>(sizes[other]) / (counts[other] + 1));
        }
      }
    }
  }
}

std::vector<NumaNode> Nodes(const std::vector<std::vector<int>>& cpus) {
  std::vector<NumaNode> nodes;
  for (const std::vector<int>& of_node : cpus) nodes.push_back({static_cast<int>(nodes.size()), of_node});
  return nodes;
}

TEST(PlaceOnNodesTest, OnOneNodeNothingIsBound) {
  for (const std::vector<NumaNode>& nodes : {Nodes({}), Nodes({{0, 1, 2, 3, 4, 5, 6, 7}})}) {
    const std::vector<CpuPart> parts = PlaceOnNodes(3, 8, nodes);
    ASSERT_EQ(parts.size(), 3U);
    for (const CpuPart& part : parts) {
      EXPECT_THAT(part.cpus, IsEmpty());
      EXPECT_EQ(part.threads, 2);
    }
  }
  EXPECT_EQ(PlaceOnNodes(3, 2, {})[0].threads, 1) << "one at least";
}

TEST(PlaceOnNodesTest, AStageOnItsOwnUsesAllNodes) {
  const std::vector<CpuPart> parts = PlaceOnNodes(1, 4, Nodes({{0, 1}, {2, 3}}));
  ASSERT_EQ(parts.size(), 1U);
  EXPECT_THAT(parts[0].cpus, IsEmpty());
  EXPECT_EQ(parts[0].threads, 4);
}

TEST(PlaceOnNodesTest, StagesOfANodeShareItsCpus) {
  const std::vector<CpuPart> parts = PlaceOnNodes(4, 8, Nodes({{0, 1, 4, 5}, {2, 3, 6, 7}}));
  ASSERT_EQ(parts.size(), 4U);
  for (int stage = 0; stage < 4; ++stage) {
    EXPECT_EQ(parts[stage].threads, 2) << stage;
    if (stage < 2) {
      EXPECT_THAT(parts[stage].cpus, ElementsAre(0, 1, 4, 5));
    } else {
      EXPECT_THAT(parts[stage].cpus, ElementsAre(2, 3, 6, 7));
    }
  }
}

TEST(PlaceOnNodesTest, ALargerNodeHasMoreThreads) {
  const std::vector<CpuPart> parts = PlaceOnNodes(2, 8, Nodes({{0, 1}, {2, 3, 4, 5, 6, 7}}));
  EXPECT_EQ(parts[0].threads, 2);
  EXPECT_EQ(parts[1].threads, 6);
}

TEST(PlaceOnNodesTest, ThreadsAreThoseThatWereGiven) {
  // A quota of two CPUs on a machine of many.
  const std::vector<CpuPart> parts = PlaceOnNodes(2, 2, Nodes({{0, 1, 2, 3}, {4, 5, 6, 7}}));
  EXPECT_EQ(parts[0].threads, 1);
  EXPECT_THAT(parts[1].cpus, ElementsAre(4, 5, 6, 7));
}

TEST(PlaceOnNodesTest, FewStagesHaveWholeNodes) {
  const std::vector<CpuPart> parts = PlaceOnNodes(2, 8, Nodes({{0, 4}, {1, 5}, {2, 6}, {3, 7}}));
  ASSERT_EQ(parts.size(), 2U);
  EXPECT_THAT(parts[0].cpus, ElementsAre(0, 1, 4, 5));
  EXPECT_THAT(parts[1].cpus, ElementsAre(2, 3, 6, 7));
  EXPECT_EQ(parts[0].threads, 4);
  EXPECT_THAT(PlaceOnNodes(2, 6, Nodes({{0, 1}, {2, 3}, {4, 5}}))[1].cpus, ElementsAre(2, 3, 4, 5));
}

}  // namespace
}  // namespace goldfinch
