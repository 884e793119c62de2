#include "coordinator/calls/key_ring.h"

#include <sys/stat.h>

#include <algorithm>
#include <chrono>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/small_file.h"
#include "base/status.h"
#include "openssl/crypto.h"
#include "spdlog/spdlog.h"

namespace goldfinch {
namespace {

constexpr size_t kFileBytesMax = size_t{4} << 20;  // some 30,000 keys

}  // namespace

absl::StatusOr<std::shared_ptr<KeyRing>> KeyRing::Open(const std::string& path, double poll_seconds) {
  std::shared_ptr<KeyRing> ring(new KeyRing(path));
  ring->version_ = ring->CurrentVersion();
  GF_ASSIGN_OR_RETURN(ring->entries_, ring->Read(Entries()));
  ring->watcher_ = std::thread([raw = ring.get(), poll_seconds] { raw->Watch(poll_seconds); });
  return ring;
}

KeyRing::~KeyRing() {
  {
    const std::lock_guard<std::mutex> lock(stop_mutex_);
    stop_ = true;
  }
  stopped_.notify_all();
  if (watcher_.joinable()) watcher_.join();
}

absl::StatusOr<std::shared_ptr<const KeyRing::Entries>> KeyRing::Read(const Entries& old) const {
  GF_ASSIGN_OR_RETURN(const std::string text, ReadSmallFile(path_, kFileBytesMax));
  GF_ASSIGN_OR_RETURN(std::vector<ApiKey> keys, ParseKeyFile(path_, text));
  auto entries = std::make_shared<Entries>();
  entries->has_roles = old.has_roles;  // once there were roles, no key gets more rights because they are gone
  for (ApiKey& key : keys) {
    const auto same = std::find_if(old.list.begin(), old.list.end(), [&](const Entry& one) {
      return one.key.digest == key.digest && *one.client == Client{key.name, key.limits, key.name};
    });
    std::shared_ptr<const Client> client =
        same != old.list.end() ? same->client : std::make_shared<const Client>(Client{key.name, key.limits, key.name});
    entries->has_roles |= key.is_operator;
    entries->list.push_back({std::move(key), std::move(client)});
  }
  return entries;
}

std::shared_ptr<const KeyRing::Entries> KeyRing::entries() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return entries_;
}

absl::StatusOr<KeyRing::Holder> KeyRing::Find(std::string_view key, absl::Time now) const {
  const KeyDigest digest = DigestOfKey(key);
  const std::shared_ptr<const Entries> entries = this->entries();
  const Entry* found = nullptr;
  for (const Entry& entry : entries->list) {
    const bool same = CRYPTO_memcmp(entry.key.digest.data(), digest.data(), digest.size()) == 0;
    found = same ? &entry : found;
  }
  if (found == nullptr) return absl::UnauthenticatedError("the API key is not known");
  if (found->key.expires && *found->key.expires <= now) {
    return absl::UnauthenticatedError(
        absl::StrCat("the API key ", found->key.name, " expired at ",
                     absl::FormatTime(absl::RFC3339_sec, *found->key.expires, absl::UTCTimeZone())));
  }
  return Holder{found->client, found->key.is_operator || !entries->has_roles};
}

absl::Status KeyRing::Reload() {
  const std::lock_guard<std::mutex> reload_lock(reload_mutex_);
  version_ = CurrentVersion();
  absl::StatusOr<std::shared_ptr<const Entries>> fresh = Read(*entries());
  if (!fresh.ok()) {
    spdlog::error("the API keys stay as they are: {}", std::string(fresh.status().message()));
    return fresh.status();
  }
  spdlog::info("{} API keys from {}", (*fresh)->list.size(), path_);
  const std::lock_guard<std::mutex> lock(mutex_);
  entries_ = *std::move(fresh);
  return absl::OkStatus();
}

// A file that is replaced by renaming has another inode. Kubernetes does that with a link on the way; stat follows it.
KeyRing::Version KeyRing::CurrentVersion() const {
  struct stat file;
  if (stat(path_.c_str(), &file) != 0) return {};
  return {file.st_ino, file.st_size, file.st_mtim.tv_sec, file.st_mtim.tv_nsec};
}

void KeyRing::Watch(double poll_seconds) {
  const std::chrono::duration<double> poll(poll_seconds);
  Version before = CurrentVersion();
  std::unique_lock<std::mutex> lock(stop_mutex_);
  while (!stopped_.wait_for(lock, poll, [this] { return stop_; })) {
    const Version now = CurrentVersion();
    // A file that is being written looks the same twice once it is whole.
    const bool settled = std::exchange(before, now) == now;
    bool changed = false;
    {
      const std::lock_guard<std::mutex> reload_lock(reload_mutex_);
      changed = now != version_;
    }
    if (settled && changed) (void)Reload();
  }
}

}  // namespace goldfinch
