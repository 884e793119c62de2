// What a SegmentTree consists of; only its own sources include this.
#ifndef GOLDFINCH_COORDINATOR_CONTEXTS_SEGMENT_TREE_STATE_H_
#define GOLDFINCH_COORDINATOR_CONTEXTS_SEGMENT_TREE_STATE_H_

#include <cmath>
#include <cstdint>
#include <deque>
#include <limits>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/container/inlined_vector.h"
#include "absl/status/status.h"
#include "absl/types/span.h"
#include "coordinator/contexts/segment_tree.h"
#include "coordinator/contexts/text_tree.h"

namespace goldfinch {

// A number of bytes with a limit, and the order in which segments are evicted from it.
struct Pool {
  int64_t bytes_max = 0;
  int64_t bytes = 0;
  double inflation = 0;  // the priority of what was evicted last
  // (priority, the number of its last use, the segment's number): the smallest is evicted first.
  using Entry = std::tuple<double, uint64_t, uint64_t>;
  std::set<Entry> evictable;
};

// A segment's place in the order of a pool.
struct EvictionOrder {
  double base = 0;                         // the pool's inflation when the segment was last used
  uint64_t used = 0;                       // the number of that use, counted over all segments
  std::optional<Pool::Entry> listed = {};  // its entry in Pool::evictable, if it has one
};

struct Copy {
  int tier = 0;
  SegmentContents present = 0;
  SegmentContents coming = 0;
  int32_t children = 0;  // children of the segment that have rows in this tier, or on their way to it
  EvictionOrder order;

  SegmentContents contents() const { return present | coming; }
};

struct Context;

struct Namespace {
  std::string name;
  NamespaceQuota quota;
  Pool pool;  // of the bytes of all its segments, however many copies there are
  std::map<std::string, std::unique_ptr<Context>> contexts;
};

// The texts of one namespace and identity that begin with nothing, or those that begin with one tuned state.
struct Space {
  Namespace* name_space = nullptr;
  const ContextIdentity* identity = nullptr;
  TextTree texts;  // a tuned state stands at the root
};

struct Segment {
  uint64_t number = 0;  // larger than the parent's
  Space* space = nullptr;
  TextTree::Node* node = nullptr;
  Segment* parent = nullptr;
  Segment* first_child = nullptr;
  Segment* next_sibling = nullptr;
  Segment* last_sibling = nullptr;  // the one before it
  int32_t children = 0;
  int32_t depth = 1;  // of the chain, at most: it may have become shorter
  int64_t begin = 0;
  int64_t row_bytes_per_token = 0;
  int64_t snapshot_bytes = 0;
  double seconds = 0;  // to compute [0, end)
  bool logits = false;
  bool wants_logits = false;  // was added with them, while its snapshot has none
  int64_t wanted_bytes = 0;   // of that snapshot
  bool snapshot_evicted = false;
  bool doubtful = false;  // its chain lost rows while it was held: Release checks whether they are there again
  bool doomed = false;    // its user has deleted it: it is dropped as soon as nobody needs it
  int32_t holds = 0;
  int32_t contexts = 0;
  int32_t contexts_within = 0;  // of it and of all below it
  int32_t pins = 0;
  double last_use = 0;
  double fresh_until = -std::numeric_limits<double>::infinity();
  absl::InlinedVector<Copy, 2> copies;
  EvictionOrder order;  // in the namespace's pool
  std::unique_ptr<SegmentKey> key;

  int64_t end() const { return node->end; }
  int64_t row_bytes() const { return (end() - begin) * row_bytes_per_token; }
  int64_t Bytes(SegmentContents contents) const {
    return ((contents & kRows) != 0 ? row_bytes() : 0) + ((contents & kSnapshot) != 0 ? snapshot_bytes : 0);
  }
  bool is_tuned() const { return node->parent == nullptr; }
  SegmentContents present() const;  // rows of a tuned state are present in any case
  SegmentContents coming() const;
  SegmentContents contents() const { return present() | coming(); }
  // What copies in other tiers have.
  SegmentContents PresentBeside(int tier) const;
  Copy* In(int tier);
  const Copy* In(int tier) const { return const_cast<Segment*>(this)->In(tier); }
  bool needed() const { return holds > 0 || contexts > 0; }
};

struct Tier {
  TierOptions options;
  Pool pool;

  // How many bytes of the tier these contents of the segment take.
  int64_t Bytes(const Segment& segment, SegmentContents contents) const {
    const auto part = [](double share, int64_t bytes) {
      return share == 1 ? bytes : static_cast<int64_t>(std::ceil(share * static_cast<double>(bytes)));
    };
    return part(options.rows_share, segment.Bytes(contents & kRows)) +
           part(options.snapshots_share, segment.Bytes(contents & kSnapshot));
  }
};

struct Context {
  uint64_t id = 0;
  std::string name;
  Namespace* name_space = nullptr;
  Segment* segment = nullptr;
  bool pinned = false;
  uint64_t etag = 0;
  double created = 0, last_use = 0;
  std::optional<double> seconds_to_live;
  std::optional<double> expires;
};

// The beginnings of texts that were evicted lately. They tell why nothing is kept of a prompt.
class EvictedTexts {
 public:
  static constexpr size_t kIds = 32;      // of a text's beginning
  static constexpr size_t kTexts = 4096;  // the newest ones

