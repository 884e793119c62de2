#include "kernels/backend_test_util.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <numeric>
#include <ostream>
#include <utility>

namespace goldfinch {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kInfinity = std::numeric_limits<double>::infinity();

uint64_t Seed() {
  const char* text = std::getenv("GOLDFINCH_TEST_SEED");
  return text == nullptr ? 20240712 : std::strtoull(text, nullptr, 0);
}

// What distinguishes a 16-bit floating-point type.
struct Half {
  int digits;    // of the significand, with the hidden one
  int exponent;  // of the smallest normal number, as frexp gives it
  uint16_t nan;
  uint16_t largest;
};
constexpr Half kHalf{11, -13, 0x7E00, 0x7BFF};
constexpr Half kBrain{8, -125, 0x7FC0, 0x7F7F};

const Half& HalfOf(DType dtype) { return dtype == DType::kF16 ? kHalf : kBrain; }

uint16_t EncodeHalf(double value, const Half& half) {
  if (std::isnan(value)) return half.nan;
  int exponent;
  std::frexp(value, &exponent);
  exponent = value == 0 ? half.exponent : std::max(exponent, half.exponent);
  // In units of the last digit. The hidden digit, if it is set, carries into the exponent.
  const auto units = static_cast<int64_t>(std::nearbyint(std::ldexp(std::abs(value), half.digits - exponent)));
  const int64_t bits = (static_cast<int64_t>(exponent - half.exponent) << (half.digits - 1)) + units;
  return static_cast<uint16_t>(std::min<int64_t>(bits, half.largest) | (std::signbit(value) ? 0x8000 : 0));
}

double DecodeHalf(uint16_t bits, const Half& half) {
  const int magnitude = bits & 0x7FFF, fraction_bits = half.digits - 1;
  if (magnitude > half.largest + 1) return kNan;
  if (magnitude > half.largest) return bits >= 0x8000 ? -kInfinity : kInfinity;
  const int hidden = magnitude >> fraction_bits == 0 ? 0 : 1;
  const int fraction = magnitude & ((1 << fraction_bits) - 1);
  const int exponent = std::max(magnitude >> fraction_bits, 1) - 1 + half.exponent - half.digits;
  return std::copysign(std::ldexp(fraction + (hidden << fraction_bits), exponent), bits >= 0x8000 ? -1 : 1);
}

// A table, because most of a test's time would go into the conversions above. A 16-bit type has only 65536 patterns.
double DecodeHalf(uint16_t bits, DType dtype) {
  static const std::array<Values, 2>& tables = *[] {
    auto* made = new std::array<Values, 2>;
    for (int i = 0; i < 0x10000; ++i) {
      (*made)[0].push_back(DecodeHalf(i, kHalf));
      (*made)[1].push_back(DecodeHalf(i, kBrain));
    }
    return made;
  }();
  return tables[dtype == DType::kF16 ? 0 : 1][bits];
}

void Encode(double value, DType dtype, void* to) {
  switch (dtype) {
    case DType::kF32: {
      const auto rounded = static_cast<float>(value);
      std::memcpy(to, &rounded, sizeof(rounded));
      return;
    }
    case DType::kF16:
    case DType::kBf16: {
      const uint16_t bits = EncodeHalf(value, HalfOf(dtype));
      std::memcpy(to, &bits, sizeof(bits));
      return;
    }
    case DType::kU16: {
      const uint16_t id = std::isnan(value) ? 0xFFFF : static_cast<uint16_t>(value);
      std::memcpy(to, &id, sizeof(id));
      return;
    }
    case DType::kI32: {
      const int32_t id = std::isnan(value) ? -1 : static_cast<int32_t>(value);
      std::memcpy(to, &id, sizeof(id));
      return;
    }
    case DType::kU8:
    case DType::kInt8:
    case DType::kInt4:
      GF_CHECK(false) << Name(dtype);
  }
}

double Decode(const void* from, DType dtype) {
  uint32_t bits = 0;
  std::memcpy(&bits, from, SizeOf(dtype));
  switch (dtype) {
    case DType::kF32: {
      float value;
      std::memcpy(&value, &bits, sizeof(value));
      return value;
    }
    case DType::kF16:
    case DType::kBf16:
      return DecodeHalf(static_cast<uint16_t>(bits), dtype);
    case DType::kU16:
      return bits;
    case DType::kI32:
      return static_cast<int32_t>(bits);
    case DType::kU8:
    case DType::kInt8:
    case DType::kInt4:
      GF_CHECK(false) << Name(dtype);
  }
  return kNan;
}

// A row of the compressed cache in 8 bits, as CompressedRowWidth in kernels/backend.h defines it.
struct QuantizedRow {
  std::vector<int8_t> numbers;
  uint16_t scale_bits = 0;

