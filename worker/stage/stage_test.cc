#include "worker/stage/stage.h"

#include <cstdint>
#include <functional>
#include <memory>
#include <ostream>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/cache_page.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/backend.h"
#include "worker/model/fake_device.h"
#include "worker/model/model.h"
#include "worker/model/random_model.h"

namespace goldfinch {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr int64_t kVocab = 40;
constexpr int64_t kWidth = 64;

std::vector<int32_t> Tokens(int64_t count, uint64_t seed = 5) { return RandomTokens(count, kVocab, seed); }

// The CPU; a device with memory of its own; one whose activations are narrow, besides.
enum class Device { kCpu, kFake, kFakeBf16 };
void PrintTo(Device device, std::ostream* out) {
  *out << (device == Device::kCpu ? "Cpu" : device == Device::kFake ? "Fake" : "FakeBf16");
}

// A small GoldFinch model unless a test asks for another.
class StageTest : public testing::TestWithParam<Device> {
 public:
  void SetUp() override {
    backend = MakeCpuBackend(/*threads=*/1);
    if (GetParam() == Device::kFake) backend = std::make_unique<FakeDevice>(std::move(backend));
    if (GetParam() == Device::kFakeBf16) backend = std::make_unique<FakeDevice>(std::move(backend), DType::kBf16);
    Make({"finch_c2", "gold"}, Options());
  }

  static StageOptions Options() {
    return {.max_sequences = 3,
            .cache_tokens = 256,
            .max_step_tokens = 100,
            .max_logit_rows = 20,
            .cache_dtype = DType::kF32};
  }
  static std::shared_ptr<const Model> Load(Backend& backend, const std::vector<std::string>& layers) {
    auto loaded = LoadModel(backend, OpenTensors(RandomModel({.layers = layers})), {});
    EXPECT_TRUE(loaded.ok()) << loaded.status();
    return *std::move(loaded);
  }
  void Make(const std::vector<std::string>& layers, const StageOptions& options) {
    auto created = Stage::Create(*backend, Load(*backend, layers), options);
    ASSERT_TRUE(created.ok()) << created.status();
    stage = *std::move(created);
  }
  int Open() {
    const absl::StatusOr<int> slot = stage->Open();
    EXPECT_TRUE(slot.ok()) << slot.status();
    return slot.value_or(-1);
  }
  absl::Status Forward(const std::vector<Chunk>& chunks) { return stage->Forward(chunks, {}, &output); }
  std::vector<float> Logits(int slot, const std::vector<int32_t>& ids, int64_t logit_rows = 1) {
    const absl::Status status = Forward({{slot, ids, logit_rows}});
    EXPECT_TRUE(status.ok()) << status;
    if (!output.logits) return {};
    EXPECT_EQ(output.logits.shape, (Shape{logit_rows, kVocab}));
    EXPECT_EQ(output.logits.dtype, DType::kF32);
    std::vector<float> logits(logit_rows * kVocab);
    backend->CopyToHost(output.logits, logits.data());
    return logits;
  }

