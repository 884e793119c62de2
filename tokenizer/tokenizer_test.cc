#include "tokenizer/tokenizer.h"

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <random>
#include <string>
#include <string_view>
#include <unordered_set>
#include <utility>
#include <vector>

#include "absl/strings/str_format.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tokenizer/test_vocabulary.h"

namespace goldfinch {
namespace {

using testing::ElementsAre;

using Ids = std::vector<int32_t>;

Ids Encode(const Tokenizer& tokenizer, std::string_view text) {
  Ids ids;
  tokenizer.Encode(text, &ids);
  return ids;
}

std::string Decode(const Tokenizer& tokenizer, const Ids& ids) {
  std::string text;
  const absl::Status status = tokenizer.Decode(ids, &text);
  EXPECT_TRUE(status.ok()) << status;
  return text;
}

std::unique_ptr<Tokenizer> FromLines(const std::string& lines) {
  absl::StatusOr<std::unique_ptr<Tokenizer>> tokenizer = Tokenizer::FromText(SingleByteLines() + lines, "v.txt");
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
  return *std::move(tokenizer);
}

TEST(TokenizerTest, EncodesTheLongestTokenFirst) {
  const auto tokenizer = FromLines("300 'ab' 2\n301 'abcde' 5\n302 'bc' 2\n");
  EXPECT_THAT(Encode(*tokenizer, "abcde"), ElementsAre(301));
  EXPECT_THAT(Encode(*tokenizer, "abcd"), ElementsAre(300, 'c' + 1, 'd' + 1));
  EXPECT_THAT(Encode(*tokenizer, "bcab"), ElementsAre(302, 300));
  EXPECT_THAT(Encode(*tokenizer, ""), ElementsAre());
  EXPECT_THAT(Encode(*tokenizer, std::string_view("\0\xff", 2)), ElementsAre(1, 256));
}

TEST(TokenizerTest, EncodeAndDecodeAppend) {
  const auto tokenizer = FromLines("300 'ab' 2\n");
  Ids ids = {7};
  tokenizer->Encode("ab", &ids);
  EXPECT_THAT(ids, ElementsAre(7, 300));
  std::string text = "> ";
  ASSERT_TRUE(tokenizer->Decode({300, 0, 'c' + 1, 0}, &text).ok());
  EXPECT_EQ(text, "> abc");
}

TEST(TokenizerTest, DecodeNamesTheFirstIdWithoutAToken) {
  const auto tokenizer = FromLines("300 'ab' 2\n");
  for (const int32_t id : {-1, 257, 299, 301, 65536, INT32_MAX, INT32_MIN}) {
    std::string text = "kept";
    const absl::Status status = tokenizer->Decode({300, id, -7}, &text);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(status.message(),
              absl::StrFormat("token id %d at position 1 is not in the vocabulary (ids 0 to 300)", id));
    EXPECT_EQ(text, "kept");
    EXPECT_EQ(tokenizer->TokenBytes(id), "");
  }
}

TEST(TokenizerTest, BytesAreTheirValuePlusOne) {
  const auto tokenizer = Tokenizer::Bytes();
  EXPECT_EQ(tokenizer->vocab_size(), 257);
  EXPECT_THAT(Encode(*tokenizer, std::string_view("\0A\xff", 3)), ElementsAre(1, 'A' + 1, 256));
  EXPECT_EQ(Decode(*tokenizer, {1, 'A' + 1, 256}), std::string_view("\0A\xff", 3));
}

TEST(TokenizerTest, ErrorsOfTheVocabularyAreNamed) {
  EXPECT_EQ(Tokenizer::FromText("1 'a' 2\n", "v.txt").status().message(), "v.txt:1: length is 2, the text has 1 bytes");
  EXPECT_EQ(Tokenizer::FromFile("/no/such/file").status().code(), absl::StatusCode::kNotFound);
}

// Texts that come back unchanged, and the ids that trying every length gives.
void ExpectExact(const Tokenizer& tokenizer, const NaiveEncoder& naive, const std::string& text) {
  const Ids ids = Encode(tokenizer, text);
  ASSERT_EQ(ids, naive.Encode(text)) << testing::PrintToString(text);
  ASSERT_EQ(Decode(tokenizer, ids), text);
  ASSERT_FALSE(std::count(ids.begin(), ids.end(), 0));
}

std::string RandomBytes(size_t size, std::mt19937* random) {
  std::string text;
  for (size_t i = 0; i < size; ++i) text.push_back(static_cast<char>((*random)()));
  return text;
}

// Whole tokens and beginnings of tokens: matches run long and fall back far.
std::string RandomPieces(const Tokenizer& tokenizer, int pieces, std::mt19937* random) {
  std::string text;
  for (int i = 0; i < pieces; ++i) {
    const auto id = static_cast<int32_t>((*random)() % tokenizer.vocab_size());
    const std::string_view piece = tokenizer.TokenBytes(id);
    text.append(piece.substr(0, (*random)() % 2 == 0 ? piece.size() : (*random)() % (piece.size() + 1)));
  }
  return text;
}

TEST(TokenizerTest, AgreesWithTryingEveryLength) {
  std::mt19937 random(1);
  for (int repeat = 0; repeat < 20; ++repeat) {
    std::string lines;
    std::unordered_set<std::string> seen;
    for (int id = 257; id < 600; ++id) {
      std::string text;
      for (size_t size = 2 + random() % 12; text.size() < size;) text.push_back("ab\xc3"[random() % 3]);
      if (seen.insert(text).second) {
        lines += absl::StrFormat("%d b\"", id);
        for (const char c : text) lines += absl::StrFormat("\\%o", static_cast<uint8_t>(c));
        lines += absl::StrFormat("\" %d\n", text.size());
      }
    }
    const auto tokenizer = FromLines(lines);
    const NaiveEncoder naive(*tokenizer);
    for (int i = 0; i < 50; ++i) {
      ASSERT_NO_FATAL_FAILURE(ExpectExact(*tokenizer, naive, RandomPieces(*tokenizer, 40, &random)));
    }
    ASSERT_NO_FATAL_FAILURE(ExpectExact(*tokenizer, naive, RandomBytes(5000, &random)));
  }
}

class WorldTest : public testing::Test {
 protected:
  void SetUp() override {
    if (!std::filesystem::exists(kWorldVocabularyPath)) {
      GTEST_SKIP() << "no " << kWorldVocabularyPath << ": ./dev test fetches it";
    }
    absl::StatusOr<std::unique_ptr<Tokenizer>> tokenizer = Tokenizer::FromFile(kWorldVocabularyPath);
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
    tokenizer_ = *std::move(tokenizer);
  }

