#include "coordinator/store/store.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/safe_text.h"
#include "base/status.h"
#include "base/units.h"
#include "coordinator/store/segment_reader.h"
#include "coordinator/store/segment_writer.h"
#include "coordinator/store/store_paths.h"
#include "spdlog/spdlog.h"

namespace goldfinch {
namespace {

absl::Status NoSegment(const SegmentKey& key) {
  return absl::NotFoundError(absl::StrCat("segment ", Hex(key), " is not in the store"));
}

}  // namespace

SegmentStore::SegmentStore(const StoreOptions& options, std::optional<FolderLock> lock)
    : options_(options), lock_(std::move(lock)), files_(options.files) {}

SegmentStore::~SegmentStore() { GF_CHECK(saving_.empty()) << "a writer is still there"; }

// ---- Look-ups

std::vector<StoredSegment> SegmentStore::Segments() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  std::vector<StoredSegment> segments;
  segments.reserve(segments_.size());
  for (const auto& [key, segment] : segments_) segments.push_back(segment);
  return segments;
}

std::optional<StoredSegment> SegmentStore::Find(const SegmentKey& key) const {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto found = segments_.find(key);
  if (found == segments_.end()) return std::nullopt;
  return found->second;
}

std::vector<ContextName> SegmentStore::Names() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  std::vector<ContextName> names;
  names.reserve(names_.size());
  for (const auto& [id, kept] : names_) names.push_back(kept.name);
  return names;
}

std::vector<SegmentKey> SegmentStore::LeftAlone() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return left_alone_;
}

StoreTotals SegmentStore::totals() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return {static_cast<int64_t>(segments_.size()),
          static_cast<int64_t>(names_.size()),
          bytes_,
          options_.bytes_max,
          quarantine_bytes_,
          quarantined_total_};
}

// ---- Room

absl::Status SegmentStore::TakeRoom(int64_t bytes) {
  const auto take = [&] {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (bytes > options_.bytes_max - bytes_) return false;
    bytes_ += bytes;
    return true;
  };
  if (take()) return absl::OkStatus();
  TrimQuarantine(0);
  if (take()) return absl::OkStatus();
  const StoreTotals now = totals();
  return absl::ResourceExhaustedError(absl::StrCat(SafeText(options_.folder), ": has no room for ", HumanBytes(bytes),
                                                   ": ", HumanBytes(now.bytes), " of the limit, ",
                                                   HumanBytes(now.bytes_max), ", are taken"));
}

// ---- Saving

std::string SegmentStore::PartialPath() {
  const std::lock_guard<std::mutex> lock(mutex_);
  return PathOf(absl::StrCat(++partial_, kPartialSuffix));
}

absl::Status SegmentStore::CheckNew(const SegmentKey& key, bool has_snapshot) const {
  const auto found = segments_.find(key);
  if (found == segments_.end() || (has_snapshot && !found->second.has_snapshot)) return absl::OkStatus();
  return absl::AlreadyExistsError(absl::StrCat("segment ", Hex(key), " is in the store"));
}

absl::StatusOr<std::unique_ptr<SegmentWriter>> SegmentStore::Save(const SegmentSpec& segment,
                                                                  const std::optional<SegmentKey>& key) {
  GF_ASSIGN_OR_RETURN(SegmentHeader header, NewSegmentHeader(segment));
  if (key) {
    const std::lock_guard<std::mutex> lock(mutex_);
    GF_RETURN_IF_ERROR(CheckNew(*key, segment.has_snapshot));
    if (!saving_.insert(*key).second) {
      return absl::AlreadyExistsError(absl::StrCat("segment ", Hex(*key), " is being saved"));
    }
  }
  const int64_t bytes = header.FileBytes(true);
  absl::Status room;
  {
    const std::lock_guard<std::mutex> changes(changes_);
    room = TakeRoom(bytes);
  }
  if (!room.ok()) {
    WriterGone(key, 0, "");
    return room;
  }
  const std::string path = PartialPath();
  absl::StatusOr<OpenFile> file = files_->Create(path);
  if (!file.ok()) {
    WriterGone(key, bytes, "");
    return file.status();
  }
  const absl::Status reserved = files_->Reserve(*file, bytes);
  // From here on the writer gives everything back.
  std::unique_ptr<SegmentWriter> writer(new SegmentWriter(this, std::move(header), key, *std::move(file)));
  GF_RETURN_IF_ERROR(reserved);
  return writer;
}

