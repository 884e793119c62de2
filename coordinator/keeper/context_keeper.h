// Keeps what requests have read, on the shelves of the workers: which texts those are (SegmentTree), how the
// scheduler's Steps save them and begin with them, and which of them have names.
//
// Implementation: context_keeper.cc keeps texts automatically, context_keeper_named.cc knows the names,
// context_keeper_store.cc has the store beside the shelves, context_keeper_transfers.cc what is exported and imported.
#ifndef GOLDFINCH_COORDINATOR_KEEPER_CONTEXT_KEEPER_H_
#define GOLDFINCH_COORDINATOR_KEEPER_CONTEXT_KEEPER_H_

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "coordinator/contexts/segment_key.h"
#include "coordinator/contexts/segment_tree.h"
#include "coordinator/contexts/snapshot_plan.h"
#include "coordinator/keeper/context_directory.h"
#include "coordinator/keeper/store_tier.h"
#include "coordinator/scheduler/prefix_keeper.h"

namespace goldfinch {

// What a group can keep. Each worker keeps the parts of its own layers. A share is the largest part of the bytes of all
// layers that one worker keeps.
struct ShelfCapacity {
  int64_t bytes_max = 0;  // of the smallest shelf
  int64_t bytes_per_token = 0;
  int64_t snapshot_bytes = 0;
  double rows_share = 1, snapshots_share = 1;
};

// What is kept of a text, over all layers, and what a transformer of the same shape would keep.
struct TextBytes {
  int64_t per_token = 0;
  int64_t snapshot = 0;
  int64_t transformer_per_token = 0;
};

// Segments that workers free.
struct ShelfDrops {
  std::vector<uint64_t> segments;
  std::vector<uint64_t> snapshots;  // of segments whose rows stay
  bool empty() const { return segments.empty() && snapshots.empty(); }
  void Clear() {
    segments.clear();
    snapshots.clear();
  }
};

// Whose texts the request may use: those of its client's namespace.
const std::string& NamespaceOf(const Request& request);

// RESOURCE_EXHAUSTED: a worker of a group had no room on its shelf. `used_bytes` and `bytes_max` are the group's.
absl::Status NoRoomOnShelf(int64_t used_bytes, int64_t bytes_max);

// Pure, like the scheduler that calls it: `now` is in seconds and never goes back. Not thread-safe. For each Step that
// is planned, the order is NextStep, TakeDrops, StepPlanned; workers are told of the drops before they get the Step.
class ContextKeeper final : public PrefixKeeper {
 public:
  // `now` plus `unix_offset` is the time in Unix seconds. No context has had an etag of `first_etag` or above.
  explicit ContextKeeper(const SnapshotOptions& options = {}, double unix_offset = 0, uint64_t first_etag = 1)
      : options_(options), unix_offset_(unix_offset), first_etag_(first_etag) {}

  // Says what all groups serve from now on. What was kept of another model is forgotten, with its names. No group may
  // be ready.
  void SetModel(const ContextIdentity& identity, const TextBytes& bytes = {});
  const TextBytes& text_bytes() const { return text_bytes_; }
  // A group is ready; its shelves are empty. Without bytes, nothing is kept there.
  void GenerationReady(int replica, const ShelfCapacity& capacity);
  // Returns what the group's workers have to free: all that was saved there.
  ShelfDrops GenerationEnded(int replica);

  // PrefixKeeper.
  int64_t Kept(int replica, const Request& request, absl::Span<const int32_t> ids) const override;
  bool Prepare(int replica, uint64_t request_number, const Request& request, absl::Span<const int32_t> ids,
               double token_seconds, double now) override;
  Beginning Begin(int replica, const Request& request, absl::Span<const int32_t> ids, int64_t tokens_max,
                  double token_seconds, double now) override;
  Beginning Peek(int replica, const Request& request, absl::Span<const int32_t> ids, int64_t tokens_max,
                 double token_seconds) const override;
  void Release(int replica, const Beginning& beginning) override;
  Saved Save(int replica, const Request& request, absl::Span<const int32_t> ids, const SavePoint& point,
             double now) override;
  absl::Status Keep(int replica, const Request& request, absl::Span<const int32_t> ids, double now) override;

