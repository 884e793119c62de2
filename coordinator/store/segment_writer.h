// Writes the file of a segment as its bytes come.
#ifndef GOLDFINCH_COORDINATOR_STORE_SEGMENT_WRITER_H_
#define GOLDFINCH_COORDINATOR_STORE_SEGMENT_WRITER_H_

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "base/sha256.h"
#include "coordinator/store/file_format.h"
#include "coordinator/store/files.h"
#include "coordinator/store/store.h"

namespace goldfinch {

// Made by SegmentStore::Save. Every call waits for the disk; one thread at a time. The bytes of one section come in
// their order, in pieces of any size; pieces of different sections may alternate. Only checksums are kept in memory.
// Unless a Commit succeeds, all that was written is removed with the writer.
class SegmentWriter {
 public:
  ~SegmentWriter();
  SegmentWriter(const SegmentWriter&) = delete;
  SegmentWriter& operator=(const SegmentWriter&) = delete;

  const SegmentSpec& segment() const { return header_.segment; }
  const SegmentLayout& layout() const { return header_.layout; }

  // The next ids of the text. INVALID_ARGUMENT for one that is not in the vocabulary, and for more than the segment
  // has.
  absl::Status AppendIds(absl::Span<const int32_t> ids);
  // The next bytes of a section other than the ids, which is the first one. INVALID_ARGUMENT if that makes it too long.
  absl::Status Append(int section, std::string_view bytes);
  // Returns when the segment is on the disk and in the index: Seal and Publish in one. To be called once.
  absl::StatusOr<SegmentKey> Commit();
  // Returns when all bytes are on the disk, which may take long. INVALID_ARGUMENT if a section is not complete, or if
  // the ids give another key than the one that was asked for. To be called once.
  absl::StatusOr<SegmentKey> Seal();
  // Returns when what was sealed has its name and is in the index. ALREADY_EXISTS if the segment has been saved
  // meanwhile. After another error the segment may be there or not: SegmentStore::Find tells. To be called once.
  absl::Status Publish();
  // The key that the ids have given. After Seal, unless that was INVALID_ARGUMENT.
  const SegmentKey& key() const { return header_.key; }
  // All ids, read back. After Seal; DATA_LOSS if they are not those that have come.
  absl::StatusOr<std::vector<int32_t>> ReadIds() const;
  // The bytes that the file has.
  int64_t file_bytes() const { return header_.FileBytes(true); }

 private:
  friend class SegmentStore;

  SegmentWriter(SegmentStore* store, SegmentHeader header, const std::optional<SegmentKey>& key, OpenFile file);

  absl::Status WriteSection(int section, std::string_view bytes);
  absl::Status CheckComplete() const;

  SegmentStore* const store_;
  SegmentHeader header_;
  const std::optional<SegmentKey> wanted_key_;
  OpenFile file_;
  std::vector<int64_t> first_blocks_;  // of each section
  std::vector<int64_t> written_;       // bytes of each section
  SegmentKeyHash key_hash_;
  std::vector<Sha256> section_hashes_;  // of each section, for a segment of no tokens
  bool sealed_ = false;
  bool committed_ = false;
};

}  // namespace goldfinch

#endif  // GOLDFINCH_COORDINATOR_STORE_SEGMENT_WRITER_H_
