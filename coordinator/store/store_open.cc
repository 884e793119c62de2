// The start of a store: its folder, what it sweeps, and the index from the headers of the files.
#include <algorithm>
#include <array>
#include <optional>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/safe_text.h"
#include "base/status.h"
#include "coordinator/store/store.h"
#include "coordinator/store/store_paths.h"
#include "spdlog/spdlog.h"

namespace goldfinch {

std::string SegmentFileName(const SegmentKey& key) { return absl::StrCat(Hex(key), kSegmentSuffix); }

std::optional<SegmentKey> KeyOfFileName(std::string_view file_name) {
  SegmentKey key{};
  if (file_name.size() != 2 * key.size() + (sizeof(kSegmentSuffix) - 1)) return std::nullopt;
  const std::string bytes = absl::HexStringToBytes(std::string(file_name.substr(0, 2 * key.size())));
  std::copy(bytes.begin(), bytes.end(), key.begin());
  if (SegmentFileName(key) != file_name) return std::nullopt;
  return key;
}

std::string NameFileName(uint64_t id) { return absl::StrFormat("%016x%s", id, kNameSuffix); }

absl::StatusOr<SegmentHeader> ReadSegmentHeader(Files* files, const OpenFile& file, int64_t* file_bytes) {
  GF_ASSIGN_OR_RETURN(const FileState now, files->StateOf(file));
  if (file_bytes != nullptr) *file_bytes = now.bytes;
  std::array<char, kFilePrefixBytes> prefix;
  GF_RETURN_IF_ERROR(files->Read(file, 0, absl::MakeSpan(prefix)));
  GF_ASSIGN_OR_RETURN(const int64_t bytes, SegmentHeaderBytes({prefix.data(), prefix.size()}));
  if (bytes > now.bytes) return absl::DataLossError(absl::StrCat("it is cut short: ", now.bytes, " bytes"));
  std::string text(bytes, '\0');
  GF_RETURN_IF_ERROR(files->Read(file, 0, absl::MakeSpan(text)));
  GF_ASSIGN_OR_RETURN(SegmentHeader header, DecodeSegmentHeader(text));
  if (now.bytes != header.FileBytes(true) && now.bytes != header.FileBytes(false)) {
    return absl::DataLossError(absl::StrCat("it has ", now.bytes, " bytes, by its header ", header.FileBytes(true),
                                            ", or ", header.FileBytes(false), " without a snapshot"));
  }
  return header;
}

absl::StatusOr<std::unique_ptr<SegmentStore>> SegmentStore::Open(const StoreOptions& options) {
  GF_RETURN_IF_ERROR(options.files->MakeFolder(options.folder));
  std::optional<FolderLock> lock;
  if (options.files->shared()) {
    GF_ASSIGN_OR_RETURN(lock, FolderLock::Take(options.folder));
  }
  GF_RETURN_IF_ERROR(options.files->MakeFolder(absl::StrCat(options.folder, "/", kQuarantineFolder)));
  std::unique_ptr<SegmentStore> store(new SegmentStore(options, std::move(lock)));
  GF_RETURN_IF_ERROR(store->ReadFolder());
  return store;
}

absl::Status SegmentStore::ReadFolder() {
  const std::lock_guard<std::mutex> changes(changes_);
  GF_RETURN_IF_ERROR(ReadQuarantine());
  GF_ASSIGN_OR_RETURN(std::vector<std::string> names, files_->NamesIn(options_.folder));
  std::sort(names.begin(), names.end());
  for (const std::string& name : names) {
    if (std::string_view(name).ends_with(kPartialSuffix)) {
      GF_RETURN_IF_ERROR(files_->Remove(PathOf(name)));
    } else if (std::string_view(name).ends_with(kSegmentSuffix) || std::string_view(name).ends_with(kNameSuffix)) {
      ReadFile(name);
    }
  }
  return absl::OkStatus();
}

absl::Status SegmentStore::ReadQuarantine() {
  const std::string folder = PathOf(kQuarantineFolder);
  GF_ASSIGN_OR_RETURN(const std::vector<std::string> names, files_->NamesIn(folder));
  std::vector<std::pair<int64_t, Quarantined>> found;  // by their time
  for (const std::string& name : names) {
    const std::string path = absl::StrCat(folder, "/", name);
    const absl::StatusOr<OpenFile> file = files_->OpenToRead(path);
    if (!file.ok()) continue;
    const absl::StatusOr<FileState> now = files_->StateOf(*file);
    if (now.ok()) found.push_back({now->changed_unix_seconds, {path, now->bytes}});
  }
  std::sort(found.begin(), found.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
  for (const auto& [time, kept] : found) {
    quarantine_.push_back(kept);
    quarantine_bytes_ += kept.bytes;
    bytes_ += kept.bytes;
  }
  return absl::OkStatus();
}

void SegmentStore::ReadFile(const std::string& file_name) {
  const absl::StatusOr<OpenFile> file = files_->OpenToRead(PathOf(file_name));
  const absl::StatusOr<FileState> now = file.ok() ? files_->StateOf(*file) : file.status();
  if (!now.ok()) return LeaveAlone(file_name, now.status());
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    bytes_ += now->bytes;
  }
  const bool is_segment = std::string_view(file_name).ends_with(kSegmentSuffix);
  const absl::Status status = is_segment ? ReadSegmentFile(file_name, *file) : ReadNameFile(file_name, *file);
  if (status.ok()) return;
  // Only what was read and is wrong is damage: another version can be read by another program, and a disk or
  // permissions that fail now may be mended.
  if (!absl::IsDataLoss(status)) return LeaveAlone(file_name, status);
  MoveToQuarantine(file_name, now->bytes, status);
}

void SegmentStore::LeaveAlone(const std::string& file_name, const absl::Status& why) {
  if (absl::IsNotFound(why)) return;
  spdlog::warn("{}: is left alone: {}", SafeText(PathOf(file_name)), std::string(why.message()));
  unreadable_.insert(file_name);
  const std::optional<SegmentKey> key = KeyOfFileName(file_name);
  if (!key) return;
  const std::lock_guard<std::mutex> lock(mutex_);
  left_alone_.push_back(*key);
}

absl::Status SegmentStore::ReadSegmentFile(const std::string& file_name, const OpenFile& file) {
  int64_t bytes = 0;
  GF_ASSIGN_OR_RETURN(const SegmentHeader header, ReadSegmentHeader(files_, file, &bytes));
  if (SegmentFileName(header.key) != file_name) return absl::DataLossError("it has the key of another segment");
  GF_ASSIGN_OR_RETURN(const FileState now, files_->StateOf(file));
  const std::lock_guard<std::mutex> lock(mutex_);
  segments_[header.key] = Describe(header, bytes, now.used_unix_seconds);
  return absl::OkStatus();
}

absl::Status SegmentStore::ReadNameFile(const std::string& file_name, const OpenFile& file) {
  GF_ASSIGN_OR_RETURN(const FileState now, files_->StateOf(file));
  if (now.bytes > kNameFileBytesMax) return absl::DataLossError(absl::StrCat("it has ", now.bytes, " bytes"));
  std::string bytes(now.bytes, '\0');
  GF_RETURN_IF_ERROR(files_->Read(file, 0, absl::MakeSpan(bytes)));
  GF_ASSIGN_OR_RETURN(const ContextName name, DecodeName(bytes));
  if (NameFileName(name.id) != file_name) return absl::DataLossError("it has the id of another context");
  const std::lock_guard<std::mutex> lock(mutex_);
  if (!name_ids_.try_emplace({name.name_space, name.name}, name.id).second) {
    return absl::DataLossError(absl::StrCat("another context has its name, ", Quoted(name.name)));
  }
  names_[name.id] = {name, now.bytes};
  return absl::OkStatus();
}

}  // namespace goldfinch
