// Token shift and linear attention: the ops that carry a state from row to row.
#include <cmath>

#include "kernels/backend_test_util.h"

namespace goldfinch {
namespace {

// Spans of one row, of a few, of many, and many spans.
const std::vector<std::vector<int>>& SpanCounts() {
  static const auto& counts = *new std::vector<std::vector<int>>{
      {},
      {1},
      {7},
      {1, 1, 1},
      {2, 511, 1, 9},
      std::vector<int>(40, 1),
      {1, 3, 2, 1, 1, 4, 1, 2, 1, 1, 5, 1, 3, 1, 2, 1, 1},
  };
  return counts;
}

struct ShiftInputs {
  int64_t rows = 0;
  std::vector<RowSpan> spans;
  Values x;
  Values shift;        // before
  Values shift_after;  // expected
  Values prev;
};

ShiftInputs Draw(BackendTest& t, const std::vector<int>& counts, int64_t width) {
  const int slots = static_cast<int>(counts.size()) + 2;
  ShiftInputs in;
  in.rows = RowCount(counts);
  in.spans = MakeSpans(t.random, counts, slots);
  in.x = t.random.Normal(in.rows * width, 1);
  in.shift = t.random.Normal(slots * width, 1);
  in.shift_after = in.shift;
  in.prev.resize(in.x.size());
  for (const RowSpan& span : in.spans) {
    const Values rows = RowsOf(in.x, span, width);
    SetRows(reference::Prev(rows, Slot(in.shift, span.slot, width)), span, width, in.prev);
    SetSlot(Slot(rows, span.row_count - 1, width), span.slot, in.shift_after);
  }
  return in;
}

void CheckTokenShift(BackendTest& t, const std::vector<int>& counts, int64_t width, int64_t targets) {
  const ShiftInputs in = Draw(t, counts, width);
  const Values mix = t.random.Uniform(targets * width, -0.2, 1.2);
  const int slots = static_cast<int>(counts.size()) + 2;
  const Tensor shift = t.device.Put(in.shift, {slots, width}), out = t.device.New({targets, in.rows, width});
  t.device->TokenShift(t.device.Put(in.x, {in.rows, width}), in.spans, shift, t.device.Put(mix, {targets, width}), out);
  const Values actual = t.device.Get(out);
  for (int g = 0; g < targets; ++g) {
    ExpectClose(Slot(actual, g, in.rows * width), reference::Lerp(in.x, in.prev, Slot(mix, g, width)), width,
                kFp32Tolerance, out.shape.ToString(), 1);
  }
  ExpectSame(t.device.Get(shift), in.shift_after, "shift state");
}

void CheckDdLerp(BackendTest& t, const std::vector<int>& counts, int64_t width, int64_t targets, int64_t rank) {
  const ShiftInputs in = Draw(t, counts, width);
  const reference::DdLerpWeights weights{
      .mix_x = t.random.Uniform(width, 0, 1),
      .down = {t.random.Normal(width * targets * rank, 1 / std::sqrt(width), t.weight_dtype()), width, targets * rank,
               Matrix::Layout::kInOut},
      .up = t.random.Normal(targets * rank * width, 1 / std::sqrt(rank), t.weight_dtype()),
      .mix = t.random.Uniform(targets * width, 0, 1)};
  const int slots = static_cast<int>(counts.size()) + 2;
  const Tensor shift = t.device.Put(in.shift, {slots, width}), out = t.device.New({targets, in.rows, width});
  t.device->DdLerp(t.device.Put(in.x, {in.rows, width}), in.spans, shift,
                   {.mix_x = t.device.Put(weights.mix_x, {width}),
                    .down = t.device.Put(weights.down, t.weight_dtype()),
                    .up = t.device.Put(weights.up, {targets, rank, width}, t.weight_dtype()),
                    .mix = t.device.Put(weights.mix, {targets, width})},
                   out);
  const Values actual = t.device.Get(out);
  const std::vector<Values> expected = reference::DdLerp(in.x, in.prev, weights);
  for (int g = 0; g < targets; ++g) {
    ExpectClose(Slot(actual, g, in.rows * width), expected[g], width, t.tolerance(),
                out.shape.ToString() + " rank " + std::to_string(rank), 1);
  }
  ExpectSame(t.device.Get(shift), in.shift_after, "shift state");
}

TEST_P(BackendTest, TokenShift) {
  for (const std::vector<int>& counts : SpanCounts()) {
    CheckTokenShift(*this, counts, 65, 2);
    CheckTokenShift(*this, counts, 8, 4);
  }
  for (int64_t width : {1, 3, 17, 64, 448, 2050}) CheckTokenShift(*this, {2, 1, 4}, width, 1);
}

TEST_P(BackendTest, DdLerp) {
  for (const std::vector<int>& counts : SpanCounts()) {
    CheckDdLerp(*this, counts, 136, 5, 8);
    CheckDdLerp(*this, counts, 17, 1, 3);
  }
  for (int64_t width : {1, 3, 64, 65, 448, 1030}) CheckDdLerp(*this, {2, 1, 4}, width, 3, 4);
  for (int64_t rank : {1, 5, 32, 64, 128}) CheckDdLerp(*this, {1, 9}, 80, 5, rank);
}

struct WkvCase {
  std::vector<int> counts;
  int64_t heads = 2;
  int64_t head_size = 64;
  double decay_low = -6;  // of w
  double decay_high = 1;
  bool constant_decay = false;
  bool bonus = true;
  WkvOptions options = {};
};

void CheckWkv(BackendTest& t, const WkvCase& test) {
  const int64_t width = test.heads * test.head_size, state_size = width * test.head_size, rows = RowCount(test.counts);
  const int slots = static_cast<int>(test.counts.size()) + 2;
  const Values r = t.random.Normal(rows * width, 1), k = t.random.Normal(rows * width, 1);
  const Values v = t.random.Normal(rows * width, 1);
  const int64_t w_rows = test.constant_decay ? 1 : rows;
  const Values w = t.random.Uniform(w_rows * width, test.decay_low, test.decay_high);
  const Values u = test.bonus ? t.random.Normal(width, 1) : Values();
  const Values before = t.random.Normal(rows * width, 1), state = t.random.Normal(slots * state_size, 1);
  const std::vector<RowSpan> spans = MakeSpans(t.random, test.counts, slots);

  Values expected = before, expected_state = state;
  for (const RowSpan& span : spans) {
    Values slot_state = Slot(state, span.slot, state_size);
    Values y = reference::Wkv(RowsOf(r, span, width), RowsOf(k, span, width), RowsOf(v, span, width),
                              test.constant_decay ? w : RowsOf(w, span, width), u, test.heads, test.head_size,
                              test.options.one_minus_decay_keys, slot_state);
    if (test.options.accumulate) y = reference::Add(y, RowsOf(before, span, width));
    SetRows(y, span, width, expected);
    SetSlot(slot_state, span.slot, expected_state);
  }

  const Shape shape{rows, width};
  const Tensor state_tensor = t.device.Put(state, {slots, test.heads, test.head_size, test.head_size});
  const Tensor out = test.options.accumulate ? t.device.Put(before, shape) : t.device.New(shape);
  t.device->WkvForward(t.device.Put(r, shape), t.device.Put(k, shape), t.device.Put(v, shape),
                       t.device.Put(w, {w_rows, width}),
                       test.bonus ? ConstTensor(t.device.Put(u, {test.heads, test.head_size})) : ConstTensor(), spans,
                       state_tensor, test.options, out);
  const std::string what = "rows " + std::to_string(rows) + ", heads " + Shape{test.heads, test.head_size}.ToString() +
                           ", w from " + std::to_string(test.decay_low) + " to " + std::to_string(test.decay_high);
  ExpectClose(t.device.Get(out), expected, test.head_size, kFp32Tolerance, what);
  const Values actual_state = t.device.Get(state_tensor);
  ExpectClose(actual_state, expected_state, state_size, kFp32Tolerance, what + ", state");
  std::vector<bool> used(slots);
  for (const RowSpan& span : spans) used[span.slot] = true;
  for (int slot = 0; slot < slots; ++slot) {
    if (!used[slot]) ExpectSame(Slot(actual_state, slot, state_size), Slot(state, slot, state_size), "unused state");
  }
}

TEST_P(BackendTest, WkvEverySpan) {
  for (const std::vector<int>& counts : SpanCounts()) CheckWkv(*this, {.counts = counts, .heads = 3, .head_size = 16});
  CheckWkv(*this, {.counts = {3, 130, 1}, .heads = 2, .head_size = 64});
}

TEST_P(BackendTest, WkvEveryOptionAndHeadSize) {
  for (int64_t head_size : {16, 32, 48, 64, 80, 128}) {
    for (int flags = 0; flags < 16; ++flags) {
      CheckWkv(*this, {.counts = {3, 1, 17},
                       .heads = 2,
                       .head_size = head_size,
                       .constant_decay = (flags & 1) != 0,
                       .bonus = (flags & 2) != 0,
                       .options = {.one_minus_decay_keys = (flags & 4) != 0, .accumulate = (flags & 8) != 0}});
    }
  }
}

// From a state that never fades to one that is gone at once, and keys from nothing to all.
TEST_P(BackendTest, WkvExtremeDecays) {
  const std::vector<std::pair<double, double>> ranges = {
      {-12, -11}, {-8, -7}, {-3, -2}, {-1, 0},    {1, 2},     {3, 4},      {-12, 4},     {-30, -29},
      {-90, -85}, {4, 6},   {85, 90}, {100, 110}, {170, 180}, {200, 1000}, {-1000, 1000}};
  for (const auto& [low, high] : ranges) {
    for (bool one_minus : {false, true}) {
      CheckWkv(*this, {.counts = {65, 1},
                       .heads = 2,
                       .head_size = 32,
                       .decay_low = low,
                       .decay_high = high,
                       .bonus = !one_minus,
                       .options = {.one_minus_decay_keys = one_minus}});
    }
  }
}

// With a state of zeros nothing but the tiny keys speaks: 1 - exp(-exp(w)) must keep its digits as it nears 0.
TEST_P(BackendTest, WkvTinyKeysKeepTheirDigits) {
  const int64_t width = 32, rows = 4;
  for (double w : {-8., -16., -30., -60.}) {
    const Values r = random.Normal(rows * width, 1), k = random.Normal(rows * width, 1),
                 v = random.Normal(rows * width, 1);
    const Values decay(width, w);
    Values expected_state(width * width);
    const Values expected = reference::Wkv(r, k, v, decay, {}, 1, width, true, expected_state);
    const Tensor state = device.Put(Values(width * width), {1, 1, width, width}), out = device.New({rows, width});
    const Shape shape{rows, width};
    device->WkvForward(device.Put(r, shape), device.Put(k, shape), device.Put(v, shape), device.Put(decay, {1, width}),
                       {}, std::vector<RowSpan>{{.row_count = rows}}, state, {.one_minus_decay_keys = true}, out);
    ExpectClose(device.Get(out), expected, width, kFp32Tolerance, "w " + std::to_string(w));
    ExpectClose(device.Get(state), expected_state, width, kFp32Tolerance, "state, w " + std::to_string(w));
  }
}

// fp32 rounds the state at every row: slow decays add up thousands of them.
TEST_P(BackendTest, WkvLongSequence) {
  CheckWkv(*this, {.counts = {3000}, .heads = 1, .head_size = 16, .decay_low = -12, .decay_high = -8});
}

}  // namespace
}  // namespace goldfinch
