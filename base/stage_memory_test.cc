#include "base/stage_memory.h"

#include <cstdint>
#include <limits>
#include <map>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace goldfinch {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

// Four Finch-side layers and two GOLD layers; every number is another one, so that sums show what they are made of.
ModelMemory Model() {
  ModelMemory model;
  for (int i = 0; i < 6; ++i) {
    const bool gold = i >= 4;
    model.layers.push_back({.weight_bytes = 1'000'000 << i,
                            .table_bytes = gold ? 5000 : 0,
                            .shift_bytes = 100,
                            .wkv_bytes = gold ? 0 : 3000,
                            .cache_bytes_per_token = i == 1 ? 64 : 0,
                            .activation_bytes = 10 * (i + 1)});
  }
  model.gold_layers = 2;
  model.width = 16;
  model.vocab_size = 50;
  model.compressed_width = 1;
  model.compressed_row_bytes = 2;
  model.compressed_bytes_per_token = 4;
  model.embedding_bytes = 7;
  model.gold_shared_bytes = 70;
  model.key_table_bytes = 700;
  model.head_bytes = 7000;
  model.back_end_bytes = 1 << 20;
  model.back_end_bytes_per_row = 3;
  model.back_end_bytes_per_logit_row = 11;
  return model;
}

StageSettings Settings(int first, int last) {
  return {.first_layer = first,
          .last_layer = last,
          .later_stages = 6 - last,  // each layer a stage
          .max_sequences = 3,
          .cache_tokens = 130,
          .max_step_tokens = 20,
          .max_logit_rows = 5};
}

constexpr int64_t kRows = 20 + 2 * 2 * 3;  // of a step, with those of the pre-fill rule
constexpr int64_t kPages = 3 + 3;          // 130 tokens, and a part of one a sequence
constexpr int64_t kRounding = 64 << 10;
constexpr int64_t kHidden = kRows * 16 * 4, kCompressed = 20 * 1 * 2;  // bytes of rows of a step
// Four of each, rounded up to pages of the memory.
constexpr int64_t kHiddenChannel = 4 * 4096, kCompressedChannel = 4 * 4096;
static_assert(kHidden <= 4096 && kCompressed <= 4096);

std::map<std::string, int64_t> Parts(int first, int last) {
  std::map<std::string, int64_t> parts;
  for (const MemoryPart& part : PlanStageMemory(Model(), Settings(first, last)).Parts()) {
    if (part.bytes != 0) parts[part.name] = part.bytes;
  }
  return parts;
}

using Expected = std::map<std::string, int64_t>;

TEST(StageMemoryTest, AllLayersInOneStage) {
  EXPECT_EQ(Parts(0, 6),
            (Expected{{"weights", 63'000'000 + 7 + 70 + 7000},
                      {"tables", 2 * 5000 + 700},
                      {"shift states", 6 * 100 * 3},
                      {"WKV states", 4 * 3000 * 3},
                      {"tail rows", 3 * 2 * 2 * 16 * 4},
                      {"key/value caches", 64 * 64 * kPages},
                      {"compressed cache", 4 * 64 * kPages},
                      {"activations", kRows * 60 + 4 * ((20 + kRows) * 16 + 2 * 20 * 1 + 5 * (16 + 50)) + kRounding},
                      {"back end", (1 << 20) + 3 * kRows + 11 * 5}}));
}

TEST(StageMemoryTest, StagesOfAPipeline) {
  constexpr int64_t kFloats = 4 * ((20 + kRows) * 16 + 2 * 20 * 1 + 5 * 16) + kRounding;
  constexpr int64_t kBackEnd = (1 << 20) + 3 * kRows;
  EXPECT_EQ(Parts(0, 2), (Expected{{"weights", 3'000'000 + 7},
                                   {"shift states", 2 * 100 * 3},
                                   {"WKV states", 2 * 3000 * 3},
                                   {"key/value caches", 64 * 64 * kPages},
                                   {"activations", kRows * 20 + kFloats},
                                   {"channels", kHiddenChannel},
                                   {"back end", kBackEnd}}));
  // The last Finch-side layer keeps the newest rows, and sends compressed rows to both stages after it.
  EXPECT_EQ(Parts(2, 4), (Expected{{"weights", 12'000'000},
                                   {"shift states", 2 * 100 * 3},
                                   {"WKV states", 2 * 3000 * 3},
                                   {"tail rows", 3 * 2 * 2 * 16 * 4},
                                   {"activations", kRows * 40 + kFloats},
                                   {"received rows", kHidden},
                                   {"channels", 2 * kHiddenChannel + kCompressedChannel},
                                   {"back end", kBackEnd}}));
  // GOLD layers get compressed rows as well, and have the embedding and the tables.
  EXPECT_EQ(Parts(4, 5), (Expected{{"weights", 16'000'000 + 7 + 70},
                                   {"tables", 5000 + 700},
                                   {"shift states", 100 * 3},
                                   {"compressed cache", 4 * 64 * kPages},
                                   {"activations", kRows * 50 + kFloats},
                                   {"received rows", kHidden + kCompressed},
                                   {"channels", 2 * kHiddenChannel},
                                   {"back end", kBackEnd}}));
  // From the boundary on in one stage: the compressed rows are its own.
  const Expected boundary = Parts(3, 6);
  EXPECT_EQ(boundary.at("received rows"), kHidden);
  EXPECT_EQ(boundary.at("channels"), kHiddenChannel);
  // Not from the stage before: a channel for each kind of row.
  EXPECT_EQ(Parts(5, 6).at("channels"), kHiddenChannel + kCompressedChannel);
  EXPECT_EQ(boundary.at("tail rows"), 3 * 2 * 2 * 16 * 4);
}

