// Workers of one host share its memory and threads, workers of one kind count as equally fast, and peers on other hosts
// are given addresses that they can reach.
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "coordinator/membership/membership.h"
#include "coordinator/membership/membership_test_util.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "protos/cluster.pb.h"
#include "protos/generate.pb.h"

namespace goldfinch {
namespace {

using cluster::v1::Register;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr uint64_t kHostBytes = uint64_t{24} << 30;
constexpr uint32_t kHostThreads = 16;

// A worker that nothing was said to, on a host.
std::function<void(Register&)> On(const std::string& host) {
  return [host](Register& message) {
    message.set_memory_bytes(kHostBytes);
    message.set_memory_pool(host);
    message.set_cpu_pool(host);
    message.set_threads(kHostThreads);
  };
}

std::function<void(Register&)> WithMemory(uint64_t bytes, uint32_t threads) {
  return [=](Register& message) {
    On("host")(message);
    message.set_memory_given(true);
    message.set_memory_bytes(bytes);
    message.set_threads_given(true);
    message.set_threads(threads);
  };
}

TEST(HostSharesTest, WorkersOfOneHostDivideItAmongThem) {
  TestCluster cluster(TestCluster::Options(4));
  for (uint64_t id = 1; id <= 3; ++id) cluster.Add(id, On("host"));
  cluster.Add(4, On("another host"));
  for (uint64_t id = 1; id <= 3; ++id) {
    EXPECT_EQ(cluster.LastForm(id).memory_bytes(), kHostBytes / 3) << id;
    EXPECT_EQ(cluster.LastForm(id).threads(), kHostThreads / 3) << id;
  }
  EXPECT_EQ(cluster.LastForm(4).memory_bytes(), kHostBytes);
  EXPECT_EQ(cluster.LastForm(4).threads(), kHostThreads);
  v1::GetClusterInfoResponse info;
  cluster.membership.FillClusterInfo(cluster.now, &info);
  EXPECT_EQ(info.groups(0).stages(0).memory_bytes(), kHostBytes / 3);
}

TEST(HostSharesTest, WhatAWorkerWasGivenIsItsOwn) {
  TestCluster cluster(TestCluster::Options(3));
  cluster.Add(1, WithMemory(kHostBytes / 2, 10));
  cluster.Add(2, On("host"));
  cluster.Add(3, On("host"));
  EXPECT_EQ(cluster.LastForm(1).memory_bytes(), kHostBytes / 2);
  EXPECT_EQ(cluster.LastForm(1).threads(), 10U);
  EXPECT_EQ(cluster.LastForm(2).memory_bytes(), kHostBytes / 4);
  EXPECT_EQ(cluster.LastForm(2).threads(), 3U);
}

TEST(HostSharesTest, ThePartsNeverExceedTheHost) {
  TestCluster cluster(TestCluster::Options(2));
  cluster.Add(1, WithMemory(2 * kHostBytes, 2 * kHostThreads));
  cluster.Add(2, On("host"));
  EXPECT_FALSE(cluster.membership.ready(0)) << "nothing is left for the second worker";
  cluster.Add(3, On("another host"));
  cluster.Tick(1.1);
  EXPECT_FALSE(cluster.membership.ready(0)) << "workers are seated by name";
}

TEST(HostSharesTest, SharesGrowWhenAWorkerIsLostAndASpareTakesNone) {
  TestCluster cluster(TestCluster::Options(2));
  for (uint64_t id = 1; id <= 3; ++id) cluster.Add(id, On("host"));
  EXPECT_EQ(cluster.LastForm(1).memory_bytes(), kHostBytes / 2) << "one is a spare";
  cluster.membership.Disconnected(3, cluster.now);
  cluster.membership.Disconnected(2, cluster.now);
  cluster.Tick(1.1);
  ASSERT_TRUE(cluster.membership.ready(0));
  EXPECT_EQ(cluster.LastForm(1).memory_bytes(), kHostBytes);
}

TEST(HostSharesTest, AReplicaMakesRoomForAnotherOnItsHost) {
  TestCluster cluster(TestCluster::Options(/*stages=*/1, /*replicas=*/2));
  cluster.Add(1, On("host"));
  ASSERT_TRUE(cluster.membership.ready(0));
  EXPECT_EQ(cluster.LastForm(1).memory_bytes(), kHostBytes);
  cluster.Add(2, On("host"));
  EXPECT_TRUE(cluster.membership.ready(0)) << "its last Steps are still answered";
  EXPECT_TRUE(cluster.membership.draining(0));
  EXPECT_FALSE(cluster.membership.ready(1));
  cluster.membership.Drained(0, cluster.now);
  cluster.Tick(0.1);
  ASSERT_TRUE(cluster.membership.ready(0));
  ASSERT_TRUE(cluster.membership.ready(1));
  EXPECT_FALSE(cluster.membership.draining(0));
  EXPECT_EQ(cluster.LastForm(1).memory_bytes(), kHostBytes / 2);
  EXPECT_EQ(cluster.LastForm(2).memory_bytes(), kHostBytes / 2);
  const uint64_t generation = cluster.membership.last_generation();
  for (int i = 0; i < 10; ++i) cluster.Tick(1);
  EXPECT_EQ(cluster.membership.last_generation(), generation);
}

TEST(HostSharesTest, ADrainToMakeRoomIsBounded) {
  TestCluster cluster(TestCluster::Options(/*stages=*/1, /*replicas=*/2));
  cluster.Add(1, On("host"));
  cluster.Add(2, On("host"));
  for (int i = 0; i < 4; ++i) cluster.Tick(1);
  EXPECT_FALSE(cluster.membership.ready(1)) << "replica 0 is busy";
  for (int i = 0; i < 4; ++i) cluster.Tick(1);
  EXPECT_TRUE(cluster.membership.ready(0));
  EXPECT_TRUE(cluster.membership.ready(1));
}

TEST(HostSharesTest, AReplicaMakesRoomOnItsProcessorsToo) {
  TestCluster cluster(TestCluster::Options(/*stages=*/1, /*replicas=*/2));
  const auto with_memory = [](Register& message) {
    On("host")(message);
    message.set_memory_given(true);
    message.set_memory_bytes(kHostBytes / 4);
  };
  cluster.Add(1, with_memory);
  EXPECT_EQ(cluster.LastForm(1).threads(), kHostThreads);
  cluster.Add(2, with_memory);
  for (int i = 0; i < 3; ++i) cluster.Tick(0.1, /*idle=*/true);
  ASSERT_TRUE(cluster.membership.ready(0));
  ASSERT_TRUE(cluster.membership.ready(1));
  EXPECT_EQ(cluster.LastForm(1).threads(), kHostThreads / 2);
  EXPECT_EQ(cluster.LastForm(2).threads(), kHostThreads / 2);
}

TEST(HostSharesTest, OneOfTwoReplicasThatBothNeedTheHostHasIt) {
  TestCluster cluster(TestCluster::Options(/*stages=*/1, /*replicas=*/2));
  auto& memory = *cluster.described.mutable_described()->mutable_memory();
  memory.mutable_layers(0)->set_weight_bytes(kHostBytes * 2 / 3);
  cluster.Add(1, On("host"));
  cluster.Add(2, On("host"));
  cluster.membership.EndGeneration(0, "for the test", cluster.now);  // now both wait, and there are two spares
  for (int i = 0; i < 5; ++i) cluster.Tick(1);
  EXPECT_EQ(cluster.membership.groups_ready(), 1);
  const uint64_t generation = cluster.membership.last_generation();
  for (int i = 0; i < 10; ++i) cluster.Tick(1);
  EXPECT_EQ(cluster.membership.last_generation(), generation);
}

TEST(HostSharesTest, SparesThatAreTooFewForAGroupTakeNothing) {
  TestCluster cluster(TestCluster::Options(/*stages=*/2, /*replicas=*/2));
  for (uint64_t id = 1; id <= 3; ++id) cluster.Add(id, On("host"));
  cluster.membership.EndGeneration(0, "for the test", cluster.now);
  cluster.Tick(1);
  ASSERT_TRUE(cluster.membership.ready(0));
  EXPECT_EQ(cluster.LastForm(1).memory_bytes(), kHostBytes / 2);
  cluster.Add(4, On("host"));
  for (int i = 0; i < 3; ++i) cluster.Tick(0.1, /*idle=*/true);
  EXPECT_EQ(cluster.membership.groups_ready(), 2);
  for (uint64_t id = 1; id <= 4; ++id) EXPECT_EQ(cluster.LastForm(id).memory_bytes(), kHostBytes / 4) << id;
}

TEST(HostSharesTest, AReplicaThatNeedsItsHostKeepsIt) {
  MembershipOptions options = TestCluster::Options(/*stages=*/1, /*replicas=*/2);
  TestCluster cluster(options);
  auto& memory = *cluster.described.mutable_described()->mutable_memory();
  memory.mutable_layers(0)->set_weight_bytes(kHostBytes * 2 / 3);
  cluster.Add(1, On("host"));
  ASSERT_TRUE(cluster.membership.ready(0));
  cluster.Add(2, On("host"));
  for (int i = 0; i < 10; ++i) cluster.Tick(1);
  EXPECT_TRUE(cluster.membership.ready(0));
  EXPECT_FALSE(cluster.membership.ready(1));
  EXPECT_EQ(cluster.membership.last_generation(), 1U);
}

TEST(HostSharesTest, OneGpuTakesOneWorkerUnlessBothWereGivenShares) {
  TestCluster cluster(TestCluster::Options(4));
  const auto on_gpu = [](const std::string& gpu, bool given) {
    return [=](Register& message) {
      message.set_gpu(gpu);
      message.set_memory_given(given);
    };
  };
  cluster.Add(1, on_gpu("GPU-1", false));
  cluster.Add(2, on_gpu("GPU-2", true));
  cluster.Add(3, on_gpu("GPU-1", true));
  EXPECT_THAT(cluster.RefusalOf(3), HasSubstr("worker w1 computes on GPU-1 already"));
  EXPECT_THAT(cluster.RefusalOf(3), HasSubstr("set gpu_memory_utilization or memory of both"));
  cluster.Add(4, on_gpu("GPU-2", true));
  EXPECT_EQ(cluster.RefusalOf(4), "");
  EXPECT_EQ(cluster.membership.workers(), 3);
  // One that has died with its machine must not keep its replacement out.
  cluster.silent = {1};
  cluster.Tick(1.5);
  cluster.Tick(1);
  cluster.Add(5, on_gpu("GPU-1", false));
  EXPECT_EQ(cluster.RefusalOf(5), "");
  EXPECT_THAT(cluster.closed, ElementsAre(3, 1));
}

TEST(HostSharesTest, AProcessThatConnectsAnewReplacesItself) {
  TestCluster cluster(TestCluster::Options(1));
  const auto of_process = [](Register& message) {
    message.set_process("p");
    message.set_gpu("GPU-1");
  };
  cluster.Add(1, of_process);
  ASSERT_TRUE(cluster.membership.ready(0));
  cluster.Add(2, of_process);
  EXPECT_THAT(cluster.closed, ElementsAre(1));
  EXPECT_EQ(cluster.RefusalOf(2), "");
  cluster.Tick(0.1);
  ASSERT_TRUE(cluster.membership.ready(0));
  EXPECT_THAT(cluster.Stages(), ElementsAre(2));
}

TEST(HostSharesTest, EqualWorkersCountAsEquallyFast) {
  // Three measurements of one kind of host, which would give the first twice the layers of the second.
  TestCluster cluster(TestCluster::Options(3));
  for (int i = 0; i < 6; ++i) cluster.described.mutable_described()->mutable_layers(i)->set_decode_bytes(1e9);
  const double measured[] = {67e9, 35e9, 64e9};
  for (uint64_t id = 1; id <= 3; ++id) {
    cluster.Add(id, [&](Register& message) {
      message.set_device("cpu, 16 threads, AVX3");
      message.set_processor("a processor");
      message.set_read_bytes_per_second(measured[id - 1]);
      message.set_flops(measured[id - 1]);
    });
  }
  EXPECT_THAT(cluster.LastForm(1).first_layers(), ElementsAre(0, 2, 4));
}

TEST(HostSharesTest, AWorkerThatSharesItsHostIsSlower) {
  TestCluster cluster(TestCluster::Options(3));
  for (uint64_t id = 1; id <= 2; ++id) cluster.Add(id, On("host"));
  cluster.Add(3, On("another host"));
  EXPECT_LE(cluster.LastForm(3).first_layers(2), 3U) << "the one that has a host to itself gets more layers";
}

TEST(HostSharesTest, StagesOfOneGpuShareItsTime) {
  TestCluster cluster(TestCluster::Options(3));
  for (int i = 0; i < 6; ++i) cluster.described.mutable_described()->mutable_layers(i)->set_decode_bytes(1e9);
  const auto on_gpu = [](const std::string& gpu) {
    return [=](Register& message) {
      message.set_gpu(gpu);
      message.set_memory_given(true);
    };
  };
  cluster.Add(1, on_gpu("GPU-1"));
  cluster.Add(2, on_gpu("GPU-1"));
  cluster.Add(3, on_gpu("GPU-2"));
  EXPECT_LE(cluster.LastForm(3).first_layers(2), 3U) << "the one that has a GPU to itself gets more layers";
}

// ---- Addresses ----

std::function<void(Register&)> At(const std::string& address, const std::string& network) {
  return [=](Register& message) {
    message.set_transport("tcp");
    message.set_address(address);
    message.set_network(network);
  };
}

class AddressTest : public testing::Test {
 protected:
  static MembershipOptions Options() {
    MembershipOptions options = TestCluster::Options(2);
    options.network = "coordinator's";
    return options;
  }
  TestCluster cluster{Options()};
};

TEST_F(AddressTest, LoopbackServesWorkersOfOneHost) {
  cluster.Add(1, At("127.0.0.1", "coordinator's"), "127.0.0.1:1001");
  cluster.Add(2, At("::1", "coordinator's"), "[::1]:1002");
  ASSERT_TRUE(cluster.membership.ready(0));
  EXPECT_EQ(cluster.LastForm(1).reach(), "");
  EXPECT_EQ(cluster.LastForm(2).reach(), "");
}

TEST_F(AddressTest, AWorkerBesideTheCoordinatorLooksForItsRouteToThePeer) {
  cluster.Add(1, At("127.0.0.1", "coordinator's"), "127.0.0.1:1001");
  cluster.Add(2, At("10.0.0.2", "another"), "10.0.0.2:1002");
  ASSERT_TRUE(cluster.membership.ready(0));
  EXPECT_EQ(cluster.LastForm(1).reach(), "10.0.0.2");
  EXPECT_EQ(cluster.LastForm(2).reach(), "");
}

TEST_F(AddressTest, IPv6Too) {
  cluster.Add(1, At("::1", "coordinator's"), "[::1]:1001");
  cluster.Add(2, At("2001:db8::2", "another"), "[2001:db8::2]:1002");
  ASSERT_TRUE(cluster.membership.ready(0));
  EXPECT_EQ(cluster.LastForm(1).reach(), "2001:db8::2");
}

TEST_F(AddressTest, AWorkerBehindAProxyOfItsOwnHostListensWhereTheCoordinatorSeesIt) {
  cluster.Add(1, At("127.0.0.1", "another"), "10.0.0.2:1001");
  cluster.Add(2, At("127.0.0.1", "coordinator's"), "127.0.0.1:1002");
  ASSERT_TRUE(cluster.membership.ready(0));
  EXPECT_EQ(cluster.LastForm(1).reach(), "10.0.0.2");
}

TEST_F(AddressTest, AWorkerThatComesThroughATunnelIsRefused) {
  cluster.Add(1, At("127.0.0.1", "another"), "127.0.0.1:1001");
  cluster.Add(2, At("127.0.0.1", "coordinator's"), "127.0.0.1:1002");
  EXPECT_THAT(cluster.RefusalOf(1),
              HasSubstr("it reaches the coordinator by 127.0.0.1, and worker w2 on another host"));
  EXPECT_THAT(cluster.RefusalOf(1), HasSubstr("set address to one that"));
  EXPECT_EQ(cluster.RefusalOf(2), "");
  // With an address of its own it is welcome.
  cluster.Add(3, At("10.0.0.2", "another"), "127.0.0.1:1003");
  ASSERT_TRUE(cluster.membership.ready(0));
  EXPECT_EQ(cluster.LastForm(2).reach(), "10.0.0.2");
}

}  // namespace
}  // namespace goldfinch
