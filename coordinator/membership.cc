#include "coordinator/membership.h"

#include <algorithm>
#include <initializer_list>
#include <tuple>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/check.h"
#include "protos/generate.pb.h"

namespace goldfinch {

using cluster::v1::FromWorker;
using cluster::v1::ToWorker;

namespace {

constexpr uint32_t kProtocol = 2;
constexpr double kFailedRetrySeconds = 0.05;  // the loss that caused it may be about to be noticed
constexpr double kFormRetrySecondsMax = 5;
constexpr size_t kNameBytesMax = 256;
constexpr int kLayersMax = 1024;  // far above any model; bounds the planner's work

constexpr uint64_t kBytesMax = uint64_t{1} << 44;
constexpr uint64_t kBytesEachMax = kBytesMax >> 16;  // of a sequence, a token or a row

bool AllAtMost(uint64_t limit, std::initializer_list<uint64_t> values) {
  return std::all_of(values.begin(), values.end(), [limit](uint64_t value) { return value <= limit; });
}

bool MakesSense(const cluster::v1::ModelMemory& memory) {
  return AllAtMost(kBytesMax, {memory.embedding_bytes(), memory.gold_shared_bytes(), memory.key_table_bytes(),
                               memory.head_bytes(), memory.back_end_bytes()}) &&
         AllAtMost(kBytesEachMax, {memory.compressed_row_bytes(), memory.back_end_bytes_per_row(),
                                   memory.back_end_bytes_per_logit_row()}) &&
         std::all_of(memory.layers().begin(), memory.layers().end(), [](const cluster::v1::LayerMemory& layer) {
           return AllAtMost(kBytesMax, {layer.weight_bytes(), layer.table_bytes()}) &&
                  AllAtMost(kBytesEachMax, {layer.shift_bytes(), layer.wkv_bytes(), layer.cache_bytes_per_token(),
                                            layer.activation_bytes()});
         });
}

// Bounds all sums that are made of it, and the planner's work.
bool MakesSense(const cluster::v1::Described& model) {
  if (model.layers_size() == 0 || model.layers_size() > kLayersMax) return false;
  if (model.vocab_size() == 0 || !AllAtMost(1 << 24, {model.vocab_size(), model.width(), model.compressed_width()})) {
    return false;
  }
  if (model.gold_layers() > static_cast<uint32_t>(model.layers_size())) return false;
  if (model.memory().layers_size() != model.layers_size() || !MakesSense(model.memory())) return false;
  return AllAtMost(kBytesMax, {model.embedding_bytes(), model.head_bytes(), model.gold_shared_bytes(),
                               model.transformer_cache_bytes_per_token()}) &&
         AllAtMost(kBytesEachMax, {model.compressed_bytes_per_token()}) &&
         std::all_of(model.layers().begin(), model.layers().end(), [](const cluster::v1::LayerDescription& layer) {
           return AllAtMost(kBytesMax, {layer.weight_bytes(), layer.cache_bytes_per_token()}) &&
                  AllAtMost(kBytesEachMax, {layer.state_bytes()}) && layer.prefill_flops() >= 0 &&
                  layer.decode_bytes() >= 0;
         });
}

}  // namespace

struct Membership::Worker {
  std::string address;
  cluster::v1::Register about;
  ModelMemory memory;  // the model as it keeps it, once described
  bool registered = false;
  bool described = false;
  Group* group = nullptr;
  int rank = 0;
  // Where it last was.
  int old_group = -1;
  int old_rank = 0;
  int failures = 0;  // to become a stage, since it last was one
  double last_heard = 0;

  bool spare() const { return described && group == nullptr; }
};

struct Membership::Stage {
  uint64_t worker = 0;
  int first_layer = 0;
  int last_layer = 0;
  std::vector<std::string> addresses;  // [stages], of Joined
  bool joined = false;
  bool ready = false;
  int64_t weight_bytes = 0;
  int64_t reserved_bytes = 0;
  int64_t cache_bytes = 0, cache_tokens = 0;
  int64_t gold_kept_bytes = 0;
  int64_t gold_tier_drops = 0;
  std::vector<std::pair<std::string, int64_t>> memory;  // by use, of Joined
  double busy_seconds = 0, bubble_seconds = 0, idle_seconds = 0;
  int64_t hidden_bytes = 0, compressed_bytes = 0, id_bytes = 0;
};

struct Membership::Group {
  enum class State { kWaiting, kForming, kReady };

