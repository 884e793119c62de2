#include "worker/model/weight_loader.h"

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/backend.h"
#include "worker/checkpoint/checkpoint_test_util.h"
#include "worker/model/fake_device.h"
#include "worker/model/random_model.h"

namespace goldfinch {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

const std::vector<TestTensor> kTensors = {
    {"a.matrix", DType::kBf16, {2, 3}, {1, 2, 3, 4, 5, 6}},
    {"a.vector", DType::kF16, {1, 1, 4}, {1, 2, 3, 4}},
    {"a.other", DType::kF32, {4}, {5, 6, 7, 8}},
    {"a.ln.weight", DType::kBf16, {2}, {1, 2}},
    {"a.ln.bias", DType::kBf16, {2}, {3, 4}},
    {"b.cube", DType::kF32, {2, 1, 2}, {1, 2, 3, 4}},
};

class WeightLoaderTest : public testing::Test {
 public:
  WeightLoaderTest() { loader.SetPrefix("a."); }

  void ExpectError(const std::string& tensor, const std::string& message) {
    EXPECT_EQ(loader.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(loader.status().message()),
                AllOf(HasSubstr("test.pth: "), HasSubstr(tensor), HasSubstr(message)));
  }

  const std::unique_ptr<Backend> backend = MakeCpuBackend(/*threads=*/1);
  const std::shared_ptr<const Checkpoint> checkpoint = OpenTensors(kTensors);
  const std::shared_ptr<void> arena = *backend->Allocate(1 << 12, "weights");
  WeightLoader loader{*backend, *checkpoint, arena.get()};
};

TEST_F(WeightLoaderTest, MatricesAreReadInPlace) {
  const Matrix linear = loader.Linear("matrix", 2, 3);
  EXPECT_EQ(linear.data.data, checkpoint->Find("a.matrix")->data.data);
  EXPECT_EQ(linear.data.dtype, DType::kBf16);
  EXPECT_EQ(linear.out(), 2);
  EXPECT_EQ(linear.in(), 3);
  const Matrix lora = loader.Lora("matrix", 2, -1);
  EXPECT_EQ(lora.in(), 2);
  EXPECT_EQ(lora.out(), 3);
  EXPECT_EQ(loader.Raw("matrix", {2, 3}).data, linear.data.data);
  EXPECT_TRUE(loader.status().ok()) << loader.status();
  EXPECT_EQ(loader.copied_bytes(), 0);
  EXPECT_EQ(loader.weight_bytes(), 3 * 12);
}

TEST_F(WeightLoaderTest, VectorsBecomeFp32WhateverTheirAxes) {
  const ConstTensor vector = loader.Vector("vector", 4);
  EXPECT_EQ(vector.shape, (Shape{4}));
  EXPECT_THAT(ToFloats(vector), ElementsAre(1, 2, 3, 4));
  const ConstTensor stack = loader.Stack({"vector", "other"}, 4);
  EXPECT_EQ(stack.shape, (Shape{2, 4}));
  EXPECT_THAT(ToFloats(stack), ElementsAre(1, 2, 3, 4, 5, 6, 7, 8));
  const NormWeights norm = loader.Norm("ln", 2);
  EXPECT_THAT(ToFloats(norm.weight), ElementsAre(1, 2));
  EXPECT_THAT(ToFloats(norm.bias), ElementsAre(3, 4));
  EXPECT_TRUE(loader.status().ok()) << loader.status();
}

TEST_F(WeightLoaderTest, ColumnsOfAMatrix) {
  const Matrix columns = loader.LinearColumns("matrix", 2, 3, 1, 3);
  EXPECT_EQ(columns.data.shape, (Shape{2, 2}));
  EXPECT_EQ(columns.data.dtype, DType::kBf16);
  EXPECT_THAT(ToFloats(columns.data), ElementsAre(2, 3, 5, 6));
}

TEST_F(WeightLoaderTest, MissingTensors) {
  EXPECT_FALSE(loader.Vector("missing", 4));
  ExpectError("a.missing", "is missing");
  // The first error is kept, and nothing more is read.
  EXPECT_FALSE(loader.Linear("matrix", 2, 3));
  EXPECT_FALSE(loader.Vector("too", 1));
  ExpectError("a.missing", "is missing");
}

TEST_F(WeightLoaderTest, MissingHalfOfANorm) {
  loader.Norm("vector", 4);
  ExpectError("a.vector.weight", "is missing");
}

TEST_F(WeightLoaderTest, WrongShapesNameWhatWasExpected) {
  EXPECT_FALSE(loader.Linear("matrix", 3, 2));
  ExpectError("a.matrix is [2, 3]", "expected [3, 2]");
}

TEST_F(WeightLoaderTest, AnyIsShownInWrongShapes) {
  EXPECT_FALSE(loader.Lora("matrix", -1, 5));
  ExpectError("a.matrix is [2, 3]", "expected [any, 5]");
}

TEST_F(WeightLoaderTest, WrongNumberOfElements) {
  EXPECT_FALSE(loader.Stack({"other", "matrix"}, 4));
  ExpectError("a.matrix is [2, 3]", "expected 4 elements");
}

TEST_F(WeightLoaderTest, WrongRank) {
  EXPECT_FALSE(loader.Linear("vector", -1, -1));
  ExpectError("a.vector is [1, 1, 4]", "expected [any, any]");
}

TEST_F(WeightLoaderTest, WrongRawShape) {
  EXPECT_FALSE(loader.Raw("matrix", {2, 3, 1}));
  ExpectError("a.matrix is [2, 3]", "expected [2, 3, 1]");
}

TEST_F(WeightLoaderTest, WrongShapeForColumns) {
  EXPECT_FALSE(loader.LinearColumns("matrix", 2, 4, 1, 3));
  ExpectError("a.matrix is [2, 3]", "expected [2, 4]");
}

TEST_F(WeightLoaderTest, AxesThatAreNotThere) {
  EXPECT_EQ(loader.Dim("matrix", 1), 3);
  EXPECT_EQ(loader.Dim("matrix", 2), 0);
  ExpectError("a.matrix is [2, 3]", "at least 3 axes");
}

TEST_F(WeightLoaderTest, TensorsThatNobodyTookAreNamed) {
  loader.Linear("matrix", 2, 3);
  loader.Stack({"vector", "other"}, 4);
  loader.Ignore("ln.weight");
  loader.Ignore("not in the file");
  loader.Norm("ln", 2);
  loader.CheckAllTaken();
  ExpectError("b.cube", "belongs to no layer");
}

TEST_F(WeightLoaderTest, AllTaken) {
  loader.IgnorePrefix("a.");
  EXPECT_TRUE(loader.Has("matrix"));
  EXPECT_FALSE(loader.Has("cube"));
  EXPECT_EQ(loader.Peek("cube"), nullptr);
  loader.SetPrefix("b.");
  EXPECT_NE(loader.Peek("cube"), nullptr);
  EXPECT_THAT(loader.Values("cube", 4), ElementsAre(1, 2, 3, 4));
  loader.CheckAllTaken();
  EXPECT_TRUE(loader.status().ok()) << loader.status();
}

TEST_F(WeightLoaderTest, DevicesGetCopies) {
  FakeDevice device(*backend);
  const std::shared_ptr<void> memory = *device.Allocate(1 << 12, "weights");
  WeightLoader copying(device, *checkpoint, memory.get());
  copying.SetPrefix("a.");
  const Matrix linear = copying.Linear("matrix", 2, 3);
  const ConstTensor raw = copying.Raw("vector", {1, 1, 4});
  EXPECT_EQ(copying.copied_bytes(), 2 * WeightLoader::kTensorAlignment);
  EXPECT_EQ(copying.weight_bytes(), copying.copied_bytes());
  EXPECT_TRUE(copying.status().ok()) << copying.status();
  EXPECT_NE(linear.data.data, checkpoint->Find("a.matrix")->data.data);
  EXPECT_EQ(linear.data.dtype, DType::kBf16);
  const auto values = [&device](const ConstTensor& tensor) {
    std::vector<char> bytes(tensor.bytes());
    device.CopyToHost(tensor, bytes.data());
    return ToFloats({bytes.data(), tensor.dtype, tensor.shape});
  };
  EXPECT_THAT(values(linear.data), ElementsAre(1, 2, 3, 4, 5, 6));
  EXPECT_THAT(values(raw), ElementsAre(1, 2, 3, 4));
}

TEST_F(WeightLoaderTest, ColumnsGoToDevicesSomeRowsAtATime) {
  constexpr int64_t kRows = 300, kColumns = 2048;  // more than a part takes
  std::vector<float> values(kRows * kColumns);
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i);
  const auto large = OpenTensors({{"matrix", DType::kF32, {kRows, kColumns}, values}});
  FakeDevice device(*backend);
  const std::shared_ptr<void> memory = *device.Allocate(4 * kRows * kColumns, "weights");
  WeightLoader copying(device, *large, memory.get());
  const Matrix columns = copying.LinearColumns("matrix", kRows, kColumns, 1, kColumns);
  std::vector<float> copied(kRows * (kColumns - 1));
  device.CopyToHost(columns.data, copied.data());
  for (int64_t row = 0; row < kRows; ++row) {
    for (int64_t column = 1; column < kColumns; ++column) {
      ASSERT_EQ(copied[row * (kColumns - 1) + column - 1], values[row * kColumns + column]) << row << " " << column;
    }
  }
}

