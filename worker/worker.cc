#include "worker/worker.h"

#include <algorithm>
#include <new>
#include <stdexcept>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/safe_text.h"
#include "base/shared_key.h"
#include "base/status.h"
#include "protos/cluster.pb.h"
#include "protos/cluster_protocol.h"
#include "worker/link_speed.h"
#include "worker/model_description.h"
#include "worker/stage_assignment.h"

namespace goldfinch {

using cluster::v1::FromWorker;
using cluster::v1::ToWorker;

namespace {

// Only a few steps are ever in flight; a coordinator that sends this many messages does not wait for answers.
constexpr size_t kTasksMax = 1024;

// Steps that may be queued on a device, the running one included: enough that the device never waits for the host, and
// so few that what a step reports is recent.
constexpr size_t kPendingStepsMax = 2;
// How often the work thread checks whether pending steps are done.
constexpr std::chrono::microseconds kPollTime(50);

bool IsOfAGeneration(const ToWorker& message) {
  return message.has_form() || message.has_connect() || message.has_step() || message.has_measure_links();
}

// Without the memory that it should have, a worker serves all the same, and says that it keeps nothing.
std::unique_ptr<ContextShelf> MakeShelf(const WorkerOptions& options, Backend& backend) {
  absl::StatusOr<std::unique_ptr<ContextShelf>> shelf = ContextShelf::Create(backend, options.shelf_bytes);
  if (shelf.ok()) return *std::move(shelf);
  if (options.log) options.log(absl::StrCat("no contexts are kept: ", shelf.status().message()));
  return *ContextShelf::Create(backend, 0);
}

// Form may ask for more memory than there is, and allocations of the standard library then throw.
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

std::chrono::steady_clock::duration KeepTime(const WorkerOptions& options) {
  return std::chrono::duration_cast<std::chrono::steady_clock::duration>(
      std::chrono::duration<double>(options.keep_stage_seconds));
}

// What goes to the coordinator, within the limits of protos/cluster_protocol.h.
std::string Message(const absl::Status& status) {
  return SafeText(std::string(status.message()), kClusterTextBytesMax);
}

}  // namespace

Worker::Worker(WorkerOptions options, std::unique_ptr<Backend> backend, std::unique_ptr<TransportFactory> transport)
    : options_(std::move(options)),
      backend_(std::move(backend)),
      device_(SafeText(backend_->Describe(), kWorkerDeviceBytesMax)),
      threads_(backend_->kind() == DeviceKind::kCpu ? backend_->threads() : 0),
      process_(MakeNonce()),
      transport_factory_(std::move(transport)),
      shelf_(MakeShelf(options_, *backend_)),
      generation_(std::make_shared<Generation>(Generation{0, absl::CancelledError("no group has formed yet")})),
      loader_(options_, *backend_) {
  options_.shelf_bytes = shelf_->bytes();  // what the stage needs for a shelf is planned only where there is one
  thread_ = std::thread([this] { Work(); });
}

Worker::~Worker() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
    send_ = nullptr;
    EndGeneration("the worker stops");
  }
  thread_.join();
}

// ---- On any thread ----

void Worker::Connected(std::function<void(const FromWorker& message)> send) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    EndGeneration("a new stream to the coordinator has opened");
    ++connection_;
    send_ = std::make_shared<const Send>(std::move(send));
    heartbeat_timeout_seconds_ = 0;
    last_message_ = Clock::now();
  }
  FromWorker message;
  cluster::v1::Register& registration = *message.mutable_register_();
  registration.set_protocol(kClusterProtocol);
  registration.set_name(options_.name);
  registration.set_device(device_);
  registration.set_memory_bytes(options_.memory_bytes);
  registration.set_flops(options_.speed.flops);
  registration.set_read_bytes_per_second(options_.speed.read_bytes_per_second);
  registration.set_transport(transport_factory_->kind());
  registration.set_memory_pool(options_.place.memory_pool);
  registration.set_memory_given(options_.place.memory_given);
  registration.set_cpu_pool(options_.place.cpu_pool);
  registration.set_threads_given(options_.place.threads_given);
  registration.set_threads(static_cast<uint32_t>(threads_));
  registration.set_gpu(backend_->Uuid());
  registration.set_processor(options_.place.processor);
  registration.set_address(options_.place.address);
  registration.set_network(options_.place.network);
  registration.set_process(process_);
  registration.set_shelf_bytes(shelf_->bytes());
  Reply(message);
}

