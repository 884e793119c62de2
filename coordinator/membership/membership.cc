#include "coordinator/membership/membership.h"

#include <algorithm>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "base/cache_page.h"
#include "base/check.h"
#include "base/safe_text.h"
#include "coordinator/membership/membership_state.h"
#include "coordinator/membership/worker_messages.h"
#include "coordinator/planner/model_description.h"
#include "protos/cluster_protocol.h"

namespace goldfinch {

using cluster::v1::FromWorker;
using cluster::v1::ToWorker;

namespace {

constexpr double kFormRetrySecondsMax = 5;
constexpr size_t kReasonBytesMax = 2 * kClusterTextBytesMax;

// For logs, clients and other workers.
std::string Safe(const std::string& text) { return SafeText(text, kClusterTextBytesMax); }

// Lowers the times to what can have passed since the group became ready, less what the stage has counted already: one
// worker's claim must not drown the sums of all others.
void LowerTimes(double passed_seconds, cluster::v1::StepDone* message) {
  double left = std::max(passed_seconds, 0.0);
  const auto lowered = [&left](double seconds) {
    seconds = std::min(seconds, left);
    left -= seconds;
    return seconds;
  };
  message->set_busy_seconds(lowered(message->busy_seconds()));
  message->set_bubble_seconds(lowered(message->bubble_seconds()));
  message->set_idle_seconds(lowered(message->idle_seconds()));
}

}  // namespace

Membership::Membership(MembershipOptions options) : options_(std::move(options)), secret_(options_.secret) {
  if (options_.description) {
    model_ = std::make_unique<cluster::v1::Described>(*options_.description);
    effects_.events.push_back({MembershipEffects::Event::kModelKnown});
  }
  for (int i = 0; i < options_.replicas; ++i) {
    replicas_.push_back(std::make_unique<Replica>());
    replicas_.back()->index = i;
  }
}

Membership::~Membership() = default;

// ---- Workers ----

void Membership::Send(uint64_t worker, ToWorker message) { effects_.sends.emplace_back(worker, std::move(message)); }

void Membership::Connected(uint64_t id, const std::string& address, double now) {
  auto worker = std::make_unique<Worker>();
  worker->address = address;
  worker->last_heard = now;
  workers_.emplace(id, std::move(worker));
  if (workers() > options_.workers_max) {
    Refuse(id, absl::StrCat("the cluster has ", options_.workers_max, " workers already, which is the limit"), now);
  }
}

void Membership::Disconnected(uint64_t id, double now) { WorkerLost(id, "its connection ended", now); }

void Membership::Refuse(uint64_t id, const std::string& reason, double now) {
  const std::string safe = SafeText(reason, kReasonBytesMax);
  ToWorker message;
  message.set_refused(safe);
  Send(id, std::move(message));
  WorkerLost(id, absl::StrCat("refused: ", safe), now);
}

void Membership::WorkerLost(uint64_t id, const std::string& reason, double now) {
  const auto found = workers_.find(id);
  if (found == workers_.end()) return;
  const std::unique_ptr<Worker> worker = std::move(found->second);
  workers_.erase(found);
  ForgetLinks(id);
  effects_.closes.push_back(id);
  const std::string name = worker->registered ? worker->registration.name() : worker->address;
  effects_.log.push_back(absl::StrCat("lost worker ", name, ": ", reason));
  if (worker->replica != nullptr) {
    EndGeneration(*worker->replica, absl::StrCat("lost worker ", name, ": ", reason), now, now);
    FormGroups(now);
  }
  // A model that was never served may have been a mistake: the next worker may bring another one.
  if (options_.description) return;
  const bool known =
      std::any_of(workers_.begin(), workers_.end(), [](const auto& one) { return one.second->described; });
  if (last_generation_ == 0 && !known) model_ = nullptr;
}

// The worker that a message came from; null if it is gone or must be refused.
Membership::Worker* Membership::Heard(uint64_t id, bool registers, double now) {
  const auto found = workers_.find(id);
  if (found == workers_.end()) return nullptr;
  Worker& worker = *found->second;
  worker.last_heard = now;
  if (worker.registered || registers) return &worker;
  Refuse(id, "the first message must be Register", now);
  return nullptr;
}

void Membership::Received(uint64_t id, FromWorker message, double now) {
  GF_CHECK(!message.has_step_done()) << "StepDone goes to ReceivedStepDone";
  Worker* const worker = Heard(id, message.has_register_(), now);
  if (worker == nullptr) return;
  // What a worker of another version says may mean something else.
  if (message.has_register_() && message.register_().protocol() != kClusterProtocol) {
    return Refuse(id,
                  absl::StrCat("it speaks version ", message.register_().protocol(),
                               " of the protocol, the coordinator version ", kClusterProtocol),
                  now);
  }
  if (const absl::Status status = CheckWorkerMessage(message); !status.ok()) {
    return Refuse(id, absl::StrCat("its message is not valid: ", std::string(status.message())), now);
  }
  switch (message.message_case()) {
    case FromWorker::kRegister:
      return HandleRegister(id, *worker, message.register_(), now);
    case FromWorker::kDescribed:
      return HandleDescribed(id, *worker, std::move(*message.mutable_described()), now);
    case FromWorker::kJoined:
      return HandleJoined(*worker, message.joined(), now);
    case FromWorker::kReady:
      return HandleReady(*worker, message.ready(), now);
    case FromWorker::kEndGeneration:
      return HandleEndGeneration(*worker, message.end_generation(), now);
    case FromWorker::kLinksMeasured:
      return HandleLinksMeasured(*worker, message.links_measured(), now);
    case FromWorker::kLeaving:
      return WorkerLost(id, "it leaves", now);
    case FromWorker::kPong:
      return HandlePong(*worker, message.pong(), now);
    case FromWorker::kStepDone:
    case FromWorker::MESSAGE_NOT_SET:  // CheckWorkerMessage refuses it
      return;
  }
}

void Membership::HandleRegister(uint64_t id, Worker& worker, const cluster::v1::Register& message, double now) {
  if (worker.registered) return Refuse(id, "it registered twice", now);
  ForgetOldConnection(id, message, now);
  if (!CheckGpu(id, message, now)) return;
  worker.registration = message;
  worker.registration.set_name(SafeText(message.name(), kWorkerNameBytesMax));
  worker.registration.set_device(SafeText(message.device(), kWorkerDeviceBytesMax));
  worker.registered = true;
  effects_.log.push_back(
      absl::StrCat("worker ", worker.registration.name(), " at ", worker.address, ": ", worker.registration.device()));
  ToWorker welcome;
  welcome.mutable_welcome()->set_model(options_.model);
  welcome.mutable_welcome()->set_config(options_.config);
  welcome.mutable_welcome()->set_verify(options_.verify);
  welcome.mutable_welcome()->set_cache_dtype(options_.cache_dtype);
  welcome.mutable_welcome()->set_heartbeat_timeout_seconds(options_.heartbeat_timeout_seconds);
  if (options_.contexts && message.shelf_bytes() > 0) {
    welcome.mutable_welcome()->set_contexts_token(secret_.Prove("contexts", {absl::StrCat(id)}));
  }
  Send(id, std::move(welcome));
}

void Membership::HandleDescribed(uint64_t id, Worker& worker, cluster::v1::Described message, double now) {
  if (worker.described) return Refuse(id, "it described the model twice", now);
  if (!message.error().empty()) return Refuse(id, message.error(), now);
  if (const absl::Status status = CheckModel(message); !status.ok()) {
    return Refuse(id, absl::StrCat("it has another model: ", std::string(status.message())), now);
  }
  worker.described = true;
  worker.memory = ReadModelMemory(message);
  if (model_ == nullptr) {
    model_ = std::make_unique<cluster::v1::Described>(std::move(message));
    has_vocabulary_ = false;  // it may have been that of another model
    effects_.events.push_back({MembershipEffects::Event::kModelKnown});
  }
  FormGroups(now);
}

absl::Status Membership::CheckModel(const cluster::v1::Described& message) const {
  if (model_ != nullptr) return CheckSameModel(*model_, message);
  if (options_.fingerprint.empty() || message.fingerprint() == options_.fingerprint) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("its fingerprint is ", message.fingerprint(), ", model_fingerprint is ", options_.fingerprint));
}

