#include "worker/checkpoint/zip.h"

#include <algorithm>
#include <optional>
#include <string>

#include "absl/container/flat_hash_set.h"
#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "base/safe_text.h"
#include "base/status.h"

namespace goldfinch {
namespace {

// Names, sizes and fields as in PKWARE's APPNOTE.TXT, sections 4.3.7 to 4.3.16 and 4.5.3.
constexpr std::string_view kLocalHeader = "PK\3\4";
constexpr std::string_view kDirectoryHeader = "PK\1\2";
constexpr std::string_view kEnd = "PK\5\6";
constexpr std::string_view kZip64End = "PK\6\6";
constexpr std::string_view kZip64Locator = "PK\6\7";
constexpr size_t kLocalHeaderBytes = 30;
constexpr size_t kDirectoryHeaderBytes = 46;
constexpr size_t kEndBytes = 22;
constexpr size_t kZip64EndBytes = 56;
constexpr size_t kZip64LocatorBytes = 20;
constexpr size_t kCommentBytesMax = 65535;
constexpr uint16_t kZip64ExtraId = 1;
constexpr uint16_t kFlagEncrypted = 1 << 0;
constexpr uint16_t kFlagSizesBehind = 1 << 3;  // the local header knows neither sizes nor checksum
constexpr uint64_t kIn64 = 0xffffffff;         // "the number stands in the zip64 record"
constexpr uint64_t kCountIn64 = 0xffff;

// A little-endian number of the record; the caller has checked that it is all there.
uint64_t Number(std::string_view record, size_t offset, int bytes) {
  uint64_t number = 0;
  for (int i = 0; i < bytes; ++i) number |= uint64_t{static_cast<uint8_t>(record[offset + i])} << (8 * i);
  return number;
}
uint16_t U16(std::string_view record, size_t offset) { return static_cast<uint16_t>(Number(record, offset, 2)); }
uint32_t U32(std::string_view record, size_t offset) { return static_cast<uint32_t>(Number(record, offset, 4)); }
uint64_t U64(std::string_view record, size_t offset) { return Number(record, offset, 8); }

// `size` bytes from `offset` on; none if they are not all there.
std::optional<std::string_view> Slice(std::string_view bytes, uint64_t offset, uint64_t size) {
  if (offset > bytes.size() || size > bytes.size() - offset) return std::nullopt;
  return bytes.substr(offset, size);
}

absl::Status DamagedDirectory() { return absl::InvalidArgumentError("its zip directory is damaged"); }

struct Directory {
  uint64_t offset = 0;
  uint64_t bytes = 0;
  uint64_t entries = 0;
};

absl::StatusOr<Directory> FindDirectory(std::string_view archive) {
  // The end record is followed by a comment, whose length it tells; torch writes none.
  std::optional<size_t> end;
  for (size_t comment = 0; !end && comment <= kCommentBytesMax && comment + kEndBytes <= archive.size(); ++comment) {
    const size_t at = archive.size() - kEndBytes - comment;
    if (archive.substr(at).starts_with(kEnd) && U16(archive, at + 20) == comment) end = at;
  }
  if (!end) {
    return absl::InvalidArgumentError(absl::StrCat("is not a complete zip archive: after ", archive.size(),
                                                   " bytes there is no zip directory (cut short?)"));
  }
  Directory directory{U32(archive, *end + 16), U32(archive, *end + 12), U16(archive, *end + 10)};
  if (*end >= kZip64LocatorBytes && archive.substr(*end - kZip64LocatorBytes).starts_with(kZip64Locator)) {
    const auto end64 = Slice(archive, U64(archive, *end - kZip64LocatorBytes + 8), kZip64EndBytes);
    if (!end64 || !end64->starts_with(kZip64End)) return DamagedDirectory();
    if (directory.offset == kIn64) directory.offset = U64(*end64, 48);
    if (directory.bytes == kIn64) directory.bytes = U64(*end64, 40);
    if (directory.entries == kCountIn64) directory.entries = U64(*end64, 32);
  }
  return directory;
}

// The numbers of a directory entry that may stand in its zip64 record.
struct Wide {
  uint64_t size;
  uint64_t stored_size;
  uint64_t offset;
};

// Replaces those numbers that are kIn64. False if they are not where they should be.
bool ReadZip64Extra(std::string_view extra, Wide* wide) {
  if (wide->size != kIn64 && wide->stored_size != kIn64 && wide->offset != kIn64) return true;
  while (extra.size() >= 4) {
    const auto field = Slice(extra, 4, U16(extra, 2));
    if (!field) return false;
    if (U16(extra, 0) == kZip64ExtraId) {
      size_t at = 0;
      for (uint64_t* number : {&wide->size, &wide->stored_size, &wide->offset}) {
        if (*number != kIn64) continue;
        if (field->size() < at + 8) return false;
        *number = U64(*field, at);
        at += 8;
      }
      return true;
    }
    extra.remove_prefix(4 + field->size());
  }
  return false;
}

// The entry whose directory header `header` is, with its name and extra fields behind it. `files` is the archive up to
// its directory.
absl::StatusOr<ZipEntry> ReadEntry(std::string_view header, std::string_view files) {
  ZipEntry entry;
  entry.name = header.substr(kDirectoryHeaderBytes, U16(header, 28));
  entry.crc32 = U32(header, 16);
  const auto error = [&](const auto&... what) {
    return absl::InvalidArgumentError(absl::StrCat("archive file ", Quoted(entry.name), " ", what...));
  };
  const uint16_t flags = U16(header, 8);
  const uint16_t method = U16(header, 10);
  if (flags & kFlagEncrypted) return error("is encrypted");
  if (method != 0) {
    return error("is compressed (method ", method, "); torch.save stores files plainly: save it again");
  }
  Wide wide{U32(header, 24), U32(header, 20), U32(header, 42)};
  if (!ReadZip64Extra(header.substr(kDirectoryHeaderBytes + entry.name.size(), U16(header, 30)), &wide)) {
    return error("has no zip64 record, which it needs");
  }
  if (wide.size != wide.stored_size) {
    return error("is stored plainly, but with two sizes: ", wide.size, " and ", wide.stored_size);
  }

  const auto local = Slice(files, wide.offset, kLocalHeaderBytes);
  if (!local || !local->starts_with(kLocalHeader)) return error("has no local header at byte ", wide.offset);
  const auto local_name = Slice(files, wide.offset + kLocalHeaderBytes, U16(*local, 26));
  const bool same = local_name && *local_name == entry.name && U16(*local, 8) == method &&
                    ((flags & kFlagSizesBehind) != 0 ||
                     (U32(*local, 14) == entry.crc32 && (U32(*local, 18) == kIn64 || U32(*local, 18) == wide.size)));
  if (!same) return error("has a local header that contradicts the zip directory");
  const uint64_t begin = wide.offset + kLocalHeaderBytes + entry.name.size() + U16(*local, 28);
  const auto bytes = Slice(files, begin, wide.size);
  if (!bytes) {
    return error("has ", wide.size, " bytes from byte ", begin, " on, but the archive's files end at byte ",
                 files.size());
  }
  entry.bytes = *bytes;
  return entry;
}

// Shared bytes or names: a small archive could be a lot of work to check, or mean two things.
absl::Status CheckDisjoint(const std::vector<ZipEntry>& entries) {
  absl::flat_hash_set<std::string_view> names;
  std::vector<const ZipEntry*> ordered;
  for (const ZipEntry& entry : entries) {
    if (!names.insert(entry.name).second) {
      return absl::InvalidArgumentError(absl::StrCat("archive file ", Quoted(entry.name), " appears twice"));
    }
    if (!entry.bytes.empty()) ordered.push_back(&entry);
  }
  std::sort(ordered.begin(), ordered.end(),
            [](const ZipEntry* a, const ZipEntry* b) { return a->bytes.data() < b->bytes.data(); });
  for (size_t i = 1; i < ordered.size(); ++i) {
    if (ordered[i - 1]->bytes.data() + ordered[i - 1]->bytes.size() > ordered[i]->bytes.data()) {
      return absl::InvalidArgumentError(
          absl::StrCat("archive files ", Quoted(ordered[i - 1]->name), " and ", Quoted(ordered[i]->name), " overlap"));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::vector<ZipEntry>> ReadZipDirectory(std::string_view archive) {
  GF_ASSIGN_OR_RETURN(const Directory directory, FindDirectory(archive));
  std::optional<std::string_view> rest = Slice(archive, directory.offset, directory.bytes);
  if (!rest) return DamagedDirectory();
  const std::string_view files = archive.substr(0, directory.offset);

  std::vector<ZipEntry> entries;
  while (!rest->empty()) {
    if (rest->size() < kDirectoryHeaderBytes || !rest->starts_with(kDirectoryHeader)) return DamagedDirectory();
    const size_t header_bytes = kDirectoryHeaderBytes + U16(*rest, 28) + U16(*rest, 30) + U16(*rest, 32);
    const auto header = Slice(*rest, 0, header_bytes);
    if (!header) return DamagedDirectory();
    GF_ASSIGN_OR_RETURN(const ZipEntry entry, ReadEntry(*header, files));
    entries.push_back(entry);
    rest->remove_prefix(header_bytes);
  }
  if (entries.size() != directory.entries) return DamagedDirectory();
  GF_RETURN_IF_ERROR(CheckDisjoint(entries));
  return entries;
}

}  // namespace goldfinch
