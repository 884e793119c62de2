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
// WHAT IS EXPORTED AND IMPORTED goes by way of the store. What is to be exported is saved at once, worth it or not, and
// whatever was to be waited with after an error. What was imported lies in the store without its name, and gets it in
// the order of all else that is done there, as the end of a move.
//
// WHAT IS LOST. What the store cannot keep, for want of room or permission, is not kept; after such an error nothing is
// saved for a while. A file that was found damaged is gone, and so is what goes on from it in the store. A file that
// could not be read for the moment is left alone, with what goes on from it and its names: the next start finds them.
#ifndef GOLDFINCH_COORDINATOR_KEEPER_STORE_TIER_H_
#define GOLDFINCH_COORDINATOR_KEEPER_STORE_TIER_H_

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "coordinator/contexts/segment_key.h"
#include "coordinator/contexts/segment_tree.h"
#include "coordinator/shelves/segment_mover.h"
#include "coordinator/store/file_format.h"
#include "coordinator/store/segment_writer.h"
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
  // Segments that are there and could not be read: they may be readable again at the next start, so what needs them, a
  // child or a name, stays in the store.
  std::vector<SegmentKey> unread;
  std::vector<ContextName> names;
  int64_t other_bytes = 0;  // of the store, beside these segments
};

// Something to do, in the order in which it was given out: what frees room comes before what takes it.
struct StoreAction {
  enum class Kind { kSave, kBring, kPublish, kDiscard, kDelete, kDropSnapshot, kTouch, kPutName, kDeleteName };
  Kind kind = Kind::kSave;
  uint64_t move = 0;     // its number, for kSave, kBring and kPublish: Moved follows
  SegmentToSave save;    // kSave
  SegmentToBring bring;  // kBring
  // kPublish: a segment that is sealed; kDiscard: one that nobody wants. The last one who has it waits for the disk.
  std::shared_ptr<SegmentWriter> writer;
  SegmentKey key{};  // of the segment, for all others but kSave, kBring and the names
  ContextName name;  // kPutName and kDeleteName; NamePut follows kPutName
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

// Implementation: store_tier_open.cc takes what was there at the start, store_tier.cc moves segments, and
// store_tier_names.cc keeps names.
//
// Not thread-safe. `now` is in seconds and never goes back. The tree outlives it. What it adds to `drops` is for
// whoever owns the shelves; drops of its own tier are given to it by Dropped.
class StoreTier {
 public:
  // What cannot be used of the contents is deleted, unless it needs what could not be read. `bytes` and
  // `token_seconds`, which reading a token takes: of the model that is served now.
  StoreTier(const StoreTierOptions& options, StoreContents contents, const SegmentBytes& bytes, double token_seconds,
            SegmentTree* tree, double now);

  int tier() const { return tier_; }

  // ---- Groups. A group's tier is open from GenerationReady to GenerationEnded, which comes before it is closed, and
  // after which nobody waits for it.
  void GenerationReady(int replica, int tier) { groups_[replica] = tier; }
  void GenerationEnded(int replica, SegmentDrops* drops);

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
  // `freed` says whether the shelves of a replica's group have the room that they should have by now. What it returns
  // is for the caller to move from, until the next call.
  std::vector<StoreAction>& TakeActions(absl::FunctionRef<bool(int replica)> freed, double now, SegmentDrops* drops);
  void Moved(uint64_t move, const StoreMoved& moved, double now, SegmentDrops* drops);
  void NamePut(const ContextName& asked, const absl::StatusOr<ContextName>& kept, double now);
  // Requests that need not wait any more. Valid until the next call.
  const std::vector<uint64_t>& TakePrepared(double now, SegmentDrops* drops);

  // ---- What is exported and imported (store_tier_transfers.cc).

  // Has the segment, which is held, and its chain saved as far as they are not in the store. RESOURCE_EXHAUSTED: there
  // is no room. FAILED_PRECONDITION: not all of it is anywhere, or on the shelves of one group.
  absl::Status SaveNow(uint64_t segment, double now, SegmentDrops* drops);
  // Whether the store has all of it, and the snapshot at its end.
  bool HasText(uint64_t segment) const;
  // Whether what it does not have is on its way there.
  bool TextComes(uint64_t segment) const;
  // The keys of a text that the store has, from position 0 on.
  std::vector<SegmentKey> KeysOf(uint64_t segment) const;
  // The segment that a move saves, 0 if it saves none.
  uint64_t SavedBy(uint64_t move) const;
  struct Importing {
    uint64_t move = 0;
    uint64_t segment = 0;
  };
  // What the writer has sealed is a text from its beginning on, of the model that is served. Its move is over when
  // Moved comes for it. Errors as SegmentTree::Import.
  absl::StatusOr<Importing> Import(const std::string& name_space, absl::Span<const int32_t> ids,
                                   const SegmentBytes& bytes, double seconds, std::shared_ptr<SegmentWriter> writer,
                                   double now, SegmentDrops* drops);
  // The same for a tuned state of this key. Errors as SegmentTree::ImportTuned.
  absl::StatusOr<Importing> ImportTuned(const std::string& name_space, const SegmentKey& key, int64_t snapshot_bytes,
                                        std::shared_ptr<SegmentWriter> writer, double now, SegmentDrops* drops);
  // Nobody wants it.
  void Discard(std::shared_ptr<SegmentWriter> writer);

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
  int64_t protected_bytes() const { return protected_bytes_; }  // of these, those of long texts

