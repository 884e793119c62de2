// Reads a file whose size is bounded.
#ifndef GOLDFINCH_BASE_SMALL_FILE_H_
#define GOLDFINCH_BASE_SMALL_FILE_H_

#include <cstddef>
#include <string>

#include "absl/status/statusor.h"

namespace goldfinch {

// NOT_FOUND, PERMISSION_DENIED, DATA_LOSS, or INVALID_ARGUMENT if it has more than `bytes_max`; each names the file.
absl::StatusOr<std::string> ReadSmallFile(const std::string& path, size_t bytes_max);

}  // namespace goldfinch

#endif  // GOLDFINCH_BASE_SMALL_FILE_H_
