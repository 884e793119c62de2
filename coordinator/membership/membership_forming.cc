// Membership: how a group forms, and which workers become its stages.
#include <algorithm>
#include <tuple>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/safe_text.h"
#include "base/stage_extent.h"
#include "base/status.h"
#include "coordinator/membership/membership.h"
#include "coordinator/membership/membership_state.h"
#include "coordinator/membership/worker_messages.h"
#include "coordinator/shelves/shelf_group.h"
#include "protos/cluster_protocol.h"

namespace goldfinch {

using cluster::v1::ToWorker;

void Membership::SetVocabulary(std::string sampleable_bits, std::string repeats_freely_bits, double now) {
  sampleable_bits_ = std::move(sampleable_bits);
  repeats_freely_bits_ = std::move(repeats_freely_bits);
  has_vocabulary_ = true;
  FormGroups(now);
}

// ---- Who becomes a stage ----

std::vector<uint64_t> Membership::Spares() const {
  std::vector<uint64_t> spares;
  for (const auto& [id, worker] : workers_) {
    if (worker->spare()) spares.push_back(id);
  }
  // Those that have failed come last: they may never be able to be a stage.
  std::stable_sort(spares.begin(), spares.end(), [this](uint64_t a, uint64_t b) {
    const Worker &first = *workers_.at(a), &second = *workers_.at(b);
    return std::tie(first.failures, first.registration.name()) < std::tie(second.failures, second.registration.name());
  });
  return spares;
}

// How many of `spares`, which are in the order of Spares, the replica takes its stages from if they can hold the model:
// all, or if it has been ready and its last group did not become so, those that have failed least. If all have failed,
// two of them may be unable to reach each other: with each group that fails one more is left out.
size_t Membership::TrustedSpares(const Replica& replica, const std::vector<uint64_t>& spares) const {
  if (!replica.was_ready || replica.failures == 0 || spares.empty()) return spares.size();
  const int least = workers_.at(spares.front())->failures;
  const auto failed_more =
      std::find_if(spares.begin(), spares.end(), [&](uint64_t id) { return workers_.at(id)->failures > least; });
  const auto trusted = static_cast<int>(failed_more - spares.begin());
  return least == 0 ? trusted : std::max(1, trusted - (replica.failures - 1));
}

// The worker of each stage, for at most `stages` of them: those that were stages of this replica keep theirs.
std::vector<uint64_t> Membership::AssignStages(const Replica& replica, std::vector<uint64_t> spares,
                                               size_t stages) const {
  constexpr uint64_t kNobody = 0;
  const auto was_here = [&](uint64_t id) {
    return workers_.at(id)->old_replica == replica.index && workers_.at(id)->failures == 0;
  };
  std::stable_partition(spares.begin(), spares.end(), was_here);
  spares.resize(std::min(spares.size(), stages));
  std::vector<uint64_t> assigned(spares.size(), kNobody), others;
  for (uint64_t id : spares) {
    const auto stage = static_cast<size_t>(workers_.at(id)->old_stage);
    if (was_here(id) && stage < assigned.size() && assigned[stage] == kNobody) {
      assigned[stage] = id;
    } else {
      others.push_back(id);
    }
  }
  auto next = others.begin();
  for (uint64_t& worker : assigned) {
    if (worker == kNobody) worker = *next++;
  }
  return assigned;
}

size_t Membership::StagesWanted() const { return std::min(options_.stages, model_->layers_size()); }

void Membership::FormGroups(double now) {
  if (model_ == nullptr || !has_vocabulary_) return;
  for (const auto& replica : replicas_) {
    if (replica->state != Replica::State::kWaiting || now < replica->retry_at) continue;
    absl::StatusOr<GroupPlan> plan = NextPlan(*replica, now);
    const absl::StatusOr<std::vector<Replica*>> crowding = plan.ok() ? Crowding(*replica, *plan) : plan.status();
    if (crowding.ok()) {
      if (MakeRoom(*replica, *crowding, now)) Form(*replica, *std::move(plan), now);
      continue;
    }
    const std::string reason(crowding.status().message());
    if (absl::IsUnavailable(crowding.status())) {
      replica->message = reason;
      continue;
    }
    if (replica->message != reason) {
      effects_.log.push_back(absl::StrCat("replica ", replica->index, " cannot form a group: ", reason));
    }
    replica->message = reason;
    replica->retry_at = now + kPartitionRetrySeconds;
  }
}

// The plan of the group that a waiting replica forms next. UNAVAILABLE if it waits for more workers; other errors are
// those of BestPlan. Refuses spares that the others cannot reach.
absl::StatusOr<Membership::GroupPlan> Membership::NextPlan(const Replica& replica, double now) {
  const size_t wanted = StagesWanted();
  const bool take_less = replica.was_ready && now >= replica.since + options_.regroup_wait_seconds;
  const bool are_there = !replica.next_workers.empty() &&
                         std::all_of(replica.next_workers.begin(), replica.next_workers.end(), [this](uint64_t id) {
                           const auto found = workers_.find(id);
                           return found != workers_.end() && found->second->spare();
                         });
  if (are_there) {
    const std::vector<uint64_t> members = AssignStages(replica, replica.next_workers, wanted);
    absl::StatusOr<GroupPlan> plan = PlanFor(replica, members, options_.partition);
    if (plan.ok()) return plan;
  }
  for (size_t untrusted = 0;;) {
    std::vector<uint64_t> spares = Spares();
    const size_t all = spares.size();
    spares.resize(std::min(all, TrustedSpares(replica, spares) + untrusted));
    const std::vector<uint64_t> members = AssignStages(replica, spares, wanted);
    if (const auto unreachable = Unreachable(members)) {
      Refuse(unreachable->first, std::string(unreachable->second.message()), now);
      continue;
    }
    if (members.empty() || (members.size() < wanted && !take_less)) {
      return absl::UnavailableError(absl::StrCat("waiting for workers: ", members.size(), " of ", wanted));
    }
    absl::StatusOr<GroupPlan> plan = BestPlan(replica, members, take_less);
    if (plan.ok() || members.size() == wanted || spares.size() == all) return plan;
    ++untrusted;
  }
}

// ---- What a group can hold ----

// Leaves room on the hosts for other replicas that wait if the group fits beside them; else the first to form has it.
absl::StatusOr<Membership::GroupPlan> Membership::PlanFor(const Replica& replica, const std::vector<uint64_t>& members,
                                                          const PartitionOptions& limits) const {
  absl::StatusOr<GroupPlan> plan =
      PlanAmong(HostUsers(replica, members, /*with_spares=*/true), replica, members, limits);
  if (!absl::IsResourceExhausted(plan.status())) return plan;
  return PlanAmong(HostUsers(replica, members, /*with_spares=*/false), replica, members, limits);
}

// The plan if `users` are all that use the hosts.
absl::StatusOr<Membership::GroupPlan> Membership::PlanAmong(const std::vector<uint64_t>& users, const Replica& replica,
                                                            const std::vector<uint64_t>& members,
                                                            const PartitionOptions& limits) const {
  GroupPlan plan;
  plan.members = members;
  plan.users = users;
  plan.limits = limits;
  std::vector<WorkerResources> resources;
  const std::string& transport = workers_.at(members[0])->registration.transport();
  for (const uint64_t id : members) {
    plan.shares.push_back(ShareOf(id, users));
    resources.push_back(ResourcesOf(id, plan.shares.back()));
    const std::string& other = workers_.at(id)->registration.transport();
    if (other != transport) {
      return absl::InvalidArgumentError(
          absl::StrCat("workers with the transports ", transport, " and ", other, " cannot form a group"));
    }
  }
  plan.limits.links = LinksAmong(members);
  plan.limits.traffic = replica.traffic.value_or(limits.traffic);
  if (!replica.replans) plan.limits.kept_split = replica.ready_split;
  // A split that was given counts as long as there are workers for it.
  if (plan.limits.split.size() != members.size() && replica.was_ready) plan.limits.split.clear();
  if (limits.max_step_tokens > 0) {
    GF_ASSIGN_OR_RETURN(plan.partition, PartitionLayers(*model_, resources, plan.limits));
    return plan;
  }
  // As many as make a long Step of a prompt, or fewer if their activations do not fit.
  const bool on_gpus =
      std::all_of(members.begin(), members.end(), [&](uint64_t id) { return OnGpu(*workers_.at(id)); });
  GF_ASSIGN_OR_RETURN(plan.partition,
                      PartitionWithLongSteps(*model_, resources, on_gpus ? kGpuStepTokens : kCpuStepTokens,
                                             kCpuStepTokens, &plan.limits));
  return plan;
}

bool Membership::OnGpu(const Worker& worker) { return worker.registration.threads() == 0; }

// With caches for one sequence of full length at least, or as small as was asked for, and the most slots that fit.
absl::StatusOr<Membership::GroupPlan> Membership::SmallerPlanFor(const Replica& replica,
                                                                 const std::vector<uint64_t>& members) const {
  const PartitionOptions& wanted = options_.partition;
  const auto plan_with = [&](int max_sequences) {
    PartitionOptions limits = wanted;
    if (limits.cache_tokens >= limits.max_sequence_tokens) limits.cache_tokens = 0;  // as many as fit
    limits.max_sequences = max_sequences;
    // Each slot may want logits in the same step.
    limits.max_logit_rows = std::max<int64_t>(1, wanted.max_logit_rows - (wanted.max_sequences - max_sequences));
    absl::StatusOr<GroupPlan> plan = PlanFor(replica, members, limits);
    if (plan.ok() && wanted.cache_tokens > 0) {
      plan->partition.cache_tokens = std::min(plan->partition.cache_tokens, wanted.cache_tokens);
    }
    return plan;
  };
  absl::StatusOr<GroupPlan> best = plan_with(wanted.max_sequences);
  if (best.ok() || !absl::IsResourceExhausted(best.status())) return best;
  best = plan_with(1);
  int fits = 1, too_many = wanted.max_sequences;
  while (best.ok() && too_many - fits > 1) {
    const int middle = fits + (too_many - fits) / 2;
    absl::StatusOr<GroupPlan> plan = plan_with(middle);
    (plan.ok() ? fits : too_many) = middle;
    if (plan.ok()) best = std::move(plan);
  }
  return best;
}

// With `take_less` (the replica has been ready before), first the smallest workers are left out, for they may be what
// does not fit; then caches and slots shrink. The error is that of all members and limits.
absl::StatusOr<Membership::GroupPlan> Membership::BestPlan(const Replica& replica, const std::vector<uint64_t>& members,
                                                           bool take_less) const {
  absl::StatusOr<GroupPlan> whole = PlanFor(replica, members, options_.partition);
  if (whole.ok() || !take_less) return whole;
  std::vector<std::vector<uint64_t>> fewer = {members};
  while (fewer.back().size() > 1) {
    std::vector<uint64_t> some = fewer.back();
    some.erase(std::min_element(some.begin(), some.end(), [this](uint64_t a, uint64_t b) {
      return workers_.at(a)->registration.memory_bytes() < workers_.at(b)->registration.memory_bytes();
    }));
    fewer.push_back(some);
    if (absl::StatusOr<GroupPlan> plan = PlanFor(replica, some, options_.partition); plan.ok()) return plan;
  }
  for (const std::vector<uint64_t>& some : fewer) {
    absl::StatusOr<GroupPlan> plan = SmallerPlanFor(replica, some);
    if (!plan.ok()) continue;
    plan->shortage = std::string(whole.status().message());
    return plan;
  }
  return whole;
}

// ---- Form, Joined, Connect, Ready ----

void Membership::Form(Replica& replica, GroupPlan plan, double now) {
  replica.partition = std::move(plan.partition);
  replica.limits = std::move(plan.limits);
  replica.shrunken = !plan.shortage.empty();
  replica.next_workers.clear();
  replica.generation = ++last_generation_;
  replica.state = Replica::State::kForming;
  replica.since = now;
  replica.steps = 0;
  replica.message = "workers are loading their layers";
  replica.stages.assign(plan.members.size(), {});
  replica.views.clear();
  for (size_t stage = 0; stage < plan.members.size(); ++stage) {
    replica.stages[stage].share = plan.shares[stage];
    const uint64_t id = plan.members[stage];
    BecomeStage(replica, static_cast<int>(stage), id, ReachFor(id, plan.members).value_or(""));
  }
  LogPlan(replica, plan.shortage);
}

void Membership::LogPlan(const Replica& replica, const std::string& shortage) {
  const Partition& partition = replica.partition;
  effects_.log.push_back(absl::StrCat("replica ", replica.index, ", generation ", replica.generation, ": ",
                                      replica.stages.size(), " stages, which begin at layers ",
                                      absl::StrJoin(partition.first_layers, ", "), partition.why.empty() ? "" : ": ",
                                      partition.why));
  if (!shortage.empty()) {
    const int wanted = options_.partition.max_sequences;
    effects_.log.push_back(
        absl::StrCat("replica ", replica.index, ": at most ", partition.max_sequences, " sequences run at once",
                     wanted > 0 ? absl::StrCat(", not the ", wanted, " of max_sequences") : "", ", with caches of ",
                     partition.cache_tokens, " tokens, until there are more workers: ", shortage));
  } else if (partition.cache_tokens < partition.cache_tokens_wanted) {
    effects_.log.push_back(
        absl::StrCat("replica ", replica.index, ": the caches hold ", partition.cache_tokens, " tokens, not the ",
                     partition.cache_tokens_wanted, " of max_sequences times max_model_len, for the memory of stage ",
                     partition.tightest_stage, " allows no more; requests wait until their worst-case memory fits"));
  }
}

void Membership::BecomeStage(Replica& replica, int index, uint64_t id, std::string reach) {
  const std::vector<int>& first_layers = replica.partition.first_layers;
  const int layers = model_->layers_size();
  const StageExtent extent =
      StageExtentAt(first_layers, index, layers, layers - static_cast<int>(model_->gold_layers()));
  Stage& stage = replica.stages[index];
  stage.worker = id;
  stage.first_layer = extent.first_layer;
  stage.last_layer = extent.last_layer;
  Worker& worker = *workers_.at(id);
  worker.replica = &replica;
  worker.stage = worker.old_stage = index;
  worker.old_replica = replica.index;
  replica.views.push_back({id, extent.reads_ids(), extent.is_last()});

  ToWorker message;
  cluster::v1::Form& form = *message.mutable_form();
  form.set_generation(replica.generation);
  form.set_stage(static_cast<uint32_t>(index));
  for (int first : first_layers) form.add_first_layers(first);
  form.set_max_sequences(replica.partition.max_sequences);
  form.set_max_sequence_tokens(replica.limits.max_sequence_tokens);
  form.set_cache_tokens(replica.partition.cache_tokens);
  form.set_max_step_tokens(static_cast<uint32_t>(replica.limits.max_step_tokens));
  form.set_max_logit_rows(static_cast<uint32_t>(replica.partition.max_logit_rows));
  form.set_memory_bytes(stage.share.memory_bytes);
  form.set_threads(stage.share.threads);
  if (!reach.empty()) {
    effects_.log.push_back(absl::StrCat("worker ", worker.registration.name(), " listens on its route to ", reach,
                                        ", as its peers on other hosts cannot reach ",
                                        SafeText(worker.registration.address(), kHashBytesMax)));
    form.set_reach(std::move(reach));
  }
  form.set_transport_key(secret_.Prove("transport", {absl::StrCat(replica.generation)}));
  if (extent.is_last()) {
    form.set_sampleable(sampleable_bits_);
    form.set_repeats_freely(repeats_freely_bits_);
  }
  Send(id, std::move(message));
}

void Membership::HandleJoined(Worker& worker, const cluster::v1::Joined& message, double now) {
  Replica* const replica = ReplicaOf(worker, message.generation());
  if (replica == nullptr || replica->state != Replica::State::kForming) return;
  Stage& stage = replica->stages[worker.stage];
  const auto end_generation = [&](const auto&... reason) {
    ++worker.failures;
    EndGeneration(*replica, absl::StrCat("worker ", worker.registration.name(), reason...), now + kRetrySeconds, now);
  };
  if (stage.joined) return end_generation(" sent Joined twice");
  if (message.addresses_size() != static_cast<int>(replica->stages.size())) {
    return end_generation(" sent Joined with ", message.addresses_size(), " addresses, there are ",
                          replica->stages.size(), " stages");
  }
  stage.joined = true;
  stage.addresses.assign(message.addresses().begin(), message.addresses().end());
  stage.weight_bytes = static_cast<int64_t>(message.weight_bytes());
  stage.reserved_bytes = static_cast<int64_t>(message.reserved_bytes());
  for (const cluster::v1::MemoryPart& part : message.memory()) {
    stage.memory.emplace_back(SafeText(part.name(), kClusterTextBytesMax), static_cast<int64_t>(part.bytes()));
  }
  absl::StatusOr<ShelfStage> shelf = ReadShelfStage(message, *model_, stage.first_layer, stage.last_layer);
  if (!shelf.ok()) return end_generation(" sent Joined: ", std::string(shelf.status().message()));
  stage.shelf = *std::move(shelf);
  stage.shelf.worker = stage.worker;
  stage.shelf.name = worker.registration.name();
  stage.numerics = SafeText(message.numerics());
  if (!std::all_of(replica->stages.begin(), replica->stages.end(), [](const Stage& s) { return s.joined; })) return;
  if (const absl::Status agree = ShelvesOf(*replica).status(); !agree.ok()) {
    return end_generation(" sent Joined: ", std::string(agree.message()));
  }
  for (size_t i = 0; i < replica->stages.size(); ++i) {
    ToWorker connect;
    connect.mutable_connect()->set_generation(replica->generation);
    for (const Stage& peer : replica->stages) connect.mutable_connect()->add_addresses(peer.addresses[i]);
    Send(replica->stages[i].worker, std::move(connect));
  }
  replica->message = "workers are connecting to each other";
}

void Membership::HandleReady(Worker& worker, const cluster::v1::Ready& message, double now) {
  Replica* const replica = ReplicaOf(worker, message.generation());
  if (replica == nullptr || replica->state != Replica::State::kForming) return;
  Stage& stage = replica->stages[worker.stage];
  stage.ready = stage.joined;
  if (!std::all_of(replica->stages.begin(), replica->stages.end(), [](const Stage& s) { return s.ready; })) return;
  replica->state = Replica::State::kReady;
  replica->since = now;
  replica->was_ready = true;
  for (const Stage& one : replica->stages) {
    workers_.at(one.worker)->was_ready = true;
    workers_.at(one.worker)->failures = 0;
  }
  replica->failures = 0;
  replica->replans = false;
  replica->ready_split = replica->partition.first_layers;
  replica->wants_links = HasUnmeasuredLinks(*replica);
  replica->message.clear();
  effects_.log.push_back(absl::StrCat("replica ", replica->index, ", generation ", replica->generation, " is ready"));
  effects_.events.push_back({MembershipEffects::Event::kGenerationReady, replica->index});
}

// A group does not become ready, as `reporter` says. Until all have Joined that is its own failure. Then one stage
// cannot reach another, and either may be why: a newcomer that is not ready, if there is one, else any that is not
// ready.
void Membership::Blame(const Replica& replica, Worker& reporter) {
  const auto joined = [](const Stage& stage) { return stage.joined; };
  if (!std::all_of(replica.stages.begin(), replica.stages.end(), joined)) {
    ++reporter.failures;
    return;
  }
  std::vector<Worker*> newcomers, others;
  for (const Stage& stage : replica.stages) {
    Worker& worker = *workers_.at(stage.worker);
    if (!stage.ready) (worker.was_ready ? others : newcomers).push_back(&worker);
  }
  for (Worker* const worker : newcomers.empty() ? others : newcomers) ++worker->failures;
}

// Workers that take too long are lost: those without Joined or, once all have sent it, those without Ready.
void Membership::CheckForming(Replica& replica, double now) {
  if (now - replica.since <= options_.form_timeout_seconds) return;
  std::vector<uint64_t> slow;
  const bool all_joined =
      std::all_of(replica.stages.begin(), replica.stages.end(), [](const Stage& stage) { return stage.joined; });
  for (const Stage& stage : replica.stages) {
    if (all_joined ? !stage.ready : !stage.joined) slow.push_back(stage.worker);
  }
  for (uint64_t id : slow) {
    WorkerLost(
        id, absl::StrCat("it did not become a stage within ", options_.form_timeout_seconds, " s (form timeout)"), now);
  }
}

}  // namespace goldfinch
