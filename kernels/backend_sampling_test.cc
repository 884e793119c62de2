// Sample draws the tokens that the plain double version draws, except where a draw falls on the border between two.
#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <numeric>

#include "kernels/backend_test_util.h"

namespace goldfinch {
namespace {

// Rows of logits and how to draw from them. Owns the arrays that SampleRow refers to.
struct Draws {
  struct Row {
    Values logits;
    SampleRow how = {};
    std::vector<LogitChange> changes = {};
    std::vector<int32_t> banned = {};
  };

  int64_t vocab = 0;
  int64_t limit = 0;
  std::vector<int32_t> holes = {};
  std::vector<Row> rows = {};

  // Refers to `rows`, which must not change.
  std::vector<SampleRow> SampleRows() const {
    std::vector<SampleRow> sample_rows;
    for (const Row& row : rows) {
      sample_rows.push_back(row.how);
      sample_rows.back().changes = row.changes;
      sample_rows.back().banned = row.banned;
    }
    return sample_rows;
  }
};

std::vector<int32_t> Sample(Device& device, const Draws& draws) {
  Values logits;
  for (const Draws::Row& row : draws.rows) logits.insert(logits.end(), row.logits.begin(), row.logits.end());
  std::vector<int32_t> tokens(draws.rows.size(), -7);
  const Shape shape{static_cast<int64_t>(draws.rows.size()), draws.vocab};
  device->Sample(device.Put(logits, shape), draws.limit, draws.holes, draws.SampleRows(), absl::MakeSpan(tokens));
  return tokens;
}

// Expects the token of the double version, or one whose part of [0, 1) is within rounding of `uniform`.
void ExpectDrawn(int32_t token, const Values& probabilities, double uniform, const std::string& what) {
  constexpr double kRounding = 2e-5;
  ASSERT_GE(token, 0) << what;
  ASSERT_LT(token, static_cast<int32_t>(probabilities.size())) << what;
  EXPECT_GT(probabilities[token], 0) << what << ": " << token << " cannot be drawn";
  double before = 0;
  for (int32_t id = 0; id < token; ++id) before += probabilities[id];
  EXPECT_GE(uniform, before - kRounding) << what << ": " << token;
  EXPECT_LE(uniform, before + probabilities[token] + kRounding) << what << ": " << token;
}

void CheckSample(BackendTest& t, const Draws& draws, const std::string& what) {
  const std::vector<int32_t> tokens = Sample(t.device, draws);
  const std::vector<SampleRow> rows = draws.SampleRows();
  for (size_t i = 0; i < rows.size(); ++i) {
    const SampleRow& row = rows[i];
    const std::string where = what + ", row " + std::to_string(i) + ", temperature " + std::to_string(row.temperature) +
                              ", top_p " + std::to_string(row.top_p) + ", top_k " + std::to_string(row.top_k) +
                              ", min_p " + std::to_string(row.min_p) + ", uniform " + std::to_string(row.uniform);
    ExpectDrawn(tokens[i], reference::TokenProbabilities(draws.rows[i].logits, draws.limit, draws.holes, row),
                row.uniform, where);
  }
}

std::vector<int64_t> VocabSizes(const BackendTest& t) {
  if (t.slow()) return {1, 2, 17, 1000, 2500};
  return {1, 2, 15, 16, 17, 257, 1000, 5003, 65536};
}

// `count` random ids other than `kept`.
std::vector<int32_t> SomeIds(TestRandom& random, int64_t vocab, int32_t kept, int64_t count) {
  std::vector<int32_t> ids = random.Permutation(vocab);
  ids.erase(std::find(ids.begin(), ids.end(), kept));
  ids.resize(std::min<int64_t>(count, vocab - 1));
  return ids;
}

// Logits that are all equal, have few different values, are ordinary, nearly flat, or steep.
Values DrawLogits(TestRandom& random, int64_t vocab, int kind) {
  if (kind == 0) return Values(vocab, 2.5);
  constexpr double kDeviations[] = {0, 3, 3, 0.01, 30};
  Values logits = random.Normal(vocab, kDeviations[kind]);
  if (kind == 1) {
    for (double& logit : logits) logit = std::round(logit);  // which gives -0 and 0, too
  }
  return logits;
}
constexpr int kLogitKinds = 5;

// Ties go to the lowest id, with any bans, holes, limit and changes.
TEST_P(BackendTest, SampleGreedy) {
  for (int64_t vocab : VocabSizes(*this)) {
    Draws draws{.vocab = vocab, .limit = std::max<int64_t>(1, vocab - vocab / 7)};
    // At least one id is neither a hole nor banned.
    const auto kept = static_cast<int32_t>(random.Below(draws.limit));
    draws.holes = SomeIds(random, vocab, kept, vocab / 5);
    for (int kind = 0; kind < kLogitKinds; ++kind) {
      for (int64_t banned : {int64_t{0}, int64_t{1}, vocab / 3, vocab - 1}) {
        for (int changes : {0, 1, 40}) {
          Draws::Row row{.logits = DrawLogits(random, vocab, kind), .how = {.temperature = 0, .uniform = 0.5}};
          row.banned = SomeIds(random, vocab, kept, banned);
          for (int i = 0; i < changes; ++i) {
            row.changes.push_back(
                {static_cast<int32_t>(random.Below(std::min<int64_t>(vocab, 20))), random.Uniform(1, -100, 100)[0]});
          }
          draws.rows.push_back(row);
        }
      }
    }
    const std::vector<int32_t> tokens = Sample(device, draws);
    const std::vector<SampleRow> rows = draws.SampleRows();
    for (size_t i = 0; i < rows.size(); ++i) {
      const Values p = reference::TokenProbabilities(draws.rows[i].logits, draws.limit, draws.holes, rows[i]);
      EXPECT_EQ(tokens[i], std::find(p.begin(), p.end(), 1) - p.begin()) << "vocabulary " << vocab << ", row " << i;
    }
  }
}

// Two zeros are equal, and changes are added one by one, each sum rounded to fp32.
TEST_P(BackendTest, SampleComparesFp32Logits) {
  const auto greedy = [&](const Values& logits, const std::vector<LogitChange>& changes) {
    Draws draws{.vocab = static_cast<int64_t>(logits.size()), .limit = static_cast<int64_t>(logits.size())};
    draws.rows.push_back({.logits = logits, .how = {.temperature = 0}, .changes = changes});
    return Sample(device, draws)[0];
  };
  EXPECT_EQ(greedy({-1, -0., 0}, {}), 1);
  EXPECT_EQ(greedy({-1, -0., 0}, {{2, 1e-3}}), 2);
  EXPECT_EQ(greedy({-1, 0, 1}, {{2, -1}, {1, -0.}}), 1);
  // In fp32, 0.1 + 100 - 100 and 0.1 - 100 + 100 are both a little more than 0.1.
  const double tenth = 0.1F;
  const double high = (0.1F + 100.F) - 100.F;
  EXPECT_EQ(greedy({tenth, tenth}, {{1, 100}, {1, -100}}), high > tenth ? 1 : 0);
  EXPECT_EQ(greedy({tenth, tenth}, {{0, 100}, {0, -100}}), high < tenth ? 1 : 0);
  // A change that is smaller than the rounding of its logit changes nothing, however often it is made.
  EXPECT_EQ(greedy({64, 64}, std::vector<LogitChange>(100, {1, 1e-6})), 0);
}

// Cuts that fall between two tokens of the list with room on both sides, because at high temperatures one token more or
// less matters.
void DrawCuts(TestRandom& random, const Draws& draws, Draws::Row* row) {
  constexpr double kRoom = 1e-4;
  SampleRow uncut;
  uncut.changes = row->changes;
  uncut.banned = row->banned;
  Values p = reference::TokenProbabilities(row->logits, draws.limit, draws.holes, uncut);
  std::sort(p.begin(), p.end(), std::greater<>());
  const auto place = [&](int64_t count) {
    return random.Below(std::min<int64_t>(count, random.Below(2) == 0 ? 10 : 2000));
  };
  const auto with_room = std::find_if(p.begin(), p.end(), [](double value) { return value < kRoom; }) - p.begin();
  if (with_room > 0 && random.Below(2) == 0) {
    const int64_t last = place(with_room);
    row->how.top_p = std::accumulate(p.begin(), p.begin() + last, p[last] / 2);
  }
  if (random.Below(3) == 0) row->how.top_k = 1 + place(draws.vocab);
  if (with_room > 0 && random.Below(3) == 0) {
    int64_t next = place(with_room) + 1;
    while (next < static_cast<int64_t>(p.size()) && p[next] > p[next - 1] * (1 - kRoom)) ++next;
    row->how.min_p = (p[next - 1] + (next < static_cast<int64_t>(p.size()) ? p[next] : 0)) / 2 / p[0];
  }
}

TEST_P(BackendTest, Sample) {
  for (int64_t vocab : VocabSizes(*this)) {
    Draws draws{.vocab = vocab, .limit = std::max<int64_t>(1, vocab - vocab / 9)};
    const auto kept = static_cast<int32_t>(random.Below(draws.limit));
    draws.holes = SomeIds(random, vocab, kept, vocab / 50);
    const int rows = vocab > 10'000 ? 60 : slow() ? 40 : 200;
    for (int i = 0; i < rows; ++i) {
      Draws::Row row{.logits = DrawLogits(random, vocab, i % kLogitKinds)};
      constexpr double kTemperatures[] = {1, 1, 0.3, 0.7, 2.5, 100};
      row.how = {.temperature = kTemperatures[random.Below(std::size(kTemperatures))],
                 .uniform = std::ldexp(static_cast<double>(random.Next() >> 11), -53)};
      if (random.Below(2) == 0) row.banned = SomeIds(random, vocab, kept, random.Below(30));
      for (int64_t change = random.Below(30); change > 20; --change) {
        row.changes.push_back({static_cast<int32_t>(random.Below(vocab)), random.Uniform(1, -3, 3)[0]});
      }
      DrawCuts(random, draws, &row);
      draws.rows.push_back(row);
    }
    CheckSample(*this, draws, "vocabulary " + std::to_string(vocab));
  }
}

// top_p 0 keeps the best id and its equals, top_k keeps the lowest ids of equal ones, and the ends of [0, 1) draw the
// first and the last id that are left.
TEST_P(BackendTest, SampleEdges) {
  const double almost_one = 1 - 0x1p-53;
  const auto draw = [&](const Values& logits, const SampleRow& how) {
    const auto vocab = static_cast<int64_t>(logits.size());
    Draws draws{.vocab = vocab, .limit = vocab};
    draws.rows.push_back({.logits = logits, .how = how});
    return Sample(device, draws)[0];
  };
  const Values ties = {1, 3, 2, 3, 3, 0};
  EXPECT_EQ(draw(ties, {.top_p = 0, .uniform = 0}), 1);
  EXPECT_EQ(draw(ties, {.top_p = 0, .uniform = 0.5}), 3);
  EXPECT_EQ(draw(ties, {.top_p = 0, .uniform = almost_one}), 4);
  EXPECT_EQ(draw(ties, {.top_k = 2, .uniform = almost_one}), 3);
  EXPECT_EQ(draw(ties, {.top_k = 1, .uniform = almost_one}), 1);
  EXPECT_EQ(draw(ties, {.min_p = 1, .uniform = almost_one}), 4);
  EXPECT_EQ(draw(ties, {.uniform = 0}), 0);
  EXPECT_EQ(draw(ties, {.uniform = almost_one}), 5);
  EXPECT_EQ(draw(ties, {.top_k = 1'000'000'000'000, .uniform = almost_one}), 5);
  // An id that is less likely than e^-87 times the best is never drawn.
  EXPECT_EQ(draw({100, 0, 0, 0}, {.uniform = almost_one}), 0);
  EXPECT_EQ(draw({0, 0, 100, -100}, {.uniform = 0}), 2);
  EXPECT_EQ(draw({-3e38, 3e38, -3e38}, {.uniform = 0.3}), 1);
}

// A logit that is not finite, wherever it is, is reported for its row and does not affect the other rows.
TEST_P(BackendTest, SampleTellsOfRowsThatAreNotFinite) {
  const int64_t vocab = 37;
  Draws draws{.vocab = vocab, .limit = 30, .holes = {3}};
  std::vector<bool> bad;
  const double kinds[] = {std::nan(""), std::numeric_limits<double>::infinity(),
                          -std::numeric_limits<double>::infinity()};
  for (int i = 0; i < 60; ++i) {
    Draws::Row row{.logits = random.Normal(vocab, 2), .how = {.uniform = random.Uniform(1, 0, 0.99)[0]}};
    if (i % 5 == 4) row.how.temperature = 0;
    bad.push_back(i % 3 == 1);
    // The logit of a token, of a hole, beyond the limit, and the last one.
    constexpr int64_t kPlaces[] = {0, 17, 3, 33, 36};
    if (bad.back()) row.logits[kPlaces[i / 3 % 5]] = kinds[i / 2 % 3];
    draws.rows.push_back(row);
  }
  const std::vector<int32_t> tokens = Sample(device, draws);
  const std::vector<SampleRow> rows = draws.SampleRows();
  for (size_t i = 0; i < rows.size(); ++i) {
    if (bad[i]) {
      EXPECT_EQ(tokens[i], -1) << i;
    } else {
      ExpectDrawn(tokens[i], reference::TokenProbabilities(draws.rows[i].logits, draws.limit, draws.holes, rows[i]),
                  rows[i].uniform, "row " + std::to_string(i));
    }
  }
}

TEST_P(BackendTest, SampleNoRows) {
  device->Sample(device.New({0, 40}), 40, {}, {}, {});
  EXPECT_TRUE(device->Synchronize().ok());
}

// Evenly spaced uniforms draw every token as often as its probability says, up to the two ends of its part of [0, 1).
TEST_P(BackendTest, SampleFrequencies) {
  const int64_t vocab = 50;
  const int count = slow() ? 200 : 2000;
  Draws draws{.vocab = vocab, .limit = 48, .holes = {5, 6}};
  const Values logits = random.Normal(vocab, 1.5);
  for (int i = 0; i < count; ++i) {
    draws.rows.push_back({.logits = logits, .how = {.temperature = 0.8, .top_k = 30, .uniform = (i + 0.5) / count}});
  }
  Values counts(vocab);
  for (int32_t token : Sample(device, draws)) {
    ASSERT_GE(token, 0);
    counts[token] += 1;
  }
  const Values p = reference::TokenProbabilities(logits, draws.limit, draws.holes, draws.rows[0].how);
  for (int64_t id = 0; id < vocab; ++id) EXPECT_NEAR(counts[id], p[id] * count, p[id] == 0 ? 0 : 2) << id;
}

}  // namespace
}  // namespace goldfinch
