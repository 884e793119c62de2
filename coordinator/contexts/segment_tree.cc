#include "coordinator/contexts/segment_tree.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/status.h"
#include "base/units.h"
#include "coordinator/contexts/segment_tree_state.h"

namespace goldfinch {
namespace {

absl::Status ChainTooLong() {
  return absl::ResourceExhaustedError(
      absl::StrCat("a text is kept in ", WithCommas(SegmentTree::kChainMax), " segments, which is the limit"));
}

}  // namespace

SegmentTree::SegmentTree(const ContextIdentity& identity, uint64_t first_etag)
    : state_(std::make_unique<State>(identity)) {
  GF_CHECK_GT(first_etag, 0U);
  state_->last_etag = first_etag - 1;
}
SegmentTree::~SegmentTree() = default;

const ContextIdentity& SegmentTree::identity() const { return *state_->identity; }
const ContextCounters& SegmentTree::counters() const { return state_->counters; }
uint64_t SegmentTree::next_etag() const { return state_->last_etag + 1; }
size_t SegmentTree::segments() const { return state_->segments.size(); }

int64_t SegmentTree::index_bytes() const {
  int64_t bytes = static_cast<int64_t>(state_->segments.size() * (sizeof(Segment) + 4 * sizeof(uint64_t)));
  for (const auto& [key, space] : state_->spaces) bytes += space->texts.bytes();
  for (const auto& [key, space] : state_->tuned_spaces) bytes += space->texts.bytes();
  return bytes;
}

int SegmentTree::OpenTier(const TierOptions& options) {
  const int tier = ++state_->last_tier;
  Tier& opened = state_->tiers[tier];
  opened.options = options;
  opened.pool.bytes_max = options.bytes_max;
  return tier;
}

void SegmentTree::CloseTier(int tier, SegmentDrops* drops) {
  if (state_->LookupTier(tier) == nullptr) return;
  std::vector<uint64_t> in;
  for (const auto& [number, segment] : state_->segments) {
    if (segment->In(tier) != nullptr) in.push_back(number);
  }
  std::sort(in.begin(), in.end());
  SegmentDrops all;
  for (const uint64_t number : in) {
    const Segment* const segment = state_->Lookup(number);
    if (segment != nullptr && segment->In(tier) != nullptr) Lost(number, tier, kRowsAndSnapshot, &all);
  }
  for (SegmentDrop& drop : all) {
    if (drop.tier != tier) drops->push_back(std::move(drop));
  }
  GF_CHECK_EQ(state_->tiers.at(tier).pool.bytes, 0);
  state_->tiers.erase(tier);
}

int64_t SegmentTree::TierBytes(int tier) const {
  const Tier* const found = state_->LookupTier(tier);
  return found == nullptr ? 0 : found->pool.bytes;
}

int64_t SegmentTree::TierBytes(TierKind kind) const {
  int64_t bytes = 0;
  for (const auto& [number, tier] : state_->tiers) bytes += tier.options.kind == kind ? tier.pool.bytes : 0;
  return bytes;
}

void SegmentTree::MeasuredMove(int tier, int64_t bytes, double seconds) {
  if (Tier* const found = state_->LookupTier(tier); found != nullptr) found->options.rate.Measured(bytes, seconds);
}

const TransferRate& SegmentTree::Rate(int tier) const {
  const Tier* const found = state_->LookupTier(tier);
  GF_CHECK(found != nullptr) << "tier " << tier << " is closed";
  return found->options.rate;
}

absl::StatusOr<AddedSegment> SegmentTree::Add(const std::string& name_space, uint64_t parent,
                                              absl::Span<const int32_t> ids, const SegmentBytes& bytes, double seconds,
                                              double now) {
  GF_CHECK(!ids.empty());
  state_->Now(now);
  Segment* const from = parent == 0 ? nullptr : &state_->Held(parent);
  Space& space = state_->SpaceOf(from, state_->identity, name_space);
  GF_CHECK(space.name_space->name == name_space && space.identity == state_->identity)
      << "segment " << parent << " is of another namespace or model";
  TextTree::Node* const begin = from == nullptr ? space.texts.root() : from->node;
  const int64_t end = begin->end + static_cast<int64_t>(ids.size());
  // Those on the way whose chain has all rows, or that of `from`; the new one goes on from the last of them.
  std::vector<Segment*> bases;
  if (from != nullptr) bases.push_back(from);
  const TextTree::Place place = space.texts.Walk(begin, ids, [&](const TextTree::Node* node) {
    Segment* const on_way = node->segment;
    if (on_way == nullptr || node->end == end || (on_way->contents() & kRows) == 0) return true;
    const auto base = std::lower_bound(bases.begin(), bases.end(), on_way->begin,
                                       [](const Segment* a, int64_t at) { return a->end() < at; });
    if (on_way->parent == nullptr || (base != bases.end() && *base == on_way->parent)) bases.push_back(on_way);
    return true;
  });
  Segment* const nearest = bases.empty() ? nullptr : bases.back();
  Segment* segment = place.node->end == end ? place.node->segment : nullptr;
  if (segment == nullptr) {
    if (nearest != nullptr && nearest->depth >= kChainMax) {
      return ChainTooLong();
    }
    TextTree::Node* const node =
        space.texts.Insert(place, ids.subspan(static_cast<size_t>(place.node->end - begin->end)));
    segment = state_->NewSegment(space, node, nearest, bytes, (from == nullptr ? 0 : from->seconds) + seconds);
  }
  segment->doomed = false;
  if ((segment->contents() & kRows) == 0) segment->row_bytes_per_token = bytes.per_token;  // of this group's split
  if ((segment->contents() & kSnapshot) == 0) {
    segment->snapshot_bytes = bytes.snapshot;
    segment->logits = bytes.logits;
  } else if (bytes.logits && !segment->logits) {
    segment->wants_logits = true;
    segment->wanted_bytes = bytes.snapshot;
  }
  ++segment->holds;
  state_->Touch(*segment);
  state_->Reindex(*segment);
  AddedSegment added;
  added.number = segment->number;
  added.begin = segment->begin;
  added.missing = kRowsAndSnapshot & ~segment->contents();
  if (segment->wants_logits) added.missing |= kSnapshot;
  return added;
}

absl::StatusOr<uint64_t> SegmentTree::Adopt(const ContextIdentity& identity, const std::string& name_space,
                                            uint64_t parent, absl::Span<const int32_t> ids, const SegmentBytes& bytes,
                                            int tier, SegmentContents contents, double seconds, double now) {
  GF_CHECK(!ids.empty());
  state_->Now(now);
  Tier* const found = state_->LookupTier(tier);
  GF_CHECK(found != nullptr) << "tier " << tier << " is closed";
  Segment* const above = parent == 0 ? nullptr : state_->Lookup(parent);
  if (parent != 0 && above == nullptr) return absl::NotFoundError("the parent of a segment is not kept");
  Space& space = state_->SpaceOf(above, state_->Intern(identity), name_space);
  if (*space.identity != identity || space.name_space->name != name_space) {
    return absl::NotFoundError("the parent of a segment is of another namespace or model");
  }
  if (above != nullptr && above->depth >= kChainMax) {
    return ChainTooLong();
  }
  const int64_t size = ((contents & kRows) != 0 ? static_cast<int64_t>(ids.size()) * bytes.per_token : 0) +
                       ((contents & kSnapshot) != 0 ? bytes.snapshot : 0);
  GF_RETURN_IF_ERROR(state_->CheckFits(*found, *space.name_space, size));
  TextTree::Node* const begin = above == nullptr ? space.texts.root() : above->node;
  const TextTree::Place place = space.texts.Walk(begin, ids, [](const TextTree::Node*) { return true; });
  if (place.node->end == begin->end + static_cast<int64_t>(ids.size()) && place.node->segment != nullptr) {
    return absl::AlreadyExistsError("the same text is kept already");
  }
  TextTree::Node* const node =
      space.texts.Insert(place, ids.subspan(static_cast<size_t>(place.node->end - begin->end)));
  Segment* const segment =
      state_->NewSegment(space, node, above, bytes, (above == nullptr ? 0 : above->seconds) + seconds);
  segment->last_use = now;
  state_->AddContents(*segment, tier, contents, /*coming=*/false);
  return segment->number;
}

absl::StatusOr<uint64_t> SegmentTree::Import(const std::string& name_space, absl::Span<const int32_t> ids,
                                             const SegmentBytes& bytes, int tier, double seconds, double now,
                                             SegmentDrops* drops) {
  GF_CHECK(!ids.empty());
  State& state = *state_;
  state.Now(now);
  state.Ripen();
  if (state.LookupTier(tier) == nullptr) return absl::UnavailableError("the tier is closed");
  Space& space = state.SpaceOf(state.identity, name_space);
  const TextTree::Place place = space.texts.Walk(space.texts.root(), ids, [](const TextTree::Node*) { return true; });
  const bool known = place.node->end == static_cast<int64_t>(ids.size());
  Segment* segment = known ? place.node->segment : nullptr;
  if (segment != nullptr && (segment->contents() & kRows) != 0) {
    return absl::AlreadyExistsError("the same text is kept already");
  }
  if (segment == nullptr) {
    TextTree::Node* const node = space.texts.Insert(place, ids.subspan(static_cast<size_t>(place.node->end)));
    segment = state.NewSegment(space, node, nullptr, bytes, seconds);
  }
  ++segment->holds;
  segment->doomed = false;
  state.RemoveEverywhere(*segment, kSnapshot, drops);  // of no use without rows
  state.Relink(*segment, nullptr, drops);
  segment->row_bytes_per_token = bytes.per_token;
  segment->snapshot_bytes = bytes.snapshot;
  segment->logits = bytes.logits;
  state.AddContents(*segment, tier, kRowsAndSnapshot, /*coming=*/true);
  state.Touch(*segment);
  absl::Status fits = state.FitQuota(*space.name_space, drops);
  if (fits.ok()) fits = state.FitTier(tier, drops);
  if (fits.ok()) return segment->number;
  state.RemoveContents(*segment, tier, kRowsAndSnapshot, nullptr);
  Release(segment->number, drops);
  return fits;
}

absl::StatusOr<uint64_t> SegmentTree::AdoptTuned(const ContextIdentity& identity, const std::string& name_space,
                                                 const SegmentKey& key, int64_t snapshot_bytes, int tier, double now) {
  state_->Now(now);
  Tier* const found = state_->LookupTier(tier);
  GF_CHECK(found != nullptr) << "tier " << tier << " is closed";
  if (state_->tuned_spaces.contains(key)) return absl::AlreadyExistsError("the same tuned state is kept already");
  Namespace& owner = state_->NamespaceOf(name_space);
  GF_RETURN_IF_ERROR(state_->CheckFits(*found, owner, snapshot_bytes));
  Segment& segment = state_->NewTuned(owner, state_->Intern(identity), key, snapshot_bytes);
  segment.last_use = now;
  state_->AddContents(segment, tier, kSnapshot, /*coming=*/false);
  return segment.number;
}

absl::StatusOr<uint64_t> SegmentTree::ImportTuned(const std::string& name_space, const SegmentKey& key,
                                                  int64_t snapshot_bytes, int tier, double now, SegmentDrops* drops) {
  State& state = *state_;
  state.Now(now);
  state.Ripen();
  if (state.LookupTier(tier) == nullptr) return absl::UnavailableError("the tier is closed");
  const auto space = state.tuned_spaces.find(key);
  Segment& segment = space == state.tuned_spaces.end()
                         ? state.NewTuned(state.NamespaceOf(name_space), state.identity, key, snapshot_bytes)
                         : *space->second->texts.root()->segment;
  if (const Copy* const there = segment.In(tier); there != nullptr) {
    if (there->coming != 0) return absl::UnavailableError("the same tuned state is being written to the store");
    return absl::AlreadyExistsError("the same tuned state is kept already");
  }
  ++segment.holds;
  segment.doomed = false;
  state.AddContents(segment, tier, kSnapshot, /*coming=*/true);
  state.Touch(segment);
  absl::Status fits = state.FitQuota(*segment.space->name_space, drops);
  if (fits.ok()) fits = state.FitTier(tier, drops);
  if (fits.ok()) return segment.number;
  state.RemoveContents(segment, tier, kSnapshot, nullptr);
  Release(segment.number, drops);
  return fits;
}

uint64_t SegmentTree::FindTuned(const SegmentKey& key) const {
  const auto found = state_->tuned_spaces.find(key);
  return found == state_->tuned_spaces.end() ? 0 : found->second->texts.root()->segment->number;
}

uint64_t SegmentTree::TunedOf(uint64_t number) const {
  const Segment* const segment = state_->Lookup(number);
  if (segment == nullptr) return 0;
  const Segment* const tuned = segment->space->texts.root()->segment;
  return tuned == nullptr ? 0 : tuned->number;
}

void SegmentTree::Tidy(SegmentDrops* drops) {
  std::vector<uint64_t> numbers;
  numbers.reserve(state_->segments.size());
  for (const auto& [number, segment] : state_->segments) numbers.push_back(number);
  std::sort(numbers.rbegin(), numbers.rend());  // children first
  for (const uint64_t number : numbers) {
    if (Segment* const segment = state_->Lookup(number); segment != nullptr) {
      state_->Settle(segment, State::Why::kLost, drops);
    }
  }
}

void SegmentTree::Hold(uint64_t number, double now) {
  state_->Now(now);
  Segment* const segment = state_->Lookup(number);
  GF_CHECK(segment != nullptr) << "segment " << number << " is gone";
  ++segment->holds;
  state_->Touch(*segment);
  state_->Reindex(*segment);
}

void SegmentTree::Release(uint64_t number, SegmentDrops* drops) {
  Segment& segment = state_->Held(number);
  if (--segment.holds > 0) return;
  segment.wants_logits = false;
  if (std::exchange(segment.doubtful, false) && !state_->ChainHasRows(segment)) {
    state_->DropBroken(segment, drops);
    return;
  }
  state_->Reindex(segment);
  state_->Settle(&segment, State::Why::kUnneeded, drops);
}

void SegmentTree::Lost(uint64_t number, int tier, SegmentContents contents, SegmentDrops* drops) {
  Segment* const segment = state_->Lookup(number);
  if (segment == nullptr || state_->LookupTier(tier) == nullptr) return;
  const Copy* const copy = segment->In(tier);
  if (copy == nullptr || (copy->contents() & contents) == 0) return;
  state_->RemoveContents(*segment, tier, contents, nullptr);
  if ((segment->contents() & kRows) == 0) {
    state_->DropBroken(*segment, drops);
  } else {
    state_->Settle(segment, State::Why::kLost, drops);
  }
}

std::optional<SegmentInfo> SegmentTree::Find(uint64_t number) const {
  const Segment* const segment = state_->Lookup(number);
  if (segment == nullptr) return std::nullopt;
  SegmentInfo info;
  info.name_space = segment->space->name_space->name;
  info.parent = segment->parent == nullptr ? 0 : segment->parent->number;
  info.begin = segment->begin;
  info.end = segment->end();
  info.row_bytes = segment->row_bytes();
  info.snapshot_bytes = segment->snapshot_bytes;
  info.logits = segment->logits;
  info.holds = segment->holds;
  info.contexts = segment->contexts;
  info.pinned_contexts = segment->pins;
  info.children = segment->children;
  info.last_use = segment->last_use;
  info.saved_seconds = state_->SavedSeconds(*segment);
  // Rows of a tuned state are wherever its snapshot is.
  const auto all = [&](SegmentContents some) { return segment->is_tuned() && some != 0 ? kRowsAndSnapshot : some; };
  for (const Copy& copy : segment->copies) info.copies.push_back({copy.tier, all(copy.present), all(copy.coming)});
  return info;
}

std::vector<uint64_t> SegmentTree::Chain(uint64_t number) const {
  std::vector<uint64_t> chain;
  for (const Segment* next = state_->Lookup(number); next != nullptr; next = next->parent) {
    if (chain.empty() || !next->is_tuned()) chain.push_back(next->number);
  }
  std::reverse(chain.begin(), chain.end());
  return chain;
}

std::vector<int32_t> SegmentTree::Ids(uint64_t number, int64_t begin, int64_t end, size_t more) const {
  const Segment* const segment = state_->Lookup(number);
  GF_CHECK(segment != nullptr) << "segment " << number << " is gone";
  GF_CHECK_LE(end, segment->end()) << "segment " << number;
  return TextTree::Ids(segment->node, begin, end, more);
}

SegmentKey SegmentTree::Key(uint64_t number) {
  std::vector<Segment*> without;
  Segment* next = state_->Lookup(number);
  GF_CHECK(next != nullptr) << "segment " << number << " is gone";
  for (; next != nullptr && next->key == nullptr; next = next->parent) {
    GF_CHECK((next->contents() & kRows) != 0) << "segment " << next->number << " has no rows";
    without.push_back(next);
  }
  for (; !without.empty(); without.pop_back()) {
    Segment& segment = *without.back();
    const SegmentKey* const parent = segment.parent == nullptr ? nullptr : segment.parent->key.get();
    segment.key = std::make_unique<SegmentKey>(KeyOf(*segment.space->identity, segment.space->name_space->name, parent,
                                                     TextTree::Ids(segment.node, segment.begin, segment.end())));
  }
  return *state_->Lookup(number)->key;
}

}  // namespace goldfinch
