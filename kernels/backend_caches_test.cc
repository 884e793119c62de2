// Paged caches: how rows are appended to them and rounded.
#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/backend_test_util.h"
#include "kernels/paged_test_util.h"

namespace goldfinch {
namespace {

// Chunks within a page, across one border and across many, and from the middle of a page.
const std::vector<TestChunk>& AppendChunks() {
  static const auto& chunks =
      *new std::vector<TestChunk>{{0, 1}, {15, 1}, {15, 2}, {16, 16}, {3, 100}, {33, 1}, {0, 700}};
  return chunks;
}

TEST_P(BackendTest, GoldAppend) {
  std::vector<DType> c_dtypes = row_dtypes();
  if (cache_dtype() != DType::kF32 && cache_dtype() != act()) c_dtypes.push_back(cache_dtype());
  const int64_t rows = RowCount(AppendChunks());
  for (DType id_dtype : {DType::kU16, DType::kI32}) {
    for (int64_t c_width : {1, 5, 8, 28, 129}) {
      for (int64_t page_tokens : {1, 16, 37}) {
        if (TooSlow(10 * rows * c_width)) continue;
        const Paging paging(random, page_tokens, Lengths(AppendChunks()));
        const std::vector<RowSpan> spans = SpansOf(random, AppendChunks(), paging);
        const std::vector<int32_t> ids = random.Ids(rows, id_dtype == DType::kU16 ? 65536 : 1'000'000);
        const Values id_before = IdValues(random.Ids(paging.pages() * page_tokens, 65536));
        const Values c_before = random.Normal(paging.pages() * page_tokens * c_width, 1, cache_dtype());
        Values id_pool = id_before;
        WritePages(IdValues(ids), spans, paging, 1, id_pool);
        for (DType dtype : c_dtypes) {
          const Values c = random.Normal(rows * c_width, 1, dtype);
          Values c_pool = c_before;
          WritePages(Round(c, cache_dtype()), spans, paging, c_width, c_pool);
          const GoldCache cache{device.Put(id_before, {paging.pages(), page_tokens}, id_dtype),
                                device.Put(c_before, {paging.pages(), page_tokens, c_width}, cache_dtype())};
          device->GoldAppend(ids, device.Put(c, {rows, c_width}, dtype), spans, cache);
          ExpectSame(device.Get(cache.ids), id_pool, "ids, page of " + std::to_string(page_tokens));
          ExpectSame(device.Get(cache.c), c_pool,
                     "c given as " + std::string(Name(dtype)) + ", width " + std::to_string(c_width));
        }
      }
    }
  }
}

// An 8-bit row is quantized once, by Convert, and stored in pages unchanged.
TEST_P(BackendTest, GoldAppendOf8BitRows) {
  const int64_t rows = RowCount(AppendChunks());
  for (int64_t c_width : {1, 5, 28, 129}) {
    for (int64_t page_tokens : {1, 37}) {
      if (TooSlow(20 * rows * c_width)) continue;
      const Paging paging(random, page_tokens, Lengths(AppendChunks()));
      const std::vector<RowSpan> spans = SpansOf(random, AppendChunks(), paging);
      const Shape shape{paging.pages(), page_tokens, c_width};
      Values pool = RoundCompressed(random.Normal(shape.elements(), 1), c_width, DType::kInt8);
      const GoldCache cache{device.New(DType::kU16, {paging.pages(), page_tokens}),
                            device.PutCompressed(pool, shape, DType::kInt8)};
      const Values c = random.Normal(rows * c_width, 1, act());
      const Tensor stored = device.New(DType::kInt8, {rows, CompressedRowWidth(DType::kInt8, c_width)});
      device->Convert(device.Put(c, {rows, c_width}, act()), stored);
      device->GoldAppend(random.Ids(rows, 65536), stored, spans, cache);
      WritePages(RoundCompressed(c, c_width, DType::kInt8), spans, paging, c_width, pool);
      ExpectSame(device.GetCompressed(cache.c), pool, shape.ToString());
    }
  }
}

// The bytes are those of plain code, and so the same on every back end.
TEST_P(BackendTest, ConvertsTo8BitRows) {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  constexpr double kNan = std::numeric_limits<double>::quiet_NaN(), kLargest = 0x1.fffffep127;
  for (int64_t width : {1, 3, 16, 33, 128, 256}) {
    Values x;
    const auto add = [&](double deviation) {
      const Values row = random.Normal(width, deviation);
      x.insert(x.end(), row.begin(), row.end());
      return x.end() - width;
    };
    // Ordinary rows, of any magnitude; then one element far above the others, half-way quotients, zeros.
    for (int exponent = -140; exponent <= 120; exponent += 13) add(std::ldexp(1, exponent));
    for (int i = 0; i < (slow() ? 3 : 30); ++i) add(1);
    *add(1) = -1e6;
    const auto half_ways = add(0);
    for (int64_t i = 0; i < width; ++i) half_ways[i] = i == 0 ? 127 : static_cast<double>(i % 100) - 49.5;
    add(0);
    *add(0) = -0.;
    // The limits of fp32, infinities and NaN.
    *add(0) = kLargest;
    *add(1) = -kLargest;
    *add(0) = 0x1p-149;
    *add(0) = 0x1p-127;
    for (double fault : {kNan, kInfinity, -kInfinity}) *(add(1) + width - 1) = fault;
    *add(kLargest / 4) = kNan;
    const auto rows = static_cast<int64_t>(x.size()) / width;
    for (DType dtype : row_dtypes()) {
      const Values given = Round(x, dtype);
      const Tensor converted = device.New(DType::kInt8, {rows, CompressedRowWidth(DType::kInt8, width)});
      device->Convert(device.Put(given, {rows, width}, dtype), converted);
      const std::string what = "width " + std::to_string(width) + " from " + Name(dtype);
      EXPECT_EQ(device.GetBytes(converted), device.GetBytes(device.PutCompressed(given, {rows, width}, DType::kInt8)))
          << what;
      const Values stored = device.GetCompressed(converted);
      for (int64_t row = 0; row < rows; ++row) {
        const Values in = Slot(given, static_cast<int>(row), width), out = Slot(stored, static_cast<int>(row), width);
        const bool finite = std::all_of(in.begin(), in.end(), [](double value) { return std::isfinite(value); });
        double largest = 0;
        for (double value : in) largest = std::max(largest, std::abs(value));
        for (int64_t i = 0; i < width; ++i) {
          if (!finite) {
            EXPECT_TRUE(std::isnan(out[i])) << what << ", row " << row;
          } else if (largest == 0 || largest > 0x1p-118) {
            // Half a scale, which itself is rounded to 8 digits.
            EXPECT_LE(std::abs(out[i] - in[i]), largest / 254 * (1 + 0x1p-8)) << what << ", row " << row;
          } else {
            EXPECT_LE(std::abs(out[i]), 2 * largest) << what << ", row " << row;
          }
        }
      }
    }
  }
}

TEST_P(BackendTest, KvAppend) {
  for (int64_t width : {16, 17, 64, 130}) {
    for (int64_t page_tokens : {1, 16, 37}) {
      const Paging paging(random, page_tokens, Lengths(AppendChunks()));
      const std::vector<RowSpan> spans = SpansOf(random, AppendChunks(), paging);
      const int64_t rows = RowCount(AppendChunks());
      if (TooSlow(5 * rows * width)) continue;
      const Values k = random.Normal(rows * width, 1, act()), v = random.Normal(rows * width, 1, act());
      const Shape shape{paging.pages(), page_tokens, width};
      Values keys = random.Normal(shape.elements(), 1, cache_dtype()),
             values = random.Normal(shape.elements(), 1, cache_dtype());
      const KvCache cache{device.Put(keys, shape, cache_dtype()), device.Put(values, shape, cache_dtype())};
      device->KvAppend(device.Put(k, {rows, width}, act()), device.Put(v, {rows, width}, act()), spans, cache);
      WritePages(Round(k, cache_dtype()), spans, paging, width, keys);
      WritePages(Round(v, cache_dtype()), spans, paging, width, values);
      ExpectSame(device.Get(cache.keys), keys, "keys");
      ExpectSame(device.Get(cache.values), values, "values");
    }
  }
}

// Ties go to even, subnormal numbers keep their digits, numbers that are too large become the largest, and a NaN stays
// a NaN.
TEST_P(BackendTest, CachesRoundToNearest) {
  Values x = {0.,          -0.,     1.,      65504.,    65519.,    65520.,  -65520., 1e6,          -1e6,        0x1p-14,
              0x1.ffcp-15, 0x1p-24, 0x1p-25, 0x1.8p-25, 0x1.8p-24, 0x1p-26, 1e-30,   0x1.ffffp-15, 0x1.fffffep0};
  if (cache_dtype() != DType::kF16) x.insert(x.end(), {1e30, -3e38, 0x1p-126, 0x1p-133});
  // Half-way between neighbors of either type, just below, and just above.
  for (int fraction = 0; fraction < 64; ++fraction) {
    for (int digits : {8, 11}) {
      const double half_way = 1 + std::ldexp(2 * fraction + 1, -digits);
      for (double value : {half_way, half_way - 0x1p-23, half_way + 0x1p-23}) {
        for (int exponent : {0, 5, -13, -15, -20}) {
          x.push_back(std::ldexp(fraction % 2 == 0 ? value : -value, exponent));
        }
      }
    }
  }
  for (double value : random.Uniform(slow() ? 300 : 3000, -40, 16)) {
    x.push_back(Round(std::exp2(value), DType::kF32));
  }
  x.push_back(std::numeric_limits<double>::quiet_NaN());
  const auto width = static_cast<int64_t>(x.size());
  const auto check = [&](Values stored, const Values& given, const std::string& what) {
    ASSERT_FALSE(stored.empty());
    EXPECT_TRUE(std::isnan(stored.back())) << what;
    stored.pop_back();
    Values expected = Round(given, cache_dtype());
    expected.pop_back();
    ExpectSame(stored, expected, what + " to " + Name(cache_dtype()));
  };
  for (DType dtype : row_dtypes()) {
    const Values given = Round(x, dtype);
    const Tensor rows = device.Put(given, {1, width}, dtype), converted = device.New(cache_dtype(), {1, width});
    device->Convert(rows, converted);
    check(device.Get(converted), given, std::string("converted from ") + Name(dtype));
    if (dtype != act()) continue;
    const Shape shape{1, 1, width};
    const KvCache cache{device.New(cache_dtype(), shape), device.New(cache_dtype(), shape)};
    const int32_t page = 0;
    device->KvAppend(rows, rows, std::vector<RowSpan>{{.row_count = 1, .pages = &page}}, cache);
    check(device.Get(cache.keys), given, std::string("appended from ") + Name(dtype));
  }
}

}  // namespace
}  // namespace goldfinch