  std::unique_ptr<Tokenizer> tokenizer_;
};

TEST_F(WorldTest, EncodesAsPublished) {
  const std::string text = "The Eiffel tower is in the city of";
  const Ids ids = {6699, 304, 25740, 109, 39990, 4600, 4596, 22590, 30449, 4706};
  EXPECT_EQ(Encode(*tokenizer_, text), ids);
  EXPECT_EQ(Decode(*tokenizer_, ids), text);
  EXPECT_THAT(Encode(*tokenizer_, "\n\n"), ElementsAre(261));
}

TEST_F(WorldTest, EveryTokenIsItsOwnText) {
  EXPECT_EQ(tokenizer_->vocab_size(), 65530);
  EXPECT_EQ(tokenizer_->TokenBytes(0), "");
  int with_paragraph_end = 0;
  for (int32_t id = 1; id < tokenizer_->vocab_size(); ++id) {
    const std::string_view bytes = tokenizer_->TokenBytes(id);
    ASSERT_FALSE(bytes.empty()) << id;
    ASSERT_THAT(Encode(*tokenizer_, bytes), ElementsAre(id));
    with_paragraph_end += bytes.find("\n\n") != std::string_view::npos;
  }
  EXPECT_EQ(with_paragraph_end, 34);  // Why stop strings are not ids: 261 is one of many.
  for (int byte = 0; byte < 256; ++byte) {
    EXPECT_EQ(tokenizer_->TokenBytes(byte + 1), std::string(1, static_cast<char>(byte)));
  }
}

TEST_F(WorldTest, AgreesWithTryingEveryLength) {
  const NaiveEncoder naive(*tokenizer_);
  std::mt19937 random(1);
  for (int i = 0; i < 100; ++i) {
    ASSERT_NO_FATAL_FAILURE(ExpectExact(*tokenizer_, naive, RandomPieces(*tokenizer_, 100, &random)));
  }
  ASSERT_NO_FATAL_FAILURE(ExpectExact(*tokenizer_, naive, RandomBytes(20000, &random)));
  ASSERT_NO_FATAL_FAILURE(ExpectExact(*tokenizer_, naive, std::string(1000, ' ') + std::string(1000, '\n')));
}

}  // namespace
}  // namespace goldfinch
