// Membership: how a group forms, and which workers become its stages.
#include <algorithm>
#include <tuple>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/safe_text.h"
#include "coordinator/membership.h"
#include "coordinator/membership_state.h"
#include "coordinator/worker_messages.h"
#include "protos/cluster_protocol.h"

namespace goldfinch {

using cluster::v1::ToWorker;

namespace {

constexpr double kPartitionRetrySeconds = 1;

}  // namespace

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

void Membership::FormGroups(double now) {
  if (model_ == nullptr || !has_vocabulary_) return;
  const size_t wanted = std::min(options_.stages, model_->layers_size());
  for (const auto& replica : replicas_) {
    if (replica->state != Replica::State::kWaiting || now < replica->retry_at) continue;
    const std::vector<uint64_t> spares = Spares();
    const bool enough = spares.size() >= wanted;
    const bool take_fewer = replica->was_ready && now >= replica->since + options_.regroup_wait_seconds;
    if (!enough && (!take_fewer || spares.empty())) {
      replica->message = absl::StrCat("waiting for workers: ", spares.size(), " of ", wanted);
      continue;
    }
    // If these cannot hold the model and the replica has been ready before, the largest of them may.
    std::vector<uint64_t> members = AssignStages(*replica, spares, wanted);
    while (!Form(*replica, members, now) && take_fewer && members.size() > 1) {
      members.erase(std::min_element(members.begin(), members.end(), [this](uint64_t a, uint64_t b) {
        return workers_.at(a)->registration.memory_bytes() < workers_.at(b)->registration.memory_bytes();
      }));
    }
  }
}

// An idle group that is smaller than wanted ends when there are workers for all stages; then a larger one forms.
void Membership::Grow(Replica& replica, double now) {
  const size_t wanted = std::min(options_.stages, model_->layers_size());
  std::vector<uint64_t> members = Spares();
  if (replica.stages.size() >= wanted || replica.stages.size() + members.size() < wanted) return;
  for (const Stage& stage : replica.stages) members.push_back(stage.worker);
  std::rotate(members.begin(), members.end() - static_cast<int64_t>(replica.stages.size()), members.end());
  members.resize(wanted);
  if (!PartitionFor(replica, members).ok()) return;
  EndGeneration(replica, "there are workers for all stages again", now, now);
}

absl::StatusOr<Partition> Membership::PartitionFor(const Replica& replica, const std::vector<uint64_t>& members) const {
  std::vector<WorkerResources> resources;
  const std::string& transport = workers_.at(members[0])->registration.transport();
  for (uint64_t id : members) {
    const cluster::v1::Register& registration = workers_.at(id)->registration;
    resources.push_back({static_cast<int64_t>(registration.memory_bytes()), registration.flops(),
                         registration.read_bytes_per_second(), &workers_.at(id)->memory});
    if (registration.transport() != transport) {
      return absl::InvalidArgumentError(absl::StrCat("workers with the transports ", transport, " and ",
                                                     registration.transport(), " cannot form a group"));
    }
  }
  PartitionOptions options = options_.partition;
  // A split that was given counts as long as there are workers for it.
  if (options.split.size() != members.size() && replica.was_ready) options.split.clear();
  return PartitionLayers(*model_, resources, options);
}

// ---- Form, Joined, Connect, Ready ----

// False, and nothing happens, if these workers cannot hold the model.
bool Membership::Form(Replica& replica, const std::vector<uint64_t>& members, double now) {
  absl::StatusOr<Partition> partition = PartitionFor(replica, members);
  if (!partition.ok()) {
    const std::string reason(partition.status().message());
    if (replica.message != reason) {
      effects_.log.push_back(absl::StrCat("replica ", replica.index, " cannot form a group: ", reason));
    }
    replica.message = reason;
    replica.retry_at = now + kPartitionRetrySeconds;
    return false;
  }
  replica.partition = *std::move(partition);
  replica.generation = ++last_generation_;
  replica.state = Replica::State::kForming;
  replica.since = now;
  replica.steps = 0;
  replica.message = "workers are loading their layers";
  replica.stages.assign(members.size(), {});
  replica.views.clear();
  for (size_t stage = 0; stage < members.size(); ++stage) BecomeStage(replica, static_cast<int>(stage), members[stage]);
  effects_.log.push_back(absl::StrCat("replica ", replica.index, ", generation ", replica.generation, ": ",
                                      members.size(), " stages, which begin at layers ",
                                      absl::StrJoin(replica.partition.first_layers, ", ")));
  if (replica.partition.cache_tokens < replica.partition.cache_tokens_wanted) {
    effects_.log.push_back(absl::StrCat(
        "replica ", replica.index, ": the caches hold ", replica.partition.cache_tokens, " tokens, not the ",
        replica.partition.cache_tokens_wanted, " of max_sequences times max_model_len, for the memory of stage ",
        replica.partition.tightest_stage, " allows no more; requests wait until their worst-case memory fits"));
  }
  return true;
}

void Membership::BecomeStage(Replica& replica, int index, uint64_t id) {
  const std::vector<int>& first_layers = replica.partition.first_layers;
  const int layers = model_->layers_size();
  const int finch_layers = layers - static_cast<int>(model_->gold_layers());
  const bool is_last = index + 1 == static_cast<int>(first_layers.size());
  Stage& stage = replica.stages[index];
  stage.worker = id;
  stage.first_layer = first_layers[index];
  stage.last_layer = is_last ? layers : first_layers[index + 1];
  Worker& worker = *workers_.at(id);
  worker.replica = &replica;
  worker.stage = worker.old_stage = index;
  worker.old_replica = replica.index;
  const bool has_gold = model_->gold_layers() > 0 && stage.last_layer > finch_layers;
  replica.views.push_back({id, index == 0 || has_gold, is_last});

  ToWorker message;
  cluster::v1::Form& form = *message.mutable_form();
  form.set_generation(replica.generation);
  form.set_stage(static_cast<uint32_t>(index));
  for (int first : first_layers) form.add_first_layers(first);
  form.set_max_sequences(replica.partition.max_sequences);
  form.set_max_sequence_tokens(options_.partition.max_sequence_tokens);
  form.set_cache_tokens(replica.partition.cache_tokens);
  form.set_max_step_tokens(static_cast<uint32_t>(options_.partition.max_step_tokens));
  form.set_max_logit_rows(static_cast<uint32_t>(replica.partition.max_logit_rows));
  form.set_transport_key(secret_.Prove("transport", {absl::StrCat(replica.generation)}));
  if (is_last) {
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
  if (!std::all_of(replica->stages.begin(), replica->stages.end(), [](const Stage& s) { return s.joined; })) return;
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
  for (const Stage& one : replica->stages) workers_.at(one.worker)->failures = 0;
  replica->failures = 0;
  replica->message.clear();
  effects_.log.push_back(absl::StrCat("replica ", replica->index, ", generation ", replica->generation, " is ready"));
  effects_.events.push_back({MembershipEffects::Event::kGenerationReady, replica->index});
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
