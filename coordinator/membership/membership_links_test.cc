// Links between workers are measured once, out of the way of streams, and the next plan knows them.
#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "coordinator/membership/membership.h"
#include "coordinator/membership/membership_test_util.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "protos/cluster.pb.h"
#include "protos/generate.pb.h"

namespace goldfinch {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using Event = MembershipEffects::Event;

class LinksTest : public testing::Test {
 protected:
  void Start(MembershipOptions options = TestCluster::Options(3)) {
    cluster.emplace(std::move(options));
    for (uint64_t id = 1; id <= 3; ++id) cluster->Add(id);
    ASSERT_TRUE(cluster->membership.ready(0));
  }

  // How often a worker was asked to measure its links.
  int Asked(uint64_t worker) {
    const auto& messages = cluster->sent[worker];
    return static_cast<int>(std::count_if(messages.begin(), messages.end(),
                                          [](const cluster::v1::ToWorker& one) { return one.has_measure_links(); }));
  }

  // What the worker of a stage says: links to later stages, and their speeds.
  void Say(uint64_t worker, const std::vector<std::pair<uint32_t, double>>& links) {
    cluster::v1::FromWorker message;
    message.mutable_links_measured()->set_generation(cluster->membership.generation(0));
    for (const auto& [stage, speed] : links) {
      cluster::v1::MeasuredLink& link = *message.mutable_links_measured()->add_links();
      link.set_stage(stage);
      link.set_bytes_per_second(speed);
      link.set_round_trip_seconds(1e-3);
    }
    cluster->membership.Received(worker, message, cluster->now);
    cluster->Settle();
  }

  std::vector<double> Table() { return cluster->membership.QuestionOfSplit(0, {}).options.links.table; }

