// Scheduler: which requests run, and who gives up a slot for them.
#include <algorithm>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "coordinator/scheduler.h"
#include "coordinator/scheduler_state.h"

namespace goldfinch {
namespace {

// While something waits, Admit looks so often whether a sequence may be parked or tokens have flowed in.
constexpr double kLookSeconds = 0.02;
// How long a run is left alone that has not caught up, at least: reading again must get somewhere.
constexpr double kCatchUpSeconds = 0.5;
// The waits between the parkings of a sequence that does not catch up double so often.
constexpr int kDoublingsMax = 6;
// For so many of those that find no room, Admit looks for sequences to park: the first ones have the best claim, and a
// look takes time.
constexpr int kParkersMax = 4;
// Shares that differ by less are equal.
constexpr double kShareTolerance = 1e-9;

}  // namespace

// ---- What fits ----

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

double Scheduler::Share(int64_t slots, int64_t pages) const {
  return std::max(static_cast<double>(slots) / static_cast<double>(std::max<int64_t>(slots_max_, 1)),
                  static_cast<double>(pages) / static_cast<double>(std::max<int64_t>(pages_max_, 1)));
}

double Scheduler::Share(const Account& account) const { return Share(account.slots, account.pages); }

// Where the next sequence of the request can run now. All sequences of a request that run are in one group.
Scheduler::Group* Scheduler::FindRoom(const RequestState& state, const Sequence& next) {
  const int64_t pages = state.NextPages(next);
  if (state.group != nullptr) return state.group->HasRoom(pages) ? state.group : nullptr;
  Group* best = nullptr;
  for (const auto& [replica, group] : groups_) {
    if (group->EverFits(state) && group->HasRoom(pages) && (best == nullptr || group->load() < best->load())) {
      best = group.get();
    }
  }
  return best;
}

// Whether the sequence would have room in some group if only the request's own client ran anything there.
bool Scheduler::FitsBesideOwn(const RequestState& state, const Sequence& next) const {
  return std::any_of(groups_.begin(), groups_.end(), [&](const auto& entry) {
    const Group& group = *entry.second;
    if (state.group != nullptr ? state.group != &group : !group.EverFits(state)) return false;
    const auto own = std::find_if(group.lanes.begin(), group.lanes.end(),
                                  [&](const auto& lane) { return lane->account == state.account; });
    const bool none = own == group.lanes.end();
    return (none ? 0 : (*own)->sequences) < group.capacity.max_sequences &&
           (none ? 0 : (*own)->pages) + state.NextPages(next) <= group.pages_max;
  });
}

// ---- Who is next ----

struct Scheduler::Candidate {
  RequestState* state = nullptr;
  double share = 0;

