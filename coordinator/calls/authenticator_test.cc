#include "coordinator/calls/authenticator.h"

#include <fstream>
#include <string>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"

namespace goldfinch {
namespace {

constexpr char kBearer[] = "Bearer 0123456789abcdef";

std::shared_ptr<const KeyRing> Keys() {
  const std::string path = testing::TempDir() + "/authenticator_keys.txt";
  std::ofstream(path) << "0123456789abcdef\n";
  return *KeyRing::Open(path);
}

TEST(NetworkOf, OneUserIsOneNetwork) {
  EXPECT_EQ(NetworkOf("192.0.2.7"), "192.0.2.7");
  EXPECT_EQ(NetworkOf("2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::/64");
  EXPECT_EQ(NetworkOf("2001:db8:1:2::9"), "2001:db8:1:2::/64");
  EXPECT_EQ(NetworkOf("::1"), "::/64");
  EXPECT_EQ(NetworkOf("::ffff:192.0.2.7"), "192.0.2.7");
  EXPECT_EQ(NetworkOf("unknown"), "unknown");
}

TEST(Authenticator, WithoutKeysAnAddressIsAClient) {
  Authenticator authenticator(nullptr);
  const auto first = authenticator.Identify("192.0.2.7", std::nullopt);
  ASSERT_TRUE(first.ok());
  EXPECT_EQ(first->client->name, "192.0.2.7");
  EXPECT_EQ(first->client->limits.max_priority, 0);
  EXPECT_TRUE(first->may_operate);
  EXPECT_EQ(authenticator.Identify("192.0.2.7", kBearer)->client, first->client);
  EXPECT_NE(authenticator.Identify("192.0.2.8", std::nullopt)->client, first->client);
  const auto six = authenticator.Identify("2001:db8::1", std::nullopt);
  EXPECT_EQ(authenticator.Identify("2001:db8::2", std::nullopt)->client, six->client);
  for (int i = 0; i < 10'000; ++i) EXPECT_TRUE(authenticator.Identify(absl::StrCat("host", i), std::nullopt).ok());
  EXPECT_EQ(authenticator.Identify("192.0.2.7", std::nullopt)->client, first->client) << "sweeps keep what lives";
}

TEST(Authenticator, TheKeyIsTheClient) {
  Authenticator authenticator(Keys());
  const auto caller = authenticator.Identify("192.0.2.7", kBearer);
  ASSERT_TRUE(caller.ok()) << caller.status();
  EXPECT_EQ(caller->client->name, "key-1");
  EXPECT_EQ(caller->peer, "192.0.2.7");
  EXPECT_EQ(authenticator.Identify("192.0.2.8", "bEARER 0123456789abcdef")->client, caller->client);
  EXPECT_EQ(authenticator.Identify("192.0.2.7", std::nullopt).status(),
            absl::UnauthenticatedError("no API key: the metadata `authorization: Bearer KEY` is missing"));
  for (const char* form : {"", "Bearer", "Basic 0123456789abcdef", "0123456789abcdef"}) {
    EXPECT_EQ(authenticator.Identify("192.0.2.7", form).status(),
              absl::UnauthenticatedError("the metadata `authorization` is not of the form `Bearer KEY`"));
  }
}

TEST(Authenticator, WhoTriesManyKeysGetsAnotherAnswerForAWhile) {
  Authenticator authenticator(Keys());
  const std::string attacker = "2001:db8::7";
  int wrong = 0;
  while (authenticator.Identify(attacker, "Bearer wrong").status().code() == absl::StatusCode::kUnauthenticated)
    ++wrong;
  EXPECT_GE(wrong, WrongKeys::kPerMinute);
  EXPECT_LE(wrong, WrongKeys::kPerMinute + 20) << "one more for each three seconds";
  // Another address of theirs does not help.
  const absl::Status refused = authenticator.Identify("2001:db8::8", "Bearer wrong").status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(std::string(refused.message()).find("too many wrong API keys from 2001:db8::/64: try again in "), 0U);
  EXPECT_EQ(authenticator.Identify("2001:db8:0:1::8", "Bearer wrong").status().code(),
            absl::StatusCode::kUnauthenticated);
  // Those who share the address and have a key do not suffer.
  for (int i = 0; i < 100; ++i) {
    EXPECT_TRUE(authenticator.Identify("2001:db8::8", kBearer).ok());
    EXPECT_FALSE(authenticator.Identify(attacker, "Bearer wrong").ok());
  }
}

TEST(WrongKeys, AreForgivenInTimeAndBoundedInNumber) {
  WrongKeys wrong;
  for (int i = 0; i < WrongKeys::kPerMinute; ++i) {
    EXPECT_EQ(wrong.SecondsRefused("a", 0), 0);
    wrong.Count("a", 0);
  }
  EXPECT_DOUBLE_EQ(wrong.SecondsRefused("a", 0), 3);
  EXPECT_EQ(wrong.SecondsRefused("b", 0), 0);
  EXPECT_EQ(wrong.SecondsRefused("a", 3), 0);
  for (int i = 0; i < 20'000; ++i) wrong.Count(absl::StrCat("host", i), 3);
  EXPECT_LE(wrong.addresses(), WrongKeys::kAddressesMax);
  EXPECT_DOUBLE_EQ(wrong.SecondsRefused("a", 2.5), 0.5) << "the worst is remembered";
}

}  // namespace
}  // namespace goldfinch
