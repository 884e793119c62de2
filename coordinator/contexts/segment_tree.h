// Which texts are kept, where, for whom and for how long. Pure: it has no clock, no I/O and no thread of its own; `now`
// is in seconds and never goes back. It does not have the bytes themselves: it knows how many there are, and where. Its
// owner tells the workers and the store what to save, move and drop.
//
// SEGMENTS. A segment is what is kept of the positions [begin, end) of a text: their rows, and a snapshot at `end`,
// from which a sequence goes on exactly. Its parent is the segment that ends at `begin`. Going on at `end` takes the
// snapshot there, and the rows of the segment and of all its parents. A namespace has at most one segment that ends
// where a text [0, end) does, wherever it begins; rows of positions that two segments have in common are kept twice.
// Segments of two namespaces, or of two identities, never meet.
//
// TUNED STATES. A segment of no tokens is a tuned initial state: a snapshot at position 0, which nobody can compute. It
// has rows wherever it is, none. Texts that were read from it are a world of their own: its segments have it as their
// first parent, which they need for nothing but their keys, and only who names it finds them. So they never meet the
// same ids that were read from nothing. It stays as long as it has a child, a context or somebody who holds it, and its
// last copy is not evicted before.
//
// TIERS. A tier is a place that holds segments for all layers of the model: the shelves of a group's workers together,
// or the disk. A segment's contents are its rows and its snapshot. Each of the two is in a tier, on its way there, or
// neither. What is on its way counts as bytes of the tier, but nobody can use it.
//
// WHAT STAYS.
//   - Nothing of a segment is evicted from any tier while somebody holds it, while anything of it is on its way to a
//     tier, while a context that has it is pinned, and for kFreshSeconds after it was stored.
//   - If a context has the segment, the last copies of its rows and of its snapshot stay; other copies may be evicted.
//   - Rows of a parent stay in a tier for as long as a child has rows there, and the last copy of them for as long as
//     there is any child. Snapshots of parents may be evicted, so the snapshots in the middle of a text go first.
// A segment that has no child, no snapshot, no context and nobody who holds it is of no use, and is dropped at once.
// A context survives the loss of its bytes: its ids stay, and a request over it computes them again.
//
// EVICTION is GreedyDual (Cao and Irani, 1997): what has the smallest priority goes first, and among equals what was
// used the longest ago. A priority is a sum: the seconds per byte that whoever needs it next would lose, and the tier's
// age at its last use. The age is the priority of what was evicted last from the tier. The seconds are those of
// computing the tokens since the snapshot before, or of loading a copy from elsewhere.
//
// HOW THE SCHEDULER USES IT, for one request:
//   1. match = Match(namespace, prompt). Then Choose(match, tier, ...) for the shelf of a group that could take the
//      request. If it has a segment: CountHit, Hold, Bring to the shelf, and when all moves have come, a NewSequence
//      with `restore` of Chain(segment). Otherwise CountMiss(choice.reason).
//   2. PlanSnapshots (snapshot_plan.h) with begin = choice.position and partings = match.partings.
//   3. When a chunk ends at such a position: Add(namespace, 0, the ids up to there, ...) and Store(number, tier). The
//      Step saves (sequence, number, Saving::begin). When all workers have answered: Arrived, or Lost if one of them
//      could not. After an error of Store nothing is saved, and the request goes on without.
//   4. Release everything that was held or added, once for each time. Saves may still be on their way.
// What has Arrived on a shelf and should be on disk, too (contexts, and what else is worth it): Hold, Bring(number,
// disk), read each move from the tier that it names, Arrived, Release. When a generation ends: CloseTier.
// Whenever a call returns drops, workers (a shelf) or the store (disk) are told so before anything that comes after:
// their room is already given away.
#ifndef GOLDFINCH_COORDINATOR_CONTEXTS_SEGMENT_TREE_H_
#define GOLDFINCH_COORDINATOR_CONTEXTS_SEGMENT_TREE_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "coordinator/contexts/segment_key.h"
#include "coordinator/contexts/transfer_rate.h"

