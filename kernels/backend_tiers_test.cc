// The compressed, shared and full tiers of GOLD attention give the same results: bit for bit if Case::bit_invariant,
// else to the tolerance.
#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "kernels/backend_test_util.h"
#include "kernels/paged_test_util.h"

namespace goldfinch {
namespace {

constexpr int64_t kVocab = 60;

struct TierCase {
  std::vector<int64_t> lengths;  // one for each sequence
  int64_t width = 64;
  int head_size = 16;
  int64_t page_tokens = 16;       // of the compressed cache
  int64_t kept_page_tokens = 64;  // of what is kept
  double rope_base = 0;
  std::optional<DType> c_dtype = {};  // instead of the suite's cache_dtype
};

// A few GOLD layers over one cache, with LoRAs of different ranks.
struct TierInputs {
  TierInputs(BackendTest& t, const TierCase& test)
      : paging(t.random, test.page_tokens, test.lengths),
        kept_paging(t.random, test.kept_page_tokens, test.lengths),
        head_size(test.head_size) {
    const int64_t c_width = test.width / 16, pages = paging.pages();
    for (int i = 0; i < 3; ++i) {
      const reference::GoldLayer layer = RandomGoldLayer(t.random,
                                                         {.width = test.width,
                                                          .head_size = test.head_size,
                                                          .vocab = kVocab,
                                                          .mix_rank = 3 + i,
                                                          .lora_rank = 9 - 2 * i,
                                                          .rope_base = test.rope_base},
                                                         t.weight_dtype());
      if (i == 0) {
        shared = PutGoldShared(t.device, layer, t.weight_dtype());
        embedding = layer.embedding;
        ln0 = layer.ln0;
      }
      reference::GoldLayer of_shared = layer;  // its mix table is made from the embedding that all layers share
      of_shared.embedding = embedding;
      of_shared.ln0 = ln0;
      layers.push_back(PutGoldWeights(t.device, of_shared, t.weight_dtype()));
    }
    const DType c_dtype = test.c_dtype.value_or(t.cache_dtype());
    std::vector<Values> ids, c;
    for (const int64_t length : test.lengths) {
      ids.push_back(IdValues(t.random.Ids(length, kVocab)));
      c.push_back(RoundCompressed(t.random.Normal(length * c_width, 1), c_width, c_dtype));
    }
    cache = {t.device.Put(paging.Scatter(ids, 1), {pages, test.page_tokens}, DType::kU16),
             t.device.PutCompressed(paging.Scatter(c, c_width), {pages, test.page_tokens, c_width}, c_dtype)};
    const Shape kept{kept_paging.pages(), test.kept_page_tokens, test.width};
    kv = {t.device.New(t.act(), kept), t.device.New(t.act(), kept)};
    rows = NewKeptRows(t, test.width);
  }

  // NaN, like the other tensors of Device.
  GoldSharedRows NewKeptRows(BackendTest& t, int64_t width) const {
    const int64_t page_tokens = kept_paging.page_tokens();
    GoldSharedRows made{.pages = kept_paging.pages(), .page_tokens = page_tokens};
    made.page_bytes = t.device->GoldSharedPageBytes(width, layers, head_size, page_tokens);
    EXPECT_EQ(made.page_bytes % 256, 0);
    const Tensor memory = t.device.New(DType::kF32, {(made.pages * made.page_bytes + 256) / 4});
    made.data = reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(memory.data) + 255) / 256 * 256);
    return made;
  }

  // Positions [begin, end) of sequence i as the rows from `row` on of a call.
  RowSpan Span(int i, int64_t begin, int64_t end, int64_t row) const {
    return {.slot = i,
            .row_begin = static_cast<int32_t>(row),
            .row_count = static_cast<int32_t>(end - begin),
            .position = begin,
            .pages = paging.table(i),
            .kept_pages = kept_paging.table(i)};
  }

  // Makes the kept rows of everything, in calls that end at these shares of each sequence.
  void Keep(BackendTest& t, const std::vector<int64_t>& lengths, const std::vector<double>& ends) const {
    std::vector<int64_t> kept(lengths.size());
    for (const double share : ends) {
      std::vector<RowSpan> spans;
      int64_t row = 0;
      for (size_t i = 0; i < lengths.size(); ++i) {
        const int64_t end = share >= 1 ? lengths[i] : static_cast<int64_t>(share * static_cast<double>(lengths[i]));
        if (end == kept[i]) continue;
        spans.push_back(Span(static_cast<int>(i), kept[i], end, row));
        row += end - kept[i];
        kept[i] = end;
      }
      t.device->GoldMakeSharedRows(spans, shared, layers, cache, head_size, rows);
      t.device->GoldMakeKeysValues(spans, shared, layers[1], cache, head_size, kv);
    }
  }

  Paging paging, kept_paging;
  int head_size;
  Values embedding;
  reference::Norm ln0;
  GoldSharedWeights shared;
  std::vector<GoldKvWeights> layers;
  GoldCache cache;
  KvCache kv;  // for layers[1]
  GoldSharedRows rows;
};

