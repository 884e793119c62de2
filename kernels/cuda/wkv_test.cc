// Linear attention of the CUDA back end: by chunks, by segments, and row by row. backend_recurrence_test.cc tests what
// every back end must do; these cases are for the borders between kernels and within them. Runs over the emulation,
// whose few multiprocessors cut even short sequences into segments, and over a device if there is one.
#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/backend_test_util.h"
#include "kernels/cuda/cuda_backend.h"

namespace goldfinch {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

struct WkvInputs {
  DType act = DType::kBf16;
  int64_t heads = 1;
  int64_t head_size = 64;
  std::vector<RowSpan> spans;
  int64_t rows = 0;
  int slots = 0;
  bool constant_decay = false;
  WkvOptions options = {};
  Values r, k, v, w, bonus, before;  // [rows, D]; w [D] if constant; bonus [D] or empty
  Values state;                      // [slots, H, N, N]

  int64_t width() const { return heads * head_size; }
  int64_t state_size() const { return width() * head_size; }
};

struct WkvResults {
  Values out;
  Values state;
};

class WkvTest : public testing::TestWithParam<DType> {
 protected:
  void SetUp() override {
    auto backend = MakeCudaBackend({.activation_dtype = GetParam()});
    if (!backend.ok()) GTEST_SKIP() << "no test of WKV on a device: " << backend.status().message();
    device_ = std::make_unique<Device>(*std::move(backend));
  }

  // Relative L2 errors, as in cuda_cases.h.
  double tolerance() const { return GetParam() == DType::kF32 ? 1e-5 : GetParam() == DType::kF16 ? 2e-3 : 1.5e-2; }

  WkvInputs Draw(const std::vector<int>& counts, int64_t heads, double decay_low, double decay_high) {
    WkvInputs in;
    in.act = GetParam();
    in.heads = heads;
    in.rows = RowCount(counts);
    in.slots = static_cast<int>(counts.size()) + 1;
    in.spans = MakeSpans(random_, counts, in.slots);
    const int64_t elements = in.rows * in.width();
    in.r = random_.Normal(elements, 1, in.act);
    in.k = random_.Normal(elements, 1, in.act);
    in.v = random_.Normal(elements, 1, in.act);
    in.w = random_.Uniform(elements, decay_low, decay_high, in.act);
    in.bonus = random_.Normal(in.width(), 1);
    in.before = random_.Normal(elements, 1, in.act);
    in.state = random_.Normal(in.slots * in.state_size(), 1);
    return in;
  }

  WkvResults Run(const WkvInputs& in) {
    Device& device = *device_;
    const Shape shape{in.rows, in.width()};
    const Tensor state = device.Put(in.state, {in.slots, in.heads, in.head_size, in.head_size});
    const Tensor out = in.options.accumulate ? device.Put(in.before, shape, in.act) : device.New(in.act, shape);
    device->WkvForward(device.Put(in.r, shape, in.act), device.Put(in.k, shape, in.act),
                       device.Put(in.v, shape, in.act),
                       in.constant_decay ? device.Put(in.w, {1, in.width()}) : device.Put(in.w, shape, in.act),
                       in.bonus.empty() ? ConstTensor() : device.Put(in.bonus, {in.heads, in.head_size}), in.spans,
                       state, in.options, out);
    return {device.Get(out), device.Get(state)};
  }

  static WkvResults Expected(const WkvInputs& in) {
    WkvResults expected{in.before, in.state};
    for (const RowSpan& span : in.spans) {
      const auto rows = [&](const Values& x) { return RowsOf(x, span, in.width()); };
      Values state = Slot(in.state, span.slot, in.state_size());
      Values y = reference::Wkv(rows(in.r), rows(in.k), rows(in.v), in.constant_decay ? in.w : rows(in.w), in.bonus,
                                in.heads, in.head_size, in.options.one_minus_decay_keys, state);
      if (in.options.accumulate) y = reference::Add(y, rows(in.before));
      SetRows(y, span, in.width(), expected.out);
      SetSlot(state, span.slot, expected.state);
    }
    return expected;
  }