TEST(StageMemoryTest, CopiesOfSnapshotsAreCountedWhereTheyAreMade) {
  ModelMemory model = Model();
  EXPECT_EQ(PlanStageMemory(model, Settings(0, 6)).snapshots, 0);
  model.snapshot_copies = kSnapshotCopies;
  const auto snapshots = [&](int first, int last) { return PlanStageMemory(model, Settings(first, last)).snapshots; };
  constexpr int64_t kLayerRounding = 3 * 256;
  EXPECT_EQ(snapshots(0, 1), 2 * (100 + 3000 + kLayerRounding));
  EXPECT_EQ(snapshots(2, 4), 2 * (2 * (100 + 3000 + kLayerRounding) + 2 * 2 * 16 * 4 + 256)) << "with tail rows";
  EXPECT_EQ(snapshots(5, 6), 2 * (100 + kLayerRounding + 50 * 4 + 256)) << "with logits";
  StageSettings more = Settings(0, 6);
  more.max_sequences = 30;
  more.max_logit_rows = 20;
  EXPECT_EQ(PlanStageMemory(model, more).snapshots, snapshots(0, 6)) << "however many sequences there are";
  const int64_t with = PlanStageMemory(model, Settings(3, 6)).total();
  EXPECT_EQ(KeptBytes(model, Settings(3, 6), with + 123), 123) << "kept rows leave them their memory";
}

TEST(StageMemoryTest, CacheTokensAreWhatFitsBesideTheRest) {
  const ModelMemory model = Model();
  StageSettings settings = Settings(0, 6);
  settings.cache_tokens = 0;
  const int64_t least = PlanStageMemory(model, settings).total();
  const int64_t page = 64 * (64 + 4);
  EXPECT_EQ(CacheTokensThatFit(model, settings, least - 1), -1);
  EXPECT_EQ(CacheTokensThatFit(model, settings, least), 0);
  EXPECT_EQ(CacheTokensThatFit(model, settings, least + page - 1), 0);
  EXPECT_EQ(CacheTokensThatFit(model, settings, least + 5 * page), 5 * 64);
  settings.cache_tokens = 5 * 64;
  EXPECT_EQ(PlanStageMemory(model, settings).total(), least + 5 * page) << "what fits is what is planned then";
  EXPECT_EQ(CacheTokensThatFit(model, Settings(2, 4), 1 << 30), std::numeric_limits<int64_t>::max()) << "no caches";
}

TEST(StageMemoryTest, KeptRowsTakeWhatIsLeft) {
  const ModelMemory model = Model();
  StageSettings settings = Settings(3, 6);
  const int64_t rest = PlanStageMemory(model, settings).total();
  const int64_t all = 64 * kPages * 2 * 2 * 16 * 4;  // keys and values of two layers in fp32
  EXPECT_EQ(KeptBytes(model, settings, rest - 1), 0);
  EXPECT_EQ(KeptBytes(model, settings, rest + 123), 123);
  EXPECT_EQ(KeptBytes(model, settings, rest + 2 * all), all);
  EXPECT_EQ(KeptBytes(model, Settings(0, 4), rest + all), 0) << "no GOLD layers";
  settings.kept_bytes = 123;
  EXPECT_EQ(PlanStageMemory(model, settings).total(), rest + 123);
  EXPECT_EQ(KeptBytes(model, settings, rest + 456), 456) << "whatever is set already";
}

TEST(StageMemoryTest, KeptBytesOfATokenAreThoseOfTheStagesGoldLayers) {
  ModelMemory model = Model();
  model.key_table_bytes = 50 * 16 * 4;                                      // fp32 activations
  for (int i : {4, 5}) model.layers[i].table_bytes = 50 * 2 * 4 * (i - 1);  // 3 and 4 inner rows
  EXPECT_EQ(GoldLoraRank(model, 4), 3);
  EXPECT_EQ(GoldLoraRank(model, 0), 0);
  const KeptTokenBytes all = KeptBytesPerToken(model, 0, 6), one = KeptBytesPerToken(model, 5, 6);
  EXPECT_EQ(all.shared, (16 + 3 * 3 + 3 * 4) * 4);
  EXPECT_EQ(all.full, 2 * 2 * 16 * 4);
  EXPECT_EQ(one.shared, (16 + 3 * 4) * 4);
  EXPECT_EQ(one.full, 2 * 16 * 4);
  EXPECT_EQ(KeptBytesPerToken(model, 0, 4).full, 0) << "no GOLD layers";
}

