#include "worker/checkpoint/safetensors.h"

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "base/safe_text.h"
#include "base/safetensors_header.h"
#include "base/status.h"

namespace goldfinch {
namespace {

std::optional<DType> DTypeOf(std::string_view name) {
  if (name == "F32") return DType::kF32;
  if (name == "F16") return DType::kF16;
  if (name == "BF16") return DType::kBf16;
  if (name == "U8") return DType::kU8;  // of quantized matrices
  return std::nullopt;
}

}  // namespace

bool LooksLikeSafetensors(std::string_view file) {
  return file.size() > kSafetensorsLengthBytes && file[kSafetensorsLengthBytes] == '{';
}

absl::StatusOr<CheckpointLayout> ReadSafetensors(std::string_view file) {
  GF_ASSIGN_OR_RETURN(const size_t header_bytes, SafetensorsHeaderBytes(file));
  if (header_bytes > file.size() - kSafetensorsLengthBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("is cut short: its header has ", header_bytes, " bytes, the whole file ", file.size()));
  }
  const std::string_view data = file.substr(kSafetensorsLengthBytes + header_bytes);
  GF_ASSIGN_OR_RETURN(SafetensorsHeader header,
                      ParseSafetensorsHeader(file.substr(kSafetensorsLengthBytes, header_bytes), data.size()));

  CheckpointLayout layout;
  layout.metadata = std::move(header.metadata);
  for (const SafetensorsEntry& entry : header.entries) {
    const auto error = [&](const auto&... what) {
      return absl::InvalidArgumentError(absl::StrCat("tensor ", Quoted(entry.name), " ", what...));
    };
    const std::optional<DType> dtype = DTypeOf(entry.dtype);
    if (!dtype) return error("has dtype ", Quoted(entry.dtype), "; readable are F32, F16, BF16 and U8");
    const std::string_view bytes = data.substr(entry.data_offsets[0], entry.data_offsets[1] - entry.data_offsets[0]);
    StoredView view;
    view.rank = static_cast<int>(entry.shape.size());
    // Numbers beyond int64 become negative, which ElementsOf refuses.
    std::copy(entry.shape.begin(), entry.shape.end(), view.sizes.begin());
    const std::optional<int64_t> elements = ElementsOf(view);
    if (!elements) return error("has a shape that overflows");
    if (*elements != static_cast<int64_t>(bytes.size()) / SizeOf(*dtype) || bytes.size() % SizeOf(*dtype) != 0) {
      return error("has ", bytes.size(), " bytes, but its shape has ", *elements, " elements of ", SizeOf(*dtype),
                   " bytes");
    }
    SetDenseStrides(&view);
    layout.parts.push_back({entry.name, bytes, dtype, std::nullopt});
    GF_RETURN_IF_ERROR(layout.AddTensor(entry.name, static_cast<int>(layout.parts.size()) - 1, view,
                                        static_cast<int64_t>(file.size())));
  }
  return layout;
}

}  // namespace goldfinch
