#include "base/resolve.h"

#include <sys/socket.h>

#include "gtest/gtest.h"

namespace goldfinch {
namespace {

TEST(ResolveTest, NumbersGoThereAndBack) {
  for (const char* host : {"10.0.0.7", "::1", "2001:db8::7", "::ffff:10.0.0.7"}) {
    const absl::StatusOr<AddressList> found = ResolveHost(host, 50051, AI_NUMERICHOST);
    ASSERT_TRUE(found.ok()) << host << ": " << found.status();
    EXPECT_EQ(NumericHost(*(*found)->ai_addr), host);
    EXPECT_EQ(PortOf(*(*found)->ai_addr), 50051);
    EXPECT_EQ((*found)->ai_socktype, SOCK_STREAM);
  }
}

TEST(ResolveTest, AFailureHasItsReason) {
  const absl::Status status = ResolveHost("a.name", 1, AI_NUMERICHOST).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(status.message(), gai_strerror(EAI_NONAME));
}

TEST(ResolveTest, TheOwnAddressIsThatOfTheRoute) {
  EXPECT_EQ(OwnAddressTowards("127.0.0.1", 1).value(), "127.0.0.1");
  EXPECT_EQ(OwnAddressTowards("127.3.2.1", 1).value(), "127.0.0.1");
  EXPECT_EQ(OwnAddressTowards("::1", 1).value_or("::1"), "::1") << "where there is IPv6";
  EXPECT_EQ(OwnAddressTowards("a.name", 1, AI_NUMERICHOST).status().code(), absl::StatusCode::kUnavailable);
}

TEST(ResolveTest, OtherKindsOfAddressesHaveNoNumber) {
  sockaddr address = {};
  address.sa_family = AF_UNIX;
  EXPECT_EQ(NumericHost(address), "");
  EXPECT_EQ(PortOf(address), 0);
}

}  // namespace
}  // namespace goldfinch
