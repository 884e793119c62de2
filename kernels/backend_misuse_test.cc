// Tensors that do not fit each other are the caller's error, and die with a line that names them.
#include "kernels/backend_test_util.h"

namespace goldfinch {
namespace {

TEST_P(BackendTest, MisuseDies) {
  if (weight_dtype() != DType::kF32) return;  // the checks are the same for all types
  const Tensor x = device.New({3, 32}), out = device.New({3, 32}), shift = device.New({2, 32});
  const Tensor mix = device.New({1, 32}), shifted = device.New({1, 3, 32}), state = device.New({2, 1, 32, 32});
  const Matrix weight{device.New({32, 32})};
  const NormWeights norm{device.New({32}), device.New({31})};
  const KvCache cache{device.New({4, 16, 32}), device.New({4, 16, 32})};
  const auto spans = [](const RowSpan& first, const RowSpan& second) { return std::vector<RowSpan>{first, second}; };
  const std::vector<RowSpan> good = {{.slot = 1, .row_count = 3}};

  EXPECT_DEATH(device->MatMul(device.New({3, 31}), weight, {}, out),
               "product input is \\[3, 31\\], expected \\[3, 32\\]");
  EXPECT_DEATH(device->MatMul(x, weight, {}, device.New({2, 32})), "product output");
  EXPECT_DEATH(device->MatMul(x, weight, {}, device.New(DType::kBf16, {3, 32})),
               "product output is bf16, expected f32");
  EXPECT_DEATH(device->MatMul(x, weight, {.bias = norm.bias}, out), "product bias");
  EXPECT_DEATH(device->GroupNorm(x, 1, norm, 1e-5f, {}, out), "norm bias");
  EXPECT_DEATH(device->Embed(x, {0, 3, 1}, out), "id 3");
  EXPECT_DEATH(device->Embed(x, {0, -1, 1}, out), "id -1");
  EXPECT_DEATH(device->Convert(x, device.New(DType::kBf16, {2, 32})), "conversion input is \\[3, 32\\]");
  EXPECT_DEATH(device->Convert(device.New(DType::kBf16, {3, 32}), out), "conversion input is bf16, expected f32");
  EXPECT_DEATH(device->CopyRows(x, {{2, 3}}, out), "CHECK failed");
  // Spans with a gap, that overlap, that leave rows over, of a slot that is not there.
  for (const std::vector<RowSpan>& bad : {spans({.row_count = 1}, {.slot = 1, .row_begin = 2, .row_count = 1}),
                                          spans({.row_count = 2}, {.slot = 1, .row_begin = 1, .row_count = 2}),
                                          spans({.row_count = 1}, {.row_begin = 1, .row_count = 1}),
                                          spans({.row_count = 2}, {.slot = 2, .row_begin = 2, .row_count = 1})}) {
    EXPECT_DEATH(device->TokenShift(x, bad, shift, mix, shifted), "CHECK failed");
    EXPECT_DEATH(device->WkvForward(x, x, x, x, {}, bad, state, {}, out), "CHECK failed");
  }
  EXPECT_DEATH(device->WkvForward(x, x, x, device.New({2, 32}), {}, good, state, {}, out), "w is \\[2, 32\\]");
  EXPECT_DEATH(device->Rope(x, good, 24, 10000), "CHECK failed");
  EXPECT_DEATH(device->KvAppend(x, x, good, cache), "pages");
}

}  // namespace
}  // namespace goldfinch
