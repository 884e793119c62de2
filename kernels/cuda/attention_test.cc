// Tests paths of the CUDA attention kernels that the common tests do not reach: tiles of every number of query rows,
// 16-bit types with heads of 64 and 128, positions split over blocks and over chunks, faults that rows must not see.
// Built over the emulation and over the device; the tests of the latter are SKIPPED if there is no device.
#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/cuda/cuda_cases.h"
#include "kernels/paged_test_util.h"

namespace goldfinch {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

class CudaAttentionTest : public BackendTest {
 public:
  bool halves() const { return act() != DType::kF32; }
};

// The sequences of a call, in pages.
struct Sequences {
  Sequences(TestRandom& random, const std::vector<TestChunk>& chunks, int64_t page_tokens)
      : paging(random, page_tokens, Lengths(chunks)), spans(SpansOf(random, chunks, paging)), rows(RowCount(chunks)) {}

  const Paging paging;
  std::vector<RowSpan> spans;
  int64_t rows = 0;
};

int64_t LengthOf(const RowSpan& span) { return span.position + span.row_count; }

// Stored keys and values of every sequence, and attention over them on the device.
struct KvInputs {
  KvInputs(CudaAttentionTest& t, const std::vector<TestChunk>& chunks, int64_t width, int head_size,
           int64_t page_tokens, double query_deviation = 1)
      : t(t), sequences(t.random, chunks, page_tokens), width(width), head_size(head_size) {
    q = t.random.Normal(sequences.rows * width, query_deviation, t.act());
    for (const RowSpan& span : sequences.spans) {
      keys.push_back(t.random.Normal(LengthOf(span) * width, 1, t.cache_dtype()));
      values.push_back(t.random.Normal(LengthOf(span) * width, 1, t.cache_dtype()));
    }
  }

  Values Expected() const {
    Values expected(q.size());
    for (size_t i = 0; i < sequences.spans.size(); ++i) {
      const RowSpan& span = sequences.spans[i];
      SetRows(reference::Attention(RowsOf(q, span, width), keys[i], values[i], width, head_size, span.position), span,
              width, expected);
    }
    return expected;
  }

  Values Actual() const {
    const Paging& paging = sequences.paging;
    const Shape shape{paging.pages(), paging.page_tokens(), width}, rows{sequences.rows, width};
    const KvCache cache{t.device.Put(paging.Scatter(keys, width), shape, t.cache_dtype()),
                        t.device.Put(paging.Scatter(values, width), shape, t.cache_dtype())};
    const Tensor out = t.device.New(t.act(), rows);
    t.device->KvAttention(t.device.Put(q, rows, t.act()), sequences.spans, cache, head_size, out);
    return t.device.Get(out);
  }

  void Check(const std::string& what, double tolerance_factor = 1) const {
    ExpectClose(Actual(), Expected(), head_size, tolerance_factor * t.tolerance(),
                what + ", head size " + std::to_string(head_size));
  }