  void Check(const WkvInputs& in, const std::string& what) {
    const WkvResults actual = Run(in), expected = Expected(in);
    ExpectClose(actual.out, expected.out, in.head_size, tolerance(), what);
    ExpectClose(actual.state, expected.state, in.state_size(), tolerance(), what + ", state");
    for (int slot = 0; slot < in.slots; ++slot) {
      const bool used =
          std::any_of(in.spans.begin(), in.spans.end(), [&](const RowSpan& span) { return span.slot == slot; });
      if (used) continue;
      ExpectSame(Slot(actual.state, slot, in.state_size()), Slot(in.state, slot, in.state_size()), "unused state");
    }
  }

  // Expects `actual` to be NaN where it should be, and equal to `clean` elsewhere.
  void CheckNan(const Values& actual, const Values& clean, const std::vector<bool>& nan, int64_t width,
                const std::string& what) {
    Values rest = actual, clean_rest = clean;
    int64_t missing = 0;
    for (size_t i = 0; i < nan.size(); ++i) {
      if (!nan[i]) continue;
      missing += std::isnan(actual[i]) ? 0 : 1;
      rest[i] = clean_rest[i] = 0;
    }
    EXPECT_EQ(missing, 0) << what << ": NaN has not reached all that depends on it";
    ExpectClose(rest, clean_rest, width, tolerance(), what);
  }

