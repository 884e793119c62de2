// MatMul against plain double code.
#include <cmath>

#include "kernels/backend_test_util.h"

namespace goldfinch {
namespace {

enum class Factor : uint8_t { kNone, kOther, kOut };

struct ProductCase {
  int64_t rows = 1;
  int64_t in = 1;
  int64_t out = 1;
  Matrix::Layout layout = Matrix::Layout::kOutIn;
  Activation activation = Activation::kNone;
  bool bias = false;
  Factor multiply = Factor::kNone;
  bool accumulate = false;
  // The types of rows: fp32 (true) or act.
  bool fp32_x = false;
  bool fp32_multiply = false;
  bool fp32_out = false;

  std::string ToString() const {
    return Shape{rows, in, out}.ToString() + (layout == Matrix::Layout::kOutIn ? " out-in" : " in-out") +
           ", activation " + std::to_string(static_cast<int>(activation)) + (bias ? ", bias" : "") + ", multiply " +
           std::to_string(static_cast<int>(multiply)) + (accumulate ? ", accumulate" : "") +
           (fp32_x ? ", fp32 x" : "") + (fp32_multiply ? ", fp32 multiply" : "") + (fp32_out ? ", fp32 out" : "");
  }
};

void CheckMatMul(BackendTest& t, const ProductCase& test) {
  if (t.TooSlow(5 * test.rows * test.in * test.out)) return;
  const auto dtype = [&t](bool fp32) { return fp32 ? DType::kF32 : t.act(); };
  const DType x_dtype = dtype(test.fp32_x), factor_dtype = dtype(test.fp32_multiply), out_dtype = dtype(test.fp32_out);
  const Shape shape{test.rows, test.out};
  const Values x = t.random.Normal(test.rows * test.in, 1, x_dtype);
  const reference::Weight weight{t.random.Normal(test.in * test.out, 1 / std::sqrt(test.in), t.weight_dtype()), test.in,
                                 test.out, test.layout};
  const Values bias = t.random.Normal(test.out, 1), factor = t.random.Normal(test.rows * test.out, 1, factor_dtype);
  const Values before = t.random.Normal(test.rows * test.out, 1, out_dtype);

  Values expected = reference::Product(x, weight);
  for (size_t i = 0; test.bias && i < expected.size(); ++i) expected[i] += bias[i % test.out];
  expected = reference::Activate(test.activation, expected);
  if (test.multiply == Factor::kOther) expected = reference::Multiply(expected, factor);
  if (test.multiply == Factor::kOut) expected = reference::Multiply(expected, before);
  if (test.accumulate) expected = reference::Add(expected, before);

  const bool reads_out = test.accumulate || test.multiply == Factor::kOut;
  const Tensor out = reads_out ? t.device.Put(before, shape, out_dtype) : t.device.New(out_dtype, shape);
  Epilogue epilogue{.activation = test.activation, .accumulate = test.accumulate};
  if (test.bias) epilogue.bias = t.device.Put(bias, {test.out});
  if (test.multiply == Factor::kOther) epilogue.multiply = t.device.Put(factor, shape, factor_dtype);
  if (test.multiply == Factor::kOut) epilogue.multiply = out;
  t.device->MatMul(t.device.Put(x, {test.rows, test.in}, x_dtype), t.device.Put(weight, t.weight_dtype()), epilogue,
                   out);
  ExpectClose(t.device.Get(out), expected, test.out, t.tolerance(), test.ToString(), 1);
}

TEST_P(BackendTest, MatMulEveryShape) {
  const std::vector<int64_t> sizes = {1, 3, 8, 17, 64, 65, 136, 448, 1030, 2050};
  for (size_t i = 0; i < sizes.size(); ++i) {
    for (size_t o = 0; o < sizes.size(); ++o) {
      const int64_t in = sizes[i], out = sizes[o];
      if (in + out > 3080) continue;  // the double version of these is slow
      // Both layouts if that is cheap, else one or the other.
      const bool small = in * out < 100'000;
      if (small || (i + o) % 2 == 0) CheckMatMul(*this, {.rows = 1, .in = in, .out = out});
      if (small || (i + o) % 2 == 1) {
        CheckMatMul(*this, {.rows = small ? 7 : 2, .in = in, .out = out, .layout = Matrix::Layout::kInOut});
      }
      if (small) CheckMatMul(*this, {.rows = 7, .in = in, .out = out});
    }
  }
}

// Row counts around the tiles and panels of kernels.
TEST_P(BackendTest, MatMulEveryRowCount) {
  for (Matrix::Layout layout : {Matrix::Layout::kOutIn, Matrix::Layout::kInOut}) {
    for (int64_t rows = 0; rows <= 20; ++rows) {
      CheckMatMul(*this, {.rows = rows, .in = 83, .out = 77, .layout = layout});
    }
    for (int64_t rows : {31, 64, 100, 503, 504, 505, 1009}) {
      CheckMatMul(*this, {.rows = rows, .in = 64, .out = 65, .layout = layout});
      CheckMatMul(*this, {.rows = rows, .in = 17, .out = 136, .layout = layout});
    }
    CheckMatMul(*this, {.rows = 505, .in = 1030, .out = 17, .layout = layout});
    CheckMatMul(*this, {.rows = 505, .in = 2050, .out = 3, .layout = layout});
    CheckMatMul(*this, {.rows = 505, .in = 1, .out = 200, .layout = layout});
    for (int64_t rows : {8, 20, 60}) CheckMatMul(*this, {.rows = rows, .in = 1100, .out = 130, .layout = layout});
    // A size that consists of whole tiles for every kernel.
    CheckMatMul(*this, {.rows = 256, .in = 128, .out = 256, .layout = layout});
    CheckMatMul(*this, {.rows = 64, .in = 64, .out = 128, .layout = layout});
  }
}

TEST_P(BackendTest, MatMulEveryEpilogue) {
  for (Activation activation :
       {Activation::kNone, Activation::kRelu2, Activation::kSilu, Activation::kSigmoid, Activation::kTanh}) {
    for (Factor multiply : {Factor::kNone, Factor::kOther, Factor::kOut}) {
      for (int flags = 0; flags < 4; ++flags) {
        for (Matrix::Layout layout : {Matrix::Layout::kOutIn, Matrix::Layout::kInOut}) {
          CheckMatMul(*this, {.rows = 9,
                              .in = 40,
                              .out = 70,
                              .layout = layout,
                              .activation = activation,
                              .bias = (flags & 1) != 0,
                              .multiply = multiply,
                              .accumulate = (flags & 2) != 0});
        }
      }
    }
  }
}

// Every choice of types of rows, one row and many.
TEST_P(BackendTest, MatMulEveryRowType) {
  if (act() == DType::kF32) return;
  for (int types = 0; types < 8; ++types) {
    for (Factor multiply : {Factor::kNone, Factor::kOther, Factor::kOut}) {
      for (int64_t rows : {1, 3, 17, 70}) {
        if (slow() && rows > 20) continue;
        for (bool accumulate : {false, true}) {
          CheckMatMul(*this, {.rows = rows,
                              .in = 72,
                              .out = 65,
                              .activation = accumulate ? Activation::kNone : Activation::kSilu,
                              .bias = accumulate,
                              .multiply = multiply,
                              .accumulate = accumulate,
                              .fp32_x = (types & 1) != 0,
                              .fp32_multiply = (types & 2) != 0,
                              .fp32_out = (types & 4) != 0});
        }
      }
    }
  }
}

// Each element is compared by itself, because large ones would hide the error of small ones. All inputs are exact in
// every type, except for the first one in fp16.
TEST_P(BackendTest, MatMulActivationsOfSmallAndLargeInputs) {
  Values x;
  for (double magnitude : {0.,  0x1p-60, 0x1p-20, 0x1p-10, 0.125, 0.5,  1.,   3.,   8.,   9.,   10.,  20.,   80.,   88.,
                           89., 90.,     103.,    104.,    105.,  120., 176., 177., 180., 200., 256., 1000., 32768.}) {
    x.push_back(magnitude);
    x.push_back(-magnitude);
  }
  const auto rows = static_cast<int64_t>(x.size());
  const Matrix one = device.Put(reference::Weight{{1}, 1, 1}, weight_dtype());
  // fp16 loses digits below 2^-14: those of x if the back end multiplies in fp16, those of the result if it is fp16.
  const bool rounds_x = tolerance() > kFp32Tolerance && weight_dtype() == DType::kF16;
  for (Activation activation : {Activation::kRelu2, Activation::kSilu, Activation::kSigmoid, Activation::kTanh}) {
    for (DType dtype : row_dtypes()) {
      const double absolute = dtype == DType::kF16 || rounds_x ? 0x1p-24 : 1e-30;
      const Tensor out = device.New(dtype, {rows, 1});
      device->MatMul(device.Put(Round(x, dtype), {rows, 1}, dtype), one, {.activation = activation}, out);
      const Values actual = device.Get(out);
      for (int64_t i = 0; i < rows; ++i) {
        const double expected = Round(reference::Activate(activation, x[i]), dtype);
        EXPECT_NEAR(actual[i], expected, tolerance() * std::abs(expected) + absolute)
            << "activation " << static_cast<int>(activation) << " of " << x[i] << " in " << Name(dtype);
      }
    }
  }
}

// A NaN or infinity in the input must stay visible.
TEST_P(BackendTest, MatMulActivationsOfNan) {
  const Matrix one = device.Put(reference::Weight{{1}, 1, 1}, weight_dtype());
  for (Activation activation :
       {Activation::kNone, Activation::kRelu2, Activation::kSilu, Activation::kSigmoid, Activation::kTanh}) {
    for (DType dtype : row_dtypes()) {
      const Tensor out = device.Put({0}, {1, 1}, dtype);
      device->MatMul(device.Put({std::nan("")}, {1, 1}, dtype), one, {.activation = activation}, out);
      EXPECT_TRUE(std::isnan(device.Get(out)[0])) << "activation " << static_cast<int>(activation);
    }
  }
}

// Beyond fp16's range an fp16 output is the largest fp16 number, for few rows and for many; fp32 outputs keep the sum.
TEST_P(BackendTest, MatMulBeyondHalf) {
  const int64_t in = 64, width = 48;
  const reference::Weight weight{Values(in * width, 256), in, width};
  for (int64_t rows : {1, 9, 40}) {
    const Values x(rows * in, 256);
    for (DType out_dtype : row_dtypes()) {
      const Tensor out = device.New(out_dtype, {rows, width});
      device->MatMul(device.Put(x, {rows, in}, act()), device.Put(weight, weight_dtype()), {}, out);
      ExpectSame(device.Get(out), Round(reference::Product(x, weight), out_dtype),
                 std::to_string(rows) + " rows to " + Name(out_dtype));
      const Tensor scaled = device.New(out_dtype, {rows, width});
      device->MatMul(device.Put(x, {rows, in}, act()), device.Put(weight, weight_dtype()),
                     {.multiply = device.Put(Values(rows * width, 0x1p-10), {rows, width}, act())}, scaled);
      ExpectSame(device.Get(scaled), Values(rows * width, 4096), std::to_string(rows) + " rows, multiplied");
    }
  }
}

// A row that overflows must not affect its neighbors, which belong to other sequences.
TEST_P(BackendTest, MatMulRowsDoNotMix) {
  const int64_t rows = 13, in = 130, width = 67;
  Values x = random.Normal(rows * in, 1, act());
  const reference::Weight weight{random.Normal(in * width, 0.1, weight_dtype()), in, width};
  const Values expected = reference::Product(x, weight);
  for (int64_t i = 0; i < in; ++i) x[5 * in + i] = std::nan("");
  const Tensor out = device.New(act(), {rows, width});
  device->MatMul(device.Put(x, {rows, in}, act()), device.Put(weight, weight_dtype()), {}, out);
  const Values actual = device.Get(out);
  for (int row = 0; row < rows; ++row) {
    if (row == 5) continue;
    ExpectClose(Slot(actual, row, width), Slot(expected, row, width), width, tolerance(), "row " + std::to_string(row),
                1);
  }
}

}  // namespace
}  // namespace goldfinch
