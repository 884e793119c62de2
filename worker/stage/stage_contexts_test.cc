// A sequence that is opened from what was saved goes on with the bits of one that has read the text itself.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/cuda/cuda_backend.h"
#include "worker/model/fake_device.h"
#include "worker/stage/stage_contexts_test_util.h"

namespace goldfinch {
namespace {

using ::testing::HasSubstr;

using Split = std::vector<int>;

// The text: a prompt, and tokens that are decoded. Segments end at these positions.
constexpr int64_t kPromptEnd = 130, kTextEnd = 140;
const std::vector<int64_t> kEnds = {1, 63, 64, 65, kPromptEnd, 133};

std::vector<int32_t> Part(const std::vector<int32_t>& ids, int64_t begin, int64_t end) {
  return {ids.begin() + begin, ids.begin() + end};
}

StageOptions Options(DType cache_dtype) {
  return {.max_sequences = 4,
          .max_sequence_tokens = 200,
          .cache_tokens = 600,
          .max_step_tokens = 150,
          .max_logit_rows = 150,
          .cache_dtype = cache_dtype};
}

// Reads the text and saves it at kEnds: chunks of the prompt ask for no logits but the last, which wants those of its
// last token, as tokens do that are decoded.
std::vector<SavedSegment> SaveText(TestPipeline& pipeline, int slot, const std::vector<int32_t>& ids) {
  std::vector<SavedSegment> chain;
  int64_t position = 0;
  for (const int64_t end : kEnds) {
    if (end <= kPromptEnd) {
      pipeline.Run(slot, Part(ids, position, end), end == kPromptEnd ? 1 : 0);
    } else {
      for (int64_t token = position; token < end; ++token) pipeline.Run(slot, Part(ids, token, token + 1), 1);
    }
    pipeline.Save(slot, &chain, /*logits=*/end >= kPromptEnd);
    position = end;
  }
  return chain;
}

void ExpectEqual(const std::vector<float>& actual, const float* expected, const std::string& what) {
  EXPECT_EQ(std::memcmp(actual.data(), expected, actual.size() * sizeof(float)), 0) << what;
}

void ExpectNear(const std::vector<float>& actual, const float* expected, float tolerance) {
  float worst = 0;
  for (size_t i = 0; i < actual.size(); ++i) worst = std::max(worst, std::abs(actual[i] - expected[i]));
  EXPECT_LT(worst, tolerance);
}

struct Family {
  std::vector<std::string> layers;  // six
  std::vector<DType> cache_dtypes;
  RandomModelSpec spec = {};
};

std::vector<Family> Families() {
  const std::vector<DType> floats = {DType::kF32, DType::kF16, DType::kBf16};
  std::vector<DType> all = floats;
  all.push_back(DType::kInt8);
  return {
      {{"finch_c2", "finch_c2", "finch_c2", "finch_c2", "gold", "gold"}, all},
      {{"finch", "finch", "gold", "gold", "gold", "gold"}, all},
      {{"eagle", "eagle", "eagle", "eagle", "eagle", "gold"}, {DType::kF32, DType::kInt8}},
      {{"finch", "gptalpha", "finch", "gptalpha", "gold", "gold"}, floats},
      {{"llama", "llama", "llama", "llama", "llama", "llama"}, floats},
      {{"gptalpha", "finch_c2", "gptalpha", "finch_c2", "gptalpha", "finch_c2"}, floats},
      {{"finch", "finch", "finch", "finch", "finch", "finch"}, {DType::kF32}},
      {{"finch_c2", "finch_c2", "finch_c2", "finch_c2", "finch_c2", "finch_c2"}, {DType::kF32}},
      {{"eagle", "eagle", "eagle", "eagle", "eagle", "eagle"}, {DType::kF32}},
      {{"finch", "finch", "finch", "finch", "gold", "gold"}, {DType::kF32}, {.time_state = true}},
  };
}

// Saved on three stages, and loaded on one, two and six.
TEST(StageContextsTest, EveryFamilyCacheTypeAndSplitGoesOnWithTheSameBits) {
  const std::unique_ptr<Backend> backend = MakeCpuBackend(/*threads=*/1);
  for (const Family& family : Families()) {
    RandomModelSpec spec = family.spec;
    spec.layers = family.layers;
    const std::vector<int32_t> ids = RandomTokens(kTextEnd, spec.vocab_size, 11);
    for (const DType dtype : family.cache_dtypes) {
      SCOPED_TRACE(testing::PrintToString(family.layers) + " " + Name(dtype));
      const StageOptions options = Options(dtype);
      // What the model says of the text, by position.
      TestPipeline whole(*backend, spec, {0}, options);
      const std::vector<float> expected = whole.Run(whole.Open(), ids, kTextEnd);
      const auto at = [&](int64_t position) { return expected.data() + position * spec.vocab_size; };

      TestPipeline saver(*backend, spec, {0, 2, 4}, options, /*kept_bytes=*/1 << 20);
      const int saved = saver.Open();
      const std::vector<SavedSegment> chain = SaveText(saver, saved, ids);
      ExpectEqual(saver.Run(saved, Part(ids, kEnds.back(), kTextEnd), kTextEnd - kEnds.back()), at(kEnds.back()),
                  "saving changes nothing");
      for (const Split& split : {Split{0}, {0, 3}, {0, 1, 2, 3, 4, 5}}) {
        TestPipeline loader(*backend, spec, split, options, /*kept_bytes=*/split.size() == 2 ? 1 << 20 : 0);
        for (size_t segments = 1; segments <= chain.size(); ++segments) {
          const int64_t begin = kEnds[segments - 1];
          SCOPED_TRACE(std::to_string(split.size()) + " stages, from " + std::to_string(begin));
          const SavedPart* const logits = chain[segments - 1].Find(5, StatePartKind::kLogits);
          EXPECT_EQ(logits != nullptr, begin >= kPromptEnd);
          if (logits != nullptr) {
            EXPECT_EQ(std::memcmp(TestPipeline::Bytes(*logits).data(), at(begin - 1), logits->bytes()), 0);
          }
          const int slot = loader.Restore(chain, segments);
          EXPECT_EQ(loader.stage(0).position(slot), begin);
          // A token that is decoded, a chunk without logits, and the rest.
          ExpectEqual(loader.Run(slot, Part(ids, begin, begin + 1), 1), at(begin), "decode");
          loader.Run(slot, Part(ids, begin + 1, begin + 4), 0);
          ExpectEqual(loader.Run(slot, Part(ids, begin + 4, kTextEnd), kTextEnd - begin - 4), at(begin + 4), "rest");
          loader.Close(slot);
          // A chunk without logits first.
          const int other = loader.Restore(chain, segments);
          loader.Run(other, Part(ids, begin, kTextEnd - 1), 0);
          ExpectEqual(loader.Run(other, Part(ids, kTextEnd - 1, kTextEnd), 1), at(kTextEnd - 1), "prefill");
          loader.Close(other);
        }
        EXPECT_EQ(loader.used_pages(), 0);
      }
    }
  }
}

// Forks of what was restored share its full pages, and other sequences run in the same steps.
TEST(StageContextsTest, ForksOfARestoredSequenceBesideOthers) {
  const std::unique_ptr<Backend> backend = MakeCpuBackend(/*threads=*/1);
  const RandomModelSpec spec{.layers = {"finch_c2", "gptalpha", "gold"}};
  const std::vector<int32_t> ids = RandomTokens(kTextEnd, spec.vocab_size, 11);
  const std::vector<int32_t> other_ids = RandomTokens(40, spec.vocab_size, 12), tail = RandomTokens(9, 40, 13);
  for (const int64_t kept_bytes : {0, 1 << 20}) {
    TestPipeline cold(*backend, spec, {0}, Options(DType::kF32), kept_bytes);
    const int read = cold.Open();
    cold.Run(read, Part(ids, 0, 65), 0);
    const int read_fork = cold.Fork(read), other = cold.Open();
    const std::vector<float> one = cold.Run(read, Part(ids, 65, 90), 25), two = cold.Run(read_fork, tail, 9),
                             three = cold.Run(other, other_ids, 40);

    TestPipeline saver(*backend, spec, {0, 1}, Options(DType::kF32));
    const std::vector<SavedSegment> chain = SaveText(saver, saver.Open(), ids);
    TestPipeline warm(*backend, spec, {0, 2}, Options(DType::kF32), kept_bytes);
    const int running = warm.Open();
    const std::vector<int32_t> first = Part(other_ids, 0, 20), second = Part(other_ids, 20, 30),
                               third = Part(other_ids, 30, 40), rest = Part(ids, 65, 90);
    ExpectEqual(warm.Run(running, first, 20), three.data(), "beside");
    const int slot = warm.Restore(chain, 4);
    EXPECT_EQ(warm.used_pages(), 1 + 2);
    ExpectEqual(warm.Run(running, second, 10), three.data() + 20 * 40, "beside");
    const int fork = warm.Fork(slot);
    EXPECT_EQ(warm.used_pages(), 1 + 2 + 1) << "the full page is shared";
    std::vector<float> all = warm.Run({{slot, rest, 25}, {running, third, 10}, {fork, tail, 9}});
    std::vector<float> expected = one;
    expected.insert(expected.end(), three.begin() + 30 * 40, three.end());
    expected.insert(expected.end(), two.begin(), two.end());
    ASSERT_EQ(all.size(), expected.size());
    ExpectEqual(all, expected.data(), "forks");
  }
}

// Sequences that begin with parts of one text and go on in different ways.
class Questions {
 public:
  static constexpr size_t kCount = 4;
  // How many segments of the text each begins with. The first page is full of segment 3, the second one of segment 5.
  static constexpr size_t kSegments[kCount] = {6, 6, 5, 4};
  static constexpr int64_t kTail = 8;
  using Compare = std::function<void(const std::vector<float>& logits, const float* expected, const std::string& what)>;

