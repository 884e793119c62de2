// Token shift and linear attention: the ops that carry a state from row to row.
#include <algorithm>
#include <cmath>

#include "kernels/backend_test_util.h"

namespace goldfinch {
namespace {

// Spans of one row, of a few and of many rows, and many spans.
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
const std::vector<std::vector<int>>& SlowSpanCounts() {
  static const auto& counts = *new std::vector<std::vector<int>>{{}, {1}, {7}, {2, 35, 1, 9}, std::vector<int>(40, 1)};
  return counts;
}
const std::vector<std::vector<int>>& SpanCounts(const BackendTest& t) {
  return t.slow() ? SlowSpanCounts() : SpanCounts();
}

struct ShiftInputs {
  int64_t rows = 0;
  std::vector<RowSpan> spans;
  Values x;
  Values shift;        // before the call
  Values shift_after;  // expected after the call
  Values prev;
};

ShiftInputs Draw(BackendTest& t, const std::vector<int>& counts, int64_t width) {
  const int slots = static_cast<int>(counts.size()) + 2;
  ShiftInputs in;
  in.rows = RowCount(counts);
  in.spans = MakeSpans(t.random, counts, slots);
  in.x = t.random.Normal(in.rows * width, 1, t.act());
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
  if (t.TooSlow(20 * RowCount(counts) * width * targets)) return;
  const ShiftInputs in = Draw(t, counts, width);
  const Values mix = t.random.Uniform(targets * width, -0.2, 1.2);
  const int slots = static_cast<int>(counts.size()) + 2;
  const Tensor shift = t.device.Put(in.shift, {slots, width}), out = t.device.New(t.act(), {targets, in.rows, width});
  t.device->TokenShift(t.device.Put(in.x, {in.rows, width}, t.act()), in.spans, shift,
                       t.device.Put(mix, {targets, width}), out);
  const Values actual = t.device.Get(out);
  for (int g = 0; g < targets; ++g) {
    ExpectClose(Slot(actual, g, in.rows * width), reference::Lerp(in.x, in.prev, Slot(mix, g, width)), width,
                t.activation_tolerance(), out.shape.ToString(), 1);
  }
  ExpectSame(t.device.Get(shift), in.shift_after, "shift state");
}

void CheckDdLerp(BackendTest& t, const std::vector<int>& counts, int64_t width, int64_t targets, int64_t rank) {
  if (t.TooSlow(RowCount(counts) * width * targets * rank)) return;
  const ShiftInputs in = Draw(t, counts, width);
  const reference::DdLerpWeights weights{
      .mix_x = t.random.Uniform(width, 0, 1),
      .down = {t.random.Normal(width * targets * rank, 1 / std::sqrt(width), t.weight_dtype()), width, targets * rank,
               Matrix::Layout::kInOut},
      .up = t.random.Normal(targets * rank * width, 1 / std::sqrt(rank), t.weight_dtype()),
      .mix = t.random.Uniform(targets * width, 0, 1)};
  const int slots = static_cast<int>(counts.size()) + 2;
  const Tensor shift = t.device.Put(in.shift, {slots, width}), out = t.device.New(t.act(), {targets, in.rows, width});
  t.device->DdLerp(t.device.Put(in.x, {in.rows, width}, t.act()), in.spans, shift,
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
  for (const std::vector<int>& counts : SpanCounts(*this)) {
    CheckTokenShift(*this, counts, 65, 2);
    CheckTokenShift(*this, counts, 8, 4);
  }
  for (int64_t width : {1, 3, 17, 64, 448, 2050}) CheckTokenShift(*this, {2, 1, 4}, width, 1);
}

TEST_P(BackendTest, DdLerp) {
  for (const std::vector<int>& counts : SpanCounts(*this)) {
    CheckDdLerp(*this, counts, 136, 5, 8);
    CheckDdLerp(*this, counts, 17, 1, 3);
  }
  for (int64_t width : {1, 3, 64, 65, 448, 1030}) CheckDdLerp(*this, {2, 1, 4}, width, 3, 4);
  for (int64_t rank : {1, 5, 32, 64, 128}) CheckDdLerp(*this, {1, 9}, 80, 5, rank);
  // Shapes of released models, scaled down: kernels on matrix units take tiles of 64 rows, 64 and 128 columns.
  CheckDdLerp(*this, {1, 70, 2, 64, 1}, 128, 5, 32);
  CheckDdLerp(*this, {66, 1}, 64, 5, 64);
  CheckDdLerp(*this, {3, 1}, 192, 3, 16);
  CheckDdLerp(*this, {130}, slow() ? 256 : 1152, 1, 32);
  CheckDdLerp(*this, std::vector<int>(9, 1), slow() ? 512 : 2048, 5, 32);
}

struct WkvCase {
  std::vector<int> counts;  // rows of each span of one call
  int64_t heads = 2;
  int64_t head_size = 64;
  double decay_low = -6;  // the range of w
  double decay_high = 1;
  int decay_rows = 0;  // w is uniform for so many rows, then constant for as many, and so on; 0: always uniform
  bool constant_decay = false;
  bool bonus = true;
  WkvOptions options = {};
  std::vector<int> later_calls = {};  // more calls with so many rows of the first span's sequence
};

Values DrawDecays(BackendTest& t, const WkvCase& test, int64_t rows, int64_t width) {
  if (test.constant_decay) return t.random.Uniform(width, test.decay_low, test.decay_high);
  Values w = t.random.Uniform(rows * width, test.decay_low, test.decay_high, t.act());
  if (test.decay_rows == 0) return w;
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t block = row / test.decay_rows;
    if (block % 2 == 0) continue;
    // Constant values from one end of the range to the other.
    const double share = static_cast<double>(block / 2 % 4) / 3;
    const double value = Round(test.decay_low + share * (test.decay_high - test.decay_low), t.act());
    std::fill_n(w.begin() + row * width, width, value);
  }
  return w;
}

// Makes one call; updates the state [slots, ...] on the host and on the device.
void CheckWkvCall(BackendTest& t, const WkvCase& test, const std::vector<RowSpan>& spans, Values& state,
                  const Tensor& state_tensor, const std::string& what) {
  const int64_t width = test.heads * test.head_size, state_size = width * test.head_size;
  const int64_t rows = spans.empty() ? 0 : spans.back().row_begin + spans.back().row_count;
  const DType act = t.act();
  const Values r = t.random.Normal(rows * width, 1, act), k = t.random.Normal(rows * width, 1, act);
  const Values v = t.random.Normal(rows * width, 1, act), before = t.random.Normal(rows * width, 1, act);
  const Values w = DrawDecays(t, test, rows, width);
  const Values u = test.bonus ? t.random.Normal(width, 1) : Values();

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
  const Tensor out = test.options.accumulate ? t.device.Put(before, shape, act) : t.device.New(act, shape);
  const Tensor w_tensor = test.constant_decay ? t.device.Put(w, {1, width}) : t.device.Put(w, {rows, width}, act);
  const Values state_before = t.device.Get(state_tensor);
  t.device->WkvForward(t.device.Put(r, shape, act), t.device.Put(k, shape, act), t.device.Put(v, shape, act), w_tensor,
                       test.bonus ? ConstTensor(t.device.Put(u, {test.heads, test.head_size})) : ConstTensor(), spans,
                       state_tensor, test.options, out);
  ExpectClose(t.device.Get(out), expected, test.head_size, t.activation_tolerance(), what);
  const Values actual_state = t.device.Get(state_tensor);
  ExpectClose(actual_state, expected_state, state_size, t.activation_tolerance(), what + ", state");
  std::vector<bool> used(state_tensor.dim(0));
  for (const RowSpan& span : spans) used[span.slot] = true;
  for (int slot = 0; slot < state_tensor.dim(0); ++slot) {
    if (used[slot]) continue;
    ExpectSame(Slot(actual_state, slot, state_size), Slot(state_before, slot, state_size), "unused state");
  }
  state = expected_state;
}

void CheckWkv(BackendTest& t, const WkvCase& test) {
  const int64_t width = test.heads * test.head_size, rows = RowCount(test.counts);
  if (t.TooSlow((rows + RowCount(test.later_calls)) * width * test.head_size / 4)) return;
  const int slots = static_cast<int>(test.counts.size()) + 2;
  Values state = t.random.Normal(slots * width * test.head_size, 1);
  const Tensor state_tensor = t.device.Put(state, {slots, test.heads, test.head_size, test.head_size});
  std::vector<RowSpan> spans = MakeSpans(t.random, test.counts, slots);
  const std::string what = "rows " + std::to_string(rows) + ", heads " + Shape{test.heads, test.head_size}.ToString() +
                           ", w from " + std::to_string(test.decay_low) + " to " + std::to_string(test.decay_high);
  CheckWkvCall(t, test, spans, state, state_tensor, what);
  for (int count : test.later_calls) {
    spans = {{.slot = spans[0].slot, .row_count = count, .position = spans[0].position + spans[0].row_count}};
    CheckWkvCall(t, test, spans, state, state_tensor,
                 what + ", " + std::to_string(count) + " from " + std::to_string(spans[0].position));
  }
}

TEST_P(BackendTest, WkvEverySpan) {
  for (const std::vector<int>& counts : SpanCounts(*this))
    CheckWkv(*this, {.counts = counts, .heads = 3, .head_size = 16});
  CheckWkv(*this, {.counts = {3, 130, 1}, .heads = 2, .head_size = 64});
}

TEST_P(BackendTest, WkvEveryOptionAndHeadSize) {
  for (int64_t head_size : {16, 32, 48, 64, 80, 128}) {
    for (int flags = 0; flags < 16; ++flags) {
      if (slow() && head_size > 32 && flags % 5 != 0) continue;
      CheckWkv(*this, {.counts = {3, 1, 17},
                       .heads = 2,
                       .head_size = head_size,
                       .constant_decay = (flags & 1) != 0,
                       .bonus = (flags & 2) != 0,
                       .options = {.one_minus_decay_keys = (flags & 4) != 0, .accumulate = (flags & 8) != 0}});
    }
  }
}

// Decays from none to complete, and keys from nothing to everything (one_minus_decay_keys).
TEST_P(BackendTest, WkvExtremeDecays) {
  const std::vector<std::pair<double, double>> ranges = {
      {-12, -11}, {-8, -7}, {-3, -2}, {-1, 0},    {1, 2},     {3, 4},      {-12, 4},     {-30, -29},
      {-90, -85}, {4, 6},   {85, 90}, {100, 110}, {170, 180}, {200, 1000}, {-1000, 1000}};
  for (const auto& [low, high] : ranges) {
    for (bool one_minus : {false, true}) {
      CheckWkv(*this, {.counts = {65, 1},
                       .heads = slow() ? 1 : 2,
                       .head_size = 32,
                       .decay_low = low,
                       .decay_high = high,
                       .bonus = !one_minus,
                       .options = {.one_minus_decay_keys = one_minus}});
    }
  }
}

// Kernels that take rows by blocks divide by products of decays. Tests slow and fast decays side by side within a
// block, blocks of one value, and borders between them within a block.
TEST_P(BackendTest, WkvMixedDecays) {
  for (int64_t head_size : {16, 64}) {
    for (int decay_rows : {0, 5, 16, 64}) {
      for (bool one_minus : {false, true}) {
        CheckWkv(*this, {.counts = {slow() ? 70 : 300, 33},
                         .heads = slow() ? 1 : 2,
                         .head_size = head_size,
                         .decay_low = -12,
                         .decay_high = 4,
                         .decay_rows = decay_rows,
                         .bonus = !one_minus,
                         .options = {.one_minus_decay_keys = one_minus}});
      }
    }
  }
  for (double w : {-12., -4., 0., 1., 2., 4.}) {
    CheckWkv(*this, {.counts = {130}, .heads = 1, .head_size = 32, .decay_low = w, .decay_high = w});
    CheckWkv(*this,
             {.counts = {130}, .heads = 1, .head_size = 32, .decay_low = w, .decay_high = w, .constant_decay = true});
  }
}

// A long prompt in pieces of every length, and a few tokens after it.
TEST_P(BackendTest, WkvResumes) {
  for (int64_t head_size : {16, 64}) {
    for (double decay_high : {-4., 1., 4.}) {
      CheckWkv(*this,
               {.counts = {slow() ? 80 : 300, 1},
                .heads = slow() ? 1 : 2,
                .head_size = head_size,
                .decay_low = -12,
                .decay_high = decay_high,
                .later_calls = slow() ? std::vector<int>{1, 17, 1} : std::vector<int>{1, 16, 64, 7, 128, 300, 1, 1}});
    }
  }
}

// With a state of zeros the result comes from the tiny keys alone: 1 - exp(-exp(w)) must keep its digits near 0.
TEST_P(BackendTest, WkvTinyKeysKeepTheirDigits) {
  const int64_t width = 32, rows = 4;
  for (double w : {-8., -16., -30., -60.}) {
    const Values r = random.Normal(rows * width, 1, act()), k = random.Normal(rows * width, 1, act()),
                 v = random.Normal(rows * width, 1, act());
    const Values decay(width, w);
    Values expected_state(width * width);
    const Values expected = reference::Wkv(r, k, v, decay, {}, 1, width, true, expected_state);
    const Shape shape{rows, width};
    const Tensor state = device.Put(Values(width * width), {1, 1, width, width}), out = device.New(act(), shape);
    device->WkvForward(device.Put(r, shape, act()), device.Put(k, shape, act()), device.Put(v, shape, act()),
                       device.Put(decay, {1, width}), {}, std::vector<RowSpan>{{.row_count = rows}}, state,
                       {.one_minus_decay_keys = true}, out);
    ExpectClose(device.Get(out), expected, width, activation_tolerance(), "w " + std::to_string(w),
                SmallestNormal(act()));
    ExpectClose(device.Get(state), expected_state, width, activation_tolerance(), "state, w " + std::to_string(w));
  }
}

// fp32 rounds the state at every row, and with slow decays thousands of these errors add up.
TEST_P(BackendTest, WkvLongSequence) {
  CheckWkv(*this, {.counts = {slow() ? 700 : 3000}, .heads = 1, .head_size = 16, .decay_low = -12, .decay_high = -8});
}

}  // namespace
}  // namespace goldfinch
