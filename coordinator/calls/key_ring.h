// The API keys that are valid now.
#ifndef GOLDFINCH_COORDINATOR_CALLS_KEY_RING_H_
#define GOLDFINCH_COORDINATOR_CALLS_KEY_RING_H_

#include <condition_variable>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <thread>
#include <tuple>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "coordinator/calls/key_file.h"
#include "coordinator/scheduler/client.h"

namespace goldfinch {

// Thread-safe. Keys are kept as SHA-256 digests, and a comparison looks at all of them in constant time. A thread reads
// the file again when it has changed.
class KeyRing {
 public:
  struct Holder {
    std::shared_ptr<const Client> client;
    bool may_operate = false;  // has the role operator, or no key has any role
  };

  // NOT_FOUND, PERMISSION_DENIED or INVALID_ARGUMENT names the file, and what is wrong with it as ParseKeyFile does.
  static absl::StatusOr<std::shared_ptr<KeyRing>> Open(const std::string& path, double poll_seconds = 1);
  ~KeyRing();
  KeyRing(const KeyRing&) = delete;
  KeyRing& operator=(const KeyRing&) = delete;

  // UNAUTHENTICATED if there is no such key, or if it has expired. Calls with the same key get the same Client for as
  // long as its name and its limits stay the same.
  absl::StatusOr<Holder> Find(std::string_view key, absl::Time now = absl::Now()) const;
  // Reads the file again. If that fails, the keys stay as they are. Either is logged.
  absl::Status Reload();

 private:
  struct Entry {
    ApiKey key;
    std::shared_ptr<const Client> client;
  };
  struct Entries {
    std::vector<Entry> list;
    bool has_roles = false;
  };
  // Changes when the file does: its inode, size, and time of change in seconds and nanoseconds.
  using Version = std::tuple<uint64_t, int64_t, int64_t, int64_t>;

  explicit KeyRing(std::string path) : path_(std::move(path)) {}
  absl::StatusOr<std::shared_ptr<const Entries>> Read(const Entries& old) const;
  Version CurrentVersion() const;
  std::shared_ptr<const Entries> entries() const;
  void Watch(double poll_seconds);

  const std::string path_;
  mutable std::mutex mutex_;
  std::shared_ptr<const Entries> entries_ = std::make_shared<Entries>();  // guarded by mutex_
  std::mutex reload_mutex_;                                               // one Reload at a time
  Version version_;                                                       // of the last Reload; by reload_mutex_

  std::mutex stop_mutex_;
  std::condition_variable stopped_;
  bool stop_ = false;  // guarded by stop_mutex_
  std::thread watcher_;
};

}  // namespace goldfinch

#endif  // GOLDFINCH_COORDINATOR_CALLS_KEY_RING_H_