namespace goldfinch {

enum class TierKind : uint8_t { kMemory, kDisk };

struct TierOptions {
  TierKind kind = TierKind::kMemory;
  std::string name;  // for messages: "the memory of replica 0", "the disk"
  int64_t bytes_max = 0;
  // Which part of the bytes of rows, and of snapshots, counts against bytes_max, in (0, 1]. On the shelves of a group
  // it is less than 1, because each shelf has the part of its own layers.
  double rows_share = 1, snapshots_share = 1;
  // Whether what is here can be brought to a tier of shelves, and not only to the disk.
  bool lends_to_shelves = true;
  // How fast it is read: from the disk to a shelf, or from a shelf to the device. The start of what is then measured.
  TransferRate rate{1e9, 1e-3};
};

// What is kept of a segment, as bits.
using SegmentContents = uint8_t;
inline constexpr SegmentContents kRows = 1, kSnapshot = 2, kRowsAndSnapshot = 3;

// What a caller has to remove from a tier.
struct SegmentDrop {
  uint64_t segment = 0;
  int tier = 0;
  SegmentContents contents = 0;
};
using SegmentDrops = std::vector<SegmentDrop>;

enum class ContextMiss : uint8_t { kNoneKept, kEvicted, kCheaperToCompute, kOtherModel };
inline constexpr int kContextMisses = 4;

struct ContextCounters {
  int64_t hits = 0;
  std::array<int64_t, kContextMisses> misses{};
  int64_t tokens_saved = 0;  // that hits did not compute
  int64_t evictions = 0;     // of rows, a snapshot or both from one tier
};

// What is kept of a prompt.
struct ContextMatch {
  // A segment whose text the prompt begins with, and whose chain has all its rows.
  struct Step {
    uint64_t segment = 0;
    int64_t end = 0;
    int parent = -1;      // index of the step of its parent, or -1
    bool usable = false;  // has a snapshot from which the prompt can go on
  };

  int64_t tokens = 0;    // of the prompt
  uint64_t tuned = 0;    // the tuned state that it is to be read from; 0: it begins with nothing
  int64_t matched = 0;   // so many ids are the same as in some text of the namespace
  uint64_t segment = 0;  // the longest one to go on from; 0: none
  int64_t position = 0;  // its end
  // Positions beyond `position` at which other texts that share more than `position` tokens with the prompt part from
  // it, part from each other, or end. The furthest ones, at most kPartingsMax.
  std::vector<int64_t> partings;
  ContextMiss reason = ContextMiss::kNoneKept;  // if there is no segment
  std::vector<Step> steps;

  static constexpr size_t kPartingsMax = 8;
};

// Which kept segment the prompt should begin with, if any.
struct ContextChoice {
  uint64_t segment = 0;  // 0: compute all, which cannot be done of a text that begins with a tuned state
  int64_t position = 0;
  double load_seconds = 0;
  double compute_seconds = 0;
  ContextMiss reason = ContextMiss::kNoneKept;  // if there is no segment
};

struct AddedSegment {
  uint64_t number = 0;
  int64_t begin = 0;
  SegmentContents missing = 0;  // in no tier and not on its way to one: what the caller should store
};

struct SegmentBytes {
  int64_t per_token = 0;  // rows
  int64_t snapshot = 0;   // with last logits if it has them
  bool logits = false;    // the snapshot has last logits
};

struct Saving {
  int64_t begin = 0;  // rows of [begin, end) are saved; begin == end: none
  SegmentContents contents = 0;
};

struct BringMove {
  uint64_t segment = 0;
  SegmentContents contents = 0;  // one of them
  int source = 0;                // tier
  int64_t bytes = 0;
};

struct BringPlan {
  std::vector<BringMove> moves;  // in the order of the chain
  // Segments of the chain of which something is on its way to the tier already.
  std::vector<uint64_t> awaited;
};

struct SegmentInfo {
  struct Copy {
    int tier = 0;
    SegmentContents present = 0;
    SegmentContents coming = 0;
  };