  int priority() const { return state->request.priority; }
  bool operator<(const Candidate& other) const {
    return std::make_tuple(-priority(), share, state->account->last_turn, state->account->id) <
           std::make_tuple(-other.priority(), other.share, other.state->account->last_turn, other.state->account->id);
  }
};

// The first request of each client that its limits let run, in the order in which they are to be admitted.
std::vector<Scheduler::Candidate> Scheduler::Candidates(double now) {
  std::vector<Candidate> candidates;
  for (const auto& [id, account] : waiting_) {
    const ClientLimits& limits = account->limits;
    bool takes_new = limits.max_running == 0 || account->admitted < limits.max_running;
    int parked = account->parked;
    for (const auto& [key, state] : account->waiting) {
      if (!takes_new && parked == 0) break;
      if (state->admitted >= 0) {
        --parked;
        if (now < state->held_until) break;  // nothing of its client gets ahead of it
      } else {
        // What is behind a request that waits for tokens waits too.
        takes_new = takes_new && account->allowance.SecondsUntil(state->CostMax(), now) == 0;
        if (!takes_new) continue;
      }
      candidates.push_back({state, Share(*account)});
      break;
    }
  }
  std::sort(candidates.begin(), candidates.end());
  return candidates;
}

void Scheduler::Admit(double now) {
  if (waiting_.empty() || groups_.empty() || (!changed_ && now < next_look_)) return;
  while (AdmitOne(now)) {
  }
  changed_ = false;
  next_look_ = now + kLookSeconds;
}

// Admits the next sequence, or ends a request that can never be admitted. False if there is none.
bool Scheduler::AdmitOne(double now) {
  const std::vector<Candidate> candidates = Candidates(now);
  int parkers = 0;
  for (size_t i = 0; i < candidates.size(); ++i) {
    RequestState& state = *candidates[i].state;
    if (state.group == nullptr && !EverFits(state)) {  // the groups may have become smaller since Submit
      if (!all_groups_ready()) continue;
      End(state, TooLarge(state), now);
      return true;
    }
    Sequence& next = *state.Next();
    Group* group = FindRoom(state, next);
    if (group == nullptr && ++parkers <= kParkersMax) group = MakeRoom(state, next, now);
    if (group != nullptr) {
      Start(state, next, *group, now);
      return true;
    }
    if (state.blocked_since < 0) state.blocked_since = now;
    const bool overdue = state.Overdue(now);
    const bool others_rank_lower = i + 1 < candidates.size() && candidates[i + 1].priority() < state.request.priority;
    if ((overdue || others_rank_lower) && FitsBesideOwn(state, next)) return false;
  }
  return false;
}

// ---- Parking ----

namespace {

// Whether a run has been served for so long that it may be parked, as scheduler.h has it.
template <typename Sequence>
bool Served(const Sequence& sequence, double seconds, double now) {
  if (sequence.caught_up >= 0) {
    return now - sequence.caught_up >= std::max(seconds, sequence.caught_up - sequence.started);
  }
  return now - sequence.started >=
         std::max(seconds, kCatchUpSeconds) * (1 << std::min(sequence.lost_runs, kDoublingsMax));
}

}  // namespace

// The sequences of a group to park so that `next` has room; none if there are not enough.
std::vector<Scheduler::Sequence*> Scheduler::Victims(const RequestState& state, const Sequence& next,
                                                     const Group& group, double now) const {
  const int64_t pages_wanted = state.NextPages(next);
  const double share_after = Share(state.account->slots + 1, state.account->pages + pages_wanted);
  const double share_before = Share(*state.account);
  const bool overdue = state.Overdue(now);

  std::vector<Sequence*> victims;
  absl::flat_hash_map<const Account*, std::pair<int64_t, int64_t>> taken;  // slots and pages
  absl::flat_hash_map<const Cohort*, int> taken_members;
  int64_t slots_missing = group.sequences + 1 - group.capacity.max_sequences;
  int64_t pages_missing = group.pages + pages_wanted - group.pages_max;
  // Most looks find nobody, and must not fill the maps for it.
  const auto taken_of = [&](const Account* account) {
    const auto found = taken.find(account);
    return found == taken.end() ? std::pair<int64_t, int64_t>() : found->second;
  };
  const auto gone_of = [&](const Cohort* cohort) {
    const auto found = taken_members.find(cohort);
    return found == taken_members.end() ? 0 : found->second;
  };
  const auto pages_of = [&](const Sequence& sequence) {
    const bool last = gone_of(sequence.cohort) + 1 == sequence.cohort->members;
    return sequence.pages + (last ? sequence.cohort->pages() : 0);
  };
  const auto may_be_parked = [&](const Sequence& sequence, double share, double share_left) {
    const RequestState& owner = *sequence.owner;
    if (owner.paused) {
      const double reread = sequence.caught_up >= 0 ? sequence.caught_up - sequence.started : 0;
      return now - owner.paused_since >= std::max(kPauseSeconds, reread);
    }
    if (owner.account == state.account || owner.request.priority > state.request.priority) return false;
    if (share_left + kShareTolerance >= share_after) {
      return sequence.scheduled == 0 || Served(sequence, kServiceSeconds, now);
    }
    return overdue && share > share_before + kShareTolerance && Served(sequence, kTurnSeconds, now);
  };
  // (not paused, -share, tokens to read again, id): the least is parked first.
  using Rank = std::tuple<bool, double, int64_t, uint64_t>;
  while (slots_missing > 0 || pages_missing > 0) {
    Sequence* best = nullptr;
    Rank best_rank;
    for (const auto& [id, sequence] : sequences_) {
      const RequestState& owner = *sequence->owner;
      if (owner.group != &group || std::find(victims.begin(), victims.end(), sequence) != victims.end()) continue;
      // The others of its cohort wait for what it reads.
      const Cohort& cohort = *sequence->cohort;
      if (sequence == cohort.leader && !cohort.forked && cohort.members - gone_of(&cohort) > 1) continue;
      const auto [slots_taken, pages_taken] = taken_of(owner.account);
      const int64_t slots = owner.account->slots - slots_taken, pages = owner.account->pages - pages_taken;
      const double share = Share(slots, pages);
      const Rank rank = {!owner.paused, -share, sequence->scheduled, id};
      if (best != nullptr && best_rank < rank) continue;
      if (!may_be_parked(*sequence, share, Share(slots - 1, pages - pages_of(*sequence)))) continue;
      best = sequence;
      best_rank = rank;
    }
    if (best == nullptr) return {};
    auto& [slots_taken, pages_taken] = taken[best->owner->account];
    const int64_t pages = pages_of(*best);
    ++slots_taken;
    pages_taken += pages;
    ++taken_members[best->cohort];
    --slots_missing;
    pages_missing -= pages;
    victims.push_back(best);
  }
  return victims;
}

Scheduler::Group* Scheduler::MakeRoom(const RequestState& state, const Sequence& next, double now) {
  for (const auto& [replica, group] : groups_) {
    if (state.group != nullptr ? state.group != group.get() : !group->EverFits(state)) continue;
    const std::vector<Sequence*> victims = Victims(state, next, *group, now);
    for (Sequence* victim : victims) {
      if (!victim->owner->paused && victim->owner->account != state.account) {
        victim->owner->held_until = now + kHoldSeconds;
      }
      Park(*victim);
    }
    if (!victims.empty()) {
      GF_CHECK(group->HasRoom(state.NextPages(next)));
      return group.get();
    }
  }
  return nullptr;
}

// Takes its slot away from a sequence that runs. It is read again when it is next admitted.
void Scheduler::Park(Sequence& sequence) {
  RequestState& state = *sequence.owner;
  if (sequence.caught_up < 0 && sequence.scheduled > 0) ++sequence.lost_runs;
  ++state.usage.parkings;
  ++events_.parkings;
  Release(sequence);
  Requeue(state);
}

}  // namespace goldfinch
