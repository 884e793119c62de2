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
  if (name.size() > SegmentTree::kNameBytesMax) {
    return absl::InvalidArgumentError(absl::StrCat("the name of a context has ",
                                                   WithCommas(static_cast<int64_t>(name.size())),
                                                   " bytes, the limit is ", SegmentTree::kNameBytesMax));
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

void SegmentTree::State::Attach(Context& context, Segment& segment) {
  context.segment = &segment;
  ++segment.contexts;
  segment.pins += context.pinned;
  segment.doomed = false;
  Reindex(segment);
}

void SegmentTree::State::Detach(Context& context) {
  Segment& segment = *context.segment;
  --segment.contexts;
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
  GF_RETURN_IF_ERROR(CheckName(name));
  if (space.contexts.contains(name)) return Exists(name);
  if (static_cast<int64_t>(space.contexts.size()) >= space.quota.contexts_max) {
    return absl::ResourceExhaustedError(absl::StrCat("namespace \"", name_space, "\" has ",
                                                     WithCommas(static_cast<int64_t>(space.contexts.size())),
                                                     " contexts, which is its quota"));
  }
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
  if (seconds_to_live) state.SetExpiry(context, state.now + *seconds_to_live);
  return state.Info(context);
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
  if (context->seconds_to_live) state.SetExpiry(*context, state.now + *context->seconds_to_live);
  state.Settle(before, State::Why::kUnneeded, drops);
  return state.Info(*context);
}

absl::StatusOr<ContextInfo> SegmentTree::Get(const std::string& name_space, const std::string& name) const {
  GF_ASSIGN_OR_RETURN(const Context* const context, state_->FindContext(name_space, name, 0));
  return state_->Info(*context);
}

absl::StatusOr<ContextInfo> SegmentTree::Use(const std::string& name_space, const std::string& name, double now) {
  State& state = *state_;
  state.Now(now);
  GF_ASSIGN_OR_RETURN(Context* const context, state.FindContext(name_space, name, 0));
  if (const ContextIdentity* const of = context->segment->space->identity; of != state.identity) {
    return absl::FailedPreconditionError(absl::StrCat("context \"", name, "\" is of ", of->ToString(),
                                                      ", and what is served is ", state.identity->ToString()));
  }
  context->last_use = state.now;
  if (context->seconds_to_live) state.SetExpiry(*context, state.now + *context->seconds_to_live);
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

int SegmentTree::Expire(double now, SegmentDrops* drops) {
  state_->Now(now);
  int expired = 0;
  while (!state_->expiries.empty() && state_->expiries.begin()->first.first <= now) {
    state_->Remove(*state_->expiries.begin()->second, /*doom=*/false, drops);
    ++expired;
  }
  return expired;
}

std::optional<double> SegmentTree::NextExpiry() const {
  if (state_->expiries.empty()) return std::nullopt;
  return state_->expiries.begin()->first.first;
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
