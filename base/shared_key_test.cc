#include "base/shared_key.h"

#include <fstream>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/escaping.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace goldfinch {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

std::string WriteFile(const std::string& text) {
  const std::string path = testing::TempDir() + "/cluster.key";
  std::ofstream(path, std::ios::binary) << text;
  return path;
}

TEST(SharedKeyTest, ProofsFitTheirKeyRoleAndParts) {
  const SharedKey key("a secret"), other("another");
  const std::string proof = key.Prove("worker", {"2", "nonce", "challenge"});
  EXPECT_EQ(proof.size(), SharedKey::kProofBytes);
  EXPECT_TRUE(key.Accepts(proof, "worker", {"2", "nonce", "challenge"}));
  EXPECT_FALSE(other.Accepts(proof, "worker", {"2", "nonce", "challenge"}));
  EXPECT_FALSE(key.Accepts(proof, "coordinator", {"2", "nonce", "challenge"})) << "it cannot be sent back";
  EXPECT_FALSE(key.Accepts(proof, "worker", {"3", "nonce", "challenge"}));
  EXPECT_FALSE(key.Accepts(proof, "worker", {"2", "nonce", "another"}));
  EXPECT_FALSE(key.Accepts(proof, "worker", {"2", "nonc", "echallenge"})) << "parts keep their borders";
  EXPECT_FALSE(key.Accepts(proof, "worker", {"2", "nonce"}));
  EXPECT_FALSE(key.Accepts("", "worker", {"2", "nonce", "challenge"}));
  EXPECT_FALSE(key.Accepts(proof + "x", "worker", {"2", "nonce", "challenge"}));
}

// The bytes do not depend on the build, so that programs of different builds understand each other.
TEST(SharedKeyTest, ProofsStayTheSame) {
  EXPECT_EQ(absl::BytesToHexString(SharedKey("key").Prove("role", {"a", "bc"})),
            "d0e480b187b76d240a55fb254fb9613d96f26ebd378c1be67de53c5a81e33904");
}

TEST(SharedKeyTest, NoncesDiffer) {
  EXPECT_EQ(MakeNonce().size(), SharedKey::kNonceBytes);
  EXPECT_NE(MakeNonce(), MakeNonce());
}

TEST(SharedKeyTest, FilesAreChecked) {
  const std::string secret(40, 's');
  const auto key = SharedKey::FromFile(WriteFile(" " + secret + "\r\n"));
  ASSERT_TRUE(key.ok()) << key.status();
  EXPECT_EQ(key->Prove("r", {}), SharedKey(secret).Prove("r", {}));

  EXPECT_EQ(SharedKey::FromFile(testing::TempDir() + "/missing").status().code(), absl::StatusCode::kNotFound);
  const auto check = [](const std::string& text, const std::string& expected) {
    const std::string message(SharedKey::FromFile(WriteFile(text)).status().message());
    EXPECT_THAT(message, HasSubstr(expected));
    EXPECT_THAT(message, HasSubstr("cluster.key"));
    EXPECT_THAT(message, Not(HasSubstr("sss")));
  };
  check(std::string(31, 's') + "\n", "the key has 31 bytes, it must have at least 32");
  check("", "has 0 bytes");
  check(std::string(SharedKey::kFileBytesMax + 1, 's'), "more than 4096 bytes");
}

}  // namespace
}  // namespace goldfinch
