#include "tokenizer/byte_trie.h"

#include <map>
#include <random>
#include <string>

#include "gtest/gtest.h"

namespace goldfinch {
namespace {

std::vector<ByteTrie::Entry> Entries(const std::map<std::string, uint16_t>& texts) {
  std::vector<ByteTrie::Entry> entries;
  entries.reserve(texts.size());
  for (const auto& [text, id] : texts) entries.push_back({text, id});
  return entries;
}

// (id, length); by trying every length.
std::pair<int, int> NaiveLongest(const std::map<std::string, uint16_t>& texts, std::string_view text) {
  for (size_t size = text.size(); size > 0; --size) {
    if (const auto it = texts.find(std::string(text.substr(0, size))); it != texts.end()) return {it->second, size};
  }
  return {0, 0};
}

std::pair<int, int> Longest(const ByteTrie& trie, std::string_view text) {
  const ByteTrie::Match match = trie.Longest(text.data(), text.data() + text.size());
  return {match.id, match.end - text.data()};
}

TEST(ByteTrieTest, TakesTheLongestAndFallsBack) {
  const ByteTrie trie(Entries({{"a", 1}, {"ab", 2}, {"abcde", 3}, {"\xff", 65535}, {std::string(1, '\0'), 7}}));
  const std::pair<int, int> none = {0, 0};
  EXPECT_EQ(Longest(trie, "abcdef"), std::pair(3, 5));
  EXPECT_EQ(Longest(trie, "abcd"), std::pair(2, 2));
  EXPECT_EQ(Longest(trie, "abc"), std::pair(2, 2));
  EXPECT_EQ(Longest(trie, "aab"), std::pair(1, 1));
  EXPECT_EQ(Longest(trie, "b"), none);
  EXPECT_EQ(Longest(trie, "\xff"), std::pair(65535, 1));
  EXPECT_EQ(Longest(trie, std::string_view("\0a", 2)), std::pair(7, 1));
}

TEST(ByteTrieTest, WithoutTextsNothingMatches) { EXPECT_EQ(Longest(ByteTrie({}), "a"), std::pair(0, 0)); }

// Many texts over few bytes make deep tries, over many bytes wide ones: both fill and close blocks of cells.
TEST(ByteTrieTest, AgreesWithTryingEveryLength) {
  std::mt19937 random(1);
  for (const int alphabet : {1, 2, 3, 17, 256}) {
    for (const int count : {1, 40, 5000}) {
      std::map<std::string, uint16_t> texts;
      const auto random_text = [&](size_t size) {
        std::string text;
        for (size_t i = 0; i < size; ++i) text.push_back(static_cast<char>(255 - random() % alphabet));
        return text;
      };
      for (int i = 0; i < count; ++i) texts.emplace(random_text(1 + random() % 20), i + 1);
      const ByteTrie trie(Entries(texts));
      for (const auto& [text, id] : texts) {
        ASSERT_EQ(Longest(trie, text), std::pair(int{id}, static_cast<int>(text.size())));
      }
      for (int i = 0; i < 2000; ++i) {
        const std::string text = random_text(1 + random() % 30);
        ASSERT_EQ(Longest(trie, text), NaiveLongest(texts, text)) << alphabet << " " << testing::PrintToString(text);
      }
    }
  }
}

TEST(ByteTrieDeathTest, RefusesEmptyAndEqualTexts) {
  EXPECT_DEATH(ByteTrie({{"", 1}}), "empty or occurs twice");
  EXPECT_DEATH(ByteTrie({{"ab", 1}, {"ab", 2}}), "empty or occurs twice");
}

}  // namespace
}  // namespace goldfinch