void CheckTiers(BackendTest& t, const TierCase& test, const std::vector<double>& ends) {
  const TierInputs in(t, test);
  in.Keep(t, test.lengths, ends);
  // The last few positions of each sequence, but all positions of the first one.
  std::vector<RowSpan> spans;
  int64_t count = 0;
  for (size_t i = 0; i < test.lengths.size(); ++i) {
    const int64_t rows = i == 0 ? test.lengths[i] : std::min<int64_t>(test.lengths[i], 3);
    spans.push_back(in.Span(static_cast<int>(i), test.lengths[i] - rows, test.lengths[i], count));
    count += rows;
  }
  const Shape shape{count, test.width};
  const Tensor q = t.device.Put(t.random.Normal(shape.elements(), 1, t.act()), shape, t.act());
  const Tensor out = t.device.New(t.act(), shape);
  const auto check = [&](const Values& expected, double tolerance, const std::string& what) {
    if (t.GetParam().bit_invariant) {
      ExpectSame(t.device.Get(out), expected, what);
    } else {
      ExpectClose(t.device.Get(out), expected, test.head_size, tolerance, what);
    }
  };
  for (int layer = 0; layer < 3; ++layer) {
    t.device->GoldAttention(q, spans, in.shared, in.layers[layer], in.cache, test.head_size, out);
    const Values expected = t.device.Get(out);
    t.device->GoldSharedAttention(q, spans, in.shared, in.layers, layer, in.rows, test.head_size, out);
    check(expected, 2 * t.tolerance(), "kept rows, layer " + std::to_string(layer));
    if (layer != 1) continue;
    std::vector<RowSpan> kept_spans = spans;
    for (RowSpan& span : kept_spans) span.pages = span.kept_pages;
    t.device->KvAttention(q, kept_spans, in.kv, test.head_size, out);
    const double rounding = t.act() == DType::kF32 ? 0 : 2 * RoundingError(t.act());
    check(expected, 2 * t.tolerance() + rounding, "kept keys and values");
  }
}

TEST_P(BackendTest, TiersAreTheSame) {
  const std::vector<double> at_once = {1}, in_pieces = {0.01, 0.3, 0.31, 0.9, 1};
  const std::vector<int64_t> lengths =
      slow() ? std::vector<int64_t>{20, 1, 70, 65} : std::vector<int64_t>{140, 1, 2, 63, 64, 65, 400};
  CheckTiers(*this, {.lengths = lengths}, at_once);
  CheckTiers(*this, {.lengths = lengths, .page_tokens = 64, .rope_base = 10000}, in_pieces);
  CheckTiers(*this, {.lengths = {130, 7}, .width = 96, .head_size = 48, .page_tokens = 64, .kept_page_tokens = 16},
             in_pieces);
  CheckTiers(*this, {.lengths = {9, 70}, .width = 32, .page_tokens = 5, .kept_page_tokens = 37, .rope_base = 500},
             in_pieces);
  CheckTiers(*this, {.lengths = {9, 70}, .width = 32, .page_tokens = 5, .kept_page_tokens = 1}, at_once);
}

TEST_P(BackendTest, TiersOver8BitRowsAreTheSame) {
  CheckTiers(*this, {.lengths = {20, 1, 70, 65}, .c_dtype = DType::kInt8}, {0.3, 1});
}

// A kept row does not depend on the call that made it, nor on what shares the call.
TEST_P(BackendTest, KeptRowsAreInvariant) {
  if (!GetParam().bit_invariant) return;  // other back ends are tested by TiersAreTheSame, in pieces
  const TierCase test{.lengths = {130, 1, 70}};
  TierInputs in(*this, test);
  const auto kept = [&](const std::vector<double>& ends) {
    in.rows = in.NewKeptRows(*this, test.width);
    in.Keep(*this, test.lengths, ends);
    const Tensor all{in.rows.data, DType::kF32, {in.rows.pages * in.rows.page_bytes / 4}};
    std::vector<char> host(all.bytes());
    device->CopyToHost(all, host.data());
    return host;
  };
  EXPECT_TRUE(kept({1}) == kept({0.1, 0.11, 0.5, 1}));
}

TEST_P(BackendTest, MisuseOfKeptRowsDies) {
  if (weight_dtype() != DType::kF32) return;
  const TierCase test{.lengths = {3}, .width = 32};
  const TierInputs in(*this, test);
  in.Keep(*this, test.lengths, {1});
  const Tensor q = device.New(act(), {3, 32}), out = device.New(act(), {3, 32});
  const auto keep = [&](const RowSpan& span, const GoldSharedRows& rows) {
    device->GoldMakeSharedRows(std::vector<RowSpan>{span}, in.shared, in.layers, in.cache, 16, rows);
  };
  const auto attend = [&](const RowSpan& span, int layer) {
    device->GoldSharedAttention(q, std::vector<RowSpan>{span}, in.shared, in.layers, layer, in.rows, 16, out);
  };
  const RowSpan good = in.Span(0, 0, 3, 0);
  const auto beyond = static_cast<int32_t>(in.rows.pages), negative = -1;
  for (const int32_t* page : {&beyond, &negative}) {
    RowSpan bad = good;
    bad.kept_pages = page;
    EXPECT_DEATH(keep(bad, in.rows), "page");
    EXPECT_DEATH(attend(bad, 0), "page");
    EXPECT_DEATH(device->GoldMakeKeysValues(std::vector<RowSpan>{bad}, in.shared, in.layers[1], in.cache, 16, in.kv),
                 "page");
  }
  RowSpan none = good;
  none.kept_pages = nullptr;
  EXPECT_DEATH(keep(none, in.rows), "no kept pages");
  EXPECT_DEATH(attend(good, 3), "layer 3 of 3");
  GoldSharedRows small = in.rows;
  small.page_bytes -= 256;
  EXPECT_DEATH(keep(good, small), "kept pages of");
  GoldSharedRows crooked = in.rows;
  crooked.data = static_cast<char*>(crooked.data) + 4;
  EXPECT_DEATH(keep(good, crooked), "not aligned");
}

}  // namespace
}  // namespace goldfinch
