// ContextKeeper: contexts by name.
#include <algorithm>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "coordinator/keeper/context_keeper.h"
#include "coordinator/scheduler/dispatcher.h"

namespace goldfinch {
namespace {

// A page of contexts ends where their chains have more segments together: to walk those takes about a millisecond.
constexpr size_t kPageSegmentsMax = 16'384;
// Looked up at a time, which walks their chains, too.
constexpr int kPagePart = 8;
// So many contexts expire at a time.
constexpr size_t kExpireMax = 256;
// No more names once the tokens of all texts take so much of the coordinator's memory.
constexpr int64_t kIndexBytesMax = int64_t{4} << 30;

// How many tokens of the context are meant.
absl::StatusOr<int64_t> TokensOf(const ContextInfo& context, std::optional<int64_t> first) {
  if (!first) return context.tokens;
  if (*first >= 1 && *first <= context.tokens) return *first;
  return absl::InvalidArgumentError(
      absl::StrCat("context_tokens is ", *first, ", context \"", context.name, "\" has ", context.tokens, " tokens"));
}

// Together with the context, the request must fit, and a number of tokens that nobody asked for is made to.
absl::Status FitLength(int64_t context_tokens, int64_t tokens_max, Request* request) {
  const auto tokens = static_cast<int64_t>(request->prompt.size());
  const std::string have =
      absl::StrCat("the context has ", context_tokens, " tokens and the prompt ", tokens - context_tokens);
  const auto check = [&](int64_t more, const std::string& what) {
    if (tokens + more <= tokens_max) return absl::OkStatus();
    return absl::InvalidArgumentError(
        absl::StrCat(have, what, ", together ", tokens + more, ", max_model_len is ", tokens_max));
  };
  GF_RETURN_IF_ERROR(check(0, ""));
  if (request->generate) {
    int64_t& most = request->generate->max_tokens;
    if (request->generate->may_shorten) most = std::min(most, tokens_max - tokens);
    return check(most, absl::StrCat(", max_tokens is ", most));
  }
  const auto& continuations = request->score->continuations;
  for (size_t i = 0; i < continuations.size(); ++i) {
    const auto more = static_cast<int64_t>(continuations[i].size());
    GF_RETURN_IF_ERROR(check(more, absl::StrCat(", continuations[", i, "] has ", more)));
  }
  return absl::OkStatus();
}

}  // namespace

// Stands between the scheduler and the client's sink until the request ends.
class ContextKeeper::NamedSink final : public RequestSink {
 public:
  NamedSink(ContextKeeper* keeper, const Request& request, int64_t context_tokens, std::vector<Held> held,
            std::shared_ptr<RequestSink> client)
      : keeper_(keeper),
        name_space_(NamespaceOf(request)),
        keep_as_(request.keep_as ? request.keep_as->name : ""),
        replaces_(request.keep_as && request.keep_as->etag != 0),
        context_tokens_(context_tokens),
        held_(std::move(held)),
        client_(std::move(client)) {}

  void OnProgress(int64_t prompt_tokens_done) override { client_->OnProgress(prompt_tokens_done); }
  Verdict OnToken(int sample, const OutputToken& token) override { return client_->OnToken(sample, token); }
  void OnSampleDone(int sample, Finish finish) override { client_->OnSampleDone(sample, finish); }
  Verdict OnScores(int continuation, int64_t first, absl::Span<const OutputToken> tokens, std::string logits) override {
    if (continuation < 0) first -= context_tokens_;
    return client_->OnScores(continuation, first, tokens, std::move(logits));
  }
  void OnDone(const absl::Status& status, const RequestUsage& usage) override {
    for (const Held& held : held_) keeper_->ReleaseHeld(held);
    if (!status.ok() || keep_as_.empty()) return client_->OnDone(status, usage);
    // What comes next may use it at once.
    keeper_->WhenSaved(name_space_, keep_as_, replaces_,
                       [client = client_, usage](const absl::StatusOr<NamedContext>& kept) {
                         if (kept.ok()) client->OnKept(*kept);
                         client->OnDone(kept.status(), usage);
                       });
  }