  std::string name_space;
  uint64_t parent = 0;
  int64_t begin = 0, end = 0;                 // both 0: a tuned state
  int64_t row_bytes = 0, snapshot_bytes = 0;  // of one copy
  bool logits = false;
  int holds = 0;
  int contexts = 0, pinned_contexts = 0;
  int children = 0;
  double last_use = 0;
  double saved_seconds = 0;  // what its snapshot saves, beyond the one before it
  std::vector<Copy> copies;
};

// What a user has named.
struct ContextInfo {
  std::string name;
  uint64_t segment = 0;
  int64_t tokens = 0;
  bool usable = false;  // its bytes are in some tier
  bool pinned = false;
  uint64_t etag = 0;  // another one after every change
  double created = 0, last_use = 0;
  std::optional<double> expires;
};

struct ExpiredContext {
  std::string name_space;
  std::string name;
};

// What is kept of the whole text of a segment, that is of its chain.
struct TextKept {
  int64_t row_tokens = 0;          // tokens whose rows are in some tier
  int64_t shared_row_tokens = 0;   // of these, those that more than one context has
  std::vector<int64_t> snapshots;  // positions of those that are in some tier, ascending
  int64_t shared_snapshots = 0;    // of these, those that more than one context has
  // Whether one tier of this kind has all that it takes to go on from some position of the text.
  bool in_memory = false, on_disk = false;
  size_t segments = 0;  // of the chain
};

struct ContextPage {
  std::vector<ContextInfo> contexts;  // by name
  std::string next;                   // `after` of the next page; empty: this is the last one
};

// What a namespace may have. Bytes count once, however many tiers have them or are about to.
struct NamespaceQuota {
  int64_t bytes_max = INT64_MAX;
  int64_t contexts_max = 100'000;
};

// Not thread-safe. The tree gives segments and tiers their numbers, and never uses a number again. A number that it has
// never given out fails a CHECK; one that is gone is answered like "not found". Errors of contexts and quotas are for
// users.
class SegmentTree {
 public:
  static constexpr double kFreshSeconds = 2;
  // The most segments of one chain: a longer one is refused with RESOURCE_EXHAUSTED. This bounds every walk of a chain.
  static constexpr int kChainMax = 4096;

  // No context will have an etag below `first_etag`, which is not 0.
  explicit SegmentTree(const ContextIdentity& identity, uint64_t first_etag = 1);
  ~SegmentTree();
  SegmentTree(const SegmentTree&) = delete;
  SegmentTree& operator=(const SegmentTree&) = delete;

  const ContextIdentity& identity() const;
  uint64_t next_etag() const;  // is larger than all that contexts have had

  // ---- Tiers
  int OpenTier(const TierOptions& options);
  // Everything in it is lost. `drops` has only what the caller has to drop from other tiers.
  void CloseTier(int tier, SegmentDrops* drops);
  int64_t TierBytes(int tier) const;
  int64_t TierBytes(TierKind kind) const;
  // Something was moved from this tier.
  void MeasuredMove(int tier, int64_t bytes, double seconds);
  const TransferRate& Rate(int tier) const;

  // ---- Segments
  // Where the prompt can go on. A snapshot at its very end is of use only with last logits. `limit`: the caller wants
  // logits from this position on, so that only snapshots up to it are of use. `tuned`: the tuned state of the namespace
  // that the prompt is read from, which must be held; 0: none.
  ContextMatch Match(const std::string& name_space, absl::Span<const int32_t> prompt, int64_t limit = INT64_MAX,
                     uint64_t tuned = 0) const;
  // The best segment to begin with in this tier. It is the one with the least time to load what is missing from other
  // tiers, to restore all of it from this one, and to compute the rest. compute_seconds(begin) is the time to read the
  // prompt from `begin` on. The tree must not have changed since `match` was made. With `only_here`, nothing is loaded
  // from other tiers.
  ContextChoice Choose(const ContextMatch& match, int tier, absl::FunctionRef<double(int64_t begin)> compute_seconds,
                       bool only_here = false) const;
  void CountHit(const ContextChoice& choice);
  void CountMiss(ContextMiss reason);

