// Scheduler: what the next Step of a group holds.
#include <algorithm>
#include <limits>
#include <utility>

#include "base/check.h"
#include "coordinator/scheduler/scheduler.h"
#include "coordinator/scheduler/scheduler_state.h"

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
  step_time_ = now;
  Grow(group, now);
  Admit(now);
  if (!WantsStep(group)) return false;
  std::vector<ChunkInFlight> chunks;
  if (!group.spare.empty()) {
    chunks = std::move(group.spare.back());
    group.spare.pop_back();
  }
  chunks.clear();
  PlanParked(group, plan);
  group.steps.push_back({.id = group.last_step + 1, .chunks = std::move(chunks)});
  const double overdrawn_before = group.overdrawn_seconds;
  bool put_off = PlanDecode(group, plan);
  put_off = PlanPrefill(group, plan) || put_off;
  const bool only_long =
      std::all_of(group.steps.begin(), group.steps.end() - 1, [](const auto& one) { return one.is_long; });
  const bool forgives = put_off && plan->chunks.empty() && only_long;
  if (forgives) {
    // Nothing else could make up for the time.
    group.overdrawn_seconds = 0;
    PlanDecode(group, plan);
    PlanPrefill(group, plan);
  } else if (group.overdrawn_seconds == overdrawn_before && !plan->chunks.empty()) {
    group.overdrawn_seconds = std::max(group.overdrawn_seconds - group.cost.Seconds(plan->work), 0.0);
  }
  group.steps.back().seconds = group.cost.Seconds(plan->work);
  group.steps.back().is_long = forgives || group.overdrawn_seconds > overdrawn_before;
  std::swap(plan->close, group.close);
  group.close.clear();
  if (plan->chunks.empty() && plan->close.empty() && plan->open.empty()) {
    group.spare.push_back(std::move(group.steps.back().chunks));
    group.steps.pop_back();
    return false;
  }
  plan->id = ++group.last_step;
  return true;
}

bool Scheduler::WantsStep(const Group& group) const {
  const auto in_flight = static_cast<int>(group.steps.size());
  if (in_flight < group.capacity.stages) return true;
  // While there is nothing but prompts to read, one Step more hides the time that messages take. With decoding
  // sequences it would only delay their next tokens, and after a long Step it would only delay who comes next.
  if (in_flight > group.capacity.stages || group.decoding > 0) return false;
  return !group.has_target() || group.steps.back().seconds < group.target_seconds() / 2;
}

void Scheduler::Measured(int replica, const StepWork& work, double seconds, double now) {
  const auto found = groups_.find(replica);
  GF_CHECK(found != groups_.end()) << "replica " << replica;
  found->second->cost.Measured(work, seconds);
  if (work.rows > 0) found->second->measured_at = now;
}

