// Groups that lose workers shrink before service stops, and grow back while requests run.
#include <cstdint>
#include <string>

#include "coordinator/membership/membership.h"
#include "coordinator/membership/membership_test_util.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "protos/cluster.pb.h"

namespace goldfinch {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using Event = MembershipEffects::Event;

class RegrowTest : public testing::Test {
 protected:
  static MembershipOptions Options() {
    MembershipOptions options = TestCluster::Options(3);
    options.regrow_after_seconds = 10;
    return options;
  }
  // A group that has lost one of its three workers.
  void LoseOne() {
    for (uint64_t id = 1; id <= 3; ++id) cluster.Add(id);
    Lose(3);
  }
  void Lose(uint64_t id) {
    cluster.membership.Disconnected(id, cluster.now);
    cluster.Settle();
    cluster.Tick(1.1);
    ASSERT_TRUE(cluster.membership.ready(0));
    ASSERT_EQ(cluster.Stages().size(), 2U);
  }
  // Passes time while requests run; true if the group drains in the end.
  bool Pass(double seconds) {
    for (double passed = 0; passed < seconds && !cluster.membership.draining(0); passed += 0.5) cluster.Tick(0.5);
    return cluster.membership.draining(0);
  }

  TestCluster cluster{Options()};
};

TEST_F(RegrowTest, ABusyGroupDrainsAndGrows) {
  LoseOne();
  cluster.Add(4);
  EXPECT_FALSE(Pass(9));
  EXPECT_EQ(cluster.Stages().size(), 2U);
  ASSERT_TRUE(Pass(2));
  EXPECT_TRUE(cluster.membership.ready(0)) << "its last Steps are still answered";
  const int ended = cluster.Count(Event::kGenerationEnded);
  cluster.membership.Drained(0, cluster.now);
  cluster.Settle();
  cluster.Tick(0.05);
  EXPECT_EQ(cluster.Count(Event::kGenerationEnded), ended + 1);
  EXPECT_FALSE(cluster.membership.draining(0));
  ASSERT_TRUE(cluster.membership.ready(0));
  EXPECT_EQ(cluster.Stages().size(), 3U);
}

TEST_F(RegrowTest, ADrainThatDoesNotEndIsEnded) {
  LoseOne();
  cluster.Add(4);
  ASSERT_TRUE(Pass(11));
  for (int i = 0; i < 12; ++i) cluster.Tick(0.5);
  ASSERT_TRUE(cluster.membership.ready(0));
  EXPECT_EQ(cluster.Stages().size(), 3U);
}

TEST_F(RegrowTest, AWorkerThatGoesAgainBeforehandChangesNothing) {
  LoseOne();
  const uint64_t generation = cluster.membership.last_generation();
  for (uint64_t id = 4; id < 8; ++id) {
    cluster.Add(id);
    EXPECT_FALSE(Pass(8));
    cluster.membership.Disconnected(id, cluster.now);
    cluster.Tick(0.5);
  }
  EXPECT_EQ(cluster.membership.last_generation(), generation);
}

TEST_F(RegrowTest, AWorkerThatKeepsDyingIsWaitedForLongerEachTime) {
  LoseOne();
  cluster.Add(4);
  ASSERT_TRUE(Pass(11));
  for (int i = 0; i < 12; ++i) cluster.Tick(0.5);
  ASSERT_EQ(cluster.Stages().size(), 3U);
  Lose(4);
  cluster.Add(5);
  EXPECT_FALSE(Pass(19));
  ASSERT_TRUE(Pass(2));
  for (int i = 0; i < 12; ++i) cluster.Tick(0.5);
  ASSERT_EQ(cluster.Stages().size(), 3U);
  for (int i = 0; i < 300; ++i) cluster.Tick(1);  // whole for long
  Lose(5);
  cluster.Add(6);
  EXPECT_TRUE(Pass(11));
}

TEST_F(RegrowTest, ALossWhileDrainingIsALoss) {
  LoseOne();
  cluster.Add(4);
  ASSERT_TRUE(Pass(11));
  Lose(1);
  EXPECT_FALSE(cluster.membership.draining(0));
}

TEST_F(RegrowTest, AWorkerThatCannotBeAStageDoesNotEndServiceForLong) {
  LoseOne();
  cluster.failing = {4};
  cluster.Add(4);
  ASSERT_TRUE(Pass(11));
  cluster.membership.Drained(0, cluster.now);
  cluster.Settle();
  for (int i = 0; i < 4; ++i) cluster.Tick(0.5);
  ASSERT_TRUE(cluster.membership.ready(0));
  EXPECT_EQ(cluster.Stages().size(), 2U);
  EXPECT_FALSE(Pass(30)) << "it is tried again later";
  EXPECT_TRUE(cluster.membership.ready(0));
  EXPECT_TRUE(Pass(11));
}

TEST_F(RegrowTest, GrowsInPartToo) {
  for (uint64_t id = 1; id <= 3; ++id) cluster.Add(id);
  cluster.membership.Disconnected(2, cluster.now);
  cluster.membership.Disconnected(3, cluster.now);
  cluster.Settle();
  cluster.Tick(1.1);
  ASSERT_EQ(cluster.Stages().size(), 1U);
  cluster.Add(4);
  cluster.Tick(0.1, /*idle=*/true);
  EXPECT_EQ(cluster.Stages().size(), 1U) << "the third may come soon";
  for (int i = 0; i < 30; ++i) cluster.Tick(0.5, /*idle=*/true);
  EXPECT_EQ(cluster.Stages().size(), 2U);
}

TEST_F(RegrowTest, GrowingWhileIdleCountsToo) {
  LoseOne();
  double waited = 0;
  for (uint64_t id = 4; id < 16; ++id) {
    cluster.Add(id);
    const double start = cluster.now;
    while (cluster.Stages().size() < 3 && cluster.now < start + 100) cluster.Tick(0.1, /*idle=*/true);
    ASSERT_EQ(cluster.Stages().size(), 3U);
    waited = cluster.now - start;
    if (id == 4) {
      EXPECT_LT(waited, 1) << "the first time at once";
    }
    Lose(id);
  }
  EXPECT_GT(waited, 10) << "but not again and again for workers that go at once";
  EXPECT_LT(waited, 20);
}

TEST_F(RegrowTest, AWorkerThatIsTooSmallHidesNoOther) {
  LoseOne();
  cluster.Add(4, /*memory_bytes=*/1);
  cluster.Tick(0.1, /*idle=*/true);
  EXPECT_EQ(cluster.Stages().size(), 2U);
  cluster.Add(5);
  for (int i = 0; i < 2; ++i) cluster.Tick(1, /*idle=*/true);
  ASSERT_TRUE(cluster.membership.ready(0));
  EXPECT_THAT(cluster.Stages(), ElementsAre(1, 2, 5));
}

TEST_F(RegrowTest, AWorkerWithAnotherTransportHidesNoOther) {
  LoseOne();
  cluster.Add(4, [](cluster::v1::Register& message) { message.set_transport("tcp"); });
  cluster.Add(5);
  for (int i = 0; i < 2; ++i) cluster.Tick(1, /*idle=*/true);
  ASSERT_TRUE(cluster.membership.ready(0));
  EXPECT_THAT(cluster.Stages(), ElementsAre(1, 2, 5));
}

TEST_F(RegrowTest, AWorkerThatNobodyReachesIsRefused) {
  const auto at = [](const std::string& address) {
    return [=](cluster::v1::Register& message) {
      message.set_transport("tcp");
      message.set_address(address);
      message.set_network("network of " + address);
    };
  };
  for (uint64_t id = 1; id <= 3; ++id) cluster.Add(id, at("10.0.0." + std::to_string(id)));
  Lose(3);
  cluster.Add(4, at("127.0.0.1"), "127.0.0.1:1004");
  cluster.Add(5, at("10.0.0.5"));
  for (int i = 0; i < 2; ++i) cluster.Tick(1, /*idle=*/true);
  EXPECT_THAT(cluster.RefusalOf(4), HasSubstr("it reaches the coordinator by 127.0.0.1"));
  ASSERT_TRUE(cluster.membership.ready(0));
  EXPECT_THAT(cluster.Stages(), ElementsAre(1, 2, 5));
}

// ---- Less than planned ----

constexpr uint64_t kWorkerBytes = 1 << 20;

class ShrinkTest : public testing::Test {
 protected:
  // A worker that has a third of the layers can hold all 64 slots, and one that has half of them cannot.
  ShrinkTest() {
    auto& described = *cluster.described.mutable_described();
    for (int i = 0; i < 6; ++i) {
      auto& layer = *described.mutable_memory()->mutable_layers(i);
      layer.set_weight_bytes(1000);
      layer.set_wkv_bytes(kWorkerBytes / 64 / 2 - 1000);
    }
  }
  static MembershipOptions Options() {
    MembershipOptions options = TestCluster::Options(3);
    options.partition.max_sequences = 64;
    options.partition.max_logit_rows = 128;
    return options;
  }
  TestCluster cluster{Options()};
};

TEST_F(ShrinkTest, FewerWorkersServeFewerSequences) {
  for (uint64_t id = 1; id <= 3; ++id) cluster.Add(id, kWorkerBytes);
  ASSERT_TRUE(cluster.membership.ready(0)) << cluster.log.back();
  EXPECT_EQ(cluster.membership.Capacity(0).max_sequences, 64);
  cluster.membership.Disconnected(3, cluster.now);
  cluster.Settle();
  cluster.Tick(1.1);
  ASSERT_TRUE(cluster.membership.ready(0)) << cluster.log.back();
  const GroupCapacity capacity = cluster.membership.Capacity(0);
  EXPECT_EQ(capacity.stages, 2);
  EXPECT_GT(capacity.max_sequences, 32);
  EXPECT_LT(capacity.max_sequences, 64);
  EXPECT_EQ(capacity.max_logit_rows, 64 + capacity.max_sequences);
  EXPECT_GE(capacity.cache_tokens, capacity.max_sequence_tokens);
  EXPECT_EQ(cluster.LastForm(1).max_sequences(), static_cast<uint32_t>(capacity.max_sequences));
  EXPECT_THAT(cluster.log, Contains(HasSubstr("sequences run at once, not the 64 of max_sequences")));
  EXPECT_THAT(cluster.log, Contains(HasSubstr("are needed")));
  // When the third is back, so are the slots.
  cluster.Add(4, kWorkerBytes);
  cluster.Tick(0.1, /*idle=*/true);
  EXPECT_EQ(cluster.membership.Capacity(0).max_sequences, 64);
}

TEST_F(ShrinkTest, DownToOneSlotAndNoFurther) {
  for (uint64_t id = 1; id <= 3; ++id) cluster.Add(id, kWorkerBytes);
  cluster.membership.Disconnected(3, cluster.now);
  cluster.membership.Disconnected(2, cluster.now);
  cluster.Settle();
  cluster.Tick(1.1);
  ASSERT_TRUE(cluster.membership.ready(0));
  EXPECT_GT(cluster.membership.Capacity(0).max_sequences, 10);
  cluster.membership.Disconnected(1, cluster.now);
  cluster.Add(4, /*memory_bytes=*/130'000);
  cluster.Tick(2);
  ASSERT_TRUE(cluster.membership.ready(0)) << cluster.log.back();
  EXPECT_LT(cluster.membership.Capacity(0).max_sequences, 4);
  cluster.membership.Disconnected(4, cluster.now);
  cluster.Add(5, /*memory_bytes=*/1000);
  cluster.Tick(2);
  EXPECT_FALSE(cluster.membership.ready(0));
  EXPECT_THAT(cluster.log, Contains(HasSubstr("cannot form a group")));
}

TEST_F(ShrinkTest, ALargerWorkerTakesTheSmallestOnesPlace) {
  for (uint64_t id = 1; id <= 3; ++id) cluster.Add(id, kWorkerBytes);
  cluster.membership.Disconnected(2, cluster.now);
  cluster.Add(4, kWorkerBytes * 9 / 10);
  cluster.Tick(1.1);
  ASSERT_TRUE(cluster.membership.ready(0)) << cluster.log.back();
  ASSERT_EQ(cluster.Stages().size(), 3U);
  EXPECT_LT(cluster.membership.Capacity(0).max_sequences, 64);
  cluster.Add(5, kWorkerBytes);
  cluster.Tick(0.1, /*idle=*/true);
  ASSERT_TRUE(cluster.membership.ready(0)) << cluster.log.back();
  EXPECT_EQ(cluster.membership.Capacity(0).max_sequences, 64);
  EXPECT_THAT(cluster.Stages(), ElementsAre(1, 5, 3));
  const uint64_t generation = cluster.membership.last_generation();
  for (int i = 0; i < 40; ++i) cluster.Tick(1, /*idle=*/true);
  EXPECT_EQ(cluster.membership.last_generation(), generation) << "it is whole";
}

TEST(ShrinkSmallCacheTest, CachesForLessThanOneSequenceStayThatSmall) {
  MembershipOptions options = TestCluster::Options(3);
  options.partition.max_sequences = 64;
  options.partition.max_logit_rows = 128;
  options.partition.cache_tokens = 1 << 12;
  options.partition.max_sequence_tokens = 1 << 17;
  TestCluster cluster(options);
  auto& described = *cluster.described.mutable_described();
  for (int i = 0; i < 6; ++i) {
    described.mutable_layers(i)->set_cache_bytes_per_token(10);
    described.mutable_memory()->mutable_layers(i)->set_cache_bytes_per_token(10);
    described.mutable_memory()->mutable_layers(i)->set_wkv_bytes(kWorkerBytes / 64 / 2);
  }
  for (uint64_t id = 1; id <= 3; ++id) cluster.Add(id, kWorkerBytes * 5 / 4);
  ASSERT_TRUE(cluster.membership.ready(0)) << cluster.log.back();
  cluster.membership.Disconnected(3, cluster.now);
  cluster.Settle();
  cluster.Tick(1.1);
  ASSERT_TRUE(cluster.membership.ready(0)) << cluster.log.back();
  const GroupCapacity capacity = cluster.membership.Capacity(0);
  EXPECT_EQ(capacity.cache_tokens, 1 << 12);
  EXPECT_GT(capacity.max_sequences, 32);
  EXPECT_LT(capacity.max_sequences, 64);
}

TEST_F(ShrinkTest, AFirstGroupIsAsItWasAskedFor) {
  for (uint64_t id = 1; id <= 3; ++id) cluster.Add(id, kWorkerBytes / 2);
  cluster.Tick(5);
  EXPECT_FALSE(cluster.membership.ready(0));
}

TEST(ShrinkCacheTest, CachesThatWereAskedForShrinkToo) {
  MembershipOptions options = TestCluster::Options(2);
  options.partition.cache_tokens = 1 << 16;
  options.partition.max_sequence_tokens = 1 << 15;
  TestCluster cluster(options);
  auto& described = *cluster.described.mutable_described();
  for (int i = 0; i < 6; ++i) {
    described.mutable_layers(i)->set_cache_bytes_per_token(100);
    described.mutable_memory()->mutable_layers(i)->set_cache_bytes_per_token(100);
  }
  const uint64_t bytes = 4 * 100 * ((1 << 16) + 4 * 64);
  cluster.Add(1, bytes);
  cluster.Add(2, bytes);
  ASSERT_TRUE(cluster.membership.ready(0)) << cluster.log.back();
  cluster.membership.Disconnected(2, cluster.now);
  cluster.Settle();
  cluster.Tick(1.1);
  ASSERT_TRUE(cluster.membership.ready(0)) << cluster.log.back();
  EXPECT_EQ(cluster.membership.Capacity(0).max_sequences, 4);
  EXPECT_LT(cluster.membership.Capacity(0).cache_tokens, 1 << 16);
  EXPECT_GE(cluster.membership.Capacity(0).cache_tokens, 1 << 15);
}

}  // namespace
}  // namespace goldfinch
