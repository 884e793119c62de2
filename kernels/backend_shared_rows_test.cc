// What the shared tier keeps beside the compressed cache, and attention over it.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <optional>
#include <string>
#include <vector>

#include "kernels/backend_test_util.h"
#include "kernels/paged_test_util.h"

namespace goldfinch {
namespace {

struct Ranks {
  int64_t mix = 4;
  int64_t lora = 8;
  double rope_base = 0;
};

struct KeptCase {
  std::vector<TestChunk> chunks;
  int64_t width = 64;
  int head_size = 16;
  std::vector<Ranks> layers = {{}};
  int64_t page_tokens = 16;
  DType id_dtype = DType::kU16;
  double query_deviation = 1;
  int64_t vocab = 100;
  std::optional<DType> c_dtype = {};  // instead of the suite's cache_dtype

  std::string ToString() const {
    std::string text = "width " + std::to_string(width) + ", head size " + std::to_string(head_size) + ", page of " +
                       std::to_string(page_tokens) + ", " + std::to_string(chunks.size()) + " spans, first at " +
                       std::to_string(chunks.empty() ? 0 : chunks[0].position);
    for (const Ranks& ranks : layers) {
      text += ", ranks " + std::to_string(ranks.mix) + " and " + std::to_string(ranks.lora);
    }
    return text;
  }
};

constexpr int64_t kAlignment = 256;
constexpr unsigned char kPoison = 0xFF;  // NaN in floats, -1 in ids

// The layers of a case, with one embedding and compressed rows of its sequences, and a pool of pages for what is kept.
class Kept {
 public:
  Kept(BackendTest& t, const KeptCase& test)
      : t_(t),
        test_(test),
        paging_(t.random, test.page_tokens, Lengths(test.chunks)),
        kept_paging_(t.random, test.page_tokens, Lengths(test.chunks)) {
    for (const Ranks& ranks : test.layers) {
      layers_.push_back(RandomGoldLayer(t.random,
                                        {.width = test.width,
                                         .head_size = test.head_size,
                                         .vocab = test.vocab,
                                         .mix_rank = ranks.mix,
                                         .lora_rank = ranks.lora,
                                         .rope_base = ranks.rope_base},
                                        t.weight_dtype()));
      reference::GoldLayer& layer = layers_.back();
      layer.embedding = layers_[0].embedding;
      layer.ln0 = layers_[0].ln0;
      layer.key_x0 = layers_[0].key_x0;
      layer.key_compressed = layers_[0].key_compressed;
      weights_.push_back(PutGoldWeights(t.device, layer, t.weight_dtype()));
    }
    shared_ = PutGoldShared(t.device, layers_[0], t.weight_dtype());

    const int64_t c_width = test.width / 16, pages = paging_.pages();
    const DType c_dtype = test.c_dtype.value_or(t.cache_dtype());
    std::vector<Values> id_values;
    for (const TestChunk& chunk : test.chunks) {
      ids_.push_back(t.random.Ids(chunk.position + chunk.rows, test.vocab));
      id_values.push_back(IdValues(ids_.back()));
      const int64_t length = chunk.position + chunk.rows;
      c_.push_back(RoundCompressed(t.random.Normal(length * c_width, 1), c_width, c_dtype));
    }
    cache_ = {t.device.Put(paging_.Scatter(id_values, 1), {pages, test.page_tokens}, test.id_dtype),
              t.device.PutCompressed(paging_.Scatter(c_, c_width), {pages, test.page_tokens, c_width}, c_dtype)};

    // Pages are longer than needed, and the rest must not be written.
    needed_bytes_ = t.device->GoldSharedPageBytes(test.width, weights_, test.head_size, test.page_tokens);
    EXPECT_GT(needed_bytes_, 0);
    rows_.pages = kept_paging_.pages();
    rows_.page_tokens = test.page_tokens;
    rows_.page_bytes = (needed_bytes_ + kAlignment - 1) / kAlignment * kAlignment + kAlignment;
    auto memory = t.device->Allocate(rows_.pages * rows_.page_bytes + kAlignment, "kept rows");
    EXPECT_TRUE(memory.ok());
    memory_ = *std::move(memory);
    const auto address = reinterpret_cast<uintptr_t>(memory_.get());
    rows_.data = reinterpret_cast<void*>((address + kAlignment - 1) / kAlignment * kAlignment);
    const std::vector<unsigned char> poison(Pool().bytes(), kPoison);
    t.device->CopyFromHost(poison.data(), Pool());
  }