  std::unique_ptr<Backend> backend;
  std::unique_ptr<Stage> stage;
  StageOutput output;
};

TEST_P(StageTest, SlotsAreGivenUntilAllAreTaken) {
  EXPECT_EQ(Open(), 0);
  EXPECT_EQ(Open(), 1);
  EXPECT_EQ(Open(), 2);
  const absl::Status full = stage->Open().status();
  EXPECT_EQ(full.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(full.message()), AllOf(HasSubstr("all 3"), HasSubstr("max_sequences")));
  EXPECT_EQ(stage->Fork(1).status().code(), absl::StatusCode::kResourceExhausted);
  stage->Close(1);
  EXPECT_EQ(Open(), 1);
}

TEST_P(StageTest, PositionsCountTokens) {
  const int slot = Open();
  EXPECT_EQ(stage->position(slot), 0);
  Logits(slot, Tokens(10), 0);
  EXPECT_EQ(stage->position(slot), 10);
  Logits(slot, Tokens(1));
  EXPECT_EQ(stage->position(slot), 11);
  stage->Close(slot);
  EXPECT_EQ(stage->position(Open()), 0);
}

TEST_P(StageTest, NoChunksNoOutput) {
  EXPECT_TRUE(Forward({}).ok());
  EXPECT_FALSE(output.logits);
  EXPECT_FALSE(output.hidden);
}

// A closed sequence leaves nothing behind, in no kind of layer.
TEST_P(StageTest, ReusedSlotsAreClean) {
  const std::vector<std::vector<std::string>> models = {
      {"eagle"}, {"finch", "gold", "gold"}, {"finch_c2", "gptalpha"}, {"llama"}};
  for (const std::vector<std::string>& layers : models) {
    SCOPED_TRACE(testing::PrintToString(layers));
    StageOptions options = Options();
    options.max_sequences = 1;
    Make(layers, options);
    const std::vector<float> fresh = Logits(Open(), Tokens(30), 20);
    stage->Close(0);
    // As it is after pre-fill only, and after decode.
    for (const int64_t logit_rows : {0, 1}) {
      Logits(Open(), Tokens(77, /*seed=*/9), logit_rows);
      stage->Close(0);
      EXPECT_EQ(Logits(Open(), Tokens(30), 20), fresh);
      stage->Close(0);
    }
  }
}

TEST_P(StageTest, TunedInitialStatesAreOfEveryNewSequence) {
  auto loaded = LoadModel(*backend, OpenTensors(RandomModel({.layers = {"finch"}, .time_state = true})), {});
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  stage = *Stage::Create(*backend, *loaded, Options());
  const std::vector<float> first = Logits(Open(), Tokens(3));
  EXPECT_EQ(Logits(Open(), Tokens(3)), first);
  stage->Close(0);
  EXPECT_EQ(Logits(Open(), Tokens(3)), first);
}

// ---- Errors leave everything as it was.

// Runs a call that fails beside the same sequences without it.
void ExpectNothingChanged(StageTest& test, const std::function<void()>& fail) {
  const int slot = test.Open(), other = test.Open();
  test.Logits(slot, Tokens(20));
  test.Logits(other, Tokens(30, /*seed=*/6), 0);
  const int64_t bytes = test.stage->CacheBytes();
  fail();
  EXPECT_EQ(test.stage->CacheBytes(), bytes);
  EXPECT_EQ(test.stage->position(slot), 20);
  EXPECT_EQ(test.stage->position(other), 30);
  const std::vector<float> logits = test.Logits(slot, Tokens(5), 5);
  const std::vector<float> other_logits = test.Logits(other, Tokens(5), 5);
  test.stage->Close(slot);
  test.stage->Close(other);

  ASSERT_EQ(test.Open(), slot);
  ASSERT_EQ(test.Open(), other);
  test.Logits(slot, Tokens(20));
  test.Logits(other, Tokens(30, /*seed=*/6), 0);
  EXPECT_EQ(test.Logits(slot, Tokens(5), 5), logits);
  EXPECT_EQ(test.Logits(other, Tokens(5), 5), other_logits);
}

TEST_P(StageTest, IdsOutsideTheVocabulary) {
  for (const int32_t id : {-1, 40, 65536, INT32_MAX, INT32_MIN}) {
    ExpectNothingChanged(*this, [this, id] {
      const std::vector<int32_t> good = {1, 2}, bad = {3, 4, id};
      const absl::Status status = Forward({{0, good, 1}, {1, bad, 1}});
      EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
      EXPECT_THAT(std::string(status.message()), AllOf(HasSubstr(std::to_string(id)), HasSubstr("vocabulary of 40")));
    });
    stage->Close(0);
    stage->Close(1);
  }
}

TEST_P(StageTest, TooManyTokensAtOnce) {
  ExpectNothingChanged(*this, [this] {
    const std::vector<int32_t> ids = Tokens(60);
    const absl::Status status = Forward({{0, ids, 1}, {1, ids, 1}});
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()), AllOf(HasSubstr("120"), HasSubstr("100")));
  });
}

TEST_P(StageTest, ASequenceThatIsTooLong) {
  StageOptions options = Options();
  options.max_sequence_tokens = 40;
  Make({"finch_c2", "gold"}, options);
  ExpectNothingChanged(*this, [this] {
    const std::vector<int32_t> ids = Tokens(21);
    const absl::Status status = Forward({{0, ids, 1}});
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()), AllOf(HasSubstr("41"), HasSubstr("40")));
  });
}

