#include "worker/worker.h"

#include <algorithm>
#include <new>
#include <stdexcept>
#include <string_view>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "protos/cluster.pb.h"
#include "worker/checkpoint/checkpoint.h"
#include "worker/model/model_memory.h"

namespace goldfinch {

using cluster::v1::FromWorker;
using cluster::v1::ToWorker;

namespace {

constexpr uint32_t kProtocol = 2;
// Steps in flight are a few; a coordinator that sends so many does not wait for answers.
constexpr size_t kTasksMax = 1024;

// Steps that are queued on a device while it is at the one before: enough that it never waits for the host, and few
// enough that what a step reports is news.
constexpr size_t kPendingStepsMax = 2;
// How often steps under way are looked at.
constexpr std::chrono::microseconds kPollTime(50);

bool OfGeneration(const ToWorker& message) { return message.has_form() || message.has_connect() || message.has_step(); }

// What a Form asks for may be more than there is.
template <class Call>
absl::Status CatchBadAlloc(Call call) {
  try {
    return call();
  } catch (const std::bad_alloc&) {
    return absl::ResourceExhaustedError("no memory for what Form asks for");
  } catch (const std::length_error&) {
    return absl::ResourceExhaustedError("no memory for what Form asks for");
  }
}

std::string Message(const absl::Status& status) { return std::string(status.message()); }

}  // namespace

Worker::Worker(WorkerOptions options, std::unique_ptr<Backend> backend, std::unique_ptr<TransportFactory> transport)
    : options_(std::move(options)), backend_(std::move(backend)), transport_factory_(std::move(transport)) {
  thread_ = std::thread([this] { Work(); });
}

Worker::~Worker() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
    send_ = nullptr;
    BeginEra();
  }
  thread_.join();
}

// ---- Any thread.

void Worker::Connected(std::function<void(const FromWorker& message)> send) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    BeginEra();
    ++connection_;
    send_ = std::make_shared<const Send>(std::move(send));
    heartbeat_timeout_seconds_ = 0;
    last_message_ = Clock::now();
  }
  FromWorker message;
  cluster::v1::Register& registration = *message.mutable_register_();
  registration.set_protocol(kProtocol);
  registration.set_name(options_.name);
  registration.set_device(backend_->Describe());
  registration.set_memory_bytes(options_.memory_bytes);
  registration.set_flops(options_.speed.flops);
  registration.set_read_bytes_per_second(options_.speed.read_bytes_per_second);
  registration.set_transport(transport_factory_->kind());
  Reply(message);
}

void Worker::Received(ToWorker message) {
  FromWorker reply;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    last_message_ = Clock::now();
    if (message.has_ping()) {
      reply.mutable_pong()->set_number(message.ping().number());
    } else if (message.has_refused()) {
      refused_ = absl::FailedPreconditionError(message.refused());
      BeginEra();
    } else if (message.has_end_generation()) {
      if (message.end_generation().generation() == generation_) BeginEra();
    } else if (tasks_.size() >= kTasksMax) {
      BeginEra();
      reply.mutable_end_generation()->set_generation(generation_);
      reply.mutable_end_generation()->set_reason(absl::StrCat("more than ", kTasksMax, " messages wait"));
    } else {
      Enqueue(std::move(message));
    }
  }
  if (reply.message_case() != FromWorker::MESSAGE_NOT_SET) Reply(reply);
}

void Worker::Enqueue(ToWorker message) {
  if (message.has_form()) {
    BeginEra();
    generation_ = message.form().generation();
    in_group_ = true;
  }
  if (message.has_welcome()) heartbeat_timeout_seconds_ = message.welcome().heartbeat_timeout_seconds();
  tasks_.push_back({era_, connection_, std::make_unique<ToWorker>(std::move(message))});
  wake_.notify_one();
}

void Worker::Disconnected() {
  const std::lock_guard<std::mutex> lock(mutex_);
  send_ = nullptr;
  BeginEra();
}

