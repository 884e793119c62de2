// Segments and names of contexts in a folder on disk.
//
// A file has one segment or one name (file_format.h) and describes itself: the index of the folder is made from the
// headers of its files. A file gets its name only when all of it is on the disk. So if the process or the machine ends
// at any moment, the old state or the new one is there afterwards, and unfinished files are removed at the next start.
// Damage is found before a byte of the file is used. The file is then moved to the folder's `quarantine`, logged and
// counted.
//
// All calls wait for the disk, those of writers and readers too, except the plain look-ups (`Segments`, `Find`,
// `Names`, `totals`). So make them on the thread of a work queue (base/work_queue.h), never on the coordinator's own.
// The store is thread-safe; a writer or reader is for one thread at a time.
//
// Errors are Status: RESOURCE_EXHAUSTED (the store's limit, the disk, a quota), PERMISSION_DENIED (also of a read-only
// file system), INTERNAL (a disk that fails), DATA_LOSS (damage), and those that are named below. After any of them the
// store goes on, and the caller computes what it did not get. Only DATA_LOSS and NOT_FOUND mean that something is lost:
// what cannot be read at the moment is left as it is. What the tree of contexts knows (who needs which parent, what
// may be evicted) is not checked here.
#ifndef GOLDFINCH_COORDINATOR_STORE_STORE_H_
#define GOLDFINCH_COORDINATOR_STORE_STORE_H_

#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "coordinator/store/file_format.h"
#include "coordinator/store/files.h"
#include "coordinator/store/folder_lock.h"
#include "coordinator/store/segment.h"

namespace goldfinch {

class SegmentReader;
class SegmentWriter;

struct StoreOptions {
  std::string folder;  // made if it does not exist; the folder above it must exist
  // The most bytes of all files together: segments, names, quarantined and unfinished ones.
  int64_t bytes_max = int64_t{100} << 30;
  // The newest quarantined files are kept for a person to look at, until their room is needed.
  int quarantine_files_max = 8;
  Files* files = Files::System();  // outlives the store
};

// What the index knows of a segment.
struct StoredSegment {
  SegmentKey key{};
  std::shared_ptr<const ContextIdentity> identity;  // the same object for equal identities
  std::string name_space;
  std::optional<SegmentKey> parent;
  int64_t begin = 0;
  int64_t end = 0;
  bool has_snapshot = false;
  int64_t gold_position = 0;
  bool has_logits = false;
  int64_t bytes = 0;                   // of its file
  int64_t bytes_without_snapshot = 0;  // that the file has once the snapshot is dropped
  int64_t used_unix_seconds = 0;       // when it was saved, or what `Touch` said; it survives restarts
  uint64_t serial = 0;                 // differs for every file that this process has read or written
};

struct StoreTotals {
  int64_t segments = 0;
  int64_t names = 0;
  int64_t bytes = 0;  // of all files, with what is reserved for those that are being written
  int64_t bytes_max = 0;
  int64_t quarantine_bytes = 0;   // a part of `bytes`
  int64_t quarantined_total = 0;  // files that were found damaged since the store was opened
};

class SegmentStore {
 public:
  // Locks the folder, sweeps what is unfinished and reads the header of every file. FAILED_PRECONDITION if another
  // process has the folder. Files that cannot be read, and those of another version of the format, are left alone and
  // logged; so is everything that does not have the name of a file of a store.
  static absl::StatusOr<std::unique_ptr<SegmentStore>> Open(const StoreOptions& options);
  // Its writers and readers must be gone.
  ~SegmentStore();
  SegmentStore(const SegmentStore&) = delete;
  SegmentStore& operator=(const SegmentStore&) = delete;

  // ---- Look-ups: from any thread, without waiting for the disk.

  std::vector<StoredSegment> Segments() const;
  std::optional<StoredSegment> Find(const SegmentKey& key) const;
  std::vector<ContextName> Names() const;
  // Segments that have a file, which was left alone when the store was opened.
  std::vector<SegmentKey> LeftAlone() const;
  StoreTotals totals() const;

  // ---- Segments.

  // Begins to save a segment, and reserves its room at once: RESOURCE_EXHAUSTED if there is too little of it, by the
  // store's limit or on the disk. ALREADY_EXISTS if a segment of that key is there or is being saved; but a segment
  // with a snapshot replaces one without. Without `key`, the ids give the key. INVALID_ARGUMENT as LayOut.
  absl::StatusOr<std::unique_ptr<SegmentWriter>> Save(const SegmentSpec& segment,
                                                      const std::optional<SegmentKey>& key = std::nullopt);
  // NOT_FOUND if the segment is not there.
  absl::StatusOr<std::unique_ptr<SegmentReader>> Load(const SegmentKey& key);
  // Frees the snapshot's room on the disk. Readers that are reading it get NOT_FOUND. NOT_FOUND if the segment is not
  // there; OK if it has no snapshot.
  absl::Status DropSnapshot(const SegmentKey& key);
  // Readers that have it open can go on. NOT_FOUND if it is not there.
  absl::Status Delete(const SegmentKey& key);
  // Notes when the segment was used. If that cannot be written down, it is forgotten at the next start.
  void Touch(const SegmentKey& key, int64_t unix_seconds);