  CudaAttentionTest& t;
  const Sequences sequences;
  const int64_t width;
  const int head_size;
  Values q;
  std::vector<Values> keys, values;
};

TEST_P(CudaAttentionTest, TilesOfEveryNumberOfRows) {
  for (int head_size : {64, 128}) {
    for (int rows : {1, 2, 4, 5, 9, 16, 17, 32, 33, 40, 65}) {
      const int64_t page_tokens = rows % 3 == 0 ? 1 : rows % 3 == 1 ? 16 : 37;
      KvInputs(*this, {{70, rows}}, head_size, head_size, page_tokens).Check(std::to_string(rows) + " rows");
    }
    KvInputs(*this, {{3, 9}, {100, 1}, {0, 17}, {40, 3}, {63, 1}, {0, 1}, {5, 40}}, 2 * head_size, head_size, 16)
        .Check("spans of all kinds");
  }
}

// Begins at every position at which a tile of 16 rows may meet a tile of 64 positions.
TEST_P(CudaAttentionTest, DiagonalsAnywhere) {
  for (int64_t position : {0, 1, 15, 16, 17, 47, 48, 55, 63, 64, 65}) {
    KvInputs(*this, {{position, 19}}, 64, 64, 16).Check("19 rows from " + std::to_string(position));
  }
}

TEST_P(CudaAttentionTest, WideRows) {
  // Sizes with several warps, with several blocks, and with a last warp that does not use all its lanes.
  for (int64_t heads : {7, 20, slow() ? 34 : 66}) {
    KvInputs(*this, {{33, 1}, {20, 2}}, 64 * heads, 64, 16).Check(std::to_string(heads) + " heads");
  }
}

TEST_P(CudaAttentionTest, HeadsOfEverySize) {
  for (int head_size : {16, 80, 256, 272, 1024}) {
    KvInputs(*this, {{40, 1}, {9, 2}}, head_size, head_size, 16).Check("one head");
  }
}

TEST_P(CudaAttentionTest, SplitsMerge) {
  const int64_t length = slow() ? 900 : 9000;
  KvInputs(*this, {{length, 1}}, 64, 64, 64).Check("one row");
  KvInputs(*this, {{length, 3}}, 64, 64, 64).Check("three rows");
  if (halves()) KvInputs(*this, {{length, 9}}, 64, 64, 64).Check("nine rows");
  // Either the first split or the last one has all the weight.
  for (bool first : {true, false}) {
    KvInputs in(*this, {{length, 1}}, 64, 64, 64);
    in.q.assign(64, 4);
    const int64_t at = first ? 2 : length - 2;
    std::fill_n(in.keys[0].begin() + at * 64, 64, 4);
    in.Check(first ? "the first split" : "the last split");
  }
}

TEST_P(CudaAttentionTest, PeakedScores) {
  for (double deviation : {0., 10., 300.}) {
    KvInputs(*this, {{130, 20}, {200, 1}}, 64, 64, 16, deviation).Check("peaked scores", std::max(1., deviation));
  }
}

// Checks that faulty rows are NaN, and that the others have their expected values.
void CheckFault(const Values& actual, const Values& expected, int64_t width, const std::vector<bool>& faulty,
                double tolerance, const std::string& what) {
  for (size_t row = 0; row < faulty.size(); ++row) {
    const Values mine = Slot(actual, static_cast<int>(row), width);
    const std::string where = what + ", row " + std::to_string(row);
    if (faulty[row]) {
      for (double x : mine) ASSERT_TRUE(std::isnan(x)) << where;
    } else {
      ExpectClose(mine, Slot(expected, static_cast<int>(row), width), width, 4 * tolerance, where);
    }
  }
}

TEST_P(CudaAttentionTest, FaultsStayWithTheRowsThatSeeThem) {
  const int64_t width = 64;
  for (int rows : {4, 9, 40}) {
    for (int64_t fault : {71, 75}) {
      for (bool in_values : {false, true}) {
        KvInputs in(*this, {{70, rows}}, width, 64, 16);
        if (fault >= LengthOf(in.sequences.spans[0])) continue;
        const Values expected = in.Expected();
        std::fill_n((in_values ? in.values : in.keys)[0].begin() + fault * width, width, kNan);
        std::vector<bool> faulty(rows);
        for (int row = 0; row < rows; ++row) faulty[row] = 70 + row >= fault;
        CheckFault(in.Actual(), expected, width, faulty, tolerance(),
                   std::string(in_values ? "value " : "key ") + std::to_string(fault) + " of " + std::to_string(rows) +
                       " rows");
      }
    }
    KvInputs in(*this, {{70, rows}}, width, 64, 16);
    const Values expected = in.Expected();
    in.q[2 * width + 5] = kNan;
    std::vector<bool> faulty(rows);
    faulty[2] = true;
    CheckFault(in.Actual(), expected, width, faulty, tolerance(), "query of " + std::to_string(rows) + " rows");
  }
}

// --- GOLD ------------------------------------------------------------------------------------------------------------

struct GoldInputs {
  GoldInputs(CudaAttentionTest& t, const std::vector<TestChunk>& chunks, const GoldSizes& sizes,
             int64_t page_tokens = 16, std::optional<DType> c_type = {})
      : t(t),
        c_dtype(c_type.value_or(t.cache_dtype())),
        layer(RandomGoldLayer(t.random, sizes, t.weight_dtype())),
        sequences(t.random, chunks, page_tokens),
        c_width(sizes.width / 16),
        width(sizes.width) {
    q = t.random.Normal(sequences.rows * width, 1, t.act());
    for (const RowSpan& span : sequences.spans) {
      ids.push_back(t.random.Ids(LengthOf(span), sizes.vocab));
      c.push_back(RoundCompressed(t.random.Normal(LengthOf(span) * c_width, 1), c_width, c_dtype));
    }
  }

