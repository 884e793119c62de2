#include "coordinator/scheduler/scheduler.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "coordinator/scheduler/scheduler_state.h"

namespace goldfinch {
namespace {

template <typename Item>
int64_t BytesOf(const std::vector<Item>& items) {
  return static_cast<int64_t>(items.capacity() * sizeof(Item));
}

// The continuations are counted with the sequences.
int64_t BytesOf(const Request& request) {
  int64_t bytes = static_cast<int64_t>(sizeof(Request)) + request.held_bytes + BytesOf(request.prompt);
  if (!request.generate) return bytes;
  const SamplingOptions& sampling = request.generate->sampling;
  return bytes + BytesOf(request.generate->stop_ids) + BytesOf(sampling.logit_bias) + BytesOf(sampling.banned_tokens);
}

}  // namespace

Scheduler::Scheduler(const QueueLimits& queue, int replicas, bool overcommit)
    : queue_(queue), replicas_(replicas), overcommit_(overcommit) {}

Scheduler::~Scheduler() = default;

void Scheduler::SetModel(int64_t vocab_size, int64_t cache_bytes_per_token, int64_t transformer_bytes_per_token,
                         const AttentionShape& attention) {
  vocab_size_ = vocab_size;
  cache_bytes_per_token_ = cache_bytes_per_token;
  transformer_bytes_per_token_ = transformer_bytes_per_token;
  attention_ = attention;
}

// ---- Requests ----

void Scheduler::Submit(uint64_t number, Request request, std::shared_ptr<RequestSink> sink, double now) {
  GF_CHECK(!request.prompt.empty());
  GF_CHECK_NE(request.generate.has_value(), request.score.has_value());
  auto owned = std::make_unique<RequestState>();
  RequestState& state = *owned;
  state.number = number;
  state.arrival = ++last_arrival_;
  state.sink = std::move(sink);
  state.submitted = now;
  state.usage.prompt_tokens = static_cast<int64_t>(request.prompt.size());
  const size_t sequences =
      request.generate ? request.generate->samples : std::max<size_t>(request.score->continuations.size(), 1);
  state.sequences.resize(sequences);
  for (size_t i = 0; i < sequences; ++i) {
    state.sequences[i].owner = &state;
    state.sequences[i].index = static_cast<int>(i);
    if (request.score && !request.score->continuations.empty()) {
      state.sequences[i].after_prompt = std::move(request.score->continuations[i]);
    }
  }
  state.live = static_cast<int>(sequences);
  // A context is not scored, nor is the first token after it.
  state.prompt_scored = request.context_tokens.value_or(0);
  if (request.keep_as && request.generate && request.generate->max_tokens == 0)
    state.sequences[0].finish = Finish::kLength;
  state.request = std::move(request);
  state.bytes = BytesOf(state.request);
  for (const Sequence& sequence : state.sequences) state.bytes += BytesOf(sequence.after_prompt) + sizeof(Sequence);
  state.is_short = state.CostMax() <= kShortTokens;
  Account& account = AccountOf(state.request, now);
  state.account = &account;
  ++account.queued;
  account.queued_cost += state.CostMax();
  GF_CHECK(requests_.emplace(number, std::move(owned)).second) << "request " << number;
  Requeue(state);
  // A prompt of one token: nothing comes before it that could score it.
  if (state.request.score && state.End(state.sequences[0]) == 0) return End(state, absl::OkStatus(), now);
  if (all_groups_ready() && !EverFits(state)) return End(state, TooLarge(state), now);
  if (keeper_ != nullptr && state.request.uses_kept() && state.request.deadline_seconds) {
    for (const auto& [replica, group] : groups_) {
      state.kept_tokens = std::max(state.kept_tokens, keeper_->Kept(replica, state.request, state.request.prompt));
    }
  }
  // Nobody is parked for a request that could not even be read in time.
  if (const absl::Status status = CheckDeadline(state, /*admitted=*/true, now); !status.ok()) {
    return End(state, status, now);
  }
  Admit(now);
  const auto found = requests_.find(number);
  if (found == requests_.end() || found->second->group != nullptr) return;
  if (const absl::Status status = CheckDeadline(state, /*admitted=*/false, now); !status.ok()) {
    return End(state, status, now);
  }
  if (const absl::Status status = ClientLimit(state, now); !status.ok()) return End(state, status, now);
  if (!MakePlace(state, now)) End(state, QueueFull(), now);
}

void Scheduler::Cancel(uint64_t number, const absl::Status& status, double now) {
  const auto found = requests_.find(number);
  if (found != requests_.end()) End(*found->second, status, now);
}

void Scheduler::CancelAll(const absl::Status& status, double now) {
  while (!requests_.empty()) End(*requests_.begin()->second, status, now);
}

void Scheduler::CancelWaiting(const absl::Status& status, double now) {
  std::vector<RequestState*> waiting;
  for (const auto& [number, state] : requests_) {
    if (state->has_place) waiting.push_back(state.get());
  }
  for (RequestState* state : waiting) End(*state, status, now);
}

void Scheduler::Resume(uint64_t number) {
  const auto found = requests_.find(number);
  if (found == requests_.end() || !found->second->paused) return;
  RequestState& state = *found->second;
  state.paused = false;
  for (Sequence& sequence : state.sequences) {
    if (sequence.id == 0) continue;
    if (sequence.decoding) ++state.group->decoding;
    if (sequence.awaiting_token) continue;
    if (sequence.decoding) {
      sequence.lane->ready.push_back(sequence.id);
    } else {
      ListPrefill(sequence);
    }
  }
  Requeue(state);
}

void Scheduler::Pause(RequestState& state, double now) {
  if (!state.paused) {
    state.paused_since = now;
    for (const Sequence& sequence : state.sequences) {
      if (sequence.id != 0 && sequence.decoding) --state.group->decoding;
    }
  }
  state.paused = true;
  for (Sequence& sequence : state.sequences) UnlistPrefill(sequence);
  Requeue(state);
}

// Ends the request; `state` does not exist any more when this returns.
void Scheduler::End(RequestState& state, const absl::Status& status, double now) {
  // The shared part counts once, and of each sequence what is its own.
  int64_t positions = state.sequences.size() > 1 ? std::min(state.prompt_tokens() - 1, state.prompt_read) : 0;
  for (Sequence& sequence : state.sequences) {
    if (sequence.id != 0) Release(sequence);
    positions += sequence.own_positions;
  }
  state.live = 0;
  Requeue(state);
  // The last token of a prompt that is scored alone is not run.
  if (status.ok()) events_.prompt_tokens += state.prompt_tokens() - state.prompt_read;
  RequestUsage& usage = state.usage;
  const bool ran = state.admitted >= 0;
  const double first_token = state.first_token >= 0 ? state.first_token : now;
  usage.queue_seconds = (ran ? state.admitted : now) - state.submitted;
  usage.prefill_seconds = ran ? first_token - state.admitted : 0;
  usage.decode_seconds = state.first_token >= 0 ? state.last_token - state.first_token : 0;
  usage.cache_bytes = positions * cache_bytes_per_token_;
  usage.transformer_cache_bytes = positions * transformer_bytes_per_token_;
  const std::unique_ptr<RequestState> owned = std::move(requests_.find(state.number)->second);
  requests_.erase(owned->number);
  Account& account = *state.account;
  if (ran) {
    --account.admitted;
    account.allowance.GiveBack(state.CostMax() - usage.prompt_tokens - usage.completion_tokens);
  } else {
    --account.queued;
    account.queued_cost -= state.CostMax();
  }
  Forget(account, now);
  changed_ = true;
  events_.ended.push_back(
      {owned->request.id, status, std::move(owned->finishes), now - owned->submitted, owned->usage});
  owned->sink->OnDone(status, owned->usage);
}

// ---- Groups ----

void Scheduler::GenerationReady(int replica, const GroupCapacity& capacity, double now) {
  GF_CHECK(groups_.emplace(replica, std::make_unique<Group>(replica, capacity)).second) << "replica " << replica;
  GroupsChanged();
  Admit(now);
}

void Scheduler::GenerationEnded(int replica, double now) {
  const auto found = groups_.find(replica);
  GF_CHECK(found != groups_.end()) << "replica " << replica;
  for (const auto& [number, state] : requests_) {
    if (state->group != found->second.get()) continue;
    ++state->losses;
    ++state->usage.recoveries;
    ++events_.recoveries;
    for (Sequence& sequence : state->sequences) {
      if (sequence.id != 0) Release(sequence);
    }
    Requeue(*state);
  }
  groups_.erase(found);
  GroupsChanged();
  std::vector<RequestState*> hopeless;
  for (const auto& [number, state] : requests_) {
    if (state->coming == replica) state->coming = -1;
    state->prepared = false;
    if (state->preferred == replica) state->preferred = -1;
    if (state->losses >= kLossesMax) hopeless.push_back(state.get());
  }
  for (RequestState* state : hopeless) {
    End(*state,
        absl::InternalError(absl::StrCat("the request's workers were lost ", kLossesMax,
                                         " times in a row before it made any progress")),
        now);
  }
}

void Scheduler::GroupsChanged() {
  slots_max_ = pages_max_ = 0;
  for (const auto& [replica, group] : groups_) {
    slots_max_ += group->capacity.max_sequences;
    pages_max_ += group->pages_max;
  }
  changed_ = true;
}

GroupLoad Scheduler::Load(int replica) const {
  const auto found = groups_.find(replica);
  if (found == groups_.end()) return {};
  const Group& group = *found->second;
  return {.sequences = group.held.sequences,
          .sequences_max = group.capacity.max_sequences,
          .cache_tokens_used = UsedPages(group) * kCachePageTokens,
          .cache_tokens_reserved = group.held.pages * kCachePageTokens,
          .cache_tokens_max = group.pages_max * kCachePageTokens,
          .steps_in_flight = static_cast<int>(group.steps.size())};
}

// ---- Sequences ----

void Scheduler::Start(RequestState& state, Sequence& sequence, Group& group, double now) {
  Account& account = *state.account;
  if (state.admitted < 0) {
    state.admitted = now;
    ++account.admitted;
    --account.queued;
    account.queued_cost -= state.CostMax();
    account.allowance.Take(state.CostMax(), now);
  }
  state.blocked_since = -1;
  account.last_turn = ++last_turn_;
  state.group = &group;
  sequence.lane = group.LaneOf(account);
  sequence.pages = NextPages(state, sequence);
  int64_t position = 0;
  Cohort* cohort = state.OpenCohort();
  if (cohort == nullptr) {
    const auto left = std::count_if(state.sequences.begin(), state.sequences.end(),
                                    [](const Sequence& other) { return !other.done && other.id == 0; });
    cohort = state.cohorts.emplace_back(std::make_unique<Cohort>()).get();
    cohort->leader = &sequence;
    const int64_t shared = state.SharedTokens();
    position = Begin(sequence, now);
    // If all that they share is kept, the others are copies of the first one as it begins. What has gone on beyond that
    // before begins by itself.
    const bool draws = position == state.prompt_tokens() && sequence.after_prompt.empty();
    if (left > 1) cohort->shared_tokens = position <= shared ? shared : draws ? position : 0;
    cohort->forked = cohort->shared_tokens == 0;
    if (!state.is_short) cohort->kept = KeptPages::RunsOf(sequence.beginning);
    for (const KeptPages::Run& run : cohort->kept) cohort->kept_pages += run.pages;
    sequence.cohort = cohort;
    sequence.pages -= cohort->pages();
    Hold(sequence, 0, cohort->own_pages(), 0);
    HoldKept(sequence, /*more=*/true);
  }
  ++cohort->members;
  sequence.cohort = cohort;
  sequence.growing = HeldPages(sequence) < CachePagesFor(state.EndMax(sequence));
  sequence.grown = false;
  Hold(sequence, 1, sequence.pages, sequence.growing ? 1 : 0);
  ++state.slots;
  sequence.id = ++last_sequence_;
  sequences_.emplace(sequence.id, &sequence);
  sequence.started = now;
  sequence.caught_up = -1;
  sequence.reached_before = sequence.reached;
  Requeue(state);
  Activate(sequence, position);
}

// Whether a sequence of the request may be admitted as far as the keeper is concerned.
bool Scheduler::Prepare(RequestState& state, const Sequence& next, double now) {
  if (keeper_ == nullptr || !state.request.uses_kept() || state.prepared) return true;
  const absl::Span<const int32_t> ids = state.Tokens(next, state.End(next), &joined_);
  Group* best = nullptr;
  int64_t kept_in_best = 0;
  for (const auto& [replica, group] : groups_) {
    if (state.group != nullptr ? state.group != group.get() : !group->EverFits(state)) continue;
    const int64_t kept = groups_.size() > 1 ? keeper_->Kept(replica, state.request, ids) : 0;
    if (best != nullptr && group->load() - kept >= best->load() - kept_in_best) continue;
    best = group.get();
    kept_in_best = kept;
  }
  if (best == nullptr) return true;
  state.preferred = kept_in_best > 0 || state.request.tuned != 0 ? best->replica : -1;
  state.preferred_tokens = kept_in_best;
  state.prepared = keeper_->Prepare(best->replica, state.number, state.request, ids, best->cost.row_seconds(), now);
  if (!state.prepared) state.coming = best->replica;
  return state.prepared;
}

void Scheduler::Prepared(uint64_t number, double now) {
  const auto found = requests_.find(number);
  if (found == requests_.end() || found->second->coming < 0) return;
  found->second->coming = -1;
  found->second->prepared = changed_ = true;
  Admit(now);
}

// Looks for what is kept of the text that the sequence is to read. Returns where it begins.
int64_t Scheduler::Begin(Sequence& sequence, double now) {
  if (keeper_ == nullptr) return 0;
  RequestState& state = *sequence.owner;
  const int64_t end = state.End(sequence), tokens_max = state.BeginMax(sequence);
  const absl::Span<const int32_t> ids = state.Tokens(sequence, end, &joined_);
  sequence.beginning =
      keeper_->Begin(state.group->replica, state.request, ids, tokens_max, state.group->cost.row_seconds(), now);
  const int64_t tokens = sequence.beginning.tokens;
  GF_CHECK_LE(tokens, tokens_max);
  if (sequence.finish) SaveToEnd(sequence, tokens);
  sequence.begun = std::min(tokens, state.prompt_tokens());
  return tokens;
}

// The sequence has all its tokens, and has been run up to `position`: it is saved at its end, and not beyond.
void Scheduler::SaveToEnd(Sequence& sequence, int64_t position) {
  const int64_t end = sequence.owner->End(sequence);
  std::vector<int64_t>& save_at = sequence.beginning.save_at;
  save_at.erase(std::lower_bound(save_at.begin(), save_at.end(), end), save_at.end());
  if (position < end) save_at.push_back(end);
}

// From now on the sequence can run, from `position` on.
void Scheduler::Activate(Sequence& sequence, int64_t position) {
  const RequestState& state = *sequence.owner;
  sequence.scheduled = position;
  sequence.draws = position == state.End(sequence);
  if (!sequence.draws) return ListPrefill(sequence);
  sequence.decoding = true;
  if (state.paused) return;
  ++state.group->decoding;
  sequence.lane->ready.push_back(sequence.id);
}

// Lists the sequence for pre-fill, if it has tokens to read that nothing keeps it from reading.
void Scheduler::ListPrefill(Sequence& sequence) {
  RequestState& state = *sequence.owner;
  // Until the fork the others stay at 0 while the leader runs what they share.
  const bool waits_for_fork =
      sequence.scheduled < sequence.cohort->shared_tokens && &sequence != sequence.cohort->leader;
  if (state.paused || waits_for_fork || sequence.scheduled >= state.End(sequence)) return;
  GF_CHECK_EQ(sequence.listed_tokens, -1);
  sequence.listed_tokens = state.End(sequence) - sequence.scheduled;
  state.group->prefill_tokens += sequence.listed_tokens;
  ++state.group->reading;
  sequence.lane->shortest.emplace(-state.request.priority, sequence.listed_tokens, state.arrival, sequence.id);
  sequence.lane->oldest.emplace(-state.request.priority, state.arrival, sequence.id);
}

void Scheduler::UnlistPrefill(Sequence& sequence) {
  if (sequence.listed_tokens < 0) return;
  const RequestState& state = *sequence.owner;
  state.group->prefill_tokens -= sequence.listed_tokens;
  --state.group->reading;
  sequence.lane->shortest.erase({-state.request.priority, sequence.listed_tokens, state.arrival, sequence.id});
  sequence.lane->oldest.erase({-state.request.priority, state.arrival, sequence.id});
  sequence.listed_tokens = -1;
}

// Gives back what the sequence holds of its group. The caller calls Requeue.
void Scheduler::Release(Sequence& sequence) {
  RequestState& state = *sequence.owner;
  Group& group = *state.group;
  UnlistPrefill(sequence);
  if (sequence.decoding && !state.paused) --group.decoding;
  if (sequence.opened) group.close.push_back(sequence.id);
  if (!sequence.opened && !sequence.beginning.segments.empty()) keeper_->Release(group.replica, sequence.beginning);
  sequence.beginning = {};
  sequence.saved = 0;
  sequence.begun = 0;
  int64_t pages = sequence.pages;
  if (--sequence.cohort->members == 0) {
    pages += sequence.cohort->own_pages();
    HoldKept(sequence, /*more=*/false);
    state.cohorts.erase(std::find_if(state.cohorts.begin(), state.cohorts.end(),
                                     [&](const auto& cohort) { return cohort.get() == sequence.cohort; }));
  }
  Hold(sequence, -1, -pages, sequence.growing ? -1 : 0);
  if (sequence.lane->held.sequences == 0) group.Remove(sequence.lane);
  if (--state.slots == 0) state.group = nullptr;
  const int64_t shared_tokens = state.sequences.size() > 1 ? state.SharedTokens() : 0;
  sequence.own_positions = std::max<int64_t>(sequence.scheduled - shared_tokens, 0);
  sequences_.erase(sequence.id);
  sequence.id = 0;
  sequence.cohort = nullptr;
  sequence.lane = nullptr;
  sequence.decoding = sequence.awaiting_token = sequence.opened = sequence.draws = false;
  state.prepared = false;
  changed_ = true;
}

}  // namespace goldfinch
