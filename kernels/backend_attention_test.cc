// Paged caches, rotary embedding, and both kinds of attention.
#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/backend_test_util.h"

namespace goldfinch {
namespace {

// Rows of one sequence in a call.
struct Chunk {
  int64_t position = 0;
  int rows = 1;
};

std::vector<RowSpan> SpansOf(Random& random, const std::vector<Chunk>& chunks, const Paging& paging) {
  std::vector<int> counts;
  counts.reserve(chunks.size());
  for (const Chunk& chunk : chunks) counts.push_back(chunk.rows);
  std::vector<RowSpan> spans = MakeSpans(random, counts, static_cast<int>(chunks.size()));
  for (size_t i = 0; i < chunks.size(); ++i) {
    spans[i].position = chunks[i].position;
    spans[i].pages = paging.table(static_cast<int>(i));
  }
  return spans;
}

std::vector<int64_t> Lengths(const std::vector<Chunk>& chunks) {
  std::vector<int64_t> lengths;
  lengths.reserve(chunks.size());
  for (const Chunk& chunk : chunks) lengths.push_back(chunk.position + chunk.rows);
  return lengths;
}

int64_t RowCount(const std::vector<Chunk>& chunks) {
  int64_t rows = 0;
  for (const Chunk& chunk : chunks) rows += chunk.rows;
  return rows;
}

// The pool after rows [rows, width] have been written where they belong.
void WritePages(const Values& rows, const std::vector<RowSpan>& spans, const Paging& paging, int64_t width,
                Values& pool) {
  for (size_t i = 0; i < spans.size(); ++i) {
    for (int row = 0; row < spans[i].row_count; ++row) {
      SetSlot(Slot(rows, spans[i].row_begin + row, width),
              static_cast<int>(paging.Row(static_cast<int>(i), spans[i].position + row)), pool);
    }
  }
}

// Within pages, across one border, across many, from the middle of a page.
const std::vector<Chunk>& AppendChunks() {
  static const auto& chunks = *new std::vector<Chunk>{{0, 1}, {15, 1}, {15, 2}, {16, 16}, {3, 100}, {33, 1}, {0, 700}};
  return chunks;
}

// --- Caches ---------------------------------------------------------------------------------------------------------

TEST_P(BackendTest, GoldAppend) {
  for (DType id_dtype : {DType::kU16, DType::kI32}) {
    for (int64_t c_width : {1, 5, 8, 28, 129}) {
      for (int64_t page_tokens : {1, 16, 37}) {
        const Paging paging(random, page_tokens, Lengths(AppendChunks()));
        const std::vector<RowSpan> spans = SpansOf(random, AppendChunks(), paging);
        const int64_t rows = RowCount(AppendChunks());
        const std::vector<int32_t> ids = random.Ids(rows, id_dtype == DType::kU16 ? 65536 : 1'000'000);
        const Values c = random.Normal(rows * c_width, 1);
        Values id_pool = IdValues(random.Ids(paging.pages() * page_tokens, 65536));
        Values c_pool = random.Normal(paging.pages() * page_tokens * c_width, 1, cache_dtype());
        const Values id_before = id_pool, c_before = c_pool;
        WritePages(IdValues(ids), spans, paging, 1, id_pool);
        WritePages(Round(c, cache_dtype()), spans, paging, c_width, c_pool);
        const Tensor exact = device.Put(c, {rows, c_width}), narrow = device.New(cache_dtype(), {rows, c_width});
        device->Convert(exact, narrow);
        ExpectSame(device.Get(narrow), Round(c, cache_dtype()), "conversion, width " + std::to_string(c_width));
        for (const Tensor& given : {exact, narrow}) {
          const GoldCache cache{device.Put(id_before, {paging.pages(), page_tokens}, id_dtype),
                                device.Put(c_before, {paging.pages(), page_tokens, c_width}, cache_dtype())};
          device->GoldAppend(ids, given, spans, cache);
          ExpectSame(device.Get(cache.ids), id_pool, "ids, page of " + std::to_string(page_tokens));
          ExpectSame(device.Get(cache.c), c_pool,
                     "c given as " + std::string(Name(given.dtype)) + ", width " + std::to_string(c_width));
        }
      }
    }
  }
}

TEST_P(BackendTest, KvAppend) {
  for (int64_t width : {16, 17, 64, 130}) {
    for (int64_t page_tokens : {1, 16, 37}) {
      const Paging paging(random, page_tokens, Lengths(AppendChunks()));
      const std::vector<RowSpan> spans = SpansOf(random, AppendChunks(), paging);
      const int64_t rows = RowCount(AppendChunks());
      const Values k = random.Normal(rows * width, 1), v = random.Normal(rows * width, 1);
      const Shape shape{paging.pages(), page_tokens, width};
      Values keys = random.Normal(shape.elements(), 1, cache_dtype()),
             values = random.Normal(shape.elements(), 1, cache_dtype());
      const KvCache cache{device.Put(keys, shape, cache_dtype()), device.Put(values, shape, cache_dtype())};
      device->KvAppend(device.Put(k, {rows, width}), device.Put(v, {rows, width}), spans, cache);
      WritePages(Round(k, cache_dtype()), spans, paging, width, keys);
      WritePages(Round(v, cache_dtype()), spans, paging, width, values);
      ExpectSame(device.Get(cache.keys), keys, "keys");
      ExpectSame(device.Get(cache.values), values, "values");
    }
  }
}

// Ties go to even, small numbers keep what digits they have, too large ones become the largest, a NaN stays visible.
TEST_P(BackendTest, CachesRoundToNearest) {
  Values x = {0.,          -0.,     1.,      65504.,    65519.,    65520.,  -65520., 1e6,          -1e6,        0x1p-14,
              0x1.ffcp-15, 0x1p-24, 0x1p-25, 0x1.8p-25, 0x1.8p-24, 0x1p-26, 1e-30,   0x1.ffffp-15, 0x1.fffffep0};
  if (cache_dtype() != DType::kF16) x.insert(x.end(), {1e30, -3e38, 0x1p-126, 0x1p-133});
  // Half-way between neighbours of either type, just below, and just above.
  for (int fraction = 0; fraction < 64; ++fraction) {
    for (int digits : {8, 11}) {
      const double half_way = 1 + std::ldexp(2 * fraction + 1, -digits);
      for (double value : {half_way, half_way - 0x1p-23, half_way + 0x1p-23}) {
        for (int exponent : {0, 5, -13, -15, -20}) {
          x.push_back(std::ldexp(fraction % 2 == 0 ? value : -value, exponent));
        }
      }
    }
  }
  for (double value : random.Uniform(3000, -40, 16)) x.push_back(Round(std::exp2(value), DType::kF32));
  const auto width = static_cast<int64_t>(x.size());
  const Shape shape{1, 1, width + 1};
  const KvCache cache{device.New(cache_dtype(), shape), device.New(cache_dtype(), shape)};
  x.push_back(std::numeric_limits<double>::quiet_NaN());
  const Tensor rows = device.Put(x, {1, width + 1});
  const int32_t page = 0;
  device->KvAppend(rows, rows, std::vector<RowSpan>{{.row_count = 1, .pages = &page}}, cache);
  Values stored = device.Get(cache.keys);
  EXPECT_TRUE(std::isnan(stored.back()));
  stored.pop_back();
  x.pop_back();
  ExpectSame(stored, Round(x, cache_dtype()), Name(cache_dtype()));
}

// --- Rotary embedding -----------------------------------------------------------------------------------------------

TEST_P(BackendTest, Rope) {
  for (int head_size : {16, 32, 64, 128}) {
    for (double base : {10000., 500000.}) {
      const int64_t width = int64_t{3} * head_size;
      std::vector<RowSpan> spans = MakeSpans(random, {1, 9, 1, 600, 2}, 5);
      const int64_t positions[] = {0, 1'000'003, 1'048'575, 7, 123'456'789};
      const int64_t rows = spans.back().row_begin + spans.back().row_count;
      const Values x = random.Normal(rows * width, 1);
      Values expected = x;
      for (size_t i = 0; i < spans.size(); ++i) {
        spans[i].position = positions[i];
        SetRows(reference::Rope(RowsOf(x, spans[i], width), width, head_size, spans[i].position, base), spans[i], width,
                expected);
      }
      const Tensor tensor = device.Put(x, {rows, width});
      device->Rope(tensor, spans, head_size, base);
      ExpectClose(device.Get(tensor), expected, 2, kFp32Tolerance, "head size " + std::to_string(head_size));
    }
  }
}

// --- Attention over stored keys and values --------------------------------------------------------------------------

struct AttentionCase {
  std::vector<Chunk> chunks;
  int64_t width = 64;
  int head_size = 16;
  int64_t page_tokens = 16;
  double query_deviation = 1;  // large: one position takes it all

