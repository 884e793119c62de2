// Scheduler: how much memory a sequence reserves, and what becomes of it when it needs more.
#include <algorithm>
#include <cstdint>
#include <tuple>

#include "base/check.h"
#include "coordinator/scheduler/scheduler.h"
#include "coordinator/scheduler/scheduler_state.h"

namespace goldfinch {
namespace {

// The weight of one more answer in what answers have had lately.
constexpr double kAnswerWeight = 1.0 / 64;
// What a sequence that has been parked for growth reserves beside its tokens doubles so often.
constexpr int kDoublingsMax = 30;
// To look up which pages of kept texts a request could share takes time with its length, so it is done only so often.
constexpr double kPeekSeconds = 0.1;

}  // namespace

// The pages that a sequence reserves when it is admitted, with those that it shares.
int64_t Scheduler::PagesToReserve(const RequestState& state, const Sequence& sequence) const {
  const int64_t end_max = state.EndMax(sequence);
  if (!overcommit_ || state.is_short) return CachePagesFor(end_max);
  const auto likely = std::max(static_cast<int64_t>(answer_tokens_), kCachePageTokens);
  const int64_t end = state.End(sequence);
  if (sequence.growth_parkings == 0) {
    return CachePagesFor(std::min(end_max, std::max(state.prompt_tokens() + likely, end + kCachePageTokens)));
  }
  const int doublings = std::min(sequence.growth_parkings, kDoublingsMax);
  return CachePagesFor(std::min(end_max, end + (likely << doublings)));
}

// The pages that the request's next sequence needs to be admitted.
int64_t Scheduler::NextPages(const RequestState& state, const Sequence& next) const {
  const Cohort* const open = state.OpenCohort();
  return PagesToReserve(state, next) - (open != nullptr ? open->pages() : 0);
}

// Whether the request's next sequence has room in the group because others there use pages that it would begin with.
bool Scheduler::HasRoomBesideKept(RequestState& state, const Sequence& next, const Group& group, double now) {
  if (keeper_ == nullptr || !state.request.uses_kept() || state.is_short || state.OpenCohort() != nullptr) return false;
  const int64_t end = state.End(next), wanted = NextPages(state, next);
  const int64_t most = std::min(group.kept.pages(), end / kCachePageTokens);
  if (most == 0 || !group.HasRoom(group.held, state, wanted - most)) return false;
  if (now != state.peeked && now < state.peeked + kPeekSeconds) return false;  // all groups are looked at together
  state.peeked = now;
  int64_t pages = 0;
  for (const KeptPages::Run& run :
       KeptPages::RunsOf(keeper_->Peek(group.replica, state.request, state.Tokens(next, end, &joined_),
                                       state.BeginMax(next), group.cost.row_seconds()))) {
    if (group.kept.uses(run) > 0) pages += run.pages;
  }
  return group.HasRoom(group.held, state, wanted - pages);
}

int64_t Scheduler::HeldPages(const Sequence& sequence) { return sequence.pages + sequence.cohort->pages(); }

// The pages that the workers use when they have carried out all Steps so far.
int64_t Scheduler::UsedPages(const Group& group) const {
  int64_t pages = 0;
  KeptPages kept;
  for (const auto& [number, state] : requests_) {
    if (state->group != &group) continue;
    for (const auto& cohort : state->cohorts) {
      if (std::none_of(state->sequences.begin(), state->sequences.end(),
                       [&](const Sequence& sequence) { return sequence.cohort == cohort.get() && sequence.opened; })) {
        continue;
      }
      pages += kept.Add(cohort->kept);
      pages += cohort->forked
                   ? cohort->own_pages()
                   : std::min(CachePagesFor(cohort->leader->scheduled) - cohort->kept_pages, cohort->own_pages());
    }
    for (const Sequence& sequence : state->sequences) {
      if (sequence.id == 0 || !sequence.opened) continue;
      pages += std::max<int64_t>(CachePagesFor(sequence.scheduled) - sequence.cohort->pages(), 0);
    }
  }
  return pages;
}

// Counts what a sequence takes of its group, or gives back.
void Scheduler::Hold(const Sequence& sequence, int sequences, int64_t pages, int growing) {
  const RequestState& state = *sequence.owner;
  state.group->held.Add(state, sequences, pages, growing);
  sequence.lane->held.Add(state, sequences, pages, growing);
  state.account->slots += sequences;
  state.account->pages += pages;
}

// Counts what the sequence's cohort has of kept texts, or gives it back. Clients count it once each.
void Scheduler::HoldKept(const Sequence& sequence, bool more) {
  const RequestState& state = *sequence.owner;
  const std::vector<KeptPages::Run>& kept = sequence.cohort->kept;
  Group& group = *state.group;
  Lane& lane = *sequence.lane;
  const int64_t pages = more ? group.kept.Add(kept) : -group.kept.Remove(kept);
  const int64_t own_pages = more ? lane.kept.Add(kept) : -lane.kept.Remove(kept);
  group.held.Add(state, 0, pages, 0);
  lane.held.Add(state, 0, own_pages, 0);
  state.account->pages += own_pages;
}

void Scheduler::LearnAnswer(int64_t tokens) {
  answer_tokens_ += kAnswerWeight * (static_cast<double>(tokens) - answer_tokens_);
}

// Gives one more page to every sequence that cannot decode its next token without it. Parks sequences if there is none.
void Scheduler::Grow(Group& group, double now) {
  size_t kept = 0;
  for (size_t i = 0; i < group.full.size(); ++i) {
    const uint64_t id = group.full[i];
    const auto found = sequences_.find(id);
    if (found == sequences_.end()) continue;
    Sequence& sequence = *found->second;
    if (sequence.owner->paused) {
      group.full[kept++] = id;
      continue;
    }
    while (sequence.id == id && !group.HasPage()) {
      Sequence& victim = GrowthVictim(sequence, now);
      ++victim.growth_parkings;
      Park(victim);
    }
    if (sequence.id != id) continue;
    ++sequence.pages;
    sequence.grown = true;
    const bool growing = HeldPages(sequence) < CachePagesFor(sequence.owner->EndMax(sequence));
    Hold(sequence, 0, 1, static_cast<int>(growing) - static_cast<int>(sequence.growing));
    sequence.growing = growing;
  }
  group.full.resize(kept);
}

// Who is parked because there is no page for `grower`: it may be `grower` itself.
Scheduler::Sequence& Scheduler::GrowthVictim(Sequence& grower, double now) {
  const Group& group = *grower.owner->group;
  const bool all_taken = group.held.pages >= group.pages_max;
  // (not paused, priority, -share, tokens to read again, id): the least is parked.
  using ParkingOrder = std::tuple<bool, int, double, int64_t, uint64_t>;
  const auto order_of = [&](const Sequence& sequence) {
    const RequestState& owner = *sequence.owner;
    const bool paused = owner.paused && now - owner.paused_since >= kPauseSeconds;
    return ParkingOrder{!paused, owner.request.priority, -Share(*owner.account), sequence.scheduled, sequence.id};
  };
  Sequence* victim = &grower;
  ParkingOrder least = order_of(grower);
  for (const auto& [id, sequence] : sequences_) {
    const RequestState& owner = *sequence->owner;
    if (owner.group != &group || (owner.is_short && !all_taken)) continue;
    // It has been parked for others before, and has not used up what it has reserved since.
    if (sequence->growth_parkings > 0 && !sequence->grown) continue;
    // The others of its cohort wait for what it reads.
    const Cohort& cohort = *sequence->cohort;
    if (sequence == cohort.leader && !cohort.forked && cohort.members > 1) continue;
    const ParkingOrder order = order_of(*sequence);
    if (order < least) {
      victim = sequence;
      least = order;
    }
  }
  return *victim;
}

}  // namespace goldfinch