void SegmentStore::WriterGone(const std::optional<SegmentKey>& key, int64_t bytes, const std::string& partial_path) {
  if (!partial_path.empty()) {
    const absl::Status removed = files_->Remove(partial_path);
    if (!removed.ok()) spdlog::warn("{}", std::string(removed.message()));
  }
  const std::lock_guard<std::mutex> lock(mutex_);
  bytes_ -= bytes;
  if (key) saving_.erase(*key);
}

std::shared_ptr<const ContextIdentity> SegmentStore::Share(const ContextIdentity& identity) {
  for (const auto& known : identities_) {
    if (*known == identity) return known;
  }
  return identities_.emplace_back(std::make_shared<const ContextIdentity>(identity));
}

StoredSegment SegmentStore::Describe(const SegmentHeader& header, int64_t file_bytes, int64_t used_unix_seconds) {
  const SegmentSpec& segment = header.segment;
  StoredSegment stored;
  stored.key = header.key;
  stored.identity = Share(segment.model.identity);
  stored.name_space = segment.name_space;
  stored.parent = segment.parent;
  stored.begin = segment.begin;
  stored.end = segment.end;
  stored.bytes = file_bytes;
  stored.bytes_without_snapshot = header.FileBytes(false);
  stored.has_snapshot = segment.has_snapshot && file_bytes == header.FileBytes(true);
  stored.gold_position = stored.has_snapshot ? segment.gold_position : 0;
  stored.has_logits = stored.has_snapshot && segment.has_logits;
  stored.used_unix_seconds = used_unix_seconds;
  stored.serial = ++serial_;
  return stored;
}

absl::Status SegmentStore::Publish(const OpenFile& file, const SegmentHeader& header, bool* published) {
  const std::lock_guard<std::mutex> changes(changes_);
  const std::string file_name = SegmentFileName(header.key);
  if (unreadable_.contains(file_name)) {
    return absl::FailedPreconditionError(
        absl::StrCat(SafeText(PathOf(file_name)), ": is there, and could not be read when the store was opened"));
  }
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    GF_RETURN_IF_ERROR(CheckNew(header.key, header.segment.has_snapshot));
  }
  GF_RETURN_IF_ERROR(files_->Rename(file.path(), PathOf(file_name)));
  *published = true;
  // Without the time, only the order of evictions after a restart is worse.
  const absl::StatusOr<FileState> now = files_->StateOf(file);
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    StoredSegment& stored = segments_[header.key];
    bytes_ -= stored.bytes;  // of the one without a snapshot that it replaces
    stored = Describe(header, header.FileBytes(true), now.ok() ? now->used_unix_seconds : 0);
  }
  return files_->SyncFolder(options_.folder);
}

// ---- What is there

absl::StatusOr<std::unique_ptr<SegmentReader>> SegmentStore::Load(const SegmentKey& key) {
  const std::optional<StoredSegment> stored = Find(key);
  if (!stored) return NoSegment(key);
  absl::StatusOr<OpenFile> file = files_->OpenToRead(PathOf(SegmentFileName(key)));
  if (absl::IsNotFound(file.status())) Forget(key, stored->serial);
  GF_RETURN_IF_ERROR(file.status());
  absl::StatusOr<SegmentHeader> header = ReadSegmentHeader(files_, *file);
  if (header.ok() && header->key != key) header = absl::DataLossError("it has the key of another segment");
  if (!header.ok()) {
    const absl::Status status(header.status().code(),
                              absl::StrCat(SafeText(file->path()), ": ", std::string(header.status().message())));
    if (absl::IsDataLoss(status)) Quarantine(key, stored->serial, status);
    return status;
  }
  if (!stored->has_snapshot) header->LeaveOutSnapshot();
  return std::unique_ptr<SegmentReader>(new SegmentReader(this, stored->serial, *std::move(header), *std::move(file)));
}