// What is under way ends at once, and the working thread finds a task to clear away the rest.
void Worker::BeginEra() {
  ++era_;
  in_group_ = false;
  std::erase_if(tasks_, [](const Task& task) { return task.message == nullptr || OfGeneration(*task.message); });
  tasks_.push_back({era_, connection_, nullptr});
  if (live_setup_ != nullptr) live_setup_->Abort();
  if (live_transport_ != nullptr) live_transport_->Abort();
  wake_.notify_one();
}

void Worker::Leave() {
  FromWorker message;
  message.set_leaving(true);
  Reply(message);
}

bool Worker::in_group() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return in_group_;
}

bool Worker::silent() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (send_ == nullptr || heartbeat_timeout_seconds_ <= 0) return false;
  return std::chrono::duration<double>(Clock::now() - last_message_).count() > heartbeat_timeout_seconds_;
}

absl::Status Worker::refused() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return refused_;
}

// Without the mutex: the coordinator may be in this process, with locks of its own.
void Worker::Reply(const FromWorker& message) const {
  std::shared_ptr<const Send> send;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    send = send_;
  }
  if (send != nullptr) (*send)(message);
}

// Of work that a stream before this one asked for, the new one must not hear: it has yet to be told who this is.
void Worker::ReplyFromWork(const FromWorker& message) const {
  std::shared_ptr<const Send> send;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (connection_ == work_connection_) send = send_;
  }
  if (send != nullptr) (*send)(message);
}

void Worker::Log(const std::string& line) const {
  if (options_.log) options_.log(line);
}

// ---- The working thread.

void Worker::Work() {
  for (;;) {
    std::optional<Task> task;  // none: look after the pending steps
    {
      std::unique_lock<std::mutex> lock(mutex_);
      const auto has_work = [this] { return stopping_ || !tasks_.empty(); };
      if (pending_.empty()) {
        wake_.wait(lock, has_work);
      } else {
        wake_.wait_for(lock, kPollTime, has_work);
      }
      if (stopping_) break;
      if (!tasks_.empty()) {
        task = std::move(tasks_.front());
        tasks_.pop_front();
      }
    }
    if (!task) {
      if (const absl::Status status = AnswerSteps(); !status.ok()) Fail(pending_era_, plan_->generation, status);
    } else if (task->message == nullptr) {
      EndGroup();
    } else {
      Handle(*task);
    }
  }
  EndGroup();
}

void Worker::Handle(const Task& task) {
  const ToWorker& message = *task.message;
  work_connection_ = task.connection;
  const uint64_t era = task.era;
  if (message.has_welcome()) return HandleWelcome(message.welcome());
  absl::Status status;
  uint64_t generation = 0;
  if (message.has_form()) {
    generation = message.form().generation();
    status = CatchBadAlloc([&] { return Form(era, message.form()); });
  } else if (plan_ == nullptr) {
    return;  // of a generation that has ended here
  } else if (message.has_connect() && message.connect().generation() == plan_->generation) {
    generation = plan_->generation;
    status = CatchBadAlloc([&] { return Connect(era, message.connect()); });
  } else if (message.has_step() && message.step().generation() == plan_->generation) {
    generation = plan_->generation;
    status = CatchBadAlloc([&] { return RunStep(era, message.step()); });
  }
  if (!status.ok()) Fail(era, generation, status);
}

void Worker::Fail(uint64_t era, uint64_t generation, const absl::Status& status) {
  EndGroup();
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (era != era_) return;  // it was to end
    in_group_ = false;
  }
  Log(absl::StrCat("generation ", generation, " failed: ", status.ToString()));
  FromWorker message;
  message.mutable_end_generation()->set_generation(generation);
  message.mutable_end_generation()->set_reason(Message(status));
  ReplyFromWork(message);
}