TEST_P(StageTest, TooManyLogits) {
  ExpectNothingChanged(*this, [this] {
    const std::vector<int32_t> ids = Tokens(15);
    const absl::Status status = Forward({{0, ids, 15}, {1, ids, 6}});
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()), AllOf(HasSubstr("21"), HasSubstr("20")));
  });
}

TEST_P(StageTest, AllOfTheTokensAndLogitsThatOptionsAllow) {
  const std::vector<int32_t> ids = Tokens(50);
  Open();
  Open();
  EXPECT_TRUE(Forward({{0, ids, 10}, {1, ids, 10}}).ok());
  EXPECT_TRUE(Forward({{0, ids, 20}, {1, ids, 0}}).ok());
}

TEST_P(StageTest, FullCaches) {
  for (const std::vector<std::string>& layers :
       std::vector<std::vector<std::string>>{{"finch_c2", "gold"}, {"llama"}}) {
    StageOptions options = Options();
    options.cache_tokens = 1;  // one page, and one for each of the three slots
    Make(layers, options);
    ExpectNothingChanged(*this, [this] {
      const int third = Open();
      const std::vector<int32_t> two_pages = Tokens(65);
      EXPECT_TRUE(Forward({{third, two_pages, 1}}).ok());
      // Either would fit, both do not.
      const std::vector<int32_t> ids = Tokens(45);
      const absl::Status status = Forward({{0, ids, 1}, {1, ids, 1}});
      EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
      EXPECT_THAT(std::string(status.message()), HasSubstr("256 positions"));
      stage->Close(third);
    });
  }
}

TEST_P(StageTest, AForkThatDoesNotFitChangesNothing) {
  StageOptions options = Options();
  options.cache_tokens = 1;
  Make({"finch_c2", "gold"}, options);
  const int slot = Open();
  Logits(slot, Tokens(100));
  Logits(slot, Tokens(100));  // 200 tokens: all four pages
  const int64_t bytes = stage->CacheBytes();
  const absl::Status status = stage->Fork(slot).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()), HasSubstr("256 positions"));
  EXPECT_EQ(stage->CacheBytes(), bytes);
  Logits(slot, Tokens(56));
  // All pages full: nothing has to be copied.
  EXPECT_TRUE(stage->Fork(slot).ok());
  EXPECT_EQ(stage->CacheBytes(), bytes);
}

TEST_P(StageTest, RecurrentModelsNeedNoCache) {
  StageOptions options = Options();
  options.cache_tokens = 1;
  Make({"finch", "eagle"}, options);
  const int slot = Open();
  for (int i = 0; i < 20; ++i) Logits(slot, Tokens(100));
  EXPECT_EQ(stage->position(slot), 2000);
  EXPECT_EQ(stage->CacheBytes(), 0);
  EXPECT_TRUE(stage->Fork(slot).ok());
}

// ---- Memory.

TEST_P(StageTest, CachesGrowByPagesAndAreReleased) {
  const ModelShape& shape = stage->model().shape;
  const int64_t page_bytes = kCachePageTokens * shape.CacheBytesPerToken(DType::kF32);
  EXPECT_EQ(shape.CacheBytesPerToken(DType::kF32), 4 * kWidth / 16 + 2);
  const int slot = Open();
  EXPECT_EQ(stage->CacheBytes(), 0);
  Logits(slot, Tokens(1), 0);
  EXPECT_EQ(stage->CacheBytes(), page_bytes);
  Logits(slot, Tokens(63), 0);
  EXPECT_EQ(stage->CacheBytes(), page_bytes);
  Logits(slot, Tokens(1));
  EXPECT_EQ(stage->CacheBytes(), 2 * page_bytes);

  // A fork shares the full page and has its own last one.
  const int copy = *stage->Fork(slot);
  EXPECT_EQ(stage->position(copy), 65);
  EXPECT_EQ(stage->CacheBytes(), 3 * page_bytes);
  stage->Close(slot);
  EXPECT_EQ(stage->CacheBytes(), 2 * page_bytes);
  Logits(copy, Tokens(3));
  stage->Close(copy);
  EXPECT_EQ(stage->CacheBytes(), 0);
}

TEST_P(StageTest, CacheBytesOfKeysAndValues) {
  StageOptions options = Options();
  options.cache_dtype = DType::kBf16;
  Make({"llama", "gptalpha", "finch"}, options);
  Logits(Open(), Tokens(2));
  EXPECT_EQ(stage->CacheBytes(), kCachePageTokens * 2 * 2 * 2 * kWidth);  // layers, keys and values, bytes, channels
}

