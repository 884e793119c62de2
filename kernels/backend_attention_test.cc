// Rotary embedding, and both kinds of attention over paged caches.
#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <optional>

#include "kernels/backend_test_util.h"
#include "kernels/paged_test_util.h"

namespace goldfinch {
namespace {

// --- Rotary embedding -----------------------------------------------------------------------------------------------

TEST_P(BackendTest, Rope) {
  for (int head_size : {16, 32, 64, 128}) {
    for (double base : {10000., 500000.}) {
      const int64_t width = int64_t{3} * head_size;
      std::vector<RowSpan> spans = MakeSpans(random, {1, 9, 1, slow() ? 60 : 600, 2}, 5);
      const int64_t positions[] = {0, 1'000'003, 1'048'575, 7, 123'456'789};
      const int64_t rows = spans.back().row_begin + spans.back().row_count;
      if (TooSlow(10 * rows * width)) continue;
      const Values x = random.Normal(rows * width, 1, act());
      Values expected = x;
      for (size_t i = 0; i < spans.size(); ++i) {
        spans[i].position = positions[i];
        SetRows(reference::Rope(RowsOf(x, spans[i], width), width, head_size, spans[i].position, base), spans[i], width,
                expected);
      }
      const Tensor tensor = device.Put(x, {rows, width}, act());
      device->Rope(tensor, spans, head_size, base);
      ExpectClose(device.Get(tensor), expected, 2, activation_tolerance(), "head size " + std::to_string(head_size));
    }
  }
}

// --- Attention over stored keys and values --------------------------------------------------------------------------

struct AttentionCase {
  std::vector<TestChunk> chunks;
  int64_t width = 64;
  int head_size = 16;
  int64_t page_tokens = 16;
  double query_deviation = 1;  // if large, one position gets all the weight

