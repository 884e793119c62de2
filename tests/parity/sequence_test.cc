// A sequence has the same logits (on the CPU, bit for bit), whichever of them are asked for and whatever happened on
// the way there: the exact pre-fill rule, several turns, scoring, forks, and what GOLD layers keep.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <optional>
#include <ostream>
#include <random>
#include <string>
#include <vector>

#include "absl/types/span.h"
#include "gtest/gtest.h"
#include "kernels/backend.h"
#include "tests/parity/golden_case.h"
#include "tests/parity/pipeline.h"
#include "tests/parity/test_device.h"

namespace goldfinch {
namespace {

struct SequenceCase {
  std::string golden;
  bool kept = false;  // with room to keep a few sequences at the higher tiers, which they lose to each other

  std::string Name() const { return golden + (kept ? "_kept" : ""); }
};
void PrintTo(const SequenceCase& test_case, std::ostream* out) { *out << test_case.Name(); }

std::vector<SequenceCase> Cases() {
  std::vector<SequenceCase> cases;
  for (const std::string& golden : GoldenNames()) cases.push_back({golden});
  for (const std::string& golden : GoldenNamesWithGold()) cases.push_back({golden, /*kept=*/true});
  return cases;
}

class SequenceTest : public testing::TestWithParam<SequenceCase> {
 public:
  void SetUp() override {
    GOLDFINCH_SKIP_WITHOUT_DEVICE();
    Make(/*kept_bytes=*/0);
    expected = pipeline().AllLogits(golden.tokens, 160);
    if (GetParam().kept) Make(pipeline().stage(0).gold_tiers()->TierBytes(GoldTier::kFull, 200));
  }
  void TearDown() override {
    if (LargestDifference() > 0) std::printf("largest relative difference so far: %.2g\n", LargestDifference());
  }

  void Make(int64_t kept_bytes) {
    whole_.emplace(*GetTestDevice().backend, golden.checkpoint, golden.config, ExactOptions(), std::vector<int>{},
                   kept_bytes);
  }
  Pipeline& pipeline() { return *whole_; }
  // Keys and values that are kept are of the type of activations.
  static bool Exact() {
    const TestDevice& device = GetTestDevice();
    return device.exact && (!GetParam().kept || device.backend->activation_dtype() == DType::kF32);
  }
  int64_t tokens() const { return static_cast<int64_t>(golden.tokens.size()); }
  absl::Span<const int32_t> Ids(int64_t begin, int64_t end) const {
    return absl::MakeConstSpan(golden.tokens).subspan(begin, end - begin);
  }
  // Logits of positions [begin, end).
  std::vector<float> Expected(int64_t begin, int64_t end) const {
    const int64_t vocab = whole_->vocab();
    return {expected.begin() + begin * vocab, expected.begin() + end * vocab};
  }
  // Runs positions [begin, end) and compares the last `logit_rows` of them.
  void Run(int slot, int64_t begin, int64_t end, int64_t logit_rows) {
    ASSERT_EQ(pipeline().stage(0).position(slot), begin);
    ASSERT_TRUE(Same(pipeline().Forward({slot, Ids(begin, end), logit_rows}), Expected(end - logit_rows, end), Exact()))
        << "positions " << begin << " to " << end << ", logits of the last " << logit_rows;
  }

  const GoldenCase golden = ReadGoldenCase(GetParam().golden);
  std::vector<float> expected;