  double scale() const { return DecodeHalf(scale_bits, DType::kBf16); }
};

QuantizedRow Quantize(const double* x, int64_t width) {
  QuantizedRow row{std::vector<int8_t>(width)};
  double largest = 0;
  for (int64_t i = 0; i < width; ++i) {
    // Not `>`, so that a NaN stays.
    if (!(std::abs(x[i]) <= largest)) largest = std::abs(x[i]);
    if (std::isnan(x[i])) break;
  }
  if (!std::isfinite(largest)) largest = kNan;
  row.scale_bits = EncodeHalf(Round(largest / 127, DType::kF32), kBrain);
  for (int64_t i = 0; i < width && row.scale() > 0; ++i) {
    const double quotient = std::nearbyint(Round(x[i] / row.scale(), DType::kF32));
    row.numbers[i] = static_cast<int8_t>(std::clamp(quotient, -127., 127.));
  }
  return row;
}

Shape RowsShape(const Shape& shape, int64_t width) {
  GF_CHECK(shape.rank() == 2 || shape.rank() == 3);
  return shape.rank() == 2 ? Shape{shape[0], width} : Shape{shape[0], shape[1], width};
}

double Norm(const double* x, int64_t count) {
  double square = 0;
  for (int64_t i = 0; i < count; ++i) square += x[i] * x[i];
  return std::sqrt(square);
}

}  // namespace

void PrintTo(const Case& test_case, std::ostream* out) { *out << test_case.name; }

uint64_t TestRandom::Next() {  // SplitMix64
  uint64_t z = state_ += 0x9E3779B97F4A7C15;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EB;
  return z ^ (z >> 31);
}

Values TestRandom::Uniform(int64_t count, double low, double high, DType dtype) {
  Values values(count);
  for (double& value : values) {
    value = Round(low + (high - low) * std::ldexp(static_cast<double>(Next() >> 11), -53), dtype);
  }
  return values;
}

Values TestRandom::Normal(int64_t count, double deviation, DType dtype) {
  Values values(count);
  for (double& value : values) {
    // Four 16-bit numbers: a sum of variance 4 / 12.
    const uint64_t bits = Next();
    double sum = 0;
    for (int shift = 0; shift < 64; shift += 16) {
      sum += std::ldexp(static_cast<double>(bits >> shift & 0xFFFF) + 0.5, -16) - 0.5;
    }
    value = Round(sum * std::sqrt(3.) * deviation, dtype);
  }
  return values;
}

std::vector<int32_t> TestRandom::Ids(int64_t count, int64_t vocab) {
  std::vector<int32_t> ids(count);
  for (int32_t& id : ids) id = static_cast<int32_t>(Below(vocab));
  return ids;
}

std::vector<int32_t> TestRandom::Permutation(int64_t count) {
  std::vector<int32_t> order(count);
  std::iota(order.begin(), order.end(), 0);
  for (int64_t i = count - 1; i > 0; --i) std::swap(order[i], order[Below(i + 1)]);
  return order;
}

double Round(double value, DType dtype) {
  return dtype == DType::kF32 ? static_cast<float>(value) : DecodeHalf(EncodeHalf(value, HalfOf(dtype)), dtype);
}

Values Round(Values values, DType dtype) {
  for (double& value : values) value = Round(value, dtype);
  return values;
}

