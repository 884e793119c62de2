// Groups whose split is changed when another has been better for long enough, and how seldom that happens.
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "coordinator/membership/membership.h"
#include "coordinator/membership/membership_test_util.h"
#include "coordinator/planner/split_advice.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "protos/cluster.pb.h"
#include "protos/generate.pb.h"

namespace goldfinch {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using Event = MembershipEffects::Event;

// Two kinds of traffic, for which the best splits of six layers differ: the last two take no time for prompts, and as
// long as the others together for answers.
constexpr ExpectedTraffic kReading{.prompt_tokens = 90, .output_tokens = 1, .context_tokens = 91, .sequences = 4};
constexpr ExpectedTraffic kWriting{.prompt_tokens = 1, .output_tokens = 90, .context_tokens = 91, .sequences = 4};

cluster::v1::FromWorker Model() {
  cluster::v1::FromWorker message = TestCluster::Described();
  cluster::v1::Described& model = *message.mutable_described();
  for (int i = 0; i < 6; ++i) {
    cluster::v1::LayerDescription& layer = *model.mutable_layers(i);
    layer.set_prefill_flops(i < 4 ? 1e6 : 1);
    layer.set_decode_bytes(i < 4 ? 1e4 : 4e6);
    layer.set_weight_bytes(i < 4 ? 10'000 : 4'000'000);
  }
  return message;
}

class ReplanTest : public testing::Test {
 protected:
  static MembershipOptions Options() {
    MembershipOptions options = TestCluster::Options(2);
    options.partition.max_step_tokens = 64;
    options.partition.traffic = kReading;
    options.replan = true;
    options.replan_gain = 0.1;
    options.replan_after_seconds = 10;
    return options;
  }
  void Start(MembershipOptions options = Options()) {
    cluster.emplace(std::move(options));
    cluster->described = Model();
    cluster->Add(1);
    cluster->Add(2);
    ASSERT_TRUE(cluster->membership.ready(0));
  }

  // As the coordinator does it, for the traffic that there is.
  void Advise() {
    Membership& membership = cluster->membership;
    if (!membership.ready(0)) return;
    membership.Advised(0, membership.generation(0), AdviseOnSplit(membership.QuestionOfSplit(0, traffic)),
                       cluster->now);
  }
  // Passes time while requests run; true if the group drains in the end.
  bool Pass(double seconds) {
    for (double passed = 0; passed < seconds && !cluster->membership.draining(0); ++passed) {
      Advise();
      cluster->Tick(1);
    }
    return cluster->membership.draining(0);
  }
  // The last Steps of a group that drains are done.
  void Drained() {
    cluster->membership.Drained(0, cluster->now);
    cluster->Settle();
    cluster->Tick(0.05);
    ASSERT_TRUE(cluster->membership.ready(0));
  }
  std::vector<uint32_t> Split() {
    const cluster::v1::Form& form = cluster->LastForm(1);
    return {form.first_layers().begin(), form.first_layers().end()};
  }

  ExpectedTraffic traffic = kReading;
  std::optional<TestCluster> cluster;
};

TEST_F(ReplanTest, TheSplitFollowsTheTraffic) {
  Start();
  const std::vector<uint32_t> for_reading = Split();
  EXPECT_FALSE(Pass(100)) << "it is the best for what was expected";
  traffic = kWriting;
  EXPECT_FALSE(Pass(9)) << "not yet";
  const uint64_t generation = cluster->membership.generation(0);
  ASSERT_TRUE(Pass(3));
  EXPECT_TRUE(cluster->membership.ready(0)) << "its last Steps are still answered";
  EXPECT_EQ(cluster->membership.generation(0), generation);
  EXPECT_THAT(cluster->log, Contains(HasSubstr("replica 0 takes no more steps, to be split as ")));
  Drained();
  EXPECT_EQ(cluster->membership.generation(0), generation + 1);
  EXPECT_NE(Split(), for_reading);
  EXPECT_THAT(cluster->Stages(), ElementsAre(1, 2)) << "each worker keeps its stage";
  EXPECT_FALSE(Pass(100)) << "it is the best for what there is";
}

TEST_F(ReplanTest, NothingHappensUnlessItIsAskedFor) {
  MembershipOptions options = Options();
  options.replan = false;
  Start(options);
  traffic = kWriting;
  EXPECT_FALSE(Pass(200));
  v1::GetClusterInfoResponse info;
  cluster->membership.FillClusterInfo(cluster->now, &info);
  EXPECT_GT(info.groups(0).split_gain(), 0.1) << "but it is said";
  EXPECT_NE(info.groups(0).best_split(), "");
  EXPECT_EQ(info.groups(0).expected_traffic().prompt_tokens(), 90U);
}

TEST_F(ReplanTest, ASplitThatWasGivenStays) {
  MembershipOptions options = Options();
  options.partition.split = {0, 5};
  options.partition.split_layers = 6;
  Start(options);
  EXPECT_FALSE(Pass(200));
}

TEST_F(ReplanTest, AGainThatIsTooSmallDoesNotCount) {
  MembershipOptions options = Options();
  options.replan_gain = 1;
  Start(options);
  traffic = kWriting;
  EXPECT_FALSE(Pass(200));
}

TEST_F(ReplanTest, ABreakBeginsTheWaitAnew) {
  Start();
  for (int i = 0; i < 20; ++i) {
    traffic = kWriting;
    EXPECT_FALSE(Pass(8));
    traffic = kReading;
    EXPECT_FALSE(Pass(1));
  }
}

// Traffic that turns around whenever the split has followed it.
TEST_F(ReplanTest, DoesNotFlap) {
  Start();
  double waited = 0;
  for (int turn = 0; turn < 8; ++turn) {
    traffic = turn % 2 == 0 ? kWriting : kReading;
    const double start = cluster->now;
    ASSERT_TRUE(Pass(2000)) << turn;
    waited = cluster->now - start;
    if (turn == 0) {
      EXPECT_LT(waited, 12);
    }
    Drained();
  }
  EXPECT_GT(waited, 600) << "64 times as long as at first";
  traffic = kWriting;
  EXPECT_FALSE(Pass(100));
  traffic = kReading;
  EXPECT_FALSE(Pass(250)) << "now it has had one split for long";
  traffic = kWriting;
  EXPECT_TRUE(Pass(12));
}

TEST_F(ReplanTest, AfterALossTheSplitIsStillThatOfTheTraffic) {
  Start();
  traffic = kWriting;
  ASSERT_TRUE(Pass(12));
  Drained();
  const std::vector<uint32_t> for_writing = Split();
  cluster->Add(3);
  cluster->membership.Disconnected(2, cluster->now);
  cluster->Settle();
  ASSERT_TRUE(cluster->membership.ready(0));
  EXPECT_EQ(Split(), for_writing);
}

TEST_F(ReplanTest, ALossWhileDrainingIsALoss) {
  Start();
  traffic = kWriting;
  ASSERT_TRUE(Pass(12));
  cluster->Add(3);
  cluster->membership.Disconnected(2, cluster->now);
  cluster->Settle();
  EXPECT_TRUE(cluster->membership.ready(0));
  EXPECT_FALSE(cluster->membership.draining(0));
  EXPECT_THAT(cluster->Stages(), ElementsAre(1, 3));
}

TEST_F(ReplanTest, ASplitThatDoesNotBecomeReadyIsGivenUp) {
  Start();
  const std::vector<uint32_t> for_reading = Split();
  traffic = kWriting;
  ASSERT_TRUE(Pass(12));
  cluster->failing = {2};
  cluster->membership.Drained(0, cluster->now);
  cluster->Settle();
  cluster->Tick(0.05);
  EXPECT_FALSE(cluster->membership.ready(0));
  EXPECT_NE(Split(), for_reading);
  cluster->failing.clear();
  // The worker that could not be a stage stands back for a while.
  for (int i = 0; i < 300 && cluster->Stages().size() < 2; ++i) cluster->Tick(1, /*idle=*/true);
  ASSERT_TRUE(cluster->membership.ready(0));
  EXPECT_EQ(Split(), for_reading) << "the streams go on as before";
  EXPECT_FALSE(Pass(15)) << "and it is tried again later";
  EXPECT_TRUE(Pass(10));
}

TEST_F(ReplanTest, AdviceAboutAGenerationThatHasEndedIsIgnored) {
  Start();
  traffic = kWriting;
  Membership& membership = cluster->membership;
  const uint64_t generation = membership.generation(0);
  const SplitAdvice advice = AdviseOnSplit(membership.QuestionOfSplit(0, traffic));
  membership.EndGeneration(0, "for the test", cluster->now);
  cluster->Tick(0.1);
  for (int i = 0; i < 100; ++i) {
    membership.Advised(0, generation, advice, cluster->now);
    cluster->Tick(1);
  }
  EXPECT_FALSE(membership.draining(0));
}

// A group that forms again keeps its layers loaded, as long as no other split is much better.
TEST_F(ReplanTest, LinksThatAreAssumedAndMeasuredMakeNoRecoverySlow) {
  MembershipOptions options = Options();
  options.replan = false;
  Start(options);
  const std::vector<uint32_t> before = Split();
  cluster->Tick(0.3, /*idle=*/true);
  cluster::v1::FromWorker message;
  message.mutable_links_measured()->set_generation(cluster->membership.generation(0));
  message.mutable_links_measured()->add_links()->set_stage(1);
  message.mutable_links_measured()->mutable_links(0)->set_bytes_per_second(2e9);
  cluster->membership.Received(1, message, cluster->now);
  cluster->Settle();
  cluster->membership.EndGeneration(0, "for the test", cluster->now);
  cluster->Tick(0.1);
  ASSERT_TRUE(cluster->membership.ready(0));
  EXPECT_EQ(Split(), before);
}

}  // namespace
}  // namespace goldfinch
