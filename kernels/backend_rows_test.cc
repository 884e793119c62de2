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

TEST_P(BackendTest, DescribesItself) { EXPECT_FALSE(device->Describe().empty()); }

TEST_P(BackendTest, Embed) {
  for (int64_t width : {1, 3, 8, 17, 64, 448, 1030}) {
    for (int64_t rows : {0, 1, 7, 505}) {
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

// Every pattern of a 16-bit type: subnormals, infinities and NaNs, too.
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
  for (int64_t width : {1, 17, 130}) {
    const Values from = random.Normal(9 * width, 1), to = random.Normal(5 * width, 1);
    const Tensor target = device.Put(to, {5, width});
    device->CopyRows(device.Put(from, {9, width}), {{8, 0}, {0, 4}, {3, 1}, {8, 3}}, target);
    Values expected = to;
    SetSlot(Slot(from, 8, width), 0, expected);
    SetSlot(Slot(from, 0, width), 4, expected);
    SetSlot(Slot(from, 3, width), 1, expected);
    SetSlot(Slot(from, 8, width), 3, expected);
    ExpectSame(device.Get(target), expected, "copies in any order");
    device->CopyRows(device.Put(from, {9, width}), {}, target);
    ExpectSame(device.Get(target), expected, "no copies");
  }
}

TEST_P(BackendTest, CopyRowsMovesUpInPlace) {
  const int64_t width = 70, rows = 600;
  const Values values = random.Normal(rows * width, 1);
  const Tensor tensor = device.Put(values, {rows, width});
  // Compaction: keeps two rows of three, the first of them where they are.
  std::vector<RowCopy> copies;
  Values expected = values;
  for (int64_t row = 0; row < rows; ++row) {
    if (row % 3 == 2) continue;
    const auto to = static_cast<int64_t>(copies.size());
    copies.push_back({row, to});
    SetSlot(Slot(values, static_cast<int>(row), width), static_cast<int>(to), expected);
  }
  device->CopyRows(tensor, copies, tensor);
  ExpectSame(device.Get(tensor), expected, "moved up");
}

struct NormSizes {
  int64_t rows;
  int64_t width;
  int groups;
};

void CheckGroupNorm(BackendTest& t, const NormSizes& sizes, double epsilon, bool gated, double offset) {
  const int64_t rows = sizes.rows, width = sizes.width;
  const int groups = sizes.groups;
  Values x = t.random.Normal(rows * width, 2);
  for (double& value : x) value = Round(value + offset, DType::kF32);
  const reference::Norm norm{t.random.Normal(width, 1), t.random.Normal(width, 1)};
  const Values gate = t.random.Normal(rows * width, 1);
  Values expected = reference::GroupNorm(x, width, groups, norm, static_cast<float>(epsilon));
  if (gated) expected = reference::Multiply(expected, gate);

  const Shape shape{rows, width};
  const NormWeights weights = t.device.Put(norm);
  const auto run = [&](bool in_x, bool in_gate) {
    const Tensor x_tensor = t.device.Put(x, shape);
    const Tensor gate_tensor = gated ? t.device.Put(gate, shape) : Tensor{};
    const Tensor out = in_x ? x_tensor : in_gate ? gate_tensor : t.device.New(shape);
    t.device->GroupNorm(x_tensor, groups, weights, static_cast<float>(epsilon), gate_tensor, out);
    return t.device.Get(out);
  };
  const Values out = run(false, false);
  ExpectClose(out, expected, width, kFp32Tolerance * (1 + offset / 8), shape.ToString(), 1);
  ExpectSame(run(true, false), out, "in place of x");
  if (gated) ExpectSame(run(false, true), out, "in place of the gate");
}

TEST_P(BackendTest, GroupNormEveryShape) {
  for (const NormSizes& sizes :
       {NormSizes{0, 64, 1}, NormSizes{1, 3, 1}, NormSizes{7, 8, 1}, NormSizes{7, 17, 1}, NormSizes{2, 65, 5},
        NormSizes{505, 64, 1}, NormSizes{3, 448, 7}, NormSizes{9, 448, 28}, NormSizes{2, 1030, 2},
        NormSizes{1, 2050, 1}, NormSizes{3, 2048, 32}}) {
    for (bool gated : {false, true}) CheckGroupNorm(*this, sizes, 1e-5, gated, 0);
  }
}

TEST_P(BackendTest, GroupNormEveryEpsilon) {
  for (double epsilon : {0., 1e-5, 64e-5, 3.}) CheckGroupNorm(*this, {5, 128, 2}, epsilon, true, 0);
}

// The variance must not be a difference of large squares.
TEST_P(BackendTest, GroupNormRowsFarFromZero) { CheckGroupNorm(*this, {5, 512, 1}, 1e-5, false, 100); }

TEST_P(BackendTest, GroupNormConstantRowsGiveTheBias) {
  const reference::Norm norm{random.Normal(64, 1), random.Normal(64, 1)};
  const Tensor out = device.New({2, 64});
  device->GroupNorm(device.Put(Values(128, 3.), {2, 64}), 1, device.Put(norm), 1e-5f, {}, out);
  const Values values = device.Get(out);
  ExpectClose(Slot(values, 0, 64), norm.bias, 64, kFp32Tolerance, "first row");
  ExpectClose(Slot(values, 1, 64), norm.bias, 64, kFp32Tolerance, "second row");
}

}  // namespace
}  // namespace goldfinch
