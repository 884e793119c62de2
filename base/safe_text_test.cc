#include "base/safe_text.h"

#include <string>

#include "gtest/gtest.h"

namespace goldfinch {
namespace {

constexpr size_t kMany = 1000;

TEST(SafeTextTest, SafeTextsStayAsTheyAre) {
  for (const std::string text : {"", "worker 3: no room", "Zürich", "\xE6\x97\xA5\xE6\x9C\xAC", "\xF0\x9F\x90\xA6"}) {
    EXPECT_EQ(SafeText(text, kMany), text);
  }
}

TEST(SafeTextTest, WhatSteersATerminalIsEscaped) {
  EXPECT_EQ(SafeText("a\nb\x1b[2J\x07\x7f", kMany), "a\\x0ab\\x1b[2J\\x07\\x7f");
  EXPECT_EQ(SafeText(std::string("a\0b", 3), kMany), "a\\x00b");
  EXPECT_EQ(SafeText("\xC2\x9B", kMany), "\\u009b") << "C1: CSI";
  EXPECT_EQ(SafeText("\xE2\x80\xAE", kMany), "\\u202e") << "U+202E turns the order around";
  EXPECT_EQ(SafeText("\xE2\x80\xA8", kMany), "\\u2028") << "U+2028 is a line separator";
  EXPECT_EQ(SafeText("\xE2\x81\xA6", kMany), "\\u2066") << "U+2066 begins an isolate";
  EXPECT_EQ(SafeText("a\xE2\x80\x8B\xEF\xBB\xBF", kMany), "a\\u200b\\ufeff") << "of no width";
}

TEST(SafeTextTest, BytesThatAreNotUtf8AreEscaped) {
  EXPECT_EQ(SafeText("\xFF", kMany), "\\xff");
  EXPECT_EQ(SafeText("\xC3", kMany), "\\xc3") << "cut off";
  EXPECT_EQ(SafeText("\xC0\x80", kMany), "\\xc0\\x80") << "overlong";
  EXPECT_EQ(SafeText("\xED\xA0\x80", kMany), "\\xed\\xa0\\x80") << "a surrogate";
  EXPECT_EQ(SafeText("\xF4\x90\x80\x80", kMany), "\\xf4\\x90\\x80\\x80") << "above U+10FFFF";
  EXPECT_EQ(SafeText("\xE0\x80"
                     "a",
                     kMany),
            "\\xe0\\x80a");
}

TEST(SafeTextTest, LongTextsAreCut) {
  EXPECT_EQ(SafeText("12345678", 8), "12345678");
  EXPECT_EQ(SafeText("123456789", 8), "12345...");
  EXPECT_EQ(SafeText("1234\xC3\xBC"
                     "789",
                     8),
            "1234...")
      << "between characters";
  EXPECT_EQ(SafeText("12\n34", 8), "12\\x0a34");
  EXPECT_EQ(SafeText("12\n3456", 8), "12...");
  EXPECT_EQ(SafeText("1234", 2), "..");
  EXPECT_EQ(SafeText("1", 0), "");
  EXPECT_EQ(SafeText(std::string(10'000, 'x')).size(), 10'000U) << "no limit";
  EXPECT_EQ(SafeText(std::string(10 << 20, 'x'), 100).size(), 100U);
}

TEST(SafeTextTest, QuotedNamesAreFitForAMessage) {
  EXPECT_EQ(Quoted("emb.weight"), "'emb.weight'");
  EXPECT_EQ(Quoted(std::string_view("a\n\0z", 4)), "'a\\n\\x00z'");
  EXPECT_EQ(Quoted(std::string(1000, 'x')), "'" + std::string(120, 'x') + "...'");
}

}  // namespace
}  // namespace goldfinch