void Worker::Received(ToWorker message) {
  FromWorker reply;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    last_message_ = Clock::now();
    if (message.has_ping()) {
      reply.mutable_pong()->set_number(message.ping().number());
      reply.mutable_pong()->set_progress(backend_->progress());
    } else if (message.has_refused()) {
      refused_ = absl::FailedPreconditionError(SafeText(message.refused(), kClusterTextBytesMax));
      EndGeneration("the coordinator has refused this worker");
    } else if (message.has_end_generation()) {
      if (message.end_generation().generation() == generation_->number) EndGeneration("the coordinator has ended it");
    } else if (tasks_.size() >= kTasksMax) {
      const std::string reason = absl::StrCat("more than ", kTasksMax, " messages wait");
      EndGeneration(reason);
      reply.mutable_end_generation()->set_generation(generation_->number);
      reply.mutable_end_generation()->set_reason(reason);
    } else {
      Enqueue(std::move(message));
    }
  }
  if (reply.message_case() != FromWorker::MESSAGE_NOT_SET) Reply(reply);
}

void Worker::Enqueue(ToWorker message) {
  if (message.has_form()) {
    EndGeneration("the next group forms");
    generation_ = std::make_shared<Generation>(Generation{message.form().generation(), absl::OkStatus()});
  }
  // Another value is an error of Welcome; it must not keep this worker from noticing that the coordinator is silent.
  if (message.has_welcome() && StageLoader::IsHeartbeatTimeout(message.welcome().heartbeat_timeout_seconds())) {
    heartbeat_timeout_seconds_ = message.welcome().heartbeat_timeout_seconds();
  }
  tasks_.push_back({generation_, connection_, std::make_unique<ToWorker>(std::move(message))});
  wake_.notify_one();
}

void Worker::Disconnected() {
  const std::lock_guard<std::mutex> lock(mutex_);
  send_ = nullptr;
  EndGeneration("the stream to the coordinator has ended");
}

void Worker::EndGeneration(const std::string& reason) {
  if (generation_->end.ok())
    generation_->end = absl::CancelledError(absl::StrCat("the generation has ended: ", reason));
  std::erase_if(tasks_, [](const Task& task) { return task.message == nullptr || IsOfAGeneration(*task.message); });
  tasks_.push_back({generation_, connection_, nullptr});
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
  return generation_->end.ok();
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

void Worker::Reply(const FromWorker& message) const {
  std::shared_ptr<const Send> send;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    send = send_;
  }
  if (send != nullptr) (*send)(message);
}

void Worker::Log(const std::string& line) const {
  if (options_.log) options_.log(line);
}

// ---- On the work thread ----

void Worker::Work() {
  for (;;) {
    std::optional<Task> task;  // without one, it is time to poll the pending steps, or to release the stage
    {
      std::unique_lock<std::mutex> lock(mutex_);
      const auto has_work = [this] { return stopping_ || !tasks_.empty(); };
      if (!pending_.empty()) {
        wake_.wait_for(lock, kPollTime, has_work);
      } else if (release_at_) {
        wake_.wait_until(lock, *release_at_, has_work);
      } else {
        wake_.wait(lock, has_work);
      }
      if (stopping_) break;
      if (!tasks_.empty()) {
        task = std::move(tasks_.front());
        tasks_.pop_front();
      }
    }
    if (!task && release_at_) {
      ReleaseStage();
    } else if (!task) {
      if (const absl::Status status = AnswerSteps(); !status.ok()) FailGeneration(status);
    } else if (task->message == nullptr) {
      ReleaseGeneration();
    } else {
      Handle(*task);
    }
  }
  ReleaseGeneration();
}

void Worker::Handle(const Task& task) {
  const ToWorker& message = *task.message;
  work_connection_ = task.connection;
  if (message.has_welcome()) return HandleWelcome(message.welcome());
  if (message.has_drop()) return HandleDrop(message.drop());
  absl::Status status;
  if (message.has_form()) {
    ReleaseGeneration();
    release_at_.reset();
    work_generation_ = task.generation;
    status = CatchBadAlloc([&] { return Form(message.form()); });
  } else if (work_generation_ == nullptr) {
    return;  // the message's generation has ended here
  } else if (message.has_connect() && message.connect().generation() == work_generation_->number) {
    status = CatchBadAlloc([&] { return Connect(message.connect()); });
  } else if (message.has_step() && message.step().generation() == work_generation_->number) {
    status = CatchBadAlloc([&] { return RunStep(message.step()); });
  } else if (message.has_measure_links() && message.measure_links().generation() == work_generation_->number) {
    status = CatchBadAlloc([&] { return AnswerMeasureLinks(); });
  }
  if (!status.ok()) FailGeneration(status);
}