void Membership::RejectModel(const std::string& reason, double now) {
  std::vector<uint64_t> described;
  for (const auto& [id, worker] : workers_) {
    if (worker->described) described.push_back(id);
  }
  for (const uint64_t id : described) Refuse(id, reason, now);
  if (!options_.description) model_ = nullptr;
}

void Membership::HandlePong(Worker& worker, const cluster::v1::Pong& message, double now) {
  if (worker.progress && *worker.progress != message.progress() && worker.replica != nullptr) {
    worker.replica->last_progress = now;
  }
  worker.progress = message.progress();
}

std::optional<StageOfWorker> Membership::ReceivedStepDone(uint64_t id, cluster::v1::StepDone* message, double now) {
  const Worker* const worker = Heard(id, /*registers=*/false, now);
  if (worker == nullptr) return std::nullopt;
  Replica* const replica = ReplicaOf(*worker, message->generation());
  if (replica == nullptr || replica->state != Replica::State::kReady) return std::nullopt;
  if (const absl::Status status = CheckStepDone(*message, model_->vocab_size()); !status.ok()) {
    Refuse(id, absl::StrCat("its answer to a step is not valid: ", std::string(status.message())), now);
    return std::nullopt;
  }
  const int64_t tokens_max =
      CachePagesToReserve(replica->partition.cache_tokens, replica->partition.max_sequences) * kCachePageTokens;
  if (static_cast<int64_t>(message->cache_tokens()) > tokens_max) {
    Refuse(id,
           absl::StrCat("its caches have room for ", message->cache_tokens(), " tokens, ", tokens_max, " are planned"),
           now);
    return std::nullopt;
  }
  Stage& stage = replica->stages[worker->stage];
  LowerTimes(now - replica->since - stage.busy_seconds - stage.bubble_seconds - stage.idle_seconds, message);
  stage.busy_seconds += message->busy_seconds();
  stage.bubble_seconds += message->bubble_seconds();
  stage.idle_seconds += message->idle_seconds();
  stage.hidden_bytes += message->hidden_bytes();
  stage.compressed_bytes += message->compressed_bytes();
  stage.id_bytes += message->id_bytes();
  stage.cache_bytes = static_cast<int64_t>(message->cache_bytes());
  stage.cache_tokens = static_cast<int64_t>(message->cache_tokens());
  stage.gold_kept_bytes = static_cast<int64_t>(message->gold_kept_bytes());
  stage.gold_tier_drops = static_cast<int64_t>(message->gold_tier_drops());
  if (replica->views[worker->stage].is_last) ++replica->steps;
  return StageOfWorker{replica->index, worker->stage};
}

