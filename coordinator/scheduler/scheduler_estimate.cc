// Scheduler: how long a new request would wait for its first token, from what Steps have been measured to take.
#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_format.h"
#include "coordinator/scheduler/scheduler.h"
#include "coordinator/scheduler/scheduler_state.h"

namespace goldfinch {
namespace {

// A request is refused if its estimate is above its deadline by more than an estimate may be wrong.
constexpr double kEstimateTolerance = 1.25;
// The tolerance grows by itself in so many seconds without a Step: what was measured on a bad day must not be believed
// for ever, and a request that is let in measures anew.
constexpr double kStaleSeconds = 10;
// A running answer is expected to have at least this part of an average answer, or of itself, still before it.
constexpr double kRestMin = 0.25;

}  // namespace

// All that Steps have to do until the first token, or until all scores have come.
StepWork Scheduler::WorkOf(const RequestState& state) const {
  const int64_t prompt = state.prompt_tokens();
  const int64_t begin = std::min(state.kept_tokens, prompt - 1);
  if (state.request.generate) {
    return ChunkWork(attention_, begin, prompt, state.request.generate->max_tokens > 0 ? 1 : 0);
  }
  const bool score_prompt = state.request.score->score_prompt;
  const int64_t scored_from = score_prompt ? state.request.context_tokens.value_or(0) : prompt;
  StepWork work = ChunkWork(attention_, std::min(begin, scored_from), prompt, prompt - scored_from);
  for (const Sequence& sequence : state.sequences) {
    const int64_t end = state.End(sequence);
    if (end > prompt - 1) work += ChunkWork(attention_, prompt - 1, end, end - prompt + 1);
  }
  return work;
}

// The tokens that the group reads until it has read `tokens` of a new request: its own, and those of others that go
// before or beside them, as PlanPrefill deals them out.
double Scheduler::TokensRead(const Group& group, const RequestState& state, double tokens) const {
  double before = 0, own = tokens, own_longer = 0;
  std::vector<double> others;
  for (const auto& lane : group.lanes) {
    double equal = 0;
    for (const ShortestKey& key : lane->shortest) {
      const int priority = -std::get<0>(key);
      const auto left = static_cast<double>(std::get<1>(key));
      if (priority < state.request.priority) break;
      if (priority > state.request.priority) {
        before += left;
      } else if (lane->account != state.account) {
        equal += left;
      } else {
        (left <= tokens ? own : own_longer) += left;
      }
    }
    if (equal > 0) others.push_back(equal);
  }
  // The oldest requests of its client have one half.
  own += std::min(own, own_longer);
  double all = before + own;
  for (const double other : others) all += std::min(own, other);
  return all;
}

// The seconds from when the request has a slot until its first token.
double Scheduler::ReadSeconds(const Group& group, const RequestState& state) const {
  const StepWork work = WorkOf(state);
  const double tokens = TokensRead(group, state, work.rows);
  const double row = group.cost.row_seconds();
  const double base =
      group.decoding > 0 ? std::max(group.decode_seconds, group.cost.step_seconds()) : group.cost.step_seconds();
  double step_tokens = static_cast<double>(group.capacity.max_step_tokens);
  const double seconds_max = group.PrefillSecondsMax(base);
  if (std::isfinite(seconds_max)) step_tokens = std::clamp((seconds_max - base) / row, 1.0, step_tokens);
  const double attend_seconds = group.cost.Seconds({0, work.attended}) - group.cost.step_seconds();
  // The slowest stage decides. How much faster the others are, which the last chunk still passes, is not known.
  const double ahead = group.steps.empty() ? 0 : group.steps.back().seconds / 2;
  return ahead + std::ceil(tokens / step_tokens) * base + row * tokens + attend_seconds;
}

// The seconds until the request, which was not admitted when it came, gets a slot, if it goes to this group.
double Scheduler::QueueSeconds(const Group& group, const RequestState& state, double now) const {
  // Those that are admitted before it: the ones before it in its client's queue, and as many of each other client that
  // its limits let run.
  double own = 0, ahead = 0;
  for (const auto& [key, waiting] : state.is_short ? state.account->waiting_short : state.account->waiting) {
    if (waiting == &state) break;
    own += waiting->live - waiting->slots;
  }
  for (const auto& [id, account] : waiting_) {
    if (account == state.account) continue;
    const int running_max = account->limits.max_running;
    const bool takes_new = (running_max == 0 || account->admitted < running_max) &&
                           account->allowance.SecondsUntil(account->waiting.begin()->second->CostMax(), now) == 0;
    if (!takes_new && account->parked == 0) continue;
    double theirs = 0;
    for (const auto& [key, waiting] : account->waiting) {
      if (waiting->request.priority < state.request.priority || theirs > own) break;
      theirs += waiting->live - waiting->slots;
    }
    ahead += std::min(theirs, own + 1);
  }
  ahead += own;
  const bool has_room = group.HasRoom(group.held, state, NextPages(state, state.sequences[0]));
  if (has_room && ahead == 0) return 0;
  // Sequences of a client that has more are parked for it.
  const auto gives_way = [&](const auto& lane) {
    return lane->account != state.account && lane->account->slots > state.account->slots + 1;
  };
  if (ahead == 0 && std::any_of(group.lanes.begin(), group.lanes.end(), gives_way)) return kServiceSeconds;

  // The others end sooner or later.
  const double token_seconds = std::max(group.decode_seconds, group.cost.step_seconds()) * group.capacity.stages;
  std::vector<double> rests;
  for (const auto& [id, sequence] : sequences_) {
    const RequestState& owner = *sequence->owner;
    if (owner.group != &group) continue;
    double seconds = group.cost.row_seconds() * static_cast<double>(std::max<int64_t>(sequence->listed_tokens, 0));
    if (owner.request.generate) {
      const auto sampled = static_cast<double>(sequence->after_prompt.size());
      const auto most = static_cast<double>(owner.request.generate->max_tokens) - sampled;
      seconds += token_seconds *
                 std::min(most, std::max(answer_tokens_ - sampled, kRestMin * std::max(answer_tokens_, sampled)));
    }
    rests.push_back(seconds);
  }
  if (rests.empty()) return 0;
  std::sort(rests.begin(), rests.end());
  // Those that are admitted next end, too.
  const double rounds = std::floor(ahead / static_cast<double>(rests.size()));
  const auto last = static_cast<size_t>(ahead - rounds * static_cast<double>(rests.size()));
  const double seconds = rounds * rests.back() + rests[last];
  // What long requests have of the slots that are kept for short ones, they give back.
  return state.is_short && group.slots_kept() > 0 ? std::min(seconds, kTurnSeconds) : seconds;
}

// OK unless the request would certainly miss its deadline, if it has been `admitted` or else has to wait. Says nothing
// before Steps have been measured.
absl::Status Scheduler::CheckDeadline(const RequestState& state, bool admitted, double now) const {
  if (!state.request.deadline_seconds) return absl::OkStatus();
  const double deadline = *state.request.deadline_seconds;
  double queue = std::numeric_limits<double>::infinity(), read = queue;
  for (const auto& [replica, group] : groups_) {
    if (!group->EverFits(state)) continue;
    const double queue_there = admitted ? 0 : QueueSeconds(*group, state, now);
    const double read_there = ReadSeconds(*group, state);
    const double tolerance = kEstimateTolerance + (now - group->measured_at) / kStaleSeconds;
    if (!group->cost.known() || !(queue_there + read_there > tolerance * deadline)) return absl::OkStatus();
    if (queue_there + read_there < queue + read) {
      queue = queue_there;
      read = read_there;
    }
  }
  if (!std::isfinite(queue)) return absl::OkStatus();
  return absl::DeadlineExceededError(
      absl::StrFormat("the %s would take about %.3g s: %.3g s in the queue and %.3g s to read %d tokens beside other "
                      "requests; the deadline is in %.3g s",
                      state.request.generate ? "first token" : "scores", queue + read, queue, read,
                      static_cast<int64_t>(WorkOf(state).rows), std::max(deadline, 0.0)));
}

}  // namespace goldfinch