  // ---- Names, which each namespace has of its own. All errors are for users.

  // Prepares a request that has a context or keep_as for the scheduler: its prompt then begins with the tokens of the
  // context, breakpoints count from the first of them, and keep_as has the etag of the context that it replaces. The
  // scheduler gets the request with the sink that is returned, which passes everything on to `sink`. The bytes of the
  // context are kept until OnDone. Prompt and answer together have at most `tokens_max` tokens.
  // NOT_FOUND; FAILED_PRECONDITION (SegmentTree::Use); INVALID_ARGUMENT if the request does not fit. What would keep
  // the sequence from being named in any case is an error now: ALREADY_EXISTS, ABORTED, RESOURCE_EXHAUSTED, and
  // FAILED_PRECONDITION if no worker keeps anything.
  absl::StatusOr<std::shared_ptr<RequestSink>> Resolve(Request* request, std::shared_ptr<RequestSink> sink,
                                                       int64_t tokens_max, double now);

  absl::StatusOr<NamedContext> GetContext(const std::string& name_space, const GetContextQuery& query) const;
  // A page has fewer contexts than asked for where more would take long.
  absl::StatusOr<NamedContextPage> ListContexts(const std::string& name_space, const ListContextsQuery& query) const;
  absl::StatusOr<NamedContext> ForkContext(const std::string& name_space, const ForkContextQuery& query, double now);
  absl::StatusOr<NamedContext> RenameContext(const std::string& name_space, const RenameContextQuery& query);
  absl::StatusOr<NamedContext> PinContext(const std::string& name_space, const PinContextQuery& query);
  absl::StatusOr<std::string> DeleteContext(const std::string& name_space, const DeleteContextQuery& query);
  // Requests with keep_as that wait until all stages have saved what they keep, and imports that wait until they are in
  // the store. FinishAll ends them, and exports that wait, and nothing is said of what they have kept.
  int finishing() const { return static_cast<int>(finishing_.size() + imports_.size()); }
  void FinishAll(const absl::Status& status);
  // Takes the names of contexts that have expired away. To be called now and then.
  void Expire(double now);

  // Returns what the group's workers have to free. They have to be told before they get the Step that was planned last,
  // or after it if it has been sent. Valid until the next call.
  const ShelfDrops& TakeDrops(int replica);
  // The Step that was planned last has this number.
  void StepPlanned(int replica, uint64_t step);
  // A shelf has had no room for these segments of a Step in flight. Returns those of them that the Steps in flight do
  // save: Keep refuses these.
  std::vector<uint64_t> Unsaved(int replica, absl::Span<const uint64_t> segments);
  // All stages have answered a Step. Some shelf had no room for the segments `unsaved`.
  void StepAnswered(int replica, uint64_t step, absl::Span<const uint64_t> unsaved, double now);

  // ---- The store, beside the shelves (store_tier.h). Implemented in context_keeper_store.cc.
  // Adds a store with what it had when it was opened. To be called after SetModel, before any group is ready.
  // `capacity` is that of any group.
  void SetStore(const StoreTierOptions& options, StoreContents contents, const ShelfCapacity& capacity,
                double token_seconds, double now);
  // What is to be done, in this order, for the caller to move from until the next call. Workers are told of all drops
  // before. There must be a store, here and for TakePrepared.
  std::vector<StoreAction>& TakeStoreActions(double now);
  void Moved(uint64_t move, const StoreMoved& moved, double now);
  void NamePut(const ContextName& asked, const absl::StatusOr<ContextName>& kept, double now);
  // The requests for which Prepare was false, and is not any more. Valid until the next call.
  const std::vector<uint64_t>& TakePrepared(double now);