// ---- The end of a generation ----

void Membership::HandleEndGeneration(Worker& worker, const cluster::v1::EndGeneration& message, double now) {
  Replica* const replica = ReplicaOf(worker, message.generation());
  if (replica == nullptr) return;
  if (replica->state == Replica::State::kForming) Blame(*replica, worker);
  EndGeneration(*replica, absl::StrCat("worker ", worker.registration.name(), ": ", Safe(message.reason())),
                now + kRetrySeconds, now);
}

// The replica that the worker is a stage of, if its present generation is this one; else null.
Membership::Replica* Membership::ReplicaOf(const Worker& worker, uint64_t generation) {
  return worker.replica != nullptr && worker.replica->generation == generation ? worker.replica : nullptr;
}

void Membership::EndGeneration(int replica, const std::string& reason, double now) {
  Replica& found = *replicas_[replica];
  if (found.state != Replica::State::kWaiting) EndGeneration(found, reason, now + kRetrySeconds, now);
}

// The replica does not form again before `retry_at`.
void Membership::EndGeneration(Replica& replica, const std::string& reason, double retry_at, double now) {
  GF_CHECK(replica.state != Replica::State::kWaiting);
  for (const Stage& stage : replica.stages) {
    const auto found = workers_.find(stage.worker);
    if (found == workers_.end()) continue;
    found->second->replica = nullptr;
    ToWorker message;
    message.mutable_end_generation()->set_generation(replica.generation);
    Send(stage.worker, std::move(message));
  }
  effects_.log.push_back(
      absl::StrCat("replica ", replica.index, ", generation ", replica.generation, " ended: ", reason));
  if (replica.state == Replica::State::kReady) {
    effects_.events.push_back({MembershipEffects::Event::kGenerationEnded, replica.index, reason});
  } else {
    // Whatever kept it from becoming ready may last, and may be the new split.
    if (std::exchange(replica.replans, false)) replica.traffic = replica.traffic_before;
    ++replica.failures;
    const double wait_seconds = std::min(kRetrySeconds * (1 << std::min(replica.failures, 10)), kFormRetrySecondsMax);
    retry_at = std::max(retry_at, now + wait_seconds);
  }
  replica.state = Replica::State::kWaiting;
  replica.since = now;
  replica.retry_at = retry_at;
  replica.may_grow_since = replica.drains_since = replica.better_since = -1;
  replica.advice.reset();
  replica.message = reason;
  replica.stages.clear();
  replica.views.clear();
}

// ---- Time ----

void Membership::Tick(double now, const std::vector<bool>& idle) {
  FindSilentWorkers(now);
  SendPings(now);
  for (const auto& replica : replicas_) {
    if (replica->state == Replica::State::kForming) CheckForming(*replica, now);
    if (replica->state != Replica::State::kReady) continue;
    MeasureLinks(*replica, idle[replica->index], now);
    Grow(*replica, idle[replica->index], now);
  }
  FormGroups(now);
}

void Membership::FindSilentWorkers(double now) {
  // After a pause of the coordinator itself, silence proves nothing.
  const bool was_paused = last_tick_ >= 0 && now - last_tick_ > options_.heartbeat_timeout_seconds / 2;
  last_tick_ = now;
  std::vector<uint64_t> silent;
  for (const auto& [id, worker] : workers_) {
    if (was_paused) worker->last_heard = now;
    if (now - worker->last_heard > options_.heartbeat_timeout_seconds) silent.push_back(id);
  }
  for (uint64_t id : silent) {
    WorkerLost(id, absl::StrCat("it sent nothing for ", options_.heartbeat_timeout_seconds, " s (heartbeat timeout)"),
               now);
  }
}

void Membership::SendPings(double now) {
  if (now - last_ping_ < options_.heartbeat_interval_seconds) return;
  last_ping_ = now;
  ++last_ping_number_;
  for (const auto& [id, worker] : workers_) {
    if (!worker->registered) continue;
    ToWorker ping;
    ping.mutable_ping()->set_number(last_ping_number_);
    Send(id, std::move(ping));
  }
}

}  // namespace goldfinch
