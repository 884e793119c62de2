// What the tests of Backend share: the parameter of a suite, random inputs, device memory, and comparisons.
//
// Values on the host are doubles that hold exactly what the device tensor holds: inputs are rounded to the tensor's
// type when they are drawn, so a reference over them has the same inputs as the kernel, and only arithmetic differs.
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
  std::string name;  // of the test: letters, digits, _
  std::function<std::unique_ptr<Backend>(int threads)> make;
  DType weight_dtype = DType::kF32;
  DType cache_dtype = DType::kF32;
  DType activation_dtype = DType::kF32;  // what the back end says of itself
  // Relative L2 error of ops that read weights or caches, and of those on activations alone. Back ends that compute in
  // fp32 on fp32 activations hold kFp32Tolerance for every type, as both sides have the rounded weights; one that
  // rounds activations does not.
  double tolerance = kFp32Tolerance;
  double activation_tolerance = kFp32Tolerance;
  // Results do not depend on what shares a call, to the bit; else to the tolerances.
  bool bit_invariant = false;
  // Also the tests that take the double versions seconds; one case a back end is enough.
  bool thorough = false;
  // The back end is a thousand times slower than a processor (an emulated one): smaller sizes of everything.
  bool slow = false;
};
void PrintTo(const Case& test_case, std::ostream* out);

class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}

  uint64_t Next();
  int64_t Below(int64_t limit) { return static_cast<int64_t>(Next() % static_cast<uint64_t>(limit)); }
  // Evenly from [low, high], rounded to the type.
  Values Uniform(int64_t count, double low, double high, DType dtype = DType::kF32);
  // With mean 0, bell-shaped, rounded to the type.
  Values Normal(int64_t count, double deviation, DType dtype = DType::kF32);
  std::vector<int32_t> Ids(int64_t count, int64_t vocab);
  // 0 .. count in random order.
  std::vector<int32_t> Permutation(int64_t count);

 private:
  uint64_t state_;
};

// The nearest value of a floating-point type, ties to even; beyond fp16's range its largest.
double Round(double value, DType dtype);
Values Round(Values values, DType dtype);
// Rows [.., width] as the compressed cache holds them in this type, which may be kInt8.
Values RoundCompressed(const Values& rows, int64_t width, DType dtype);
// The largest relative error of such a rounding, of values that are not below the type's normal numbers.
double RoundingError(DType dtype);
// The smallest normal number: as `unit` below, it lets results near it lose digits as the type does.
double SmallestNormal(DType dtype);

// A back end and the tensors that a test keeps on it.
class Device {
 public:
  explicit Device(std::unique_ptr<Backend> backend) : backend_(std::move(backend)) {}

  Backend* operator->() { return backend_.get(); }
  Backend& operator*() { return *backend_; }

  // Filled with 0xFF: NaN in floats, -1 or 65535 in ids. Where ops read host memory it is a heap block that ends with
  // the tensor and starts no better aligned than a mapped weight, for the address sanitizer to watch.
  Tensor New(DType dtype, const Shape& shape);
  Tensor New(const Shape& shape) { return New(DType::kF32, shape); }
  Tensor Put(const Values& values, const Shape& shape, DType dtype = DType::kF32);
  // Rows of the compressed cache; the last axis of `shape` is their numbers. Of kInt8: quantized here, in plain code.
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

// Relative L2 over all, and over each row (where a row is smaller than most, relative to those). A NaN fails. `unit` is
// how large an element is where no terms happen to cancel: of a few elements that all happen to be small, rounding
// errors are relative to it.
void ExpectClose(const Values& actual, const Values& expected, int64_t width, double tolerance, const std::string& what,
                 double unit = 0);
// Bit for bit; expected values must be exact in fp32.
void ExpectSame(const Values& actual, const Values& expected, const std::string& what);

// Spans of these many rows, from row 0 on, each of another slot of `slots`, at position 0.
std::vector<RowSpan> MakeSpans(Random& random, const std::vector<int>& counts, int slots);
// Rows [span.row_begin, + row_count) of x [rows, width].
Values RowsOf(const Values& x, const RowSpan& span, int64_t width);
// Overwrites them.
void SetRows(const Values& rows, const RowSpan& span, int64_t width, Values& x);
Values Slot(const Values& state, int slot, int64_t size);
void SetSlot(const Values& values, int slot, Values& state);
int64_t RowCount(const std::vector<int>& counts);

// Page tables of several sequences over one pool of pages, in shuffled order, with pages of nobody between them.
class Paging {
 public:
  Paging(Random& random, int64_t page_tokens, const std::vector<int64_t>& lengths);

  int64_t pages() const { return pages_; }
  int64_t page_tokens() const { return page_tokens_; }
  const int32_t* table(int sequence) const { return tables_[sequence].data(); }
  // Row `position` of a sequence, counted over the whole pool.
  int64_t Row(int sequence, int64_t position) const {
    return tables_[sequence][position / page_tokens_] * page_tokens_ + position % page_tokens_;
  }
  // The pool [pages, page_tokens, width] with these sequences in it and NaN elsewhere.
  Values Scatter(const std::vector<Values>& sequences, int64_t width) const;

 private:
  int64_t page_tokens_;
  int64_t pages_ = 0;
  std::vector<std::vector<int32_t>> tables_;
};

// A random GOLD layer with matrices of one type.
struct GoldSizes {
  int64_t width = 64;
  int head_size = 16;
  int64_t vocab = 100;
  int64_t mix_rank = 4;
  int64_t lora_rank = 8;
  double rope_base = 0;
};
reference::GoldLayer RandomGoldLayer(Random& random, const GoldSizes& sizes, DType dtype);
GoldSharedWeights PutGoldShared(Device& device, const reference::GoldLayer& layer, DType dtype);
GoldKvWeights PutGoldWeights(Device& device, const reference::GoldLayer& layer, DType dtype);
// Ids as values, for Put and Scatter.
Values IdValues(const std::vector<int32_t>& ids);

// The one suite of all back ends: a check common to several tests is a function over it. GOLDFINCH_TEST_SEED in the
// environment draws other inputs; failures print the seed.
class BackendTest : public testing::TestWithParam<Case> {
 public:
  BackendTest();

  DType weight_dtype() const { return GetParam().weight_dtype; }
  DType cache_dtype() const { return GetParam().cache_dtype; }
  DType act() const { return GetParam().activation_dtype; }
  double tolerance() const { return GetParam().tolerance; }
  double activation_tolerance() const { return GetParam().activation_tolerance; }
  bool slow() const { return GetParam().slow; }
  // A check of so many multiply-adds is left to faster back ends.
  bool TooSlow(int64_t multiply_adds) const { return slow() && multiply_adds > 3'000'000; }
  // Of rows that may be fp32 or act.
  std::vector<DType> row_dtypes() const;
  Device MakeDevice(int threads) const { return Device(GetParam().make(threads)); }

 private:
  const uint64_t seed_;
  const testing::ScopedTrace trace_;

 public:
  Random random;
  Device device;
};

}  // namespace goldfinch

#endif  // GOLDFINCH_KERNELS_BACKEND_TEST_UTIL_H_
