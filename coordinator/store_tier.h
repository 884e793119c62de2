// The store as a tier of contexts (docs/GLOSSARY.md): which segments are copied to it from the shelves of workers,
// which are brought back to shelves, who waits for that, and which names it keeps. Pure: it says what is to be done,
// and is told what has become of it.
//
// WHAT IS SAVED. A segment whose snapshot has come to a shelf is saved if reading it back would take less time than
// computing what lies between it and the snapshot before it in the store, and always if it is that of a named context.
// A store that does not outlive its process is there for texts of running sequences: it gets long texts only. Segments
// are saved one or two at a time, those of long texts first, and each with those of its parents that are not in the
// store; SegmentMover keeps the rate.
//
// WHO WAITS. A request whose text is best begun with what is in the store waits until all of it is on the shelves, or
// until something of it has failed, at most wait_seconds_max: then it begins with what is there. Several that need the
// same segment share its move. No failure here fails a request.
//
// WHAT IS LOST. What the store cannot keep, for want of room or permission, is not kept; after such an error nothing is
// saved for a while. A file that was found damaged is gone, and so is what goes on from it in the store.
#ifndef GOLDFINCH_COORDINATOR_STORE_TIER_H_
#define GOLDFINCH_COORDINATOR_STORE_TIER_H_

#include <cstdint>
#include <deque>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "coordinator/contexts/segment_key.h"
#include "coordinator/contexts/segment_tree.h"
#include "coordinator/segment_mover.h"
#include "coordinator/store/file_format.h"
#include "coordinator/store/store.h"

namespace goldfinch {

struct StoreTierOptions {
  std::string name = "the disk";  // for messages
  int64_t bytes_max = 0;          // that the store may have; 0: there is none
  bool durable = true;            // it outlives its process
  int64_t protect_tokens = 8192;  // a text of so many tokens is long
  int saves_max = 2;              // at once
  int brings_max = 64;            // likewise
  int waits_max = 1024;           // requests that wait at once
  double wait_seconds_max = 20;
  // After a save that found no room or no permission; twice as long after the next one, up to 64 times.
  double pause_seconds = 2;
  // What it takes to bring something to the shelves, before anything was.
  TransferRate rate{1e9, 5e-3};
};

// What a store had when it was opened.
struct StoreContents {
  struct Found {
    StoredSegment segment;
    std::vector<int32_t> ids;
  };
  std::vector<Found> segments;  // of any identity; each has ids that give its key, but for tuned states
  std::vector<ContextName> names;
  int64_t other_bytes = 0;  // of the store, beside these segments
};

// Something to do, in the order in which it was given out: what frees room comes before what takes it.
struct StoreAction {
  enum class Kind { kSave, kBring, kDelete, kDropSnapshot, kTouch, kPutName, kDeleteName };
  Kind kind = Kind::kSave;
  uint64_t move = 0;     // its number, for kSave and kBring: Moved follows
  SegmentToSave save;    // kSave
  SegmentToBring bring;  // kBring
  SegmentKey key{};      // of the segment, for all others but the names
  ContextName name;      // kPutName and kDeleteName; NamePut follows kPutName
  // kPutName: when the name expires, if it does; name.expires_unix_seconds is not set.
  std::optional<double> expires_in_seconds;
};

// What has become of a move.
struct StoreMoved {
  absl::Status status;
  int64_t bytes = 0;
  double seconds = 0;
  SegmentContents stored = 0;  // what the store has of the segment now
};

// Not thread-safe. `now` is in seconds and never goes back. The tree outlives it. What it adds to `drops` is for
// whoever owns the shelves; drops of its own tier are given to it by Dropped.
class StoreTier {
 public:
  // What cannot be used of the contents is deleted. `bytes` and `token_seconds`, which reading a token takes: of the
  // model that is served now.
  StoreTier(const StoreTierOptions& options, StoreContents contents, const SegmentBytes& bytes, double token_seconds,
            SegmentTree* tree, double now);

  int tier() const { return tier_; }

  // ---- Groups. A group's tier is open from GroupReady to GroupEnded, which comes before it is closed, and after which
  // nobody waits for it.
  void GroupReady(int replica, int tier) { groups_[replica] = tier; }
  void GroupEnded(int replica, SegmentDrops* drops);

  // Takes over a tuned state of the model that is served, which is in the store under this key: its number in the tree.
  // It may have it already. What the tree does not take is deleted from the store.
  absl::StatusOr<uint64_t> AdoptTuned(const std::string& name_space, const SegmentKey& key, double now,
                                      SegmentDrops* drops);
  // Something of the segment has come to a shelf.
  void Stored(uint64_t segment);
  // Whether the tier has these contents.
  bool Has(uint64_t segment, int tier, SegmentContents contents) const {
    return (contents & ~Present(segment, tier)) == 0;
  }
  // It was used.
  void Used(uint64_t segment);
  void Dropped(const SegmentDrop& drop);

  // Whether the request has to wait until a segment is on the shelves of the replica's group. `usable` says whether
  // something may be put there under the number of a segment now. The request's number is in TakePrepared when it need
  // not wait any more.
  bool Wait(int replica, uint64_t request, uint64_t segment, absl::FunctionRef<bool(uint64_t segment)> usable,
            double now, SegmentDrops* drops);

