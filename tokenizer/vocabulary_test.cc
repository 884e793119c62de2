#include "tokenizer/vocabulary.h"

#include <filesystem>
#include <fstream>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tokenizer/test_vocabulary.h"

namespace goldfinch {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::StartsWith;

// `lines` follow the 256 single bytes: the first of them is line 257.
absl::StatusOr<Vocabulary> Parse(const std::string& lines) {
  return Vocabulary::FromText(SingleByteLines() + lines, "v.txt");
}

struct GoodLine {
  std::string line;
  std::string text;
};

class GoodLineTest : public testing::TestWithParam<GoodLine> {};

TEST_P(GoodLineTest, IsRead) {
  for (const char* const end : {"", "\n", "\r\n"}) {
    const absl::StatusOr<Vocabulary> vocabulary = Parse(GetParam().line + end);
    ASSERT_TRUE(vocabulary.ok()) << vocabulary.status();
    EXPECT_EQ(vocabulary->TokenBytes(300), GetParam().text);
    EXPECT_EQ(vocabulary->size(), 301);
  }
}

INSTANTIATE_TEST_SUITE_P(
    Vocabulary, GoodLineTest,
    testing::Values(GoodLine{R"(300 'it' 2)", "it"}, GoodLine{R"(300 "it's" 4)", "it's"},
                    GoodLine{R"(300 'say "' 5)", "say \""}, GoodLine{R"(300 ' a b ' 5)", " a b "},
                    GoodLine{R"(300 '    ' 4)", "    "}, GoodLine{R"(300 '\'\"\\' 3)", "'\"\\"},
                    GoodLine{R"(300 '\a\b\f\n\r\t\v' 7)", "\a\b\f\n\r\t\v"}, GoodLine{"300 'a\tb' 3", "a\tb"},
                    GoodLine{R"(300 '\x41\xe9' 3)", "A\xc3\xa9"}, GoodLine{R"(300 b'\x41\xe9' 2)", "A\xe9"},
                    GoodLine{R"(300 b"it's" 4)", "it's"}, GoodLine{R"(300 b'\'\"\\\n' 4)", "'\"\\\n"},
                    GoodLine{R"(300 '\u00e9\u20ac' 5)", "\xc3\xa9\xe2\x82\xac"},
                    GoodLine{R"(300 '\U0001f426' 4)", "\xf0\x9f\x90\xa6"},
                    GoodLine{"300 'gr\xc3\xbc\xc3\x9f\xf0\x9f\x90\xa6' 10", "gr\xc3\xbc\xc3\x9f\xf0\x9f\x90\xa6"},
                    GoodLine{R"(300 '\1\12\101\1234' 5)", "\1\nAS4"},
                    GoodLine{R"(300 '\08' 2)", std::string("\0"
                                                           "8",
                                                           2)},
                    GoodLine{R"(300 '\777' 2)", "\xc7\xbf"},
                    GoodLine{R"(300 b'\3770' 2)",
                             "\xff"
                             "0"},
                    GoodLine{"300 '" + std::string(128, '=') + "' 128", std::string(128, '=')}));

struct BadLine {
  std::string line;
  std::string error;
};

class BadLineTest : public testing::TestWithParam<BadLine> {};

TEST_P(BadLineTest, IsAnErrorThatNamesFileLineAndReason) {
  const absl::Status status = Parse("299 'fine' 4\n" + GetParam().line + "\n301 'fine, too' 9\n").status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(status.message(), "v.txt:258: " + GetParam().error);
}

INSTANTIATE_TEST_SUITE_P(
    Fields, BadLineTest,
    testing::Values(BadLine{"", "expected `id literal length`"}, BadLine{"300", "expected `id literal length`"},
                    BadLine{"300 'a'", "expected `id literal length`"},
                    BadLine{"x 'ab' 2", R"(id "x" is not a number in 1..65535)"},
                    BadLine{" 300 'ab' 2", R"(id "" is not a number in 1..65535)"},
                    BadLine{"+300 'ab' 2", R"(id "+300" is not a number in 1..65535)"},
                    BadLine{"0 'ab' 2", R"(id "0" is not a number in 1..65535)"},
                    BadLine{"-1 'ab' 2", R"(id "-1" is not a number in 1..65535)"},
                    BadLine{"65536 'ab' 2", R"(id "65536" is not a number in 1..65535)"},
                    BadLine{"99999999999999999999 'ab' 2", R"(id "99999999999999999999" is not a number in 1..65535)"},
                    BadLine{"300 'ab' 2 ", R"(length "" is not a number)"},
                    BadLine{"300 'ab' -2", R"(length "-2" is not a number)"},
                    BadLine{"300 'ab' 2x", R"(length "2x" is not a number)"},
                    BadLine{"300 'ab' 3", "length is 3, the text has 2 bytes"},
                    BadLine{"300 '\xc3\xa9' 1", "length is 1, the text has 2 bytes"},
                    BadLine{"300 '' 0", "the text is empty"}, BadLine{"300 b'' 0", "the text is empty"},
                    BadLine{"300 '" + std::string(129, '=') + "' 129", "the text has 129 bytes, the limit is 128"},
                    BadLine{"299 'ab' 2", R"(id 299 has the text "fine" already)"},
                    BadLine{"300 'fine' 4", R"(the text "fine" belongs to token 299 already)"},
                    BadLine{"300 b'\\n' 1", R"(the text "\n" belongs to token 11 already)"}));

INSTANTIATE_TEST_SUITE_P(Literals, BadLineTest,
                         testing::Values(BadLine{"300 ab 2", R"(the literal does not begin with ', ", b' or b")"},
                                         BadLine{"300  'ab' 2", R"(the literal does not begin with ', ", b' or b")"},
                                         BadLine{"300 r'ab' 2", R"(the literal does not begin with ', ", b' or b")"},
                                         BadLine{"300 b 1", R"(the literal does not begin with ', ", b' or b")"},
                                         BadLine{"300 'ab 2", "the literal has no closing quote"},
                                         BadLine{R"(300 'ab" 2)", "the literal has no closing quote"},
                                         BadLine{R"(300 'ab\' 2)", "the literal has no closing quote"},
                                         BadLine{R"(300 '\ 2)", "the literal has no closing quote"},
                                         BadLine{"300 'a'b' 2", R"(text after the closing quote: "b\'")"},
                                         BadLine{"300 '''a''' 1", R"(text after the closing quote: "\'a\'\'\'")"},
                                         BadLine{R"(300 '\q' 1)", R"(unknown escape "\\q")"},
                                         BadLine{R"(300 '\8' 1)", R"(unknown escape "\\8")"},
                                         BadLine{R"(300 '\N{DASH}' 1)", R"(unknown escape "\\N")"},
                                         BadLine{R"(300 b'\u00e9' 2)", R"(unknown escape "\\u" in a bytes literal)"},
                                         BadLine{R"(300 b'\U000000e9' 2)",
                                                 R"(unknown escape "\\U" in a bytes literal)"},
                                         BadLine{R"(300 '\x4' 1)", R"(escape "\\x4\'" needs 2 hex digits)"},
                                         BadLine{R"(300 '\x-1' 1)", R"(escape "\\x-1" needs 2 hex digits)"},
                                         BadLine{R"(300 '\u20a' 3)", R"(escape "\\u20a\'" needs 4 hex digits)"},
                                         BadLine{R"(300 '\U0001f42' 4)", R"(escape "\\U0001f42\'" needs 8 hex digits)"},
                                         BadLine{R"(300 '\u' 4)", R"(escape "\\u\'" needs 4 hex digits)"},
                                         BadLine{R"(300 '\ud800' 3)", R"(escape "\\ud800" is not a character)"},
                                         BadLine{R"(300 '\U00110000' 4)", R"(escape "\\U00110000" is not a character)"},
                                         BadLine{R"(300 '\Uffffffff' 4)", R"(escape "\\Uffffffff" is not a character)"},
                                         BadLine{R"(300 b'\400' 1)", R"(escape "\\400" is more than a byte)"},
                                         BadLine{"300 b'\xc3\xa9' 2", "byte 0xc3 is not escaped in a bytes literal"},
                                         BadLine{"300 '\xc3' 1", "invalid UTF-8 at byte 0xc3"},
                                         BadLine{"300 '\xa9' 1", "invalid UTF-8 at byte 0xa9"},
                                         BadLine{"300 '\xed\xa0\x80' 3", "invalid UTF-8 at byte 0xed"},
                                         BadLine{"300 '\x01' 1", "control character 0x01 is not escaped"},
                                         BadLine{"300 'a\rb' 3", "control character 0x0d is not escaped"}));

TEST(VocabularyTest, ErrorsShowLittleOfALongLine) {
  const absl::Status status = Parse(std::string(1 << 20, 'x') + " 'a' 1").status();
  EXPECT_LT(status.message().size(), 150);
}

TEST(VocabularyTest, TakesIdsInAnyOrderAndWithGaps) {
  const absl::StatusOr<Vocabulary> vocabulary = Vocabulary::FromText("65535 'zz' 2\n" + SingleByteLines(), "v.txt");
  ASSERT_TRUE(vocabulary.ok()) << vocabulary.status();
  EXPECT_EQ(vocabulary->size(), 65536);
  EXPECT_EQ(vocabulary->TokenBytes(65535), "zz");
  EXPECT_EQ(vocabulary->TokenBytes('a' + 1), "a");
  for (const int32_t id : {-1, 0, 257, 65534, 65536}) EXPECT_EQ(vocabulary->TokenBytes(id), "") << id;
}

TEST(VocabularyTest, NeedsEverySingleByte) {
  const absl::Status status = Vocabulary::FromText("1 b'\\x00' 1\n66 'A' 1\n257 'AA' 2\n", "v.txt").status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(status.message(),
            "v.txt: no token for the single byte 0x01; a vocabulary needs all 256, it has 2 (is the file cut off?)");
  EXPECT_EQ(Vocabulary::FromText("", "v.txt").status().message(), "v.txt: the vocabulary is empty");
}

TEST(VocabularyTest, BytesAreTheirValuePlusOne) {
  const Vocabulary vocabulary = Vocabulary::Bytes();
  EXPECT_EQ(vocabulary.size(), 257);
  EXPECT_EQ(vocabulary.TokenBytes(1), std::string(1, '\0'));
  EXPECT_EQ(vocabulary.TokenBytes(256), "\xff");
}

class VocabularyFileTest : public testing::Test {
 protected:
  void SetUp() override { std::filesystem::create_directories(folder_); }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  std::string Write(const std::string& name, const std::string& text) {
    std::string path = folder_ / name;
    std::ofstream(path, std::ios::binary) << text;
    return path;
  }

  const std::filesystem::path folder_ = std::filesystem::path(testing::TempDir()) / "vocabulary_test";
};

TEST_F(VocabularyFileTest, IsRead) {
  const absl::StatusOr<Vocabulary> vocabulary =
      Vocabulary::FromFile(Write("v.txt", SingleByteLines() + "257 'it' 2\n"));
  ASSERT_TRUE(vocabulary.ok()) << vocabulary.status();
  EXPECT_EQ(vocabulary->TokenBytes(257), "it");
}

TEST_F(VocabularyFileTest, ErrorsNameThePath) {
  const std::string path = Write("v.txt", SingleByteLines() + "257 'it' 3\n");
  EXPECT_EQ(Vocabulary::FromFile(path).status().message(), path + ":257: length is 3, the text has 2 bytes");

  const absl::Status missing = Vocabulary::FromFile(path + ".gone").status();
  EXPECT_EQ(missing.code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(missing.message(), path + ".gone: No such file or directory");

  EXPECT_THAT(std::string(Vocabulary::FromFile(folder_).status().message()),
              AllOf(StartsWith(folder_.string()), HasSubstr("Is a directory")));
}

TEST_F(VocabularyFileTest, IsFoundInsideOrBesideTheModel) {
  const std::string model_folder = folder_;
  const std::string model_file = folder_ / "model.pth";
  const absl::Status missing = FindVocabulary("", model_file).status();
  EXPECT_EQ(missing.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(missing.message()),
              AllOf(HasSubstr(model_file), HasSubstr("vocab is not set"), HasSubstr("pip download rwkv")));

  const std::string path = Write("rwkv_vocab_v20230424.txt", "any");
  EXPECT_EQ(FindVocabulary("", model_file).value(), path);
  EXPECT_EQ(FindVocabulary("", model_folder).value(), path);
  EXPECT_EQ(FindVocabulary("other.txt", model_file).value(), "other.txt");
}

}  // namespace
}  // namespace goldfinch
