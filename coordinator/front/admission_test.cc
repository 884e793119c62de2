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

}  // namespace
}  // namespace goldfinch