void Worker::FailGeneration(const absl::Status& status) {
  const std::shared_ptr<Generation> failed = work_generation_;
  ReleaseGeneration();
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!failed->end.ok()) return;  // the failure is a consequence of the end
    EndGeneration(Message(status));
  }
  Log(absl::StrCat("generation ", failed->number, " failed: ", status.ToString()));
  FromWorker message;
  message.mutable_end_generation()->set_generation(failed->number);
  message.mutable_end_generation()->set_reason(Message(status));
  ReplyFromWork(message);
}

void Worker::ReleaseGeneration() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    live_setup_ = nullptr;
    live_transport_ = nullptr;
  }
  pending_.clear();
  transport_.reset();
  setup_.reset();
  runner_.reset();
  last_step_.reset();
  work_generation_.reset();
  if (loader_.loaded() && !release_at_) release_at_ = Clock::now() + KeepTime(options_);
}

void Worker::ReleaseStage() {
  release_at_.reset();
  if (!loader_.loaded()) return;  // another model has been opened meanwhile
  loader_.Release();
  Log("in no group for a while: the memory of the former stage is given back");
}

absl::Status Worker::Publish(TransportSetup* setup, Transport* transport) {
  const std::lock_guard<std::mutex> lock(mutex_);
  live_setup_ = setup;
  live_transport_ = transport;
  return work_generation_->end;
}

void Worker::ReplyFromWork(const FromWorker& message) const {
  std::shared_ptr<const Send> send;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (connection_ == work_connection_) send = send_;
  }
  if (send != nullptr) (*send)(message);
}

void Worker::HandleWelcome(const cluster::v1::Welcome& welcome) {
  shelf_->Clear();
  FromWorker message;
  UseThreads(0);  // what it describes must hold with all of them
  if (const absl::Status status = loader_.OpenModel(welcome, message.mutable_described()); !status.ok()) {
    Log(absl::StrCat("the model cannot be read: ", status.ToString()));
    message.mutable_described()->set_error(Message(status));
  }
  ReplyFromWork(message);
}

// As many as the coordinator allows; 0: all that this worker has.
void Worker::UseThreads(uint32_t threads) {
  if (threads_ == 0) return;
  backend_->UseThreads(threads == 0 ? threads_ : static_cast<int>(std::min<uint32_t>(threads, threads_)));
}

absl::Status Worker::Form(const cluster::v1::Form& form) {
  UseThreads(form.threads());
  GF_RETURN_IF_ERROR(transport_factory_->Reach(form.reach()));
  GF_ASSIGN_OR_RETURN(const StageAssignment assignment, loader_.LoadStage(form));
  GF_ASSIGN_OR_RETURN(runner_, StageRunner::Create(assignment, *backend_, loader_.stage(), shelf_.get()));
  GF_RETURN_IF_ERROR(loader_.ReserveKept(assignment));
  traffic_ = assignment.Traffic(loader_.shape());
  GF_ASSIGN_OR_RETURN(setup_,
                      transport_factory_->Setup(assignment.transport_key, assignment.stage, traffic_, *backend_));
  GF_RETURN_IF_ERROR(Publish(setup_.get(), nullptr));

  FromWorker message;
  cluster::v1::Joined& joined = *message.mutable_joined();
  joined.set_generation(work_generation_->number);
  for (const std::string& address : setup_->addresses()) joined.add_addresses(address);
  joined.set_weight_bytes(loader_.memory().weights);
  joined.set_reserved_bytes(loader_.memory().total());
  for (const MemoryPart& part : loader_.memory().Parts()) {
    cluster::v1::MemoryPart& to = *joined.add_memory();
    to.set_name(part.name);
    to.set_bytes(part.bytes);
  }
  if (shelf_->bytes() > 0) DescribeParts(loader_.stage().saved_parts(), &joined);
  joined.set_numerics(
      absl::StrCat(backend_->kind() == DeviceKind::kCpu ? "cpu-" : "cuda-", Name(backend_->activation_dtype())));
  ReplyFromWork(message);
  return absl::OkStatus();
}

