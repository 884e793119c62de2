// Scheduler: which requests run, and who gives up a slot for them.
#include <algorithm>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "coordinator/scheduler/scheduler.h"
#include "coordinator/scheduler/scheduler_state.h"

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
  int64_t tokens = 0, longest = 0;
  for (const auto& [replica, group] : groups_) {
    tokens = std::max(tokens, group->pages_max * kCachePageTokens);
    longest = std::max(longest, group->capacity.max_sequence_tokens);
  }
  return absl::ResourceExhaustedError(absl::StrCat("the request may need ", state.LongestTokens(), " tokens, ",
                                                   CachePagesFor(state.LongestTokens()) * kCachePageTokens,
                                                   " with the rest of their pages; max_model_len is ", longest,
                                                   " and the caches hold ", tokens, " tokens"));
}

double Scheduler::Share(int64_t slots, int64_t pages) const {
  return std::max(static_cast<double>(slots) / static_cast<double>(std::max<int64_t>(slots_max_, 1)),
                  static_cast<double>(pages) / static_cast<double>(std::max<int64_t>(pages_max_, 1)));
}

double Scheduler::Share(const Account& account) const { return Share(account.slots, account.pages); }

// Whether the next sequence of the request could run in the group, had that room. All sequences of a request that run
// are in one group, and one that begins with a tuned state can only begin where that was brought.
bool Scheduler::MayRun(const RequestState& state, int replica, const Group& group) {
  if (state.group != nullptr) return state.group == &group;
  if (state.request.tuned != 0 && state.preferred >= 0 && state.preferred != replica) return false;
  return group.EverFits(state);
}

// Where the next sequence of the request can run now.
Scheduler::Group* Scheduler::FindRoom(RequestState& state, const Sequence& next, bool only_kept, double now) {
  const int64_t pages = NextPages(state, next);
  Group* best = nullptr;
  int64_t least = 0;
  for (const auto& [replica, group] : groups_) {
    if (!MayRun(state, replica, *group)) continue;
    if (!group->HasRoom(group->held, state, pages, only_kept) && !HasRoomBesideKept(state, next, *group, now)) continue;
    const int64_t load = group->load() - (replica == state.preferred ? state.preferred_tokens : 0);
    if (best != nullptr && load >= least) continue;
    best = group.get();
    least = load;
  }
  return best;
}

// Whether what is kept for short requests may be what the request waits for: it is short itself, or its next sequence
// needs more than what long ones may have.
bool Scheduler::NeedsKept(RequestState& state) const {
  if (state.is_short) return true;
  const int64_t pages = NextPages(state, *state.Next());
  return std::none_of(groups_.begin(), groups_.end(), [&](const auto& entry) {
    const Group& group = *entry.second;
    if (state.group != nullptr ? state.group != &group : !group.EverFits(state)) return false;
    return pages <= group.pages_max - group.pages_kept();
  });
}

// Whether the sequence would have room in some group if only the request's own client ran anything there.
bool Scheduler::FitsBesideOwn(const RequestState& state, const Sequence& next) const {
  return std::any_of(groups_.begin(), groups_.end(), [&](const auto& entry) {
    const Group& group = *entry.second;
    if (state.group != nullptr ? state.group != &group : !group.EverFits(state)) return false;
    const auto own = std::find_if(group.lanes.begin(), group.lanes.end(),
                                  [&](const auto& lane) { return lane->account == state.account; });
    return group.HasRoom(own == group.lanes.end() ? Holding() : (*own)->held, state, NextPages(state, next));
  });
}

// ---- Who is next ----

struct Scheduler::Candidate {
  RequestState* state = nullptr;
  double share = 0;
  bool only_kept = false;  // it may only take what is kept for short requests

  int priority() const { return state->request.priority; }
  bool operator<(const Candidate& other) const {
    const auto key = [](const Candidate& one) {
      const Account& account = *one.state->account;
      return std::make_tuple(-one.priority(), one.share, account.last_turn, account.id, one.state->arrival);
    };
    return key(*this) < key(other);
  }
};