  // Makes the shared rows of the positions from `from` / 12 to `to` / 12 of each sequence.
  void Keep(int from, int to) {
    std::vector<RowSpan> spans;
    int32_t positions = 0;
    for (size_t i = 0; i < test_.chunks.size(); ++i) {
      const int64_t length = test_.chunks[i].position + test_.chunks[i].rows;
      const int64_t begin = length * from / 12, end = length * to / 12;
      if (begin == end) continue;
      RowSpan span = SpanOf(static_cast<int>(i), positions, begin, end);
      span.pages = paging_.table(static_cast<int>(i));
      spans.push_back(span);
      positions += span.row_count;
    }
    t_.device->GoldMakeSharedRows(spans, shared_, weights_, cache_, test_.head_size, rows_);
  }

  // Overwrites the compressed cache, which must not be read any more.
  void PoisonCache() {
    for (const Tensor& tensor : {cache_.ids, cache_.c}) {
      const std::vector<unsigned char> poison(tensor.bytes(), kPoison);
      t_.device->CopyFromHost(poison.data(), tensor);
    }
  }

  // From now on attention takes only the rows before `end` / 12 of each sequence from what was kept.
  void KeepOnly(int end) {
    kept_parts_ = end;
    rows_.rest = &cache_;
  }

  // Compares the attention of the chunks' rows in every layer.
  void CheckAttention() {
    std::vector<RowSpan> spans;
    int32_t rows = 0;
    for (size_t i = 0; i < test_.chunks.size(); ++i) {
      const TestChunk& chunk = test_.chunks[i];
      RowSpan& span =
          spans.emplace_back(SpanOf(static_cast<int>(i), rows, chunk.position, chunk.position + chunk.rows));
      rows += chunk.rows;
      if (rows_.rest == nullptr) continue;
      span.pages = paging_.table(static_cast<int>(i));
      span.kept_end = (chunk.position + chunk.rows) * kept_parts_ / 12;
    }
    const Shape shape{rows, test_.width};
    for (size_t layer = 0; layer < layers_.size(); ++layer) {
      const Values q = t_.random.Normal(shape.elements(), test_.query_deviation, t_.act());
      const Tensor out = t_.device.New(t_.act(), shape);
      t_.device->GoldSharedAttention(t_.device.Put(q, shape, t_.act()), spans, shared_, weights_,
                                     static_cast<int>(layer), rows_, test_.head_size, out);
      Values expected(q.size());
      for (size_t i = 0; i < spans.size(); ++i) {
        const reference::KeysValues kv = reference::GoldMakeKeysValues(layers_[layer], ids_[i], c_[i]);
        SetRows(reference::Attention(RowsOf(q, spans[i], test_.width), kv.keys, kv.values, test_.width, test_.head_size,
                                     spans[i].position),
                spans[i], test_.width, expected);
      }
      // Scores of large queries have large rounding errors, and the softmax of such scores too.
      ExpectClose(t_.device.Get(out), expected, test_.head_size, t_.tolerance() * std::max(1., test_.query_deviation),
                  test_.ToString() + ", layer " + std::to_string(layer));
    }
  }

  // Unused pages, and the bytes after the rows of a page.
  void CheckNothingElseWritten() {
    std::vector<unsigned char> pool(Pool().bytes());
    t_.device->CopyToHost(Pool(), pool.data());
    std::vector<bool> owned(rows_.pages);
    for (size_t i = 0; i < test_.chunks.size(); ++i) {
      const int64_t length = test_.chunks[i].position + test_.chunks[i].rows;
      for (int64_t page = 0; page * test_.page_tokens < length; ++page) {
        owned[kept_paging_.table(static_cast<int>(i))[page]] = true;
      }
    }
    for (int64_t page = 0; page < rows_.pages; ++page) {
      const unsigned char* data = pool.data() + page * rows_.page_bytes;
      for (int64_t i = owned[page] ? needed_bytes_ : 0; i < rows_.page_bytes; ++i) {
        ASSERT_EQ(data[i], kPoison) << test_.ToString() << ", page " << page << ", byte " << i;
      }
    }
  }

