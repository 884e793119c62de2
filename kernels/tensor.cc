#include "kernels/tensor.h"

#include "absl/strings/str_cat.h"

namespace goldfinch {

const char* Name(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return "f32";
    case DType::kF16:
      return "f16";
    case DType::kBf16:
      return "bf16";
    case DType::kU16:
      return "u16";
    case DType::kI32:
      return "i32";
    case DType::kInt8:
      return "int8";
    case DType::kInt4:
      return "int4";
    case DType::kU8:
      return "u8";
  }
  return "unknown";
}

std::optional<DType> ParseFloatDType(std::string_view name) {
  for (DType dtype : {DType::kF32, DType::kF16, DType::kBf16}) {
    if (name == Name(dtype)) return dtype;
  }
  return std::nullopt;
}

std::string Shape::ToString() const {
  std::string text = "[";
  for (int axis = 0; axis < rank_; ++axis) absl::StrAppend(&text, axis == 0 ? "" : ", ", dims_[axis]);
  return text + "]";
}

}  // namespace goldfinch