void Worker::EndGroup() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    live_setup_ = nullptr;
    live_transport_ = nullptr;
  }
  pending_.clear();
  transport_.reset();  // the peers see it
  setup_.reset();
  runner_.reset();
  plan_.reset();
  last_step_.reset();
}

bool Worker::Publish(uint64_t era, TransportSetup* setup, Transport* transport) {
  const std::lock_guard<std::mutex> lock(mutex_);
  live_setup_ = setup;
  live_transport_ = transport;
  return era == era_;
}

void Worker::HandleWelcome(const cluster::v1::Welcome& welcome) {
  FromWorker message;
  if (const absl::Status status = OpenModel(welcome); status.ok()) {
    Describe(*checkpoint_, shape_, config_, cache_dtype_, MemoryOf(*measured_, cache_dtype_, *backend_),
             message.mutable_described());
  } else {
    Log(absl::StrCat("the model cannot be read: ", status.ToString()));
    message.mutable_described()->set_error(Message(status));
  }
  ReplyFromWork(message);
}

absl::Status Worker::OpenModel(const cluster::v1::Welcome& welcome) {
  const std::optional<DType> cache_dtype = ParseCacheDType(welcome.cache_dtype());
  if (!cache_dtype) {
    return absl::InvalidArgumentError(
        absl::StrCat("Welcome.cache_dtype is \"", welcome.cache_dtype(), "\", expected f32, f16, bf16 or int8"));
  }
  cache_dtype_ = *cache_dtype;
  verify_ = welcome.verify();
  if (verify_ != "all" && verify_ != "finite" && verify_ != "none") {
    return absl::InvalidArgumentError(
        absl::StrCat("Welcome.verify is \"", verify_, "\", expected all, finite or none"));
  }
  const std::string& model = options_.model.empty() ? welcome.model() : options_.model;
  const std::string& config = options_.config.empty() ? welcome.config() : options_.config;
  if (checkpoint_ != nullptr && model == opened_model_ && config == opened_config_) {
    return CheckCacheDType(*checkpoint_, shape_, cache_dtype_);
  }
  stage_.reset();
  model_.reset();
  checkpoint_.reset();
  verified_.clear();
  GF_ASSIGN_OR_RETURN(std::unique_ptr<Checkpoint> checkpoint, Checkpoint::Open(model));
  GF_RETURN_IF_ERROR(CheckMultiplies(*backend_, *checkpoint));
  GF_ASSIGN_OR_RETURN(config_, FindModelConfig(config, model));
  GF_ASSIGN_OR_RETURN(measured_, MeasureModel(*checkpoint, config_, backend_->reads_weights_in_place()));
  shape_ = measured_->shape;
  checkpoint_ = std::move(checkpoint);
  opened_model_ = model;
  opened_config_ = config;
  return CheckCacheDType(*checkpoint_, shape_, cache_dtype_);
}

absl::Status Worker::Form(uint64_t era, const cluster::v1::Form& form) {
  EndGroup();
  if (checkpoint_ == nullptr) return absl::FailedPreconditionError("Form before the model was described");
  GF_ASSIGN_OR_RETURN(StageAssignment plan, AssignStage(form, shape_, cache_dtype_));
  plan.options.gold_tier = options_.gold_tier;
  GF_RETURN_IF_ERROR(PlanMemory(plan));
  GF_RETURN_IF_ERROR(LoadStage(plan));
  GF_ASSIGN_OR_RETURN(runner_, StageRunner::Create(plan, *backend_, *stage_));
  GF_RETURN_IF_ERROR(ReserveKept(plan));
  GF_ASSIGN_OR_RETURN(setup_, transport_factory_->Setup(plan.generation, plan.rank, plan.Edges(shape_), *backend_));
  plan_ = std::make_unique<StageAssignment>(std::move(plan));
  if (!Publish(era, setup_.get(), nullptr)) return absl::CancelledError("the generation has ended");

  FromWorker message;
  cluster::v1::Joined& joined = *message.mutable_joined();
  joined.set_generation(plan_->generation);
  for (const std::string& address : setup_->addresses()) joined.add_addresses(address);
  joined.set_weight_bytes(memory_.weights);
  joined.set_reserved_bytes(memory_.total());
  for (const MemoryPart& part : memory_.Parts()) {
    cluster::v1::MemoryPart& to = *joined.add_memory();
    to.set_name(part.name);
    to.set_bytes(part.bytes);
  }
  ReplyFromWork(message);
  return absl::OkStatus();
}

