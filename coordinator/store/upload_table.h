// Imports on their way: what has come of each, for clients that come back and go on.
#ifndef GOLDFINCH_COORDINATOR_STORE_UPLOAD_TABLE_H_
#define GOLDFINCH_COORDINATOR_STORE_UPLOAD_TABLE_H_

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "coordinator/store/context_transfer.h"
#include "coordinator/store/store.h"

namespace goldfinch {

struct UploadLimits {
  int uploads_max = 64;
  int uploads_of_client_max = 8;
  // Shares of the store's bytes that unfinished uploads may take together, and those of one client.
  double share_max = 0.75;
  double share_of_client_max = 0.5;
  // An upload is dropped when nothing has come for so long, or when it is so old.
  double idle_seconds_max = 600;
  double age_seconds_max = 86'400;
  // A client that has as many as it may have loses the one that has been idle for the longest time, if it was so for
  // this long, when it begins another one.
  double replaced_after_seconds = 60;
  // So long a client can ask what has become of an upload that is complete.
  double finished_seconds = 60;
};

// By the owner's namespace and what the client has called it.
using UploadKey = std::pair<std::string, std::string>;

struct Upload {
  std::string client;  // who began it
  bool busy = false;   // a call works with it: it is neither dropped nor given to another one
  double began = 0, used = 0;
  int64_t received = 0;  // as of the last call that has ended
  int64_t bytes = 0;     // that its file takes of the store's room
  // These go in the opposite order: the import needs the store.
  std::shared_ptr<SegmentStore> store;
  std::shared_ptr<const void> room;
  std::unique_ptr<ContextImport> import;  // null before the first bytes, and when it is finished
  // The context that it has become.
  struct Finished {
    std::string name;
    uint64_t etag = 0;
  };
  std::unique_ptr<const Finished> finished;
};

// Pure: `now` is in seconds and never goes back. Not thread-safe. An Upload stays where it is until it is removed. What
// was removed is given back, as its end waits for the disk.
class UploadTable {
 public:
  using Removed = std::vector<std::unique_ptr<Upload>>;

  explicit UploadTable(const UploadLimits& limits) : limits_(limits) {}

  // Null if there is none.
  Upload* Find(const UploadKey& key);
  // A new one, which is busy. There must be none. RESOURCE_EXHAUSTED names the limit.
  absl::StatusOr<Upload*> Add(const UploadKey& key, const std::string& client, double now, Removed* removed);
  // Its header says how much room it takes, of a store that has so many bytes. RESOURCE_EXHAUSTED names the limit.
  absl::Status Take(Upload* upload, int64_t bytes, int64_t store_bytes);
  // It is complete, and takes no more room. It is not busy any more.
  void Finish(Upload* upload, Upload::Finished finished, double now);
  // Nothing if there is none.
  std::unique_ptr<Upload> Remove(const UploadKey& key);
  // Removes those whose time is over.
  Removed Sweep(double now);

  size_t size() const { return uploads_.size(); }
  int64_t bytes() const;

 private:
  using Uploads = std::map<UploadKey, std::unique_ptr<Upload>>;

  bool Over(const Upload& upload, double now) const;

  const UploadLimits limits_;
  Uploads uploads_;
};

}  // namespace goldfinch

#endif  // GOLDFINCH_COORDINATOR_STORE_UPLOAD_TABLE_H_