  std::string ToString() const {
    return "width " + std::to_string(width) + ", head size " + std::to_string(head_size) + ", page of " +
           std::to_string(page_tokens) + ", first chunk at " + std::to_string(chunks.empty() ? 0 : chunks[0].position);
  }
};

// Tiles of 64 positions, page borders, one row and many, alone and together.
const std::vector<std::vector<Chunk>>& AttentionChunks() {
  static const auto& chunks = *new std::vector<std::vector<Chunk>>{
      {},
      {{0, 1}},
      {{0, 7}},
      {{62, 1}, {63, 1}, {64, 1}, {65, 1}, {127, 3}, {0, 65}},
      {{300, 70}, {5, 1}, {0, 200}},
      {{0, 1}, {3, 2}, {31, 1}, {17, 1}, {80, 1}, {9, 5}, {128, 1}, {40, 1}, {2, 1}, {1, 1}, {191, 2}, {63, 2}, {7, 1}},
  };
  return chunks;
}

// Scores of large queries have large rounding errors, which the softmax passes on.
double AttentionTolerance(double tolerance, double query_deviation) {
  return tolerance * std::max(1., query_deviation);
}

void CheckKvAttention(BackendTest& t, const AttentionCase& test) {
  const Paging paging(t.random, test.page_tokens, Lengths(test.chunks));
  const std::vector<RowSpan> spans = SpansOf(t.random, test.chunks, paging);
  const int64_t rows = RowCount(test.chunks);
  const Values q = t.random.Normal(rows * test.width, test.query_deviation);
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
  const Tensor out = t.device.New({rows, test.width});
  t.device->KvAttention(t.device.Put(q, {rows, test.width}), spans, cache, test.head_size, out);
  ExpectClose(t.device.Get(out), expected, test.head_size, AttentionTolerance(t.tolerance(), test.query_deviation),
              test.ToString());
}

TEST_P(BackendTest, KvAttention) {
  for (const std::vector<Chunk>& chunks : AttentionChunks()) {
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
    CheckKvAttention(*this, {.chunks = {{500, 1}, {130, 20}}, .query_deviation = deviation});
  }
}

// A fault at one position reaches the rows that see it, and no others of the same call.
TEST_P(BackendTest, KvAttentionRowsDoNotSeeWhatFollows) {
  const int64_t width = 32, length = 140, faulty = 135;
  const RowSpan span{.row_count = 20, .position = length - 20};
  const int64_t good_rows = faulty - span.position;
  const Values q = random.Normal(span.row_count * width, 1);
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
  const Tensor out = device.New({span.row_count, width});
  device->KvAttention(device.Put(q, {span.row_count, width}), std::vector<RowSpan>{paged}, cache, 16, out);
  const Values actual = device.Get(out);
  const RowSpan good{.row_count = static_cast<int32_t>(good_rows)};
  ExpectClose(RowsOf(actual, good, width), RowsOf(expected, good, width), width, tolerance(), "rows before the fault");
  for (int64_t i = good_rows * width; i < span.row_count * width; ++i) {
    EXPECT_TRUE(std::isnan(actual[i])) << "row " << i / width;
  }
}

TEST_P(BackendTest, KvAttentionOverLongContexts) {
  CheckKvAttention(*this, {.chunks = {{4000, 5}, {2047, 2}}, .width = 128, .head_size = 64, .page_tokens = 64});
  if (!GetParam().thorough) return;
  CheckKvAttention(*this, {.chunks = {{299'990, 2}}, .width = 16, .head_size = 16, .page_tokens = 64});
}

// --- GOLD -----------------------------------------------------------------------------------------------------------

TEST_P(BackendTest, GoldKeyTableRows) {
  for (int64_t width : {16, 17, 64, 136, 448}) {
    for (int64_t count : {0, 1, 47, 48, 49, 120}) {
      if (width == 448 && count != 49) continue;  // the double version of these takes its time
      const int64_t vocab = 130;
      const reference::GoldLayer layer = RandomGoldLayer(random, {.width = width, .vocab = vocab}, weight_dtype());
      std::vector<int32_t> ids = random.Permutation(vocab);
      ids.resize(count);
      const Values before = random.Normal(vocab * width, 1);
      const Tensor table = device.Put(before, {vocab, width});
      device->GoldKeyTableRows(ids, device.Put(layer.embedding, {vocab, width}, weight_dtype()), device.Put(layer.ln0),
                               device.Put(layer.key_x0, weight_dtype()), table);
      const Values made = reference::Product(reference::GoldInputs(layer, ids), layer.key_x0);
      const Values after = device.Get(table);
      std::vector<bool> written(vocab);
      for (int64_t i = 0; i < count; ++i) {
        written[ids[i]] = true;
        ExpectClose(Slot(after, ids[i], width), Slot(made, static_cast<int>(i), width), width, tolerance(),
                    "id " + std::to_string(ids[i]) + " of width " + std::to_string(width));
      }
      for (int id = 0; id < vocab; ++id) {
        if (!written[id]) ExpectSame(Slot(after, id, width), Slot(before, id, width), "row that nobody asked for");
      }
    }
  }
}

struct GoldCase {
  std::vector<Chunk> chunks;
  GoldSizes sizes = {};
  int64_t page_tokens = 16;
  DType id_dtype = DType::kU16;
  double query_deviation = 1;
};

void CheckGoldAttention(BackendTest& t, const GoldCase& test) {
  const int64_t width = test.sizes.width;
  const reference::GoldLayer layer = RandomGoldLayer(t.random, test.sizes, t.weight_dtype());
  const Paging paging(t.random, test.page_tokens, Lengths(test.chunks));
  const std::vector<RowSpan> spans = SpansOf(t.random, test.chunks, paging);
  const int64_t rows = RowCount(test.chunks);
  const Values q = t.random.Normal(rows * width, test.query_deviation);
  std::vector<Values> ids, c;
  Values expected(q.size());
  for (const RowSpan& span : spans) {
    const int64_t length = span.position + span.row_count;
    const std::vector<int32_t> sequence = t.random.Ids(length, test.sizes.vocab);
    ids.push_back(IdValues(sequence));
    c.push_back(t.random.Normal(length * width / 16, 1, t.cache_dtype()));
    const reference::KeysValues kv = reference::GoldKeysValues(layer, sequence, c.back());
    SetRows(reference::Attention(RowsOf(q, span, width), kv.keys, kv.values, width, layer.head_size, span.position),
            span, width, expected);
  }
  const GoldCache cache{
      t.device.Put(paging.Scatter(ids, 1), {paging.pages(), test.page_tokens}, test.id_dtype),
      t.device.Put(paging.Scatter(c, width / 16), {paging.pages(), test.page_tokens, width / 16}, t.cache_dtype())};
  const Tensor out = t.device.New({rows, width});
  t.device->GoldAttention(t.device.Put(q, {rows, width}), spans, PutGoldShared(t.device, layer, t.weight_dtype()),
                          PutGoldWeights(t.device, layer, t.weight_dtype()), cache, layer.head_size, out);
  ExpectClose(t.device.Get(out), expected, layer.head_size, AttentionTolerance(t.tolerance(), test.query_deviation),
              "width " + std::to_string(width) + ", rope " + std::to_string(layer.rope_base) + ", page of " +
                  std::to_string(test.page_tokens) + ", " + std::to_string(spans.size()) + " spans");
}

TEST_P(BackendTest, GoldAttention) {
  for (const std::vector<Chunk>& chunks : AttentionChunks()) {
    CheckGoldAttention(*this, {.chunks = chunks, .sizes = {.width = 64, .head_size = 16}});
    CheckGoldAttention(*this, {.chunks = chunks,
                               .sizes = {.width = 96, .head_size = 32, .rope_base = 10000},
                               .page_tokens = 37,
                               .id_dtype = DType::kI32});
  }
}

TEST_P(BackendTest, GoldAttentionOfEverySize) {
  const std::vector<Chunk> chunks = {{100, 1}, {0, 9}, {61, 4}};
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
    CheckGoldAttention(*this, {.chunks = {{300, 1}, {130, 20}}, .query_deviation = deviation});
  }
}

TEST_P(BackendTest, GoldAttentionOverLongContexts) {
  CheckGoldAttention(*this,
                     {.chunks = {{3000, 5}, {1023, 2}}, .sizes = {.width = 64, .head_size = 32}, .page_tokens = 64});
  if (!GetParam().thorough) return;
  CheckGoldAttention(*this, {.chunks = {{299'990, 2}},
                             .sizes = {.width = 16, .head_size = 16, .mix_rank = 2, .lora_rank = 2, .rope_base = 10000},
                             .page_tokens = 64});
}

}  // namespace
}  // namespace goldfinch
