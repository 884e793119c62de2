#include "base/crc32c.h"

#include <string>

#include "gtest/gtest.h"

namespace goldfinch {
namespace {

TEST(Crc32cTest, HasTheValuesOfItsStandard) {
  EXPECT_EQ(Crc32c(""), 0u);
  EXPECT_EQ(Crc32c("123456789"), 0xE3069283u);
  // RFC 3720, B.4.
  EXPECT_EQ(Crc32c(std::string(32, '\0')), 0x8A9136AAu);
  EXPECT_EQ(Crc32c(std::string(32, '\xff')), 0x62A8AB43u);
}

TEST(Crc32cTest, PiecesHaveTheChecksumOfTheWhole) {
  std::string text;
  for (int i = 0; i < 1000; ++i) text += static_cast<char>(i * 7);
  const std::string_view whole = text;
  for (const size_t at : {size_t{0}, size_t{1}, size_t{63}, size_t{500}, text.size()}) {
    const std::string_view first = whole.substr(0, at), second = whole.substr(at);
    EXPECT_EQ(Crc32c(second, Crc32c(first)), Crc32c(whole)) << at;
    EXPECT_EQ(JoinCrc32c(Crc32c(first), Crc32c(second), static_cast<int64_t>(second.size())), Crc32c(whole)) << at;
  }
}

}  // namespace
}  // namespace goldfinch