Values RoundCompressed(const Values& rows, int64_t width, DType dtype) {
  if (dtype != DType::kInt8) return Round(rows, dtype);
  Values rounded;
  rounded.reserve(rows.size());
  for (size_t at = 0; at < rows.size(); at += width) {
    const QuantizedRow row = Quantize(rows.data() + at, width);
    for (const int8_t q : row.numbers) rounded.push_back(q * row.scale());
  }
  return rounded;
}

double RoundingError(DType dtype) { return dtype == DType::kF32 ? 0x1p-24 : std::ldexp(1, -HalfOf(dtype).digits); }

double SmallestNormal(DType dtype) { return dtype == DType::kF16 ? 0x1p-14 : 0x1p-126; }

Tensor Device::New(DType dtype, const Shape& shape) {
  Tensor tensor{nullptr, dtype, shape};
  const int64_t bytes = tensor.bytes();
  if (backend_->kind() == DeviceKind::kCpu) {
    const int64_t offset = SizeOf(dtype);
    memory_.emplace_back(std::malloc(offset + bytes), std::free);
    tensor.data = static_cast<char*>(memory_.back().get()) + offset;
    std::memset(tensor.data, 0xFF, bytes);
  } else {
    memory_.push_back(backend_->Allocate(bytes, "test").value());
    tensor.data = memory_.back().get();
    backend_->CopyFromHost(std::vector<char>(bytes, '\xFF').data(), tensor);
  }
  return tensor;
}

Tensor Device::Put(const Values& values, const Shape& shape, DType dtype) {
  const Tensor tensor = New(dtype, shape);
  GF_CHECK_EQ(static_cast<int64_t>(values.size()), shape.elements());
  std::vector<char> host(tensor.bytes());
  for (size_t i = 0; i < values.size(); ++i) Encode(values[i], dtype, host.data() + i * SizeOf(dtype));
  backend_->CopyFromHost(host.data(), tensor);
  return tensor;
}

Tensor Device::PutCompressed(const Values& rows, const Shape& shape, DType dtype) {
  if (dtype != DType::kInt8) return Put(rows, shape, dtype);
  GF_CHECK_EQ(static_cast<int64_t>(rows.size()), shape.elements());
  const int64_t width = shape[shape.rank() - 1];
  std::vector<char> host;
  for (size_t at = 0; at < rows.size(); at += width) {
    const QuantizedRow row = Quantize(rows.data() + at, width);
    host.insert(host.end(), row.numbers.begin(), row.numbers.end());
    host.push_back(static_cast<char>(row.scale_bits & 0xFF));
    host.push_back(static_cast<char>(row.scale_bits >> 8));
  }
  const Tensor tensor = New(dtype, RowsShape(shape, CompressedRowWidth(dtype, width)));
  GF_CHECK_EQ(static_cast<int64_t>(host.size()), tensor.bytes());
  backend_->CopyFromHost(host.data(), tensor);
  return tensor;
}

Matrix Device::Put(const reference::Weight& weight, DType dtype) {
  const bool out_in = weight.layout == Matrix::Layout::kOutIn;
  const Shape shape = out_in ? Shape{weight.out, weight.in} : Shape{weight.in, weight.out};
  return {Put(weight.data, shape, dtype), weight.layout};
}

NormWeights Device::Put(const reference::Norm& norm) {
  const auto width = static_cast<int64_t>(norm.weight.size());
  return {Put(norm.weight, {width}), Put(norm.bias, {width})};
}

std::vector<char> Device::GetBytes(ConstTensor tensor) {
  std::vector<char> host(tensor.bytes());
  backend_->CopyToHost(tensor, host.data());
  const absl::Status status = backend_->Synchronize();
  EXPECT_TRUE(status.ok()) << status.ToString();
  return host;
}

Values Device::Get(ConstTensor tensor) {
  const std::vector<char> host = GetBytes(tensor);
  Values values(tensor.shape.elements());
  for (size_t i = 0; i < values.size(); ++i) values[i] = Decode(host.data() + i * SizeOf(tensor.dtype), tensor.dtype);
  return values;
}

