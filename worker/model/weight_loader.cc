#include "worker/model/weight_loader.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/check.h"

namespace goldfinch {
namespace {

constexpr int64_t kPackedBytesMax = 1 << 20;  // of columns on their way to the back end

float HalfToFloat(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000) << 16;
  const uint32_t exponent = (bits >> 10) & 0x1F, mantissa = bits & 0x3FF;
  if (exponent == 0) {  // zero and subnormals: mantissa * 2^-24
    const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
    return sign != 0 ? -magnitude : magnitude;
  }
  const uint32_t wide_exponent = exponent == 0x1F ? 0xFF : exponent + 112;
  return std::bit_cast<float>(sign | wide_exponent << 23 | mantissa << 13);
}

std::string Dims(int64_t a, int64_t b) {
  return absl::StrCat("[", a < 0 ? "any" : absl::StrCat(a), ", ", b < 0 ? "any" : absl::StrCat(b), "]");
}

}  // namespace

std::vector<float> ToFloats(const ConstTensor& host) {
  const int64_t count = host.shape.elements();
  std::vector<float> values(count);
  if (host.dtype == DType::kF32) {
    std::memcpy(values.data(), host.data, count * sizeof(float));
    return values;
  }
  GF_CHECK(host.dtype == DType::kBf16 || host.dtype == DType::kF16) << Name(host.dtype);
  const auto* bits = static_cast<const uint16_t*>(host.data);
  for (int64_t i = 0; i < count; ++i) {
    values[i] =
        host.dtype == DType::kF16 ? HalfToFloat(bits[i]) : std::bit_cast<float>(static_cast<uint32_t>(bits[i]) << 16);
  }
  return values;
}

std::string WeightLoader::FullName(std::string_view name) const { return prefix_ + std::string(name); }

const CheckpointTensor* WeightLoader::Peek(std::string_view name) const { return checkpoint_.Find(FullName(name)); }

bool WeightLoader::Has(std::string_view name) const { return Peek(name) != nullptr; }

void WeightLoader::Fail(absl::Status status) {
  if (status_.ok()) status_ = std::move(status);
}

void WeightLoader::FailShape(const CheckpointTensor& tensor, const std::string& expected) {
  Fail(absl::InvalidArgumentError(absl::StrCat(checkpoint_.path(), ": tensor ", tensor.name, " is ",
                                               tensor.data.shape.ToString(), ", expected ", expected)));
}

const CheckpointTensor* WeightLoader::Take(std::string_view name) {
  if (!status_.ok()) return nullptr;
  const CheckpointTensor* tensor = Peek(name);
  if (tensor == nullptr) {
    Fail(absl::InvalidArgumentError(absl::StrCat(checkpoint_.path(), ": tensor ", FullName(name), " is missing")));
    return nullptr;
  }
  taken_.insert(tensor->name);
  return tensor;
}

const CheckpointTensor* WeightLoader::TakeFloats(std::string_view name) {
  const CheckpointTensor* tensor = Take(name);
  if (tensor == nullptr || !tensor->scales) return tensor;
  Fail(absl::InvalidArgumentError(absl::StrCat(checkpoint_.path(), ": tensor ", tensor->name, " is quantized to ",
                                               Name(tensor->data.dtype), ", which only linear layers can be")));
  return nullptr;
}

void WeightLoader::Ignore(std::string_view name) { taken_.insert(FullName(name)); }

void WeightLoader::IgnorePrefix(std::string_view full_prefix) {
  for (const CheckpointTensor& tensor : checkpoint_.tensors()) {
    if (tensor.name.starts_with(full_prefix)) taken_.insert(tensor.name);
  }
}

void WeightLoader::CheckAllTaken() {
  for (const CheckpointTensor& tensor : checkpoint_.tensors()) {
    if (!taken_.contains(tensor.name)) {
      Fail(absl::InvalidArgumentError(
          absl::StrCat(checkpoint_.path(), ": tensor ", tensor.name, " belongs to no layer of this model")));
      return;
    }
  }
}

int64_t WeightLoader::Dim(std::string_view name, int axis) {
  const CheckpointTensor* tensor = Take(name);
  if (tensor == nullptr) return 0;
  if (axis >= tensor->data.shape.rank()) {
    FailShape(*tensor, absl::StrCat("at least ", axis + 1, " axes"));
    return 0;
  }
  return tensor->data.dim(axis);
}

Tensor WeightLoader::Place(DType dtype, const Shape& shape) {
  static char nowhere;
  const Tensor tensor{measures() ? &nowhere : static_cast<char*>(arena_) + copied_bytes_, dtype, shape};
  copied_bytes_ += (tensor.bytes() + kTensorAlignment - 1) / kTensorAlignment * kTensorAlignment;
  return tensor;
}

