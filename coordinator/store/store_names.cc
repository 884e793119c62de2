// Names of contexts in a store.
#include <utility>

#include "absl/random/random.h"
#include "absl/strings/str_cat.h"
#include "base/safe_text.h"
#include "base/status.h"
#include "coordinator/store/store.h"
#include "coordinator/store/store_paths.h"
#include "spdlog/spdlog.h"

namespace goldfinch {

absl::StatusOr<ContextName> SegmentStore::PutName(ContextName name) {
  const std::lock_guard<std::mutex> changes(changes_);
  int64_t old_bytes = 0;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto other = name_ids_.find({name.name_space, name.name});
    if (other != name_ids_.end() && other->second != name.id) {
      return absl::AlreadyExistsError(absl::StrCat("there is a context with the name ", Quoted(name.name)));
    }
    if (name.id != 0) {
      const auto found = names_.find(name.id);
      if (found == names_.end()) return absl::NotFoundError(absl::StrCat("there is no context with the id ", name.id));
      if (found->second.name.revision != name.revision) {
        return absl::AbortedError(absl::StrCat("the context ", Quoted(found->second.name.name), " has revision ",
                                               found->second.name.revision, ", the change was made to revision ",
                                               name.revision));
      }
      old_bytes = found->second.bytes;
    } else {
      absl::BitGen random;
      while (name.id == 0 || names_.contains(name.id) || unreadable_.contains(NameFileName(name.id))) {
        name.id = absl::Uniform<uint64_t>(random);
      }
      name.revision = 0;
    }
  }
  ++name.revision;
  GF_RETURN_IF_ERROR(CheckName(name));
  const std::string bytes = EncodeName(name);
  const auto size = static_cast<int64_t>(bytes.size());
  const int64_t growth = size - old_bytes;
  if (growth > 0) GF_RETURN_IF_ERROR(TakeRoom(growth));
  bool written = false;
  const absl::Status status = WriteNameFile(name.id, bytes, &written);
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (written) {
      KeptName& kept = names_[name.id];
      name_ids_.erase({kept.name.name_space, kept.name.name});
      kept = {name, size};
      name_ids_[{name.name_space, name.name}] = name.id;
      if (growth < 0) bytes_ += growth;
    } else if (growth > 0) {
      bytes_ -= growth;
    }
  }
  GF_RETURN_IF_ERROR(status);
  return name;
}

absl::Status SegmentStore::WriteNameFile(uint64_t id, const std::string& bytes, bool* written) {
  const std::string path = PartialPath();
  absl::Status status;
  {
    GF_ASSIGN_OR_RETURN(const OpenFile file, files_->Create(path));
    status = files_->Write(file, 0, bytes);
    if (status.ok()) status = files_->SyncData(file);
  }
  if (status.ok()) status = files_->Rename(path, PathOf(NameFileName(id)));
  if (status.ok()) {
    *written = true;
    return files_->SyncFolder(options_.folder);
  }
  const absl::Status removed = files_->Remove(path);
  if (!removed.ok()) spdlog::warn("{}", std::string(removed.message()));
  return status;
}

absl::Status SegmentStore::DeleteName(uint64_t id) {
  const std::lock_guard<std::mutex> changes(changes_);
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!names_.contains(id)) return absl::NotFoundError(absl::StrCat("there is no context with the id ", id));
  }
  const absl::Status removed = files_->Remove(PathOf(NameFileName(id)));
  if (!removed.ok() && !absl::IsNotFound(removed)) return removed;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    const KeptName& kept = names_[id];
    bytes_ -= kept.bytes;
    name_ids_.erase({kept.name.name_space, kept.name.name});
    names_.erase(id);
  }
  return files_->SyncFolder(options_.folder);
}

}  // namespace goldfinch