absl::Status Worker::Connect(const cluster::v1::Connect& connect) {
  if (setup_ == nullptr) return absl::InvalidArgumentError("Connect: the stage is connected");
  const std::vector<std::string> addresses(connect.addresses().begin(), connect.addresses().end());
  GF_ASSIGN_OR_RETURN(std::unique_ptr<Transport> transport,
                      setup_->Connect(addresses, options_.connect_timeout_seconds));
  if (!Publish(nullptr, transport.get()).ok()) transport->Abort();
  transport_ = std::move(transport);
  setup_.reset();
  free_since_ = Clock::now();
  FromWorker message;
  message.mutable_ready()->set_generation(work_generation_->number);
  ReplyFromWork(message);
  return absl::OkStatus();
}

absl::Status Worker::RunStep(const cluster::v1::Step& step) {
  if (transport_ == nullptr) return absl::InvalidArgumentError("Step before Connect");
  if (last_step_ && step.id() != *last_step_ + 1) {
    return absl::InvalidArgumentError(absl::StrCat("Step.id is ", step.id(), " after ", *last_step_));
  }
  last_step_ = step.id();
  GF_RETURN_IF_ERROR(AwaitSteps(kPendingStepsMax - 1));
  PendingStep pending;
  pending.begin = Clock::now();
  pending.answer = std::make_unique<FromWorker>();
  cluster::v1::StepDone& done = *pending.answer->mutable_step_done();
  GF_RETURN_IF_ERROR(runner_->Run(step, *transport_, &done, &pending.running));
  done.set_generation(step.generation());
  done.set_id(step.id());
  pending_.push_back(std::move(pending));
  return AnswerSteps();
}

void Worker::HandleDrop(const cluster::v1::Drop& drop) {
  for (const uint64_t segment : drop.segments()) shelf_->Drop(segment);
  for (const uint64_t segment : drop.snapshots()) shelf_->DropSnapshot(segment);
}

absl::Status Worker::AnswerMeasureLinks() {
  if (transport_ == nullptr) return absl::InvalidArgumentError("MeasureLinks before Connect");
  GF_RETURN_IF_ERROR(AwaitSteps(0));
  GF_ASSIGN_OR_RETURN(const std::vector<LinkSpeed> links, MeasureLinks(traffic_, *transport_, *backend_));
  FromWorker message;
  message.mutable_links_measured()->set_generation(work_generation_->number);
  for (const LinkSpeed& link : links) {
    cluster::v1::MeasuredLink& to = *message.mutable_links_measured()->add_links();
    to.set_stage(static_cast<uint32_t>(link.stage));
    to.set_bytes_per_second(link.bytes_per_second);
    to.set_round_trip_seconds(link.round_trip_seconds);
  }
  ReplyFromWork(message);
  return absl::OkStatus();
}

absl::Status Worker::AwaitSteps(size_t most) {
  for (;;) {
    GF_RETURN_IF_ERROR(AnswerSteps());
    if (pending_.size() <= most) return absl::OkStatus();
    std::unique_lock<std::mutex> lock(mutex_);
    const absl::Status& end = work_generation_->end;
    if (wake_.wait_for(lock, kPollTime, [&] { return stopping_ || !end.ok(); })) return end;
  }
}

absl::Status Worker::AnswerSteps() {
  while (!pending_.empty()) {
    PendingStep& pending = pending_.front();
    const bool done = pending.running.Poll();
    // A step that is done has good results if nothing had failed by then, so failures are asked for after Poll.
    GF_RETURN_IF_ERROR(transport_->status());
    GF_RETURN_IF_ERROR(backend_->status());
    if (!done) return absl::OkStatus();
    // Where weights are read from the mapped file, an answer counts only if the file was whole when it was computed.
    if (backend_->reads_weights_in_place()) GF_RETURN_IF_ERROR(loader_.CheckModelUnchanged());
    cluster::v1::StepDone& answer = *pending.answer->mutable_step_done();
    pending.running.FillTimes(free_since_, &answer);
    answer.set_idle_seconds(std::max(0.0, std::chrono::duration<double>(pending.begin - free_since_).count()));
    free_since_ = pending.running.end();
    ReplyFromWork(*pending.answer);
    pending_.pop_front();
    if (pending_.empty()) GF_RETURN_IF_ERROR(backend_->Synchronize());  // which is quick, as nothing is queued
  }
  return absl::OkStatus();
}

}  // namespace goldfinch
