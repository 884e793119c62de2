// Contexts: what users have named.
#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/status.h"
#include "base/units.h"
#include "coordinator/contexts/segment_tree_state.h"

namespace goldfinch {
namespace {

absl::Status CheckName(const std::string& name) {
  if (name.empty()) return absl::InvalidArgumentError("the name of a context is empty");
  if (name.size() > kContextTextBytesMax) {
    return absl::InvalidArgumentError(absl::StrCat("the name of a context has ",
                                                   WithCommas(static_cast<int64_t>(name.size())),
                                                   " bytes, the limit is ", kContextTextBytesMax));
  }
  return absl::OkStatus();
}

absl::Status Exists(const std::string& name) {
  return absl::AlreadyExistsError(absl::StrCat("there is a context \"", name, "\" already"));
}

}  // namespace

absl::StatusOr<Context*> SegmentTree::State::FindContext(const std::string& name_space, const std::string& name,
                                                         uint64_t etag) const {
  if (const Namespace* const space = FindNamespace(name_space); space != nullptr) {
    if (const auto found = space->contexts.find(name); found != space->contexts.end()) {
      Context* const context = found->second.get();
      if (etag == 0 || etag == context->etag) return context;
      return absl::AbortedError(absl::StrCat("context \"", name, "\" has changed: its etag is ", context->etag,
                                             ", and the request has ", etag));
    }
  }
  return absl::NotFoundError(absl::StrCat("there is no context \"", name, "\""));
}

ContextInfo SegmentTree::State::Info(const Context& context) const {
  ContextInfo info;
  info.name = context.name;
  info.segment = context.segment->number;
  info.tokens = context.segment->end();
  info.usable = (context.segment->present() & kSnapshot) != 0;
  for (const Segment* link = context.segment; link != nullptr && info.usable; link = link->parent) {
    info.usable = (link->present() & kRows) != 0;
  }
  info.pinned = context.pinned;
  info.etag = context.etag;
  info.created = context.created;
  info.last_use = context.last_use;
  info.expires = context.expires;
  return info;
}

void SegmentTree::State::SetExpiry(Context& context, std::optional<double> at) {
  if (context.expires) expiries.erase({*context.expires, context.id});
  context.expires = at;
  if (at) expiries.emplace(std::make_pair(*at, context.id), &context);
}

// The last use was now. A pinned context does not expire.
void SegmentTree::State::PutOffExpiry(Context& context) {
  const bool expires = context.seconds_to_live.has_value() && !context.pinned;
  SetExpiry(context, expires ? std::optional<double>(now + *context.seconds_to_live) : std::nullopt);
}

// So many contexts more of this segment, or of one below it.
void SegmentTree::State::CountWithin(Segment* segment, int32_t contexts) {
  if (contexts == 0) return;
  for (; segment != nullptr; segment = segment->parent) segment->contexts_within += contexts;
}

// OK if the namespace, which may be null, can have another context, of this name.
absl::Status SegmentTree::State::CheckNew(const Namespace* space, const std::string& name) const {
  GF_RETURN_IF_ERROR(CheckName(name));
  if (space == nullptr) return absl::OkStatus();
  if (space->contexts.contains(name)) return Exists(name);
  if (static_cast<int64_t>(space->contexts.size()) < space->quota.contexts_max) return absl::OkStatus();
  return absl::ResourceExhaustedError(absl::StrCat("namespace \"", space->name, "\" has ",
                                                   WithCommas(static_cast<int64_t>(space->contexts.size())),
                                                   " contexts, which is its quota"));
}

void SegmentTree::State::Attach(Context& context, Segment& segment) {
  context.segment = &segment;
  ++segment.contexts;
  CountWithin(&segment, 1);
  segment.pins += context.pinned;
  segment.doomed = false;
  Reindex(segment);
}

void SegmentTree::State::Detach(Context& context) {
  Segment& segment = *context.segment;
  --segment.contexts;
  CountWithin(&segment, -1);
  segment.pins -= context.pinned;
  context.segment = nullptr;
  Reindex(segment);
}

// `doom`: its bytes go, too.
void SegmentTree::State::Remove(Context& context, bool doom, SegmentDrops* drops) {
  Segment& segment = *context.segment;
  SetExpiry(context, std::nullopt);
  Detach(context);
  auto& contexts = context.name_space->contexts;
  contexts.erase(contexts.find(context.name));
  segment.doomed = doom && segment.contexts == 0;
  Settle(&segment, Why::kUnneeded, drops);
}

// ---- The interface

absl::StatusOr<ContextInfo> SegmentTree::Create(const std::string& name_space, const std::string& name, uint64_t number,
                                                std::optional<double> seconds_to_live, double now) {
  State& state = *state_;
  state.Now(now);
  Segment& segment = state.Held(number);
  Namespace& space = *segment.space->name_space;
  GF_CHECK(space.name == name_space) << "segment " << number << " is of another namespace";
  GF_RETURN_IF_ERROR(state.CheckNew(&space, name));
  auto created = std::make_unique<Context>();
  Context& context = *created;
  context.id = ++state.last_context;
  context.name = name;
  context.name_space = &space;
  context.etag = ++state.last_etag;
  context.created = context.last_use = state.now;
  context.seconds_to_live = seconds_to_live;
  state.Attach(context, segment);
  space.contexts.emplace(context.name, std::move(created));
  state.PutOffExpiry(context);
  return state.Info(context);
}

absl::Status SegmentTree::CheckNew(const std::string& name_space, const std::string& name) const {
  return state_->CheckNew(state_->FindNamespace(name_space), name);
}

absl::StatusOr<ContextInfo> SegmentTree::Advance(const std::string& name_space, const std::string& name, uint64_t etag,
                                                 uint64_t number, double now, SegmentDrops* drops) {
  State& state = *state_;
  state.Now(now);
  Segment& segment = state.Held(number);
  GF_CHECK(segment.space->name_space->name == name_space) << "segment " << number << " is of another namespace";
  GF_ASSIGN_OR_RETURN(Context* const context, state.FindContext(name_space, name, etag));
  Segment* const before = context->segment;
  state.Detach(*context);
  state.Attach(*context, segment);
  context->etag = ++state.last_etag;
  context->last_use = state.now;
  state.PutOffExpiry(*context);
  state.Settle(before, State::Why::kUnneeded, drops);
  return state.Info(*context);
}

absl::StatusOr<ContextInfo> SegmentTree::SetSecondsToLive(const std::string& name_space, const std::string& name,
                                                          std::optional<double> seconds_to_live, double now) {
  State& state = *state_;
  state.Now(now);
  GF_ASSIGN_OR_RETURN(Context* const context, state.FindContext(name_space, name, 0));
  context->seconds_to_live = seconds_to_live;
  context->last_use = state.now;
  state.PutOffExpiry(*context);
  return state.Info(*context);
}

absl::StatusOr<ContextInfo> SegmentTree::Get(const std::string& name_space, const std::string& name,
                                             uint64_t etag) const {
  GF_ASSIGN_OR_RETURN(const Context* const context, state_->FindContext(name_space, name, etag));
  return state_->Info(*context);
}

absl::StatusOr<ContextInfo> SegmentTree::Use(const std::string& name_space, const std::string& name, double now) {
  State& state = *state_;
  state.Now(now);
  GF_ASSIGN_OR_RETURN(Context* const context, state.FindContext(name_space, name, 0));
  if (const ContextIdentity* const of = context->segment->space->identity; of != state.identity) {
    return absl::FailedPreconditionError(absl::StrCat("context \"", name, "\" was made by ", of->ToString(),
                                                      ", this server runs ", state.identity->ToString()));
  }
  context->last_use = state.now;
  state.PutOffExpiry(*context);
  Hold(context->segment->number, now);
  return state.Info(*context);
}

absl::StatusOr<ContextInfo> SegmentTree::Rename(const std::string& name_space, const std::string& name,
                                                const std::string& new_name, uint64_t etag) {
  GF_ASSIGN_OR_RETURN(Context* const context, state_->FindContext(name_space, name, etag));
  GF_RETURN_IF_ERROR(CheckName(new_name));
  auto& contexts = context->name_space->contexts;
  if (contexts.contains(new_name)) return Exists(new_name);
  auto moved = contexts.extract(contexts.find(name));
  moved.key() = new_name;
  context->name = new_name;
  contexts.insert(std::move(moved));
  context->etag = ++state_->last_etag;
  return state_->Info(*context);
}

absl::StatusOr<ContextInfo> SegmentTree::Pin(const std::string& name_space, const std::string& name, bool pinned,
                                             uint64_t etag) {
  GF_ASSIGN_OR_RETURN(Context* const context, state_->FindContext(name_space, name, etag));
  if (context->pinned != pinned) {
    context->pinned = pinned;
    context->segment->pins += pinned ? 1 : -1;
    context->etag = ++state_->last_etag;
    state_->PutOffExpiry(*context);
    state_->Reindex(*context->segment);
  }
  return state_->Info(*context);
}

absl::Status SegmentTree::Delete(const std::string& name_space, const std::string& name, uint64_t etag,
                                 SegmentDrops* drops) {
  GF_ASSIGN_OR_RETURN(Context* const context, state_->FindContext(name_space, name, etag));
  state_->Remove(*context, /*doom=*/true, drops);
  return absl::OkStatus();
}

TextKept SegmentTree::Kept(uint64_t number) const {
  std::vector<const Segment*> chain;
  for (const Segment* link = state_->Lookup(number); link != nullptr; link = link->parent) chain.push_back(link);
  GF_CHECK(!chain.empty()) << "segment " << number << " is gone";
  std::reverse(chain.begin(), chain.end());
  TextKept kept;
  kept.segments = chain.size();
  // Tiers that have the rows of all of the chain so far, those of a tuned state aside.
  absl::InlinedVector<int, 4> whole;
  const size_t first = chain[0]->is_tuned() && chain.size() > 1 ? 1 : 0;
  for (const Copy& copy : chain[first]->copies) whole.push_back(copy.tier);
  for (const Segment* const link : chain) {
    const SegmentContents present = link->present();
    const bool shared = link->contexts_within > 1;
    const int64_t tokens = (present & kRows) != 0 ? link->end() - link->begin : 0;
    kept.row_tokens += tokens;
    kept.shared_row_tokens += shared ? tokens : 0;
    if ((present & kSnapshot) != 0) {
      kept.snapshots.push_back(link->end());
      kept.shared_snapshots += shared ? 1 : 0;
    }
    if (link->is_tuned() && chain.size() > 1) continue;
    const auto has = [&](int tier, SegmentContents contents) {
      const Copy* const copy = link->In(tier);
      return copy != nullptr && ((copy->present | (link->is_tuned() ? kRows : 0)) & contents) == contents;
    };
    whole.erase(std::remove_if(whole.begin(), whole.end(), [&](int tier) { return !has(tier, kRows); }), whole.end());
    for (const int tier : whole) {
      if (!has(tier, kSnapshot)) continue;
      (state_->tiers.at(tier).options.kind == TierKind::kDisk ? kept.on_disk : kept.in_memory) = true;
    }
  }
  return kept;
}

ContextPage SegmentTree::List(const std::string& name_space, const std::string& after, int count) const {
  GF_CHECK_GT(count, 0);
  ContextPage page;
  const Namespace* const space = state_->FindNamespace(name_space);
  if (space == nullptr) return page;
  auto next = after.empty() ? space->contexts.begin() : space->contexts.upper_bound(after);
  for (; next != space->contexts.end() && count > 0; ++next, --count) {
    page.contexts.push_back(state_->Info(*next->second));
  }
  if (next != space->contexts.end()) page.next = page.contexts.back().name;
  return page;
}

std::vector<ExpiredContext> SegmentTree::Expire(double now, SegmentDrops* drops, size_t count_max) {
  state_->Now(now);
  std::vector<ExpiredContext> expired;
  while (expired.size() < count_max && !state_->expiries.empty() && state_->expiries.begin()->first.first <= now) {
    Context& context = *state_->expiries.begin()->second;
    expired.push_back({context.name_space->name, context.name});
    state_->Remove(context, /*doom=*/false, drops);
  }
  return expired;
}

void SegmentTree::SetQuota(const std::string& name_space, const NamespaceQuota& quota) {
  Namespace& space = state_->NamespaceOf(name_space);
  space.quota = quota;
  space.pool.bytes_max = quota.bytes_max;
}

int64_t SegmentTree::NamespaceBytes(const std::string& name_space) const {
  const Namespace* const space = state_->FindNamespace(name_space);
  return space == nullptr ? 0 : space->pool.bytes;
}

}  // namespace goldfinch
