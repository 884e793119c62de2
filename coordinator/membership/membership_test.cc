#include "coordinator/membership/membership.h"

#include <string>
#include <vector>

#include "coordinator/membership/membership_test_util.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "protos/cluster.pb.h"
#include "protos/cluster_protocol.h"
#include "protos/generate.pb.h"

namespace goldfinch {
namespace {

using cluster::v1::FromWorker;
using cluster::v1::ToWorker;
using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using Event = MembershipEffects::Event;

using Cluster = TestCluster;

TEST(MembershipTest, AGroupFormsWhenAllStagesHaveWorkers) {
  Cluster cluster(Cluster::Options(3));
  cluster.Add(1);
  cluster.Add(2);
  EXPECT_FALSE(cluster.membership.ready(0));
  cluster.Add(3);
  ASSERT_TRUE(cluster.membership.ready(0));
  EXPECT_THAT(cluster.Stages(), ElementsAre(1, 2, 3));
  const ToWorker& form = cluster.sent[3][1];
  EXPECT_THAT(form.form().first_layers(), ElementsAre(0, 2, 4));
  EXPECT_EQ(form.form().stage(), 2U);
  EXPECT_EQ(form.form().sampleable(), "v");
  EXPECT_EQ(cluster.sent[1][1].form().sampleable(), "") << "only the last stage samples";
  EXPECT_THAT(cluster.sent[2].back().connect().addresses(), ElementsAre("from 0 to 1", "from 1 to 1", "from 2 to 1"));
  EXPECT_EQ(cluster.membership.Capacity(0).stages, 3);
}

TEST(MembershipTest, ReplicasFormOneAfterTheOther) {
  Cluster cluster(Cluster::Options(2, 2));
  for (uint64_t id = 1; id <= 3; ++id) cluster.Add(id);
  EXPECT_TRUE(cluster.membership.ready(0));
  EXPECT_FALSE(cluster.membership.ready(1));
  cluster.Add(4);
  EXPECT_THAT(cluster.Stages(1), ElementsAre(3, 4));
  EXPECT_NE(cluster.membership.generation(0), cluster.membership.generation(1));
}

TEST(MembershipTest, ASpareTakesTheLostWorkersStage) {
  Cluster cluster(Cluster::Options(3));
  for (uint64_t id = 1; id <= 4; ++id) cluster.Add(id);
  cluster.membership.Disconnected(2, cluster.now);
  cluster.Settle();
  EXPECT_EQ(cluster.Count(Event::kGenerationEnded), 1);
  ASSERT_TRUE(cluster.membership.ready(0));
  EXPECT_THAT(cluster.Stages(), ElementsAre(1, 4, 3)) << "the others keep their layers";
  EXPECT_EQ(cluster.membership.generation(0), 2U);
}

TEST(MembershipTest, WithoutASpareItWaitsAndThenGoesOnWithFewer) {
  Cluster cluster(Cluster::Options(3));
  for (uint64_t id = 1; id <= 3; ++id) cluster.Add(id);
  cluster.membership.Disconnected(1, cluster.now);
  cluster.Settle();
  EXPECT_FALSE(cluster.membership.ready(0));
  cluster.Tick(0.5);
  EXPECT_FALSE(cluster.membership.ready(0));
  cluster.Tick(0.6);
  ASSERT_TRUE(cluster.membership.ready(0));
  EXPECT_EQ(cluster.Stages().size(), 2U);
  EXPECT_THAT(cluster.sent[3].back().has_connect(), true);

  // A worker comes back: not at once while requests run.
  cluster.Add(5);
  cluster.Tick(0.1);
  EXPECT_EQ(cluster.Stages().size(), 2U);
  cluster.Tick(0.1, /*idle=*/true);
  EXPECT_EQ(cluster.Stages().size(), 3U);
}

TEST(MembershipTest, AFirstGroupWaitsForAllItsWorkers) {
  Cluster cluster(Cluster::Options(3));
  cluster.Add(1);
  cluster.Add(2);
  for (int i = 0; i < 100; ++i) cluster.Tick(1);
  EXPECT_FALSE(cluster.membership.ready(0));
  v1::GetClusterInfoResponse info;
  cluster.membership.FillClusterInfo(cluster.now, &info);
  EXPECT_EQ(info.groups(0).message(), "waiting for workers: 2 of 3");
  EXPECT_EQ(info.spare_workers_size(), 2);
}

TEST(MembershipTest, AWorkerThatFailsEndsTheGenerationAndStays) {
  Cluster cluster(Cluster::Options(2));
  cluster.Add(1);
  cluster.Add(2);
  FromWorker failed;
  failed.mutable_end_generation()->set_generation(1);
  failed.mutable_end_generation()->set_reason("the peer is lost");
  cluster.membership.Received(2, failed, cluster.now);
  cluster.Settle();
  EXPECT_EQ(cluster.Count(Event::kGenerationEnded), 1);
  EXPECT_THAT(cluster.events.back().reason, HasSubstr("w2: the peer is lost"));
  EXPECT_TRUE(cluster.sent[1].back().has_end_generation());
  cluster.Tick(0.06);
  EXPECT_TRUE(cluster.membership.ready(0));
  cluster.membership.Received(2, failed, cluster.now);
  cluster.Settle();
  EXPECT_TRUE(cluster.membership.ready(0)) << "that was of the old generation";
}

TEST(MembershipTest, ASilentWorkerIsLost) {
  Cluster cluster(Cluster::Options(1));
  cluster.Add(1);
  cluster.Add(2);
  cluster.silent = {1};
  for (int i = 0; i < 11; ++i) cluster.Tick(0.5);
  EXPECT_THAT(cluster.closed, ElementsAre(1));
  EXPECT_THAT(cluster.Stages(), ElementsAre(2));
}

TEST(MembershipTest, AStageGetsOnWhileItsProgressChanges) {
  Cluster cluster(Cluster::Options(1));
  cluster.Add(1);
  cluster.Tick(1);
  EXPECT_EQ(cluster.membership.LastProgress(0), 0) << "the first Pong says nothing";
  cluster.progress = 7;
  cluster.Tick(1);
  const double got_on = cluster.now;
  EXPECT_EQ(cluster.membership.LastProgress(0), got_on);
  for (int i = 0; i < 3; ++i) cluster.Tick(1);
  EXPECT_EQ(cluster.membership.LastProgress(0), got_on) << "it answers, but does not get on";
  cluster.progress = 3;  // wraps, as far as anybody knows
  cluster.Tick(1);
  EXPECT_EQ(cluster.membership.LastProgress(0), cluster.now);
}

TEST(MembershipTest, AfterAPauseOfTheCoordinatorNobodyIsLost) {
  Cluster cluster(Cluster::Options(1));
  cluster.Add(1);
  cluster.Tick(0.5);
  cluster.Tick(60);
  EXPECT_TRUE(cluster.membership.ready(0));
  EXPECT_TRUE(cluster.closed.empty());
}

TEST(MembershipTest, AWorkerThatHangsWhileFormingIsLost) {
  MembershipOptions options = Cluster::Options(1);
  options.form_timeout_seconds = 10;
  Cluster cluster(options);
  cluster.membership.Connected(1, "a", 0);
  cluster.membership.Received(1, Cluster::Register("w1"), 0);
  cluster.silent = {1};
  cluster.Settle();
  cluster.membership.Received(1, Cluster::Described(), 0);
  cluster.Settle();
  for (int i = 0; i < 12; ++i) {
    FromWorker pong;
    pong.mutable_pong();
    cluster.membership.Received(1, pong, cluster.now);
    cluster.Tick(1);
  }
  EXPECT_THAT(cluster.closed, ElementsAre(1));
}

TEST(MembershipTest, AWorkerThatCannotBeAStageGivesWayToASpare) {
  Cluster cluster(Cluster::Options(1));
  cluster.silent = {1};
  cluster.membership.Connected(1, "a", 0);
  cluster.membership.Received(1, Cluster::Register("w1"), 0);
  cluster.Settle();
  cluster.membership.Received(1, Cluster::Described(), 0);
  cluster.Settle();
  cluster.Add(2);
  FromWorker failed;
  failed.mutable_end_generation()->set_generation(1);
  failed.mutable_end_generation()->set_reason("its file is damaged");
  cluster.membership.Received(1, failed, cluster.now);
  cluster.Tick(1);
  ASSERT_TRUE(cluster.membership.ready(0));
  EXPECT_THAT(cluster.Stages(), ElementsAre(2));
}

TEST(MembershipTest, ASpareThatIsTooSmallKeepsNoGroupFromFormingOrServing) {
  Cluster cluster(Cluster::Options(3));
  for (uint64_t id = 1; id <= 3; ++id) cluster.Add(id);
  cluster.Add(4, /*memory_bytes=*/1);
  cluster.membership.Disconnected(2, cluster.now);
  cluster.Settle();
  EXPECT_FALSE(cluster.membership.ready(0));
  cluster.Tick(1.5);
  ASSERT_TRUE(cluster.membership.ready(0));
  EXPECT_EQ(cluster.Stages().size(), 2U);
  const uint64_t generation = cluster.membership.generation(0);
  cluster.Tick(0.1, /*idle=*/true);
  EXPECT_TRUE(cluster.membership.ready(0));
  EXPECT_EQ(cluster.membership.generation(0), generation) << "growing would only have ended it";
}

TEST(MembershipTest, AModelThatWasNeverServedMayHaveBeenAMistake) {
  Cluster cluster(Cluster::Options(2));
  cluster.Add(1);
  cluster.membership.Disconnected(1, cluster.now);
  cluster.Settle();
  cluster.membership.Connected(2, "a", 0);
  cluster.membership.Received(2, Cluster::Register("w2"), 0);
  cluster.membership.Received(2, Cluster::Described("right"), 0);
  cluster.silent = {2};
  cluster.Settle();
  EXPECT_EQ(cluster.RefusalOf(2), "");
  EXPECT_EQ(cluster.membership.model().fingerprint(), "right");
}

TEST(MembershipTest, RefusesWhatDoesNotBelong) {
  Cluster cluster(Cluster::Options(2));
  cluster.Add(1);
  const auto refused = [&](uint64_t id, const std::vector<FromWorker>& messages) {
    cluster.membership.Connected(id, "a", 0);
    for (const FromWorker& message : messages) cluster.membership.Received(id, message, 0);
    cluster.silent.insert(id);
    cluster.Settle();
    return cluster.RefusalOf(id);
  };
  EXPECT_THAT(refused(2, {Cluster::Described()}), HasSubstr("first message must be Register"));
  FromWorker old = Cluster::Register("x");
  old.mutable_register_()->set_protocol(0);
  EXPECT_THAT(refused(3, {old}), HasSubstr("speaks version 0 of the protocol"));
  EXPECT_THAT(refused(4, {Cluster::Register("x"), Cluster::Described("other")}),
              HasSubstr("fingerprint is \"other\", the cluster's model has \"f\""));
  FromWorker huge = Cluster::Described();
  huge.mutable_described()->set_vocab_size(1U << 31);
  EXPECT_THAT(refused(8, {Cluster::Register("x"), huge}), HasSubstr("vocab_size is 2147483648, expected 1 to"));
  huge = Cluster::Described();
  huge.mutable_described()->mutable_layers(1)->set_weight_bytes(uint64_t{1} << 63);
  EXPECT_THAT(refused(9, {Cluster::Register("x"), huge}), HasSubstr("layers[1].weight_bytes is 9223372036854775808"));
  huge = Cluster::Described();
  huge.mutable_described()->mutable_memory()->mutable_layers(1)->set_wkv_bytes(uint64_t{1} << 63);
  EXPECT_THAT(refused(10, {Cluster::Register("x"), huge}),
              HasSubstr("memory.layers[1].wkv_bytes is 9223372036854775808"));
  FromWorker no_memory = Cluster::Described();
  no_memory.mutable_described()->clear_memory();
  EXPECT_THAT(refused(11, {Cluster::Register("x"), no_memory}),
              HasSubstr("the number of memory.layers is 0, expected 6"));
  FromWorker cannot;
  cannot.mutable_described()->set_error("m.pth: no such file");
  EXPECT_EQ(refused(5, {Cluster::Register("x"), cannot}), "m.pth: no such file");
  EXPECT_THAT(refused(6, {Cluster::Register("x"), FromWorker()}), HasSubstr("empty or unknown"));
  EXPECT_THAT(refused(7, {Cluster::Register(std::string(300, 'x'))}), HasSubstr("300 bytes, the limit is 256"));
  EXPECT_EQ(cluster.membership.workers(), 1);
}

TEST(MembershipTest, SaysWhoseAStepDoneIsAndCountsIt) {
  Cluster cluster(Cluster::Options(2));
  cluster.Add(1);
  cluster.Add(2);
  cluster::v1::StepDone done;
  done.set_generation(1);
  done.set_id(1);
  done.set_busy_seconds(0.5);
  cluster.now += 2;
  done.set_compressed_bytes(128);
  done.set_cache_bytes(77);
  done.set_gold_kept_bytes(88);
  done.set_gold_tier_drops(9);
  done.set_cache_tokens(64);
  const auto from = cluster.membership.ReceivedStepDone(2, &done, cluster.now);
  ASSERT_TRUE(from.has_value());
  EXPECT_EQ(from->replica, 0);
  EXPECT_EQ(from->stage, 1);
  v1::GetClusterInfoResponse info;
  cluster.membership.FillClusterInfo(cluster.now, &info);
  EXPECT_EQ(info.groups(0).stages(1).received().compressed(), 128U);
  EXPECT_EQ(info.groups(0).stages(1).busy_seconds(), 0.5);
  EXPECT_EQ(info.groups(0).steps(), 1U);
  EXPECT_EQ(cluster.membership.CacheBytes(0), 77);
  EXPECT_EQ(cluster.membership.GoldKeptBytes(0), 88);
  EXPECT_EQ(info.groups(0).stages(1).gold_kept_bytes(), 88U);
  EXPECT_EQ(info.groups(0).stages(1).gold_tier_drops(), 9U);
  EXPECT_EQ(cluster.membership.TransformerCacheBytes(0), 64'000);
  done.set_busy_seconds(1);
  done.set_bubble_seconds(1e9);
  done.set_idle_seconds(3);
  EXPECT_TRUE(cluster.membership.ReceivedStepDone(2, &done, cluster.now).has_value());
  EXPECT_EQ(done.busy_seconds(), 1);
  EXPECT_DOUBLE_EQ(done.bubble_seconds(), 0.5) << "no more than 2 s have passed";
  EXPECT_EQ(done.idle_seconds(), 0);
  done.set_generation(9);
  EXPECT_FALSE(cluster.membership.ReceivedStepDone(2, &done, cluster.now).has_value()) << "of another generation";
  EXPECT_FALSE(cluster.membership.ReceivedStepDone(99, &done, cluster.now).has_value()) << "of no worker";
  info.Clear();
  cluster.membership.FillClusterInfo(cluster.now, &info);
  EXPECT_EQ(info.groups(0).steps(), 2U);
  cluster.membership.Connected(3, "a", cluster.now);
  EXPECT_FALSE(cluster.membership.ReceivedStepDone(3, &done, cluster.now).has_value());
  cluster.Settle();
  EXPECT_THAT(cluster.RefusalOf(3), HasSubstr("first message must be Register"));
}

TEST(MembershipTest, ASplitByHandHoldsUntilWorkersAreLost) {
  MembershipOptions options = Cluster::Options(3);
  options.partition.split = {0, 1, 2};
  options.partition.split_layers = 6;
  Cluster cluster(options);
  for (uint64_t id = 1; id <= 3; ++id) cluster.Add(id);
  EXPECT_THAT(cluster.sent[1][1].form().first_layers(), ElementsAre(0, 1, 2));
  cluster.membership.Disconnected(3, cluster.now);
  cluster.Tick(1.1);
  ASSERT_TRUE(cluster.membership.ready(0));
  v1::GetClusterInfoResponse info;
  cluster.membership.FillClusterInfo(cluster.now, &info);
  ASSERT_EQ(info.groups(0).stages_size(), 2);
  EXPECT_EQ(info.groups(0).stages(1).first_layer(), 3U) << "balanced";
}

TEST(MembershipTest, TheLogAndTheStatusSayWhyTheLayersAreSplitSo) {
  MembershipOptions options = Cluster::Options(2);
  options.partition.aim = SplitAim::kBorder;
  Cluster cluster(options);
  cluster.described.mutable_described()->set_gold_layers(2);
  cluster.Add(1);
  cluster.Add(2);
  EXPECT_THAT(cluster.LastForm(1).first_layers(), ElementsAre(0, 4));
  EXPECT_THAT(cluster.log, Contains(HasSubstr("2 stages, which begin at layers 0, 4: a stage begins at the border, "
                                              "layer 4")));
  v1::GetClusterInfoResponse info;
  cluster.membership.FillClusterInfo(cluster.now, &info);
  EXPECT_THAT(info.groups(0).plan(), HasSubstr("a stage begins at the border, layer 4"));
}

}  // namespace
}  // namespace goldfinch