absl::Status Worker::LoadStage(const StageAssignment& plan) {
  const bool same_layers =
      model_ != nullptr && model_->first_layer == plan.first_layer && model_->last_layer == plan.last_layer;
  const auto fits = [&] {  // what the generation before had left to keep may be more than there is now
    return stage_->gold_tiers() == nullptr || stage_->gold_tiers()->reserved_bytes() <= kept_bytes_;
  };
  if (same_layers && stage_ != nullptr && stage_->options() == plan.options && fits()) return absl::OkStatus();
  stage_.reset();  // before the next one takes its memory
  if (!same_layers) GF_RETURN_IF_ERROR(LoadWeights(plan));
  GF_ASSIGN_OR_RETURN(stage_, Stage::Create(*backend_, model_, plan.options));
  return absl::OkStatus();
}

// Before anything is taken. The coordinator has planned the same, so that only a worker that was told otherwise since
// falls short.
absl::Status Worker::PlanMemory(const StageAssignment& plan) {
  const ModelMemory model = MemoryOf(*measured_, cache_dtype_, *backend_);
  const StageSettings settings =
      MemorySettings(plan.first_layer, plan.last_layer, plan.options, plan.stages - plan.rank - 1);
  memory_ = PlanStageMemory(model, settings);
  const int64_t limit_bytes = options_.memory_bytes;
  if (limit_bytes > 0 && memory_.total() > limit_bytes) {
    return absl::ResourceExhaustedError(absl::StrCat("layers ", plan.first_layer, " to ", plan.last_layer - 1, ": ",
                                                     MemoryShortage(memory_, limit_bytes)));
  }
  int64_t kept_bytes = KeptBytes(model, settings, limit_bytes);
  if (backend_->kind() == DeviceKind::kCpu) {
    kept_bytes = std::min(kept_bytes, static_cast<int64_t>(kKeptMemoryShare * static_cast<double>(limit_bytes)));
  }
  kept_bytes_ = options_.kept_bytes.value_or(kept_bytes);
  return absl::OkStatus();
}

// Last, of what nothing else takes. A stage of the generation before has it already.
absl::Status Worker::ReserveKept(const StageAssignment& plan) {
  if (stage_->gold_tiers() != nullptr) {
    if (stage_->gold_tiers()->reserved_bytes() == 0) GF_RETURN_IF_ERROR(stage_->ReserveKept(kept_bytes_));
    memory_.kept_rows = stage_->gold_tiers()->reserved_bytes();
  }
  Log(absl::StrCat("memory of layers ", plan.first_layer, " to ", plan.last_layer - 1, ", ", plan.options.max_sequences,
                   " sequences, caches of ", plan.options.cache_tokens, " tokens:"));
  for (const std::string& line : MemoryTable(memory_, options_.memory_bytes)) Log(absl::StrCat("  ", line));
  return absl::OkStatus();
}

absl::Status Worker::LoadWeights(const StageAssignment& plan) {
  model_.reset();
  GF_RETURN_IF_ERROR(VerifyWeights(plan));
  GF_ASSIGN_OR_RETURN(model_, LoadModel(*backend_, checkpoint_, config_, plan.first_layer, plan.last_layer));
  return absl::OkStatus();
}

