#include "coordinator/store/upload_table.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/units.h"

namespace goldfinch {

Upload* UploadTable::Find(const UploadKey& key) {
  const auto found = uploads_.find(key);
  return found == uploads_.end() ? nullptr : found->second.get();
}

absl::StatusOr<Upload*> UploadTable::Add(const UploadKey& key, const std::string& client, double now,
                                         Removed* removed) {
  for (std::unique_ptr<Upload>& over : Sweep(now)) removed->push_back(std::move(over));
  // Those that are finished are there for clients that ask again, and keep nobody out.
  const auto unfinished = [&](bool of_client) {
    return std::count_if(uploads_.begin(), uploads_.end(), [&](const auto& entry) {
      return entry.second->finished == nullptr && (!of_client || entry.second->client == client);
    });
  };
  if (unfinished(true) >= limits_.uploads_of_client_max) {
    auto longest = uploads_.end();
    for (auto entry = uploads_.begin(); entry != uploads_.end(); ++entry) {
      const Upload& upload = *entry->second;
      if (upload.client != client || upload.busy || upload.finished != nullptr) continue;
      if (longest == uploads_.end() || upload.used < longest->second->used) longest = entry;
    }
    if (longest == uploads_.end() || now - longest->second->used < limits_.replaced_after_seconds) {
      return absl::ResourceExhaustedError(absl::StrCat("the client has ", limits_.uploads_of_client_max,
                                                       " uploads that are not finished, which is the limit"));
    }
    removed->push_back(std::move(longest->second));
    uploads_.erase(longest);
  }
  if (unfinished(false) >= limits_.uploads_max) {
    return absl::ResourceExhaustedError(
        absl::StrCat("there are ", limits_.uploads_max, " uploads that are not finished, which is the limit"));
  }
  std::unique_ptr<Upload>& added = uploads_[key];
  GF_CHECK(added == nullptr) << "an upload twice";
  added = std::make_unique<Upload>();
  added->client = client;
  added->busy = true;
  added->began = added->used = now;
  return added.get();
}

int64_t UploadTable::bytes() const {
  int64_t bytes = 0;
  for (const auto& [key, upload] : uploads_) bytes += upload->bytes;
  return bytes;
}

absl::Status UploadTable::Take(Upload* upload, int64_t bytes, int64_t store_bytes) {
  int64_t of_client = 0;
  for (const auto& [key, other] : uploads_) of_client += other->client == upload->client ? other->bytes : 0;
  const auto fits = [&](int64_t taken, double share, const char* whose) {
    const auto limit = static_cast<int64_t>(share * static_cast<double>(store_bytes));
    if (bytes <= limit - taken) return absl::OkStatus();
    return absl::ResourceExhaustedError(absl::StrCat("the context takes ", HumanBytes(bytes), "; unfinished uploads",
                                                     whose, " have ", HumanBytes(taken), " of the limit, ",
                                                     HumanBytes(limit)));
  };
  absl::Status status = fits(of_client, limits_.share_of_client_max, " of the client");
  if (status.ok()) status = fits(this->bytes(), limits_.share_max, "");
  if (status.ok()) upload->bytes = bytes;
  return status;
}

void UploadTable::Finish(Upload* upload, Upload::Finished finished, double now) {
  upload->finished = std::make_unique<const Upload::Finished>(std::move(finished));
  upload->import.reset();
  upload->room.reset();
  upload->store.reset();
  upload->bytes = 0;
  upload->busy = false;
  upload->used = now;
  // As many of them as there may be others.
  auto oldest = uploads_.end();
  int count = 0;
  for (auto entry = uploads_.begin(); entry != uploads_.end(); ++entry) {
    if (entry->second->finished == nullptr) continue;
    ++count;
    if (oldest == uploads_.end() || entry->second->used < oldest->second->used) oldest = entry;
  }
  if (count > limits_.uploads_max) uploads_.erase(oldest);
}

std::unique_ptr<Upload> UploadTable::Remove(const UploadKey& key) {
  const auto found = uploads_.find(key);
  if (found == uploads_.end()) return nullptr;
  std::unique_ptr<Upload> removed = std::move(found->second);
  uploads_.erase(found);
  return removed;
}

bool UploadTable::Over(const Upload& upload, double now) const {
  if (upload.busy) return false;
  if (upload.finished != nullptr) return now - upload.used >= limits_.finished_seconds;
  return now - upload.used >= limits_.idle_seconds_max || now - upload.began >= limits_.age_seconds_max;
}

UploadTable::Removed UploadTable::Sweep(double now) {
  Removed removed;
  for (auto entry = uploads_.begin(); entry != uploads_.end();) {
    if (!Over(*entry->second, now)) {
      ++entry;
      continue;
    }
    removed.push_back(std::move(entry->second));
    entry = uploads_.erase(entry);
  }
  return removed;
}

}  // namespace goldfinch
