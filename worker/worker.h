// One worker's part in the protocol of protos/cluster.proto, whatever carries its messages.
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
#include <vector>

#include "absl/status/status.h"
#include "kernels/backend.h"
#include "worker/context_shelf.h"
#include "worker/stage_loader.h"
#include "worker/stage_runner.h"
#include "worker/transport/transport.h"
#include "worker/worker_options.h"

namespace goldfinch {

namespace cluster::v1 {
class Connect;
class Drop;
class Form;
class FromWorker;
class Step;
class ToWorker;
class Welcome;
}  // namespace cluster::v1

// Registers with the coordinator, describes the model, and runs one stage of a group while it is part of one.
//
// Thread-safe. What takes time (reading weights, connecting, steps) is done by a thread of the worker's own, the work
// thread, so that no call blocks and a Ping is answered while a step runs.
//
// All work belongs to a connection, and once a group forms, to a generation of it:
//
//   connection 1                                        connection 2
//   |-----------------------------------------------|   |---------------------------------
//     Welcome   generation 7        generation 8          Welcome   generation 9
//     |-----|   |-------------|     |---------------|     |-----|   |---------------------
//               Form          End   Form   Disconnected             Form
//
// |            | what it counts               | who raises it         | when it ends                        |
// | ---------- | ---------------------------- | --------------------- | ----------------------------------- |
// | connection | this worker's streams to the | Connected             | Disconnected                        |
// |            | coordinator                  |                       |                                     |
// | generation | the groups that the          | the coordinator, with | EndGeneration from either side, the |
// |            | coordinator has formed       | each Form             | next Form, Connected, Disconnected, |
// |            |                              |                       | a refusal, the destructor           |
//
// The connection's number protects a new stream from answers to what an earlier one asked: they are dropped. The
// generation protects a group from the work of the one before: when it ends, messages that wait are dropped, work that
// is under way is aborted, and messages that still come with its number are ignored. The number alone is not enough,
// because it does not say whether the generation has ended, and a coordinator that has restarted counts from 1 again.
// So queued work refers to a Generation object, which knows its end.
class Worker {
 public:
  Worker(WorkerOptions options, std::unique_ptr<Backend> backend, std::unique_ptr<TransportFactory> transport);
  // Abandons the work. `send` is not called any more once this returns.
  ~Worker();

  // A stream to the coordinator has opened: the worker registers. `send` takes messages in order and is called on any
  // thread; it must not block or call this worker. It may be called once more just after Disconnected.
  void Connected(std::function<void(const cluster::v1::FromWorker& message)> send);
  // Takes a message from the coordinator. One call at a time, in the order of the stream.
  void Received(cluster::v1::ToWorker message);
  // The stream is down, which ends the generation. Connected may follow.
  void Disconnected();

  // Tells the coordinator that this worker is about to stop; the coordinator then ends the generation.
  void Leave();
  // Whether the worker is part of a group, formed or forming.
  bool in_group() const;
  // Whether the coordinator has been silent for longer than its heartbeat timeout, so that the stream should be closed.
  bool silent() const;
  // FAILED_PRECONDITION with the reason once the coordinator has refused this worker, else OK.
  absl::Status refused() const;
  // The fault of its device, after which this process cannot use it any more; else OK.
  absl::Status device_status() const { return backend_->status(); }
  // What it holds of contexts, for the Contexts stream. Emptied by each Welcome.
  ContextShelf& shelf() { return *shelf_; }

 private:
  using Clock = std::chrono::steady_clock;
  using Send = std::function<void(const cluster::v1::FromWorker& message)>;

  // A generation that this worker is or was part of.
  struct Generation {
    uint64_t number = 0;  // Form.generation
    absl::Status end;     // OK while it lives, then CANCELLED with the reason. Guarded by mutex_.
  };

  // A message for the work thread; without one, the task is to release what the generation that has ended used.
  struct Task {
    std::shared_ptr<Generation> generation;  // the one that was current when the message came
    uint64_t connection;
    std::unique_ptr<cluster::v1::ToWorker> message;
  };

  // ---- On any thread, with mutex_ held.

