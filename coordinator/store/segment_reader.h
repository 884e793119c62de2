// Reads the file of a segment, block by block.
#ifndef GOLDFINCH_COORDINATOR_STORE_SEGMENT_READER_H_
#define GOLDFINCH_COORDINATOR_STORE_SEGMENT_READER_H_

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "coordinator/store/file_format.h"
#include "coordinator/store/files.h"
#include "coordinator/store/store.h"

namespace goldfinch {

// Made by SegmentStore::Load. Every call to read waits for the disk; one thread at a time. It keeps one block (1 MiB)
// in memory, so reading a section from its beginning to its end, in pieces of any size, reads the disk once.
//
// No byte is returned before the checksum of its block has been verified. A damaged block is DATA_LOSS, and so is
// everything that is read from then on: the store has quarantined the segment. NOT_FOUND for sections of a snapshot
// that was dropped meanwhile.
class SegmentReader {
 public:
  const SegmentSpec& segment() const { return header_.segment; }
  const SegmentKey& key() const { return header_.key; }
  const SegmentLayout& layout() const { return header_.layout; }

  // Ids [first, first + ids.size()) of the segment. OUT_OF_RANGE if it has fewer.
  absl::Status ReadIds(int64_t first, absl::Span<int32_t> ids);
  // Bytes [offset, offset + bytes.size()) of a section. OUT_OF_RANGE if it has fewer.
  absl::Status Read(int section, int64_t offset, absl::Span<char> bytes);
  // The CRC-32C of a whole section, from the header.
  uint32_t Checksum(int section) const;
  // Reads everything: OK if all of it is undamaged, and if the ids give the key.
  absl::Status Verify();

 private:
  friend class SegmentStore;

  SegmentReader(SegmentStore* store, uint64_t serial, SegmentHeader header, OpenFile file);

  absl::Status LoadBlock(int section, int64_t block);
  // The error for a section whose bytes are not right: its snapshot was dropped, or it is damaged.
  absl::Status Lost(int section, const absl::Status& status);

  SegmentStore* const store_;
  const uint64_t serial_;
  SegmentHeader header_;
  OpenFile file_;
  std::string block_;  // bytes of the block below
  int block_section_ = -1;
  int64_t block_number_ = -1;
  absl::Status status_;  // set when damage has been found
};

}  // namespace goldfinch

#endif  // GOLDFINCH_COORDINATOR_STORE_SEGMENT_READER_H_