 private:
  std::optional<Pipeline> whole_;
};

// The pre-fill rule for every length of a prompt, in chunks of several sizes; the last chunk may be as short as one
// token, so that rows of the chunks before it are needed.
TEST_P(SequenceTest, LastLogitsOfEveryPrefix) {
  // Without GOLD layers there is little to go wrong.
  const bool gold = pipeline().shape().gold_layers() > 0;
  for (const int64_t chunk_tokens : gold ? std::vector<int64_t>{1, 3, 16, 40} : std::vector<int64_t>{16}) {
    SCOPED_TRACE(testing::Message() << "chunks of " << chunk_tokens);
    const int base = pipeline().Open();
    for (int64_t begin = 0; begin < tokens(); begin += chunk_tokens) {
      const int64_t chunk_end = std::min(begin + chunk_tokens, tokens());
      for (int64_t end = begin + 1; end <= chunk_end; ++end) {
        const int slot = pipeline().Fork(base);
        ASSERT_NO_FATAL_FAILURE(Run(slot, begin, end, 1));
        pipeline().Close(slot);
      }
      ASSERT_NO_FATAL_FAILURE(Run(base, begin, chunk_end, 0));
    }
    pipeline().Close(base);
  }
}

// The same without forks, at lengths around the chunks' and pages' borders.
TEST_P(SequenceTest, LastLogitsOfNewSequences) {
  for (const int64_t length : {1, 2, 4, 5, 6, 7, 8, 64, 65, 66, 129}) {
    for (const int64_t chunk_tokens : {7, 64, 160}) {
      const int slot = pipeline().Open();
      for (int64_t begin = 0; begin < length; begin += chunk_tokens) {
        const int64_t end = std::min(begin + chunk_tokens, length);
        ASSERT_NO_FATAL_FAILURE(Run(slot, begin, end, end == length ? 1 : 0));
      }
      pipeline().Close(slot);
    }
  }
}

TEST_P(SequenceTest, SeveralTurns) {
  const int slot = pipeline().Open();
  const auto decode = [&](int64_t begin, int64_t end) {
    for (int64_t position = begin; position < end; ++position) Run(slot, position, position + 1, 1);
  };
  Run(slot, 0, 40, 0);  // first prompt, in two chunks
  Run(slot, 40, 41, 1);
  decode(41, 60);
  Run(slot, 60, 90, 0);  // a second turn: GOLD layers have run up to 60 and go on at 91
  Run(slot, 90, 95, 1);
  decode(95, 97);
  Run(slot, 97, 99, 1);  // a turn shorter than the rule's rows: they go on from their shift states
  decode(99, 100);
  Run(slot, 100, 101, 0);
  Run(slot, 101, 102, 0);
  decode(102, 103);
  Run(slot, 103, 160, 57);
}

TEST_P(SequenceTest, LogitsOfTheLastFew) {
  for (const int64_t wanted : {0, 1, 2, 4, 5, 29, 30}) {
    const int slot = pipeline().Open();
    ASSERT_NO_FATAL_FAILURE(Run(slot, 0, 30, wanted));
    ASSERT_NO_FATAL_FAILURE(Run(slot, 30, 35, std::min<int64_t>(wanted, 5)));
    ASSERT_NO_FATAL_FAILURE(Run(slot, 35, 65, wanted));
    pipeline().Close(slot);
  }
}

// Whatever a client may do: random cuts, random numbers of logits, forks and closes, several sequences a step.
TEST_P(SequenceTest, RandomWalks) {
  std::minstd_rand random(20240717);
  const auto below = [&random](int64_t limit) { return static_cast<int64_t>(random() % limit); };
  const int slots = pipeline().stage(0).options().max_sequences;
  std::vector<int64_t> position(slots, -1);  // -1: not open
  for (int step = 0; step < 80; ++step) {
    for (int slot = 0; slot < slots; ++slot) {
      if (position[slot] >= 0 && (position[slot] == tokens() || below(40) == 0)) {
        pipeline().Close(slot);
        position[slot] = -1;
      }
    }
    if (below(4) == 0 && std::count(position.begin(), position.end(), -1) > 0) {
      const int64_t parent = below(slots);
      const bool fork = position[parent] >= 0 && below(2) == 0;
      const int slot = fork ? pipeline().Fork(static_cast<int>(parent)) : pipeline().Open();
      ASSERT_EQ(position[slot], -1);
      position[slot] = fork ? position[parent] : 0;
    }
    std::vector<Chunk> chunks;
    std::vector<float> wanted;
    for (int64_t i = 0, first = below(slots); i < slots; ++i) {
      const int slot = static_cast<int>((first + i) % slots);  // batches need not be in the order of the slots
      if (position[slot] < 0 || below(3) == 0) continue;
      const int64_t most = std::min<int64_t>(below(3) == 0 ? 40 : 3, tokens() - position[slot]);
      const int64_t count = 1 + below(most), end = position[slot] + count;
      const int64_t rows = below(3) == 0 ? below(count + 1) : below(2);
      chunks.push_back({slot, Ids(position[slot], end), rows});
      const std::vector<float> logits = Expected(end - rows, end);
      wanted.insert(wanted.end(), logits.begin(), logits.end());
      position[slot] = end;
    }
    ASSERT_TRUE(Same(pipeline().Forward(chunks), wanted, Exact())) << "step " << step;
  }
}

// After a fork both sequences go their own ways: at places where the last page is empty, full, and in between.
TEST_P(SequenceTest, ForksAreIndependent) {
  // The golden tokens up to `length`, then others.
  const auto other_end = [this](int64_t length) {
    std::vector<int32_t> ids(golden.tokens.begin(), golden.tokens.begin() + length);
    ids.insert(ids.end(), golden.tokens.rbegin(), golden.tokens.rbegin() + 12);
    return ids;
  };
  for (const int64_t length : {1, 5, 63, 64, 65, 128}) {
    SCOPED_TRACE(testing::Message() << "fork at " << length);
    const std::vector<int32_t> other = other_end(length);
    const std::vector<float> all_of_other = pipeline().AllLogits(other, 160);
    const std::vector<float> expected_other(all_of_other.begin() + length * pipeline().vocab(), all_of_other.end());

    for (const bool after_decode : {false, true}) {
      const int original = pipeline().Open();
      Run(original, 0, length, after_decode ? 1 : 0);
      const int copy = pipeline().Fork(original);
      const int second_copy = pipeline().Fork(copy);
      // By turns, so that neither may write where the other reads.
      std::vector<float> logits;
      for (int64_t i = 0; i < 12; ++i) {
        Run(original, length + i, length + i + 1, 1);
        const std::vector<float> row = pipeline().Forward({copy, absl::MakeConstSpan(other).subspan(length + i, 1), 1});
        logits.insert(logits.end(), row.begin(), row.end());
      }
      EXPECT_TRUE(Same(logits, expected_other, Exact()));
      pipeline().Close(original);
      pipeline().Close(copy);
      Run(second_copy, length, length + 20, 3);
      pipeline().Close(second_copy);
      EXPECT_EQ(pipeline().stage(0).CacheBytes(), 0);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Golden, SequenceTest, testing::ValuesIn(Cases()),
                         [](const auto& info) { return info.param.Name(); });

}  // namespace
}  // namespace goldfinch