absl::Status SegmentStore::DropSnapshot(const SegmentKey& key) {
  const std::lock_guard<std::mutex> changes(changes_);
  const std::optional<StoredSegment> stored = Find(key);
  if (!stored) return NoSegment(key);
  if (!stored->has_snapshot || stored->bytes == stored->bytes_without_snapshot) return absl::OkStatus();
  if (stored->end == 0) return absl::InvalidArgumentError("an empty segment must have a snapshot");
  const std::string path = PathOf(SegmentFileName(key));
  GF_ASSIGN_OR_RETURN(const OpenFile file, files_->OpenToWrite(path));
  GF_RETURN_IF_ERROR(files_->Truncate(file, stored->bytes_without_snapshot));
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    StoredSegment& changed = segments_[key];
    changed.has_snapshot = changed.has_logits = false;
    changed.gold_position = 0;
    bytes_ -= changed.bytes - changed.bytes_without_snapshot;
    changed.bytes = changed.bytes_without_snapshot;
  }
  files_->SetUsed(path, stored->used_unix_seconds);
  return files_->SyncData(file);
}

absl::Status SegmentStore::Delete(const SegmentKey& key) {
  const std::lock_guard<std::mutex> changes(changes_);
  const std::optional<StoredSegment> stored = Find(key);
  if (!stored) return NoSegment(key);
  const absl::Status removed = files_->Remove(PathOf(SegmentFileName(key)));
  if (!removed.ok() && !absl::IsNotFound(removed)) return removed;
  Forget(key, stored->serial);
  return files_->SyncFolder(options_.folder);
}

void SegmentStore::Touch(const SegmentKey& key, int64_t unix_seconds) {
  const std::lock_guard<std::mutex> changes(changes_);
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = segments_.find(key);
    if (found == segments_.end()) return;
    found->second.used_unix_seconds = unix_seconds;
  }
  files_->SetUsed(PathOf(SegmentFileName(key)), unix_seconds);
}

void SegmentStore::Forget(const SegmentKey& key, uint64_t serial) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto found = segments_.find(key);
  if (found == segments_.end() || found->second.serial != serial) return;
  bytes_ -= found->second.bytes;
  segments_.erase(found);
}

// ---- Damage

void SegmentStore::Quarantine(const SegmentKey& key, uint64_t serial, const absl::Status& why) {
  const std::lock_guard<std::mutex> changes(changes_);
  int64_t bytes = 0;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = segments_.find(key);
    if (found == segments_.end() || found->second.serial != serial) return;
    bytes = found->second.bytes;
    segments_.erase(found);
  }
  MoveToQuarantine(SegmentFileName(key), bytes, why);
}

void SegmentStore::MoveToQuarantine(const std::string& file_name, int64_t bytes, const absl::Status& why) {
  const std::string from = PathOf(file_name), to = PathOf(absl::StrCat(kQuarantineFolder, "/", file_name));
  const absl::Status moved = files_->Rename(from, to);
  spdlog::warn("a damaged file of the contexts is {}: {}: {}", moved.ok() ? "moved to quarantine" : "left where it is",
               SafeText(from), SafeText(std::string(why.message())));
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    ++quarantined_total_;
    if (moved.ok()) quarantine_bytes_ += bytes;
  }
  if (!moved.ok()) return;
  // An older file of that name is no more.
  const auto older =
      std::find_if(quarantine_.begin(), quarantine_.end(), [&](const auto& kept) { return kept.path == to; });
  if (older != quarantine_.end()) {
    const std::lock_guard<std::mutex> lock(mutex_);
    bytes_ -= older->bytes;
    quarantine_bytes_ -= older->bytes;
    quarantine_.erase(older);
  }
  quarantine_.push_back({to, bytes});
  TrimQuarantine(options_.quarantine_files_max);
}

void SegmentStore::TrimQuarantine(size_t files_max) {
  while (quarantine_.size() > files_max) {
    const absl::Status removed = files_->Remove(quarantine_.front().path);
    if (!removed.ok() && !absl::IsNotFound(removed)) {
      spdlog::warn("{}", std::string(removed.message()));
      return;
    }
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      bytes_ -= quarantine_.front().bytes;
      quarantine_bytes_ -= quarantine_.front().bytes;
    }
    quarantine_.pop_front();
  }
}

}  // namespace goldfinch
