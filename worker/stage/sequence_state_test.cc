#include "worker/stage/sequence_state.h"

#include <cstdint>
#include <map>
#include <memory>
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
#include "worker/stage/stage.h"

namespace goldfinch {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr int64_t kVocab = 40, kWidth = 64;  // of RandomModel

using Kind = StatePartKind;
using Key = std::pair<int, Kind>;  // of a part: layer and kind
// Bytes of a sequence, or of a token.
using Sizes = std::vector<std::pair<Key, int64_t>>;

class SequenceStateTest : public testing::Test {
 public:
  std::shared_ptr<const Model> Load(const RandomModelSpec& options, int first = 0, int last = -1) {
    auto model = LoadModel(device, OpenTensors(RandomModel(options)), {}, first, last);
    EXPECT_TRUE(model.ok()) << model.status();
    return *model;
  }
  std::unique_ptr<SequenceStates> Make(const Model& model, int64_t cache_tokens = 256) {
    auto states = SequenceStates::Create(
        device, model,
        {.max_sequences = 3, .max_sequence_tokens = 200, .cache_tokens = cache_tokens, .cache_dtype = DType::kF32});
    EXPECT_TRUE(states.ok()) << states.status();
    return *std::move(states);
  }
  Sizes PartSizes(const SequenceStates& states) {
    Sizes sizes;
    for (const SequenceStates::Part& part : states.parts()) {
      sizes.push_back({{part.part.layer, part.part.kind}, part.part.bytes()});
    }
    return sizes;
  }
  // All that the walk shows of a sequence, by part and first position.
  std::map<std::pair<Key, int64_t>, std::string> Bytes(const SequenceStates& states, int slot) {
    std::map<std::pair<Key, int64_t>, std::string> bytes;
    states.Walk(slot, [&](const StatePart& part, int64_t begin, Tensor values) {
      std::string& copy = bytes[{{part.layer, part.kind}, begin}];
      EXPECT_TRUE(copy.empty()) << "walked twice";
      copy.resize(values.bytes());
      device.CopyToHost(values, copy.data());
    });
    return bytes;
  }