// What is measured is what is loaded then, and no value is looked at.
TEST_F(WeightLoaderTest, Measures) {
  for (const bool in_place : {true, false}) {
    WeightLoader measure(*checkpoint, in_place);
    measure.SetPrefix("a.");
    const Matrix linear = measure.Linear("matrix", 2, 3);
    EXPECT_TRUE(linear);
    EXPECT_EQ(linear.data.shape, (Shape{2, 3}));
    EXPECT_EQ(linear.data.dtype, DType::kBf16);
    EXPECT_EQ(measure.Vector("vector", 4).shape, (Shape{4}));
    EXPECT_EQ(measure.LinearColumns("matrix", 2, 3, 1, 3).data.shape, (Shape{2, 2}));
    EXPECT_THAT(measure.Values("other", 4), ElementsAre(0, 0, 0, 0));
    EXPECT_EQ(measure.copied_bytes(), (in_place ? 2 : 3) * WeightLoader::kTensorAlignment);
    EXPECT_EQ(measure.weight_bytes() - measure.copied_bytes(), in_place ? 12 : 0);
    EXPECT_FALSE(measure.Linear("missing", -1, -1));
    EXPECT_EQ(measure.status().code(), absl::StatusCode::kInvalidArgument);
  }
}

// Every fp16 and bf16 number there is.
TEST(ToFloatsTest, EveryHalf) {
  std::vector<uint16_t> bits(1 << 16);
  for (size_t i = 0; i < bits.size(); ++i) bits[i] = static_cast<uint16_t>(i);
  const Shape shape = {1 << 16};
  const std::vector<float> halves = ToFloats({bits.data(), DType::kF16, shape});
  const std::vector<float> brains = ToFloats({bits.data(), DType::kBf16, shape});
  for (int i = 0; i < 1 << 16; ++i) {
    const int sign = i >> 15, exponent = (i >> 10) & 31, mantissa = i & 1023;
    double half = exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25);
    if (exponent == 31) {
      half = mantissa == 0 ? std::numeric_limits<double>::infinity() : std::numeric_limits<double>::quiet_NaN();
    }
    if (sign != 0) half = -half;
    const uint32_t wide = static_cast<uint32_t>(i) << 16;
    float brain = 0;
    std::memcpy(&brain, &wide, sizeof(brain));
    ASSERT_TRUE(std::isnan(half) ? std::isnan(halves[i]) : halves[i] == half) << i;
    ASSERT_EQ(std::signbit(halves[i]), sign != 0) << i;
    ASSERT_TRUE(std::isnan(brain) ? std::isnan(brains[i]) : brains[i] == brain) << i;
  }
}

}  // namespace
}  // namespace goldfinch