  Values Expected() const {
    Values expected(q.size());
    for (size_t i = 0; i < sequences.spans.size(); ++i) {
      const RowSpan& span = sequences.spans[i];
      const reference::KeysValues kv = reference::GoldMakeKeysValues(layer, ids[i], c[i]);
      SetRows(reference::Attention(RowsOf(q, span, width), kv.keys, kv.values, width, layer.head_size, span.position),
              span, width, expected);
    }
    return expected;
  }

  // By GoldAttention, or by GoldSharedAttention over shared rows.
  Values Actual(bool shared_rows = false) const {
    const Paging& paging = sequences.paging;
    std::vector<Values> id_values;
    id_values.reserve(ids.size());
    for (const auto& sequence : ids) id_values.push_back(IdValues(sequence));
    const int64_t pages = paging.pages(), page_tokens = paging.page_tokens();
    const GoldCache cache{t.device.Put(paging.Scatter(id_values, 1), {pages, page_tokens}, DType::kU16),
                          t.device.PutCompressed(paging.Scatter(c, c_width), {pages, page_tokens, c_width}, c_dtype)};
    const Shape rows{sequences.rows, width};
    const Tensor out = t.device.New(t.act(), rows), q_rows = t.device.Put(q, rows, t.act());
    const GoldSharedWeights shared = PutGoldShared(t.device, layer, t.weight_dtype());
    const GoldKvWeights weights = PutGoldWeights(t.device, layer, t.weight_dtype());
    if (!shared_rows) {
      t.device->GoldAttention(q_rows, sequences.spans, shared, weights, cache, layer.head_size, out);
      return t.device.Get(out);
    }
    GoldSharedRows pool{.pages = pages, .page_tokens = page_tokens};
    pool.page_bytes = t.device->GoldSharedPageBytes(width, {&weights, 1}, layer.head_size, page_tokens);
    pool.data = t.device.New(DType::kF32, {pages, pool.page_bytes / 4}).data;
    std::vector<RowSpan> whole = sequences.spans;
    int32_t positions = 0;
    for (RowSpan& span : whole) {
      span.row_count = static_cast<int32_t>(LengthOf(span));
      span.position = 0;
      span.row_begin = positions;
      positions += span.row_count;
    }
    t.device->GoldMakeSharedRows(whole, shared, {&weights, 1}, cache, layer.head_size, pool);
    t.device->GoldSharedAttention(q_rows, sequences.spans, shared, {&weights, 1}, 0, pool, layer.head_size, out);
    return t.device.Get(out);
  }

  void Check(const std::string& what, bool shared_rows = false) const {
    ExpectClose(Actual(shared_rows), Expected(), layer.head_size, t.tolerance(),
                what + ", width " + std::to_string(width) + ", head size " + std::to_string(layer.head_size));
  }

