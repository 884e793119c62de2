// What the tests of Backend share: the parameter of a suite, random inputs, device memory, and comparisons.
//
// Values on the host are doubles with exactly the values of the device tensor: inputs are rounded to the tensor's type
// when they are drawn, so that the reference has the same inputs as the kernel, and only the arithmetic differs.
#ifndef GOLDFINCH_KERNELS_BACKEND_TEST_UTIL_H_
#define GOLDFINCH_KERNELS_BACKEND_TEST_UTIL_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/backend.h"
#include "kernels/reference.h"

namespace goldfinch {

using reference::Values;

// fp32 keeps 7 digits; sums of a few thousand terms and exp of values near 20 lose one of them.
constexpr double kFp32Tolerance = 4e-6;

// One back end with one choice of types.
struct Case {
  std::string name;  // part of the test's name: letters, digits, _
  std::function<std::unique_ptr<Backend>(int threads)> make;
  DType weight_dtype = DType::kF32;
  DType cache_dtype = DType::kF32;
  DType activation_dtype = DType::kF32;  // what the back end must report
  // Relative L2 error of ops that read weights or caches, and of ops on activations alone. A back end that computes in
  // fp32 on fp32 activations keeps to kFp32Tolerance for every type, because both sides have the rounded weights; one
  // that rounds activations does not.
  double tolerance = kFp32Tolerance;
  double activation_tolerance = kFp32Tolerance;
  // Results do not depend on what shares a call: to the bit if true, else to the tolerances.
  bool bit_invariant = false;
  // Also runs the tests whose double versions take seconds; one case of a back end is enough.
  bool thorough = false;
  // The back end is emulated and a thousand times slower than a processor: everything is tested at smaller sizes.
  bool slow = false;
};
void PrintTo(const Case& test_case, std::ostream* out);

class TestRandom {
 public:
  explicit TestRandom(uint64_t seed) : state_(seed) {}

  uint64_t Next();
  int64_t Below(int64_t limit) { return static_cast<int64_t>(Next() % static_cast<uint64_t>(limit)); }
  // Uniform in [low, high], rounded to the type.
  Values Uniform(int64_t count, double low, double high, DType dtype = DType::kF32);
  // Bell-shaped with mean 0, rounded to the type.
  Values Normal(int64_t count, double deviation, DType dtype = DType::kF32);
  std::vector<int32_t> Ids(int64_t count, int64_t vocab);
  // The numbers 0 .. count - 1 in random order.
  std::vector<int32_t> Permutation(int64_t count);

 private:
  uint64_t state_;
};

// The nearest value of a floating-point type, ties to even; beyond fp16's range the largest of fp16.
double Round(double value, DType dtype);
Values Round(Values values, DType dtype);
// Rows [.., width] as the compressed cache stores them in this type, which may be kInt8.
Values RoundCompressed(const Values& rows, int64_t width, DType dtype);
// The largest relative error of such a rounding, for values that are not below the type's normal numbers.
double RoundingError(DType dtype);
// The smallest normal number. As `unit` of ExpectClose, it allows results near it to lose digits as the type does.
double SmallestNormal(DType dtype);

// A back end and the memory of the tensors that a test makes on it.
class Device {
 public:
  explicit Device(std::unique_ptr<Backend> backend) : backend_(std::move(backend)) {}

  Backend* operator->() { return backend_.get(); }
  Backend& operator*() { return *backend_; }

  // Filled with 0xFF: NaN in floats, -1 or 65535 in ids. On the CPU it is a heap block that ends with the tensor and
  // starts no better aligned than a mapped weight, for the address sanitizer to watch.
  Tensor New(DType dtype, const Shape& shape);
  Tensor New(const Shape& shape) { return New(DType::kF32, shape); }
  Tensor Put(const Values& values, const Shape& shape, DType dtype = DType::kF32);
  // Rows of the compressed cache; the last axis of `shape` counts their numbers. kInt8 rows are quantized by plain code
  // of the tests.
  Tensor PutCompressed(const Values& rows, const Shape& shape, DType dtype);
  Matrix Put(const reference::Weight& weight, DType dtype);
  NormWeights Put(const reference::Norm& norm);
  std::vector<char> GetBytes(ConstTensor tensor);
  Values Get(ConstTensor tensor);
  Values GetCompressed(ConstTensor rows);

 private:
  std::unique_ptr<Backend> backend_;
  std::vector<std::shared_ptr<void>> memory_;
};

// Expects a relative L2 error within the tolerance over all elements and over each row; the error of a row that is
// smaller than most is relative to those. A NaN fails. `unit` is how large an element is when no terms happen to
// cancel: if all of a few elements happen to be small, their rounding errors are relative to it.
void ExpectClose(const Values& actual, const Values& expected, int64_t width, double tolerance, const std::string& what,
                 double unit = 0);
// Expects equality bit for bit; expected values must be exact in fp32.
void ExpectSame(const Values& actual, const Values& expected, const std::string& what);

// Spans with these numbers of rows, from row 0 on, at position 0, each in a different one of `slots` slots.
std::vector<RowSpan> MakeSpans(TestRandom& random, const std::vector<int>& counts, int slots);
// The rows of the span out of x [rows, width].
Values RowsOf(const Values& x, const RowSpan& span, int64_t width);
// Overwrites the rows of the span in x.
void SetRows(const Values& rows, const RowSpan& span, int64_t width, Values& x);
Values Slot(const Values& state, int slot, int64_t size);
void SetSlot(const Values& values, int slot, Values& state);
int64_t RowCount(const std::vector<int>& counts);

// A random GOLD layer with matrices of one type.
struct GoldSizes {
  int64_t width = 64;
  int head_size = 16;
  int64_t vocab = 100;
  int64_t mix_rank = 4;
  int64_t lora_rank = 8;
  double rope_base = 0;
};
reference::GoldLayer RandomGoldLayer(TestRandom& random, const GoldSizes& sizes, DType dtype);
GoldSharedWeights PutGoldShared(Device& device, const reference::GoldLayer& layer, DType dtype);
GoldKvWeights PutGoldWeights(Device& device, const reference::GoldLayer& layer, DType dtype);
// Ids as values, for Put and Scatter.
Values IdValues(const std::vector<int32_t>& ids);

// The one suite of all back ends. Checks that several tests share are functions that take it. The environment variable
// GOLDFINCH_TEST_SEED gives other random inputs; failures print the seed.
class BackendTest : public testing::TestWithParam<Case> {
 public:
  BackendTest();

  DType weight_dtype() const { return GetParam().weight_dtype; }
  DType cache_dtype() const { return GetParam().cache_dtype; }
  DType act() const { return GetParam().activation_dtype; }
  double tolerance() const { return GetParam().tolerance; }
  double activation_tolerance() const { return GetParam().activation_tolerance; }
  bool slow() const { return GetParam().slow; }
  // Whether a check of this many multiply-adds is left to faster back ends.
  bool TooSlow(int64_t multiply_adds) const { return slow() && multiply_adds > 3'000'000; }
  // The types of rows that may be fp32 or act.
  std::vector<DType> row_dtypes() const;
  Device MakeDevice(int threads) const { return Device(GetParam().make(threads)); }

 private:
  const uint64_t seed_;
  const testing::ScopedTrace trace_;

 public:
  TestRandom random;
  Device device;
};

}  // namespace goldfinch

#endif  // GOLDFINCH_KERNELS_BACKEND_TEST_UTIL_H_