  // What the tails' logits are is asked of `cold`, which reads everything.
  Questions(TestPipeline& cold, TestPipeline& warm, const std::vector<int32_t>& ids, std::vector<SavedSegment> chain,
            Compare compare)
      : warm_(warm), chain_(std::move(chain)), compare_(std::move(compare)) {
    for (size_t i = 0; i < chain_.size(); ++i) chain_[i].number = 70 + i;
    for (size_t i = 0; i < kCount; ++i) {
      tails_.push_back(RandomTokens(kTail, cold.vocab(), 20 + i));
      std::vector<int32_t> all = Part(ids, 0, kEnds[kSegments[i] - 1]);
      all.insert(all.end(), tails_[i].begin(), tails_[i].end());
      const int slot = cold.Open();
      expected_.push_back(cold.Run(slot, all, kTail));
      cold.Close(slot);
    }
  }
  // They run in the same steps. The first one ends while the others go on, and begins anew.
  void Run() {
    Open(0, 3);
    Step({0}, 2);
    Open(1, 4);
    Open(2, 5);
    Open(3, 6);
    Step({1, 2, 3}, 2);
    Step({0, 1, 2, 3}, 2);
    Close(0, 5);
    Step({1, 2, 3}, 1);
    Open(0, 6);
    Step({0}, kTail);
    Step({1, 2, 3}, 3);
    Close(1, 5);
    Close(0, 4);
    Close(3, 3);
    Close(2, 0);
  }
  int slot(size_t question) const { return slots_[question]; }
  void Open(size_t question, int64_t pages) {
    slots_[question] = warm_.Restore(chain_, kSegments[question]);
    done_[question] = 0;
    ExpectPages(pages);
  }
  void Close(size_t question, int64_t pages) {
    warm_.Close(slots_[question]);
    ExpectPages(pages);
  }
  // The next `count` tokens of each.
  void Step(const std::vector<size_t>& questions, int64_t count) {
    std::vector<std::vector<int32_t>> parts;
    for (const size_t i : questions) parts.push_back(Part(tails_[i], done_[i], done_[i] + count));
    std::vector<Chunk> chunks;
    for (size_t i = 0; i < questions.size(); ++i) chunks.push_back({slots_[questions[i]], parts[i], count});
    const std::vector<float> logits = warm_.Run(chunks);
    const int64_t size = count * warm_.vocab();
    ASSERT_EQ(static_cast<int64_t>(logits.size()), size * static_cast<int64_t>(questions.size()));
    auto from = logits.begin();
    for (const size_t i : questions) {
      compare_({from, from + size}, expected_[i].data() + done_[i] * warm_.vocab(),
               "question " + std::to_string(i) + ", token " + std::to_string(done_[i]));
      done_[i] += count;
      from += size;
    }
  }

