#include "coordinator/front/listener.h"

#include <arpa/inet.h>
#include <netinet/in.h>

#include <cstring>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace goldfinch {
namespace {

using testing::ElementsAre;

PeerAddress Peer(const std::string& text) {
  sockaddr_storage address{};
  sockaddr_in ipv4{};
  sockaddr_in6 ipv6{};
  if (inet_pton(AF_INET, text.c_str(), &ipv4.sin_addr) == 1) {
    ipv4.sin_family = AF_INET;
    ipv4.sin_port = htons(50051);
    std::memcpy(&address, &ipv4, sizeof(ipv4));
  } else {
    EXPECT_EQ(inet_pton(AF_INET6, text.c_str(), &ipv6.sin6_addr), 1);
    ipv6.sin6_family = AF_INET6;
    ipv6.sin6_port = htons(50051);
    std::memcpy(&address, &ipv6, sizeof(ipv6));
  }
  return ToPeerAddress(address);
}

TEST(PeerAddress, Ipv4) {
  EXPECT_EQ(Peer("192.0.2.7").host, "192.0.2.7");
  EXPECT_EQ(Peer("192.0.2.7").Text(), "192.0.2.7:50051");
  EXPECT_FALSE(Peer("192.0.2.7").loopback);
  EXPECT_TRUE(Peer("127.8.9.1").loopback);
  EXPECT_NE(Peer("192.0.2.7").network, Peer("192.0.2.8").network);
}

TEST(PeerAddress, Ipv6) {
  EXPECT_EQ(Peer("2001:db8::7").host, "2001:db8::7");
  EXPECT_EQ(Peer("2001:db8::7").Text(), "[2001:db8::7]:50051");
  EXPECT_TRUE(Peer("::1").loopback);
  EXPECT_FALSE(Peer("2001:db8::7").loopback);
  // A client has 64 bits of its own to choose from.
  EXPECT_EQ(Peer("2001:db8::7").network, Peer("2001:db8::ffff:8").network);
  EXPECT_NE(Peer("2001:db8::7").network, Peer("2001:db8:0:1::7").network);
}

TEST(PeerAddress, Ipv4InIpv6IsIpv4) {
  const PeerAddress mapped = Peer("::ffff:192.0.2.7");
  EXPECT_EQ(mapped.Text(), "192.0.2.7:50051");
  EXPECT_EQ(mapped.network, Peer("192.0.2.7").network);
  EXPECT_TRUE(Peer("::ffff:127.0.0.1").loopback);
}

TEST(SplitHosts, TakesBracketsAndSpacesAway) {
  EXPECT_THAT(SplitHosts("127.0.0.1"), ElementsAre("127.0.0.1"));
  EXPECT_THAT(SplitHosts(" 127.0.0.1, [::1],,::1"), ElementsAre("127.0.0.1", "::1"));
  EXPECT_THAT(SplitHosts(""), ElementsAre());
}

TEST(Listener, OnePortOnSeveralHosts) {
  const auto listeners = Listener::Open({"127.0.0.1", "127.0.0.2", "::1"}, 0);
  ASSERT_TRUE(listeners.ok()) << listeners.status();
  ASSERT_EQ(listeners->size(), 3U);
  for (const Listener& listener : *listeners) EXPECT_EQ(listener.port(), (*listeners)[0].port());
}

TEST(Listener, ErrorsNameHostAndPort) {
  const auto taken = Listener::Open({"::1"}, 0);
  ASSERT_TRUE(taken.ok()) << taken.status();
  const int port = (*taken)[0].port();
  for (const std::string host : {"::1", "::"}) {
    EXPECT_EQ(std::string(Listener::Open({host}, port).status().message()),
              "cannot listen on [" + host + "]:" + std::to_string(port) + ": the port is taken");
  }
  EXPECT_EQ(Listener::Open({"no such host"}, 0).status().code(), absl::StatusCode::kUnavailable);
  EXPECT_FALSE(Listener::Open({}, 0).ok());
}

}  // namespace
}  // namespace goldfinch