Values Device::GetCompressed(ConstTensor rows) {
  if (rows.dtype != DType::kInt8) return Get(rows);
  const std::vector<char> host = GetBytes(rows);
  const int64_t row_width = rows.dim(rows.shape.rank() - 1), width = row_width - CompressedRowWidth(DType::kInt8, 0);
  Values values;
  for (size_t at = 0; at < host.size(); at += row_width) {
    uint16_t scale_bits;
    std::memcpy(&scale_bits, host.data() + at + width, sizeof(scale_bits));
    const double scale = DecodeHalf(scale_bits, DType::kBf16);
    for (int64_t i = 0; i < width; ++i) values.push_back(static_cast<int8_t>(host[at + i]) * scale);
  }
  return values;
}

void ExpectClose(const Values& actual, const Values& expected, int64_t width, double tolerance, const std::string& what,
                 double unit) {
  ASSERT_EQ(actual.size(), expected.size()) << what;
  if (expected.empty()) return;
  const int64_t rows = static_cast<int64_t>(expected.size()) / width;
  const double typical =
      std::max(Norm(expected.data(), rows * width) / std::sqrt(rows), unit * std::sqrt(static_cast<double>(width)));
  double square = 0;
  for (int64_t row = 0; row < rows; ++row) {
    double row_square = 0;
    for (int64_t i = row * width; i < (row + 1) * width; ++i) {
      const double error = actual[i] - expected[i];
      row_square += error * error;
    }
    square += row_square;
    const double scale = std::max(Norm(expected.data() + row * width, width), typical);
    // Written so that a NaN fails. Single rows vary more than their mean.
    if (!(std::sqrt(row_square) <= 4 * tolerance * scale)) {
      int64_t worst = row * width;
      for (int64_t i = worst; i < (row + 1) * width; ++i) {
        if (!(std::abs(actual[i] - expected[i]) <= std::abs(actual[worst] - expected[worst]))) worst = i;
      }
      FAIL() << what << ": row " << row << " of " << rows << " has relative error " << std::sqrt(row_square) / scale
             << ", tolerance " << 4 * tolerance << "; column " << worst % width << " is " << actual[worst]
             << ", expected " << expected[worst];
    }
  }
  EXPECT_LE(std::sqrt(square), tolerance * typical * std::sqrt(rows)) << what;
}

void ExpectSame(const Values& actual, const Values& expected, const std::string& what) {
  ASSERT_EQ(actual.size(), expected.size()) << what;
  for (size_t i = 0; i < actual.size(); ++i) {
    // As numbers, two zeros would be equal and two NaNs would not.
    if (std::bit_cast<uint64_t>(actual[i]) == std::bit_cast<uint64_t>(expected[i])) continue;
    FAIL() << what << ": element " << i << " is " << testing::PrintToString(actual[i]) << ", expected "
           << testing::PrintToString(expected[i]);
  }
}

std::vector<RowSpan> MakeSpans(TestRandom& random, const std::vector<int>& counts, int slots) {
  GF_CHECK_GE(slots, static_cast<int>(counts.size()));
  const std::vector<int32_t> order = random.Permutation(slots);
  std::vector<RowSpan> spans;
  int row = 0;
  for (size_t i = 0; i < counts.size(); ++i) {
    spans.push_back({.slot = order[i], .row_begin = row, .row_count = counts[i]});
    row += counts[i];
  }
  return spans;
}

Values RowsOf(const Values& x, const RowSpan& span, int64_t width) {
  const auto begin = x.begin() + span.row_begin * width;
  return Values(begin, begin + span.row_count * width);
}

void SetRows(const Values& rows, const RowSpan& span, int64_t width, Values& x) {
  std::copy(rows.begin(), rows.end(), x.begin() + span.row_begin * width);
}

Values Slot(const Values& state, int slot, int64_t size) {
  return Values(state.begin() + slot * size, state.begin() + (slot + 1) * size);
}

void SetSlot(const Values& values, int slot, Values& state) {
  std::copy(values.begin(), values.end(), state.begin() + slot * static_cast<int64_t>(values.size()));
}

