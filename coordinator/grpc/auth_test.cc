#include "coordinator/grpc/auth.h"

#include <fstream>
#include <string>

#include "gtest/gtest.h"

namespace goldfinch {
namespace {

constexpr char kKey[] = "0123456789abcdef";
constexpr char kOther[] = "another-key-of-someone";

std::string Write(const std::string& text) {
  const std::string path = testing::TempDir() + "/keys.txt";
  std::ofstream(path) << text;
  return path;
}

std::string Error(const std::string& text) {
  const absl::Status status = ApiKeys::FromFile(Write(text)).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
  return std::string(status.message());
}

TEST(ApiKeys, KnowsTheKeysOfTheFileAndNoOthers) {
  const auto keys = ApiKeys::FromFile(Write(std::string("# keys\n\n  ") + kKey + " \r\n" + kOther));
  ASSERT_TRUE(keys.ok()) << keys.status();
  EXPECT_TRUE((*keys)->Has(kKey));
  EXPECT_TRUE((*keys)->Has(kOther));
  EXPECT_FALSE((*keys)->Has(""));
  EXPECT_FALSE((*keys)->Has("# keys"));
  EXPECT_FALSE((*keys)->Has("0123456789abcde"));
  EXPECT_FALSE((*keys)->Has("0123456789abcdeF"));
  EXPECT_FALSE((*keys)->Has("0123456789abcdef0"));
  EXPECT_FALSE((*keys)->Has(std::string(kKey) + " "));
}

TEST(ApiKeys, ErrorsNameFileAndLineButNeverTheKey) {
  const std::string path = testing::TempDir() + "/keys.txt";
  EXPECT_EQ(Error("# short\n0123456789abcde\n"), path + ":2: the key has 15 characters, the limits are 16 and 512");
  EXPECT_EQ(Error(std::string(513, 'x')), path + ":1: the key has 513 characters, the limits are 16 and 512");
  EXPECT_EQ(Error(std::string(kKey) + "\n\n0123456789 abcdef\n"),
            path + ":3: character 11 of the key is a space or is not printable ASCII");
  EXPECT_EQ(Error("# nothing\n"), path + ": holds no key");
}

TEST(ApiKeys, AFileThatIsNotThere) {
  const absl::Status status = ApiKeys::FromFile("/nowhere/keys.txt").status();
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(std::string(status.message()), "/nowhere/keys.txt: cannot be read: No such file or directory");
}

}  // namespace
}  // namespace goldfinch