  // Finds or makes the segment of the text of `parent` (0: the empty text) and `ids`, which are not empty, and holds
  // it; the parent, which may be a tuned state, must be held. A new one gets as its parent the longest segment on its
  // way from `parent` that has rows, or on their way. `seconds`: what computing these ids takes. RESOURCE_EXHAUSTED:
  // the chain is too long.
  absl::StatusOr<AddedSegment> Add(const std::string& name_space, uint64_t parent, absl::Span<const int32_t> ids,
                                   const SegmentBytes& bytes, double seconds, double now);
  // Adds a segment that was found in a tier at the start, or was imported, with the positions that it has; it is not
  // held. ALREADY_EXISTS if the namespace has a segment for this text: the caller should remove what it has found.
  // RESOURCE_EXHAUSTED as above, and if the tier or the namespace is full. The children of a segment without a snapshot
  // must follow: Tidy removes what is of no use.
  absl::StatusOr<uint64_t> Adopt(const ContextIdentity& identity, const std::string& name_space, uint64_t parent,
                                 absl::Span<const int32_t> ids, const SegmentBytes& bytes, int tier,
                                 SegmentContents contents, double seconds, double now);
  void Tidy(SegmentDrops* drops);
  // The same for a tuned state. `key`: what it is known by wherever it is kept, as only its bytes can tell two of them
  // apart. Unless somebody holds it or gives it a name, it goes as soon as anything else of it changes.
  absl::StatusOr<uint64_t> AdoptTuned(const ContextIdentity& identity, const std::string& name_space,
                                      const SegmentKey& key, int64_t snapshot_bytes, int tier, double now);
  // A whole text of the served model that is on its way to the tier as one segment without a parent, which is held:
  // Arrived or Lost follows. A segment that the namespace has for this text takes it, if its rows are nowhere.
  // ALREADY_EXISTS if they are somewhere, or on their way; RESOURCE_EXHAUSTED as Store. Then nothing is on its way.
  absl::StatusOr<uint64_t> Import(const std::string& name_space, absl::Span<const int32_t> ids,
                                  const SegmentBytes& bytes, int tier, double seconds, double now, SegmentDrops* drops);
  // The same for a tuned state. ALREADY_EXISTS if it is in this tier; UNAVAILABLE if it is on its way there.
  absl::StatusOr<uint64_t> ImportTuned(const std::string& name_space, const SegmentKey& key, int64_t snapshot_bytes,
                                       int tier, double now, SegmentDrops* drops);
  // The tuned state of this key; 0: there is none.
  uint64_t FindTuned(const SegmentKey& key) const;
  // The tuned state that the segment's text begins with, which may be the segment itself; 0: there is none.
  uint64_t TunedOf(uint64_t number) const;

  void Hold(uint64_t number, double now);
  // Gives one hold back.
  void Release(uint64_t number, SegmentDrops* drops);

  // Makes room in this tier for those contents of the held segment that are in no tier yet, and counts them as on their
  // way to it. If its rows are in another tier alone, they come along with a snapshot. If the segment was added again
  // with last logits and nobody else holds it, a snapshot without them is dropped and comes anew. `begin` may move back
  // to where the rows before it are. RESOURCE_EXHAUSTED names what is full, this tier or the namespace's quota; the
  // segment is as it was then, but others may have been dropped in vain.
  absl::StatusOr<Saving> Store(uint64_t number, int tier, double now, SegmentDrops* drops);
  // The same, to copy a held segment and its chain from other tiers. FAILED_PRECONDITION: no tier has some part of it.
  absl::StatusOr<BringPlan> Bring(uint64_t number, int tier, double now, SegmentDrops* drops);
  // What was on its way has come.
  void Arrived(uint64_t number, int tier, SegmentContents contents, double now, SegmentDrops* drops);
  // What was in a tier, or on its way there, is lost. What is of no use without it is dropped, too.
  void Lost(uint64_t number, int tier, SegmentContents contents, SegmentDrops* drops);
  // Evicts until so many bytes fit the tier. RESOURCE_EXHAUSTED: what is left must stay.
  absl::Status MakeRoom(int tier, int64_t bytes, double now, SegmentDrops* drops);
  // Takes room of the tier and of the namespace's quota for something whose text is not known yet: until Unreserve,
  // which comes before the tier is closed, it counts as what is on its way. RESOURCE_EXHAUSTED as Store.
  absl::Status Reserve(int tier, const std::string& name_space, int64_t bytes, double now, SegmentDrops* drops);
  void Unreserve(int tier, const std::string& name_space, int64_t bytes);

