// Membership: groups that end so that a larger one can form, or that of another replica.
#include <algorithm>
#include <optional>
#include <utility>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "coordinator/membership/membership.h"
#include "coordinator/membership/membership_state.h"

namespace goldfinch {

namespace {

constexpr double kDrainSecondsMax = 5;
// A group that has been whole for so many times regrow_after is steady: it grows at once when it loses a worker again.
constexpr double kSteadyRegrowths = 20;
constexpr int kRegrowthDoublings = 6;
constexpr double kIdleWaitSeconds = 0.25;

}  // namespace

// A group that is smaller than wanted ends when there are workers for a larger one, which then forms: at once if it is
// idle and all stages have workers, unless it has grown so often lately, else after a while, when it has been given no
// more Steps and has done the last.
void Membership::Grow(Replica& replica, bool idle, double now) {
  if (replica.drains_since >= 0) {
    if (idle || now - replica.drains_since > kDrainSecondsMax) Drained(replica.index, now);
    return;
  }
  const size_t wanted = StagesWanted();
  if (replica.stages.size() >= wanted && !replica.shrunken) {
    if (now - replica.since > kSteadyRegrowths * options_.regrow_after_seconds) {
      replica.regrowths = replica.idle_regrowths = 0;
    }
    return;
  }
  if (spares() == 0) replica.may_grow_since = -1;
  if (spares() == 0) return;
  if (replica.may_grow_since < 0) replica.may_grow_since = now;
  if (now < replica.retry_at) return;
  // The group must not pay again and again for a worker that dies soon or never becomes a stage.
  const double waited_seconds = now - replica.may_grow_since;
  const auto has_waited = [&](int failures) {
    const int doublings = std::min(replica.regrowths + failures, kRegrowthDoublings);
    return waited_seconds >= options_.regrow_after_seconds * (1 << doublings);
  };
  // Little is lost while the group is idle: the wait begins at nothing and stays short.
  const int idle_doublings = std::min(replica.idle_regrowths, kRegrowthDoublings);
  const bool may_be_at_once =
      idle && (idle_doublings == 0 || waited_seconds >= kIdleWaitSeconds * (1 << idle_doublings));
  if (!may_be_at_once && !has_waited(0)) return;
  const std::optional<GroupPlan> plan = LargerPlan(replica, SparesToGrow(replica, now));
  int failures = 0;
  if (plan) {
    for (const uint64_t id : plan->members) failures = std::max(failures, workers_.at(id)->failures);
  }
  const bool at_once = may_be_at_once && plan && plan->members.size() == wanted && failures == 0;
  if (!plan || (!at_once && !has_waited(failures))) {
    replica.retry_at = now + kPartitionRetrySeconds;
    return;
  }
  ++(idle ? replica.idle_regrowths : replica.regrowths);
  replica.next_workers = plan->members;
  const std::string purpose =
      plan->members.size() == replica.stages.size()
          ? "to have all its slots and caches"
          : absl::StrCat("to grow from ", replica.stages.size(), " to ", plan->members.size(), " stages");
  Drain(replica, purpose, "there are workers for a larger group", now);
  if (idle) Drained(replica.index, now);
}

// The spares that can be in one group with the replica's stages. Refuses those that the stages cannot reach.
std::vector<uint64_t> Membership::SparesToGrow(const Replica& replica, double now) {
  std::vector<uint64_t> stages;
  for (const Stage& stage : replica.stages) stages.push_back(stage.worker);
  const std::string transport = workers_.at(stages.front())->registration.transport();
  std::vector<uint64_t> able;
  for (const uint64_t spare : Spares()) {
    if (workers_.at(spare)->registration.transport() != transport) continue;
    std::vector<uint64_t> members = stages;
    members.push_back(spare);
    const auto unreachable = Unreachable(members);
    if (!unreachable) able.push_back(spare);
    // A stage is not refused, which serves with the others.
    if (unreachable && unreachable->first == spare) Refuse(spare, std::string(unreachable->second.message()), now);
  }
  return able;
}

// The best group of the replica's stages and some of `spares` that can hold what is wanted; nothing if there is none.
// First choice are the spares that come first, then the largest, then fewer. The smallest stages of a group that cannot
// hold what is wanted give way to larger spares.
std::optional<Membership::GroupPlan> Membership::LargerPlan(const Replica& replica,
                                                            const std::vector<uint64_t>& spares) const {
  const auto larger = [this](uint64_t a, uint64_t b) {
    return workers_.at(a)->registration.memory_bytes() > workers_.at(b)->registration.memory_bytes();
  };
  std::vector<uint64_t> stages, largest = spares;
  for (const Stage& stage : replica.stages) stages.push_back(stage.worker);
  std::stable_sort(stages.begin(), stages.end(), larger);
  std::stable_sort(largest.begin(), largest.end(), larger);
  const auto plan_with = [&](size_t kept, const std::vector<uint64_t>& from, size_t added) -> std::optional<GroupPlan> {
    std::vector<uint64_t> members(stages.begin(), stages.begin() + static_cast<int64_t>(kept));
    members.insert(members.end(), from.begin(), from.begin() + static_cast<int64_t>(added));
    if (Unreachable(members)) return std::nullopt;
    absl::StatusOr<GroupPlan> plan = PlanFor(replica, members, options_.partition);
    if (!plan.ok() || !Crowding(replica, *plan).ok()) return std::nullopt;
    return *std::move(plan);
  };
  const size_t wanted = StagesWanted();
  const size_t more = std::min(spares.size(), wanted - stages.size());
  if (more > 0) {
    if (auto plan = plan_with(stages.size(), spares, more)) return plan;
  }
  for (size_t added = more; added > 0; --added) {
    if (auto plan = plan_with(stages.size(), largest, added)) return plan;
  }
  if (!replica.shrunken) return std::nullopt;
  for (size_t kept = stages.size(); kept-- > 0;) {
    const size_t added = std::min(spares.size(), wanted - kept);
    if (added == 0) return std::nullopt;
    if (auto plan = plan_with(kept, largest, added)) return plan;
  }
  return std::nullopt;
}

// Ends the groups that have more of their hosts than they can keep when `replica` forms: those that serve when their
// Steps are done. False if it has to wait for that.
bool Membership::MakeRoom(Replica& replica, const std::vector<Replica*>& crowding, double now) {
  const std::string reason = "more workers share its hosts";
  bool is_free = true;
  for (Replica* const other : crowding) {
    if (other->state != Replica::State::kReady) {
      EndGeneration(*other, reason, now, now);
      continue;
    }
    is_free = false;
    replica.message = absl::StrCat("waiting for replica ", other->index, " to make room on its hosts");
    Drain(*other, absl::StrCat("to make room for replica ", replica.index), reason, now);
  }
  return is_free;
}

// The group gets no more Steps, and ends with `reason` when it has done the last.
void Membership::Drain(Replica& replica, const std::string& purpose, const std::string& reason, double now) {
  if (replica.drains_since >= 0) return;
  replica.drains_since = now;
  replica.drains_for = reason;
  effects_.log.push_back(absl::StrCat("replica ", replica.index, " takes no more steps, ", purpose));
}

bool Membership::draining(int replica) const { return replicas_[replica]->drains_since >= 0; }

void Membership::Drained(int replica, double now) {
  if (draining(replica)) EndGeneration(*replicas_[replica], replicas_[replica]->drains_for, now, now);
}

}  // namespace goldfinch
