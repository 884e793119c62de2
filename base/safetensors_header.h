// The header of safetensors files: its length in 8 bytes, then JSON; the tensors' bytes follow.
#ifndef GOLDFINCH_BASE_SAFETENSORS_HEADER_H_
#define GOLDFINCH_BASE_SAFETENSORS_HEADER_H_

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace goldfinch {

constexpr size_t kSafetensorsLengthBytes = 8;
// The format's own limit.
constexpr int64_t kSafetensorsHeaderBytesMax = 100'000'000;

// A tensor as the header describes it.
struct SafetensorsEntry {
  std::string name;  // not empty, and unlike all others of its file
  std::string dtype;
  std::vector<uint64_t> shape;         // at most 4 numbers
  std::vector<uint64_t> data_offsets;  // begin and end, counted from the end of the header
  bool has_shape = false;              // always, once the header has been read
};

struct SafetensorsHeader {
  std::vector<SafetensorsEntry> entries;        // in the order of the header
  std::map<std::string, std::string> metadata;  // what the file says of itself
  uint64_t data_bytes = 0;                      // of all tensors together
};

// The length that the first kSafetensorsLengthBytes of a file give. INVALID_ARGUMENT if it is more than `bytes_max`.
absl::StatusOr<size_t> SafetensorsHeaderBytes(std::string_view first, int64_t bytes_max = kSafetensorsHeaderBytesMax);

// Reads the JSON. As the format asks, the tensors must fill the data behind the header without holes and without
// overlap: all `data_bytes`, if these are known. Types, and whether shapes agree with offsets, are left to the caller.
// Takes memory in proportion to `json`. Errors name the tensor: INVALID_ARGUMENT.
absl::StatusOr<SafetensorsHeader> ParseSafetensorsHeader(std::string_view json,
                                                         std::optional<uint64_t> data_bytes = std::nullopt);

}  // namespace goldfinch

#endif  // GOLDFINCH_BASE_SAFETENSORS_HEADER_H_