  // ---- Files of contexts, as ContextDirectory says. Implemented in context_keeper_transfers.cc.
  // A segment that is held, in the tree that there was then.
  struct Held {
    uint64_t tree = 0;
    uint64_t segment = 0;
  };
  struct Exported {
    uint64_t etag = 0;
    std::vector<SegmentKey> chain;
    Held hold;  // to be given back with EndExport
  };
  using ExportAnswer = absl::AnyInvocable<void(absl::StatusOr<Exported> exported)>;
  using ImportAnswer = absl::AnyInvocable<void(absl::StatusOr<NamedContext> named)>;
  // Answers at once, or from Moved, GenerationEnded or FinishAll.
  void OpenExport(const std::string& name_space, const ExportContextQuery& query, double now, ExportAnswer answer);
  void EndExport(const Held& hold);
  // FAILED_PRECONDITION if there is no store, with what to do about it.
  absl::Status CheckStore() const;
  // The number of the room that was made: it is given back with EndRoom, which may come twice.
  absl::StatusOr<uint64_t> MakeRoom(const std::string& name_space, int64_t bytes, double now);
  void EndRoom(uint64_t room);
  // `room` is not needed any more. Answers as OpenExport.
  void KeepImport(const std::string& name_space, ImportedContext imported, uint64_t room, double now,
                  ImportAnswer answer);
  // What KeepImport does with a tuned state, which the writer has sealed under this key.
  void KeepTuned(const std::string& name_space, const SegmentKey& key, std::shared_ptr<SegmentWriter> writer,
                 Request::KeepAs keep_as, double now, ImportAnswer answer);
  const StoreTier* store() const { return store_.get(); }  // null: there is none
  const SegmentTree* tree() const { return tree_.get(); }  // null: there is no model

  // The bytes in the fullest shelf of each group, added up.
  int64_t bytes() const { return tree_ == nullptr ? 0 : tree_->TierBytes(TierKind::kMemory); }
  ContextCounters counters() const { return tree_ == nullptr ? ContextCounters() : tree_->counters(); }

 private:
  struct Saving {
    uint64_t segment = 0;
    SegmentContents contents = 0;
  };
  struct Step {
    uint64_t number = 0;
    std::vector<Saving> saved;
  };
  struct Group {
    int tier = -1;
    int64_t bytes_max = 0;  // of all layers together, if the fullest shelf is full
    SegmentBytes bytes;
    double token_seconds = 0;
    std::vector<Saving> planned;     // what the Step saves that is being planned
    std::vector<uint64_t> restored;  // what it restores: held until it has been planned
    std::deque<Step> steps;          // in flight, oldest first
    std::set<uint64_t> segments;     // that workers may have
    // Segments that workers have been told to free, with the first Step that they got after that, or 0 if they got none
    // yet. Until that Step has been answered, nothing can be put there under these numbers.
    std::map<uint64_t, uint64_t> leaving;
    uint64_t planned_step = 0, answered_step = 0;  // the last ones
    uint64_t freed_after = 0;                      // the Step whose answer says that all that was to be freed is free
    std::set<uint64_t> unsaved;                    // of Steps in flight: some shelf had no room
    // By namespace, why something that was to be named could not be saved the last time.
    std::map<std::string, absl::Status> refused;
  };
  class NamedSink;
  // Gets the context that a request has kept, or why it could not be kept.
  using KeptListener = std::function<void(absl::StatusOr<NamedContext> kept)>;
  struct NamedFinishing {
    Held segment;
    int replica = 0;  // whose Step saves it
    std::string name_space;
    NamedContext made;
    bool replaces = false;  // another context, which is gone
    KeptListener done;
  };

  void SetQuota(const std::string& name_space);
  // What of a prompt is kept, and what a sequence in the group should begin with.
  struct Found {
    ContextMatch match;
    ContextChoice choice;

