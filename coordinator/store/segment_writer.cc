#include "coordinator/store/segment_writer.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/crc32c.h"
#include "base/status.h"

namespace goldfinch {

SegmentWriter::SegmentWriter(SegmentStore* store, SegmentHeader header, const std::optional<SegmentKey>& key,
                             OpenFile file)
    : store_(store),
      header_(std::move(header)),
      wanted_key_(key),
      file_(std::move(file)),
      written_(header_.layout.sections.size()),
      key_hash_(header_.segment),
      section_hashes_(header_.segment.end == 0 ? header_.layout.sections.size() : 0) {
  for (size_t i = 0; i < written_.size(); ++i) first_blocks_.push_back(header_.FirstBlock(static_cast<int>(i)));
}

SegmentWriter::~SegmentWriter() {
  store_->WriterGone(wanted_key_, committed_ ? 0 : header_.FileBytes(true), committed_ ? "" : file_.path());
}

absl::Status SegmentWriter::AppendIds(absl::Span<const int32_t> ids) {
  const int64_t vocab_size = header_.segment.model.vocab_size;
  for (const int32_t id : ids) {
    if (id < 0 || id >= vocab_size) {
      return absl::InvalidArgumentError(
          absl::StrCat("a segment's token id ", id, " is not in the vocabulary, which has ", vocab_size, " tokens"));
    }
  }
  if (header_.layout.sections[0].type == ElementType::kI32) {
    GF_RETURN_IF_ERROR(WriteSection(0, {reinterpret_cast<const char*>(ids.data()), ids.size() * sizeof(int32_t)}));
  } else {
    std::vector<uint16_t> narrow(ids.begin(), ids.end());
    GF_RETURN_IF_ERROR(
        WriteSection(0, {reinterpret_cast<const char*>(narrow.data()), narrow.size() * sizeof(uint16_t)}));
  }
  key_hash_.AddIds(ids);
  return absl::OkStatus();
}

absl::Status SegmentWriter::Append(int section, std::string_view bytes) {
  GF_CHECK(section > 0 && section < static_cast<int>(written_.size())) << section;
  GF_RETURN_IF_ERROR(WriteSection(section, bytes));
  if (!section_hashes_.empty()) section_hashes_[section].Add(bytes);
  return absl::OkStatus();
}

absl::Status SegmentWriter::WriteSection(int section, std::string_view bytes) {
  const SegmentSection& place = header_.layout.sections[section];
  int64_t& written = written_[section];
  if (static_cast<int64_t>(bytes.size()) > place.bytes - written) {
    return absl::InvalidArgumentError(absl::StrCat("section ", section, " of a segment gets ", written, " + ",
                                                   bytes.size(), " bytes, it has ", place.bytes));
  }
  GF_RETURN_IF_ERROR(store_->files_->Write(file_, header_.header_bytes + place.offset + written, bytes));
  while (!bytes.empty()) {
    const std::string_view part = bytes.substr(0, kBlockBytes - written % kBlockBytes);
    uint32_t& checksum = header_.checksums[first_blocks_[section] + written / kBlockBytes];
    checksum = Crc32c(part, checksum);
    written += static_cast<int64_t>(part.size());
    bytes.remove_prefix(part.size());
  }
  return absl::OkStatus();
}

absl::Status SegmentWriter::CheckComplete() const {
  for (size_t i = 0; i < written_.size(); ++i) {
    const int64_t bytes = header_.layout.sections[i].bytes;
    if (written_[i] == bytes) continue;
    return absl::InvalidArgumentError(
        absl::StrCat("section ", i, " of a segment has ", bytes, " bytes, of which ", written_[i], " have come"));
  }
  return absl::OkStatus();
}

absl::StatusOr<SegmentKey> SegmentWriter::Commit() {
  GF_RETURN_IF_ERROR(Seal().status());
  GF_RETURN_IF_ERROR(Publish());
  return header_.key;
}

absl::StatusOr<SegmentKey> SegmentWriter::Seal() {
  GF_CHECK(!sealed_ && !committed_);
  GF_RETURN_IF_ERROR(CheckComplete());
  for (size_t i = 1; i < section_hashes_.size(); ++i) key_hash_.AddSection(section_hashes_[i].Finish());
  header_.key = key_hash_.Finish();
  if (wanted_key_ && *wanted_key_ != header_.key) {
    return absl::InvalidArgumentError(
        absl::StrCat("a segment's ids give the key ", Hex(header_.key), ", it was to be ", Hex(*wanted_key_)));
  }
  GF_RETURN_IF_ERROR(store_->files_->Write(file_, 0, EncodeSegmentHeader(header_)));
  GF_RETURN_IF_ERROR(store_->files_->SyncData(file_));
  sealed_ = true;
  return header_.key;
}

absl::Status SegmentWriter::Publish() {
  GF_CHECK(sealed_ && !committed_);
  return store_->Publish(file_, header_, &committed_);
}

absl::StatusOr<std::vector<int32_t>> SegmentWriter::ReadIds() const {
  GF_CHECK(sealed_);
  const SegmentSection& section = header_.layout.sections[0];
  std::string bytes(section.bytes, '\0');
  GF_RETURN_IF_ERROR(store_->files_->Read(file_, header_.header_bytes + section.offset, absl::MakeSpan(bytes)));
  std::vector<int32_t> ids(header_.segment.tokens());
  const auto id_bytes = static_cast<size_t>(BytesOf(section.type));
  for (size_t i = 0; i < ids.size(); ++i) std::memcpy(&ids[i], bytes.data() + i * id_bytes, id_bytes);
  if (header_.segment.tokens() > 0 && KeyOf(header_.segment, ids) != header_.key) {
    return absl::DataLossError(absl::StrCat(file_.path(), ": has other ids than were written"));
  }
  return ids;
}

}  // namespace goldfinch
