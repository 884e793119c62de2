// The coordinator's core: one thread that owns the scheduler, the membership, time, and the streams to workers. What
// clients and workers say is put into its queue; nothing else touches its state.
#ifndef GOLDFINCH_COORDINATOR_COORDINATOR_H_
#define GOLDFINCH_COORDINATOR_COORDINATOR_H_

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "coordinator/dispatcher.h"
#include "coordinator/membership.h"
#include "coordinator/scheduler.h"
#include "coordinator/worker_link.h"

namespace goldfinch {

class Metrics;

struct CoordinatorOptions {
  MembershipOptions membership;
  int max_queue = 1024;                  // requests that may wait
  double step_timeout_seconds = 120;     // no stage has answered for so long: the first that owes an answer is lost
  double recovery_timeout_seconds = 60;  // without a group for so long, requests end with UNAVAILABLE

  std::string served_model_name;
  std::string server_version;
  std::string vocab;  // file or "bytes"; empty: as OpenTokenizer says

  // Called once by the coordinator's thread when it cannot serve the model (no vocabulary); may be null.
  std::function<void(absl::Status)> on_fatal;
};

class Coordinator : public Dispatcher, public WorkerListener {
 public:
  // `metrics` must outlive it.
  Coordinator(CoordinatorOptions options, Metrics* metrics);
  // Ends all requests with UNAVAILABLE and closes all links.
  ~Coordinator() override;

  // Takes no more requests, waits for those that run and wait, at most so long, and ends the rest with UNAVAILABLE.
  void Drain(double timeout_seconds);

  // Dispatcher.
  std::shared_ptr<const ServedModel> model() const override;
  bool ready() const override { return ready_ && !draining_; }
  void FillClusterInfo(v1::GetClusterInfoResponse* info) const override;
  absl::StatusOr<uint64_t> Submit(Request request, std::shared_ptr<RequestSink> sink) override;
  void Cancel(uint64_t number, absl::Status status) override;
  void Resume(uint64_t number) override;

  // WorkerListener.
  uint64_t Connected(std::shared_ptr<WorkerLink> link, const std::string& address) override;
  void Received(uint64_t worker, cluster::v1::FromWorker message) override;
  void Disconnected(uint64_t worker) override;

 private:
  using Task = absl::AnyInvocable<void(double now)>;
  struct StepInFlight {
    uint64_t id = 0;
    double start = 0;
    int64_t tokens = 0;
    int64_t prefill_tokens = 0;
    std::vector<bool> answered;  // by stage
    double busy_max_seconds = 0;
  };

  // Any thread.
  void Post(Task task) const;

  // The coordinator's thread.
  void Run();
  void Tick(double now);
  void Settle(double now);
  void HandleEvent(MembershipEffects::Event& event, double now);
  void HandleModel(double now);
  void HandleGroupReady(int group, double now);
  void HandleGroupLost(int group, double now);
  void HandleStepDone(int group, int stage, const cluster::v1::StepDone& done, double now);
  void SendSteps(int group, double now);
  void CheckSteps(int group, double now);
  void PublishEvents();
  void PublishGauges();
  void FillCounts(double now, v1::GetClusterInfoResponse* info) const;

  const CoordinatorOptions options_;
  Metrics* const metrics_;

  mutable std::mutex mutex_;
  mutable std::condition_variable changed_;
  mutable std::vector<Task> tasks_;           // guarded by mutex_
  bool stop_ = false;                         // guarded by mutex_
  std::shared_ptr<const ServedModel> model_;  // guarded by mutex_
  std::string waiting_reason_;                // guarded by mutex_: why no group is ready
  std::atomic<uint64_t> last_number_ = 0;
  std::atomic<bool> ready_ = false;
  std::atomic<bool> accepting_ = true;  // a group is ready or may form in time
  std::atomic<bool> draining_ = false;
  std::atomic<double> seconds_per_prompt_token_ = 0;

  // Of the coordinator's thread alone.
  Scheduler scheduler_;
  Membership membership_;
  std::map<uint64_t, std::shared_ptr<WorkerLink>> links_;
  std::vector<std::deque<StepInFlight>> steps_;  // by group
  std::vector<double> last_answers_;             // by group: when a stage last answered a Step
  StepPlan plan_;
  double start_ = 0;
  double no_group_since_ = 0;  // < 0: there is one
  double next_tick_ = 0;
  int64_t prompt_tokens_ = 0;
  int64_t generation_tokens_ = 0;

  std::thread thread_;
};

}  // namespace goldfinch

#endif  // GOLDFINCH_COORDINATOR_COORDINATOR_H_