  std::optional<TestCluster> cluster;
};

TEST_F(LinksTest, AreMeasuredOnceWhenTheGroupIsIdle) {
  Start();
  cluster->Tick(0.1, /*idle=*/true);
  EXPECT_EQ(Asked(1), 0) << "requests that wait come first";
  cluster->Tick(0.2, /*idle=*/true);
  for (uint64_t id = 1; id <= 3; ++id) EXPECT_EQ(Asked(id), 1) << id;
  for (int i = 0; i < 30; ++i) cluster->Tick(1, /*idle=*/true);
  EXPECT_EQ(Asked(1), 1);
}

TEST_F(LinksTest, StreamsThatAreRestoredDoNotWaitForThem) {
  Start();
  cluster->Tick(0.3, /*idle=*/true);
  cluster->Add(4);
  cluster->membership.Disconnected(3, cluster->now);
  cluster->Settle();
  ASSERT_TRUE(cluster->membership.ready(0));
  for (int i = 0; i < 9; ++i) cluster->Tick(1);
  EXPECT_EQ(Asked(4), 0);
  cluster->Tick(1.1);
  EXPECT_EQ(Asked(4), 1) << "it takes a few milliseconds, once";
}

TEST_F(LinksTest, AGroupOfKnownLinksMeasuresNothing) {
  Start();
  cluster->Tick(0.3, /*idle=*/true);
  Say(1, {{1, 1e9}});
  Say(2, {{2, 0}});
  Say(3, {});
  cluster->membership.EndGeneration(0, "for the test", cluster->now);
  cluster->Tick(0.1);
  ASSERT_TRUE(cluster->membership.ready(0));
  ASSERT_THAT(cluster->Stages(), ElementsAre(1, 2, 3));
  for (int i = 0; i < 3; ++i) cluster->Tick(1, /*idle=*/true);
  EXPECT_EQ(Asked(1), 1) << "a link that nobody could tell about is not tried again, either";
}

TEST_F(LinksTest, ASingleStageHasNone) {
  cluster.emplace(TestCluster::Options(1));
  cluster->Add(1);
  cluster->Tick(1, /*idle=*/true);
  EXPECT_EQ(Asked(1), 0);
  EXPECT_THAT(Table(), IsEmpty());
}

TEST_F(LinksTest, AGroupWithoutAModelHasNone) {
  cluster.emplace(TestCluster::Options(3));
  cluster->silent = {1, 2, 3};
  for (uint64_t id = 1; id <= 3; ++id) cluster->Add(id);
  EXPECT_THAT(cluster->membership.Links(0), IsEmpty());
  v1::GetClusterInfoResponse info;
  cluster->membership.FillClusterInfo(cluster->now, &info);
  for (const v1::StageInfo& stage : info.groups(0).stages()) EXPECT_EQ(stage.links_size(), 0);
}

TEST_F(LinksTest, TheNextPlanKnowsThem) {
  Start();
  EXPECT_THAT(Table(), IsEmpty()) << "all are assumed";
  cluster->Tick(0.3, /*idle=*/true);
  Say(1, {{1, 4e9}});
  EXPECT_EQ(cluster->Count(Event::kLinksMeasured), 1);
  Say(2, {{2, 1e9}});
  // Nobody has measured from stage 0 to stage 2: it is taken to be like the others.
  const std::vector<double> table = Table();
  ASSERT_EQ(table.size(), 9U);
  EXPECT_EQ(table[0 * 3 + 1], 4e9);
  EXPECT_EQ(table[1 * 3 + 0], 4e9);
  EXPECT_EQ(table[1 * 3 + 2], 1e9);
  EXPECT_EQ(table[0 * 3 + 2], 4e9);
  v1::GetClusterInfoResponse info;
  cluster->membership.FillClusterInfo(cluster->now, &info);
  ASSERT_EQ(info.groups(0).stages(0).links_size(), 1);
  EXPECT_EQ(info.groups(0).stages(0).links(0).stage(), 1U);
  EXPECT_EQ(info.groups(0).stages(0).links(0).bytes_per_second(), 4e9);
  EXPECT_EQ(info.groups(0).stages(0).links(0).round_trip_seconds(), 1e-3);
  EXPECT_EQ(info.groups(0).stages(2).links_size(), 0);
}

TEST_F(LinksTest, ASpeedThatWasGivenCountsInTheirPlace) {
  MembershipOptions options = TestCluster::Options(3);
  options.partition.links.bytes_per_second = 7e9;
  Start(options);
  cluster->Tick(0.3, /*idle=*/true);
  Say(1, {{1, 4e9}});
  EXPECT_THAT(Table(), IsEmpty());
  EXPECT_EQ(cluster->membership.QuestionOfSplit(0, {}).options.links.bytes_per_second, 7e9);
  EXPECT_EQ(cluster->membership.Links(0).size(), 1U) << "they are shown all the same";
}

TEST_F(LinksTest, ALostWorkersLinksAreForgotten) {
  Start();
  cluster->Tick(0.3, /*idle=*/true);
  Say(1, {{1, 4e9}});
  Say(2, {{2, 1e9}});
  cluster->Add(4);
  cluster->membership.Disconnected(2, cluster->now);
  cluster->Settle();
  ASSERT_TRUE(cluster->membership.ready(0));
  EXPECT_THAT(cluster->membership.Links(0), IsEmpty());
  cluster->Tick(0.3, /*idle=*/true);
  EXPECT_EQ(Asked(4), 1);
}

// With GOLD layers, compressed rows go from the stage of the boundary to all later stages.
TEST_F(LinksTest, TheBoundaryHasLinksToAllLaterStages) {
  MembershipOptions options = TestCluster::Options(3);
  options.partition.split = {0, 3, 5};
  options.partition.split_layers = 6;
  cluster.emplace(options);
  cluster->described.mutable_described()->set_gold_layers(4);
  for (uint64_t id = 1; id <= 3; ++id) cluster->Add(id);
  ASSERT_TRUE(cluster->membership.ready(0));
  cluster->Tick(0.3, /*idle=*/true);
  Say(1, {{1, 4e9}, {2, 3e9}});
  Say(2, {{2, 1e9}});
  const std::vector<Membership::LinkView> links = cluster->membership.Links(0);
  ASSERT_EQ(links.size(), 3U);
  EXPECT_EQ(links[1].to, 2);
  EXPECT_EQ(links[1].bytes_per_second, 3e9);
}

TEST_F(LinksTest, WhatNobodyAskedForEndsTheGeneration) {
  Start();
  Say(1, {{1, 1e9}});
  EXPECT_THAT(cluster->log, Contains(HasSubstr("worker w1 sent LinksMeasured without being asked")));
}

TEST_F(LinksTest, LinksThatCannotBeEndTheGeneration) {
  for (const uint32_t stage : {0U, 1U, 3U}) {
    Start();
    cluster->Tick(0.3, /*idle=*/true);
    Say(2, {{stage, 1e9}});
    EXPECT_THAT(cluster->log, Contains(HasSubstr("worker w2 sent LinksMeasured of a link to stage " +
                                                 std::to_string(stage) + ", it is stage 1 of 3")));
  }
}

TEST_F(LinksTest, AnAnswerFromAGenerationThatHasEndedIsIgnored) {
  Start();
  cluster->Tick(0.3, /*idle=*/true);
  cluster::v1::FromWorker late;
  late.mutable_links_measured()->set_generation(cluster->membership.generation(0));
  cluster->membership.EndGeneration(0, "for the test", cluster->now);
  cluster->Tick(0.1);
  ASSERT_TRUE(cluster->membership.ready(0));
  cluster->membership.Received(1, late, cluster->now);
  cluster->Settle();
  EXPECT_TRUE(cluster->membership.ready(0));
}

}  // namespace
}  // namespace goldfinch
