// Tensors as the kernels see them: a typed pointer with a shape. They own nothing.
#ifndef GOLDFINCH_KERNELS_TENSOR_H_
#define GOLDFINCH_KERNELS_TENSOR_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>

#include "base/check.h"

namespace goldfinch {

// Weights, activations and caches have one of the first three types, token ids one of the next two. kInt8 and kInt4 are
// quantized matrices (kernels/quantize.h), and kInt8 is also rows of the compressed cache (CompressedRowWidth in
// kernels/backend.h). kU8 is raw bytes, interpreted by their reader.
enum class DType : uint8_t { kF32, kF16, kBf16, kU16, kI32, kInt8, kInt4, kU8 };

constexpr bool IsQuantized(DType dtype) { return dtype == DType::kInt8 || dtype == DType::kInt4; }

// Bytes of that many elements; an even number of them for kInt4.
constexpr int64_t BytesOf(DType dtype, int64_t elements) {
  switch (dtype) {
    case DType::kF32:
    case DType::kI32:
      return elements * 4;
    case DType::kF16:
    case DType::kBf16:
    case DType::kU16:
      return elements * 2;
    case DType::kInt8:
    case DType::kU8:
      return elements;
    case DType::kInt4:
      return elements / 2;
  }
  return 0;
}

// Bytes of one element. Not for kInt4, two of which share a byte.
constexpr int64_t SizeOf(DType dtype) { return BytesOf(dtype, 1); }

// Types whose elements are numbers by themselves have the short names of their kind and width: "f32", "f16", "bf16",
// "u16", "i32", "u8". The two quantized types have the names of their formats, as users write them: "int8", "int4".
const char* Name(DType dtype);
// Accepts the names of the floating-point types only.
std::optional<DType> ParseFloatDType(std::string_view name);

// Up to four dimensions, row-major and dense. An empty (rank 0) shape means "not given".
class Shape {
 public:
  Shape() = default;
  Shape(std::initializer_list<int64_t> dims) {
    GF_CHECK_LE(dims.size(), dims_.size());
    for (int64_t dim : dims) dims_[rank_++] = dim;
  }

  int rank() const { return rank_; }
  int64_t operator[](int axis) const { return dims_[axis]; }
  int64_t elements() const {
    int64_t product = rank_ == 0 ? 0 : 1;
    for (int axis = 0; axis < rank_; ++axis) product *= dims_[axis];
    return product;
  }
  bool operator==(const Shape& other) const { return rank_ == other.rank_ && dims_ == other.dims_; }

  Shape WithoutFirstAxis() const {
    Shape rest;
    for (int axis = 1; axis < rank_; ++axis) rest.dims_[rest.rank_++] = dims_[axis];
    return rest;
  }

  // "[160, 256]".
  std::string ToString() const;

 private:
  std::array<int64_t, 4> dims_{};
  int rank_ = 0;
};

// A dense read-only tensor in the memory of one back end. `ConstTensor{}` means "not given".
struct ConstTensor {
  const void* data = nullptr;
  DType dtype = DType::kF32;
  Shape shape;

  explicit operator bool() const { return data != nullptr; }
  int64_t dim(int axis) const { return shape[axis]; }
  int64_t bytes() const { return BytesOf(dtype, shape.elements()); }

  // The elements as fp32; the tensor must be fp32.
  const float* f32() const {
    GF_CHECK(dtype == DType::kF32);
    return static_cast<const float*>(data);
  }
};

// A dense writable tensor.
struct Tensor {
  void* data = nullptr;
  DType dtype = DType::kF32;
  Shape shape;

  explicit operator bool() const { return data != nullptr; }
  operator ConstTensor() const { return {data, dtype, shape}; }  // NOLINT: a writable tensor is a readable one.
  int64_t dim(int axis) const { return shape[axis]; }
  int64_t bytes() const { return BytesOf(dtype, shape.elements()); }

  float* f32() const {
    GF_CHECK(dtype == DType::kF32);
    return static_cast<float*>(data);
  }
};

// The part of a tensor at `index` of its first axis: [b, c] of [a, b, c].
inline Tensor Slice(const Tensor& tensor, int64_t index) {
  GF_CHECK(index >= 0 && index < tensor.dim(0));
  Tensor part{nullptr, tensor.dtype, tensor.shape.WithoutFirstAxis()};
  part.data = static_cast<char*>(tensor.data) + index * part.bytes();
  return part;
}

// Rows `first` to `first + count` of [rows, width].
template <class AnyTensor>
AnyTensor Rows(AnyTensor matrix, int64_t first, int64_t count) {
  GF_CHECK(first >= 0 && count >= 0 && first + count <= matrix.dim(0));
  const auto offset = BytesOf(matrix.dtype, first * matrix.dim(1));
  if constexpr (std::is_same_v<AnyTensor, Tensor>) {
    matrix.data = static_cast<char*>(matrix.data) + offset;
  } else {
    matrix.data = static_cast<const char*>(matrix.data) + offset;
  }
  matrix.shape = {count, matrix.dim(1)};
  return matrix;
}

}  // namespace goldfinch

#endif  // GOLDFINCH_KERNELS_TENSOR_H_
