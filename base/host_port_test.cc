#include "base/host_port.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace goldfinch {
namespace {

using testing::ElementsAre;

TEST(HostPort, PutsIpv6InBrackets) {
  EXPECT_EQ(HostPort("127.0.0.1", 50051), "127.0.0.1:50051");
  EXPECT_EQ(HostPort("localhost", 0), "localhost:0");
  EXPECT_EQ(HostPort("::1", 50051), "[::1]:50051");
  EXPECT_EQ(HostPort("[::1]", 50051), "[::1]:50051");
  EXPECT_EQ(HostPort("fe80::1%eth0", 9), "[fe80::1%eth0]:9");
}

TEST(HostPort, SplitsHosts) {
  EXPECT_THAT(SplitHosts("127.0.0.1"), ElementsAre("127.0.0.1"));
  EXPECT_THAT(SplitHosts(" 127.0.0.1, [::1],,::1"), ElementsAre("127.0.0.1", "::1"));
  EXPECT_THAT(SplitHosts(""), ElementsAre());
}

}  // namespace
}  // namespace goldfinch
