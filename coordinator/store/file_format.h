// The bytes of the store's files. All numbers have their low byte first.
//
//   magic           8 bytes
//   version         4 bytes, kStoreVersion
//   fields_bytes    4 bytes
//   checksums       4 bytes, how many there are
//   fields          protocol buffer: SegmentFields or NameFields of store.proto
//   checksums       4 bytes each: CRC-32C of every block of every section, in their order; a block is kBlockBytes of
//                   a section, the last one of a section may be shorter
//   CRC-32C         4 bytes, of all bytes before
//   sections        of a segment, without gaps, as LayOut says
//
// To drop a segment's snapshot, its file is cut where the snapshot begins; a crash leaves the one length or the other.
// Any other length is damage.
#ifndef GOLDFINCH_COORDINATOR_STORE_FILE_FORMAT_H_
#define GOLDFINCH_COORDINATOR_STORE_FILE_FORMAT_H_

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "coordinator/store/segment.h"

namespace goldfinch {

inline constexpr uint32_t kStoreVersion = 1;
inline constexpr int64_t kBlockBytes = int64_t{1} << 20;
inline constexpr int64_t kFilePrefixBytes = 20;  // magic and numbers
inline constexpr int64_t kNameFileBytesMax = 4096;

// A name of a context, as it is kept.
struct ContextName {
  uint64_t id = 0;  // chosen by SegmentStore; stays when the context is renamed
  std::string name_space;
  std::string name;      // not empty; unique within its namespace
  SegmentKey segment{};  // the one in which the context ends
  int64_t position = 0;  // where it ends, at most the segment's end
  bool pinned = false;
  int64_t expires_unix_seconds = 0;  // 0: never
  int64_t keep_seconds = 0;          // a use puts the expiry off by so much; 0: it does not
  uint64_t revision = 0;             // 1 at first, one more after each change; the etag

  bool operator==(const ContextName&) const = default;
};

struct SegmentHeader {
  SegmentSpec segment;
  SegmentKey key{};
  SegmentLayout layout;
  std::vector<uint32_t> checksums;  // of all blocks
  int64_t header_bytes = 0;         // where the first section begins in the file

  // The first of a section's checksums.
  int64_t FirstBlock(int section) const;
  // The header as that of the same segment without its snapshot, as far as a reader sees it.
  void LeaveOutSnapshot();
  int64_t FileBytes(bool with_snapshot) const {
    return header_bytes + (with_snapshot ? layout.bytes : layout.bytes_before_snapshot);
  }
};

constexpr int64_t BlocksOf(int64_t bytes) { return (bytes + kBlockBytes - 1) / kBlockBytes; }

// The header before the bytes of its sections are known: all checksums are 0. INVALID_ARGUMENT as LayOut.
absl::StatusOr<SegmentHeader> NewSegmentHeader(const SegmentSpec& segment);
// The result has `header_bytes` bytes, whatever the key and the checksums are.
std::string EncodeSegmentHeader(const SegmentHeader& header);

// The length of the header of a file that begins with `prefix`, its first kFilePrefixBytes. DATA_LOSS if no file of a
// store begins so; FAILED_PRECONDITION if the file is of another version.
absl::StatusOr<int64_t> SegmentHeaderBytes(std::string_view prefix);
// Reads a whole header. It may be anything: the memory that this takes is in proportion to it, and what is returned has
// passed LayOut. DATA_LOSS, FAILED_PRECONDITION as above.
absl::StatusOr<SegmentHeader> DecodeSegmentHeader(std::string_view header);

// INVALID_ARGUMENT names the field.
absl::Status CheckName(const ContextName& name);
std::string EncodeName(const ContextName& name);
// Reads a whole file. DATA_LOSS, FAILED_PRECONDITION as above.
absl::StatusOr<ContextName> DecodeName(std::string_view file);

}  // namespace goldfinch

#endif  // GOLDFINCH_COORDINATOR_STORE_FILE_FORMAT_H_