  TestRandom random_{20240712};
  std::unique_ptr<Device> device_;
};

// One row fewer and one more than chunks (16), tiles (64) and several tiles.
TEST_P(WkvTest, BorderRows) {
  for (int rows : {1, 15, 16, 17, 31, 33, 63, 64, 65, 129, 200}) {
    Check(Draw({rows}, 1, -6, 1), std::to_string(rows) + " rows");
  }
}

// Spans that are processed row by row and by chunks in one call, in any order.
TEST_P(WkvTest, SpansOfManyLengths) {
  Check(Draw({5, 70, 1, 16, 130, 15, 1, 64, 17}, 3, -6, 1), "spans of many lengths");
}

TEST_P(WkvTest, EveryOption) {
  for (int flags = 0; flags < 16; ++flags) {
    WkvInputs in = Draw({2, 37}, 2, -5, 1);
    if ((flags & 1) != 0) {
      in.constant_decay = true;
      in.w = random_.Uniform(in.width(), -5, 1);
    }
    if ((flags & 2) != 0) in.bonus.clear();
    in.options = {.one_minus_decay_keys = (flags & 4) != 0, .accumulate = (flags & 8) != 0};
    Check(in, "flags " + std::to_string(flags));
  }
}

// Long sequences are divided into segments: with an even number of rows, with whole tiles or not, beside short
// sequences, and with decays from none to complete.
TEST_P(WkvTest, Segments) {
  Check(Draw({1100}, 1, -6, 1), "one long sequence");
  WkvInputs in = Draw({1024, 3}, 1, -12, 4);
  in.options.one_minus_decay_keys = true;
  Check(in, "decays of every size");
  in = Draw({20, 700, 600, 16}, 1, -12, -3);
  in.bonus.clear();
  Check(in, "several");
  in = Draw({513}, 2, -12, -12);
  in.constant_decay = true;
  in.w = random_.Uniform(in.width(), -12, 2);
  Check(in, "constant decays");
}

// Keys that decay at once beside keys that stay, in the same row and in the next one, and whole chunks of either.
TEST_P(WkvTest, SlowAndFastDecays) {
  for (double fast : {2., 4., 30., 60., 1000.}) {
    for (double share : {1., 0.5, 0.03}) {
      WkvInputs in = Draw({70}, 1, -12, -4);
      const Values other = random_.Uniform(in.rows * in.width(), 0, 1);
      for (size_t i = 0; i < in.w.size(); ++i) {
        if (other[i] < share) in.w[i] = Round(fast, in.act);
      }
      Check(in, "decay " + std::to_string(fast) + ", share " + std::to_string(share));
      in.options.one_minus_decay_keys = true;
      Check(in, "decay " + std::to_string(fast) + ", share " + std::to_string(share) + ", keys of it");
    }
  }
  // A key that fades in only one row of a chunk, whichever it is: what is before that row is gone, what follows stays.
  for (double fast : {4.2, 7., 60.}) {
    WkvInputs in = Draw({64}, 1, -9, -7);
    for (int64_t row = 0; row < in.rows; ++row) {
      for (int64_t i = row % 16; i < 64; i += 16) in.w[row * 64 + i] = Round(fast, in.act);
    }
    Check(in, "once, decay " + std::to_string(fast));
  }
}

// Decays near the limit at which a chunk changes from one form to the other: 2^-80 is exp(-exp(1.243) 16).
TEST_P(WkvTest, DecaysAboutTheLimitOfAChunk) {
  WkvInputs in = Draw({100}, 1, 1.1, 1.4);
  in.constant_decay = true;
  in.w = random_.Uniform(in.width(), 1.1, 1.4);
  Check(in, "constant");
  Check(Draw({100}, 1, 0.6, 1.7), "of every row");
}

TEST_P(WkvTest, NothingFades) {
  Check(Draw({700}, 1, -12, -12), "w -12");
  Check(Draw({100}, 1, -90, -80), "w -90");
}

// Single products and sums of many are far out of fp16's range.
TEST_P(WkvTest, LargeStates) {
  WkvInputs in = Draw({200}, 1, -12, -6);
  for (double& k : in.k) k *= 64;
  for (double& v : in.v) v *= 64;
  for (double& r : in.r) r /= 16384;
  in.r = Round(in.r, in.act);
  for (double& s : in.state) s = static_cast<float>(s * 1e6);
  Check(in, "large states");
}

// The smallest and largest keys and receptances of fp16, within one chunk.
TEST_P(WkvTest, FactorsOfEverySize) {
  WkvInputs in = Draw({80}, 1, -3, 1);
  for (int64_t i = 0; i < in.rows * 64; ++i) {
    const double scale = std::ldexp(1, static_cast<int>(i % 64 / 4) - 8);
    in.k[i] *= scale;
    in.r[i] /= scale;
  }
  in.k = Round(in.k, in.act);
  in.r = Round(in.r, in.act);
  Check(in, "factors of every size");
}

// A NaN reaches what depends on it, the later rows of its head, and nothing by way of a masked product.
TEST_P(WkvTest, NanStaysWhereItBelongs) {
  constexpr int64_t kHeads = 2, kSize = 64, kWidth = kHeads * kSize, kHead = 1;
  const std::vector<int> counts = {3, 75};
  for (const char tensor : {'r', 'k', 'v', 'w', 's'}) {
    for (int row : {0, 6, 31, 70}) {
      for (bool has_bonus : {true, false}) {
        if (tensor == 's' && row != 6) continue;
        WkvInputs in = Draw(counts, kHeads, -6, 1);
        if (!has_bonus) in.bonus.clear();
        const WkvResults clean = Run(in);
        const RowSpan& span = in.spans[1];
        const int64_t channel = 37, at = (span.row_begin + row) * kWidth + kHead * kSize + channel;
        const int64_t head_state = (span.slot * kHeads + kHead) * kSize * kSize;
        constexpr int64_t kKey = 21;
        std::vector<bool> out_nan(clean.out.size()), state_nan(clean.state.size());
        const auto depend = [&](int from, int to, bool one_column) {
          for (int64_t t = span.row_begin + from; t < span.row_begin + to; ++t) {
            for (int64_t j = 0; j < kSize; ++j) {
              if (!one_column || j == channel) out_nan[t * kWidth + kHead * kSize + j] = true;
            }
          }
        };
        switch (tensor) {
          case 'r':
            in.r[at] = kNan;
            depend(row, row + 1, false);
            break;
          case 'k':
          case 'w':
            (tensor == 'k' ? in.k : in.w)[at] = kNan;
            depend(tensor == 'k' && has_bonus ? row : row + 1, span.row_count, false);
            for (int64_t j = 0; j < kSize; ++j) state_nan[head_state + channel * kSize + j] = true;
            break;
          case 'v':
            in.v[at] = kNan;
            depend(has_bonus ? row : row + 1, span.row_count, true);
            for (int64_t i = 0; i < kSize; ++i) state_nan[head_state + i * kSize + channel] = true;
            break;
          default:
            in.state[head_state + kKey * kSize + channel] = kNan;
            depend(0, span.row_count, true);
            state_nan[head_state + kKey * kSize + channel] = true;
        }
        const std::string what = std::string("NaN in ") + tensor + ", row " + std::to_string(row);
        const WkvResults actual = Run(in);
        CheckNan(actual.out, clean.out, out_nan, kSize, what);
        CheckNan(actual.state, clean.state, state_nan, kSize, what + ", state");
      }
    }
  }
}

// The state of a segment carries a NaN to the segments after it.
TEST_P(WkvTest, NanPassesSegments) {
  WkvInputs in = Draw({600}, 1, -9, -7);
  const WkvResults clean = Run(in);
  constexpr int64_t kRow = 100, kColumn = 5;
  in.v[kRow * 64 + kColumn] = kNan;
  std::vector<bool> out_nan(clean.out.size()), state_nan(clean.state.size());
  for (int64_t row = kRow; row < in.rows; ++row) out_nan[row * 64 + kColumn] = true;
  for (int64_t i = 0; i < 64; ++i) state_nan[in.spans[0].slot * in.state_size() + i * 64 + kColumn] = true;
  const WkvResults actual = Run(in);
  CheckNan(actual.out, clean.out, out_nan, 64, "out");
  CheckNan(actual.state, clean.state, state_nan, 64, "state");
}

// Heads of any size, and tensors of any alignment.
TEST_P(WkvTest, HeadSizesOfNoKernelsOwn) {
  for (int64_t head_size : {16, 48, 112, 128, 144, 256}) {
    WkvInputs in = Draw({1, 3}, 1, -6, 1);
    in.head_size = head_size;
    for (Values* x : {&in.r, &in.k, &in.v, &in.w, &in.before}) *x = random_.Normal(in.rows * head_size, 1, in.act);
    in.bonus = random_.Normal(head_size, 1);
    in.state = random_.Normal(in.slots * in.state_size(), 1);
    Check(in, "head size " + std::to_string(head_size));
  }
}

TEST_P(WkvTest, TensorsThatBeginAnywhere) {
  const WkvInputs in = Draw({2, 20}, 1, -6, 1);
  Device& device = *device_;
  const Shape shape{in.rows, in.width()};
  const auto put = [&](Values values) {
    values.insert(values.begin(), 0);
    Tensor tensor = device.Put(values, {static_cast<int64_t>(values.size())}, in.act);
    tensor.data = static_cast<char*>(tensor.data) + SizeOf(in.act);
    tensor.shape = shape;
    return tensor;
  };
  const Tensor state = device.Put(in.state, {in.slots, in.heads, in.head_size, in.head_size}), out = put(in.before);
  device->WkvForward(put(in.r), put(in.k), put(in.v), put(in.w), device.Put(in.bonus, {in.heads, in.head_size}),
                     in.spans, state, {}, out);
  const WkvResults expected = Expected(in);
  ExpectClose(device.Get(out), expected.out, in.head_size, tolerance(), "out");
  ExpectClose(device.Get(state), expected.state, in.state_size(), tolerance(), "state");
}

INSTANTIATE_TEST_SUITE_P(Cuda, WkvTest, testing::Values(DType::kF32, DType::kF16, DType::kBf16),
                         [](const auto& info) { return std::string(Name(info.param)); });

}  // namespace
}  // namespace goldfinch