  int index = 0;
  State state = State::kWaiting;
  uint64_t generation = 0;
  std::vector<Stage> stages;
  std::vector<StageView> views;
  Partition plan;
  uint64_t steps = 0;
  double since = 0;     // of the state
  double retry_at = 0;  // waiting: not before
  bool formed = false;  // has been ready once
  int failures = 0;     // to form, in a row
  std::string message = "waits for workers";
};

Membership::Membership(MembershipOptions options) : options_(std::move(options)) {
  for (int i = 0; i < options_.replicas; ++i) {
    groups_.push_back(std::make_unique<Group>());
    groups_.back()->index = i;
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
}

void Membership::Disconnected(uint64_t id, double now) { Lose(id, "its connection ended", now); }

void Membership::Refuse(uint64_t id, const std::string& why, double now) {
  ToWorker message;
  message.set_refused(why);
  Send(id, std::move(message));
  Lose(id, absl::StrCat("refused: ", why), now);
}

void Membership::Lose(uint64_t id, const std::string& why, double now) {
  const auto found = workers_.find(id);
  if (found == workers_.end()) return;
  const std::unique_ptr<Worker> worker = std::move(found->second);
  workers_.erase(found);
  effects_.closes.push_back(id);
  const std::string name = worker->registered ? worker->about.name() : worker->address;
  effects_.log.push_back(absl::StrCat("worker ", name, " is gone: ", why));
  if (worker->group != nullptr) {
    Dissolve(*worker->group, absl::StrCat("worker ", name, ": ", why), now, now);
    FormGroups(now);
  }
  // A model that was never served may have been a mistake.
  const bool known =
      std::any_of(workers_.begin(), workers_.end(), [](const auto& one) { return one.second->described; });
  if (last_generation_ == 0 && !known) model_ = nullptr;
}

void Membership::Received(uint64_t id, FromWorker message, double now) {
  const auto found = workers_.find(id);
  if (found == workers_.end()) return;  // closed, and its last words
  Worker& worker = *found->second;
  worker.last_heard = now;
  if (!worker.registered && !message.has_register_()) return Refuse(id, "the first message must be Register", now);
  switch (message.message_case()) {
    case FromWorker::kRegister:
      return HandleRegister(id, worker, message.register_(), now);
    case FromWorker::kDescribed:
      return HandleDescribed(id, worker, std::move(*message.mutable_described()), now);
    case FromWorker::kJoined:
      return HandleJoined(worker, message.joined(), now);
    case FromWorker::kReady:
      return HandleReady(worker, message.ready(), now);
    case FromWorker::kStepDone:
      return HandleStepDone(worker, std::move(*message.mutable_step_done()));
    case FromWorker::kEndGeneration:
      if (Group* group = GroupOf(worker, message.end_generation().generation())) {
        if (group->state == Group::State::kForming) ++worker.failures;
        Dissolve(*group, absl::StrCat("worker ", worker.about.name(), ": ", message.end_generation().reason()),
                 now + kFailedRetrySeconds, now);
      }
      return;
    case FromWorker::kLeaving:
      return Lose(id, "it leaves", now);
    case FromWorker::kPong:
      return;
    case FromWorker::MESSAGE_NOT_SET:
      return Refuse(id, "an empty or unknown message", now);
  }
}

void Membership::HandleRegister(uint64_t id, Worker& worker, const cluster::v1::Register& message, double now) {
  if (worker.registered) return Refuse(id, "registered twice", now);
  if (message.protocol() != kProtocol) {
    return Refuse(id, absl::StrCat("it speaks protocol ", message.protocol(), ", the coordinator ", kProtocol), now);
  }
  if (message.name().size() > kNameBytesMax) {
    return Refuse(id, absl::StrCat("its name has ", message.name().size(), " bytes, the limit is ", kNameBytesMax),
                  now);
  }
  if (!(message.flops() > 0) || !(message.read_bytes_per_second() > 0)) {
    return Refuse(id, "its measured speed is not positive", now);
  }
  worker.about = message;
  worker.registered = true;
  effects_.log.push_back(absl::StrCat("worker ", message.name(), " at ", worker.address, ": ", message.device()));
  ToWorker welcome;
  welcome.mutable_welcome()->set_model(options_.model);
  welcome.mutable_welcome()->set_config(options_.config);
  welcome.mutable_welcome()->set_verify(options_.verify);
  welcome.mutable_welcome()->set_cache_dtype(options_.cache_dtype);
  welcome.mutable_welcome()->set_heartbeat_timeout_seconds(options_.heartbeat_timeout_seconds);
  Send(id, std::move(welcome));
}

void Membership::HandleDescribed(uint64_t id, Worker& worker, cluster::v1::Described message, double now) {
  if (worker.described) return Refuse(id, "described the model twice", now);
  if (!message.error().empty()) return Refuse(id, message.error(), now);
  if (!MakesSense(message)) return Refuse(id, "its description of the model makes no sense", now);
  worker.described = true;
  worker.memory = ReadModelMemory(message);
  if (model_ == nullptr) {
    model_ = std::make_unique<cluster::v1::Described>(std::move(message));
    effects_.events.push_back({MembershipEffects::Event::kModelKnown});
  } else if (message.fingerprint() != model_->fingerprint()) {
    return Refuse(id,
                  absl::StrCat("its model has the fingerprint ", message.fingerprint(), ", the cluster's is ",
                               model_->fingerprint()),
                  now);
  }
  FormGroups(now);
}

Membership::Group* Membership::GroupOf(const Worker& worker, uint64_t generation) {
  return worker.group != nullptr && worker.group->generation == generation ? worker.group : nullptr;
}

// ---- Forming ----

void Membership::SetVocabulary(std::string sampleable_bits, std::string repeats_freely_bits, double now) {
  sampleable_bits_ = std::move(sampleable_bits);
  repeats_freely_bits_ = std::move(repeats_freely_bits);
  has_vocabulary_ = true;
  FormGroups(now);
}

std::vector<uint64_t> Membership::Spares() const {
  std::vector<uint64_t> spares;
  for (const auto& [id, worker] : workers_) {
    if (worker->spare()) spares.push_back(id);
  }
  // Those that fail come last: they may never be able to.
  std::stable_sort(spares.begin(), spares.end(), [this](uint64_t a, uint64_t b) {
    const Worker &first = *workers_.at(a), &second = *workers_.at(b);
    return std::tie(first.failures, first.about.name()) < std::tie(second.failures, second.about.name());
  });
  return spares;
}

// Who takes which rank: those that were there before keep theirs.
std::vector<uint64_t> Membership::Seat(const Group& group, std::vector<uint64_t> spares, size_t stages) const {
  constexpr uint64_t kNobody = 0;
  const auto was_here = [&](uint64_t id) {
    return workers_.at(id)->old_group == group.index && workers_.at(id)->failures == 0;
  };
  std::stable_partition(spares.begin(), spares.end(), was_here);
  spares.resize(std::min(spares.size(), stages));
  std::vector<uint64_t> seats(spares.size(), kNobody), others;
  for (uint64_t id : spares) {
    const auto rank = static_cast<size_t>(workers_.at(id)->old_rank);
    if (was_here(id) && rank < seats.size() && seats[rank] == kNobody) {
      seats[rank] = id;
    } else {
      others.push_back(id);
    }
  }
  auto next = others.begin();
  for (uint64_t& seat : seats) {
    if (seat == kNobody) seat = *next++;
  }
  return seats;
}

void Membership::FormGroups(double now) {
  if (model_ == nullptr || !has_vocabulary_) return;
  const size_t wanted = std::min(options_.stages, model_->layers_size());
  for (const auto& group : groups_) {
    if (group->state != Group::State::kWaiting || now < group->retry_at) continue;
    const std::vector<uint64_t> spares = Spares();
    const bool enough = spares.size() >= wanted;
    const bool take_what_is_there = group->formed && now >= group->since + options_.regroup_wait_seconds;
    if (!enough && (!take_what_is_there || spares.empty())) {
      group->message = absl::StrCat("waits for workers: ", spares.size(), " of ", wanted);
      continue;
    }
    // With fewer, if these cannot hold the model and a group has been there before: the largest of them.
    std::vector<uint64_t> members = Seat(*group, spares, wanted);
    while (!Form(*group, members, now) && take_what_is_there && members.size() > 1) {
      members.erase(std::min_element(members.begin(), members.end(), [this](uint64_t a, uint64_t b) {
        return workers_.at(a)->about.memory_bytes() < workers_.at(b)->about.memory_bytes();
      }));
    }
  }
}

absl::StatusOr<Partition> Membership::PlanFor(const Group& group, const std::vector<uint64_t>& members) const {
  std::vector<WorkerResources> resources;
  const std::string& transport = workers_.at(members[0])->about.transport();
  for (uint64_t id : members) {
    const cluster::v1::Register& about = workers_.at(id)->about;
    resources.push_back({static_cast<int64_t>(about.memory_bytes()), about.flops(), about.read_bytes_per_second(),
                         &workers_.at(id)->memory});
    if (about.transport() != transport) {
      return absl::InvalidArgumentError(
          absl::StrCat("workers of the transports ", about.transport(), " and ", transport, " cannot form a group"));
    }
  }
  PartitionOptions plan_options = options_.plan;
  if (plan_options.split.size() != members.size() && group.formed) plan_options.split.clear();
  return PartitionLayers(*model_, resources, plan_options);
}

// False if these cannot hold the model.
bool Membership::Form(Group& group, const std::vector<uint64_t>& members, double now) {
  absl::StatusOr<Partition> plan = PlanFor(group, members);
  if (!plan.ok()) {
    const std::string why(plan.status().message());
    if (group.message != why) effects_.log.push_back(absl::StrCat("group ", group.index, " cannot form: ", why));
    group.message = why;
    group.retry_at = now + 1;
    return false;
  }
  group.plan = *std::move(plan);
  group.generation = ++last_generation_;
  group.state = Group::State::kForming;
  group.since = now;
  group.steps = 0;
  group.message = "workers load their layers";
  group.stages.assign(members.size(), {});
  group.views.clear();
  const int layers = model_->layers_size(), finch = layers - static_cast<int>(model_->gold_layers());
  for (size_t rank = 0; rank < members.size(); ++rank) {
    Stage& stage = group.stages[rank];
    stage.worker = members[rank];
    stage.first_layer = group.plan.first_layers[rank];
    stage.last_layer = rank + 1 < members.size() ? group.plan.first_layers[rank + 1] : layers;
    Worker& worker = *workers_.at(members[rank]);
    worker.group = &group;
    worker.rank = worker.old_rank = static_cast<int>(rank);
    worker.old_group = group.index;
    const bool is_last = rank + 1 == members.size();
    const bool has_gold = model_->gold_layers() > 0 && stage.last_layer > finch;
    group.views.push_back({members[rank], rank == 0 || has_gold, is_last});

    ToWorker message;
    cluster::v1::Form& form = *message.mutable_form();
    form.set_generation(group.generation);
    form.set_stage(static_cast<uint32_t>(rank));
    for (int first : group.plan.first_layers) form.add_first_layers(first);
    form.set_max_sequences(options_.plan.max_sequences);
    form.set_max_sequence_tokens(options_.plan.max_sequence_tokens);
    form.set_cache_tokens(group.plan.cache_tokens);
    form.set_max_step_tokens(static_cast<uint32_t>(options_.plan.max_step_tokens));
    form.set_max_logit_rows(static_cast<uint32_t>(options_.plan.max_logit_rows));
    if (is_last) {
      form.set_sampleable(sampleable_bits_);
      form.set_repeats_freely(repeats_freely_bits_);
    }
    Send(members[rank], std::move(message));
  }
  effects_.log.push_back(absl::StrCat("group ", group.index, ", generation ", group.generation, ": ", members.size(),
                                      " stages from layers ", absl::StrJoin(group.plan.first_layers, ", ")));
  if (group.plan.cache_tokens < group.plan.cache_tokens_wanted) {
    effects_.log.push_back(absl::StrCat("group ", group.index, ": caches hold ", group.plan.cache_tokens,
                                        " tokens, not the ", group.plan.cache_tokens_wanted,
                                        " of --max-num-seqs times --max-model-len: the memory of stage ",
                                        group.plan.tightest_stage, " allows no more; requests wait for room"));
  }
  return true;
}

void Membership::HandleJoined(Worker& worker, const cluster::v1::Joined& message, double now) {
  Group* group = GroupOf(worker, message.generation());
  if (group == nullptr || group->state != Group::State::kForming) return;
  Stage& stage = group->stages[worker.rank];
  if (stage.joined || message.addresses_size() != static_cast<int>(group->stages.size())) {
    return Dissolve(*group, absl::StrCat("worker ", worker.about.name(), " joined in a way that makes no sense"),
                    now + kFailedRetrySeconds, now);
  }
  stage.joined = true;
  stage.addresses.assign(message.addresses().begin(), message.addresses().end());
  stage.weight_bytes = static_cast<int64_t>(message.weight_bytes());
  stage.reserved_bytes = static_cast<int64_t>(message.reserved_bytes());
  for (const cluster::v1::MemoryPart& part : message.memory()) {
    stage.memory.emplace_back(part.name(), static_cast<int64_t>(part.bytes()));
  }
  if (!std::all_of(group->stages.begin(), group->stages.end(), [](const Stage& s) { return s.joined; })) return;
  for (size_t rank = 0; rank < group->stages.size(); ++rank) {
    ToWorker connect;
    connect.mutable_connect()->set_generation(group->generation);
    for (const Stage& peer : group->stages) connect.mutable_connect()->add_addresses(peer.addresses[rank]);
    Send(group->stages[rank].worker, std::move(connect));
  }
  group->message = "workers connect";
}

void Membership::HandleReady(Worker& worker, const cluster::v1::Ready& message, double now) {
  Group* group = GroupOf(worker, message.generation());
  if (group == nullptr || group->state != Group::State::kForming) return;
  group->stages[worker.rank].ready = group->stages[worker.rank].joined;
  if (!std::all_of(group->stages.begin(), group->stages.end(), [](const Stage& s) { return s.ready; })) return;
  group->state = Group::State::kReady;
  group->since = now;
  group->formed = true;
  for (const Stage& stage : group->stages) workers_.at(stage.worker)->failures = 0;
  group->failures = 0;
  group->message.clear();
  effects_.log.push_back(absl::StrCat("group ", group->index, ", generation ", group->generation, " is ready"));
  effects_.events.push_back({MembershipEffects::Event::kGroupReady, group->index});
}

void Membership::HandleStepDone(Worker& worker, cluster::v1::StepDone message) {
  Group* group = GroupOf(worker, message.generation());
  if (group == nullptr || group->state != Group::State::kReady) return;
  Stage& stage = group->stages[worker.rank];
  stage.busy_seconds += message.busy_seconds();
  stage.bubble_seconds += message.bubble_seconds();
  stage.idle_seconds += message.idle_seconds();
  stage.hidden_bytes += static_cast<int64_t>(message.hidden_bytes());
  stage.compressed_bytes += static_cast<int64_t>(message.compressed_bytes());
  stage.id_bytes += static_cast<int64_t>(message.id_bytes());
  stage.cache_bytes = static_cast<int64_t>(message.cache_bytes());
  stage.gold_kept_bytes = static_cast<int64_t>(message.gold_kept_bytes());
  stage.gold_tier_drops = static_cast<int64_t>(message.gold_tier_drops());
  stage.cache_tokens = static_cast<int64_t>(message.cache_tokens());
  if (group->views[worker.rank].is_last) ++group->steps;
  effects_.events.push_back({MembershipEffects::Event::kStepDone, group->index, worker.rank, "", std::move(message)});
}

// ---- Ending ----

void Membership::EndGroup(int index, const std::string& reason, double now) {
  Group& group = *groups_[index];
  if (group.state != Group::State::kWaiting) Dissolve(group, reason, now + kFailedRetrySeconds, now);
}

void Membership::LoseStage(int group, int stage, const std::string& reason, double now) {
  Lose(groups_[group]->stages[stage].worker, reason, now);
}

// The generation ends; the caller tries to form the next one, not before `retry_at`.
void Membership::Dissolve(Group& group, const std::string& reason, double retry_at, double now) {
  GF_CHECK(group.state != Group::State::kWaiting);
  for (const Stage& stage : group.stages) {
    const auto found = workers_.find(stage.worker);
    if (found == workers_.end()) continue;
    found->second->group = nullptr;
    ToWorker disband;
    disband.mutable_end_generation()->set_generation(group.generation);
    Send(stage.worker, std::move(disband));
  }
  effects_.log.push_back(absl::StrCat("group ", group.index, ", generation ", group.generation, " ended: ", reason));
  if (group.state == Group::State::kReady) {
    effects_.events.push_back({MembershipEffects::Event::kGroupLost, group.index, 0, reason});
  } else {
    // What keeps it from forming may last.
    ++group.failures;
    retry_at = std::max(
        retry_at, now + std::min(kFailedRetrySeconds * (1 << std::min(group.failures, 10)), kFormRetrySecondsMax));
  }
  group.state = Group::State::kWaiting;
  group.since = now;
  group.retry_at = retry_at;
  group.message = reason;
  group.stages.clear();
  group.views.clear();
}

void Membership::Tick(double now, const std::vector<bool>& idle) {
  // After a pause of our own, silence proves nothing.
  const bool was_paused = last_tick_ >= 0 && now - last_tick_ > options_.heartbeat_timeout_seconds / 2;
  last_tick_ = now;
  std::vector<uint64_t> silent;
  for (const auto& [id, worker] : workers_) {
    if (was_paused) worker->last_heard = now;
    if (now - worker->last_heard > options_.heartbeat_timeout_seconds) silent.push_back(id);
  }
  for (uint64_t id : silent) {
    Lose(id, absl::StrCat("no word for ", options_.heartbeat_timeout_seconds, " s"), now);
  }
  if (now - last_ping_ >= options_.heartbeat_interval_seconds) {
    last_ping_ = now;
    ++last_ping_number_;
    for (const auto& [id, worker] : workers_) {
      if (!worker->registered) continue;
      ToWorker ping;
      ping.mutable_ping()->set_number(last_ping_number_);
      Send(id, std::move(ping));
    }
  }
  for (const auto& group : groups_) {
    if (group->state == Group::State::kForming) CheckForming(*group, now);
    if (group->state == Group::State::kReady && idle[group->index]) Grow(*group, now);
  }
  FormGroups(now);
}

void Membership::CheckForming(Group& group, double now) {
  if (now - group.since <= options_.form_timeout_seconds) return;
  std::vector<uint64_t> slow;
  const bool all_joined =
      std::all_of(group.stages.begin(), group.stages.end(), [](const Stage& stage) { return stage.joined; });
  for (const Stage& stage : group.stages) {
    if (all_joined ? !stage.ready : !stage.joined) slow.push_back(stage.worker);
  }
  for (uint64_t id : slow) {
    Lose(id, absl::StrCat("not a stage after ", options_.form_timeout_seconds, " s (--form-timeout)"), now);
  }
}

void Membership::Grow(Group& group, double now) {
  const size_t wanted = std::min(options_.stages, model_->layers_size());
  std::vector<uint64_t> members = Spares();
  if (group.stages.size() >= wanted || group.stages.size() + members.size() < wanted) return;
  for (const Stage& stage : group.stages) members.push_back(stage.worker);
  std::rotate(members.begin(), members.end() - static_cast<int64_t>(group.stages.size()), members.end());
  members.resize(wanted);
  if (!PlanFor(group, members).ok()) return;
  Dissolve(group, "there are workers for all stages again", now, now);
}

// ---- Views ----

bool Membership::ready(int group) const { return groups_[group]->state == Group::State::kReady; }

int Membership::groups_ready() const {
  return static_cast<int>(std::count_if(groups_.begin(), groups_.end(),
                                        [](const auto& group) { return group->state == Group::State::kReady; }));
}

GroupCapacity Membership::Capacity(int index) const {
  const Group& group = *groups_[index];
  return {static_cast<int>(group.stages.size()), options_.plan.max_sequences,   group.plan.cache_tokens,
          options_.plan.max_sequence_tokens,     options_.plan.max_step_tokens, options_.plan.max_logit_rows};
}

double Membership::SecondsPerPromptToken(int group) const { return groups_[group]->plan.seconds_per_prompt_token; }

uint64_t Membership::generation(int group) const { return groups_[group]->generation; }

const std::vector<Membership::StageView>& Membership::stages(int group) const { return groups_[group]->views; }

int64_t Membership::CacheBytes(int index) const {
  int64_t bytes = 0;
  for (const Stage& stage : groups_[index]->stages) bytes += stage.cache_bytes;
  return bytes;
}

int64_t Membership::GoldKeptBytes(int index) const {
  int64_t bytes = 0;
  for (const Stage& stage : groups_[index]->stages) bytes += stage.gold_kept_bytes;
  return bytes;
}

int64_t Membership::TransformerCacheBytes(int index) const {
  int64_t tokens = 0;  // the same in every stage that has caches
  for (const Stage& stage : groups_[index]->stages) tokens = std::max(tokens, stage.cache_tokens);
  return tokens * static_cast<int64_t>(model_->transformer_cache_bytes_per_token());
}

int64_t Membership::StateBytesPerSequence() const {
  int64_t bytes = 0;
  for (const auto& layer : model_->layers()) bytes += static_cast<int64_t>(layer.state_bytes());
  return bytes;
}

void Membership::FillClusterInfo(double now, v1::GetClusterInfoResponse* info) const {
  for (const auto& group : groups_) {
    v1::GroupInfo& out = *info->add_groups();
    out.set_replica(group->index);
    out.set_state(group->state == Group::State::kReady     ? v1::READY
                  : group->state == Group::State::kForming ? v1::FORMING
                                                           : v1::WAITING_FOR_WORKERS);
    out.set_generation(group->generation);
    out.set_steps(group->steps);
    out.set_message(group->message);
    for (const Stage& stage : group->stages) {
      const Worker& worker = *workers_.at(stage.worker);
      v1::StageInfo& to = *out.add_stages();
      to.set_worker(worker.about.name());
      to.set_address(worker.address);
      to.set_device(worker.about.device());
      to.set_first_layer(stage.first_layer);
      to.set_last_layer(stage.last_layer);
      to.set_weight_bytes(stage.weight_bytes);
      to.set_memory_bytes(worker.about.memory_bytes());
      to.set_reserved_bytes(stage.reserved_bytes);
      to.set_gold_kept_bytes(stage.gold_kept_bytes);
      to.set_gold_tier_drops(stage.gold_tier_drops);
      to.set_busy_seconds(stage.busy_seconds);
      to.set_bubble_seconds(stage.bubble_seconds);
      to.set_idle_seconds(stage.idle_seconds);
      to.mutable_received()->set_hidden(stage.hidden_bytes);
      to.mutable_received()->set_compressed(stage.compressed_bytes);
      to.mutable_received()->set_ids(stage.id_bytes);
      to.set_heartbeat_age_seconds(now - worker.last_heard);
      for (const auto& [name, bytes] : stage.memory) {
        v1::MemoryPart& part = *to.add_memory();
        part.set_name(name);
        part.set_bytes(bytes);
      }
    }
  }
  for (uint64_t id : Spares()) info->add_spare_workers(workers_.at(id)->about.name());
  info->set_group_generation(last_generation_);
}

}  // namespace goldfinch
