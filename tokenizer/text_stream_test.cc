#include "tokenizer/text_stream.h"

#include <optional>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "gtest/gtest.h"

namespace goldfinch {
namespace {

const std::string kError = "\xef\xbf\xbd";  // U+FFFD

TextStream Stream(const std::vector<std::string>& stop_strings) { return TextStream::Create(stop_strings).value(); }

// What one call emits.
std::string Append(TextStream* stream, std::string_view bytes) {
  std::string text;
  stream->Append(bytes, &text);
  return text;
}

std::string Finish(TextStream* stream) {
  std::string text;
  stream->Finish(&text);
  return text;
}

// All of `bytes` in one call.
std::string Decode(std::string_view bytes) {
  TextStream stream;
  std::string text = Append(&stream, bytes);
  stream.Finish(&text);
  return text;
}

TEST(TextStreamTest, HoldsACharacterUntilItIsWhole) {
  TextStream stream;
  EXPECT_EQ(Append(&stream, "a\xf0\x9f"), "a");
  EXPECT_EQ(Append(&stream, "\x90"), "");
  EXPECT_EQ(Append(&stream, "\xa6z"), "\xf0\x9f\x90\xa6z");
  EXPECT_EQ(Append(&stream, "\xc3"), "");
  EXPECT_EQ(Finish(&stream), kError);
  EXPECT_EQ(stream.stop(), std::nullopt);
}

TEST(TextStreamTest, ShowsAnErrorAsSoonAsItIsKnown) {
  TextStream stream;
  EXPECT_EQ(Append(&stream, "\xff"), kError);
  EXPECT_EQ(Append(&stream, "\xe2"), "");
  EXPECT_EQ(Append(&stream, "\x82"), "");
  EXPECT_EQ(Append(&stream, "a"), kError + "a");
  EXPECT_EQ(Append(&stream, "\xe2"), "");
  EXPECT_EQ(Append(&stream, "\xe2"), kError);
  EXPECT_EQ(Append(&stream, "\x82\xac"), "\xe2\x82\xac");
}

// Tables 3-8 to 3-11 of the Unicode standard.
TEST(TextStreamTest, ReplacesMaximalSubparts) {
  const auto errors = [](int count) {
    std::string text;
    for (int i = 0; i < count; ++i) text += kError;
    return text;
  };
  EXPECT_EQ(Decode("\xc0\xaf\xe0\x80\xbf\xf0\x81\x82\x41"), errors(8) + "A");
  EXPECT_EQ(Decode("\xed\xa0\x80\xed\xbf\xbf\xed\xaf\x41"), errors(8) + "A");
  EXPECT_EQ(Decode("\xf4\x91\x92\x93\xff\x41\x80\xbf\x42"), errors(5) + "A" + errors(2) + "B");
  EXPECT_EQ(Decode("\xe1\x80\xe2\xf0\x91\x92\xf1\xbf\x41"), errors(4) + "A");
}

TEST(TextStreamTest, StopsAcrossTokensAndSendsOnlyTheTextBefore) {
  TextStream stream = Stream({"\n\nUser:", "END"});
  EXPECT_EQ(Append(&stream, "Hi.\n"), "Hi.");
  EXPECT_EQ(Append(&stream, "there\n\n"), "\nthere");
  EXPECT_EQ(Append(&stream, "Us"), "");
  EXPECT_EQ(stream.stop(), std::nullopt);
  EXPECT_EQ(Append(&stream, "er: more"), "");
  EXPECT_EQ(stream.stop(), 0);
  EXPECT_EQ(Append(&stream, "dropped"), "");
  EXPECT_EQ(Finish(&stream), "");
}

TEST(TextStreamTest, SendsWhatTurnedOutNotToBeAStopString) {
  TextStream stream = Stream({"abcabd"});
  EXPECT_EQ(Append(&stream, "xabcab"), "x");
  EXPECT_EQ(Append(&stream, "c"), "abc");  // "abc" may still begin the stop string.
  EXPECT_EQ(Append(&stream, "ab"), "");
  EXPECT_EQ(Append(&stream, "x"), "abcabx");
  EXPECT_EQ(Append(&stream, "abcab"), "");
  EXPECT_EQ(Finish(&stream), "abcab");
}

TEST(TextStreamTest, TheFirstToBeCompleteStopsAndTheLongestOfThose) {
  const auto stop_of = [](const std::vector<std::string>& stop_strings, std::string_view bytes, std::string* text) {
    TextStream stream = Stream(stop_strings);
    *text = Append(&stream, bytes);
    return stream.stop();
  };
  std::string text;
  EXPECT_EQ(stop_of({"\n\n", "\n"}, "a\n\n", &text), 1);
  EXPECT_EQ(text, "a");
  EXPECT_EQ(stop_of({"abcd", "bc"}, "xabcd", &text), 1);
  EXPECT_EQ(text, "xa");
  EXPECT_EQ(stop_of({"c", "bc", "abc", "zabc"}, "xabcd", &text), 2);
  EXPECT_EQ(text, "x");
  EXPECT_EQ(stop_of({"b", "b"}, "ab", &text), 0);
}

TEST(TextStreamTest, MatchesDecodedText) {
  TextStream stream = Stream({"\xe2\x82\xac", "?" + kError});
  EXPECT_EQ(Append(&stream, "\xe2"), "");
  EXPECT_EQ(Append(&stream, "\x82\xad"), "\xe2\x82\xad");
  EXPECT_EQ(Append(&stream, "5 \xe2\x82"), "5 ");
  EXPECT_EQ(stream.stop(), std::nullopt);
  EXPECT_EQ(Append(&stream, "\xac"), "");
  EXPECT_EQ(stream.stop(), 0);

  stream = Stream({"\xe2\x82\xac", "?" + kError});
  EXPECT_EQ(Append(&stream, "why?\xe2\x82"), "why");
  EXPECT_EQ(Finish(&stream), "");
  EXPECT_EQ(stream.stop(), 1);
}

TEST(TextStreamTest, RefusesStopStringsThatCannotMatch) {
  EXPECT_EQ(TextStream::Create({"a", ""}).status().message(), "stop string 1 is empty");
  EXPECT_EQ(TextStream::Create({"\xe2\x82"}).status().message(), "stop string 0 is not valid UTF-8");
}

TEST(TextStreamTest, RefusesMoreBytesOfStopStringsThanItCanHold) {
  EXPECT_EQ(StopStrings::Create({std::string(StopStrings::kBytesMax, 'a')}).status().message(),
            "stop strings have 16777216 bytes together, the limit is 16777215");
}

// As many stop strings as a request may have, all of them different from their first byte on.
TEST(TextStreamTest, StopStringsTakeAFewBytesOfMemoryForEachOfTheirs) {
  std::vector<std::string> strings;
  for (int i = 0; i < 64; ++i) strings.push_back(std::string(1, static_cast<char>('0' + i)) + std::string(1023, 'x'));
  const auto stops = StopStrings::Create(strings).value();
  EXPECT_LE(stops->bytes(), 20 * 64 * 1024 + 1024);
  // The streams of many samples share them.
  const std::vector<TextStream> samples(64, TextStream(stops));
  EXPECT_EQ(stops.use_count(), 65);
}

struct Stopped {
  std::string text;
  std::optional<size_t> stop;
};

// Looks at every end of the text for every stop string.
Stopped NaiveStop(std::string_view text, const std::vector<std::string>& stop_strings) {
  for (size_t end = 0; end <= text.size(); ++end) {
    std::optional<size_t> stop;
    for (size_t i = 0; i < stop_strings.size(); ++i) {
      if (!text.substr(0, end).ends_with(stop_strings[i])) continue;
      if (!stop || stop_strings[i].size() > stop_strings[*stop].size()) stop = i;
    }
    if (stop) return {std::string(text.substr(0, end - stop_strings[*stop].size())), stop};
  }
  return {std::string(text), std::nullopt};
}

TEST(TextStreamTest, AgreesWithSearchingTheWholeTextHoweverItIsCut) {
  const std::string_view pieces[] = {"a", "b", "\xc3\xa9", "\xe2\x82\xac", "\xe2\x82", "\xff"};
  std::mt19937 random(1);
  const auto random_text = [&](size_t count, int kinds) {
    std::string text;
    for (size_t i = 0; i < count; ++i) text += pieces[random() % kinds];
    return text;
  };
  int stops = 0;
  for (int repeat = 0; repeat < 20000; ++repeat) {
    std::vector<std::string> stop_strings(random() % 4);
    size_t longest = 0;
    for (std::string& stop_string : stop_strings) {
      stop_string = random_text(1 + random() % 6, 4);
      longest = std::max(longest, stop_string.size());
    }
    const std::string made = random_text(random() % 60, 6);
    const std::string_view bytes = made;
    const std::string decoded = Decode(bytes);
    const Stopped expected = NaiveStop(decoded, stop_strings);

    TextStream stream = Stream(stop_strings);
    std::string text;
    for (size_t begin = 0; begin < bytes.size();) {
      const size_t size = 1 + random() % 5;
      const size_t sent = text.size();
      stream.Append(bytes.substr(begin, size), &text);
      begin = std::min(begin + size, bytes.size());
      ASSERT_TRUE(IsValidUtf8(std::string_view(text).substr(sent)));
      // What the bytes so far decode to, less what was sent: at most an unfinished stop string.
      if (!stream.stop()) {
        TextStream plain;
        ASSERT_LE(Append(&plain, bytes.substr(0, begin)).size(), text.size() + longest);
      }
    }
    stream.Finish(&text);
    ASSERT_EQ(text, expected.text) << testing::PrintToString(made) << testing::PrintToString(stop_strings);
    ASSERT_EQ(stream.stop(), expected.stop) << testing::PrintToString(made) << testing::PrintToString(stop_strings);
    stops += expected.stop.has_value();
  }
  EXPECT_GT(stops, 5000);
}

// Rescanning what is held back would take 10^10 steps here.
TEST(TextStreamTest, TimeIsLinearWhenMuchIsHeldBack) {
  TextStream stream = Stream({std::string(10000, 'a') + "b"});
  std::string text;
  for (int i = 0; i < 1000000; ++i) stream.Append("a", &text);
  EXPECT_EQ(text.size(), 1000000 - 10000);
  stream.Append("b", &text);
  EXPECT_EQ(stream.stop(), 0);
  EXPECT_EQ(text.size(), 1000000 - 10000);
}

}  // namespace
}  // namespace goldfinch