  // ---- What is to be done, and what has become of it.
  // `freed` says whether the shelves of a replica's group have the room that they should have by now.
  std::vector<StoreAction> TakeActions(absl::FunctionRef<bool(int replica)> freed, double now, SegmentDrops* drops);
  void Moved(uint64_t move, const StoreMoved& moved, double now, SegmentDrops* drops);
  void NamePut(const ContextName& asked, const absl::StatusOr<ContextName>& kept);
  // Requests that need not wait any more.
  std::vector<uint64_t> TakePrepared(double now, SegmentDrops* drops);

  // ---- Names of contexts. A name that was made, changed or deleted in the tree: it is written down as soon as its
  // segment is in the store, if that is durable.
  void NameChanged(const std::string& name_space, const std::string& name);

  // Moves that have been given out and have not ended; and those that have, well or not.
  int saving() const { return saving_; }
  int bringing() const { return bringing_; }
  int64_t saved() const { return saved_; }
  int64_t brought() const { return brought_; }
  int64_t moves_failed() const { return moves_failed_; }
  int64_t bytes() const { return tree_->TierBytes(tier_); }
  int64_t long_bytes() const { return long_bytes_; }  // of these, those of long texts

 private:
  using Name = std::pair<std::string, std::string>;  // namespace and name
  struct Move {
    bool save = false;
    int replica = 0;
    int tier = 0;  // that it goes to
    uint64_t segment = 0;
    SegmentContents contents = 0;
    SegmentKey key{};  // of one to the store that has been given out
  };
  struct Waiting {
    int replica = 0;
    int tier = 0;
    uint64_t segment = 0;  // held
    double until = 0;
  };
  // What the store has of a segment.
  struct Kept {
    SegmentKey key{};
    SegmentContents contents = 0;
    int64_t long_bytes = 0;  // that count as those of long texts
  };
  struct KeptName {
    uint64_t id = 0;        // in the store; 0: none
    uint64_t revision = 0;  // there
    uint64_t etag = 0;      // of the context when it was last written down
    bool putting = false;
  };

  void Adopt(StoreContents contents, const SegmentBytes& bytes, double token_seconds, double now);
  void AdoptNames(const std::vector<ContextName>& names, const std::map<SegmentKey, uint64_t>& numbers, double now);
  void SetKept(uint64_t segment, SegmentContents contents);
  uint64_t AddMove(const Move& move, double now);
  void EndMove(uint64_t number, SegmentDrops* drops);
  void EndSave(const Move& move, const StoreMoved& moved, double now, SegmentDrops* drops);
  void EndBring(const Move& move, const StoreMoved& moved, double now, SegmentDrops* drops);
  bool WorthSaving(uint64_t segment) const;
  void PlanSaves(double now, SegmentDrops* drops);
  // The replica of a group that has these contents of the segment on its shelves; -1: none.
  int SourceOf(const SegmentInfo& info, SegmentContents contents) const;
  bool HasMove(uint64_t segment, int tier) const;
  std::optional<StoreAction> Begin(uint64_t number, Move& move);
  void BeginMoves(absl::FunctionRef<bool(int replica)> may, std::deque<uint64_t>* waiting, int* running,
                  int running_max, SegmentDrops* drops);
  SegmentContents Present(uint64_t segment, int tier) const;
  SegmentContents PresentOrComing(uint64_t segment, int tier) const;
  bool ChainHasRows(uint64_t segment) const;
  // What the shelves need of a link of the chain of `last`.
  SegmentContents Wanted(uint64_t link, uint64_t last) const;
  bool StillComes(const Waiting& waiting) const;
  void PlanNames(double now);
  void Do(StoreAction::Kind kind, const SegmentKey& key);

  const StoreTierOptions options_;
  SegmentTree* const tree_;
  const int64_t snapshot_bytes_;  // of the model that is served
  int tier_ = 0;
  std::map<int, int> groups_;                 // tiers by replica
  absl::flat_hash_map<uint64_t, Kept> kept_;  // segments that are in the store, or on their way there
  std::set<uint64_t> dropped_;                // segments of which the tier has lost something
  int64_t long_bytes_ = 0;
  std::set<std::pair<bool, uint64_t>> candidates_;  // to be saved: (not long, segment)
  std::map<uint64_t, Move> moves_;                  // by number
  std::deque<uint64_t> saves_, brings_;             // moves that have not been given out
  int saving_ = 0, bringing_ = 0;                   // moves that have been
  uint64_t last_move_ = 0;
  int64_t saved_ = 0, brought_ = 0, moves_failed_ = 0;
  std::map<uint64_t, Waiting> waits_;  // by request
  bool look_at_waits_ = false;         // something has come, or will not
  std::vector<StoreAction> actions_;
  std::map<Name, KeptName> names_;
  std::set<Name> changed_names_;
  bool look_at_names_ = false;
  double paused_until_ = 0;
  int failures_ = 0;  // saves in a row that found no room
};

}  // namespace goldfinch

#endif  // GOLDFINCH_COORDINATOR_STORE_TIER_H_