  std::optional<SegmentInfo> Find(uint64_t number) const;
  // What a sequence takes that goes on from the segment, from position 0 on. A tuned state is part of its own alone.
  std::vector<uint64_t> Chain(uint64_t number) const;
  // The segment must not be gone. It takes time in proportion to its chain.
  TextKept Kept(uint64_t number) const;
  // The ids of [begin, end) of the segment's text, with room for `more` behind them; `end` is at most the segment's.
  std::vector<int32_t> Ids(uint64_t number, int64_t begin, int64_t end, size_t more = 0) const;
  // The segment's key. Its rows must have been stored, or be on their way.
  SegmentKey Key(uint64_t number);

  // ---- Contexts, by namespace and name. All calls: NOT_FOUND if there is none of the name; ABORTED if `etag` is not 0
  // and is not that of the context. `seconds_to_live` counts from the last use; without it, a context lives for ever.

  // Gives a name to a segment, which must be held. ALREADY_EXISTS; INVALID_ARGUMENT if it is no name;
  // RESOURCE_EXHAUSTED if the namespace has contexts_max contexts.
  absl::StatusOr<ContextInfo> Create(const std::string& name_space, const std::string& name, uint64_t number,
                                     std::optional<double> seconds_to_live, double now);
  // What Create would return for a segment that is held.
  absl::Status CheckNew(const std::string& name_space, const std::string& name) const;
  // The context has the text of this segment, which must be held, from now on.
  absl::StatusOr<ContextInfo> Advance(const std::string& name_space, const std::string& name, uint64_t etag,
                                      uint64_t number, double now, SegmentDrops* drops);
  // This counts as a use.
  absl::StatusOr<ContextInfo> SetSecondsToLive(const std::string& name_space, const std::string& name,
                                               std::optional<double> seconds_to_live, double now);
  absl::StatusOr<ContextInfo> Get(const std::string& name_space, const std::string& name, uint64_t etag = 0) const;
  // Puts the expiry off and holds the segment. FAILED_PRECONDITION: the context is of another identity; names both.
  absl::StatusOr<ContextInfo> Use(const std::string& name_space, const std::string& name, double now);
  absl::StatusOr<ContextInfo> Rename(const std::string& name_space, const std::string& name,
                                     const std::string& new_name, uint64_t etag);
  // A pinned context does not expire. When it is unpinned, it has its seconds to live again.
  absl::StatusOr<ContextInfo> Pin(const std::string& name_space, const std::string& name, bool pinned, uint64_t etag);
  // Removes its bytes, too, as soon as nobody else needs them.
  absl::Status Delete(const std::string& name_space, const std::string& name, uint64_t etag, SegmentDrops* drops);
  // Contexts after the name `after`, at most `count` (> 0).
  ContextPage List(const std::string& name_space, const std::string& after, int count) const;
  // Removes the names of contexts that have expired, at most `count_max`; their bytes may be evicted from then on.
  std::vector<ExpiredContext> Expire(double now, SegmentDrops* drops, size_t count_max = SIZE_MAX);

  void SetQuota(const std::string& name_space, const NamespaceQuota& quota);
  int64_t NamespaceBytes(const std::string& name_space) const;

  const ContextCounters& counters() const;
  size_t segments() const;
  // About how much memory the tree itself takes: the ids, two bytes each where they are small, and some hundred bytes
  // for each segment.
  int64_t index_bytes() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace goldfinch

#endif  // GOLDFINCH_COORDINATOR_CONTEXTS_SEGMENT_TREE_H_