double Scheduler::StepTargetSeconds(int replica) const {
  const auto found = groups_.find(replica);
  return found != groups_.end() && found->second->has_target() ? found->second->target_seconds() : 0;
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

// Returns whether a sequence was put off because Steps have taken too much time before.
bool Scheduler::PlanDecode(Group& group, StepPlan* plan) {
  if (group.lanes.empty()) return false;
  const int64_t share = (group.decoding + group.capacity.stages - 1) / group.capacity.stages;
  int64_t budget = group.capacity.max_step_tokens, logit_rows = group.capacity.max_logit_rows;
  if (group.prefill_tokens > 0) {
    // A quarter is for prompts, whose last tokens need logits, too.
    budget -= budget / 4;
    if (logit_rows > 1) logit_rows -= std::max<int64_t>(logit_rows / 4, 1);
  }
  int64_t chunks_left = std::min({share, budget, logit_rows});
  const double seconds_max = group.DecodeSecondsMax(), token_seconds_max = group.TokenSecondsMax();
  const auto work_of = [&](const Sequence& sequence) {
    return ChunkWork(attention_, sequence.scheduled, sequence.scheduled + 1, 1, /*decodes=*/true);
  };
  put_back_.clear();  // sequences that need longer than a Step by themselves
  // One sequence of each client in turn.
  const size_t lanes = group.lanes.size();
  size_t i = group.first_to_decode, idle = 0;
  for (; idle < lanes && chunks_left > 0; ++i) {
    Lane& lane = *group.lanes[i % lanes];
    Sequence* const sequence = NextToDecode(lane);
    ++idle;
    if (sequence == nullptr) continue;
    if (sequence->draws) {
      PlanDraw(group, *sequence, plan);
      --chunks_left;
      idle = 0;
      continue;
    }
    const StepWork work = work_of(*sequence);
    if (group.cost.Seconds(plan->work + work) > (plan->chunks.empty() ? token_seconds_max : seconds_max)) {
      if (group.cost.Seconds(work) > token_seconds_max) {
        put_back_.push_back(sequence);
        idle = 0;
        continue;
      }
      lane.ready.push_front(sequence->id);
      break;
    }
    PlanChunk(group, *sequence, 1, plan);
    --chunks_left;
    idle = 0;
  }
  group.first_to_decode = i;  // where this Step has stopped
  // The end of a prompt that was put off comes first, but not twice in a row.
  const bool is_turn = !group.long_prompt_waits || group.long_prompt_last;
  const bool takes_long = !put_back_.empty() && chunks_left > 0 && group.overdrawn_seconds <= 0 && is_turn;
  Sequence* next = nullptr;
  if (takes_long) {
    next = *std::min_element(put_back_.begin(), put_back_.end(), [](const Sequence* a, const Sequence* b) {
      return a->lane->last_long_turn < b->lane->last_long_turn;
    });
    next->lane->last_long_turn = ++group.long_turns;
  }
  for (auto it = put_back_.rbegin(); it != put_back_.rend(); ++it) {
    if (*it != next) (*it)->lane->ready.push_front((*it)->id);
  }
  if (!plan->chunks.empty()) group.decode_seconds = group.cost.Seconds(plan->work);
  if (takes_long) {
    PlanChunk(group, *next, 1, plan);
    group.long_prompt_last = false;
    group.overdrawn_seconds = group.cost.Seconds(plan->work) - token_seconds_max;
  }
  return !put_back_.empty() && !takes_long;
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
      const Lane& lane = *group.lanes[(group.first_to_read + i) % count];
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

StepWork Scheduler::PrefillWork(const Sequence& sequence, int64_t tokens) const {
  const int64_t begin = sequence.scheduled, end = begin + tokens;
  return ChunkWork(attention_, begin, end, sequence.owner->LogitRows(sequence, begin, end));
}

// How many of the sequence's next `tokens` fit a Step of `seconds` beside the work that is planned already.
int64_t Scheduler::TokensWithin(const Group& group, const Sequence& sequence, int64_t tokens, const StepWork& before,
                                double seconds) const {
  const auto fits = [&](int64_t count) { return group.cost.Seconds(before + PrefillWork(sequence, count)) <= seconds; };
  if (fits(tokens)) return tokens;
  int64_t fit = 0;
  for (int64_t too_many = tokens; too_many - fit > 1;) {
    const int64_t middle = fit + (too_many - fit) / 2;
    (fits(middle) ? fit : too_many) = middle;
  }
  return fit;
}

// Returns whether a sequence was put off because Steps have taken too much time before.
bool Scheduler::PlanPrefill(Group& group, StepPlan* plan) {
  group.long_prompt_waits = false;
  if (group.prefill_tokens == 0) return false;
  ++group.first_to_read;
  const double spent = group.cost.Seconds(plan->work);
  const double seconds_max = group.PrefillSecondsMax(spent);
  int64_t budget = group.capacity.max_step_tokens - static_cast<int64_t>(plan->ids.size());
  if (group.has_target()) {
    const double rows = std::max((seconds_max - spent) / group.cost.row_seconds(), 1.0);
    if (rows < static_cast<double>(budget)) budget = static_cast<int64_t>(rows);
  }
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
    const int64_t in_time = TokensWithin(group, *sequence, tokens, plan->work, seconds_max);
    // The first one gets on whatever it takes, or prompts would wait for ever.
    const bool must = in_time == 0 && plan->prefill_tokens == 0;
    if (must && group.overdrawn_seconds > 0) group.long_prompt_waits = true;
    if (in_time == 0 && (!must || group.overdrawn_seconds > 0)) continue;
    tokens = std::max<int64_t>(in_time, 1);
    const int64_t taken = state.LogitRows(*sequence, sequence->scheduled, sequence->scheduled + tokens);
    logit_rows -= taken;
    if (raw) raw_logit_rows -= taken;
    UnlistPrefill(*sequence);
    PlanChunk(group, *sequence, tokens, plan);
    if (must) {
      group.long_prompt_last = true;
      group.overdrawn_seconds = group.cost.Seconds(plan->work) - seconds_max;
    }
    plan->prefill_tokens += tokens;
    ListPrefill(*sequence);
  }
  return group.long_prompt_waits;
}

void Scheduler::PlanOpening(const Group& group, Sequence& sequence, StepPlan* plan) {
  if (sequence.opened) return;
  plan->open.push_back(sequence.owner->Opening(sequence));
  sequence.opened = true;
  if (!sequence.beginning.segments.empty()) keeper_->Release(group.replica, sequence.beginning);
}

// Draws the first token of a sequence of which everything is kept.
void Scheduler::PlanDraw(Group& group, Sequence& sequence, StepPlan* plan) {
  PlanOpening(group, sequence, plan);
  AwaitDraw(group, sequence);
  PlanCopies(group, sequence, plan);
}

// The Step that is being planned opens the sequence and draws its next token.
void Scheduler::AwaitDraw(Group& group, Sequence& sequence) {
  StepInFlight& step = group.steps.back();
  const ChunkInFlight chunk{
      .sequence = sequence.id, .begin = sequence.scheduled, .end = sequence.scheduled, .logit_rows = 1};
  step.chunks.insert(step.chunks.begin() + static_cast<std::ptrdiff_t>(step.draws++), chunk);
  sequence.draws = false;
  sequence.awaiting_token = true;
}

void Scheduler::PlanChunk(Group& group, Sequence& sequence, int64_t tokens, StepPlan* plan) {
  RequestState& state = *sequence.owner;
  const int64_t begin = sequence.scheduled, end = begin + tokens;
  GF_CHECK_LE(CachePagesFor(end), HeldPages(sequence)) << "sequence " << sequence.id;
  PlanOpening(group, sequence, plan);
  PlanCopies(group, sequence, plan);
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
  sequence.scheduled = end;
  PlanSave(group, sequence, /*logits=*/chunk.logit_rows > 0, plan);
  chunk.forks_begin = static_cast<int64_t>(plan->forks.size());
  Cohort& cohort = *sequence.cohort;
  if (!cohort.forked && end == cohort.shared_tokens) PlanForks(state, cohort, plan);
  chunk.forks = static_cast<int64_t>(plan->forks.size()) - chunk.forks_begin;
  group.steps.back().chunks.push_back({sequence.id, begin, end, chunk.logit_rows, !sequence.decoding});
  plan->work += ChunkWork(attention_, begin, end, chunk.logit_rows, sequence.decoding);
  if (chunk.sample) {
    // From now on: a long Step behind this one would hold up the sequence's second token.
    if (!sequence.decoding) ++group.decoding;
    sequence.decoding = sequence.awaiting_token = true;
  }
  plan->chunks.push_back(chunk);
}

// Saves the sequence, if it has come to where it should be.
void Scheduler::PlanSave(const Group& group, Sequence& sequence, bool logits, StepPlan* plan) {
  const std::vector<int64_t>& save_at = sequence.beginning.save_at;
  if (sequence.saved == save_at.size() || sequence.scheduled < save_at[sequence.saved]) return;
  GF_CHECK_EQ(sequence.scheduled, save_at[sequence.saved]) << "sequence " << sequence.id;
  ++sequence.saved;
  const RequestState& state = *sequence.owner;
  const PrefixKeeper::SavePoint point = {.logits = logits,
                                         .end = sequence.finish && sequence.scheduled == state.End(sequence)};
  const PrefixKeeper::Saved saved = keeper_->Save(
      group.replica, state.request, state.Tokens(sequence, sequence.scheduled, &joined_), point, step_time_);
  if (saved.segment != 0) plan->saves.push_back({sequence.id, saved.segment, saved.begin});
}

// Saves what was parked since the last Step, so that it need not be read again.
void Scheduler::PlanParked(Group& group, StepPlan* plan) {
  for (const ParkedSequence& parked : group.parked) {
    const auto found = requests_.find(parked.request);
    if (found == requests_.end()) continue;  // it has ended meanwhile
    const RequestState& state = *found->second;
    const Sequence& sequence = state.sequences[parked.index];
    const PrefixKeeper::Saved saved =
        keeper_->Save(group.replica, state.request, state.Tokens(sequence, parked.position, &joined_), {}, step_time_);
    if (saved.segment != 0) plan->saves.push_back({parked.sequence, saved.segment, saved.begin});
  }
  group.parked.clear();
}

// The leader has run what all share: the others become copies of it and go on by themselves.
void Scheduler::PlanForks(RequestState& state, Cohort& cohort, StepPlan* plan) {
  cohort.forked = true;
  for (Sequence& sequence : state.sequences) {
    if (sequence.cohort != &cohort || &sequence == cohort.leader) continue;
    plan->forks.push_back(state.Opening(sequence));
    sequence.opened = true;
    Activate(sequence, cohort.shared_tokens);
    if (state.request.score) continue;
    // Its answer is saved where that of the leader is.
    const std::vector<int64_t>& save_at = cohort.leader->beginning.save_at;
    const auto answer = std::upper_bound(save_at.begin(), save_at.end(), state.prompt_tokens());
    sequence.beginning.save_at.assign(answer, save_at.end());
  }
}

// If all that its cohort shares was kept, the others become copies of the leader as it begins. Those of which no token
// is to be read draw their first one in the same Step.
void Scheduler::PlanCopies(Group& group, const Sequence& sequence, StepPlan* plan) {
  Cohort& cohort = *sequence.cohort;
  if (cohort.forked || cohort.leader != &sequence || sequence.scheduled != cohort.shared_tokens) return;
  cohort.forked = true;
  RequestState& state = *sequence.owner;
  for (Sequence& copy : state.sequences) {
    if (copy.cohort != &cohort || &copy == &sequence) continue;
    copy.opened = true;
    Activate(copy, cohort.shared_tokens);
    StepPlan::NewSequence opening = state.Opening(copy);
    opening.copy_of = sequence.id;
    plan->open.push_back(opening);
    if (copy.draws) AwaitDraw(group, copy);
  }
}

}  // namespace goldfinch
