// Scheduler: what the next Step of a group holds.
#include <algorithm>
#include <limits>
#include <utility>

#include "base/check.h"
#include "coordinator/scheduler.h"
#include "coordinator/scheduler_state.h"

namespace goldfinch {
namespace {

// The most raw logits that one StepDone brings: far below the largest message of the stream.
constexpr int64_t kRawLogitBytesMax = int64_t{16} << 20;
constexpr int64_t kPriorityKeyMin = std::numeric_limits<int>::min();

}  // namespace

bool Scheduler::NextStep(int replica, double now, StepPlan* plan) {
  const auto found = groups_.find(replica);
  GF_CHECK(found != groups_.end()) << "replica " << replica;
  Group& group = *found->second;
  plan->Clear();
  Grow(group, now);
  Admit(now);
  // One Step for every stage. While there is nothing but prompts to read, one more hides the time that messages take.
  // With decoding sequences it would only delay their next tokens.
  const int steps_max = group.capacity.stages + (group.decoding > 0 ? 0 : 1);
  if (static_cast<int>(group.steps.size()) >= steps_max) return false;
  std::vector<ChunkInFlight> chunks;
  if (!group.spare.empty()) {
    chunks = std::move(group.spare.back());
    group.spare.pop_back();
  }
  chunks.clear();
  group.steps.push_back({group.last_step + 1, std::move(chunks)});
  PlanDecode(group, plan);
  PlanPrefill(group, plan);
  std::swap(plan->close, group.close);
  group.close.clear();
  if (plan->chunks.empty() && plan->close.empty()) {
    group.spare.push_back(std::move(group.steps.back().chunks));
    group.steps.pop_back();
    return false;
  }
  plan->id = ++group.last_step;
  return true;
}

// The next decoding sequence of a client that can run; null if there is none.
Scheduler::Sequence* Scheduler::NextToDecode(Lane& lane) {
  while (!lane.ready.empty()) {
    const auto found = sequences_.find(lane.ready.front());
    lane.ready.pop_front();
    // Resume lists paused sequences again.
    if (found != sequences_.end() && !found->second->owner->paused && !found->second->awaiting_token) {
      return found->second;
    }
  }
  return nullptr;
}

void Scheduler::PlanDecode(Group& group, StepPlan* plan) {
  if (group.lanes.empty()) return;
  const int64_t share = (group.decoding + group.capacity.stages - 1) / group.capacity.stages;
  const int64_t budget = group.capacity.max_step_tokens;
  const int64_t for_prompts = group.prefill_tokens > 0 ? budget / 4 : 0;
  int64_t chunks_left = std::min({share, budget - for_prompts, group.capacity.max_logit_rows});
  // One sequence of each client in turn.
  const size_t lanes = group.lanes.size();
  for (size_t idle = 0, i = ++group.first_lane; idle < lanes && chunks_left > 0; ++i) {
    Sequence* const sequence = NextToDecode(*group.lanes[i % lanes]);
    ++idle;
    if (sequence == nullptr) continue;
    PlanChunk(group, *sequence, 1, plan);
    --chunks_left;
    idle = 0;
  }
}

// Grants `budget` tokens to the sequences of a client that are listed with this priority.
template <typename Grant>
void Scheduler::GrantLane(const Lane& lane, int priority, int64_t budget, const Grant& grant) {
  int64_t half = (budget + 1) / 2;
  constexpr int64_t kLeast = std::numeric_limits<int64_t>::min();
  for (auto it = lane.shortest.lower_bound({priority, kLeast, 0, 0});
       it != lane.shortest.end() && std::get<0>(*it) == priority && half > 0; ++it) {
    const int64_t tokens = grant(std::get<3>(*it), half);
    half -= tokens;
    budget -= tokens;
  }
  for (auto it = lane.oldest.lower_bound({priority, 0, 0});
       it != lane.oldest.end() && std::get<0>(*it) == priority && budget > 0; ++it) {
    budget -= grant(std::get<2>(*it), budget);
  }
}

// Deals the budget out to the sequences that are listed: sets their granted_tokens and returns them.
std::vector<Scheduler::Sequence*> Scheduler::GrantPrefill(Group& group, int64_t budget) {
  std::vector<Sequence*> granted;
  const auto grant = [&](uint64_t id, int64_t tokens_max) {
    Sequence& sequence = *sequences_.find(id)->second;
    const int64_t left = sequence.owner->ChunkEndMax(sequence) - sequence.scheduled - sequence.granted_tokens;
    const int64_t tokens = std::min(left, tokens_max);
    if (tokens > 0 && sequence.granted_tokens == 0) granted.push_back(&sequence);
    sequence.granted_tokens += tokens;
    budget -= tokens;
    return tokens;
  };
  const size_t count = group.lanes.size();
  std::vector<const Lane*> lanes;  // those that have something listed with this priority
  for (int64_t last = std::numeric_limits<int64_t>::min(); budget > 0;) {
    int64_t priority = std::numeric_limits<int64_t>::max();
    lanes.clear();
    for (size_t i = 0; i < count; ++i) {
      const Lane& lane = *group.lanes[(group.first_lane + i) % count];
      const auto first = lane.oldest.lower_bound({static_cast<int>(std::max(last + 1, kPriorityKeyMin)), 0, 0});
      if (first == lane.oldest.end() || std::get<0>(*first) > priority) continue;
      if (std::get<0>(*first) < priority) lanes.clear();
      priority = std::get<0>(*first);
      lanes.push_back(&lane);
    }
    if (lanes.empty()) break;
    // Equal parts; what some do not use is dealt out again.
    for (int64_t before = 0; budget > 0 && before != budget;) {
      before = budget;
      for (size_t i = 0; i < lanes.size() && budget > 0; ++i) {
        const auto others = static_cast<int64_t>(lanes.size() - i);
        GrantLane(*lanes[i], static_cast<int>(priority), (budget + others - 1) / others, grant);
      }
    }
    last = priority;
  }
  return granted;
}

void Scheduler::PlanPrefill(Group& group, StepPlan* plan) {
  const int64_t budget = group.capacity.max_step_tokens - static_cast<int64_t>(plan->ids.size());
  int64_t logit_rows = group.capacity.max_logit_rows;
  int64_t raw_logit_rows = std::max<int64_t>(kRawLogitBytesMax / (4 * vocab_size_), 1);
  for (const StepPlan::Chunk& chunk : plan->chunks) logit_rows -= chunk.logit_rows;
  for (Sequence* sequence : GrantPrefill(group, budget)) {
    int64_t tokens = std::exchange(sequence->granted_tokens, 0);
    const RequestState& state = *sequence->owner;
    const bool raw = state.request.score && state.request.score->logits;
    // Fewer tokens, if their logits are too many for this Step.
    const int64_t rows = state.LogitRows(*sequence, sequence->scheduled, sequence->scheduled + tokens);
    tokens -= std::max<int64_t>(rows - (raw ? std::min(logit_rows, raw_logit_rows) : logit_rows), 0);
    if (tokens <= 0) continue;
    const int64_t taken = state.LogitRows(*sequence, sequence->scheduled, sequence->scheduled + tokens);
    logit_rows -= taken;
    if (raw) raw_logit_rows -= taken;
    UnlistPrefill(*sequence);
    PlanChunk(group, *sequence, tokens, plan);
    plan->prefill_tokens += tokens;
    ListPrefill(*sequence);
  }
}

void Scheduler::PlanChunk(Group& group, Sequence& sequence, int64_t tokens, StepPlan* plan) {
  RequestState& state = *sequence.owner;
  const int64_t begin = sequence.scheduled, end = begin + tokens;
  GF_CHECK_LE(PagesOf(end), HeldPages(sequence)) << "sequence " << sequence.id;
  if (!sequence.opened) {
    plan->open.push_back(state.Opening(sequence));
    sequence.opened = true;
  }
  StepPlan::Chunk chunk;
  chunk.sequence = sequence.id;
  chunk.position = begin;
  chunk.ids_begin = static_cast<int64_t>(plan->ids.size());
  chunk.tokens = tokens;
  for (int64_t position = begin; position < end; ++position) plan->ids.push_back(state.Token(sequence, position));
  chunk.logit_rows = state.LogitRows(sequence, begin, end);
  if (state.request.score && chunk.logit_rows > 0) {
    chunk.targets_begin = static_cast<int64_t>(plan->targets.size());
    for (int64_t row = end - chunk.logit_rows; row < end; ++row) {
      plan->targets.push_back(state.Token(sequence, row + 1));
    }
    chunk.top_logprobs = state.request.score->top_logprobs;
    chunk.logits = state.request.score->logits;
  }
  chunk.sample = state.request.generate && chunk.logit_rows > 0;
  sequence.awaiting_token = chunk.sample;
  sequence.scheduled = end;
  chunk.forks_begin = static_cast<int64_t>(plan->forks.size());
  Cohort& cohort = *sequence.cohort;
  if (!cohort.forked && end == cohort.shared_tokens) PlanForks(state, cohort, plan);
  chunk.forks = static_cast<int64_t>(plan->forks.size()) - chunk.forks_begin;
  group.steps.back().chunks.push_back({sequence.id, begin, end, chunk.logit_rows});
  plan->chunks.push_back(chunk);
}

// The leader has run what all share: the others become copies of it and go on by themselves.
void Scheduler::PlanForks(RequestState& state, Cohort& cohort, StepPlan* plan) {
  cohort.forked = true;
  for (Sequence& sequence : state.sequences) {
    if (sequence.cohort != &cohort || &sequence == cohort.leader) continue;
    plan->forks.push_back(state.Opening(sequence));
    sequence.opened = true;
    Activate(sequence, cohort.shared_tokens);
  }
}

}  // namespace goldfinch