  FakeDevice device{MakeCpuBackend(/*threads=*/1)};
};

constexpr int64_t kShift = 4 * kWidth, kWkv = 4 * kWidth * 64, kTail = 2 * 4 * kWidth, kRow = 4 * kWidth / 16;

TEST_F(SequenceStateTest, PartsAreNamedByLayerAndKind) {
  const auto model = Load({.layers = {"finch", "gptalpha", "gold"}});
  EXPECT_EQ(PartSizes(*Make(*model)), (Sizes{{{0, Kind::kTimeShift}, kShift},
                                             {{0, Kind::kChannelShift}, kShift},
                                             {{0, Kind::kWkv}, kWkv},
                                             {{1, Kind::kTimeShift}, kShift},
                                             {{1, Kind::kChannelShift}, kShift},
                                             {{1, Kind::kKeys}, 4 * kWidth},
                                             {{1, Kind::kValues}, 4 * kWidth},
                                             {{1, Kind::kTailRows}, kTail},
                                             {{1, Kind::kIds}, 2},
                                             {{1, Kind::kRows}, kRow},
                                             {{2, Kind::kTimeShift}, kShift},
                                             {{2, Kind::kChannelShift}, kShift}}));
  EXPECT_EQ(PartSizes(*Make(*Load({.layers = {"llama"}}))),
            (Sizes{{{0, Kind::kKeys}, 4 * kWidth}, {{0, Kind::kValues}, 4 * kWidth}}));
}

// Whatever the split, stages have the parts of the whole model; the compressed cache is in each stage with GOLD layers.
TEST_F(SequenceStateTest, StagesHavePartsUnderTheNamesOfTheModel) {
  const RandomModelSpec options{.layers = {"finch", "finch", "gold", "gold"}};
  EXPECT_EQ(PartSizes(*Make(*Load(options, 1, 2))), (Sizes{{{1, Kind::kTimeShift}, kShift},
                                                           {{1, Kind::kChannelShift}, kShift},
                                                           {{1, Kind::kWkv}, kWkv},
                                                           {{1, Kind::kTailRows}, 2 * kTail}}));
  EXPECT_EQ(PartSizes(*Make(*Load(options, 3, 4))), (Sizes{{{1, Kind::kIds}, 2},
                                                           {{1, Kind::kRows}, kRow},
                                                           {{3, Kind::kTimeShift}, kShift},
                                                           {{3, Kind::kChannelShift}, kShift}}));
}

TEST_F(SequenceStateTest, WhatIsReservedIsTheSumOfTheParts) {
  const auto model = Load({.layers = {"finch", "gptalpha", "gold"}});
  const int64_t before = device.allocated_bytes();
  const std::unique_ptr<SequenceStates> states = Make(*model);
  const int64_t pages = 256 / 64 + 3;
  EXPECT_EQ(states->pages(), pages);
  EXPECT_EQ(states->page_bytes(), 64 * model->shape.CacheBytesPerToken(DType::kF32));
  EXPECT_EQ(states->reserved_bytes(), 3 * model->shape.StateBytes() + pages * states->page_bytes());
  EXPECT_EQ(device.allocated_bytes() - before, states->reserved_bytes());
}

TEST_F(SequenceStateTest, NewSequencesAreEmptyWhateverWasInTheirSlot) {
  const auto model = Load({.layers = {"finch", "gold"}, .time_state = true});
  const std::unique_ptr<SequenceStates> states = Make(*model);
  ASSERT_EQ(states->Open().value_or(-1), 0);
  const auto fresh = Bytes(*states, 0);
  EXPECT_EQ(fresh.size(), 6u) << "no pages";
  std::string initial(kWkv, '\0');
  device.CopyToHost(model->layers[0].initial_wkv, initial.data());
  for (const auto& [name, bytes] : fresh) {
    const bool wkv = name.first.second == Kind::kWkv;
    EXPECT_EQ(bytes, wkv ? initial : std::string(bytes.size(), '\0'));
  }
  states->Walk(0, [&](const StatePart&, int64_t, Tensor values) {
    device.CopyFromHost(std::string(values.bytes(), '\x3F').data(), values);
  });
  states->Close(0);
  ASSERT_EQ(states->Open().value_or(-1), 0);
  EXPECT_EQ(Bytes(*states, 0), fresh);
}

TEST_F(SequenceStateTest, PagesAreTakenAsTokensAre) {
  const std::unique_ptr<SequenceStates> states = Make(*Load({.layers = {"finch", "gold"}}));
  const int slot = *states->Open();
  EXPECT_EQ(states->MissingPages(slot, 65), 2);
  EXPECT_EQ(states->used_pages(), 0);
  states->Advance(slot, 64);
  EXPECT_EQ(states->at(slot).position, 64);
  EXPECT_EQ(states->at(slot).gold_position, 0);
  EXPECT_EQ(states->used_pages(), 1);
  EXPECT_EQ(states->MissingPages(slot, 1), 1);
  states->Advance(slot, 1);
  states->AdvanceGold(slot);
  EXPECT_EQ(states->at(slot).gold_position, 65);
  EXPECT_EQ(states->used_pages(), 2);
  states->Close(slot);
  EXPECT_EQ(states->used_pages(), 0);
  EXPECT_EQ(states->at(*states->Open()).position, 0);
}

TEST_F(SequenceStateTest, WithoutPartsPerTokenNoPagesAreTaken) {
  const std::unique_ptr<SequenceStates> states = Make(*Load({.layers = {"finch"}}));
  const int slot = *states->Open();
  states->Advance(slot, 1000);
  EXPECT_EQ(states->used_pages(), 0);
  EXPECT_EQ(states->page_bytes(), 0);
}

TEST_F(SequenceStateTest, TheWalkShowsThePositionsThatThereAre) {
  const std::unique_ptr<SequenceStates> states = Make(*Load({.layers = {"finch", "gold"}}));
  const int slot = *states->Open();
  states->Advance(slot, 100);
  std::vector<std::pair<int64_t, std::string>> ids;  // first position, shape
  states->Walk(slot, [&](const StatePart& part, int64_t begin, Tensor values) {
    if (part.kind == Kind::kIds) ids.emplace_back(begin, values.shape.ToString());
    if (part.kind == Kind::kRows) {
      EXPECT_EQ(values.dim(1), kWidth / 16);
    }
  });
  EXPECT_THAT(ids,
              ElementsAre(std::pair<int64_t, std::string>(0, "[64]"), std::pair<int64_t, std::string>(64, "[36]")));
}

// A real sequence of a stage: its fork has all of its state, in every kind of part, and then a state of its own.
TEST_F(SequenceStateTest, ForksHaveTheWholeStateAndGoOnAlone) {
  auto stage = Stage::Create(device, Load({.layers = {"finch_c2", "gptalpha", "gold", "gold"}}),
                             {.max_sequences = 3, .cache_tokens = 600, .max_step_tokens = 200});
  ASSERT_TRUE(stage.ok()) << stage.status();
  const SequenceStates& states = (*stage)->sequences();
  const int slot = *(*stage)->Open();
  StageOutput output;
  const auto run = [&](int which, int64_t tokens, uint64_t seed) {
    const std::vector<int32_t> ids = RandomTokens(tokens, kVocab, seed);
    const Chunk chunk{which, ids, 1};
    ASSERT_TRUE((*stage)->Forward({&chunk, 1}, {}, &output).ok());
  };
  run(slot, 150, 1);
  const auto before = Bytes(states, slot);
  EXPECT_EQ(states.used_pages(), 3);
  const int copy = *(*stage)->Fork(slot);
  EXPECT_EQ(states.used_pages(), 4) << "the last page is copied";
  EXPECT_EQ(Bytes(states, copy), before);
  run(copy, 7, 2);
  EXPECT_EQ(Bytes(states, slot), before);
  EXPECT_NE(Bytes(states, copy), before);
  EXPECT_EQ(states.at(copy).position, 157);
  EXPECT_EQ(states.at(copy).gold_position, 157);
  (*stage)->Close(slot);
  EXPECT_EQ(states.used_pages(), 3) << "shared pages are still in use";
  (*stage)->Close(copy);
  EXPECT_EQ(states.used_pages(), 0);
}

TEST_F(SequenceStateTest, SequencesThatBeginWithTheSamePagesOfASegmentShareThem) {
  const std::unique_ptr<SequenceStates> states = Make(*Load({.layers = {"finch", "gold"}}), /*cache_tokens=*/512);
  ASSERT_EQ(states->pages(), 11);
  const SegmentPages first{.segment = 7, .begin = 0, .end = 1}, second{.segment = 8, .begin = 1, .end = 3};
  const int a = *states->OpenAt(200, 0, {first, second});
  EXPECT_EQ(states->used_pages(), 4);
  EXPECT_EQ(states->PagesToOpen(200, {first, second}), 1);
  const int b = *states->OpenAt(200, 0, {first, second});
  EXPECT_EQ(states->used_pages(), 5) << "each has its own last page";
  EXPECT_EQ(states->SharedTokens(a, b), 192);
  EXPECT_TRUE(states->IsShared(b, 191));
  EXPECT_FALSE(states->IsShared(b, 192));
  states->Close(a);
  EXPECT_EQ(states->used_pages(), 4);
  EXPECT_FALSE(states->IsShared(b, 0));
  // Its fork holds them as well.
  const int fork = *states->Fork(b);
  states->Close(b);
  const int c = *states->OpenAt(200, 0, {first, second});
  EXPECT_EQ(states->SharedTokens(c, fork), 192);
  // The same segment in other pages, another segment, and one without a number.
  EXPECT_EQ(states->PagesToOpen(200, {{.segment = 8, .begin = 0, .end = 3}}), 4);
  EXPECT_EQ(states->PagesToOpen(200, {{.segment = 9, .begin = 0, .end = 1}}), 4);
  EXPECT_EQ(states->PagesToOpen(200, {{.segment = 0, .begin = 0, .end = 1}}), 4);
  states->Close(c);
  states->Close(fork);
  EXPECT_EQ(states->used_pages(), 0);
  EXPECT_EQ(states->PagesToOpen(200, {first, second}), 4) << "nobody has them any more";
  const int other = *states->Open();
  states->Advance(other, 200);
  EXPECT_EQ(states->PagesToOpen(200, {first, second}), 4) << "what takes the pages has another text";
}

TEST_F(SequenceStateTest, ErrorsLeaveEverythingAsItWas) {
  const std::unique_ptr<SequenceStates> states = Make(*Load({.layers = {"finch", "gold"}}), /*cache_tokens=*/64);
  ASSERT_EQ(states->pages(), 4);
  const int slot = *states->Open();
  states->Advance(slot, 4 * 64 - 1);
  const absl::Status full = states->Fork(slot).status();
  EXPECT_EQ(full.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(full.message()), AllOf(HasSubstr("caches are full"), HasSubstr("256 positions")));
  states->Advance(slot, 1);
  EXPECT_EQ(states->Fork(slot).value_or(-1), 1) << "full pages are shared: none is needed, and no slot was lost";
  EXPECT_EQ(states->Open().value_or(-1), 2);
  const absl::Status taken = states->Open().status();
  EXPECT_EQ(taken.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(taken.message()), AllOf(HasSubstr("all 3"), HasSubstr("max_sequences")));
  EXPECT_EQ(states->Fork(slot).status().code(), absl::StatusCode::kResourceExhausted);
}

TEST_F(SequenceStateTest, MorePagesThanCanBeNumberedAreAnError) {
  const auto model = Load({.layers = {"finch", "gold"}});
  const absl::Status status =
      SequenceStates::Create(device, *model, {.max_sequences = 1, .cache_tokens = INT64_MAX}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("cache_tokens is 9223372036854775807, the limit is 13743"));
}

}  // namespace
}  // namespace goldfinch
