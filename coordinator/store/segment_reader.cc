#include "coordinator/store/segment_reader.h"

#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/crc32c.h"
#include "base/sha256.h"
#include "base/status.h"

namespace goldfinch {

SegmentReader::SegmentReader(SegmentStore* store, uint64_t serial, SegmentHeader header, OpenFile file)
    : store_(store), serial_(serial), header_(std::move(header)), file_(std::move(file)) {}

absl::Status SegmentReader::ReadIds(int64_t first, absl::Span<int32_t> ids) {
  if (header_.layout.sections[0].type == ElementType::kI32) {
    return Read(0, first * 4, {reinterpret_cast<char*>(ids.data()), ids.size() * 4});
  }
  std::vector<uint16_t> narrow(ids.size());
  GF_RETURN_IF_ERROR(Read(0, first * 2, {reinterpret_cast<char*>(narrow.data()), narrow.size() * 2}));
  std::copy(narrow.begin(), narrow.end(), ids.begin());
  return absl::OkStatus();
}

absl::Status SegmentReader::Read(int section, int64_t offset, absl::Span<char> bytes) {
  GF_CHECK(section >= 0 && section < static_cast<int>(header_.layout.sections.size())) << section;
  const int64_t size = header_.layout.sections[section].bytes;
  if (offset < 0 || offset > size || static_cast<int64_t>(bytes.size()) > size - offset) {
    return absl::OutOfRangeError(absl::StrCat("bytes ", offset, " to ", offset, " + ", bytes.size(), " of section ",
                                              section, " of a segment, which has ", size));
  }
  while (!bytes.empty()) {
    GF_RETURN_IF_ERROR(LoadBlock(section, offset / kBlockBytes));
    const std::string_view part = std::string_view(block_).substr(offset % kBlockBytes, bytes.size());
    std::memcpy(bytes.data(), part.data(), part.size());
    bytes.remove_prefix(part.size());
    offset += static_cast<int64_t>(part.size());
  }
  return absl::OkStatus();
}

uint32_t SegmentReader::Checksum(int section) const {
  const int64_t bytes = header_.layout.sections[section].bytes, first = header_.FirstBlock(section);
  uint32_t checksum = 0;
  for (int64_t i = 0; i < BlocksOf(bytes); ++i) {
    checksum = JoinCrc32c(checksum, header_.checksums[first + i], std::min(kBlockBytes, bytes - i * kBlockBytes));
  }
  return checksum;
}

absl::Status SegmentReader::LoadBlock(int section, int64_t block) {
  GF_RETURN_IF_ERROR(status_);
  if (section == block_section_ && block == block_number_) return absl::OkStatus();
  const SegmentSection& place = header_.layout.sections[section];
  const int64_t begin = block * kBlockBytes;
  block_section_ = -1;
  block_.resize(std::min(kBlockBytes, place.bytes - begin));
  const absl::Status read =
      store_->files_->Read(file_, header_.header_bytes + place.offset + begin, absl::MakeSpan(block_));
  if (absl::IsDataLoss(read)) return Lost(section, read);
  GF_RETURN_IF_ERROR(read);
  if (Crc32c(block_) != header_.checksums[header_.FirstBlock(section) + block]) {
    return Lost(section, absl::DataLossError(absl::StrCat(file_.path(), ": the checksum of block ", block,
                                                          " of section ", section, " is wrong")));
  }
  block_section_ = section;
  block_number_ = block;
  return absl::OkStatus();
}

absl::Status SegmentReader::Lost(int section, const absl::Status& status) {
  block_.clear();
  const absl::StatusOr<FileState> now = store_->files_->StateOf(file_);
  if (header_.layout.sections[section].in_snapshot && now.ok() && now->bytes == header_.FileBytes(false)) {
    return absl::NotFoundError(absl::StrCat(file_.path(), ": its snapshot has been dropped"));
  }
  status_ = status;
  store_->Quarantine(header_.key, serial_, status);
  return status;
}

absl::Status SegmentReader::Verify() {
  SegmentKeyHash key(header_.segment);
  std::vector<int32_t> ids;
  for (int64_t at = 0; at < header_.segment.tokens(); at += static_cast<int64_t>(ids.size())) {
    ids.resize(std::min<int64_t>(header_.segment.tokens() - at, 1 << 16));
    GF_RETURN_IF_ERROR(ReadIds(at, absl::MakeSpan(ids)));
    key.AddIds(ids);
  }
  for (int section = 1; section < static_cast<int>(header_.layout.sections.size()); ++section) {
    Sha256 hash;
    for (int64_t block = 0; block < BlocksOf(header_.layout.sections[section].bytes); ++block) {
      GF_RETURN_IF_ERROR(LoadBlock(section, block));
      if (header_.segment.end == 0) hash.Add(block_);
    }
    if (header_.segment.end == 0) key.AddSection(hash.Finish());
  }
  if (key.Finish() == header_.key) return absl::OkStatus();
  status_ = absl::DataLossError(absl::StrCat(file_.path(), ": its ids do not give its key"));
  store_->Quarantine(header_.key, serial_, status_);
  return status_;
}

}  // namespace goldfinch