 private:
  void ExpectPages(int64_t pages) {
    for (size_t i = 0; i < warm_.stages(); ++i) {
      const SequenceStates& states = warm_.stage(i).sequences();
      EXPECT_EQ(states.used_pages(), states.pages() > 0 ? pages : 0) << "stage " << i;
    }
  }

  TestPipeline& warm_;
  std::vector<SavedSegment> chain_;
  const Compare compare_;
  std::vector<std::vector<int32_t>> tails_;
  std::vector<std::vector<float>> expected_;
  int slots_[kCount] = {};
  int64_t done_[kCount] = {};
};

TEST(StageContextsTest, SequencesOfOneTextShareItsPagesAndNothingElse) {
  const std::unique_ptr<Backend> backend = MakeCpuBackend(/*threads=*/1);
  for (const Family& family : Families()) {
    RandomModelSpec spec = family.spec;
    spec.layers = family.layers;
    const std::vector<int32_t> ids = RandomTokens(kTextEnd, spec.vocab_size, 11);
    for (const DType dtype : family.cache_dtypes) {
      SCOPED_TRACE(testing::PrintToString(family.layers) + " " + Name(dtype));
      TestPipeline saver(*backend, spec, {0, 2, 4}, Options(dtype));
      const std::vector<SavedSegment> chain = SaveText(saver, saver.Open(), ids);
      for (const int64_t kept_bytes : {0, 1 << 20}) {
        TestPipeline cold(*backend, spec, {0}, Options(dtype)),
            warm(*backend, spec, {0, 3}, Options(dtype), kept_bytes);
        Questions(cold, warm, ids, chain, ExpectEqual).Run();
      }
    }
  }
}

// What one has derived of the text, the next one need not derive again.
TEST(StageContextsTest, SequencesOfOneTextShareItsKeptRows) {
  const std::unique_ptr<Backend> backend = MakeCpuBackend(/*threads=*/1);
  const RandomModelSpec spec{.layers = {"finch", "gold", "gold"}};
  const std::vector<int32_t> ids = RandomTokens(kTextEnd, spec.vocab_size, 11);
  TestPipeline saver(*backend, spec, {0}, Options(DType::kF32)), cold(*backend, spec, {0}, Options(DType::kF32)),
      warm(*backend, spec, {0}, Options(DType::kF32), /*kept_bytes=*/1 << 20);
  Questions questions(cold, warm, ids, SaveText(saver, saver.Open(), ids), ExpectEqual);
  const GoldTiers& tiers = *warm.stage(0).gold_tiers();
  questions.Open(0, 3);
  EXPECT_EQ(tiers.kept(questions.slot(0)), 0);
  questions.Step({0}, 1);
  EXPECT_EQ(tiers.kept(questions.slot(0)), 134);
  const int64_t kept_bytes = tiers.kept_bytes();
  questions.Open(1, 4);
  questions.Open(3, 5);
  EXPECT_EQ(tiers.kept(questions.slot(1)), 128) << "two full pages";
  EXPECT_EQ(tiers.tier(questions.slot(1)), tiers.tier(questions.slot(0)));
  EXPECT_EQ(tiers.kept(questions.slot(3)), 64);
  EXPECT_EQ(tiers.kept_bytes(), kept_bytes);
  questions.Step({0, 1, 3}, 2);
  questions.Close(0, 4);
  questions.Step({1, 3}, 2);
}

// What is saved of the same positions is the same, whichever stage saved it.
TEST(StageContextsTest, StagesSaveTheSameBytesOfTheSamePart) {
  const std::unique_ptr<Backend> backend = MakeCpuBackend(/*threads=*/1);
  const RandomModelSpec spec{.layers = {"finch", "gold", "gold"}};
  const std::vector<int32_t> ids = RandomTokens(kTextEnd, spec.vocab_size, 11);
  TestPipeline one(*backend, spec, {0}, Options(DType::kBf16)), three(*backend, spec, {0, 1, 2}, Options(DType::kBf16));
  const std::vector<SavedSegment> chain = SaveText(one, one.Open(), ids), split = SaveText(three, three.Open(), ids);
  size_t parts = 0;
  for (size_t i = 0; i < chain.size(); ++i) {
    EXPECT_EQ(chain[i].gold_position, split[i].gold_position);
    EXPECT_EQ(chain[i].gold_position, i < 4 ? 0 : chain[i].end);
    for (const auto& part : split[i].parts) {
      const SavedPart* const same = chain[i].Find(part->part.layer, part->part.kind);
      ASSERT_NE(same, nullptr);
      EXPECT_EQ(TestPipeline::Bytes(*part), TestPipeline::Bytes(*same)) << i << " " << KindName(part->part.kind);
      ++parts;
    }
    EXPECT_EQ(split[i].parts.size(), chain[i].parts.size() + 2) << "two stages have the compressed cache";
  }
  EXPECT_GT(parts, 40u);
}

TEST(StageContextsTest, WhatDoesNotFitIsNamedAndChangesNothing) {
  const std::unique_ptr<Backend> backend = MakeCpuBackend(/*threads=*/1);
  const RandomModelSpec spec{.layers = {"finch", "gold"}};
  const std::vector<int32_t> ids = RandomTokens(kTextEnd, spec.vocab_size, 11);
  StageOptions options = Options(DType::kF32);
  options.max_sequences = 1;
  options.cache_tokens = 64;
  options.max_sequence_tokens = 132;
  TestPipeline saver(*backend, spec, {0}, Options(DType::kF32)), loader(*backend, spec, {0}, options);
  const std::vector<SavedSegment> chain = SaveText(saver, saver.Open(), ids);
  Stage& stage = loader.stage(0);
  const auto error = [&](const std::vector<const SavedSegment*>& of) { return stage.Restore(of).status().ToString(); };
  EXPECT_THAT(error({&chain[1]}), HasSubstr("positions [1, 63) cannot follow position 0"));
  EXPECT_THAT(error({&chain[0], &chain[2]}), HasSubstr("positions [63, 64) cannot follow position 1"));
  EXPECT_THAT(error({&chain[0], &chain[1], &chain[2], &chain[3], &chain[4], &chain[5]}), HasSubstr("limit is 132"));
  EXPECT_THAT(error({&chain[0], &chain[1], &chain[2], &chain[3], &chain[4]}), HasSubstr("caches are full"));
  SavedSegment spoilt = chain[0];
  spoilt.gold_position = 2;
  EXPECT_THAT(error({&spoilt}), HasSubstr("gold_position of a snapshot is 2, its position is 1"));
  spoilt = chain[0];
  spoilt.parts.erase(spoilt.parts.begin());
  EXPECT_THAT(error({&spoilt}), HasSubstr("lacks time_shift of layer 0"));
  EXPECT_TRUE(stage.Restore({&spoilt, &chain[1]}).ok()) << "only the last segment's snapshot is needed";
  stage.Close(0);
  SavedPart narrow = *chain[0].Find(0, StatePartKind::kRows);
  narrow.part.dtype = DType::kBf16;
  spoilt = chain[0];
  for (auto& part : spoilt.parts) {
    if (part->Is(0, StatePartKind::kRows)) part = std::make_shared<SavedPart>(narrow);
  }
  EXPECT_THAT(error({&spoilt}), HasSubstr("has 8 bytes of bf16, expected 16 of f32 for rows of layer 0"));
  EXPECT_EQ(loader.used_pages(), 0);
  EXPECT_EQ(stage.Open().value_or(-1), 0) << "no slot was lost";
  EXPECT_THAT(error({&chain[0]}), HasSubstr("all 1 slots"));
}

// On a device, copies run beside the steps that follow: whatever these write, what is saved is what was there.
class DeviceContextsTest : public testing::TestWithParam<bool> {
 public:
  std::unique_ptr<Backend> device = GetParam()
                                        ? *MakeCudaBackend({.activation_dtype = DType::kF32})
                                        : std::make_unique<FakeDevice>(MakeCpuBackend(/*threads=*/1), DType::kF32);
};

TEST_P(DeviceContextsTest, StepsGoOnWhileSequencesAreSaved) {
  // Products take their inputs in the weights' type, here fp32.
  const RandomModelSpec spec{.layers = {"finch_c2", "gptalpha", "gold"}, .dtype = DType::kF32};
  const std::vector<int32_t> ids = RandomTokens(kTextEnd, spec.vocab_size, 11);
  constexpr float kTolerance = 1e-4;
  TestPipeline pipeline(*device, spec, {0, 2}, Options(DType::kF32), /*kept_bytes=*/1 << 20);
  const int whole = pipeline.Open();
  const std::vector<float> expected = pipeline.Run(whole, ids, kTextEnd);
  pipeline.Close(whole);
  const int slot = pipeline.Open();
  const std::vector<SavedSegment> chain = SaveText(pipeline, slot, ids);
  pipeline.Close(slot);
  // Its slot and pages are another's at once.
  const int other = pipeline.Open();
  pipeline.Run(other, RandomTokens(150, spec.vocab_size, 7), 1);
  for (const size_t segments : {size_t{4}, size_t{6}}) {
    const int64_t begin = kEnds[segments - 1];
    const int restored = pipeline.Restore(chain, segments);
    ExpectNear(pipeline.Run(restored, Part(ids, begin, kTextEnd), kTextEnd - begin),
               expected.data() + begin * spec.vocab_size, kTolerance);
    pipeline.Close(restored);
  }
  const SavedPart* const saved = chain.back().Find(2, StatePartKind::kLogits);
  ASSERT_NE(saved, nullptr);
  std::vector<float> logits(spec.vocab_size);
  std::memcpy(logits.data(), TestPipeline::Bytes(*saved).data(), saved->bytes());
  ExpectNear(logits, expected.data() + (kEnds.back() - 1) * spec.vocab_size, kTolerance);
}

TEST_P(DeviceContextsTest, SequencesOfOneTextShareItsPagesAndNothingElse) {
  const RandomModelSpec spec{.layers = {"finch_c2", "gptalpha", "gold"}, .dtype = DType::kF32};
  const std::vector<int32_t> ids = RandomTokens(kTextEnd, spec.vocab_size, 11);
  for (const int64_t kept_bytes : {0, 1 << 20}) {
    TestPipeline saver(*device, spec, {0, 2}, Options(DType::kF32)), cold(*device, spec, {0}, Options(DType::kF32)),
        warm(*device, spec, {0, 2}, Options(DType::kF32), kept_bytes);
    Questions(cold, warm, ids, SaveText(saver, saver.Open(), ids),
              [](const std::vector<float>& logits, const float* expected, const std::string& what) {
                SCOPED_TRACE(what);
                ExpectNear(logits, expected, 1e-4);
              })
        .Run();
  }
}

INSTANTIATE_TEST_SUITE_P(All, DeviceContextsTest, testing::Bool(),
                         [](const auto& info) { return info.param ? "EmulatedCuda" : "Fake"; });

}  // namespace
}  // namespace goldfinch
