#include "tokenizer/utf8.h"

#include <string>

#include "gtest/gtest.h"

namespace goldfinch {
namespace {

TEST(Utf8Test, EveryCodePointIsWrittenAndScanned) {
  for (uint32_t code = 0; code <= 0x10ffff; ++code) {
    std::string text;
    if (code >= 0xd800 && code <= 0xdfff) {
      ASSERT_FALSE(AppendUtf8(code, &text)) << code;
      ASSERT_TRUE(text.empty());
      continue;
    }
    ASSERT_TRUE(AppendUtf8(code, &text)) << code;
    ASSERT_EQ(text.size(), code < 0x80 ? 1 : code < 0x800 ? 2 : code < 0x10000 ? 3 : 4) << code;
    Utf8Scanner scanner;
    for (size_t i = 0; i + 1 < text.size(); ++i) {
      ASSERT_EQ(scanner.Feed(text[i]), Utf8Scanner::Step::kMore) << code;
      ASSERT_FALSE(scanner.at_start());
    }
    ASSERT_EQ(scanner.Feed(text.back()), Utf8Scanner::Step::kCharacter) << code;
    ASSERT_TRUE(scanner.at_start());
  }
  std::string text;
  EXPECT_FALSE(AppendUtf8(0x110000, &text));
  EXPECT_FALSE(AppendUtf8(0xffffffff, &text));
}

// Three bytes are enough to tell every error from every start of a character; the standard's table 3-7 is the
// reference.
TEST(Utf8Test, ThreeBytesAgreeWithTheTable) {
  const auto in = [](int byte, int low, int high) { return byte >= low && byte <= high; };
  int valid = 0;
  for (int a = 0xe0; a <= 0xef; ++a) {
    for (int b = 0; b <= 0xff; ++b) {
      for (int c = 0; c <= 0xff; ++c) {
        const bool expected = in(b, a == 0xe0 ? 0xa0 : 0x80, a == 0xed ? 0x9f : 0xbf) && in(c, 0x80, 0xbf);
        const char text[] = {static_cast<char>(a), static_cast<char>(b), static_cast<char>(c)};
        ASSERT_EQ(IsValidUtf8({text, 3}), expected) << a << " " << b << " " << c;
        valid += expected;
      }
    }
  }
  EXPECT_EQ(valid, 0x10000 - 0x800 - 0x800);  // The plane, less the shorter forms and the surrogates.
}

TEST(Utf8Test, BrokenTextIsInvalid) {
  for (const std::string text : {"\x80", "\xc0\x80", "\xc1\xbf", "\xc3", "\xe2\x82", "\xf0\x8f\xbf\xbf",
                                 "\xf4\x90\x80\x80", "\xf5\x80\x80\x80", "\xff", "a\xc3z"}) {
    EXPECT_FALSE(IsValidUtf8(text)) << testing::PrintToString(text);
  }
  EXPECT_TRUE(IsValidUtf8(""));
  EXPECT_TRUE(IsValidUtf8("gr\xc3\xbc\xc3\x9f \xf0\x9f\x90\xa6"));
}

}  // namespace
}  // namespace goldfinch