 private:
  using Name = std::pair<std::string, std::string>;  // namespace and name
  struct Move {
    bool save = false;
    bool imported = false;  // a save whose bytes are there already
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
    int64_t protected_bytes = 0;  // that count as those of long texts
  };
  struct KeptName {
    uint64_t id = 0;        // in the store; 0: none
    uint64_t revision = 0;  // there
    uint64_t etag = 0;      // of the context when it was last written down; 0: it has to be again
    SegmentKey key{};       // of its segment then
    uint64_t segment = 0;   // in names_at_; 0: none
    bool putting = false;
    bool changed = false;  // meanwhile
  };

  using Keys = absl::flat_hash_set<SegmentKey>;

  static Keys SetAside(StoreContents* contents);
  void Adopt(StoreContents contents, const Keys& left_alone, const SegmentBytes& bytes, double token_seconds,
             double now);
  void AdoptNames(const std::vector<ContextName>& names, const std::map<SegmentKey, uint64_t>& numbers,
                  const Keys& left_alone, double now);
  void SetKept(uint64_t segment, const SegmentKey& key, SegmentContents contents);
  void Tidy(uint64_t segment);
  uint64_t AddMove(const Move& move, double now);
  void EndMove(uint64_t number, SegmentDrops* drops);
  void EndSave(const Move& move, const StoreMoved& moved, double now, SegmentDrops* drops);
  void LoseBrought(const Move& move, SegmentDrops* drops);
  void EndBring(const Move& move, const StoreMoved& moved, double now, SegmentDrops* drops);
  bool WorthSaving(uint64_t segment) const;
  void PlanSaves(double now, SegmentDrops* drops);
  // The replica of a group that has these contents of the segment on its shelves; -1: none.
  int SourceOf(const SegmentInfo& info, SegmentContents contents) const;
  std::optional<StoreAction> Begin(uint64_t number, Move& move, SegmentDrops* drops);
  void BeginMoves(absl::FunctionRef<bool(const Move& move)> may, std::deque<uint64_t>* waiting, int* running,
                  int running_max, SegmentDrops* drops);
  SegmentContents Present(uint64_t segment, int tier) const;
  SegmentContents PresentOrComing(uint64_t segment, int tier) const;
  bool ChainHasRows(uint64_t segment) const;
  bool StillComes(const Waiting& waiting) const;
  Importing Publish(uint64_t segment, SegmentContents contents, const SegmentKey& key,
                    std::shared_ptr<SegmentWriter> writer);
  void PlanNames(double now);
  void SetSegment(const Name& name, KeptName* kept, uint64_t segment);
  void PlanName(const Name& name, double now, std::vector<StoreAction>* deletes);
  void Do(StoreAction::Kind kind, const SegmentKey& key);
  void DropFiles();

  const StoreTierOptions options_;
  SegmentTree* const tree_;
  int tier_ = 0;
  std::map<int, int> groups_;                             // tiers by replica
  absl::flat_hash_map<uint64_t, Kept> kept_;              // segments that are in the store
  std::vector<uint64_t> dropped_, looked_at_;             // segments of which the store may have too much, and scratch
  absl::flat_hash_set<uint64_t> writing_;                 // segments of moves to the store that have been given out
  absl::flat_hash_set<std::pair<uint64_t, int>> coming_;  // segments and tiers of moves to shelves
  int64_t protected_bytes_ = 0;
  std::set<std::pair<bool, uint64_t>> candidates_;  // to be saved: (not long, segment)
  std::map<uint64_t, Move> moves_;                  // by number
  std::deque<uint64_t> saves_, brings_;             // moves that have not been given out
  int saving_ = 0, bringing_ = 0;                   // moves that have been
  uint64_t last_move_ = 0;
  int64_t saved_ = 0, brought_ = 0, moves_failed_ = 0;
  std::map<uint64_t, Waiting> waits_;  // by request
  bool look_at_waits_ = false;         // something has come, or will not
  double first_wait_until_ = 0;        // of these, or of one that has ended
  std::vector<uint64_t> prepared_;
  std::vector<StoreAction> actions_, taken_actions_;
  std::map<Name, KeptName> names_;
  std::set<Name> changed_names_;  // to be looked at
  std::set<Name> failed_names_;   // that could not be written down
  // By the segment that their contexts end in: whenever that is in the store anew, they are looked at.
  absl::flat_hash_map<uint64_t, std::set<Name>> names_at_;
  double names_paused_until_ = 0;
  double paused_until_ = 0;
  int failures_ = 0;  // saves in a row that found no room
};

}  // namespace goldfinch

#endif  // GOLDFINCH_COORDINATOR_KEEPER_STORE_TIER_H_
