// What the tree of segments takes of the coordinator's thread: the match of a prompt, and a round of adding, storing
// and evicting among many contexts.
#include <cstdint>
#include <cstdlib>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/types/span.h"
#include "benchmark/benchmark.h"
#include "coordinator/contexts/segment_tree.h"

namespace goldfinch {
namespace {

using Text = std::vector<int32_t>;

constexpr SegmentBytes kBytes = {258, 9'000'000, true};

Text RandomText(int64_t tokens, uint32_t seed, int32_t vocab = 65536) {
  std::mt19937 random(seed);
  Text text(static_cast<size_t>(tokens));
  for (int32_t& id : text) id = static_cast<int32_t>(random() % static_cast<uint32_t>(vocab));
  return text;
}

class Tree {
 public:
  explicit Tree(int64_t bytes_max) {
    TierOptions options;
    options.bytes_max = bytes_max;
    options.name = "the memory";
    shelf_ = tree.OpenTier(options);
  }
  // Keeps the text in segments of so many tokens, from a text that is held on.
  void Keep(absl::Span<const int32_t> text, int64_t segment_tokens) {
    SegmentDrops drops;
    std::vector<uint64_t> held;
    while (!text.empty()) {
      const auto ids = text.subspan(0, static_cast<size_t>(segment_tokens));
      text.remove_prefix(ids.size());
      const auto added = tree.Add("", held.empty() ? 0 : held.back(), ids, kBytes, 1e-5 * ids.size(), ++now_);
      if (!added.ok()) std::abort();
      held.push_back(added->number);
      const auto saving = tree.Store(added->number, shelf_, now_, &drops);
      if (!saving.ok()) std::abort();
      tree.Arrived(added->number, shelf_, saving->contents, now_, &drops);
    }
    for (const uint64_t number : held) tree.Release(number, &drops);
    benchmark::DoNotOptimize(drops);
  }
  ContextChoice Find(const Text& prompt) const {
    const ContextMatch match = tree.Match("", prompt);
    return tree.Choose(match, shelf_, [&](int64_t begin) { return 1e-5 * static_cast<double>(match.tokens - begin); });
  }

  SegmentTree tree{ContextIdentity{}};

 private:
  int shelf_ = 0;
  double now_ = 0;
};

constexpr int64_t kAll = int64_t{1} << 60;

// Arguments: ids that need four bytes or not, tokens of a segment.
void BM_MatchMillion(benchmark::State& state) {
  Tree tree(kAll);
  Text text = RandomText(1 << 20, 1, state.range(0) != 0 ? 200'000 : 65'536);
  tree.Keep(text, state.range(1));
  text.push_back(1);
  for (auto _ : state) {
    const ContextChoice choice = tree.Find(text);
    if (choice.position != 1 << 20) std::abort();
  }
  state.counters["index_bytes_per_token"] = static_cast<double>(tree.tree.index_bytes()) / (1 << 20);
}
BENCHMARK(BM_MatchMillion)
    ->Args({0, 80'000})
    ->Args({1, 80'000})
    ->Args({0, 256})  // as long as a chain may be
    ->Unit(benchmark::kMicrosecond);

// A thousand texts part from one of a million tokens, all at other places: what a client who means harm would send.
void BM_MatchMillionAmongForks(benchmark::State& state) {
  Tree tree(kAll);
  Text text = RandomText(1 << 20, 1);
  for (int64_t end = 1000; end < 1 << 20; end += 1000) {
    Text fork(text.begin(), text.begin() + end);
    fork.push_back(text[static_cast<size_t>(end)] ^ 1);
    tree.Keep(fork, 1 << 20);
  }
  for (auto _ : state) {
    const ContextMatch match = tree.tree.Match("", text);
    if (match.matched < 1'000'000) std::abort();
  }
}
BENCHMARK(BM_MatchMillionAmongForks)->Unit(benchmark::kMicrosecond);

// A prompt of 2,000 tokens among 10,000 contexts that share 1,000 tokens of it.
void BM_MatchAmongContexts(benchmark::State& state) {
  Tree tree(kAll);
  const Text common = RandomText(1000, 1);
  Text last;
  for (uint32_t i = 0; i < 10'000; ++i) {
    last = common;
    const Text own = RandomText(1000, 2 + i);
    last.insert(last.end(), own.begin(), own.end());
    tree.Keep(last, 1000);
  }
  last.push_back(1);
  for (auto _ : state) {
    if (tree.Find(last).position != 2000) std::abort();
  }
  state.counters["segments"] = static_cast<double>(tree.tree.segments());
}
BENCHMARK(BM_MatchAmongContexts)->Unit(benchmark::kMicrosecond);

// Adds and stores a context of 2,000 tokens in a full tier of 10,000, from which another one goes.
void BM_KeepAndEvict(benchmark::State& state) {
  const int64_t one = 2000 * kBytes.per_token + kBytes.snapshot;
  Tree tree(10'000 * one);
  uint32_t seed = 0;
  while (seed < 10'000) tree.Keep(RandomText(2000, ++seed), 2000);
  std::vector<Text> texts(1000);
  for (Text& text : texts) text = RandomText(2000, ++seed);
  size_t next = 0;
  for (auto _ : state) {
    texts[next][0] = static_cast<int32_t>(++seed);
    tree.Keep(texts[next], 2000);
    next = (next + 1) % texts.size();
  }
  if (tree.tree.segments() != 10'000) std::abort();
  state.counters["evictions"] = static_cast<double>(tree.tree.counters().evictions);
}
BENCHMARK(BM_KeepAndEvict)->Unit(benchmark::kMicrosecond);

// 10,000 contexts that are found on a disk at the start, and named.
void BM_Adopt(benchmark::State& state) {
  std::vector<Text> texts(10'000);
  uint32_t seed = 0;
  for (Text& text : texts) text = RandomText(2000, ++seed);
  for (auto _ : state) {
    SegmentTree tree{ContextIdentity{}};
    TierOptions options;
    options.kind = TierKind::kDisk;
    options.bytes_max = kAll;
    const int disk = tree.OpenTier(options);
    SegmentDrops drops;
    int named = 0;
    for (const Text& text : texts) {
      const auto number = tree.Adopt(ContextIdentity{}, "", 0, text, kBytes, disk, kRowsAndSnapshot, 1, 0);
      if (!number.ok()) std::abort();
      tree.Hold(*number, 0);
      if (!tree.Create("", "context-" + std::to_string(++named), *number, {}, 0).ok()) std::abort();
      tree.Release(*number, &drops);
    }
    tree.Tidy(&drops);
    if (tree.segments() != texts.size()) std::abort();
  }
}
BENCHMARK(BM_Adopt)->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace goldfinch
