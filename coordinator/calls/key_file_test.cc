#include "coordinator/calls/key_file.h"

#include <string>

#include "absl/strings/escaping.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace goldfinch {
namespace {

using testing::HasSubstr;
using testing::Not;

constexpr char kKey[] = "0123456789abcdef";
constexpr char kDigest[] = "9f9f5111f7b27a781f1f1ddde5ebc2dd2b796bfc7365c9c28b548e564176929f";  // of kKey

std::vector<ApiKey> Parse(const std::string& text) {
  absl::StatusOr<std::vector<ApiKey>> keys = ParseKeyFile("keys.txt", text);
  EXPECT_TRUE(keys.ok()) << keys.status();
  return keys.ok() ? *std::move(keys) : std::vector<ApiKey>();
}

std::string Error(const std::string& text) {
  const absl::Status status = ParseKeyFile("keys.txt", text).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
  EXPECT_THAT(std::string(status.message()), Not(HasSubstr("secret")));
  return std::string(status.message());
}

std::string Hex(const KeyDigest& digest) { return absl::BytesToHexString(std::string(digest.begin(), digest.end())); }

TEST(PlainKeys, AreNamedByTheirLines) {
  const std::vector<ApiKey> keys = Parse(std::string("# keys\n\n  ") + kKey + " \r\nanother-key-of-someone");
  ASSERT_EQ(keys.size(), 2u);
  EXPECT_EQ(Hex(keys[0].digest), kDigest);
  EXPECT_EQ(keys[0].name, "key-3");
  EXPECT_EQ(keys[1].name, "key-4");
  EXPECT_EQ(keys[0].limits.max_priority, 100);
  EXPECT_EQ(keys[0].limits.max_running + keys[0].limits.max_queued + keys[0].limits.tokens_per_minute, 0);
  EXPECT_FALSE(keys[0].is_operator || keys[0].expires);
}

TEST(PlainKeys, ErrorsNameFileAndLineButNeverTheKey) {
  EXPECT_EQ(Error("# short\nsecret789abcdef\n"), "keys.txt:2: the key has 15 characters, the limits are 16 and 512");
  EXPECT_EQ(Error(std::string(513, 'x')), "keys.txt:1: the key has 513 characters, the limits are 16 and 512");
  EXPECT_EQ(Error(std::string(kKey) + "\n\n0secret789 abcdef\n"),
            "keys.txt:3: character 11 of the key is a space or is not printable ASCII");
  EXPECT_EQ(Error("# nothing\n"), "keys.txt: holds no key");
}

TEST(YamlKeys, SayEverything) {
  const std::vector<ApiKey> keys = Parse(std::string("# ours\nkeys:\n- name: alice\n  sha256: ") + kDigest +
                                         "\n  roles: [operator]\n  expires: 2027-06-30T12:00:00+02:00\n"
                                         "  limits: {max_running: 8, max_queued: 32, tokens_per_minute: 200000, "
                                         "max_priority: 10}\n- name: bob@home\n  key: the-key-of-bob-himself\n");
  ASSERT_EQ(keys.size(), 2u);
  EXPECT_EQ(keys[0].name, "alice");
  EXPECT_EQ(Hex(keys[0].digest), kDigest);
  EXPECT_TRUE(keys[0].is_operator);
  EXPECT_EQ(absl::FormatTime(absl::RFC3339_sec, *keys[0].expires, absl::UTCTimeZone()), "2027-06-30T10:00:00+00:00");
  EXPECT_EQ(keys[0].limits.max_running, 8);
  EXPECT_EQ(keys[0].limits.max_queued, 32);
  EXPECT_EQ(keys[0].limits.tokens_per_minute, 200'000);
  EXPECT_EQ(keys[0].limits.max_priority, 10);
  EXPECT_EQ(keys[1].name, "bob@home");
  EXPECT_EQ(keys[1].digest, DigestOfKey("the-key-of-bob-himself"));
  EXPECT_EQ(keys[1].limits.max_priority, 0);
  EXPECT_FALSE(keys[1].is_operator || keys[1].expires);
}

TEST(YamlKeys, MistakesAreRefused) {
  const std::string bob = "keys:\n- name: bob\n  key: secret-key-of-bob\n";
  EXPECT_EQ(Parse(bob).size(), 1u);
  EXPECT_EQ(Error(bob + "  expire: 2020-01-01T00:00:00Z\n"), "keys.txt: keys[0] has an unknown field \"expire\"");
  EXPECT_EQ(Error(bob + "  expires: tomorrow\n"),
            "keys.txt: keys[0].expires is not a time of RFC 3339, such as 2027-06-30T00:00:00Z");
  EXPECT_EQ(Error(bob + "  limits: {max_runing: 3}\n"), "keys.txt: keys[0].limits has an unknown field \"max_runing\"");
  EXPECT_EQ(Error(bob + "  limits: {max_running: -1}\n"),
            "keys.txt: keys[0].limits.max_running is not a whole number from 0 to 1048576");
  EXPECT_EQ(Error(bob + "  limits: {max_priority: 101}\n"),
            "keys.txt: keys[0].limits.max_priority is not a whole number from -100 to 100");
  EXPECT_EQ(Error(bob + "  roles: [admin]\n"), "keys.txt: keys[0].roles has \"admin\", the only role is operator");
  EXPECT_EQ(Error(bob + "  roles: operator\n"), "keys.txt: keys[0].roles is not a list");
  EXPECT_EQ(Error(bob + "  sha256: abc\n"), "keys.txt: keys[0] must have one of sha256 and key");
  EXPECT_EQ(Error(bob + "- name: bob\n  key: secret-key-of-eve\n"),
            "keys.txt: keys[1]: another key is called bob, too");
  EXPECT_EQ(Error(bob + "- name: eve\n  key: secret-key-of-bob\n"),
            "keys.txt: keys[1] is the same key as one before it");
  EXPECT_EQ(Error("keys:\n- name: a b\n  key: secret-key-of-bob\n"),
            "keys.txt: keys[0].name must be 1 to 64 letters, digits and . _ @ -");
  EXPECT_EQ(Error("keys:\n- name: bob\n"), "keys.txt: keys[0] must have one of sha256 and key");
  EXPECT_EQ(Error("keys:\n- name: bob\n  sha256: secret\n"), "keys.txt: keys[0].sha256 is not 64 hexadecimal digits");
  EXPECT_EQ(Error("keys:\n- secret-key-of-bob\n"), "keys.txt: keys[0] is not a map");
  EXPECT_EQ(Error("keys:\n- name: bob\n  key: {secret\n"), "keys.txt:4: not YAML");
  EXPECT_EQ(Error("keys:\n"), "keys.txt: holds no key");
  EXPECT_EQ(Error("keys:\nother: 1\n"), "keys.txt has an unknown field \"other\"");
}

}  // namespace
}  // namespace goldfinch
