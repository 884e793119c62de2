// The coordinator's core: one thread that owns the scheduler, the membership, the clock and the connections to workers.
// Everything that clients and workers say is put into its queue; nothing else touches its state.
//
// Implementation: coordinator.cc does the work, coordinator_info.cc tells others of it, coordinator_contexts.cc is for
// contexts by name, coordinator_store.cc for where they are kept, coordinator_transfers.cc for files of them,
// coordinator_splits.cc for what would suit the traffic.
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
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/work_queue.h"
#include "coordinator/keeper/context_directory.h"
#include "coordinator/keeper/context_keeper.h"
#include "coordinator/keeper/store_threads.h"
#include "coordinator/keeper/store_tier.h"
#include "coordinator/membership/membership.h"
#include "coordinator/membership/worker_link.h"
#include "coordinator/metrics/activity_log.h"
#include "coordinator/metrics/metrics.h"
#include "coordinator/metrics/traffic_record.h"
#include "coordinator/scheduler/dispatcher.h"
#include "coordinator/scheduler/scheduler.h"
#include "coordinator/scheduler/step.h"
#include "coordinator/scheduler/step_cost.h"
#include "coordinator/shelves/segment_mover.h"
#include "coordinator/store/segment.h"
#include "coordinator/store/store.h"

namespace goldfinch {

inline constexpr double kGpuStepTargetSeconds = 0.05;
inline constexpr double kCpuStepTargetSeconds = 0.2;

struct CoordinatorOptions {
  MembershipOptions membership;
  QueueLimits queue;
  bool overcommit = true;  // whether sequences are admitted with less memory than their worst case
  // Whether what requests read is kept for others that begin with the same text, and how.
  bool prefix_cache = true;
  SnapshotOptions snapshots;
  MoverOptions mover;
  // Where contexts are kept beside the memory of workers; null: nowhere.
  std::shared_ptr<SegmentStore> store;
  StoreTierOptions store_tier;
  // When no stage of a group has answered a Step or got on with one for so long, the first worker that owes an answer
  // is lost. A Step may take as long as it likes.
  double step_timeout_seconds = 120;
  // How long a Step should take through all stages (Scheduler, TIME); 0: kGpuStepTargetSeconds if all stages compute on
  // GPUs, else kCpuStepTargetSeconds.
  double step_target_seconds = 0;
  // How fast the past is forgotten when the traffic is averaged (TrafficRecord), and how often splits are compared by
  // it.
  double traffic_half_life_seconds = 120;
  double split_period_seconds = 10;
  // When no group has been ready for so long, requests end with UNAVAILABLE.
  double recovery_timeout_seconds = 60;

  std::string served_model_name;
  std::string server_version;
  std::string vocab;  // a file or "bytes"; empty: chosen by OpenTokenizer

  // Called by the coordinator's thread when it cannot serve membership.description because there is no vocabulary; may
  // be null. A model that only a worker has described is refused instead.
  std::function<void(absl::Status)> on_fatal;
};

// Thread-safe. The constructor starts the coordinator's thread.
class Coordinator : public Dispatcher, public ContextDirectory, public WorkerListener {
 public:
  // `metrics` must outlive it.
  Coordinator(CoordinatorOptions options, Metrics* metrics);
  // Ends all requests with UNAVAILABLE and closes all links.
  ~Coordinator() override;

  // Takes no more requests, waits at most `timeout_seconds` for those that run or wait, and ends the rest with
  // UNAVAILABLE.
  void Drain(double timeout_seconds);

  // Dispatcher.
  std::shared_ptr<const ServedModel> model() const override;
  bool ready() const override { return ready_ && !draining_; }
  void FillClusterInfo(v1::GetClusterInfoResponse* info) const override;
  absl::StatusOr<uint64_t> Submit(Request request, std::shared_ptr<RequestSink> sink) override;
  void Cancel(uint64_t number, absl::Status status) override;
  void Resume(uint64_t number) override;

  // ContextDirectory.
  void GetContext(const std::string& name_space, GetContextQuery query, Answer<NamedContext> answer) override;
  void ListContexts(const std::string& name_space, ListContextsQuery query, Answer<NamedContextPage> answer) override;
  void ForkContext(const std::string& name_space, ForkContextQuery query, Answer<NamedContext> answer) override;
  void RenameContext(const std::string& name_space, RenameContextQuery query, Answer<NamedContext> answer) override;
  void PinContext(const std::string& name_space, PinContextQuery query, Answer<NamedContext> answer) override;
  void DeleteContext(const std::string& name_space, DeleteContextQuery query, Answer<std::string> answer) override;
  void OpenExport(const std::string& name_space, ExportContextQuery query, Answer<StoredContext> answer) override;
  void OpenImport(Answer<ImportTarget> answer) override;
  void MakeRoom(const std::string& name_space, int64_t bytes, Answer<std::shared_ptr<const void>> answer) override;
  void KeepImport(const std::string& name_space, ImportedContext imported, Answer<NamedContext> answer) override;