// The first request of each client that its limits let run and, if that is not short, the first short one, in the order
// in which they are to be admitted.
std::vector<Scheduler::Candidate> Scheduler::Candidates(double now) {
  std::vector<Candidate> candidates;
  for (const auto& [id, account] : waiting_) {
    const ClientLimits& limits = account->limits;
    bool takes_new = limits.max_running == 0 || account->admitted < limits.max_running;
    int parked = account->parked;
    RequestState* first = nullptr;
    for (const auto& [key, state] : account->waiting) {
      if (!takes_new && parked == 0) break;
      if (state->admitted >= 0) {
        --parked;
      } else {
        // What is behind a request that waits for tokens waits too.
        takes_new = takes_new && account->allowance.SecondsUntil(state->CostMax(), now) == 0;
        if (!takes_new) continue;
      }
      if (state->coming >= 0) continue;
      first = state;
      break;
    }
    if (first == nullptr) continue;
    const auto held = [&](const RequestState& state) { return state.admitted >= 0 && now < state.held_until; };
    if (!held(*first)) candidates.push_back({first, Share(*account)});
    // Nothing of its client gets ahead of what is held or has waited for long, except into what is of no use to it.
    if (first->is_short || account->waiting_short.empty()) continue;
    const auto short_one = std::find_if(account->waiting_short.begin(), account->waiting_short.end(),
                                        [](const auto& entry) { return entry.second->coming < 0; });
    if (short_one == account->waiting_short.end()) continue;
    RequestState& passing = *short_one->second;
    if (passing.admitted < 0 ? !takes_new || account->allowance.SecondsUntil(passing.CostMax(), now) > 0
                             : held(passing)) {
      continue;
    }
    const bool only_kept = held(*first) || first->Overdue(now);
    if (!only_kept || !NeedsKept(*first)) candidates.push_back({&passing, Share(*account), only_kept});
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
  bool only_kept = false;  // a request waits for everything but what is kept for short ones
  for (size_t i = 0; i < candidates.size(); ++i) {
    RequestState& state = *candidates[i].state;
    if (state.group == nullptr && !EverFits(state)) {  // the groups may have become smaller since Submit
      if (!all_groups_ready()) continue;
      End(state, TooLarge(state), now);
      return true;
    }
    Sequence& next = *state.Next();
    const bool restricted = only_kept || candidates[i].only_kept;
    if (restricted && !state.is_short) continue;
    if (!Prepare(state, next, now)) return true;  // the next one of its client may come first
    Group* group = FindRoom(state, next, restricted, now);
    if (group == nullptr && !restricted && ++parkers <= kParkersMax) group = MakeRoom(state, next, now);
    if (group != nullptr) {
      Start(state, next, *group, now);
      if (const absl::Status status = next.beginning.status; !status.ok()) End(state, status, now);
      return true;
    }
    if (state.blocked_since < 0) state.blocked_since = now;
    const bool overdue = state.Overdue(now);
    const bool others_rank_lower = i + 1 < candidates.size() && candidates[i + 1].priority() < state.request.priority;
    if ((overdue || others_rank_lower) && FitsBesideOwn(state, next)) {
      if (NeedsKept(state)) return false;
      only_kept = true;
    }
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
  const int64_t pages_wanted = NextPages(state, next);
  const double share_after = Share(state.account->slots + 1, state.account->pages + pages_wanted);
  const double share_before = Share(*state.account);
  const bool overdue = state.Overdue(now);

  std::vector<Sequence*> victims;
  absl::flat_hash_map<const Account*, std::pair<int64_t, int64_t>> taken;  // slots and pages
  absl::flat_hash_map<const Cohort*, int> taken_members;
  KeptPages taken_kept;
  Holding others = group.held;  // what is left when the victims are gone
  // Most looks find nobody, and must not fill the maps for it.
  const auto taken_of = [&](const Account* account) {
    const auto found = taken.find(account);
    return found == taken.end() ? std::pair<int64_t, int64_t>() : found->second;
  };
  const auto gone_of = [&](const Cohort* cohort) {
    const auto found = taken_members.find(cohort);
    return found == taken_members.end() ? 0 : found->second;
  };
  const auto is_last = [&](const Sequence& sequence) {
    return gone_of(sequence.cohort) + 1 == sequence.cohort->members;
  };
  const auto pages_of = [&](const Sequence& sequence) {
    if (!is_last(sequence)) return sequence.pages;
    int64_t pages = sequence.pages + sequence.cohort->own_pages();
    for (const KeptPages::Run& run : sequence.cohort->kept) {
      if (group.kept.uses(run) - taken_kept.uses(run) == 1) pages += run.pages;
    }
    return pages;
  };
  const auto may_be_parked = [&](const Sequence& sequence, double share, double share_left) {
    const RequestState& owner = *sequence.owner;
    if (owner.paused) {
      const double reread = sequence.caught_up >= 0 ? sequence.caught_up - sequence.started : 0;
      return now - owner.paused_since >= std::max(kPauseSeconds, reread);
    }
    if (owner.request.priority > state.request.priority) return false;
    const bool served_little = !sequence.opened || Served(sequence, kServiceSeconds, now);
    if (owner.request.priority < state.request.priority) return served_little;
    // What long ones have of the slots that are kept for short ones is a loan.
    const bool on_loan = others.long_sequences > group.capacity.max_sequences - group.slots_kept() ||
                         others.long_pages > group.pages_max - group.pages_kept();
    if (state.is_short && !owner.is_short && on_loan && overdue && Served(sequence, kTurnSeconds, now)) return true;
    if (owner.account == state.account) return false;
    if (share_left + kShareTolerance >= share_after) return served_little;
    return overdue && share > share_before + kShareTolerance && Served(sequence, kTurnSeconds, now);
  };
  // (not paused, priority, -share, tokens to read again, id): the least is parked first.
  using ParkingOrder = std::tuple<bool, int, double, int64_t, uint64_t>;
  while (!group.HasRoom(others, state, pages_wanted)) {
    // Short ones are of no use if it is the long ones that have all that they may have.
    const bool only_long = !state.is_short && others.sequences < group.capacity.max_sequences &&
                           others.pages + pages_wanted + others.growing <= group.pages_max;
    Sequence* best = nullptr;
    ParkingOrder best_order;
    for (const auto& [id, sequence] : sequences_) {
      const RequestState& owner = *sequence->owner;
      if (owner.group != &group || (only_long && owner.is_short)) continue;
      if (std::find(victims.begin(), victims.end(), sequence) != victims.end()) continue;
      // The others of its cohort wait for what it reads.
      const Cohort& cohort = *sequence->cohort;
      if (sequence == cohort.leader && !cohort.forked && cohort.members - gone_of(&cohort) > 1) continue;
      const auto [slots_taken, pages_taken] = taken_of(owner.account);
      const int64_t slots = owner.account->slots - slots_taken, pages = owner.account->pages - pages_taken;
      const double share = Share(slots, pages);
      const ParkingOrder order = {!owner.paused, owner.request.priority, -share, sequence->scheduled, id};
      if (best != nullptr && best_order < order) continue;
      if (!may_be_parked(*sequence, share, Share(slots - 1, pages - pages_of(*sequence)))) continue;
      best = sequence;
      best_order = order;
    }
    if (best == nullptr) return {};
    auto& [slots_taken, pages_taken] = taken[best->owner->account];
    const int64_t pages = pages_of(*best);
    ++slots_taken;
    pages_taken += pages;
    if (is_last(*best)) taken_kept.Add(best->cohort->kept);
    ++taken_members[best->cohort];
    others.Add(*best->owner, -1, -pages, best->growing ? -1 : 0);
    victims.push_back(best);
  }
  return victims;
}

Scheduler::Group* Scheduler::MakeRoom(const RequestState& state, const Sequence& next, double now) {
  for (const auto& [replica, group] : groups_) {
    if (!MayRun(state, replica, *group)) continue;
    const std::vector<Sequence*> victims = Victims(state, next, *group, now);
    for (Sequence* victim : victims) {
      if (!victim->owner->paused && victim->owner->account != state.account) {
        victim->owner->held_until = now + kHoldSeconds;
      }
      Park(*victim);
    }
    if (!victims.empty()) {
      GF_CHECK(group->HasRoom(group->held, state, NextPages(state, next)));
      return group.get();
    }
  }
  return nullptr;
}

// Takes its slot away from a sequence that runs. It is read again when it is next admitted.
void Scheduler::Park(Sequence& sequence) {
  RequestState& state = *sequence.owner;
  if (sequence.caught_up < 0 && sequence.opened) ++sequence.lost_runs;
  ++state.usage.parkings;
  ++events_.parkings;
  if (keeper_ != nullptr && sequence.opened && sequence.scheduled > 0) {
    state.group->parked.push_back({sequence.id, state.number, sequence.index, sequence.scheduled});
  }
  Release(sequence);
  Requeue(state);
}

}  // namespace goldfinch