  CudaAttentionTest& t;
  const DType c_dtype;
  reference::GoldLayer layer;
  const Sequences sequences;
  const int64_t c_width;
  const int64_t width;
  Values q;
  std::vector<std::vector<int32_t>> ids;
  std::vector<Values> c;
};

// A chunk has 24 positions for each multiprocessor: 96 in the emulation.
TEST_P(CudaAttentionTest, GoldOfSeveralChunks) {
  const int64_t length = slow() ? 250 : 9000;
  for (int rows : {1, 2, 9, 17, 40}) {
    GoldInputs(*this, {{length, rows}}, {.width = 128, .head_size = 64, .mix_rank = 16, .lora_rank = 64})
        .Check(std::to_string(rows) + " rows");
  }
  // Chunks that contain parts of several spans.
  GoldInputs(*this, {{40, 9}, {0, 1}, {length / 2, 1}, {0, 17}, {7, 3}, {length / 3, 2}, {95, 1}},
             {.width = 128, .head_size = 64, .mix_rank = 8, .lora_rank = 8}, 37)
      .Check("several spans");
}

TEST_P(CudaAttentionTest, GoldOfEveryRank) {
  for (int64_t mix_rank : {8, 40, 64}) {
    for (int64_t lora_rank : {24, 72, 128}) {
      GoldInputs(*this, {{70, 1}, {3, 6}},
                 {.width = 128, .head_size = 64, .mix_rank = mix_rank, .lora_rank = lora_rank})
          .Check("ranks " + std::to_string(mix_rank) + " and " + std::to_string(lora_rank));
    }
  }
}

TEST_P(CudaAttentionTest, GoldOf8BitRows) {
  const GoldSizes sizes{.width = 128, .head_size = 64, .mix_rank = 16, .lora_rank = 64};
  GoldInputs in(*this, {{40, 9}, {0, 1}, {150, 2}}, sizes, 37, DType::kInt8);
  for (bool shared_rows : {false, true}) in.Check(shared_rows ? "8 bits, shared rows" : "8 bits", shared_rows);
  // A NaN makes its whole compressed row NaN, and no other row.
  const Values expected = in.Expected();
  in.c[0][45 * in.c_width + 3] = kNan;
  std::vector<bool> faulty(12);
  for (int row = 5; row < 9; ++row) faulty[row] = true;
  CheckFault(in.Actual(), expected, sizes.width, faulty, tolerance(), "8 bits");
}

TEST_P(CudaAttentionTest, GoldOfLargerHeadsAndWidths) {
  GoldInputs(*this, {{120, 40}, {60, 1}, {9, 4}}, {.width = 128, .head_size = 128, .mix_rank = 8, .lora_rank = 16})
      .Check("large heads");
  GoldInputs(*this, {{30, 1}, {3, 6}},
             {.width = slow() ? 384 : 2048, .head_size = 64, .vocab = 20, .mix_rank = 32, .lora_rank = 64})
      .Check("width");
  GoldInputs(*this, {{100, 1}, {3, 6}},
             {.width = 128, .head_size = 64, .mix_rank = 16, .lora_rank = 32, .rope_base = 10000})
      .Check("rope");
}

// --- Shared rows
// -------------------------------------------------------------------------------------------------------

// Tiles have 16 rows and splits 64 positions; the emulation runs 16 blocks at a time.
TEST_P(CudaAttentionTest, SharedRowsTilesOfEveryNumberOfRows) {
  const GoldSizes sizes{.width = 128, .head_size = 64, .mix_rank = 16, .lora_rank = 24};
  for (int rows : {1, 2, 9, 16, 17}) {
    GoldInputs(*this, {{70, rows}}, sizes).Check(std::to_string(rows) + " rows", true);
  }
  for (int64_t position : {0, 1, 15, 16, 47, 63, 64}) {
    GoldInputs(*this, {{position, 18}}, sizes, 37).Check("18 rows from " + std::to_string(position), true);
  }
}

TEST_P(CudaAttentionTest, SharedRowsSplitsMerge) {
  const GoldSizes sizes{.width = 128, .head_size = 64, .mix_rank = 8, .lora_rank = 8};
  const int64_t length = slow() ? 300 : 9000;
  GoldInputs(*this, {{length, 1}}, sizes).Check("one row", true);
  GoldInputs(*this, {{length, 9}, {3, 2}, {length / 3, 1}}, sizes).Check("several spans", true);
  // One position has all the weight, because each query is like its key.
  for (int64_t at : {int64_t{2}, length - 2}) {
    GoldInputs in(*this, {{length, 1}}, sizes);
    const reference::KeysValues kv = reference::GoldMakeKeysValues(in.layer, in.ids[0], in.c[0]);
    for (int64_t i = 0; i < in.width; ++i) in.q[i] = Round(4 * kv.keys[at * in.width + i], act());
    ExpectClose(in.Actual(true), in.Expected(), 64, 4 * tolerance(), "position " + std::to_string(at));
  }
}

TEST_P(CudaAttentionTest, SharedRowsTakeASmallPartOfTheFullTier) {
  if (!halves()) GTEST_SKIP() << "for 16-bit activations";
  const int64_t width = 2048, mix_rank = 32, lora_rank = 64, page_tokens = 64;
  const Tensor mix_up{nullptr, weight_dtype(), {2, mix_rank, width}};
  const Matrix up{Tensor{nullptr, weight_dtype(), {lora_rank, width}}, Matrix::Layout::kInOut};
  std::vector<GoldKvWeights> layers(8);
  for (GoldKvWeights& layer : layers) {
    layer.mix_up = mix_up;
    layer.key_up = layer.value_up = up;
  }
  const int64_t bytes = device->GoldSharedPageBytes(width, layers, 64, page_tokens);
  EXPECT_LE(bytes, page_tokens * 2 * width * 2);  // keys and values of one layer
}

TEST_P(CudaAttentionTest, GoldFaultsStayWithTheRowsThatSeeThem) {
  const int64_t width = 128;
  for (int rows : {1, 3, 9, 20}) {
    for (int64_t fault : {95, 101}) {
      if (fault >= 95 + rows) continue;
      // A compressed row goes into keys only, a row of the embedding into values too.
      for (bool in_embedding : {false, true}) {
        GoldInputs in(*this, {{95, rows}}, {.width = width, .head_size = 64, .mix_rank = 16, .lora_rank = 16});
        const int32_t id = 99;
        std::replace(in.ids[0].begin(), in.ids[0].end(), id, 0);
        in.ids[0][fault] = id;
        const Values expected = in.Expected();
        if (in_embedding) {
          std::fill_n(in.layer.embedding.begin() + id * width, width, kNan);
        } else {
          std::fill_n(in.c[0].begin() + fault * in.c_width, in.c_width, kNan);
        }
        std::vector<bool> faulty(rows);
        for (int row = 0; row < rows; ++row) faulty[row] = 95 + row >= fault;
        for (bool shared_rows : {false, true}) {
          CheckFault(in.Actual(shared_rows), expected, width, faulty, tolerance(),
                     std::string(in_embedding ? "embedding" : "c") + " at " + std::to_string(fault) + " of " +
                         std::to_string(rows) + (shared_rows ? " rows, shared rows" : " rows"));
        }
      }
    }
  }
}

TEST_P(CudaAttentionTest, GoldMakeKeysValuesOfSeveralChunks) {
  for (double rope_base : {0., 10000.}) {
    const GoldSizes sizes{.width = 128, .head_size = 64, .mix_rank = 16, .lora_rank = 64, .rope_base = rope_base};
    const GoldInputs in(*this, {{150, 30}, {0, 1}, {0, 110}}, sizes);
    const Paging& paging = in.sequences.paging;
    const Shape shape{paging.pages(), paging.page_tokens(), sizes.width};
    const KvCache kv{device.New(cache_dtype(), shape), device.New(cache_dtype(), shape)};
    std::vector<Values> id_values;
    for (const auto& sequence : in.ids) id_values.push_back(IdValues(sequence));
    const GoldCache cache{device.Put(paging.Scatter(id_values, 1), {paging.pages(), paging.page_tokens()}, DType::kI32),
                          device.Put(paging.Scatter(in.c, in.c_width),
                                     {paging.pages(), paging.page_tokens(), in.c_width}, cache_dtype())};
    device->GoldMakeKeysValues(in.sequences.spans, PutGoldShared(device, in.layer, weight_dtype()),
                               PutGoldWeights(device, in.layer, weight_dtype()), cache, in.layer.head_size, kv);
    const Values keys = device.Get(kv.keys), values = device.Get(kv.values);
    for (size_t i = 0; i < in.sequences.spans.size(); ++i) {
      const RowSpan& span = in.sequences.spans[i];
      const reference::KeysValues expected = reference::GoldMakeKeysValues(in.layer, in.ids[i], in.c[i]);
      Values actual_keys, actual_values, expected_keys, expected_values;
      for (int64_t at = span.position; at < LengthOf(span); ++at) {
        const auto row = static_cast<int>(paging.Row(static_cast<int>(i), at));
        for (const auto& [from, slot, to] :
             {std::tuple(&keys, row, &actual_keys), std::tuple(&values, row, &actual_values),
              std::tuple(&expected.keys, static_cast<int>(at), &expected_keys),
              std::tuple(&expected.values, static_cast<int>(at), &expected_values)}) {
          const Values slot_values = Slot(*from, slot, sizes.width);
          to->insert(to->end(), slot_values.begin(), slot_values.end());
        }
      }
      const std::string what = "span " + std::to_string(i) + ", rope " + std::to_string(rope_base);
      const double rounded = tolerance() + 2 * RoundingError(cache_dtype());
      ExpectClose(actual_keys, expected_keys, sizes.width, rounded, "keys of " + what, 1);
      ExpectClose(actual_values, expected_values, sizes.width, rounded, "values of " + what, 1);
    }
    // Positions before those of the spans were not asked for.
    for (double x : Slot(keys, static_cast<int>(paging.Row(0, 149)), sizes.width)) EXPECT_TRUE(std::isnan(x));
  }
}

std::vector<Case> Cases() {
  const auto backend = MakeCudaBackend({});
  if (!backend.ok()) return {};
  return CudaCases(/*slow=*/(*backend)->Describe().find("emulated") != std::string::npos);
}

TEST(CudaAttentionDeviceTest, ThereIsADevice) {
  const auto backend = MakeCudaBackend({});
  if (!backend.ok()) GTEST_SKIP() << "no test of attention on a device: " << backend.status().message();
}

GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(BackendTest);  // the common tests come with the cases
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(CudaAttentionTest);
INSTANTIATE_TEST_SUITE_P(Cuda, CudaAttentionTest, testing::ValuesIn(Cases()), testing::PrintToStringParamName());

}  // namespace
}  // namespace goldfinch
