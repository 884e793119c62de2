// Keeps what requests have read, on the shelves of the workers: which texts those are (SegmentTree), how the
// scheduler's Steps save them and begin with them, and which of them have names.
//
// Implementation: context_keeper.cc keeps texts automatically, context_keeper_named.cc knows the names.
#ifndef GOLDFINCH_COORDINATOR_CONTEXT_KEEPER_H_
#define GOLDFINCH_COORDINATOR_CONTEXT_KEEPER_H_

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "coordinator/context_directory.h"
#include "coordinator/contexts/segment_key.h"
#include "coordinator/contexts/segment_tree.h"
#include "coordinator/contexts/snapshot_plan.h"
#include "coordinator/prefix_keeper.h"
#include "coordinator/store_tier.h"

namespace goldfinch {

// What a group can keep. Each worker keeps the parts of its own layers: the shares say what of the bytes of all layers
// the worker has that needs the most of them.
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
};

// Whose texts the request may use: those of its client's namespace.
const std::string& NamespaceOf(const Request& request);

absl::Status NoRoomOnShelf();

// Pure, like the scheduler that calls it: `now` is in seconds and never goes back. Not thread-safe. For each Step that
// is planned, the order is NextStep, TakeDrops, StepPlanned; workers are told of the drops before they get the Step.
class ContextKeeper final : public PrefixKeeper {
 public:
  // `unix_offset`: what makes `now` Unix seconds. `first_etag`: no context has had an etag from this one on.
  explicit ContextKeeper(const SnapshotOptions& options = {}, double unix_offset = 0, uint64_t first_etag = 1)
      : options_(options), unix_offset_(unix_offset), first_etag_(first_etag) {}

  // What all groups serve from now on. What was kept of another model is forgotten, names as well. No group may be
  // ready.
  void SetModel(const ContextIdentity& identity, const TextBytes& bytes = {});
  const TextBytes& text_bytes() const { return text_bytes_; }
  // A group is ready; its shelves are empty. Without bytes, nothing is kept there.
  void GroupReady(int replica, const ShelfCapacity& capacity);
  // Its workers have to free all that was saved there.
  ShelfDrops GroupEnded(int replica);

  // PrefixKeeper.
  int64_t Kept(int replica, const Request& request, absl::Span<const int32_t> ids) const override;
  bool Prepare(int replica, uint64_t request_number, const Request& request, absl::Span<const int32_t> ids,
               double token_seconds, double now) override;
  Beginning Begin(int replica, const Request& request, absl::Span<const int32_t> ids, int64_t tokens_max,
                  double token_seconds, double now) override;
  void Release(int replica, const Beginning& beginning) override;
  Saved Save(int replica, const Request& request, absl::Span<const int32_t> ids, const SavePoint& point,
             double now) override;
  absl::Status Keep(int replica, const Request& request, absl::Span<const int32_t> ids, double now) override;

  // ---- Names, which each namespace has of its own. All errors are for users.

  // Makes of a request with a context, or with keep_as, one for the scheduler, which gets it with the sink that comes
  // back, and reports to `sink`: its prompt begins with the tokens of the context, breakpoints count from there, and
  // keep_as has the etag of what it takes the place of. What is kept of the context stays so until the sink's OnDone.
  // `tokens_max`: of prompt and answer together. NOT_FOUND, FAILED_PRECONDITION (SegmentTree::Use), INVALID_ARGUMENT if
  // it does not fit, and what is certain to keep the sequence from being named: ALREADY_EXISTS, ABORTED,
  // RESOURCE_EXHAUSTED, FAILED_PRECONDITION if no worker keeps anything.
  absl::StatusOr<std::shared_ptr<RequestSink>> Resolve(Request* request, std::shared_ptr<RequestSink> sink,
                                                       int64_t tokens_max, double now);

  absl::StatusOr<NamedContext> GetContext(const std::string& name_space, const GetContextQuery& query) const;
  // It stops early where it would take long.
  absl::StatusOr<NamedContextPage> ListContexts(const std::string& name_space, const ListContextsQuery& query) const;
  absl::StatusOr<NamedContext> ForkContext(const std::string& name_space, const ForkContextQuery& query, double now);
  absl::StatusOr<NamedContext> RenameContext(const std::string& name_space, const RenameContextQuery& query);
  absl::StatusOr<NamedContext> PinContext(const std::string& name_space, const PinContextQuery& query);
  absl::StatusOr<std::string> DeleteContext(const std::string& name_space, const DeleteContextQuery& query);
  // Requests with keep_as that wait until all stages have saved what they keep. FinishAll ends them, and nothing is
  // said of what they have kept.
  int finishing() const { return static_cast<int>(finishing_.size()); }
  void FinishAll(const absl::Status& status);
  // To be called now and then: contexts that have expired lose their names.
  void Expire(double now);
  // Called whenever what a name stands for has changed, or has been used: with what it stands for now, in seconds of
  // `now`, or null if there is no such name any more.
  using NameListener =
      std::function<void(const std::string& name_space, const std::string& name, const ContextInfo* context)>;
  void SetNameListener(NameListener listener) { name_listener_ = std::move(listener); }

