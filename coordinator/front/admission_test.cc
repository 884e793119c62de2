#include "coordinator/front/admission.h"

#include <string>

#include "gtest/gtest.h"

namespace goldfinch {
namespace {

PeerAddress Peer(const std::string& network) {
  return {.host = "192.0.2.7", .port = 1, .network = network, .loopback = network == "loopback"};
}

TEST(Admission, LimitsAddressesAndAll) {
  Admission admission(5, 2);
  EXPECT_TRUE(admission.Enter(Peer("a")).ok());
  EXPECT_TRUE(admission.Enter(Peer("a")).ok());
  EXPECT_EQ(std::string(admission.Enter(Peer("a")).message()),
            "there are 2 connections from this address, which is the limit");
  EXPECT_TRUE(admission.Enter(Peer("b")).ok());
  admission.Leave(Peer("a"));
  EXPECT_TRUE(admission.Enter(Peer("a")).ok());
  EXPECT_TRUE(admission.Enter(Peer("c")).ok());
  EXPECT_TRUE(admission.Enter(Peer("d")).ok());
  EXPECT_EQ(std::string(admission.Enter(Peer("e")).message()), "there are 5 connections, which is the limit");
}

TEST(Admission, LoopbackCountsOnlyAmongAll) {
  Admission admission(3, 1);
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(admission.Enter(Peer("loopback")).ok());
  EXPECT_FALSE(admission.Enter(Peer("loopback")).ok());
  admission.Leave(Peer("loopback"));
  EXPECT_TRUE(admission.Enter(Peer("a")).ok());
}

TEST(Admission, AnAddressWithManyFaultsWaits) {
  Admission admission(100, 100);
  double now = 1000;
  for (int i = 0; i < Admission::kFaultsAtOnce; ++i) {
    admission.Fault(Peer("a"), now);
    EXPECT_EQ(admission.HoldSeconds(Peer("a"), now), 0) << i;
  }
  admission.Fault(Peer("a"), now);
  admission.Fault(Peer("a"), now);
  EXPECT_DOUBLE_EQ(admission.HoldSeconds(Peer("a"), now), 2 / Admission::kFaultsASecond);
  EXPECT_EQ(admission.HoldSeconds(Peer("b"), now), 0);
  now += 1.5 / Admission::kFaultsASecond;
  EXPECT_DOUBLE_EQ(admission.HoldSeconds(Peer("a"), now), 0.5 / Admission::kFaultsASecond);
  now += 1 / Admission::kFaultsASecond;
  EXPECT_EQ(admission.HoldSeconds(Peer("a"), now), 0);
}

TEST(Admission, NoDebtIsLargerThanTheLongestWait) {
  Admission admission(100, 100);
  for (int i = 0; i < 10000; ++i) admission.Fault(Peer("loopback"), 1000);
  EXPECT_DOUBLE_EQ(admission.HoldSeconds(Peer("loopback"), 1000), Admission::kHoldSecondsMax);
  EXPECT_EQ(admission.HoldSeconds(Peer("loopback"), 1000 + Admission::kHoldSecondsMax), 0);
}

TEST(Admission, FaultsOfManyAddressesTakeBoundedMemory) {
  Admission admission(100, 100);
  for (int i = 0; i < 100'000; ++i) admission.Fault(Peer("flood" + std::to_string(i)), 1000);
  for (int i = 0; i < 100; ++i) admission.Fault(Peer("late"), 1000);
  EXPECT_EQ(admission.HoldSeconds(Peer("late"), 1000), 0) << "there is no room to remember it";
  // The faults of the others are made up for, which makes room.
  for (int i = 0; i < 100; ++i) admission.Fault(Peer("late"), 1100);
  EXPECT_GT(admission.HoldSeconds(Peer("late"), 1100), 0);
}

}  // namespace
}  // namespace goldfinch