ConstTensor WeightLoader::Import(ConstTensor host) {
  if (in_place_) {
    in_place_bytes_ += host.bytes();
    return host;
  }
  const Tensor copy = Place(host.dtype, host.shape);
  if (measures()) return copy;
  checkpoint_.ReadAhead(host.data, host.bytes());
  backend_->CopyFromHost(host.data, copy);
  checkpoint_.LetGo(host.data, host.bytes());
  return copy;
}

ConstTensor WeightLoader::Floats(const std::vector<float>& values, const Shape& shape) {
  if (!status_.ok()) return {};
  GF_CHECK_EQ(static_cast<int64_t>(values.size()), shape.elements());
  const Tensor tensor = Place(DType::kF32, shape);
  if (!measures()) backend_->CopyFromHost(values.data(), tensor);
  return tensor;
}

std::vector<float> WeightLoader::Values(std::string_view name, int64_t n) {
  const CheckpointTensor* tensor = TakeFloats(name);
  if (tensor == nullptr) return {};
  if (tensor->data.shape.elements() != n) {
    FailShape(*tensor, absl::StrCat(n, " elements"));
    return {};
  }
  if (measures()) return std::vector<float>(n);
  return ToFloats(tensor->data);
}

ConstTensor WeightLoader::Vector(std::string_view name, int64_t n) {
  const std::vector<float> values = Values(name, n);
  return values.empty() ? ConstTensor{} : Floats(values, {n});
}

ConstTensor WeightLoader::Stack(const std::vector<std::string>& names, int64_t n) {
  std::vector<float> all;
  for (const std::string& name : names) {
    const std::vector<float> values = Values(name, n);
    all.insert(all.end(), values.begin(), values.end());
  }
  return Floats(all, {static_cast<int64_t>(names.size()), n});
}

NormWeights WeightLoader::Norm(std::string_view name, int64_t n) {
  const std::string base(name);
  return {Vector(base + ".weight", n), Vector(base + ".bias", n)};
}

Matrix WeightLoader::Linear(std::string_view name, int64_t out, int64_t in) {
  const CheckpointTensor* tensor = Take(name);
  if (tensor == nullptr) return {};
  const Shape& shape = tensor->data.shape;
  if (shape.rank() != 2 || (out >= 0 && shape[0] != out) || (in >= 0 && shape[1] != in) || shape.elements() == 0) {
    FailShape(*tensor, Dims(out, in));
    return {};
  }
  if (!tensor->scales) return {Import(tensor->data), Matrix::Layout::kOutIn};
  ConstTensor data = tensor->data;
  if (tensor->by_input) data.shape = {shape[1], shape[0]};
  const Matrix::Layout layout = tensor->by_input ? Matrix::Layout::kInOut : Matrix::Layout::kOutIn;
  return {Import(data), layout, Import(tensor->scales)};
}

Matrix WeightLoader::Lora(std::string_view name, int64_t in, int64_t out) {
  if (TakeFloats(name) == nullptr) return {};
  Matrix matrix = Linear(name, in, out);
  matrix.layout = Matrix::Layout::kInOut;
  return matrix;
}

ConstTensor WeightLoader::Raw(std::string_view name, const Shape& shape) {
  const CheckpointTensor* tensor = TakeFloats(name);
  if (tensor == nullptr) return {};
  if (!(tensor->data.shape == shape)) {
    FailShape(*tensor, shape.ToString());
    return {};
  }
  return Import(tensor->data);
}

Matrix WeightLoader::LinearColumns(std::string_view name, int64_t out, int64_t in, int64_t begin, int64_t end) {
  const CheckpointTensor* tensor = TakeFloats(name);
  if (tensor == nullptr) return {};
  if (!(tensor->data.shape == Shape{out, in})) {
    FailShape(*tensor, Dims(out, in));
    return {};
  }
  const Tensor copy = Place(tensor->data.dtype, {out, end - begin});
  if (measures()) return {copy, Matrix::Layout::kOutIn};
  const int64_t size = SizeOf(copy.dtype), row_bytes = (end - begin) * size;
  checkpoint_.ReadAhead(tensor->data.data, tensor->data.bytes());
  // Some rows at a time.
  const int64_t rows_max = std::max<int64_t>(1, kPackedBytesMax / std::max<int64_t>(1, row_bytes));
  std::vector<char> packed(std::min(rows_max, out) * row_bytes);
  for (int64_t first = 0; first < out; first += rows_max) {
    const int64_t rows = std::min(rows_max, out - first);
    for (int64_t row = 0; row < rows; ++row) {
      std::memcpy(packed.data() + row * row_bytes,
                  static_cast<const char*>(tensor->data.data) + ((first + row) * in + begin) * size, row_bytes);
    }
    backend_->CopyFromHost(packed.data(),
                           {static_cast<char*>(copy.data) + first * row_bytes, copy.dtype, {rows, end - begin}});
  }
  if (!in_place_) checkpoint_.LetGo(tensor->data.data, tensor->data.bytes());
  return {copy, Matrix::Layout::kOutIn};
}

}  // namespace goldfinch