  // ---- Names of contexts.

  // Keeps a new name (`id` and `revision` 0) or changes one. The `revision` must be the one that is kept: ABORTED if
  // somebody else has changed it meanwhile. Returns what is kept then, with the next revision. ALREADY_EXISTS if
  // another context of the namespace has the name, NOT_FOUND if there is no such id, INVALID_ARGUMENT as CheckName.
  absl::StatusOr<ContextName> PutName(ContextName name);
  absl::Status DeleteName(uint64_t id);

 private:
  friend class SegmentReader;
  friend class SegmentWriter;

  struct Quarantined {
    std::string path;
    int64_t bytes = 0;
  };
  struct KeptName {
    ContextName name;
    int64_t bytes = 0;  // of its file
  };

  SegmentStore(const StoreOptions& options, std::optional<FolderLock> lock);

  // The start (store_open.cc).
  absl::Status ReadFolder();
  absl::Status ReadQuarantine();
  void ReadFile(const std::string& file_name);
  void LeaveAlone(const std::string& file_name, const absl::Status& why);
  absl::Status ReadSegmentFile(const std::string& file_name, const OpenFile& file);
  absl::Status ReadNameFile(const std::string& file_name, const OpenFile& file);

  std::string PathOf(const std::string& file_name) const { return options_.folder + "/" + file_name; }
  std::string PartialPath();
  // Takes `bytes` of the store's room, and removes quarantined files for it. Needs changes_.
  absl::Status TakeRoom(int64_t bytes);
  absl::Status CheckNew(const SegmentKey& key, bool has_snapshot) const;
  // Gives a finished file its name. Sets *published if the file is in the index from here on, even after an error.
  absl::Status Publish(const OpenFile& file, const SegmentHeader& header, bool* published);
  // The end of a writer. `bytes` and `partial_path`: what it has taken, if that was not published.
  void WriterGone(const std::optional<SegmentKey>& key, int64_t bytes, const std::string& partial_path);
  // Writes the file; *written is set when it has its name, even after an error. Needs changes_, as all below.
  absl::Status WriteNameFile(uint64_t id, const std::string& bytes, bool* written);
  std::shared_ptr<const ContextIdentity> Share(const ContextIdentity& identity);
  StoredSegment Describe(const SegmentHeader& header, int64_t file_bytes, int64_t used_unix_seconds);

  // Moves the file of a segment to quarantine if it is still the one with this serial. Takes changes_ itself.
  void Quarantine(const SegmentKey& key, uint64_t serial, const absl::Status& why);
  // The file has the size and counts as used room already.
  void MoveToQuarantine(const std::string& file_name, int64_t bytes, const absl::Status& why);
  void TrimQuarantine(size_t files_max);
  void Forget(const SegmentKey& key, uint64_t serial);

  const StoreOptions options_;
  const std::optional<FolderLock> lock_;  // set if other processes can have the same files
  Files* const files_;

  // Held while names of files change, and while the disk works on that. Taken before mutex_.
  std::mutex changes_;
  std::deque<Quarantined> quarantine_;           // guarded by changes_; the oldest first
  absl::flat_hash_set<std::string> unreadable_;  // guarded by changes_; names of files that were left alone

  mutable std::mutex mutex_;  // held for moments
  // Guarded by mutex_; segments_ and names_ change under changes_ only.
  absl::flat_hash_map<SegmentKey, StoredSegment> segments_;
  absl::flat_hash_map<uint64_t, KeptName> names_;
  absl::flat_hash_map<std::pair<std::string, std::string>, uint64_t> name_ids_;  // by namespace and name
  absl::flat_hash_set<SegmentKey> saving_;                                       // keys that writers have been given
  std::vector<std::shared_ptr<const ContextIdentity>> identities_;
  std::vector<SegmentKey> left_alone_;
  int64_t bytes_ = 0;
  int64_t quarantine_bytes_ = 0;
  int64_t quarantined_total_ = 0;
  uint64_t serial_ = 0;
  uint64_t partial_ = 0;
};

}  // namespace goldfinch

#endif  // GOLDFINCH_COORDINATOR_STORE_STORE_H_