    Beginning Chain() const;
  };
  Found Find(const Group& group, const Request& request, absl::Span<const int32_t> ids, int64_t tokens_max,
             double token_seconds) const;
  absl::Status NoTunedState(const Request& request) const;
  // Whether the rows of the segment are in the tier, or on their way there.
  bool HasRows(uint64_t segment, int tier) const;
  // Notes what has to be dropped from the groups' shelves.
  void Note(SegmentDrops* drops);
  // Whether something may be put on the group's shelves under the number of the segment.
  bool MayPut(const Group& group, uint64_t segment) const;
  // Whether all that the group's workers have been told to free is free.
  bool AllFreed(const Group& group) const;

  // context_keeper_transfers.cc
  struct Exporting {
    uint64_t etag = 0;
    Held hold;
    absl::Status failed;  // what became of a move of it
    ExportAnswer answer;
  };
  struct Importing {
    uint64_t move = 0;
    Held hold;
    std::string name_space;
    Request::KeepAs keep_as;
    ImportAnswer answer;
  };
  struct Room {
    uint64_t tree = 0;
    std::string name_space;
    int64_t bytes = 0;
  };
  void NoteMoved(uint64_t saved, const absl::Status& status);
  void LookAtExports();
  void EndImport(uint64_t move, const StoreMoved& moved, double now);
  void EndTransfers(const absl::Status& status);
  absl::StatusOr<NamedContext> NameImport(const std::string& name_space, const Request::KeepAs& keep_as,
                                          uint64_t segment, double now);

  // context_keeper_named.cc
  void NameChanged(const std::string& name_space, const std::string& name) const;
  absl::Status CheckKeepAs(const std::string& name_space, const Request::KeepAs& keep_as) const;
  absl::StatusOr<ContextInfo> Name(const std::string& name_space, const Request::KeepAs& keep_as, uint64_t segment,
                                   double now);
  NamedContext Describe(const ContextInfo& context, size_t* segments = nullptr) const;
  void ReleaseHeld(const Held& held);
  // The replica of which a Step in flight saves the segment; -1: there is none.
  int SavedBy(uint64_t segment) const;
  // Calls `done` when the Step that saves the context has been answered by all stages, or its group has ended.
  void WhenSaved(const std::string& name_space, const std::string& name, bool replaces, KeptListener done);
  void EndKept(NamedFinishing* finishing, const absl::Status& saved);
  // Ends those for which `ended` gives a status.
  void FinishSaved(absl::FunctionRef<std::optional<absl::Status>(const NamedFinishing& one)> ended);

  const SnapshotOptions options_;
  const double unix_offset_;
  uint64_t first_etag_;                // of the next tree
  uint64_t trees_ = 0;                 // that there have been
  std::unique_ptr<SegmentTree> tree_;  // null without a model
  TextBytes text_bytes_;
  SegmentBytes segment_bytes_;  // of the group that was last ready, or is about to be
  double token_seconds_ = 0;    // of any group
  std::set<int> empty_handed_;  // ready replicas that keep nothing
  int64_t store_bytes_max_ = 0;
  std::vector<NamedFinishing> finishing_;
  std::set<std::string> with_quota_;  // namespaces with keys that have kept something: one alone has no limit
  std::map<int, Group> groups_;       // by replica: those that keep something
  std::map<int, ShelfDrops> drops_;   // by tier: what the workers have not been told yet
  ShelfDrops taken_drops_;            // kept for its memory
  std::vector<Exporting> exports_;    // that wait until all is in the store
  std::vector<Importing> imports_;    // that wait until they are published
  std::map<uint64_t, Room> rooms_;    // by number
  uint64_t last_room_ = 0;
  std::unique_ptr<StoreTier> store_;  // null: there is none
};

}  // namespace goldfinch

#endif  // GOLDFINCH_COORDINATOR_KEEPER_CONTEXT_KEEPER_H_
