// Memory, and the ops that move or norm rows.
#include <algorithm>
#include <cmath>
#include <limits>

#include "gmock/gmock.h"
#include "kernels/backend_test_util.h"

namespace goldfinch {
namespace {

using testing::HasSubstr;

TEST_P(BackendTest, AllocatesZeroedAlignedMemory) {
  for (int64_t bytes : {0, 1, 63, 4097, 5'000'000}) {
    const std::shared_ptr<void> memory = device->Allocate(bytes, "rows").value();
    ASSERT_NE(memory, nullptr);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(memory.get()) % 64, 0u);
    std::vector<char> host(bytes, 'x');
    device->CopyToHost({memory.get(), DType::kU16, {bytes / 2}}, host.data());
    ASSERT_TRUE(device->Synchronize().ok());
    EXPECT_EQ(std::count(host.begin(), host.begin() + bytes / 2 * 2, '\0'), bytes / 2 * 2) << bytes;
  }
}

TEST_P(BackendTest, RefusesMoreMemoryThanThereIs) {
  for (int64_t bytes : {int64_t{1} << 60, std::numeric_limits<int64_t>::max()}) {
    const absl::StatusOr<std::shared_ptr<void>> memory = device->Allocate(bytes, "the key cache");
    ASSERT_EQ(memory.status().code(), absl::StatusCode::kResourceExhausted);
    EXPECT_THAT(memory.status().ToString(), HasSubstr("the key cache"));
    EXPECT_THAT(memory.status().ToString(), HasSubstr(std::to_string(bytes)));
  }
}

TEST_P(BackendTest, CopiesAndZeroesTensors) {
  const Values values = random.Normal(21, 1, weight_dtype());
  const Tensor tensor = device.Put(values, {3, 7}, weight_dtype());
  ExpectSame(device.Get(tensor), values, "copied there and back");
  const Tensor other = device.New(weight_dtype(), {3, 7});
  device->Copy(tensor, other);
  ExpectSame(device.Get(other), values, "copied on the device");
  // The first two rows only.
  device->Zero({tensor.data, tensor.dtype, {2, 7}});
  Values expected = values;
  std::fill_n(expected.begin(), 14, 0.);
  ExpectSame(device.Get(tensor), expected, "zeroed");
}

TEST_P(BackendTest, StepsDoWhatTheirOpsDo) {
  const Tensor from = device.New(weight_dtype(), {3, 7}), to = device.New(weight_dtype(), {3, 7});
  for (const bool repeats : {false, true}) {
    for (int i = 0; i < 4; ++i) {
      const Values values = random.Normal(21, 1, weight_dtype());
      device->Copy(device.Put(values, {3, 7}, weight_dtype()), from);
      device->Submit(repeats, [&] {
        device->Copy(from, to);
        device->Zero({to.data, to.dtype, {1, 7}});
      });
      Values expected = values;
      std::fill_n(expected.begin(), 7, 0.);
      ExpectSame(device.Get(to), expected, "a step");
    }
  }
}

TEST_P(BackendTest, DescribesItself) {
  EXPECT_FALSE(device->Describe().empty());
  EXPECT_EQ(device->activation_dtype(), act());
}

TEST_P(BackendTest, Embed) {
  for (int64_t width : {1, 3, 8, 17, 64, 448, 1030}) {
    for (int64_t rows : {0, 1, 7, 505}) {
      if (TooSlow(10 * rows * width)) continue;
      const Values table = random.Normal(50 * width, 1, weight_dtype());
      const std::vector<int32_t> ids = random.Ids(rows, 50);
      const Tensor out = device.New({rows, width});
      device->Embed(device.Put(table, {50, width}, weight_dtype()), ids, out);
      Values expected;
      for (int32_t id : ids) {
        const Values row = Slot(table, id, width);
        expected.insert(expected.end(), row.begin(), row.end());
      }
      ExpectSame(device.Get(out), expected, "width " + std::to_string(width));
    }
  }
}

// Every bit pattern of a 16-bit type, including subnormals, infinities and NaNs.
TEST_P(BackendTest, EmbedWidensEveryNumber) {
  const DType dtype = weight_dtype();
  if (dtype == DType::kF32) return;
  const auto infinity = static_cast<uint16_t>(dtype == DType::kF16 ? 0x7C00 : 0x7F80);
  std::vector<uint16_t> numbers, nans;
  for (int bits = 0; bits < 0x8000; ++bits) {
    std::vector<uint16_t>& patterns = bits <= infinity ? numbers : nans;
    patterns.push_back(static_cast<uint16_t>(bits));
    patterns.push_back(static_cast<uint16_t>(bits | 0x8000));
  }
  const auto widen = [&](const std::vector<uint16_t>& patterns, Values* expected) {
    const Tensor table = device.New(dtype, {1, static_cast<int64_t>(patterns.size())});
    device->CopyFromHost(patterns.data(), table);
    const Tensor out = device.New(table.shape);
    device->Embed(table, {0}, out);
    if (expected != nullptr) *expected = device.Get(table);
    return device.Get(out);
  };
  Values expected;
  const Values actual = widen(numbers, &expected);
  ExpectSame(actual, expected, Name(dtype));
  for (double value : widen(nans, nullptr)) ASSERT_TRUE(std::isnan(value));
}

TEST_P(BackendTest, CopyRows) {
  for (DType from_dtype : row_dtypes()) {
    for (DType to_dtype : row_dtypes()) {
      for (int64_t width : {1, 17, 130}) {
        const Values from = random.Normal(9 * width, 1, from_dtype), to = random.Normal(5 * width, 1, to_dtype);
        const Tensor target = device.Put(to, {5, width}, to_dtype);
        const Tensor source = device.Put(from, {9, width}, from_dtype);
        device->CopyRows(source, {{8, 0}, {0, 4}, {3, 1}, {8, 3}}, target);
        const Values rounded = Round(from, to_dtype);
        Values expected = to;
        SetSlot(Slot(rounded, 8, width), 0, expected);
        SetSlot(Slot(rounded, 0, width), 4, expected);
        SetSlot(Slot(rounded, 3, width), 1, expected);
        SetSlot(Slot(rounded, 8, width), 3, expected);
        const std::string what = std::string(Name(from_dtype)) + " to " + Name(to_dtype);
        ExpectSame(device.Get(target), expected, "copies in any order, " + what);
        device->CopyRows(source, {}, target);
        ExpectSame(device.Get(target), expected, "no copies, " + what);
      }
    }
  }
}

TEST_P(BackendTest, CopyRowsMovesUpInPlace) {
  const int64_t width = 70, rows = slow() ? 150 : 600;
  for (DType dtype : row_dtypes()) {
    const Values values = random.Normal(rows * width, 1, dtype);
    const Tensor tensor = device.Put(values, {rows, width}, dtype);
    // Compaction: keeps two of every three rows; the first two stay where they are.
    std::vector<RowCopy> copies;
    Values expected = values;
    for (int64_t row = 0; row < rows; ++row) {
      if (row % 3 == 2) continue;
      const auto to = static_cast<int64_t>(copies.size());
      copies.push_back({row, to});
      SetSlot(Slot(values, static_cast<int>(row), width), static_cast<int>(to), expected);
    }
    device->CopyRows(tensor, copies, tensor);
    ExpectSame(device.Get(tensor), expected, std::string("moved up, ") + Name(dtype));
  }
}

TEST_P(BackendTest, Convert) {
  for (DType from : row_dtypes()) {
    for (DType to : {DType::kF32, DType::kF16, DType::kBf16}) {
      for (const Shape& shape : {Shape{0, 8}, Shape{1, 1}, Shape{7, 17}, Shape{3, 130}, Shape{2, 3, 65}}) {
        const Values values = random.Normal(shape.elements(), 1, from);
        const Tensor out = device.New(to, shape);
        device->Convert(device.Put(values, shape, from), out);
        ExpectSame(device.Get(out), Round(values, to), std::string(Name(from)) + " to " + Name(to));
      }
    }
  }
}

struct NormSizes {
  int64_t rows;
  int64_t width;
  int groups;
};

void CheckGroupNorm(BackendTest& t, const NormSizes& sizes, double epsilon, bool gated, double offset, DType x_dtype,
                    DType out_dtype) {
  const int64_t rows = sizes.rows, width = sizes.width;
  const int groups = sizes.groups;
  Values x = t.random.Normal(rows * width, 2);
  for (double& value : x) value = Round(value + offset, x_dtype);
  const reference::Norm norm{t.random.Normal(width, 1), t.random.Normal(width, 1)};
  const Values gate = t.random.Normal(rows * width, 1, t.act());
  Values expected = reference::GroupNorm(x, width, groups, norm, static_cast<float>(epsilon));
  if (gated) expected = reference::Multiply(expected, gate);

  const Shape shape{rows, width};
  const NormWeights weights = t.device.Put(norm);
  const auto run = [&](bool in_x, bool in_gate) {
    const Tensor x_tensor = t.device.Put(x, shape, x_dtype);
    const Tensor gate_tensor = gated ? t.device.Put(gate, shape, t.act()) : Tensor{};
    const Tensor out = in_x ? x_tensor : in_gate ? gate_tensor : t.device.New(out_dtype, shape);
    t.device->GroupNorm(x_tensor, groups, weights, static_cast<float>(epsilon), gate_tensor, out);
    return t.device.Get(out);
  };
  const std::string what = shape.ToString() + ", " + Name(x_dtype) + " to " + Name(out_dtype);
  const Values out = run(false, false);
  ExpectClose(out, expected, width, t.activation_tolerance() + kFp32Tolerance * offset / 8, what, 1);
  if (x_dtype == out_dtype) ExpectSame(run(true, false), out, what + ", in place of x");
  if (gated && out_dtype == t.act()) ExpectSame(run(false, true), out, what + ", in place of the gate");
}

// Rows of every type, in and out.
void CheckGroupNorm(BackendTest& t, const NormSizes& sizes, double epsilon, bool gated, double offset) {
  for (DType x_dtype : t.row_dtypes()) {
    for (DType out_dtype : t.row_dtypes()) CheckGroupNorm(t, sizes, epsilon, gated, offset, x_dtype, out_dtype);
  }
}

TEST_P(BackendTest, GroupNormEveryShape) {
  for (const NormSizes& sizes :
       {NormSizes{0, 64, 1}, NormSizes{1, 3, 1}, NormSizes{7, 8, 1}, NormSizes{7, 17, 1}, NormSizes{2, 65, 5},
        NormSizes{505, 64, 1}, NormSizes{3, 448, 7}, NormSizes{9, 448, 28}, NormSizes{2, 1030, 2},
        NormSizes{1, 2050, 1}, NormSizes{3, 2048, 32}}) {
    if (TooSlow(50 * sizes.rows * sizes.width)) continue;
    for (bool gated : {false, true}) CheckGroupNorm(*this, sizes, 1e-5, gated, 0);
  }
}

TEST_P(BackendTest, GroupNormEveryEpsilon) {
  for (double epsilon : {0., 1e-5, 64e-5, 3.}) CheckGroupNorm(*this, {5, 128, 2}, epsilon, true, 0);
}

// The variance must not be computed as a difference of large squares.
TEST_P(BackendTest, GroupNormRowsFarFromZero) { CheckGroupNorm(*this, {5, 512, 1}, 1e-5, false, 100); }

TEST_P(BackendTest, GroupNormConstantRowsGiveTheBias) {
  const reference::Norm norm{random.Normal(64, 1), random.Normal(64, 1)};
  for (DType dtype : row_dtypes()) {
    const Tensor out = device.New(dtype, {2, 64});
    device->GroupNorm(device.Put(Values(128, 3.), {2, 64}, dtype), 1, device.Put(norm), 1e-5f, {}, out);
    const Values values = device.Get(out);
    ExpectClose(Slot(values, 0, 64), norm.bias, 64, activation_tolerance(), "first row");
    ExpectClose(Slot(values, 1, 64), norm.bias, 64, activation_tolerance(), "second row");
  }
}

}  // namespace
}  // namespace goldfinch