  // WorkerListener.
  uint64_t Connected(std::shared_ptr<WorkerLink> link, const std::string& address) override;
  void Received(uint64_t worker, cluster::v1::FromWorker message) override;
  void Disconnected(uint64_t worker) override;
  ShelfListener* shelves() override { return &mover_; }

 private:
  using Task = absl::AnyInvocable<void(double now)>;
  // A Step that some stage has not answered yet.
  struct SentStep {
    uint64_t id = 0;
    double sent_at = 0;  // seconds
    StepWork work;
    std::vector<bool> answered;     // [stages]
    double busy_seconds_max = 0;    // of the stages that have answered
    std::vector<uint64_t> unsaved;  // segments for which some shelf had no room
  };

  // On any thread.
  void Post(Task task) const;

  // On the coordinator's thread.
  void Run();
  absl::Status NamesKnown() const;
  absl::Status TransfersPossible() const;
  void SubmitNamed(uint64_t number, Request request, std::shared_ptr<RequestSink> sink, double now);
  void Tick(double now);
  void Settle(double now);
  void HandleMessage(uint64_t worker, cluster::v1::FromWorker message, double now);
  void HandleStepDone(const StageOfWorker& from, cluster::v1::StepDone* done, double now);
  void ForgetAnsweredSteps(int replica, double now);
  void HandleEvent(const MembershipEffects::Event& event, double now);
  void HandleModelKnown(double now);
  void HandleGenerationReady(int replica, double now);
  void HandleGenerationEnded(int replica, double now);
  void OpenStore();
  void HandleStoreRead(StoreContents contents, double now);
  void KeepTexts(int replica, double token_seconds, double now);
  void TellContextFormat(const ContextModel& contexts);
  void MoveContexts(double now);
  void SendDrops(const std::vector<uint64_t>& workers, const ShelfDrops& drops);
  void SendSteps(int replica, double now);
  void CheckSteps(int replica, double now);
  void PublishEvents();
  void PublishGauges();
  void LogActivity(double now);
  Metrics::Memory MemoryNow() const;
  void WatchTraffic(double now);
  void ConsiderSplit(int replica, const ExpectedTraffic& traffic);
  void PublishLinks(int replica);
  void FillCounts(double now, v1::GetClusterInfoResponse* info) const;

  const CoordinatorOptions options_;
  Metrics* const metrics_;

  mutable std::mutex mutex_;
  mutable std::condition_variable changed_;
  mutable std::vector<Task> tasks_;           // guarded by mutex_
  bool stop_ = false;                         // guarded by mutex_
  std::shared_ptr<const ServedModel> model_;  // guarded by mutex_
  std::string unavailable_reason_;            // guarded by mutex_: why requests are not accepted
  std::atomic<uint64_t> last_number_ = 0;
  std::atomic<bool> ready_ = false;
  std::atomic<bool> accepting_ = true;  // a group is ready, or may be within the recovery timeout
  std::atomic<bool> draining_ = false;

  // Used by the coordinator's thread alone.
  ContextKeeper keeper_;
  Scheduler scheduler_;
  SegmentMover mover_;  // has a replica's group from HandleGenerationReady to HandleGenerationEnded
  std::unique_ptr<StoreThreads> store_threads_;  // null: there is none
  // What the store had at the start, until the first group is ready. Groups that are before are in waiting_groups_.
  std::optional<StoreContents> store_contents_;
  std::set<int> waiting_groups_;
  std::string numerics_;        // what contexts are kept of; empty: not known yet
  ContextModel context_model_;  // the same with all parts, once it is known
  Membership membership_;
  std::map<uint64_t, std::shared_ptr<WorkerLink>> links_;
  std::vector<std::deque<SentStep>> steps_;     // [replicas], oldest first
  std::vector<double> last_answers_;            // [replicas]: when a stage last answered a Step
  std::vector<std::vector<uint64_t>> members_;  // [replicas]: the workers of the group that is or was ready
  StepPlan plan_;                               // kept for its memory, as is result_
  StepResult result_;
  double start_ = 0;
  double no_group_since_ = 0;  // < 0: a group is ready
  double next_tick_ = 0;
  int64_t prompt_tokens_ = 0;
  int64_t completion_tokens_ = 0;
  ActivityLog activity_;
  TrafficRecord traffic_;
  double next_advice_ = 0;
  std::vector<bool> advising_;  // [replicas]: somebody looks for a better split

  WorkQueue planning_{1};  // its tasks use what is above
  std::thread thread_;
};

}  // namespace goldfinch

#endif  // GOLDFINCH_COORDINATOR_COORDINATOR_H_