TEST_P(StageTest, KeysAndValuesAreNotKeptIn8Bits) {
  StageOptions options = Options();
  options.cache_dtype = DType::kInt8;
  const auto created = Stage::Create(*backend, Load(*backend, {"finch_c2", "llama", "gold"}), options);
  EXPECT_EQ(created.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(created.status().message()), HasSubstr("layer 1 (llama)"));
}

// Rows that are shared after a fork and rows of a page that was copied are the same bytes.
TEST_P(StageTest, ForksOver8BitRows) {
  StageOptions options = Options();
  options.cache_dtype = DType::kInt8;
  Make({"finch_c2", "gold"}, options);
  const std::vector<int32_t> ids = Tokens(90);
  const int slot = Open();
  Logits(slot, {ids.begin(), ids.begin() + 80}, 0);
  EXPECT_EQ(stage->CacheBytes(), 2 * kCachePageTokens * (2 + kWidth / 16 + 2)) << "ids, numbers, scales";
  const int copy = *stage->Fork(slot);
  const std::vector<int32_t> end(ids.begin() + 80, ids.end());
  const auto expected = Logits(slot, end);
  EXPECT_EQ(Logits(copy, end), expected);
}

TEST_P(StageTest, FailedAllocationsAreNamedErrors) {
  FakeDevice failing(MakeCpuBackend(/*threads=*/1));
  const std::shared_ptr<const Model> model = Load(failing, {"llama", "finch_c2", "gold"});
  int64_t failures = 0;
  for (;; ++failures) {
    failing.set_allocations_left(failures);
    const auto created = Stage::Create(failing, model, Options());
    if (created.ok()) break;
    ASSERT_EQ(created.status().code(), absl::StatusCode::kResourceExhausted);
    ASSERT_THAT(std::string(created.status().message()), HasSubstr("no memory for"));
    ASSERT_LT(failures, 100);
  }
  EXPECT_GT(failures, 10) << "caches, states and activations are allocations of their own";
}

// ---- Outputs.

TEST_P(StageTest, OutputsOfAStageThatIsNotTheLast) {
  auto loaded = LoadModel(*backend, OpenTensors(RandomModel({.layers = {"finch_c2", "gold", "gold"}})), {}, 0, 1);
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  stage = *Stage::Create(*backend, *loaded, Options());
  const int slot = Open();
  EXPECT_TRUE(Logits(slot, Tokens(30), 0).empty());
  EXPECT_FALSE(output.hidden) << "a chunk that does not end the prompt sends no rows";
  EXPECT_EQ(output.compressed.shape, (Shape{30, kWidth / 16}));
  EXPECT_TRUE(Logits(slot, Tokens(1)).empty());
  EXPECT_EQ(output.hidden.shape, (Shape{5, kWidth})) << "2G + 1";
  EXPECT_EQ(output.compressed.shape, (Shape{1, kWidth / 16}));
  EXPECT_TRUE(Logits(slot, Tokens(1)).empty());
  EXPECT_EQ(output.hidden.shape, (Shape{1, kWidth}));
}

