#include "coordinator/scheduler.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "coordinator/scheduler_state.h"

namespace goldfinch {

Scheduler::Scheduler(int max_queue, int replicas) : max_queue_(max_queue), replicas_(replicas) {}

Scheduler::~Scheduler() = default;

void Scheduler::SetModel(int64_t vocab_size, int64_t cache_bytes_per_token, int64_t transformer_bytes_per_token) {
  vocab_size_ = vocab_size;
  cache_bytes_per_token_ = cache_bytes_per_token;
  transformer_bytes_per_token_ = transformer_bytes_per_token;
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
  state.request = std::move(request);
  GF_CHECK(requests_.emplace(number, std::move(owned)).second) << "request " << number;
  waiting_.emplace(state.queue_key(), &state);
  // A prompt of one token: nothing comes before it that could score it.
  if (state.request.score && state.End(state.sequences[0]) == 0) return End(state, absl::OkStatus(), now);
  if (all_groups_ready() && !EverFits(state)) return End(state, TooLarge(state), now);
  Admit(now);
  const auto found = requests_.find(number);
  if (found == requests_.end() || found->second->group != nullptr || waiting() <= max_queue_) return;
  End(*found->second,
      absl::ResourceExhaustedError(
          absl::StrCat("the queue is full: ", max_queue_, " requests are waiting already (max_queue)")),
      now);
}

void Scheduler::Cancel(uint64_t number, const absl::Status& status, double now) {
  const auto found = requests_.find(number);
  if (found != requests_.end()) End(*found->second, status, now);
}

void Scheduler::CancelAll(const absl::Status& status, double now) {
  while (!requests_.empty()) End(*requests_.begin()->second, status, now);
}

void Scheduler::CancelWaiting(const absl::Status& status, double now) {
  while (!waiting_.empty()) End(*waiting_.begin()->second, status, now);
}

void Scheduler::Resume(uint64_t number) {
  const auto found = requests_.find(number);
  if (found == requests_.end() || !found->second->paused) return;
  RequestState& state = *found->second;
  state.paused = false;
  for (Sequence& sequence : state.sequences) {
    if (sequence.id == 0 || sequence.awaiting_token) continue;
    if (sequence.decoding) {
      state.group->ready.push_back(sequence.id);
    } else {
      ListPrefill(sequence);
    }
  }
}

void Scheduler::Pause(RequestState& state) {
  state.paused = true;
  for (Sequence& sequence : state.sequences) UnlistPrefill(sequence);
}

// Ends the request; `state` does not exist any more when this returns.
void Scheduler::End(RequestState& state, const absl::Status& status, double now) {
  // The shared part counts once, and of each sequence what is its own.
  int64_t cached_tokens = state.sequences.size() > 1 ? std::min(state.prompt_tokens() - 1, state.prompt_read) : 0;
  for (Sequence& sequence : state.sequences) {
    if (sequence.id != 0) Release(sequence);
    cached_tokens += sequence.cached_tokens;
  }
  if (state.group == nullptr) waiting_.erase(state.queue_key());
  RequestUsage& usage = state.usage;
  const bool ran = state.admitted >= 0;
  const double first_token = state.first_token >= 0 ? state.first_token : now;
  usage.queue_seconds = (ran ? state.admitted : now) - state.submitted;
  usage.prefill_seconds = ran ? first_token - state.admitted : 0;
  usage.decode_seconds = state.first_token >= 0 ? state.last_token - state.first_token : 0;
  usage.cache_bytes = cached_tokens * cache_bytes_per_token_;
  usage.transformer_cache_bytes = cached_tokens * transformer_bytes_per_token_;
  const std::unique_ptr<RequestState> owned = std::move(requests_.find(state.number)->second);
  requests_.erase(owned->number);
  events_.ended.push_back(
      {owned->request.id, status, std::move(owned->finishes), now - owned->submitted, owned->usage});
  owned->sink->OnDone(status, owned->usage);
}

// ---- Groups ----

void Scheduler::GenerationReady(int replica, const GroupCapacity& capacity, double now) {
  auto group = std::make_unique<Group>();
  group->capacity = capacity;
  group->pages_max = PagesOf(capacity.cache_tokens);
  GF_CHECK(groups_.emplace(replica, std::move(group)).second) << "replica " << replica;
  Admit(now);
}

void Scheduler::GenerationEnded(int replica, double now) {
  const auto found = groups_.find(replica);
  GF_CHECK(found != groups_.end()) << "replica " << replica;
  for (const auto& [number, state] : requests_) {
    if (state->group != found->second.get()) continue;
    state->group = nullptr;
    state->shared_tokens = 0;
    ++state->losses;
    ++state->usage.recoveries;
    ++events_.recoveries;
    for (Sequence& sequence : state->sequences) {
      if (sequence.id != 0) sequences_.erase(sequence.id);
      sequence.id = 0;
      sequence.opened = sequence.awaiting_token = sequence.decoding = false;
      sequence.listed_tokens = -1;
      if (!sequence.done) sequence.scheduled = 0;
    }
    waiting_.emplace(state->queue_key(), state.get());
  }
  groups_.erase(found);
  std::vector<RequestState*> hopeless;
  for (const auto& [number, state] : requests_) {
    if (state->losses >= kLossesMax) hopeless.push_back(state.get());
  }
  for (RequestState* state : hopeless) {
    End(*state,
        absl::InternalError(absl::StrCat("the request's workers were lost ", kLossesMax,
                                         " times in a row before it made any progress")),
        now);
  }
}

GroupLoad Scheduler::Load(int replica) const {
  const auto found = groups_.find(replica);
  if (found == groups_.end()) return {};
  const Group& group = *found->second;
  return {group.sequences, group.capacity.max_sequences, group.pages * kCachePageTokens,
          group.pages_max * kCachePageTokens, static_cast<int>(group.steps.size())};
}

// ---- Admission ----

bool Scheduler::EverFits(const RequestState& state) const {
  return std::any_of(groups_.begin(), groups_.end(), [&](const auto& group) { return group.second->EverFits(state); });
}

absl::Status Scheduler::TooLarge(const RequestState& state) const {
  int64_t sequences = 0, tokens = 0, longest = 0;
  for (const auto& [replica, group] : groups_) {
    sequences = std::max<int64_t>(sequences, group->capacity.max_sequences);
    tokens = std::max(tokens, group->pages_max * kCachePageTokens);
    longest = std::max(longest, group->capacity.max_sequence_tokens);
  }
  return absl::ResourceExhaustedError(
      absl::StrCat("the request may need ", state.live, " sequences of up to ", state.LongestTokens(), " tokens and ",
                   state.Pages() * kCachePageTokens, " tokens of cache; max_sequences is ", sequences,
                   ", max_model_len is ", longest, " and the caches hold ", tokens, " tokens"));
}

void Scheduler::Admit(double now) {
  while (!waiting_.empty() && has_group()) {
    RequestState& state = *waiting_.begin()->second;
    if (!EverFits(state)) {  // the groups may have become smaller since Submit
      if (!all_groups_ready()) return;
      End(state, TooLarge(state), now);
      continue;
    }
    Group* best = nullptr;
    for (const auto& [replica, group] : groups_) {
      if (group->EverFits(state) && group->FitsNow(state) && (best == nullptr || group->load() < best->load())) {
        best = group.get();
      }
    }
    if (best == nullptr) return;
    waiting_.erase(waiting_.begin());
    Start(state, *best, now);
  }
}

void Scheduler::Start(RequestState& state, Group& group, double now) {
  state.group = &group;
  if (state.admitted < 0) state.admitted = now;
  group.sequences += state.live;
  group.pages += state.Pages();
  state.shared_tokens = state.SharedTokens();
  for (Sequence& sequence : state.sequences) {
    if (sequence.done) continue;
    sequence.id = ++last_sequence_;
    sequences_.emplace(sequence.id, &sequence);
  }
  if (state.shared_tokens > 0) return Activate(state.leader(), 0);
  for (Sequence& sequence : state.sequences) {
    if (!sequence.done) Activate(sequence, 0);
  }
}

// From now on the sequence can run, from `position` on.
void Scheduler::Activate(Sequence& sequence, int64_t position) {
  sequence.scheduled = position;
  ListPrefill(sequence);
}

// Lists the sequence for pre-fill, if it has tokens to read that nothing keeps it from reading.
void Scheduler::ListPrefill(Sequence& sequence) {
  RequestState& state = *sequence.owner;
  Group& group = *state.group;
  // Until the fork the others stay at 0 while the leader runs what they share.
  const bool waits_for_fork = sequence.scheduled < state.shared_tokens && &sequence != &state.leader();
  if (state.paused || waits_for_fork || sequence.scheduled >= state.End(sequence)) return;
  GF_CHECK_EQ(sequence.listed_tokens, -1);
  sequence.listed_tokens = state.End(sequence) - sequence.scheduled;
  group.prefill_tokens += sequence.listed_tokens;
  group.shortest.emplace(-state.request.priority, sequence.listed_tokens, state.arrival, sequence.id);
  group.oldest.emplace(-state.request.priority, state.arrival, sequence.id);
}

void Scheduler::UnlistPrefill(Sequence& sequence) {
  if (sequence.listed_tokens < 0) return;
  const RequestState& state = *sequence.owner;
  Group& group = *state.group;
  group.prefill_tokens -= sequence.listed_tokens;
  group.shortest.erase({-state.request.priority, sequence.listed_tokens, state.arrival, sequence.id});
  group.oldest.erase({-state.request.priority, state.arrival, sequence.id});
  sequence.listed_tokens = -1;
}

// Gives back what the sequence holds of its group.
void Scheduler::Release(Sequence& sequence) {
  RequestState& state = *sequence.owner;
  Group& group = *state.group;
  UnlistPrefill(sequence);
  const int64_t shared_pages = state.shared_tokens / kCachePageTokens;
  const bool last = std::count_if(state.sequences.begin(), state.sequences.end(),
                                  [](const Sequence& other) { return other.id != 0; }) == 1;
  group.sequences -= 1;
  group.pages -= PagesOf(state.EndMax(sequence)) - shared_pages + (last ? shared_pages : 0);
  if (sequence.decoding) group.decoding -= 1;
  const int64_t shared_tokens = state.sequences.size() > 1 ? state.prompt_tokens() - 1 : 0;
  sequence.cached_tokens = std::max<int64_t>(sequence.scheduled - shared_tokens, 0);
  if (sequence.opened) group.close.push_back(sequence.id);
  sequences_.erase(sequence.id);
  sequence.id = 0;
  sequence.decoding = sequence.awaiting_token = sequence.opened = false;
}

}  // namespace goldfinch
