// One worker's behavior in the protocol of protos/cluster.proto, whatever carries the messages.
#ifndef GOLDFINCH_WORKER_WORKER_H_
#define GOLDFINCH_WORKER_WORKER_H_

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <unordered_set>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/backend.h"
#include "worker/describe.h"
#include "worker/model/model.h"
#include "worker/model/model_config.h"
#include "worker/stage/gold_tiers.h"
#include "worker/stage/stage.h"
#include "worker/stage_assignment.h"
#include "worker/stage_runner.h"
#include "worker/transport/transport.h"

namespace goldfinch {

namespace cluster::v1 {
class Connect;
class Form;
class FromWorker;
class Step;
class ToWorker;
class Welcome;
}  // namespace cluster::v1

struct WorkerOptions {
  std::string name = {};                 // for people
  std::string model = {};                // path; empty: where the coordinator says
  std::string config = {};               // the same
  int64_t memory_bytes = 0;              // that it may use, for all that base/stage_memory.h plans; 0: any
  GoldTier gold_tier = GoldTier::kFull;  // the most that GOLD layers keep of a sequence
  // Memory for it; not set: what is left of memory_bytes; on the CPU kKeptMemoryShare of them at most.
  std::optional<int64_t> kept_bytes = {};
  DeviceSpeed speed = {};               // of MeasureDevice
  double connect_timeout_seconds = 30;  // for a group's stages to reach each other
  // Lines for the log: the stage's memory, weights that are NaN, why a generation failed. Any thread. May be null.
  std::function<void(const std::string& line)> log = nullptr;
};

// Registers, describes the model, and as part of a group runs one stage of it. Thread-safe. One thread of its own does
// what takes time: reading weights, forming, steps; so no call blocks, and a Ping is answered while a step runs.
class Worker {
 public:
  Worker(WorkerOptions options, std::unique_ptr<Backend> backend, std::unique_ptr<TransportFactory> transport);
  // Abandons the work. `send` is not called after it.
  ~Worker();

  // A stream to the coordinator is up: registers. `send` takes messages in order, from any thread, must not block or
  // call the node, and may be called once more just after Disconnected.
  void Connected(std::function<void(const cluster::v1::FromWorker& message)> send);
  // A message from the coordinator. One call at a time, in order.
  void Received(cluster::v1::ToWorker message);
  // The stream is down: the generation ends. Connected may follow.
  void Disconnected();

  // Tells the coordinator that this worker ends: it will disband the group.
  void Leave();
  // Whether it is part of a group, formed or forming.
  bool in_group() const;
  // Whether the coordinator has been silent for longer than it allows: the stream should be closed.
  bool silent() const;
  // FAILED_PRECONDITION with the reason once the coordinator has refused this worker.
  absl::Status refused() const;

 private:
  using Clock = std::chrono::steady_clock;
  using Send = std::function<void(const cluster::v1::FromWorker& message)>;

  // What the working thread has to do. The message may be empty: end the group.
  struct Task {
    uint64_t era;
    uint64_t connection;
    std::unique_ptr<cluster::v1::ToWorker> message;
  };

  void Reply(const cluster::v1::FromWorker& message) const;
  void ReplyFromWork(const cluster::v1::FromWorker& message) const;
  void Log(const std::string& line) const;
  void BeginEra();                              // with the mutex held
  void Enqueue(cluster::v1::ToWorker message);  // the same

  // On the working thread.
  void Work();
  void Handle(const Task& task);
  void HandleWelcome(const cluster::v1::Welcome& welcome);
  absl::Status OpenModel(const cluster::v1::Welcome& welcome);
  absl::Status Form(uint64_t era, const cluster::v1::Form& form);
  absl::Status LoadStage(const StageAssignment& plan);
  absl::Status PlanMemory(const StageAssignment& plan);
  absl::Status VerifyWeights(const StageAssignment& plan);
  absl::Status Connect(uint64_t era, const cluster::v1::Connect& connect);
  absl::Status LoadWeights(const StageAssignment& plan);
  absl::Status ReserveKept(const StageAssignment& plan);
  absl::Status RunStep(uint64_t era, const cluster::v1::Step& step);
  // Answers the steps that are done, in order. An error is that of a step that will never be.
  absl::Status AnswerSteps();
  // Waits until another step may be queued.
  absl::Status WaitForRoom(uint64_t era);
  void Fail(uint64_t era, uint64_t generation, const absl::Status& status);
  void EndGroup();
  // Lets Received abort them; false, and they are aborted, if the era is over.
  bool Publish(uint64_t era, TransportSetup* setup, Transport* transport);

  const WorkerOptions options_;
  const std::unique_ptr<Backend> backend_;
  const std::unique_ptr<TransportFactory> transport_factory_;

  mutable std::mutex mutex_;
  std::condition_variable wake_;
  bool stopping_ = false;
  std::shared_ptr<const Send> send_;  // null when not connected
  absl::Status refused_;
  double heartbeat_timeout_seconds_ = 0;  // 0: the coordinator has said none yet
  Clock::time_point last_message_;
  // Ends with the generation: what belongs to an era that is over is dropped.
  uint64_t era_ = 0;
  uint64_t generation_ = 0;  // of the last Form
  uint64_t connection_ = 0;  // how many there have been
  bool in_group_ = false;
  std::deque<Task> tasks_;
  TransportSetup* live_setup_ = nullptr;
  Transport* live_transport_ = nullptr;

  // Of the working thread.
  uint64_t work_connection_ = 0;  // that the task at hand came by
  std::string opened_model_, opened_config_;
  std::shared_ptr<const Checkpoint> checkpoint_;
  ModelConfig config_;
  ModelShape shape_;
  std::shared_ptr<const Model> measured_;  // of all layers
  StageMemory memory_;                     // of the stage that is forming or formed
  int64_t kept_bytes_ = 0;                 // for its kept rows
  std::string verify_;
  DType cache_dtype_ = DType::kBf16;
  std::unordered_set<std::string> verified_;  // tensors
  std::shared_ptr<const Model> model_;
  std::unique_ptr<Stage> stage_;  // kept for the next generation, which may want the same

  std::unique_ptr<StageAssignment> plan_;  // of the generation; null: none
  std::unique_ptr<StageRunner> runner_;
  std::unique_ptr<TransportSetup> setup_;
  std::unique_ptr<Transport> transport_;
  std::optional<uint64_t> last_step_;
  // Queued on the back end, and not answered yet.
  struct PendingStep {
    std::unique_ptr<cluster::v1::FromWorker> answer;
    RunningStep running;
    Clock::time_point begin;
  };
  std::deque<PendingStep> pending_;
  uint64_t pending_era_ = 0;
  Clock::time_point free_since_;  // the last answered step was done, or the group was ready

  std::thread thread_;
};

}  // namespace goldfinch

#endif  // GOLDFINCH_WORKER_WORKER_H_