TEST(StageMemoryTest, TheSharedTierForAllGoesBeforeTheFullTierForSome) {
  const auto share = [](KeptTokenBytes per_token, int64_t bytes) {
    const KeptTokens tokens = ShareKeptBytes(per_token, bytes, 100);
    return std::vector<double>{tokens.compressed, tokens.shared, tokens.full};
  };
  const KeptTokenBytes per_token{.shared = 10, .full = 60};
  EXPECT_THAT(share(per_token, -5), ElementsAre(100, 0, 0));
  EXPECT_THAT(share(per_token, 400), ElementsAre(60, 40, 0));
  EXPECT_THAT(share(per_token, 1000), ElementsAre(0, 100, 0));
  EXPECT_THAT(share(per_token, 2000), ElementsAre(0, 80, 20));
  EXPECT_THAT(share(per_token, 6000), ElementsAre(0, 0, 100));
  EXPECT_THAT(share(per_token, 1'000'000), ElementsAre(0, 0, 100));
  EXPECT_THAT(share({.shared = 60, .full = 40}, 400), ElementsAre(90, 0, 10)) << "one layer";
}

// The shape of the paper's 1.5B model: a token of the cache is 258 bytes where a transformer keeps 196,608.
TEST(StageMemoryTest, TheResidentCacheIs756TimesSmaller) {
  ModelMemory model;
  model.layers.resize(24);
  model.gold_layers = 8;
  model.width = 2048;
  model.compressed_width = 128;
  model.compressed_row_bytes = 128 * 2;
  model.compressed_bytes_per_token = 128 * 2 + 2;
  const int64_t tokens = 1 << 20;
  StageSettings settings{.last_layer = 24, .max_sequences = 1, .cache_tokens = tokens};
  const StageMemory memory = PlanStageMemory(model, settings);
  EXPECT_EQ(memory.compressed_cache, 258 * (tokens + 64));
  const int64_t transformer_bytes = tokens * 24 * 2 * 2048 * 2;
  EXPECT_EQ(transformer_bytes / tokens, 196'608);
  EXPECT_GE(transformer_bytes / memory.compressed_cache, 756);
}

// In 8 bits, a shape of twice that width keeps 262,144 tokens in 0.068 GB.
TEST(StageMemoryTest, ALongContextIn8Bits) {
  ModelMemory model;
  model.layers.resize(32);
  model.gold_layers = 10;
  model.width = 4096;
  model.compressed_width = 256;
  model.compressed_row_bytes = 256 + 2;
  model.compressed_bytes_per_token = model.compressed_row_bytes + 2;
  const int64_t tokens = 1 << 18;
  const StageMemory memory = PlanStageMemory(model, {.last_layer = 32, .max_sequences = 1, .cache_tokens = tokens});
  EXPECT_EQ(memory.compressed_cache, 260 * (tokens + 64));
  EXPECT_NEAR(static_cast<double>(memory.compressed_cache) / 1e9, 0.068, 0.0005);
}

TEST(StageMemoryTest, TextNamesWhatThereIs) {
  const std::string text = ToString(PlanStageMemory(Model(), Settings(2, 4)));
  EXPECT_THAT(text, HasSubstr("weights 12 MB, shift states 600 B, WKV states 18 kB"));
  EXPECT_THAT(text, Not(HasSubstr("compressed cache")));
}

TEST(StageMemoryTest, TableAndShortageNameEachPart) {
  const StageMemory memory = PlanStageMemory(Model(), Settings(2, 4));
  const std::vector<std::string> table = MemoryTable(memory, 1 << 30);
  EXPECT_THAT(table, ElementsAre("weights                12 MB", "shift states           600 B",
                                 "WKV states             18 kB", HasSubstr("tail rows"), HasSubstr("activations"),
                                 HasSubstr("received rows"), HasSubstr("channels"), HasSubstr("back end"),
                                 HasSubstr("in all"), HasSubstr("left                 1.06 GB")));
  EXPECT_EQ(MemoryTable(memory, 0).size(), table.size() - 1) << "no limit, nothing left";
  EXPECT_THAT(
      MemoryShortage(memory, 1'000'000),
      AllOf(HasSubstr("MB are needed (weights 12 MB, "), HasSubstr("), 1 MB may be used"), HasSubstr("max_sequences"),
            HasSubstr("max_model_len"), HasSubstr("gpu_memory_utilization"), HasSubstr("more workers")));
}

}  // namespace
}  // namespace goldfinch
