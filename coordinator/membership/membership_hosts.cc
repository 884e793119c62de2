// Membership: where workers run. What those of one host share, which are equally fast, and how peers reach them.
#include <algorithm>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "base/host_port.h"
#include "base/safe_text.h"
#include "base/transports.h"
#include "coordinator/membership/membership.h"
#include "coordinator/membership/membership_state.h"
#include "coordinator/membership/worker_messages.h"

namespace goldfinch {

using cluster::v1::Register;

namespace {

// A worker that has been silent for so many heartbeats makes way for one that wants its GPU.
constexpr double kSilentHeartbeats = 2;

// `whole` less what some workers were given, divided among the others that share the pool.
struct Pool {
  int64_t given = 0;
  int64_t sharing = 0;

  void Add(bool is_given, int64_t part) {
    if (is_given) {
      given += part;
    } else {
      ++sharing;
    }
  }
  int64_t Share(int64_t whole) const { return std::max<int64_t>(whole - given, 0) / std::max<int64_t>(sharing, 1); }
};

bool Same(const std::string& pool, const std::string& other) { return !pool.empty() && pool == other; }

double Median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<int64_t>(values.size() - 1) / 2;
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

// The host of an address as the coordinator sees it; empty if others cannot use it.
std::string SeenHost(const std::string& address) {
  const absl::StatusOr<HostPort> parsed = ParseHostPort(address);
  if (!parsed.ok() || IsLoopback(parsed->host) || parsed->host.find('%') != std::string::npos) return "";
  return parsed->host;
}

}  // namespace

// The workers that use their hosts at once when `members` are the replica's group: they, the stages of other replicas,
// and, `with_spares`, as many spares as other replicas that wait can form groups of: all their stages, or fewer if they
// have been ready before.
std::vector<uint64_t> Membership::HostUsers(const Replica& replica, const std::vector<uint64_t>& members,
                                            bool with_spares) const {
  std::vector<uint64_t> users = members, spares;
  for (const uint64_t spare : Spares()) {
    if (std::find(members.begin(), members.end(), spare) == members.end()) spares.push_back(spare);
  }
  size_t taken = 0;
  for (const auto& other : replicas_) {
    if (other.get() == &replica) continue;
    for (const Stage& stage : other->stages) users.push_back(stage.worker);
    if (!with_spares || other->state != Replica::State::kWaiting) continue;
    const size_t left = spares.size() - taken, wanted = StagesWanted();
    if (left >= wanted || other->was_ready) taken += std::min(left, wanted);
  }
  users.insert(users.end(), spares.begin(), spares.begin() + static_cast<int64_t>(taken));
  return users;
}

Membership::HostShare Membership::ShareOf(uint64_t id, const std::vector<uint64_t>& users) const {
  const Register& own = workers_.at(id)->registration;
  HostShare share{static_cast<int64_t>(own.memory_bytes()), own.threads()};
  Pool memory, threads;
  int on_device = 0;
  for (const uint64_t user : users) {
    const Register& other = workers_.at(user)->registration;
    if (Same(own.gpu(), other.gpu())) ++on_device;
    if (Same(own.memory_pool(), other.memory_pool())) {
      memory.Add(other.memory_given(), static_cast<int64_t>(other.memory_bytes() + other.shelf_bytes()));
    }
    if (Same(own.cpu_pool(), other.cpu_pool())) threads.Add(other.threads_given(), other.threads());
  }
  if (!own.memory_given() && !own.memory_pool().empty()) {
    // Its shelf comes out of its own share.
    const auto shelf = static_cast<int64_t>(own.shelf_bytes());
    share.memory_bytes = std::max<int64_t>(memory.Share(share.memory_bytes + shelf) - shelf, 0);
  }
  share.on_device = std::max(on_device, 1);
  if (!own.threads_given() && !own.cpu_pool().empty() && own.threads() > 0) {
    share.threads = static_cast<uint32_t>(std::max<int64_t>(threads.Share(own.threads()), 1));
  }
  return share;
}

// What the worker brings: its share of the host, at the speed of its kind. A measurement may have been disturbed, so
// workers that should be equal count as equal, each with the median of what they have measured.
WorkerResources Membership::ResourcesOf(uint64_t id, const HostShare& share) const {
  const Worker& worker = *workers_.at(id);
  const Register& own = worker.registration;
  std::vector<double> flops, reads;
  for (const auto& [other, one] : workers_) {
    const Register& equal = one->registration;
    if (!one->registered || equal.device() != own.device() || equal.processor() != own.processor()) continue;
    flops.push_back(equal.flops());
    reads.push_back(equal.read_bytes_per_second());
  }
  // Stages of one GPU take turns: each has measured it alone, and their times add up.
  const double part = own.threads() > 0 ? static_cast<double>(share.threads) / own.threads() : 1.0 / share.on_device;
  return {share.memory_bytes, part * Median(std::move(flops)), part * Median(std::move(reads)), &worker.memory};
}

// The other replicas whose stages have more of a host than is left to them when the replica forms by `plan`: they
// formed when there were fewer workers, and have to form again. RESOURCE_EXHAUSTED if one of them could not.
absl::StatusOr<std::vector<Membership::Replica*>> Membership::Crowding(const Replica& replica,
                                                                       const GroupPlan& plan) const {
  const auto shares_with_members = [&](const std::string& pool, const std::string& (Register::*pool_of)() const) {
    return std::any_of(plan.members.begin(), plan.members.end(),
                       [&](uint64_t id) { return Same((workers_.at(id)->registration.*pool_of)(), pool); });
  };
  std::vector<Replica*> crowding;
  for (const auto& other : replicas_) {
    if (other.get() == &replica) continue;
    std::vector<uint64_t> stages;
    bool has_more = false;
    for (const Stage& stage : other->stages) {
      stages.push_back(stage.worker);
      const Register& registration = workers_.at(stage.worker)->registration;
      const HostShare share = ShareOf(stage.worker, plan.users);
      has_more |= stage.share.memory_bytes > share.memory_bytes &&
                  shares_with_members(registration.memory_pool(), &Register::memory_pool);
      has_more |=
          stage.share.threads > share.threads && shares_with_members(registration.cpu_pool(), &Register::cpu_pool);
    }
    if (!has_more) continue;
    if (!PlanAmong(plan.users, *other, stages, options_.partition).ok()) {
      return absl::ResourceExhaustedError(
          absl::StrCat("replica ", other->index, " needs the memory of a host that both have workers on"));
    }
    crowding.push_back(other.get());
  }
  return crowding;
}

// Where the worker has to listen if loopback is no address for some of `members`: it gets the address of a peer, by the
// route to which it finds its own. Empty if Register.address will do; an error if nobody knows.
absl::StatusOr<std::string> Membership::ReachFor(uint64_t id, const std::vector<uint64_t>& members) const {
  const Worker& worker = *workers_.at(id);
  const Register& own = worker.registration;
  const TransportFacts* const transport = FindTransport(own.transport());
  const bool has_address = transport != nullptr && transport->has_address;
  if (!has_address || own.network().empty() || !IsLoopback(own.address())) return std::string();
  const Worker* elsewhere = nullptr;
  std::string peer_host;
  for (const uint64_t member : members) {
    const Worker& peer = *workers_.at(member);
    const Register& other = peer.registration;
    if (other.network().empty() || other.network() == own.network()) continue;
    elsewhere = &peer;
    if (!peer_host.empty()) continue;
    peer_host = other.address().empty() || IsLoopback(other.address()) ? SeenHost(peer.address) : other.address();
  }
  if (elsewhere == nullptr) return std::string();
  if (std::string seen = SeenHost(worker.address); !seen.empty()) return seen;
  // It is on the coordinator's own host; peers that nobody can reach are refused themselves.
  if (own.network() == options_.network) return peer_host;
  return absl::FailedPreconditionError(absl::StrCat("it reaches the coordinator by ",
                                                    SafeText(own.address(), kHashBytesMax), ", and worker ",
                                                    elsewhere->registration.name(),
                                                    " on another host cannot reach it there: set address to one that "
                                                    "the other workers reach"));
}

// The first member that some of the others cannot reach, and why; nothing if there is none.
std::optional<std::pair<uint64_t, absl::Status>> Membership::Unreachable(const std::vector<uint64_t>& members) const {
  for (const uint64_t id : members) {
    const absl::StatusOr<std::string> reach = ReachFor(id, members);
    if (!reach.ok()) return std::pair(id, reach.status());
  }
  return std::nullopt;
}

// A process that comes over a new connection has given up the old one, which the coordinator may not have noticed.
void Membership::ForgetOldConnection(uint64_t id, const Register& message, double now) {
  if (message.process().empty()) return;
  for (const auto& [other, worker] : workers_) {
    if (other == id || !worker->registered || worker->registration.process() != message.process()) continue;
    return WorkerLost(other, "it has connected anew", now);
  }
}

// Workers on one GPU must have been given their shares of its memory. False if the worker was refused.
bool Membership::CheckGpu(uint64_t id, const Register& message, double now) {
  if (message.gpu().empty()) return true;
  std::vector<uint64_t> silent;
  for (const auto& [other, worker] : workers_) {
    const Register& registration = worker->registration;
    if (other == id || !worker->registered || registration.gpu() != message.gpu()) continue;
    if (registration.memory_given() && message.memory_given()) continue;
    if (now - worker->last_heard > kSilentHeartbeats * options_.heartbeat_interval_seconds) {
      silent.push_back(other);
      continue;
    }
    Refuse(id,
           absl::StrCat("worker ", registration.name(), " computes on ", SafeText(message.gpu(), kHashBytesMax),
                        " already: start this one on another GPU, or set gpu_memory_utilization or memory of both"),
           now);
    return false;
  }
  for (const uint64_t other : silent) WorkerLost(other, "it is silent, and another worker has its GPU", now);
  return true;
}

}  // namespace goldfinch
