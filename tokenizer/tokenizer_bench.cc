// Rates of the tokenizer on one thread. With the World vocabulary if `./dev test` has fetched it, and the text of the
// King James Bible if the program `bible` is installed (Debian's bible-kjv); otherwise the labels say what stands in
// for them.
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <iterator>
#include <memory>
#include <random>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "benchmark/benchmark.h"
#include "tokenizer/test_vocabulary.h"
#include "tokenizer/text_stream.h"
#include "tokenizer/tokenizer.h"

namespace goldfinch {
namespace {

constexpr std::string_view kWords[] = {
    "the",  "of",   "and",   "to",      "in",       "that",   "was",     "his",        "he",         "it",
    "with", "is",   "for",   "as",      "had",      "you",    "not",     "be",         "her",        "on",
    "at",   "by",   "which", "have",    "or",       "from",   "this",    "him",        "but",        "all",
    "she",  "they", "were",  "my",      "are",      "me",     "one",     "their",      "so",         "an",
    "said", "them", "we",    "who",     "would",    "been",   "will",    "no",         "when",       "there",
    "if",   "more", "out",   "up",      "into",     "do",     "any",     "your",       "what",       "has",
    "man",  "time", "great", "house",   "morning",  "window", "river",   "garden",     "carried",    "question",
    "kept", "long", "light", "country", "possible", "behind", "evening", "themselves", "remembered", "circumstances"};

struct Source {
  std::string text;
  std::string label;
};

// Words with the frequencies of Zipf's law, in sentences.
std::string MadeText(size_t bytes) {
  std::vector<double> weights;
  for (size_t i = 0; i < std::size(kWords); ++i) weights.push_back(1.0 / static_cast<double>(i + 1));
  std::discrete_distribution<size_t> word(weights.begin(), weights.end());
  std::mt19937 random(1);
  std::string text = "It was";
  while (text.size() < bytes) text.append(random() % 12 == 0 ? ", " : " ").append(kWords[word(random)]);
  return text;
}

const Source& English() {
  static const Source* const source = [] {
    std::string text;
    if (FILE* bible = popen("bible -f gen1:1-rev22:21 2>/dev/null </dev/null", "r")) {
      char line[4096];  // "Ge1:1 In the beginning ...": the place is not part of the text.
      while (fgets(line, sizeof(line), bible) != nullptr) {
        const char* const space = std::strchr(line, ' ');
        text.append(space != nullptr ? space + 1 : line);
      }
      pclose(bible);
    }
    if (text.size() > 1000000) return new Source{std::move(text), "King James Bible"};
    return new Source{MadeText(4000000), "made text"};
  }();
  return *source;
}

// Stands in for the World vocabulary: the words, with a space before and without.
std::string MadeVocabulary() {
  std::string lines = SingleByteLines();
  int id = 257;
  for (const std::string_view word : kWords) {
    absl::StrAppendFormat(&lines, "%d '%s' %d\n", id++, word, word.size());
    absl::StrAppendFormat(&lines, "%d ' %s' %d\n", id++, word, word.size() + 1);
  }
  return lines;
}

struct Loaded {
  std::unique_ptr<Tokenizer> tokenizer;
  std::string label;
};

Loaded Load() {
  auto world = Tokenizer::FromFile(kWorldVocabularyPath);
  if (world.ok()) return {*std::move(world), "World vocabulary"};
  return {Tokenizer::FromText(MadeVocabulary(), "made").value(), "made vocabulary"};
}

const Loaded& TheTokenizer() {
  static const Loaded* const loaded = new Loaded(Load());
  return *loaded;
}

void LoadVocabulary(benchmark::State& state) {
  for (auto _ : state) benchmark::DoNotOptimize(Load());
  state.SetLabel(TheTokenizer().label);
}
BENCHMARK(LoadVocabulary)->Unit(benchmark::kMillisecond);

void RunEncode(benchmark::State& state, const Tokenizer& tokenizer, const Source& source,
               const std::string& vocabulary) {
  std::vector<int32_t> ids;
  for (auto _ : state) {
    ids.clear();
    tokenizer.Encode(source.text, &ids);
    benchmark::DoNotOptimize(ids.data());
  }
  state.SetBytesProcessed(state.iterations() * static_cast<int64_t>(source.text.size()));
  state.SetLabel(absl::StrCat(source.label, ", ", vocabulary, "; aim 100 MB/s"));
  state.counters["bytes_per_token"] = static_cast<double>(source.text.size()) / static_cast<double>(ids.size());
}

void EncodeEnglish(benchmark::State& state) {
  RunEncode(state, *TheTokenizer().tokenizer, English(), TheTokenizer().label);
}
BENCHMARK(EncodeEnglish);

void EncodeRandomBytes(benchmark::State& state) {
  std::mt19937 random(1);
  Source source = {"", "random bytes"};
  while (source.text.size() < 1000000) source.text.push_back(static_cast<char>(random()));
  RunEncode(state, *TheTokenizer().tokenizer, source, TheTokenizer().label);
}
BENCHMARK(EncodeRandomBytes);

// Every match looks 127 bytes ahead and takes one.
void EncodeWorstCase(benchmark::State& state) {
  const auto tokenizer =
      Tokenizer::FromText(absl::StrCat(SingleByteLines(), "257 '", std::string(127, 'a'), "b' 128\n"), "made").value();
  RunEncode(state, *tokenizer, {std::string(1000000, 'a'), "one letter"}, "a token of that letter that never ends");
}
BENCHMARK(EncodeWorstCase);

void EncodeBytes(benchmark::State& state) { RunEncode(state, *Tokenizer::Bytes(), English(), "byte vocabulary"); }
BENCHMARK(EncodeBytes);

void DecodeEnglish(benchmark::State& state) {
  const Tokenizer& tokenizer = *TheTokenizer().tokenizer;
  std::vector<int32_t> ids;
  tokenizer.Encode(English().text, &ids);
  std::string text;
  for (auto _ : state) {
    text.clear();
    benchmark::DoNotOptimize(tokenizer.Decode(ids, &text).ok());
  }
  state.SetBytesProcessed(state.iterations() * static_cast<int64_t>(text.size()));
}
BENCHMARK(DecodeEnglish);

// As a server streams: one call a token, with stop strings.
void StreamEnglish(benchmark::State& state) {
  const Tokenizer& tokenizer = *TheTokenizer().tokenizer;
  std::vector<int32_t> ids;
  tokenizer.Encode(English().text, &ids);
  const std::vector<std::string> stop_strings = {"\n\nUser:", "\n\nAssistant:", "the end of all that"};
  std::string text;
  for (auto _ : state) {
    text.clear();
    TextStream stream = TextStream::Create(stop_strings).value();
    for (const int32_t id : ids) stream.Append(tokenizer.TokenBytes(id), &text);
    stream.Finish(&text);
  }
  state.SetBytesProcessed(state.iterations() * static_cast<int64_t>(English().text.size()));
  state.SetItemsProcessed(state.iterations() * static_cast<int64_t>(ids.size()));  // Tokens.
}
BENCHMARK(StreamEnglish);

}  // namespace
}  // namespace goldfinch

BENCHMARK_MAIN();
