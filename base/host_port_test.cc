#include "base/host_port.h"

#include <string>
#include <tuple>
#include <utility>

#include "absl/status/status.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace goldfinch {
namespace {

using ::testing::HasSubstr;

TEST(HostPortTest, GoodAddresses) {
  for (const auto& [text, host, port] :
       {std::tuple("host:1", "host", 1), std::tuple("10.0.0.7:65535", "10.0.0.7", 65535),
        std::tuple("[::1]:50052", "::1", 50052), std::tuple("[fe80::1%eth0]:7", "fe80::1%eth0", 7)}) {
    const auto parsed = ParseHostPort(text);
    ASSERT_TRUE(parsed.ok()) << parsed.status();
    EXPECT_EQ(parsed->host, host);
    EXPECT_EQ(parsed->port, port);
    EXPECT_EQ(parsed->ToString(), text);
  }
}

TEST(HostPortTest, BadAddressesSayWhatIsMissing) {
  const std::pair<std::string, std::string> kCases[] = {
      {"", "the port is missing"},
      {"host", "the port is missing"},
      {"host:", "the port is missing"},
      {"10.0.0.7", "the port is missing"},
      {"[::1]", "the port is missing"},
      {":50052", "the host is missing"},
      {"::1", "needs brackets"},
      {"::1:50052", "needs brackets"},
      {"[::1:50052", "not closed"},
      {"[host]:1", "no IPv6 address"},
      {"[]:1", "no IPv6 address"},
      {"host:0", "from 1 to 65535"},
      {"host:65536", "from 1 to 65535"},
      {"host:+1", "from 1 to 65535"},
      {"host:1x", "from 1 to 65535"},
      {"host:99999999999999999999", "from 1 to 65535"},
      {"https://host:443", "needs brackets"},
      {"a b:1", "a space or a slash"},
      {"unix/x:1", "a space or a slash"},
  };
  for (const auto& [text, why] : kCases) {
    const absl::Status status = ParseHostPort(text).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << text;
    EXPECT_THAT(std::string(status.message()), HasSubstr("\"" + text + "\" is not HOST:PORT: "));
    EXPECT_THAT(std::string(status.message()), HasSubstr(why));
  }
}

TEST(HostPortTest, Brackets) {
  EXPECT_EQ(WithoutBrackets("[::1]"), "::1");
  for (const char* text : {"::1", "host", "[::1", "[", ""}) EXPECT_EQ(WithoutBrackets(text), text);
}

TEST(HostPortTest, Loopback) {
  for (const char* host : {"127.0.0.1", "127.8.9.1", "::1", "[::1]", "localhost", "LocalHost", "::ffff:127.0.0.1"}) {
    EXPECT_TRUE(IsLoopback(host)) << host;
  }
  for (const char* host : {"", "0.0.0.0", "::", "[::]", "10.0.0.1", "128.0.0.1", "127.0.0.1.example.com", "host",
                           "localhost.example.com", "::ffff:10.0.0.1", "127.1"}) {
    EXPECT_FALSE(IsLoopback(host)) << host;
  }
}

}  // namespace
}  // namespace goldfinch
