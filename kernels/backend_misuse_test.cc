// Tensors that do not fit each other are the caller's error. The process dies with a message that names them.
#include "kernels/backend_test_util.h"

namespace goldfinch {
namespace {

TEST_P(BackendTest, MisuseDies) {
  if (weight_dtype() != DType::kF32) return;  // the checks are the same for all types
  const Tensor x = device.New(act(), {3, 32}), out = device.New(act(), {3, 32}), shift = device.New({2, 32});
  const Tensor mix = device.New({1, 32}), shifted = device.New(act(), {1, 3, 32}), state = device.New({2, 1, 32, 32});
  const Tensor narrow = device.New(act(), {3, 31}), few = device.New(act(), {2, 32});
  const Tensor ids_out = device.New({3, 32}), numbers = device.New(DType::kU16, {3, 32});
  const Tensor few_bf16 = device.New(DType::kBf16, {2, 32}), no_scale = device.New(DType::kInt8, {3, 32});
  const Matrix weight{device.New({32, 32})};
  const NormWeights norm{device.New({32}), device.New({31})};
  const KvCache cache{device.New({4, 16, 32}), device.New({4, 16, 32})};
  const GoldCache gold{device.New(DType::kU16, {4, 16}), device.New({4, 16, 2})};
  const Tensor c = device.New({3, 2}), logits = device.New({1, 8});
  const auto spans = [](const RowSpan& first, const RowSpan& second) { return std::vector<RowSpan>{first, second}; };
  const std::vector<RowSpan> good = {{.slot = 1, .row_count = 3}};

  EXPECT_DEATH(device->MatMul(narrow, weight, {}, out), "product input is \\[3, 31\\], expected \\[3, 32\\]");
  EXPECT_DEATH(device->MatMul(x, weight, {}, few), "product output");
  EXPECT_DEATH(device->MatMul(x, weight, {}, numbers), "product output is u16, expected");
  EXPECT_DEATH(device->MatMul(x, weight, {.bias = norm.bias}, out), "product bias");
  EXPECT_DEATH(device->GroupNorm(x, 1, norm, 1e-5f, {}, out), "norm bias");
  EXPECT_DEATH(device->Embed(x, {0, 3, 1}, ids_out), "id 3");
  EXPECT_DEATH(device->Embed(x, {0, -1, 1}, ids_out), "id -1");
  EXPECT_DEATH(device->Convert(x, few_bf16), "conversion input is \\[3, 32\\]");
  EXPECT_DEATH(device->Convert(numbers, out), "conversion input is u16, expected");
  EXPECT_DEATH(device->Convert(x, no_scale), "8-bit rows is \\[3, 32\\], expected \\[3, 34\\]");
  EXPECT_DEATH(device->CopyRows(x, {{2, 3}}, out), "CHECK failed");
  EXPECT_DEATH(device->Copy(x, few), "copy is \\[3, 32\\], expected \\[2, 32\\]");
  // Spans with a gap, spans that overlap, spans that do not cover all rows, and a slot that does not exist.
  for (const std::vector<RowSpan>& bad : {spans({.row_count = 1}, {.slot = 1, .row_begin = 2, .row_count = 1}),
                                          spans({.row_count = 2}, {.slot = 1, .row_begin = 1, .row_count = 2}),
                                          spans({.row_count = 1}, {.row_begin = 1, .row_count = 1}),
                                          spans({.row_count = 2}, {.slot = 2, .row_begin = 2, .row_count = 1})}) {
    EXPECT_DEATH(device->TokenShift(x, bad, shift, mix, shifted), "CHECK failed");
    EXPECT_DEATH(device->WkvForward(x, x, x, x, {}, bad, state, {}, out), "CHECK failed");
  }
  EXPECT_DEATH(device->WkvForward(x, x, x, few, {}, good, state, {}, out), "w is \\[2, 32\\]");
  EXPECT_DEATH(device->Rope(x, good, 24, 10000), "CHECK failed");
  EXPECT_DEATH(device->KvAppend(x, x, good, cache), "pages");

  // Pages outside the pool, and ids outside the range of their type.
  const int32_t beyond = 4, negative = -1, first = 0;
  for (const int32_t* pages : {&beyond, &negative}) {
    const std::vector<RowSpan> paged = {{.row_count = 3, .pages = pages}};
    EXPECT_DEATH(device->KvAppend(x, x, paged, cache), "page (4|-1) of 4");
    EXPECT_DEATH(device->KvAttention(x, paged, cache, 32, out), "page (4|-1) of 4");
    EXPECT_DEATH(device->GoldAppend({1, 2, 3}, c, paged, gold), "page (4|-1) of 4");
  }
  const std::vector<RowSpan> paged = {{.row_count = 3, .pages = &first}};
  EXPECT_DEATH(device->GoldAppend({1, 65536, 3}, c, paged, gold), "id 65536");
  EXPECT_DEATH(device->GoldAppend({1, 2, 3}, c, paged, {gold.ids, device.New(DType::kInt8, {4, 16, 2})}),
               "rows of f32 into a cache of int8");
  EXPECT_DEATH(device->GoldAppend({1, -1, 3}, c, paged, gold), "id -1");

  std::vector<int32_t> tokens(1);
  const auto sample = [&](int64_t limit, const std::vector<int32_t>& holes, const SampleRow& row) {
    device->Sample(logits, limit, holes, std::vector<SampleRow>{row}, absl::MakeSpan(tokens));
  };
  const int32_t eight = 8;
  const LogitChange change{-1, 1};
  EXPECT_DEATH(sample(9, {}, {}), "limit 9");
  EXPECT_DEATH(sample(8, {8}, {}), "id 8");
  EXPECT_DEATH(sample(8, {}, {.banned = {&eight, 1}}), "id 8");
  EXPECT_DEATH(sample(8, {}, {.changes = {&change, 1}}), "id -1");
  EXPECT_DEATH(sample(8, {}, {.uniform = 1}), "uniform");
}

// The table of a GOLD layer must be given, with the right shape.
TEST_P(BackendTest, GoldAttentionWithoutItsTableDies) {
  if (weight_dtype() != DType::kF32) return;
  const reference::GoldLayer layer = RandomGoldLayer(random, {.width = 32, .vocab = 8}, weight_dtype());
  const GoldSharedWeights shared = PutGoldShared(device, layer, weight_dtype());
  GoldKvWeights weights = PutGoldWeights(device, layer, weight_dtype());
  const GoldCache cache{device.Put(Values(16), {1, 16}, DType::kU16), device.Put(Values(32), {1, 16, 2})};
  const KvCache kv{device.New({1, 16, 32}), device.New({1, 16, 32})};
  const Tensor q = device.New(act(), {1, 32}), out = device.New(act(), {1, 32});
  const Tensor wrong = device.New({8, 2, 2});
  const int32_t page = 0;
  const std::vector<RowSpan> spans = {{.row_count = 1, .pages = &page, .kept_pages = &page}};
  for (const ConstTensor& table : {ConstTensor{}, ConstTensor(wrong)}) {
    weights.mix_table = table;
    EXPECT_DEATH(device->GoldAttention(q, spans, shared, weights, cache, 16, out), "mix table");
    EXPECT_DEATH(device->GoldMakeKeysValues(spans, shared, weights, cache, 16, kv), "mix table");
  }
}

}  // namespace
}  // namespace goldfinch