  // `ids`: the first kIds of the text, or all of a shorter one.
  void Add(const std::string& name_space, absl::Span<const int32_t> ids);
  bool HasBeginningOf(const std::string& name_space, absl::Span<const int32_t> prompt) const;

 private:
  absl::flat_hash_map<uint64_t, int> counts_;
  std::deque<uint64_t> order_;
};

struct SegmentTree::State {
  enum class Why { kEvicted, kLost, kUnneeded };

  explicit State(const ContextIdentity& served) : identity(Intern(served)) {}

  // segment_tree_state.cc
  const ContextIdentity* Intern(const ContextIdentity& of);
  Namespace& NamespaceOf(const std::string& name);
  const Namespace* FindNamespace(const std::string& name) const;
  Space& SpaceOf(const ContextIdentity* of, const std::string& name);
  const Space* FindSpace(const ContextIdentity* of, const std::string& name) const;
  // The space of a parent if there is one, else that of texts that begin with nothing.
  Space& SpaceOf(const Segment* parent, const ContextIdentity* of, const std::string& name);
  Segment* Lookup(uint64_t number) const;  // null: it is gone
  Segment& Held(uint64_t number) const;
  Tier* LookupTier(int tier);  // null: it is closed
  void Now(double to) { now = std::max(now, to); }

  Segment* NewSegment(Space& space, TextTree::Node* node, Segment* parent, const SegmentBytes& bytes, double seconds);
  Segment& NewTuned(Namespace& name_space, const ContextIdentity* of, const SegmentKey& key, int64_t snapshot_bytes);
  void Link(Segment& segment, Segment* parent);
  void Unlink(Segment& segment);
  void Rebase(Segment& segment, SegmentDrops* drops);
  void Relink(Segment& segment, Segment* parent, SegmentDrops* drops);
  void AddContents(Segment& segment, int tier, SegmentContents contents, bool coming);
  void RemoveContents(Segment& segment, int tier, SegmentContents contents, SegmentDrops* drops);
  void RemoveEverywhere(Segment& segment, SegmentContents contents, SegmentDrops* drops);
  void Delete(Segment& segment, Why why, SegmentDrops* drops);
  bool Useless(const Segment& segment) const;
  void Settle(Segment* segment, Why why, SegmentDrops* drops);
  void DropBroken(Segment& segment, SegmentDrops* drops);
  bool ChainHasRows(const Segment& segment) const;
  void Touch(Segment& segment);

  // segment_tree_room.cc
  double SavedSeconds(const Segment& segment) const;
  SegmentContents Evictable(const Segment& segment, const Copy& copy) const;
  SegmentContents EvictableEverywhere(const Segment& segment) const;
  double Score(const Segment& segment, const Copy& copy, SegmentContents contents) const;
  double ScoreEverywhere(const Segment& segment, SegmentContents contents) const;
  int BestSource(const Segment& segment, SegmentContents content, int beside) const;
  double MoveSeconds(int tier, int64_t bytes) const;
  void List(Pool& pool, uint64_t number, EvictionOrder& order, bool listed, double score);
  void Reindex(Segment& segment);
  void Ripen();
  bool EvictFrom(int tier, SegmentDrops* drops);
  bool EvictOf(Namespace& name_space, SegmentDrops* drops);
  absl::Status FitQuota(Namespace& name_space, SegmentDrops* drops);
  absl::Status FitTier(int tier, SegmentDrops* drops);
  absl::Status CheckFits(const Tier& tier, const Namespace& name_space, int64_t bytes) const;

  // segment_tree_contexts.cc
  static void CountWithin(Segment* segment, int32_t contexts);
  absl::StatusOr<Context*> FindContext(const std::string& name_space, const std::string& name, uint64_t etag) const;
  ContextInfo Info(const Context& context) const;
  void SetExpiry(Context& context, std::optional<double> at);
  void PutOffExpiry(Context& context);
  absl::Status CheckNew(const Namespace* space, const std::string& name) const;
  void Attach(Context& context, Segment& segment);
  void Detach(Context& context);
  void Remove(Context& context, bool doom, SegmentDrops* drops);

  std::vector<std::unique_ptr<ContextIdentity>> identities;
  const ContextIdentity* identity;  // served
  std::map<std::string, std::unique_ptr<Namespace>> namespaces;
  std::map<std::pair<const Namespace*, const ContextIdentity*>, std::unique_ptr<Space>> spaces;
  std::map<SegmentKey, std::unique_ptr<Space>> tuned_spaces;  // by the key of the tuned state
  absl::flat_hash_map<uint64_t, std::unique_ptr<Segment>> segments;
  std::map<int, Tier> tiers;
  std::map<std::pair<double, uint64_t>, Context*> expiries;  // by time and id
  std::deque<std::pair<double, uint64_t>> fresh;             // when segments stop being just stored
  EvictedTexts evicted_texts;
  ContextCounters counters;
  uint64_t last_segment = 0;
  uint64_t last_used = 0;
  uint64_t last_context = 0;
  uint64_t last_etag = 0;
  int last_tier = 0;
  double now = -std::numeric_limits<double>::infinity();
};

}  // namespace goldfinch

#endif  // GOLDFINCH_COORDINATOR_CONTEXTS_SEGMENT_TREE_STATE_H_
