#include "coordinator/contexts/segment_tree_state.h"

#include <algorithm>
#include <utility>

#include "base/check.h"

namespace goldfinch {

// ---- Segment

SegmentContents Segment::present() const {
  SegmentContents contents = is_tuned() ? kRows : 0;
  for (const Copy& copy : copies) contents |= copy.present;
  return contents;
}

SegmentContents Segment::coming() const {
  SegmentContents contents = 0;
  for (const Copy& copy : copies) contents |= copy.coming;
  return contents;
}

SegmentContents Segment::PresentBeside(int tier) const {
  SegmentContents contents = 0;
  for (const Copy& copy : copies) {
    if (copy.tier != tier) contents |= copy.present;
  }
  return contents;
}

Copy* Segment::In(int tier) {
  for (Copy& copy : copies) {
    if (copy.tier == tier) return &copy;
  }
  return nullptr;
}

// ---- Look-ups

const ContextIdentity* SegmentTree::State::Intern(const ContextIdentity& of) {
  for (const auto& known : identities) {
    if (*known == of) return known.get();
  }
  return identities.emplace_back(std::make_unique<ContextIdentity>(of)).get();
}

Namespace& SegmentTree::State::NamespaceOf(const std::string& name) {
  auto found = namespaces.find(name);
  if (found == namespaces.end()) {
    found = namespaces.emplace(name, std::make_unique<Namespace>()).first;
    found->second->name = name;
    found->second->pool.bytes_max = found->second->quota.bytes_max;
  }
  return *found->second;
}

const Namespace* SegmentTree::State::FindNamespace(const std::string& name) const {
  const auto found = namespaces.find(name);
  return found == namespaces.end() ? nullptr : found->second.get();
}

Space& SegmentTree::State::SpaceOf(const ContextIdentity* of, const std::string& name) {
  Namespace& name_space = NamespaceOf(name);
  std::unique_ptr<Space>& space = spaces[{&name_space, of}];
  if (space == nullptr) {
    space = std::make_unique<Space>();
    space->name_space = &name_space;
    space->identity = of;
  }
  return *space;
}

const Space* SegmentTree::State::FindSpace(const ContextIdentity* of, const std::string& name) const {
  const auto found = spaces.find({FindNamespace(name), of});
  return found == spaces.end() ? nullptr : found->second.get();
}

Space& SegmentTree::State::SpaceOf(const Segment* parent, const ContextIdentity* of, const std::string& name) {
  return parent == nullptr ? SpaceOf(of, name) : *parent->space;
}

Segment* SegmentTree::State::Lookup(uint64_t number) const {
  GF_CHECK(number > 0 && number <= last_segment) << "segment " << number;
  const auto found = segments.find(number);
  return found == segments.end() ? nullptr : found->second.get();
}

Segment& SegmentTree::State::Held(uint64_t number) const {
  Segment* const segment = Lookup(number);
  GF_CHECK(segment != nullptr && segment->holds > 0) << "segment " << number << " is not held";
  return *segment;
}

Tier* SegmentTree::State::LookupTier(int tier) {
  GF_CHECK(tier > 0 && tier <= last_tier) << "tier " << tier;
  const auto found = tiers.find(tier);
  return found == tiers.end() ? nullptr : &found->second;
}

// ---- The tree

Segment* SegmentTree::State::NewSegment(Space& space, TextTree::Node* node, Segment* parent, const SegmentBytes& bytes,
                                        double seconds) {
  const uint64_t number = ++last_segment;
  Segment* const segment = segments.emplace(number, std::make_unique<Segment>()).first->second.get();
  segment->number = number;
  segment->space = &space;
  segment->node = node;
  node->segment = segment;
  segment->row_bytes_per_token = bytes.per_token;
  segment->snapshot_bytes = bytes.snapshot;
  segment->logits = bytes.logits;
  segment->seconds = seconds;
  Link(*segment, parent);
  return segment;
}

Segment& SegmentTree::State::NewTuned(Namespace& name_space, const ContextIdentity* of, const SegmentKey& key,
                                      int64_t snapshot_bytes) {
  std::unique_ptr<Space>& space = tuned_spaces[key];
  GF_CHECK(space == nullptr) << "a tuned state is made twice";
  space = std::make_unique<Space>();
  space->name_space = &name_space;
  space->identity = of;
  Segment* const segment = NewSegment(*space, space->texts.root(), nullptr, {.snapshot = snapshot_bytes}, 0);
  segment->key = std::make_unique<SegmentKey>(key);
  return *segment;
}

void SegmentTree::State::Link(Segment& segment, Segment* parent) {
  segment.parent = parent;
  segment.begin = 0;
  segment.depth = 1;
  if (parent == nullptr) return;
  segment.begin = parent->end();
  segment.depth = parent->depth + 1;
  segment.last_sibling = nullptr;
  segment.next_sibling = parent->first_child;
  if (parent->first_child != nullptr) parent->first_child->last_sibling = &segment;
  parent->first_child = &segment;
  ++parent->children;
  CountWithin(parent, segment.contexts_within);
  Reindex(*parent);
}

void SegmentTree::State::Unlink(Segment& segment) {
  Segment* const parent = segment.parent;
  if (parent == nullptr) return;
  CountWithin(parent, -segment.contexts_within);
  (segment.last_sibling == nullptr ? parent->first_child : segment.last_sibling->next_sibling) = segment.next_sibling;
  if (segment.next_sibling != nullptr) segment.next_sibling->last_sibling = segment.last_sibling;
  segment.parent = segment.next_sibling = segment.last_sibling = nullptr;
  --parent->children;
  Reindex(*parent);
}

// A segment without rows gets as its parent the nearest one whose chain has all rows.
void SegmentTree::State::Rebase(Segment& segment, SegmentDrops* drops) {
  Segment* parent = nullptr;
  for (Segment* above = segment.parent; above != nullptr; above = above->parent) {
    if ((above->contents() & kRows) == 0) {
      parent = nullptr;
    } else if (parent == nullptr) {
      parent = above;
    }
  }
  Relink(segment, parent, drops);
}

// Gives a segment without rows another parent, or none. Keys below depend on where it begins.
void SegmentTree::State::Relink(Segment& segment, Segment* parent, SegmentDrops* drops) {
  Segment* const before = segment.parent;
  if (parent == before) return;
  Unlink(segment);
  Link(segment, parent);
  std::vector<Segment*> below = {&segment};
  while (!below.empty()) {
    Segment* const next = below.back();
    below.pop_back();
    next->key = nullptr;
    for (Segment* child = next->first_child; child != nullptr; child = child->next_sibling) below.push_back(child);
  }
  Settle(before, Why::kLost, drops);
}

void SegmentTree::State::AddContents(Segment& segment, int tier, SegmentContents contents, bool coming) {
  const SegmentContents before = segment.contents();
  Copy* copy = segment.In(tier);
  if (copy == nullptr) {
    copy = &segment.copies.emplace_back();
    copy->tier = tier;
    copy->order.base = tiers.at(tier).pool.inflation;
    copy->order.used = last_used;
    for (const Segment* child = segment.first_child; child != nullptr; child = child->next_sibling) {
      const Copy* const there = child->In(tier);
      copy->children += there != nullptr && (there->contents() & kRows) != 0;
    }
  }
  GF_CHECK_EQ(copy->contents() & contents, 0);
  (coming ? copy->coming : copy->present) |= contents;
  tiers.at(tier).pool.bytes += tiers.at(tier).Bytes(segment, contents);
  segment.space->name_space->pool.bytes += segment.Bytes(contents & ~before);
  Segment* const parent = segment.parent;
  if (parent != nullptr && (contents & kRows) != 0) {
    if (Copy* const above = parent->In(tier); above != nullptr) ++above->children;
    Reindex(*parent);
  }
  Reindex(segment);
}

void SegmentTree::State::RemoveContents(Segment& segment, int tier, SegmentContents contents, SegmentDrops* drops) {
  Copy* const copy = segment.In(tier);
  if (copy == nullptr || (copy->contents() & contents) == 0) return;
  contents &= copy->contents();
  const SegmentContents before = segment.contents();
  copy->present &= ~contents;
  copy->coming &= ~contents;
  tiers.at(tier).pool.bytes -= tiers.at(tier).Bytes(segment, contents);
  if (copy->contents() == 0) {
    List(tiers.at(tier).pool, segment.number, copy->order, false, 0);
    segment.copies.erase(segment.copies.begin() + (copy - segment.copies.data()));
  }
  segment.space->name_space->pool.bytes -= segment.Bytes(before & ~segment.contents());
  if (drops != nullptr) {
    SegmentDrop& drop = drops->emplace_back();
    drop.segment = segment.number;
    drop.tier = tier;
    // Shelves have empty rows of a tuned state, which go with it.
    drop.contents = segment.is_tuned() ? kRowsAndSnapshot : contents;
  }
  Segment* const parent = segment.parent;
  if (parent != nullptr && (contents & kRows) != 0) {
    if (Copy* const above = parent->In(tier); above != nullptr) --above->children;
    Reindex(*parent);
  }
  Reindex(segment);
}

void SegmentTree::State::RemoveEverywhere(Segment& segment, SegmentContents contents, SegmentDrops* drops) {
  std::vector<int> in;
  for (const Copy& copy : segment.copies) in.push_back(copy.tier);
  for (const int tier : in) RemoveContents(segment, tier, contents, drops);
}

void SegmentTree::State::Delete(Segment& segment, Why why, SegmentDrops* drops) {
  GF_CHECK(segment.children == 0 && !segment.needed());
  RemoveEverywhere(segment, kRowsAndSnapshot, drops);
  List(segment.space->name_space->pool, segment.number, segment.order, false, 0);
  const TextTree::Node* const node = segment.node;
  if (segment.is_tuned()) {
    const SegmentKey key = *segment.key;
    segments.erase(segment.number);
    tuned_spaces.erase(key);  // nothing else is in it
    return;
  }
  if (why == Why::kEvicted && segment.space->texts.root()->segment == nullptr) {
    const int64_t ids = std::min<int64_t>(node->end, EvictedTexts::kIds);
    evicted_texts.Add(segment.space->name_space->name, TextTree::Ids(node, 0, ids));
  }
  Unlink(segment);
  segment.node->segment = nullptr;
  segment.space->texts.Tidy(segment.node);
  segments.erase(segment.number);
}

bool SegmentTree::State::Useless(const Segment& segment) const {
  if (segment.children > 0 || segment.needed() || segment.coming() != 0) return false;
  return segment.is_tuned() || segment.doomed || (segment.present() & kSnapshot) == 0;
}

// Removes the segment, and its parents as far as they are of no use any more.
void SegmentTree::State::Settle(Segment* segment, Why why, SegmentDrops* drops) {
  while (segment != nullptr && Useless(*segment)) {
    Segment* const parent = segment->parent;
    const bool doomed = segment->doomed;
    Delete(*segment, why, drops);
    if (doomed && parent != nullptr) {
      // Whoever deletes a text deletes all of it that no other one has.
      parent->doomed = true;
      if (!Useless(*parent)) parent->doomed = false;
    }
    segment = parent;
  }
}

// After the last rows of the segment have been lost: what was kept of it and of all below it has no use.
void SegmentTree::State::DropBroken(Segment& segment, SegmentDrops* drops) {
  std::vector<Segment*> below = {&segment};
  for (size_t i = 0; i < below.size(); ++i) {
    for (Segment* child = below[i]->first_child; child != nullptr; child = child->next_sibling) below.push_back(child);
  }
  std::reverse(below.begin(), below.end());  // children first
  for (Segment* const broken : below) {
    if (broken->holds > 0) {
      broken->doubtful = true;
      continue;
    }
    RemoveEverywhere(*broken, kRowsAndSnapshot, drops);
    if (broken != &segment && Useless(*broken)) Delete(*broken, Why::kLost, drops);
  }
  Settle(&segment, Why::kLost, drops);
}

bool SegmentTree::State::ChainHasRows(const Segment& segment) const {
  for (const Segment* next = &segment; next != nullptr; next = next->parent) {
    if ((next->contents() & kRows) == 0) return false;
  }
  return true;
}

// The segment was used.
void SegmentTree::State::Touch(Segment& segment) {
  segment.last_use = now;
  ++last_used;
  segment.order.base = segment.space->name_space->pool.inflation;
  segment.order.used = last_used;
  for (Copy& copy : segment.copies) {
    copy.order.base = tiers.at(copy.tier).pool.inflation;
    copy.order.used = last_used;
  }
}

}  // namespace goldfinch