 private:
  RowSpan SpanOf(int sequence, int32_t row_begin, int64_t begin, int64_t end) const {
    return {.slot = sequence,
            .row_begin = row_begin,
            .row_count = static_cast<int32_t>(end - begin),
            .position = begin,
            .kept_pages = kept_paging_.table(sequence)};
  }
  Tensor Pool() const { return {rows_.data, DType::kU16, {rows_.pages * rows_.page_bytes / 2}}; }

  BackendTest& t_;
  const KeptCase test_;
  const Paging paging_;
  const Paging kept_paging_;
  std::vector<reference::GoldLayer> layers_;
  std::vector<GoldKvWeights> weights_;
  GoldSharedWeights shared_;
  std::vector<std::vector<int32_t>> ids_;  // for each sequence
  std::vector<Values> c_;
  GoldCache cache_;
  int kept_parts_ = 12;
  int64_t needed_bytes_ = 0;
  std::shared_ptr<void> memory_;
  GoldSharedRows rows_;
};

// Shared rows are made in three calls that meet within pages and tiles.
void CheckKept(BackendTest& t, const KeptCase& test) {
  Kept kept(t, test);
  kept.Keep(0, 7);
  kept.Keep(7, 8);
  kept.Keep(8, 12);
  kept.PoisonCache();
  kept.CheckAttention();
  kept.CheckNothingElseWritten();
}

// Tiles of 16 and 64 positions, page borders, one row and many, alone and together.
std::vector<std::vector<TestChunk>> KeptChunks(const BackendTest& t) {
  std::vector<std::vector<TestChunk>> chunks = {
      {},
      {{0, 1}},
      {{0, 7}},
      {{14, 1}, {15, 1}, {16, 1}, {17, 2}, {62, 1}, {63, 1}, {64, 1}, {127, 3}},
  };
  if (t.slow()) {
    chunks.push_back({{150, 17}, {5, 1}, {0, 33}});
  } else {
    chunks.push_back({{300, 70}, {5, 1}, {0, 200}});
    chunks.push_back({{0, 1}, {3, 2}, {31, 1}, {80, 1}, {9, 5}, {128, 1}, {2, 1}, {1, 1}, {191, 2}, {63, 2}, {7, 1}});
  }
  return chunks;
}

TEST_P(BackendTest, GoldKept) {
  for (const std::vector<TestChunk>& chunks : KeptChunks(*this)) {
    CheckKept(*this, {.chunks = chunks, .layers = {{}, {.mix = 2, .lora = 5}}});
    CheckKept(*this, {.chunks = chunks,
                      .width = 96,
                      .head_size = 32,
                      .layers = {{.rope_base = 10000}},
                      .page_tokens = 37,
                      .id_dtype = DType::kI32});
    CheckKept(*this, {.chunks = chunks, .width = 128, .head_size = 64, .layers = {{.mix = 8, .lora = 16}}});
  }
}

// Rows of the first positions, and the rest from the compressed cache: the border lies within pages and tiles.
TEST_P(BackendTest, GoldKeptInPart) {
  if (!device->shares_in_part()) GTEST_SKIP() << "the back end does not";
  const std::vector<TestChunk> chunks = {{14, 1}, {62, 1}, {63, 3}, {127, 3}, {150, 17}, {0, 33}};
  for (const int end : {0, 1, 7, 12}) {
    Kept kept(*this, {.chunks = chunks, .layers = {{.rope_base = 10000}}, .page_tokens = 37});
    kept.Keep(0, end);
    kept.KeepOnly(end);
    kept.CheckAttention();
  }
}

TEST_P(BackendTest, GoldKeptOfEverySize) {
  const std::vector<TestChunk> chunks = {{100, 1}, {0, 9}, {61, 4}};
  for (int64_t page_tokens : slow() ? std::vector<int64_t>{1, 37} : std::vector<int64_t>{1, 16, 37, 64}) {
    CheckKept(*this,
              {.chunks = chunks, .width = 16, .layers = {{.mix = 1, .lora = 1}, {}}, .page_tokens = page_tokens});
    CheckKept(*this, {.chunks = chunks,
                      .width = 144,
                      .head_size = 48,
                      .layers = {{.mix = 3, .lora = 5}},
                      .page_tokens = page_tokens});
    CheckKept(*this, {.chunks = chunks,
                      .width = 128,
                      .head_size = 64,
                      .layers = {{.mix = 16, .lora = 64}, {.mix = 8, .lora = 24}},
                      .page_tokens = page_tokens,
                      .id_dtype = DType::kI32});
  }
  // More heads than a block of a kernel may have, and not a multiple of that number.
  CheckKept(*this, {.chunks = chunks, .width = 384, .head_size = 64, .layers = {{.mix = 32, .lora = 64}}});
  CheckKept(*this, {.chunks = chunks, .width = 192, .head_size = 64, .layers = {{.mix = 32, .lora = 65}}});
  // Layers with different ranks and rotary embeddings.
  CheckKept(*this,
            {.chunks = chunks,
             .width = 128,
             .head_size = 64,
             .layers = {{.mix = 8, .lora = 8}, {.mix = 40, .lora = 72}, {.mix = 8, .lora = 8, .rope_base = 1e4}}});
  CheckKept(
      *this,
      {.chunks = chunks, .width = 128, .head_size = 64, .layers = {{.mix = 8, .lora = 8}, {.mix = 3, .lora = 8}}});
  CheckKept(*this, {.chunks = chunks, .width = 128, .head_size = 128, .layers = {{.mix = 8, .lora = 8}}});
}

TEST_P(BackendTest, GoldKeptOf8BitRows) {
  const std::vector<TestChunk> chunks = {{100, 1}, {0, 9}, {61, 4}};
  CheckKept(*this, {.chunks = chunks, .layers = {{}, {.mix = 2, .lora = 5}}, .c_dtype = DType::kInt8});
  CheckKept(*this, {.chunks = chunks,
                    .width = 128,
                    .head_size = 64,
                    .layers = {{.mix = 8, .lora = 16}},
                    .page_tokens = 37,
                    .c_dtype = DType::kInt8});
}

TEST_P(BackendTest, GoldKeptOfPeakedScores) {
  for (double deviation : {0., 10., 300.}) {
    const std::vector<TestChunk> chunks = {{slow() ? 90 : 300, 1}, {40, slow() ? 3 : 20}};
    CheckKept(*this, {.chunks = chunks, .query_deviation = deviation});
    CheckKept(*this, {.chunks = chunks,
                      .width = 128,
                      .head_size = 64,
                      .layers = {{.mix = 8, .lora = 8}},
                      .query_deviation = deviation});
  }
}

TEST_P(BackendTest, GoldKeptOverLongContexts) {
  if (slow()) {
    CheckKept(*this, {.chunks = {{500, 1}, {200, 2}},
                      .width = 128,
                      .head_size = 64,
                      .layers = {{.mix = 8, .lora = 8}},
                      .page_tokens = 64});
    return;
  }
  CheckKept(*this, {.chunks = {{4000, 5}, {2047, 2}}, .width = 128, .head_size = 64, .page_tokens = 64});
  CheckKept(*this, {.chunks = {{4000, 5}, {2047, 2}},
                    .width = 128,
                    .head_size = 64,
                    .layers = {{.mix = 32, .lora = 64}},
                    .page_tokens = 64});
  if (!GetParam().thorough) return;
  CheckKept(*this, {.chunks = {{299'990, 2}}, .width = 16, .head_size = 16, .page_tokens = 64});
  CheckKept(
      *this,
      {.chunks = {{20'000, 2}}, .width = 128, .head_size = 64, .layers = {{.mix = 8, .lora = 8}}, .page_tokens = 64});
}

}  // namespace
}  // namespace goldfinch