  // What the workers of the group have to free before the Step that was planned last, or, if that has been sent, after
  // it.
  ShelfDrops TakeDrops(int replica);
  // The Step that was planned last has this number.
  void StepPlanned(int replica, uint64_t step);
  // Some shelf says that it had no room for these segments of a Step in flight. Returns those that are; Keep refuses
  // them.
  std::vector<uint64_t> Unsaved(int replica, absl::Span<const uint64_t> segments);
  // All stages have answered a Step. `unsaved`: segments for which some shelf had no room.
  void StepAnswered(int replica, uint64_t step, absl::Span<const uint64_t> unsaved, double now);

  // ---- The store, beside the shelves (store_tier.h). Implemented in context_keeper_store.cc.
  // What was there when it was opened is found from now on. After SetModel, and before any group is ready; `capacity`
  // is that of any group.
  void SetStore(const StoreTierOptions& options, StoreContents contents, const ShelfCapacity& capacity,
                double token_seconds, double now);
  // What is to be done, in this order. Workers are told of all drops before.
  std::vector<StoreAction> TakeStoreActions(double now);
  // Gives a name to a tuned state that was just put into the store under this key, for this namespace and model. What
  // cannot be named is deleted there. FAILED_PRECONDITION without a store; else as of what is kept by a request.
  absl::StatusOr<NamedContext> KeepTuned(const std::string& name_space, const SegmentKey& key,
                                         const Request::KeepAs& keep_as, double now);
  void Moved(uint64_t move, const StoreMoved& moved, double now);
  void NamePut(const ContextName& asked, const absl::StatusOr<ContextName>& kept);
  // The requests for which Prepare was false, and is not any more.
  std::vector<uint64_t> TakePrepared(double now);
  const StoreTier* store() const { return store_.get(); }  // null: there is none
  const SegmentTree* tree() const { return tree_.get(); }  // null: there is no model

  // The bytes that are kept in the fullest shelves, over all groups.
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
    int64_t bytes_max = 0;  // of the tier, if all layers had as much of it
    SegmentBytes bytes;
    double token_seconds = 0;
    std::vector<Saving> planned;     // what the Step saves that is being planned
    std::vector<uint64_t> restored;  // what it restores: held until it has been planned
    std::deque<Step> steps;          // in flight, oldest first
    std::set<uint64_t> segments;     // that workers may have
    // Segments that workers have been told to free, with the first Step that they got after that, or 0: until it has
    // been answered, nothing can be put there under these numbers.
    std::map<uint64_t, uint64_t> leaving;
    uint64_t planned_step = 0, answered_step = 0;  // the last ones
    uint64_t freed_after = 0;    // what workers have been told to free is free when this Step has been answered
    std::set<uint64_t> unsaved;  // of Steps in flight: some shelf had no room
    // Why something that was to be named could not be saved the last time, by namespace.
    std::map<std::string, absl::Status> refused;
  };
  // A segment that is held in the tree that there was then.
  struct Held {
    uint64_t tree = 0;
    uint64_t segment = 0;
  };
  class NamedSink;
  // Hears of the context that a request has kept, or why it could not be.
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
  absl::Status NoTunedState(const Request& request) const;
  // Whether the rows of the segment are in the tier, or on their way there.
  bool HasRows(uint64_t segment, int tier) const;
  // Notes what has to be dropped from the groups' shelves.
  void Note(SegmentDrops* drops);
  // Whether something may be put on the group's shelves under the number of the segment.
  bool MayPut(const Group& group, uint64_t segment) const;
  // Whether all that the group's workers have been told to free is free.
  bool AllFreed(const Group& group) const;

  // context_keeper_named.cc
  void NameChanged(const std::string& name_space, const std::string& name, const ContextInfo* context) const;
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
  void FinishSaved(const std::function<std::optional<absl::Status>(const NamedFinishing&)>& ended);

  const SnapshotOptions options_;
  const double unix_offset_;
  uint64_t first_etag_;                // of the next tree
  uint64_t trees_ = 0;                 // that there have been
  std::unique_ptr<SegmentTree> tree_;  // null without a model
  TextBytes text_bytes_;
  SegmentBytes segment_bytes_;  // of the group that was last ready
  double token_seconds_ = 0;    // of any group
  std::set<int> empty_handed_;  // ready replicas that keep nothing
  int64_t store_bytes_max_ = 0;
  std::vector<NamedFinishing> finishing_;
  std::set<std::string> with_quota_;  // namespaces with keys that have kept something: one alone has no limit
  NameListener name_listener_;
  std::map<int, Group> groups_;       // by replica: those that keep something
  std::map<int, ShelfDrops> drops_;   // by tier: what the workers have not been told yet
  std::unique_ptr<StoreTier> store_;  // null: there is none
};

}  // namespace goldfinch

#endif  // GOLDFINCH_COORDINATOR_CONTEXT_KEEPER_H_
