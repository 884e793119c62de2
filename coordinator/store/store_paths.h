// The names of a store's files, and how it reads their headers. Only for the store itself.
#ifndef GOLDFINCH_COORDINATOR_STORE_STORE_PATHS_H_
#define GOLDFINCH_COORDINATOR_STORE_STORE_PATHS_H_

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "coordinator/store/file_format.h"
#include "coordinator/store/files.h"

namespace goldfinch {

inline constexpr char kSegmentSuffix[] = ".segment";
inline constexpr char kNameSuffix[] = ".context";
inline constexpr char kPartialSuffix[] = ".partial";
inline constexpr char kQuarantineFolder[] = "quarantine";

std::string SegmentFileName(const SegmentKey& key);
// The key of the segment whose file has this name; nothing if no segment's has.
std::optional<SegmentKey> KeyOfFileName(std::string_view file_name);
std::string NameFileName(uint64_t id);

// Reads the header, and checks that the length of the file fits it. DATA_LOSS, FAILED_PRECONDITION as
// DecodeSegmentHeader, and FileError's. `file_bytes`, if not null, is set to the length of the file.
absl::StatusOr<SegmentHeader> ReadSegmentHeader(Files* files, const OpenFile& file, int64_t* file_bytes = nullptr);

}  // namespace goldfinch

#endif  // GOLDFINCH_COORDINATOR_STORE_STORE_PATHS_H_