// Each tensor once in a process: a group that forms again waits for new layers only.
absl::Status Worker::VerifyWeights(const StageAssignment& plan) {
  if (verify_ == "none") return absl::OkStatus();
  const auto needed = [&](std::string_view name) {
    const std::optional<TensorHome> home = FindTensorHome(shape_, name);
    return home && StageHas(shape_, plan.first_layer, plan.last_layer, *home) && !verified_.contains(std::string(name));
  };
  GF_ASSIGN_OR_RETURN(
      const std::vector<std::string> non_finite,
      checkpoint_->Verify({.threads = backend_->threads(), .checksums = verify_ == "all", .tensors = needed}));
  for (const std::string& name : non_finite) {
    Log(absl::StrCat(checkpoint_->path(), ": tensor ", name, " has values that are NaN or infinite"));
  }
  for (const CheckpointTensor& tensor : checkpoint_->tensors()) {
    if (needed(tensor.name)) verified_.insert(tensor.name);
  }
  return absl::OkStatus();
}

absl::Status Worker::Connect(uint64_t era, const cluster::v1::Connect& connect) {
  if (setup_ == nullptr) return absl::InvalidArgumentError("Connect: the stage is connected");
  const std::vector<std::string> addresses(connect.addresses().begin(), connect.addresses().end());
  GF_ASSIGN_OR_RETURN(std::unique_ptr<Transport> transport,
                      setup_->Connect(addresses, options_.connect_timeout_seconds));
  if (!Publish(era, nullptr, transport.get())) transport->Abort();
  transport_ = std::move(transport);
  setup_.reset();
  free_since_ = Clock::now();
  FromWorker message;
  message.mutable_ready()->set_generation(plan_->generation);
  ReplyFromWork(message);
  return absl::OkStatus();
}

absl::Status Worker::RunStep(uint64_t era, const cluster::v1::Step& step) {
  if (transport_ == nullptr) return absl::InvalidArgumentError("Step before Connect");
  if (last_step_ && step.id() != *last_step_ + 1) {
    return absl::InvalidArgumentError(absl::StrCat("Step.id is ", step.id(), " after ", *last_step_));
  }
  last_step_ = step.id();
  GF_RETURN_IF_ERROR(WaitForRoom(era));
  PendingStep pending;
  pending.begin = Clock::now();
  pending.answer = std::make_unique<FromWorker>();
  cluster::v1::StepDone& done = *pending.answer->mutable_step_done();
  GF_RETURN_IF_ERROR(runner_->Run(step, *transport_, &done, &pending.running));
  done.set_generation(step.generation());
  done.set_id(step.id());
  pending_.push_back(std::move(pending));
  pending_era_ = era;
  return AnswerSteps();
}

absl::Status Worker::WaitForRoom(uint64_t era) {
  for (;;) {
    GF_RETURN_IF_ERROR(AnswerSteps());
    if (pending_.size() < kPendingStepsMax) return absl::OkStatus();
    std::unique_lock<std::mutex> lock(mutex_);
    if (wake_.wait_for(lock, kPollTime, [&] { return stopping_ || era != era_; })) {
      return absl::CancelledError("the generation has ended");
    }
  }
}

absl::Status Worker::AnswerSteps() {
  while (!pending_.empty()) {
    PendingStep& pending = pending_.front();
    const bool done = pending.running.Poll();
    // What is done is good if nothing had failed when it was.
    GF_RETURN_IF_ERROR(transport_->status());
    GF_RETURN_IF_ERROR(backend_->status());
    if (!done) return absl::OkStatus();
    cluster::v1::StepDone& answer = *pending.answer->mutable_step_done();
    pending.running.FillTimes(free_since_, &answer);
    answer.set_idle_seconds(std::max(0.0, std::chrono::duration<double>(pending.begin - free_since_).count()));
    free_since_ = pending.running.end();
    ReplyFromWork(*pending.answer);
    pending_.pop_front();
    if (pending_.empty()) GF_RETURN_IF_ERROR(backend_->Synchronize());  // it has nothing left to wait for
  }
  return absl::OkStatus();
}

}  // namespace goldfinch