  std::string ToString() const {
    return "width " + std::to_string(width) + ", head size " + std::to_string(head_size) + ", page of " +
           std::to_string(page_tokens) + ", first chunk at " + std::to_string(chunks.empty() ? 0 : chunks[0].position);
  }
};

// Tiles of 64 positions, page borders, one row and many, alone and together.
const std::vector<std::vector<TestChunk>>& AttentionChunks() {
  static const auto& chunks = *new std::vector<std::vector<TestChunk>>{
      {},
      {{0, 1}},
      {{0, 7}},
      {{62, 1}, {63, 1}, {64, 1}, {65, 1}, {127, 3}, {0, 65}},
      {{300, 70}, {5, 1}, {0, 200}},
      {{0, 1}, {3, 2}, {31, 1}, {17, 1}, {80, 1}, {9, 5}, {128, 1}, {40, 1}, {2, 1}, {1, 1}, {191, 2}, {63, 2}, {7, 1}},
  };
  return chunks;
}

const std::vector<std::vector<TestChunk>>& SlowAttentionChunks() {
  static const auto& chunks = *new std::vector<std::vector<TestChunk>>{
      {}, {{0, 1}}, {{0, 7}}, {{62, 1}, {63, 1}, {64, 1}, {65, 1}, {127, 3}, {0, 65}}, {{150, 17}, {5, 1}, {0, 33}},
  };
  return chunks;
}
const std::vector<std::vector<TestChunk>>& AttentionChunks(const BackendTest& t) {
  return t.slow() ? SlowAttentionChunks() : AttentionChunks();
}

// Scores of large queries have large rounding errors, and the softmax of such scores too.
double AttentionTolerance(double tolerance, double query_deviation) {
  return tolerance * std::max(1., query_deviation);
}

void CheckKvAttention(BackendTest& t, const AttentionCase& test) {
  const Paging paging(t.random, test.page_tokens, Lengths(test.chunks));
  const std::vector<RowSpan> spans = SpansOf(t.random, test.chunks, paging);
  const int64_t rows = RowCount(test.chunks);
  const Values q = t.random.Normal(rows * test.width, test.query_deviation, t.act());
  std::vector<Values> keys, values;
  Values expected(q.size());
  for (const RowSpan& span : spans) {
    const int64_t length = span.position + span.row_count;
    keys.push_back(t.random.Normal(length * test.width, 1, t.cache_dtype()));
    values.push_back(t.random.Normal(length * test.width, 1, t.cache_dtype()));
    SetRows(reference::Attention(RowsOf(q, span, test.width), keys.back(), values.back(), test.width, test.head_size,
                                 span.position),
            span, test.width, expected);
  }
  const Shape shape{paging.pages(), test.page_tokens, test.width};
  const KvCache cache{t.device.Put(paging.Scatter(keys, test.width), shape, t.cache_dtype()),
                      t.device.Put(paging.Scatter(values, test.width), shape, t.cache_dtype())};
  const Tensor out = t.device.New(t.act(), {rows, test.width});
  t.device->KvAttention(t.device.Put(q, {rows, test.width}, t.act()), spans, cache, test.head_size, out);
  ExpectClose(t.device.Get(out), expected, test.head_size, AttentionTolerance(t.tolerance(), test.query_deviation),
              test.ToString());
}

TEST_P(BackendTest, KvAttention) {
  for (const std::vector<TestChunk>& chunks : AttentionChunks(*this)) {
    CheckKvAttention(*this, {.chunks = chunks, .width = 64, .head_size = 16, .page_tokens = 16});
    CheckKvAttention(*this, {.chunks = chunks, .width = 96, .head_size = 32, .page_tokens = 37});
  }
  for (int head_size : {16, 32, 48, 64, 128}) {
    for (int64_t page_tokens : {1, 64, 100}) {
      CheckKvAttention(*this, {.chunks = {{100, 1}, {0, 9}, {61, 4}},
                               .width = int64_t{2} * head_size,
                               .head_size = head_size,
                               .page_tokens = page_tokens});
    }
  }
}

TEST_P(BackendTest, KvAttentionOfPeakedScores) {
  for (double deviation : {0., 10., 300.}) {
    CheckKvAttention(*this, {.chunks = {{500, 1}, {130, slow() ? 3 : 20}}, .query_deviation = deviation});
  }
}

// A fault at one position reaches the rows that see it, and no others of the same call.
TEST_P(BackendTest, KvAttentionRowsDoNotSeeWhatFollows) {
  const int64_t width = 32, length = 140, faulty = 135;
  const RowSpan span{.row_count = 20, .position = length - 20};
  const int64_t good_rows = faulty - span.position;
  const Values q = random.Normal(span.row_count * width, 1, act());
  Values keys = random.Normal(length * width, 1, cache_dtype()),
         values = random.Normal(length * width, 1, cache_dtype());
  const Values expected = reference::Attention(q, keys, values, width, 16, span.position);
  std::fill_n(keys.begin() + faulty * width, width, std::nan(""));
  std::fill_n(values.begin() + faulty * width, width, std::nan(""));
  const Paging paging(random, 16, {length});
  const Shape shape{paging.pages(), 16, width};
  const KvCache cache{device.Put(paging.Scatter({keys}, width), shape, cache_dtype()),
                      device.Put(paging.Scatter({values}, width), shape, cache_dtype())};
  RowSpan paged = span;
  paged.pages = paging.table(0);
  const Tensor out = device.New(act(), {span.row_count, width});
  device->KvAttention(device.Put(q, {span.row_count, width}, act()), std::vector<RowSpan>{paged}, cache, 16, out);
  const Values actual = device.Get(out);
  const RowSpan good{.row_count = static_cast<int32_t>(good_rows)};
  ExpectClose(RowsOf(actual, good, width), RowsOf(expected, good, width), width, tolerance(), "rows before the fault");
  for (int64_t i = good_rows * width; i < span.row_count * width; ++i) {
    EXPECT_TRUE(std::isnan(actual[i])) << "row " << i / width;
  }
}

TEST_P(BackendTest, KvAttentionOverLongContexts) {
  if (slow()) {
    CheckKvAttention(*this, {.chunks = {{1500, 1}, {700, 2}}, .width = 32, .head_size = 16, .page_tokens = 64});
    return;
  }
  CheckKvAttention(*this, {.chunks = {{4000, 5}, {2047, 2}}, .width = 128, .head_size = 64, .page_tokens = 64});
  if (!GetParam().thorough) return;
  CheckKvAttention(*this, {.chunks = {{299'990, 2}}, .width = 16, .head_size = 16, .page_tokens = 64});
}

// --- GOLD -----------------------------------------------------------------------------------------------------------

// Expects that `fill` makes the rows of `ids` in a table like those of `made` [vocab, width], and leaves the others.
void CheckTable(BackendTest& t, const Values& made, const std::vector<int32_t>& ids, const Shape& shape, DType dtype,
                const std::function<void(Tensor)>& fill) {
  const int64_t vocab = shape[0], width = shape.elements() / vocab;
  const Values before = t.random.Normal(shape.elements(), 1, dtype);
  const Tensor table = t.device.Put(before, shape, dtype);
  fill(table);
  const Values after = t.device.Get(table);
  std::vector<bool> written(vocab);
  for (int32_t id : ids) {
    written[id] = true;
    ExpectClose(Slot(after, id, width), Slot(made, id, width), width, t.tolerance(),
                "id " + std::to_string(id) + " of " + shape.ToString());
  }
  for (int id = 0; id < vocab; ++id) {
    if (!written[id]) ExpectSame(Slot(after, id, width), Slot(before, id, width), "row that nobody asked for");
  }
}

TEST_P(BackendTest, GoldTableRows) {
  for (int64_t width : {16, 17, 64, 136, 448}) {
    const int64_t vocab = 130;
    const GoldSizes sizes{.width = width, .vocab = vocab, .mix_rank = width == 136 ? 35 : 4};
    const reference::GoldLayer layer = RandomGoldLayer(random, sizes, weight_dtype());
    std::vector<int32_t> ids = random.Permutation(vocab);
    const Values key_table = reference::GoldKeyTable(layer), mix_table = reference::GoldMixTable(layer);
    const Tensor embedding = device.Put(layer.embedding, {vocab, width}, weight_dtype());
    const Tensor mix_lora = device.Put(layer.mix_lora, {width});
    const Matrix key_x0 = device.Put(layer.key_x0, weight_dtype()),
                 mix_down = device.Put(layer.mix_down, weight_dtype());
    const NormWeights ln0 = device.Put(layer.ln0);
    for (int64_t count : {120, 49, 48, 47, 1, 0}) {
      ids.resize(count);
      if (!TooSlow(count * width * width)) {
        CheckTable(*this, key_table, ids, {vocab, width}, act(),
                   [&](Tensor table) { device->GoldKeyTableRows(ids, embedding, ln0, key_x0, table); });
      }
      if (!TooSlow(2 * count * width * layer.mix_down.out)) {
        CheckTable(*this, mix_table, ids, {vocab, 2, layer.mix_down.out}, DType::kF32,
                   [&](Tensor table) { device->GoldMixTableRows(ids, embedding, ln0, mix_lora, mix_down, table); });
      }
    }
  }
}

struct GoldCase {
  std::vector<TestChunk> chunks;
  GoldSizes sizes = {};
  int64_t page_tokens = 16;
  DType id_dtype = DType::kU16;
  double query_deviation = 1;
  std::optional<DType> c_dtype = {};  // instead of the suite's cache_dtype
};

// A GOLD layer and a cache with the sequences of a case, on the host and on the device.
struct GoldInputs {
  GoldInputs(BackendTest& t, const GoldCase& test)
      : layer(RandomGoldLayer(t.random, test.sizes, t.weight_dtype())),
        paging(t.random, test.page_tokens, Lengths(test.chunks)),
        spans(SpansOf(t.random, test.chunks, paging)),
        shared(PutGoldShared(t.device, layer, t.weight_dtype())),
        weights(PutGoldWeights(t.device, layer, t.weight_dtype())) {
    const int64_t c_width = layer.width / 16;
    const DType c_dtype = test.c_dtype.value_or(t.cache_dtype());
    std::vector<Values> ids, c;
    for (const RowSpan& span : spans) {
      const int64_t length = span.position + span.row_count;
      const std::vector<int32_t> sequence = t.random.Ids(length, test.sizes.vocab);
      ids.push_back(IdValues(sequence));
      c.push_back(RoundCompressed(t.random.Normal(length * c_width, 1), c_width, c_dtype));
      kv.push_back(reference::GoldMakeKeysValues(layer, sequence, c.back()));
    }
    const int64_t pages = paging.pages();
    cache = {t.device.Put(paging.Scatter(ids, 1), {pages, test.page_tokens}, test.id_dtype),
             t.device.PutCompressed(paging.Scatter(c, c_width), {pages, test.page_tokens, c_width}, c_dtype)};
  }

  // Attention of q over the sequences, in double.
  Values Attend(const Values& q) const {
    Values out(q.size());
    for (size_t i = 0; i < spans.size(); ++i) {
      const Values rows = RowsOf(q, spans[i], layer.width);
      SetRows(reference::Attention(rows, kv[i].keys, kv[i].values, layer.width, layer.head_size, spans[i].position),
              spans[i], layer.width, out);
    }
    return out;
  }

  const reference::GoldLayer layer;
  const Paging paging;
  const std::vector<RowSpan> spans;
  const GoldSharedWeights shared;
  const GoldKvWeights weights;
  std::vector<reference::KeysValues> kv;  // for each sequence
  GoldCache cache;
};

void CheckGoldAttention(BackendTest& t, const GoldCase& test) {
  const GoldInputs in(t, test);
  const Shape shape{RowCount(test.chunks), test.sizes.width};
  const Values q = t.random.Normal(shape.elements(), test.query_deviation, t.act());
  const Tensor out = t.device.New(t.act(), shape);
  t.device->GoldAttention(t.device.Put(q, shape, t.act()), in.spans, in.shared, in.weights, in.cache,
                          in.layer.head_size, out);
  ExpectClose(t.device.Get(out), in.Attend(q), in.layer.head_size,
              AttentionTolerance(t.tolerance(), test.query_deviation),
              "width " + std::to_string(in.layer.width) + ", rope " + std::to_string(in.layer.rope_base) +
                  ", page of " + std::to_string(test.page_tokens) + ", " + std::to_string(in.spans.size()) + " spans");
}

// Makes the keys and values of the first positions of each sequence, then those of the others, and attends to them.
void CheckGoldKeysValues(BackendTest& t, const GoldCase& test, DType kv_dtype) {
  const GoldInputs in(t, test);
  const int64_t width = in.layer.width;
  const Shape shape{in.paging.pages(), test.page_tokens, width};
  const double tolerance = t.tolerance() + (kv_dtype == DType::kF32 ? 0 : 2 * RoundingError(kv_dtype));
  const std::string what = shape.ToString() + " of " + Name(kv_dtype);

  // Positions that were not asked for stay NaN.
  const KvCache cache{t.device.New(kv_dtype, shape), t.device.New(kv_dtype, shape)};
  Values written(in.paging.pages() * test.page_tokens);
  const auto make = [&](bool first_part) {
    std::vector<RowSpan> spans;
    int32_t positions = 0;
    for (size_t i = 0; i < in.spans.size(); ++i) {
      const auto length = static_cast<int32_t>(in.spans[i].position + in.spans[i].row_count), cut = length * 2 / 3;
      const int32_t begin = first_part ? 0 : cut, end = first_part ? cut : length;
      if (begin == end) continue;
      spans.push_back({.row_begin = positions,
                       .row_count = end - begin,
                       .position = begin,
                       .pages = in.spans[i].pages,
                       .kept_pages = in.spans[i].kept_pages});
      positions += end - begin;
      for (int32_t at = begin; at < end; ++at) written[in.paging.Row(static_cast<int>(i), at)] = 1;
    }
    t.device->GoldMakeKeysValues(spans, in.shared, in.weights, in.cache, in.layer.head_size, cache);
    const Values keys = t.device.Get(cache.keys), values = t.device.Get(cache.values);
    for (size_t row = 0; row < written.size(); ++row) {
      ASSERT_EQ(std::isnan(keys[row * width]), written[row] == 0) << what << ", row " << row;
      ASSERT_EQ(std::isnan(values[row * width]), written[row] == 0) << what << ", row " << row;
    }
    for (const RowSpan& span : spans) {
      const size_t i = std::find_if(in.spans.begin(), in.spans.end(),
                                    [&span](const RowSpan& other) { return other.pages == span.pages; }) -
                       in.spans.begin();
      for (int64_t at = span.position; at < span.position + span.row_count; ++at) {
        const auto row = static_cast<int>(in.paging.Row(static_cast<int>(i), at));
        const std::string where = what + ", position " + std::to_string(at);
        ExpectClose(Slot(keys, row, width), Slot(in.kv[i].keys, static_cast<int>(at), width), width, tolerance,
                    where + ", key", 1);
        ExpectClose(Slot(values, row, width), Slot(in.kv[i].values, static_cast<int>(at), width), width, tolerance,
                    where + ", value", 1);
      }
    }
  };
  make(true);
  make(false);

  const Shape rows{RowCount(test.chunks), width};
  const Values q = t.random.Normal(rows.elements(), 1, t.act());
  const Tensor out = t.device.New(t.act(), rows);
  t.device->KvAttention(t.device.Put(q, rows, t.act()), in.spans, cache, in.layer.head_size, out);
  ExpectClose(t.device.Get(out), in.Attend(q), in.layer.head_size, tolerance, what + ", attention");
}

TEST_P(BackendTest, GoldMakeKeysValues) {
  for (const std::vector<TestChunk>& chunks : AttentionChunks(*this)) {
    CheckGoldKeysValues(*this, {.chunks = chunks, .sizes = {.width = 64, .head_size = 16}}, cache_dtype());
    CheckGoldKeysValues(*this,
                        {.chunks = chunks,
                         .sizes = {.width = 96, .head_size = 32, .rope_base = 10000},
                         .page_tokens = 37,
                         .id_dtype = DType::kI32},
                        DType::kF32);
  }
  for (int64_t page_tokens : {1, 64}) {
    CheckGoldKeysValues(*this,
                        {.chunks = {{100, 1}, {0, 9}, {61, 4}},
                         .sizes = {.width = 144, .head_size = 48, .mix_rank = 3, .lora_rank = 5},
                         .page_tokens = page_tokens},
                        cache_dtype());
  }
}

TEST_P(BackendTest, GoldAttention) {
  for (const std::vector<TestChunk>& chunks : AttentionChunks(*this)) {
    CheckGoldAttention(*this, {.chunks = chunks, .sizes = {.width = 64, .head_size = 16}});
    CheckGoldAttention(*this, {.chunks = chunks,
                               .sizes = {.width = 96, .head_size = 32, .rope_base = 10000},
                               .page_tokens = 37,
                               .id_dtype = DType::kI32});
  }
}

TEST_P(BackendTest, GoldAttentionOver8BitRows) {
  for (const std::vector<TestChunk>& chunks : AttentionChunks(*this)) {
    if (slow() && chunks.size() > 3) continue;
    const GoldCase test{.chunks = chunks, .sizes = {.width = 64, .head_size = 16}, .c_dtype = DType::kInt8};
    CheckGoldAttention(*this, test);
    CheckGoldKeysValues(*this, test, DType::kF32);
  }
  // A size with an odd number of bytes in a row.
  CheckGoldAttention(*this, {.chunks = {{100, 1}, {0, 9}, {61, 4}},
                             .sizes = {.width = 144, .head_size = 48, .mix_rank = 3, .lora_rank = 5},
                             .page_tokens = 37,
                             .id_dtype = DType::kI32,
                             .c_dtype = DType::kInt8});
}

TEST_P(BackendTest, GoldAttentionOfEverySize) {
  const std::vector<TestChunk> chunks = {{100, 1}, {0, 9}, {61, 4}};
  for (int64_t page_tokens : {1, 16, 37, 64}) {
    CheckGoldAttention(*this, {.chunks = chunks,
                               .sizes = {.width = 16, .head_size = 16, .mix_rank = 1, .lora_rank = 1},
                               .page_tokens = page_tokens});
    CheckGoldAttention(*this, {.chunks = chunks,
                               .sizes = {.width = 144, .head_size = 48, .mix_rank = 3, .lora_rank = 5},
                               .page_tokens = page_tokens});
  }
  CheckGoldAttention(*this,
                     {.chunks = chunks, .sizes = {.width = 192, .head_size = 64, .mix_rank = 32, .lora_rank = 65}});
  CheckGoldAttention(*this, {.chunks = chunks, .sizes = {.width = 128, .head_size = 128, .rope_base = 500000}});
}

TEST_P(BackendTest, GoldAttentionOfPeakedScores) {
  for (double deviation : {0., 10., 300.}) {
    CheckGoldAttention(*this, {.chunks = {{300, 1}, {130, slow() ? 3 : 20}}, .query_deviation = deviation});
  }
}

TEST_P(BackendTest, GoldAttentionOverLongContexts) {
  if (slow()) {
    CheckGoldAttention(*this,
                       {.chunks = {{1000, 2}}, .sizes = {.width = 32, .head_size = 16, .mix_rank = 2, .lora_rank = 2}});
    return;
  }
  CheckGoldAttention(*this,
                     {.chunks = {{3000, 5}, {1023, 2}}, .sizes = {.width = 64, .head_size = 32}, .page_tokens = 64});
  if (!GetParam().thorough) return;
  CheckGoldAttention(*this, {.chunks = {{299'990, 2}},
                             .sizes = {.width = 16, .head_size = 16, .mix_rank = 2, .lora_rank = 2, .rope_base = 10000},
                             .page_tokens = 64});
}

}  // namespace
}  // namespace goldfinch