// What each stage says it must get is what the stage before it puts out: hidden rows, and from the boundary on the
// compressed rows of every token, rounded once.
TEST_P(StageTest, InputRowsAreWhatTheStageBeforePutsOut) {
  const auto checkpoint = OpenTensors(RandomModel({.layers = {"finch_c2", "finch_c2", "gold", "gold"}}));
  StageOptions options = Options();
  options.cache_dtype = DType::kBf16;
  std::vector<std::unique_ptr<Stage>> stages;
  for (int layer = 0; layer < 4; ++layer) {
    stages.push_back(*Stage::Create(*backend, *LoadModel(*backend, checkpoint, {}, layer, layer + 1), options));
    EXPECT_EQ(*stages.back()->Open(), 0);
    EXPECT_EQ(*stages.back()->Open(), 1);
  }
  const std::vector<int32_t> ids = Tokens(100);
  const auto chunk = [&ids](int slot, int64_t tokens, int64_t rows) {
    return Chunk{slot, {ids.data(), static_cast<size_t>(tokens)}, rows};
  };
  struct Case {
    std::vector<Chunk> chunks;
    std::vector<StageRows> rows;  // of stages 1 to 3
  };
  const std::vector<Case> cases = {
      {{chunk(0, 40, 0)}, {{40, 0}, {0, 40}, {0, 40}}},
      {{chunk(0, 1, 1), chunk(1, 2, 2)}, {{3, 0}, {5 + 2, 3}, {3 + 2, 3}}},
      {{chunk(1, 1, 1), chunk(0, 1, 1)}, {{2, 0}, {2, 2}, {2, 2}}},
      {{chunk(1, 30, 0), chunk(0, 20, 5)}, {{50, 0}, {9, 50}, {7, 50}}},
      {{chunk(1, 2, 1)}, {{2, 0}, {5, 2}, {3, 2}}},
  };
  for (const Case& test_case : cases) {
    StageInput input;
    ConstTensor compressed;
    for (size_t i = 0; i < stages.size(); ++i) {
      const StageRows expected = i == 0 ? StageRows{} : test_case.rows[i - 1];
      EXPECT_EQ(stages[i]->InputRows(test_case.chunks).hidden, expected.hidden) << "stage " << i;
      EXPECT_EQ(stages[i]->InputRows(test_case.chunks).compressed, expected.compressed) << "stage " << i;
      ASSERT_EQ(input.hidden ? input.hidden.dim(0) : 0, expected.hidden) << "stage " << i;
      ASSERT_TRUE(stages[i]->Forward(test_case.chunks, input, &output).ok());
      if (output.compressed) {
        EXPECT_EQ(i, 1u);
        EXPECT_EQ(output.compressed.dtype, DType::kBf16);
        compressed = output.compressed;
      }
      input = {output.hidden, compressed};
    }
    EXPECT_TRUE(output.logits || test_case.chunks.front().logit_rows == 0);
  }
}

TEST_P(StageTest, ReservedBytesAreStatesCachesAndActivations) {
  StageOptions options = Options();
  const int64_t before = stage->ReservedBytes();
  options.cache_tokens += 10 * kCachePageTokens;
  Make({"finch_c2", "gold"}, options);
  EXPECT_EQ(stage->ReservedBytes() - before, 10 * kCachePageTokens * (2 + 4 * kWidth / 16))
      << "ids and compressed rows";
  const int64_t cached = stage->ReservedBytes();
  ++options.max_sequences;
  Make({"finch_c2", "gold"}, options);
  EXPECT_GE(stage->ReservedBytes() - cached, stage->model().shape.StateBytes());
}

TEST_P(StageTest, AGoldLayersTableAndStatesAreReserved) {
  const int64_t one = stage->ReservedBytes();
  Make({"finch_c2", "gold", "gold"}, Options());
  const int64_t mix_table_bytes = 4 * kVocab * 2 * 2 * 8;  // fp32, two targets of rank 8
  const int64_t row_bytes = 4 * kWidth * Options().max_sequences;
  // Two shift rows and two more of the newest rows a sequence; the rest are activations.
  EXPECT_GE(stage->ReservedBytes() - one, mix_table_bytes + 4 * row_bytes);
}

TEST_P(StageTest, DeathOfMisuse) {
  const int slot = Open();
  const std::vector<int32_t> ids = Tokens(2);
  EXPECT_DEATH(Forward({{slot, {}, 0}}).IgnoreError(), "count");
  EXPECT_DEATH(Forward({{slot, ids, 3}}).IgnoreError(), "logit_rows");
  EXPECT_DEATH(Forward({{2, ids, 1}}).IgnoreError(), "slot 2");
  EXPECT_DEATH(Forward({{17, ids, 1}}).IgnoreError(), "slot 17");
  EXPECT_DEATH(Forward({{slot, ids, 1}, {slot, ids, 1}}).IgnoreError(), "slot");
  EXPECT_DEATH(stage->Close(2), "slot 2");
  EXPECT_DEATH(stage->Fork(2).IgnoreError(), "slot 2");
}

INSTANTIATE_TEST_SUITE_P(Devices, StageTest, testing::Values(Device::kCpu, Device::kFake, Device::kFakeBf16),
                         [](const auto& info) { return testing::PrintToString(info.param); });

}  // namespace
}  // namespace goldfinch