 private:
  ContextKeeper* const keeper_;
  const std::string name_space_;
  const std::string keep_as_;  // empty: it is not kept
  const bool replaces_;        // it takes the place of another context
  const int64_t context_tokens_;
  const std::vector<Held> held_;
  const std::shared_ptr<RequestSink> client_;
};

// Every change of what a name stands for passes here, and every use.
void ContextKeeper::NameChanged(const std::string& name_space, const std::string& name) const {
  if (store_ != nullptr) store_->NameChanged(name_space, name);
}

void ContextKeeper::ReleaseHeld(const Held& held) {
  if (held.segment == 0 || held.tree != trees_) return;
  SegmentDrops drops;
  tree_->Release(held.segment, &drops);
  Note(&drops);
}

int ContextKeeper::SavedBy(uint64_t segment) const {
  const auto has = [&](const std::vector<Saving>& savings) {
    return std::any_of(savings.begin(), savings.end(), [&](const Saving& one) { return one.segment == segment; });
  };
  for (const auto& [replica, group] : groups_) {
    const bool in_flight =
        std::any_of(group.steps.begin(), group.steps.end(), [&](const Step& step) { return has(step.saved); });
    if (in_flight || has(group.planned)) return replica;
  }
  return -1;
}

void ContextKeeper::WhenSaved(const std::string& name_space, const std::string& name, bool replaces,
                              KeptListener done) {
  absl::StatusOr<NamedContext> made = GetContext(name_space, {.name = name});
  if (!made.ok()) return done(std::move(made));
  const uint64_t segment = tree_->Get(name_space, name)->segment;
  const int replica = SavedBy(segment);
  NamedFinishing finishing = {{trees_, segment}, replica, name_space, *std::move(made), replaces, std::move(done)};
  if (replica < 0) return EndKept(&finishing, absl::OkStatus());
  finishing_.push_back(std::move(finishing));
}

// Tells of the context as it is now, or, if somebody has changed it meanwhile, as it was made.
void ContextKeeper::EndKept(NamedFinishing* finishing, const absl::Status& saved) {
  const std::string& name = finishing->made.name;
  if (!saved.ok()) {
    // Nothing of it is there, so nothing gets the name, but for what had it before.
    if (!finishing->replaces && finishing->segment.tree == trees_) {
      DeleteContext(finishing->name_space, {.name = name, .etag = finishing->made.etag}).status().IgnoreError();
    }
    return finishing->done(saved);
  }
  absl::StatusOr<NamedContext> now = GetContext(finishing->name_space, {.name = name});
  const bool unchanged = now.ok() && now->etag == finishing->made.etag;
  finishing->done(unchanged ? std::move(now) : std::move(finishing->made));
}

void ContextKeeper::FinishSaved(absl::FunctionRef<std::optional<absl::Status>(const NamedFinishing& one)> ended) {
  if (finishing_.empty()) return;
  for (NamedFinishing& one : std::exchange(finishing_, {})) {
    if (const std::optional<absl::Status> status = ended(one)) {
      EndKept(&one, *status);
    } else {
      finishing_.push_back(std::move(one));
    }
  }
}

void ContextKeeper::FinishAll(const absl::Status& status) {
  for (NamedFinishing& one : std::exchange(finishing_, {})) one.done(status);
  EndTransfers(status);
}

// What would keep a text from getting this name, as far as that is certain already.
absl::Status ContextKeeper::CheckKeepAs(const std::string& name_space, const Request::KeepAs& keep_as) const {
  if (tree_->index_bytes() > kIndexBytesMax) {
    return absl::ResourceExhaustedError(absl::StrCat("the tokens of contexts take ", tree_->index_bytes(),
                                                     " bytes of the coordinator's memory, the limit is ",
                                                     kIndexBytesMax));
  }
  if (keep_as.etag == 0) return tree_->CheckNew(name_space, keep_as.name);
  return tree_->Get(name_space, keep_as.name, keep_as.etag).status();
}

absl::StatusOr<std::shared_ptr<RequestSink>> ContextKeeper::Resolve(Request* request, std::shared_ptr<RequestSink> sink,
                                                                    int64_t tokens_max, double now) {
  if (tree_ == nullptr) return NoModel();
  const std::string& name_space = NamespaceOf(*request);
  std::vector<Held> held;
  const auto refuse = [&](const absl::Status& why) {
    for (const Held& one : held) ReleaseHeld(one);
    return why;
  };
  int64_t context_tokens = 0;
  if (!request->context.empty()) {
    GF_ASSIGN_OR_RETURN(const ContextInfo context, tree_->Use(name_space, request->context, now));
    held.push_back({trees_, context.segment});
    request->tuned = tree_->TunedOf(context.segment);
    if (request->tuned != 0) {
      tree_->Hold(request->tuned, now);
      held.push_back({trees_, request->tuned});
    }
    NameChanged(name_space, request->context);
    const absl::StatusOr<int64_t> tokens = TokensOf(context, request->context_tokens);
    if (!tokens.ok()) return refuse(tokens.status());
    context_tokens = *tokens;
    if (context_tokens == 0 && request->prompt.empty()) {
      return refuse(absl::InvalidArgumentError(absl::StrCat("the prompt is empty, and so is the text of context \"",
                                                            request->context, "\": one token is needed")));
    }
    std::vector<int32_t> ids = tree_->Ids(context.segment, 0, context_tokens, /*more=*/request->prompt.size());
    ids.insert(ids.end(), request->prompt.begin(), request->prompt.end());
    request->prompt = std::move(ids);
    request->context_tokens = context_tokens;
    for (int64_t& at : request->breakpoints) at += context_tokens;
    const bool whole = context_tokens == context.tokens;
    if (request->keep_as && request->keep_as->etag == 0 && whole && request->keep_as->name == request->context) {
      request->keep_as->etag = context.etag;
    }
  }
  absl::Status status = FitLength(context_tokens, tokens_max, request);
  if (status.ok() && request->keep_as && groups_.empty() && !empty_handed_.empty()) {
    status = absl::FailedPreconditionError("contexts cannot be kept: context_memory of the workers is 0");
  }
  if (status.ok() && request->keep_as) status = CheckKeepAs(name_space, *request->keep_as);
  if (!status.ok()) return refuse(status);
  if (context_tokens > 0) sink->OnContext(context_tokens);
  return std::make_shared<NamedSink>(this, *request, context_tokens, std::move(held), std::move(sink));
}

// Gives the held segment its name, or puts it in the place of what has the name and the etag.
absl::StatusOr<ContextInfo> ContextKeeper::Name(const std::string& name_space, const Request::KeepAs& keep_as,
                                                uint64_t segment, double now) {
  absl::StatusOr<ContextInfo> context;
  if (keep_as.etag == 0) {
    context = tree_->Create(name_space, keep_as.name, segment, keep_as.expire_after_seconds, now);
  } else {
    SegmentDrops drops;
    context = tree_->Advance(name_space, keep_as.name, keep_as.etag, segment, now, &drops);
    Note(&drops);
    if (context.ok() && !keep_as.expire_as_before) {
      context = tree_->SetSecondsToLive(name_space, keep_as.name, keep_as.expire_after_seconds, now);
    }
  }
  if (context.ok()) NameChanged(name_space, keep_as.name);
  return context;
}

absl::Status ContextKeeper::Keep(int replica, const Request& request, absl::Span<const int32_t> ids, double now) {
  const auto found = groups_.find(replica);
  if (found == groups_.end()) {
    return absl::FailedPreconditionError("the context cannot be kept: context_memory of the workers that read it is 0");
  }
  Group& group = found->second;
  const std::string& name_space = NamespaceOf(request);
  GF_ASSIGN_OR_RETURN(const AddedSegment added, tree_->Add(name_space, request.tuned, ids, group.bytes,
                                                           group.token_seconds * static_cast<double>(ids.size()), now));
  absl::Status status = absl::OkStatus();
  if (group.unsaved.contains(added.number)) {
    status = NoRoomOnShelf(tree_->TierBytes(group.tier), group.bytes_max);
  } else if (added.missing == 0) {
    status = Name(name_space, *request.keep_as, added.number, now).status();
  } else {
    const auto refused = group.refused.find(name_space);
    status = refused != group.refused.end() ? refused->second
                                            : absl::ResourceExhaustedError("context_memory of the workers is full");
  }
  ReleaseHeld({trees_, added.number});
  return status;
}

NamedContext ContextKeeper::Describe(const ContextInfo& context, size_t* segments) const {
  const TextKept kept = tree_->Kept(context.segment);
  const auto bytes = [&](int64_t tokens, int64_t snapshots) {
    return tokens * text_bytes_.per_token + snapshots * text_bytes_.snapshot;
  };
  if (segments != nullptr) *segments += kept.segments;
  NamedContext named;
  named.name = context.name;
  named.tokens = context.tokens;
  named.etag = context.etag;
  named.pinned = context.pinned;
  named.created = context.created + unix_offset_;
  named.last_use = context.last_use + unix_offset_;
  if (context.expires) named.expires = *context.expires + unix_offset_;
  named.bytes = bytes(kept.row_tokens, static_cast<int64_t>(kept.snapshots.size()));
  named.shared_bytes = bytes(kept.shared_row_tokens, kept.shared_snapshots);
  named.snapshots = kept.snapshots;
  named.in_memory = kept.in_memory;
  named.on_disk = kept.on_disk;
  named.transformer_bytes = context.tokens * text_bytes_.transformer_per_token;
  return named;
}

absl::StatusOr<NamedContext> ContextKeeper::GetContext(const std::string& name_space,
                                                       const GetContextQuery& query) const {
  if (tree_ == nullptr) return NoModel();
  GF_ASSIGN_OR_RETURN(const ContextInfo context, tree_->Get(name_space, query.name));
  NamedContext named = Describe(context);
  if (query.ids_max > 0 && query.ids_begin < context.tokens) {
    const int64_t end = std::min(context.tokens, query.ids_begin + query.ids_max);
    named.ids = tree_->Ids(context.segment, query.ids_begin, end);
  }
  return named;
}

absl::StatusOr<NamedContextPage> ContextKeeper::ListContexts(const std::string& name_space,
                                                             const ListContextsQuery& query) const {
  if (tree_ == nullptr) return NoModel();
  NamedContextPage page;
  page.next = query.after;
  size_t segments = 0;
  for (int left = query.count; left > 0 && segments < kPageSegmentsMax; left -= kPagePart) {
    const ContextPage part = tree_->List(name_space, page.next, std::min(left, kPagePart));
    for (const ContextInfo& context : part.contexts) page.contexts.push_back(Describe(context, &segments));
    page.next = part.next;
    if (page.next.empty()) break;
  }
  return page;
}

absl::StatusOr<NamedContext> ContextKeeper::ForkContext(const std::string& name_space, const ForkContextQuery& query,
                                                        double now) {
  if (tree_ == nullptr) return NoModel();
  GF_ASSIGN_OR_RETURN(const ContextInfo context, tree_->Use(name_space, query.context, now));
  NameChanged(name_space, query.context);
  const auto fork = [&]() -> absl::StatusOr<NamedContext> {
    GF_ASSIGN_OR_RETURN(const int64_t tokens, TokensOf(context, query.context_tokens));
    Request::KeepAs keep_as = query.keep_as;
    const bool whole = tokens == context.tokens;
    if (keep_as.etag == 0 && whole && keep_as.name == context.name) keep_as.etag = context.etag;
    GF_RETURN_IF_ERROR(CheckKeepAs(name_space, keep_as));
    if (whole) {
      GF_ASSIGN_OR_RETURN(const ContextInfo named, Name(name_space, keep_as, context.segment, now));
      return Describe(named);
    }
    const std::vector<int32_t> ids = tree_->Ids(context.segment, 0, tokens);
    const uint64_t tuned = tree_->TunedOf(context.segment);
    if (tuned != 0) tree_->Hold(tuned, now);
    const absl::StatusOr<AddedSegment> added =
        tree_->Add(name_space, tuned, ids, segment_bytes_, token_seconds_ * static_cast<double>(tokens), now);
    const auto named =
        added.ok() ? Name(name_space, keep_as, added->number, now) : absl::StatusOr<ContextInfo>(added.status());
    if (added.ok()) ReleaseHeld({trees_, added->number});
    if (tuned != 0) ReleaseHeld({trees_, tuned});
    if (!named.ok()) return named.status();
    return Describe(*named);
  };
  const absl::StatusOr<NamedContext> forked = fork();
  ReleaseHeld({trees_, context.segment});
  return forked;
}

absl::StatusOr<NamedContext> ContextKeeper::RenameContext(const std::string& name_space,
                                                          const RenameContextQuery& query) {
  if (tree_ == nullptr) return NoModel();
  GF_ASSIGN_OR_RETURN(const ContextInfo context, tree_->Rename(name_space, query.name, query.new_name, query.etag));
  NameChanged(name_space, query.name);
  NameChanged(name_space, query.new_name);
  return Describe(context);
}

absl::StatusOr<NamedContext> ContextKeeper::PinContext(const std::string& name_space, const PinContextQuery& query) {
  if (tree_ == nullptr) return NoModel();
  GF_ASSIGN_OR_RETURN(const ContextInfo context, tree_->Pin(name_space, query.name, query.pinned, query.etag));
  NameChanged(name_space, query.name);
  return Describe(context);
}

absl::StatusOr<std::string> ContextKeeper::DeleteContext(const std::string& name_space,
                                                         const DeleteContextQuery& query) {
  if (tree_ == nullptr) return NoModel();
  SegmentDrops drops;
  const absl::Status status = tree_->Delete(name_space, query.name, query.etag, &drops);
  Note(&drops);
  GF_RETURN_IF_ERROR(status);
  NameChanged(name_space, query.name);
  return query.name;
}

void ContextKeeper::Expire(double now) {
  if (tree_ == nullptr) return;
  SegmentDrops drops;
  for (const ExpiredContext& expired : tree_->Expire(now, &drops, kExpireMax)) {
    NameChanged(expired.name_space, expired.name);
  }
  Note(&drops);
}

}  // namespace goldfinch