  // Ends the current generation, if it has not ended yet: drops its messages, aborts its transport, and leaves the work
  // thread a task to release the rest. Does not block.
  void EndGeneration(const std::string& reason);
  void Enqueue(cluster::v1::ToWorker message);

  // ---- On any thread, without mutex_.

  // Sends over the current stream, if there is one. The coordinator may be in this process, with locks of its own,
  // which is why mutex_ must not be held.
  void Reply(const cluster::v1::FromWorker& message) const;
  void Log(const std::string& line) const;

  // ---- On the work thread.

  void Work();
  void Handle(const Task& task);
  void HandleWelcome(const cluster::v1::Welcome& welcome);
  void UseThreads(uint32_t threads);
  absl::Status Form(const cluster::v1::Form& form);
  absl::Status Connect(const cluster::v1::Connect& connect);
  absl::Status RunStep(const cluster::v1::Step& step);
  absl::Status AnswerMeasureLinks();
  void HandleDrop(const cluster::v1::Drop& drop);
  // Answers the pending steps that are done, in order. An error means that a pending step will never be done.
  absl::Status AnswerSteps();
  // Waits until at most so many steps are pending. CANCELLED if the generation ends meanwhile.
  absl::Status AwaitSteps(size_t most);
  // The work of the generation has failed: releases it, and unless the generation has ended already, ends it and tells
  // the coordinator.
  void FailGeneration(const absl::Status& status);
  // Releases all that belongs to work_generation_, but keeps the stage. Its peers notice that the transport is gone.
  void ReleaseGeneration();
  // Gives back the stage's memory once no group has formed for keep_stage_seconds.
  void ReleaseStage();
  // Lets EndGeneration abort these; either may be null. Returns Generation::end, in case it came before.
  absl::Status Publish(TransportSetup* setup, Transport* transport);
  // As Reply, if the task at hand came over the current stream. A new stream must not get such answers, as the
  // coordinator does not know yet whose it is.
  void ReplyFromWork(const cluster::v1::FromWorker& message) const;

  WorkerOptions options_;  // with the bytes that the shelf has; not changed after the constructor
  const std::unique_ptr<Backend> backend_;
  const std::string device_;   // as it is with all its threads
  const int threads_;          // likewise; 0: it computes on a GPU
  const std::string process_;  // Register.process
  const std::unique_ptr<TransportFactory> transport_factory_;
  const std::unique_ptr<ContextShelf> shelf_;

  mutable std::mutex mutex_;
  std::condition_variable wake_;  // the work thread: there is a task, the generation has ended, or stopping_
  bool stopping_ = false;
  std::shared_ptr<const Send> send_;  // null while not connected
  uint64_t connection_ = 0;           // the number of the current or last connection
  absl::Status refused_;
  double heartbeat_timeout_seconds_ = 0;  // 0: the coordinator has not named one yet
  Clock::time_point last_message_;
  std::shared_ptr<Generation> generation_;  // the current or last one; never null
  std::deque<Task> tasks_;
  TransportSetup* live_setup_ = nullptr;
  Transport* live_transport_ = nullptr;

  // ---- The rest is for the work thread only.

  uint64_t work_connection_ = 0;  // over which the task at hand came
  StageLoader loader_;

  // The generation that the work thread works for, and what it uses for it; all null if there is none.
  std::shared_ptr<Generation> work_generation_;
  std::unique_ptr<StageRunner> runner_;
  std::vector<StageTraffic> traffic_;      // [stages], of setup_ and transport_
  std::unique_ptr<TransportSetup> setup_;  // until the stage is connected
  std::unique_ptr<Transport> transport_;   // from then on
  std::optional<uint64_t> last_step_;
  // A step that is queued on the back end and not answered yet.
  struct PendingStep {
    std::unique_ptr<cluster::v1::FromWorker> answer;
    RunningStep running;
    Clock::time_point begin;
  };
  std::deque<PendingStep> pending_;
  Clock::time_point free_since_;  // when the last answered step was done; before the first, when the group was ready
  // When the stage is given back unless a group forms. Only while there is a stage and no generation.
  std::optional<Clock::time_point> release_at_;

  std::thread thread_;
};

}  // namespace goldfinch

#endif  // GOLDFINCH_WORKER_WORKER_H_