int64_t RowCount(const std::vector<int>& counts) { return std::accumulate(counts.begin(), counts.end(), int64_t{0}); }

reference::GoldLayer RandomGoldLayer(TestRandom& random, const GoldSizes& sizes, DType dtype) {
  const int64_t width = sizes.width;
  const auto weight = [&](int64_t in, int64_t out, Matrix::Layout layout) {
    return reference::Weight{random.Normal(in * out, 1 / std::sqrt(in), dtype), in, out, layout};
  };
  const auto norm = [&] { return reference::Norm{random.Uniform(width, 0.5, 1.5), random.Normal(width, 0.2)}; };
  using enum Matrix::Layout;
  reference::GoldLayer layer;
  layer.width = width;
  layer.head_size = sizes.head_size;
  layer.embedding = random.Normal(sizes.vocab * width, 1, dtype);
  layer.ln0 = norm();
  layer.key_x0 = weight(width, width, kOutIn);
  layer.key_compressed = weight(width / 16, width, kOutIn);
  layer.mix_lora = random.Uniform(width, 0, 1);
  layer.mix_key = random.Uniform(width, 0, 1);
  layer.mix_value = random.Uniform(width, 0, 1);
  layer.mix_down = weight(width, 2 * sizes.mix_rank, kInOut);
  layer.mix_up = random.Normal(2 * sizes.mix_rank * width, 0.5, dtype);
  layer.key_down = weight(width, sizes.lora_rank, kInOut);
  layer.key_up = weight(sizes.lora_rank, width, kInOut);
  layer.value_down = weight(width, sizes.lora_rank, kInOut);
  layer.value_up = weight(sizes.lora_rank, width, kInOut);
  layer.ln_key = norm();
  layer.ln_value = norm();
  layer.rope_base = sizes.rope_base;
  return layer;
}

GoldSharedWeights PutGoldShared(Device& device, const reference::GoldLayer& layer, DType dtype) {
  const int64_t vocab = static_cast<int64_t>(layer.embedding.size()) / layer.width;
  return {.embedding = device.Put(layer.embedding, {vocab, layer.width}, dtype),
          .ln0 = device.Put(layer.ln0),
          .key_compressed = device.Put(layer.key_compressed, dtype),
          .key_table = device.Put(reference::GoldKeyTable(layer), {vocab, layer.width}, device->activation_dtype())};
}

GoldKvWeights PutGoldWeights(Device& device, const reference::GoldLayer& layer, DType dtype) {
  const int64_t vocab = static_cast<int64_t>(layer.embedding.size()) / layer.width;
  return {.mix_lora = device.Put(layer.mix_lora, {layer.width}),
          .mix_key = device.Put(layer.mix_key, {layer.width}),
          .mix_value = device.Put(layer.mix_value, {layer.width}),
          .mix_down = device.Put(layer.mix_down, dtype),
          .mix_up = device.Put(layer.mix_up, {2, layer.mix_down.out / 2, layer.width}, dtype),
          .key_down = device.Put(layer.key_down, dtype),
          .key_up = device.Put(layer.key_up, dtype),
          .value_down = device.Put(layer.value_down, dtype),
          .value_up = device.Put(layer.value_up, dtype),
          .ln_key = device.Put(layer.ln_key),
          .ln_value = device.Put(layer.ln_value),
          .mix_table = device.Put(reference::GoldMixTable(layer), {vocab, 2, layer.mix_down.out}),
          .rope_base = layer.rope_base};
}

Values IdValues(const std::vector<int32_t>& ids) { return Values(ids.begin(), ids.end()); }

std::vector<DType> BackendTest::row_dtypes() const {
  if (act() == DType::kF32) return {DType::kF32};
  return {DType::kF32, act()};
}

BackendTest::BackendTest()
    : seed_(Seed()),
      trace_(__FILE__, __LINE__, "GOLDFINCH_TEST_SEED=" + std::to_string(seed_)),
      random(seed_),
      device(GetParam().make(1)) {}

}  // namespace goldfinch
