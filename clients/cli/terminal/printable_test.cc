#include "clients/cli/terminal/printable.h"

#include <string>
#include <string_view>
#include <vector>

#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

namespace goldfinch {
namespace {

std::string Escaped(const std::vector<std::string_view>& pieces) {
  TerminalEscaper escaper;
  std::string text;
  for (const std::string_view piece : pieces) text += escaper.Append(piece);
  return text + escaper.Finish();
}

struct Case {
  std::string text;
  std::string on_terminal;
};

const Case kCases[] = {
    {"plain\tand\ntwo lines, \"quotes\" \\ and \u00e4 \u4e2d \U0001f426",
     "plain\tand\ntwo lines, \"quotes\" \\ and \u00e4 \u4e2d \U0001f426"},
    {"\x1b]0;title\x07\x1b[2J", "\\x1b]0;title\\x07\\x1b[2J"},
    {std::string("\0\r\b\x7f", 4), "\\x00\\x0d\\x08\\x7f"},
    {"\u0085\u009b31m\u00a0", "\\u0085\\u009b31m\u00a0"},
    {"\u202a\u202b\u202c\u202d\u202e", "\\u202a\\u202b\\u202c\\u202d\\u202e"},
    {"\u2066\u2067\u2068\u2069", "\\u2066\\u2067\\u2068\\u2069"},
    {"\u200e\u200f\u061c\u2028\u2029", "\\u200e\\u200f\\u061c\\u2028\\u2029"},
    {"\u200b\u200d\u2027\u202f\u2065\ufeff", "\u200b\u200d\u2027\u202f\u2065\ufeff"},
    {"a\xff\x9b z\xc2", "a\\xff\\x9b z\\xc2"},
    {"\xe2\x80", "\\xe2\\x80"},
    {"\xe2\x80\x1b", "\\xe2\\x80\\x1b"},
    {"\xc0\x9b\xed\xa0\x80", "\\xc0\\x9b\\xed\\xa0\\x80"},
};

TEST(TerminalEscaperTest, EscapesWhatSteersTerminals) {
  for (const Case& one : kCases) EXPECT_EQ(Escaped({one.text}), one.on_terminal);
}

TEST(TerminalEscaperTest, PiecesMayEndAnywhere) {
  for (const Case& one : kCases) {
    std::vector<std::string_view> bytes;
    for (const char& c : one.text) bytes.emplace_back(&c, 1);
    EXPECT_EQ(Escaped(bytes), one.on_terminal);
    for (size_t cut = 0; cut <= one.text.size(); ++cut) {
      const std::string_view text = one.text;
      EXPECT_EQ(Escaped({text.substr(0, cut), text.substr(cut)}), one.on_terminal);
    }
  }
}

TEST(TerminalEscaperTest, HoldsBackNoWholeCharacter) {
  TerminalEscaper escaper;
  EXPECT_EQ(escaper.Append("a\xe2\x80"), "a");
  EXPECT_EQ(escaper.Append("\xae!"), "\\u202e!");
  EXPECT_EQ(escaper.Append("\u00e4"), "\u00e4");
  EXPECT_EQ(escaper.Append("\xe4"), "");
  EXPECT_EQ(escaper.Finish(), "\\xe4");
  EXPECT_EQ(escaper.Append("b"), "b");
}

TEST(TextOutputTest, IsRawWhereNobodyLooks) {
  for (const bool escape : {false, true}) {
    testing::internal::CaptureStdout();
    TextOutput output(escape);
    output.Print("\x1b[2J\xc2");
    output.Print("\x9b");
    output.Print("\xff\xc2");
    output.Finish();
    EXPECT_EQ(testing::internal::GetCapturedStdout(), escape ? "\\x1b[2J\\u009b\\xff\\xc2" : "\x1b[2J\xc2\x9b\xff\xc2");
  }
}

TEST(JsonTextTest, EscapesWithinStringsAndKeysAndChangesNoValue) {
  const nlohmann::json json = {{"k\u202ey", "\x1b\u009b\x7f\n\t\u2066\u00e4\U0001f426"}, {"n", {1, 2.5, true}}};
  for (const int indent : {-1, 2}) {
    const std::string text = JsonText(json, indent);
    EXPECT_EQ(nlohmann::json::parse(text), json);
    EXPECT_NE(text.find("\"k\\u202ey\""), std::string::npos) << text;
    EXPECT_NE(text.find("\"\\u001b\\u009b\\u007f\\n\\t\\u2066\u00e4\U0001f426\""), std::string::npos) << text;
  }
  EXPECT_EQ(JsonText("a\xff", -1), "\"a\ufffd\"");
}

}  // namespace
}  // namespace goldfinch
