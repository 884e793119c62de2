// Knows the workers, and forms groups of them. Pure: messages, losses and ticks come in, effects go out; no clock, no
// I/O, no thread.
//
// A replica is an index, 0..replicas-1. Its group is the workers that form its pipeline, and lives for one generation:
//
//                          enough spares: send Form
//      +---------+ ---------------------------------------> +---------+
//      | waiting |                                          | forming |  all sent Joined: send Connect
//      +---------+ <-------------- EndGeneration ---------- +---------+
//           ^                                                    |  all sent Ready: kGenerationReady
//           |                                                    v
//           |                                               +---------+
//           +------- EndGeneration: kGenerationEnded ------ |  ready  |  Steps run
//                                                           +---------+
//
// | a generation ends because                                            | the replica may form again      |
// |----------------------------------------------------------------------|---------------------------------|
// | WorkerLost: its stream ended, no message for heartbeat_timeout, not  | at once                         |
// |   Ready within form_timeout, no answer to a Step, refused (a message |                                 |
// |   is not within the limits of worker_messages.h), leaves             |                                 |
// | a worker sent EndGeneration, or its messages do not fit              | after a moment, in which a loss |
// | the caller calls EndGeneration                                       |   that caused it shows up, too  |
// | the group is smaller than wanted, and there are more spares: at once | at once                         |
// |   if it is idle, or soon if it has grown so lately; else after       |                                 |
// |   regrow_after, when its Steps are done                              |                                 |
// | another replica's workers need their share of its hosts, and its     | at once                         |
// |   Steps are done                                                     |                                 |
// | another split would serve its traffic in less time (`replan`), and   | at once                         |
// |   its Steps are done                                                 |                                 |
//
// A group that fails to become ready is tried again at growing intervals. Any worker that was not ready by then may be
// why, newcomers before others: those stand back as long as the others can hold the model. When a generation ends, the
// workers that are left become spares. The next group takes spares, each at its previous stage where possible, so that
// it keeps its layers loaded (but a worker gives them up after a while in no group). If there are too few, the
// replica waits `regroup_wait_seconds` for more and then forms a smaller group; a replica that has never been ready
// waits for all its stages. If what is left cannot hold the plan, the group has smaller caches and fewer slots, down to
// one of each, and grows back when there are workers for it.
//
// Workers of one host share its memory and threads: each gets, with Form, an equal part of what those that were given
// parts of their own leave.
//
// Implementation: membership.cc keeps the workers and ends generations, membership_forming.cc forms groups,
// membership_growing.cc ends those that should be larger, membership_splits.cc those that should be split otherwise, by
// links that it has measured; membership_hosts.cc shares hosts out, membership_info.cc answers questions;
// membership_state.h has the state that they share.
#ifndef GOLDFINCH_COORDINATOR_MEMBERSHIP_MEMBERSHIP_H_
#define GOLDFINCH_COORDINATOR_MEMBERSHIP_MEMBERSHIP_H_

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/shared_key.h"
#include "coordinator/keeper/context_keeper.h"
#include "coordinator/planner/planner.h"
#include "coordinator/planner/split_advice.h"
#include "coordinator/scheduler/scheduler.h"
#include "coordinator/shelves/shelf_group.h"
#include "protos/cluster.pb.h"

namespace goldfinch {

namespace v1 {
class GetClusterInfoResponse;
class TrafficInfo;
}  // namespace v1

// The most tokens of a step where partition.max_step_tokens is 0: enough for long steps of prompts.
inline constexpr int64_t kGpuStepTokens = 4096, kCpuStepTokens = 512;

struct MembershipOptions {
  int replicas = 1;
  int stages = 1;              // of each replica; fewer after losses, and in models of fewer layers
  PartitionOptions partition;  // max_step_tokens may be 0: by the devices, and fewer where memory is short

  // What workers are told in Welcome.
  std::string model;
  std::string config;
  std::string verify;
  std::string cache_dtype;

  // The model that is served: all workers must describe it like this. If not set, the first worker to describe a model
  // decides which it is, and `fingerprint`, if it is not empty, which it may be.
  std::optional<cluster::v1::Described> description;
  std::string fingerprint;
  // Nobody else knows it. The keys of generations and the tokens of Contexts streams are derived from it.
  std::string secret;
  int workers_max = 1024;  // connections of workers; more are refused
  std::string network;     // of the coordinator's own host, as Register.network of the workers on it

  double heartbeat_interval_seconds = 1;
  double heartbeat_timeout_seconds = 5;  // a worker that has sent nothing for so long is lost
  double form_timeout_seconds = 600;     // for loading and verifying weights
  double regroup_wait_seconds = 1;       // how long a replica waits for more workers before it forms a smaller group
  // How long a group that is smaller than wanted serves on when there are workers for a larger one. Longer, up to 64
  // times, if it has grown before and lost workers again, or if they did not become stages: all sequences are read anew
  // each time.
  double regrow_after_seconds = 30;
  bool contexts = true;  // whether workers get a token for a Contexts stream
  // Whether a group ends so that the next one has another split, which would serve its real traffic in less time: at
  // least by the part `replan_gain`, without a break for `replan_after_seconds`, or up to 64 times as long if its split
  // has been changed lately. All sequences are read anew each time. Not if the partition has a split that was given.
  bool replan = false;
  double replan_gain = 0.1;
  double replan_after_seconds = 60;
};

void FillTraffic(const ExpectedTraffic& traffic, v1::TrafficInfo* info);

// What the caller has to do, in the order of the fields.
struct MembershipEffects {
  struct Event {
    enum Kind { kModelKnown, kGenerationReady, kGenerationEnded, kLinksMeasured };
    Kind kind;
    int replica = 0;
    std::string reason = {};  // of kGenerationEnded
  };
  std::vector<std::pair<uint64_t, cluster::v1::ToWorker>> sends;  // to the worker of that number
  std::vector<uint64_t> closes;                                   // connections to close after the sends
  std::vector<Event> events;
  std::vector<std::string> log;  // for people; words of workers in it are safe (base/safe_text.h)
};

// A worker's part in the present generation of a replica.
struct StageOfWorker {
  int replica = 0;
  int stage = 0;
};

// Not thread-safe. `now` is in seconds and never goes back. A worker's id is the number of its connection; ids of
// connections that have been closed are ignored. After every call that takes `now`, the caller carries out
// TakeEffects().
class Membership {
 public:
  explicit Membership(MembershipOptions options);
  ~Membership();

  void Connected(uint64_t id, const std::string& address, double now);
  // Takes every message but StepDone.
  void Received(uint64_t id, cluster::v1::FromWorker message, double now);
  // Counts what a StepDone says of the worker's time, traffic and caches, and says whose answer it is. Nothing if the
  // worker is not a stage of a ready group of the message's generation: the caller ignores the answer then. Times of
  // which more were claimed than have passed since the group became ready are lowered in the message.
  std::optional<StageOfWorker> ReceivedStepDone(uint64_t id, cluster::v1::StepDone* message, double now);
  void Disconnected(uint64_t id, double now);
  // The worker is dead or hangs: closes its connection, and ends the generation of its group.
  void WorkerLost(uint64_t id, const std::string& reason, double now);
  // Ends the generation of a replica's group, if there is one.
  void EndGeneration(int replica, const std::string& reason, double now);
  // Call it several times a second. `idle` says for each replica whether nothing runs there.
  void Tick(double now, const std::vector<bool>& idle);
  // Whether the replica's group is about to end and must get no more Steps. When those in flight are done, the caller
  // calls Drained; if that takes too long, the generation ends without it.
  bool draining(int replica) const;
  void Drained(int replica, double now);
  // The answer to QuestionOfSplit about a generation of the replica; ignored if that has ended. Ask again every few
  // seconds: what is true for long enough may end the generation (MembershipOptions::replan).
  void Advised(int replica, uint64_t generation, SplitAdvice advice, double now);
  // The model cannot be served after all: refuses the workers that have described it, and forgets it unless it is
  // MembershipOptions::description.
  void RejectModel(const std::string& reason, double now);
  // The bit sets of Form. No group forms before this is called; call it after kModelKnown.
  void SetVocabulary(std::string sampleable_bits, std::string repeats_freely_bits, double now);

  MembershipEffects TakeEffects() { return std::exchange(effects_, {}); }

  // The model that is served; from kModelKnown on.
  const cluster::v1::Described& model() const { return *model_; }
  bool has_model() const { return model_ != nullptr; }
  bool ready(int replica) const;
  int groups_ready() const;
  int workers() const { return static_cast<int>(workers_.size()); }
  int spares() const;
  uint64_t last_generation() const { return last_generation_; }

  // These are for replicas whose group is ready.
  GroupCapacity Capacity(int replica) const;
  // What its workers can keep of texts.
  ShelfCapacity Shelf(int replica) const;
  // What its shelves hold, so that it can be moved; nothing if a worker has not said it.
  std::optional<ShelfGroup> Shelves(int replica) const;
  // What another split is to be compared by, if `traffic` is that of each replica.
  SplitQuestion QuestionOfSplit(int replica, const ExpectedTraffic& traffic) const;
  // What has been measured of the links between its stages.
  struct LinkView {
    int from;  // stages
    int to;
    double bytes_per_second;  // 0: not known
    double round_trip_seconds;
  };
  std::vector<LinkView> Links(int replica) const;
  // Whether all its stages compute on GPUs.
  bool OnGpus(int replica) const;
  uint64_t generation(int replica) const;
  // When a stage last said that its device had got on with work since the Pong before; 0: never.
  double LastProgress(int replica) const;
  struct StageView {
    uint64_t worker;
    bool reads_ids;
    bool is_last;
  };
  const std::vector<StageView>& stages(int replica) const;

  // Bytes of the cache pages in use, over all stages of the replica, as last reported by each stage.
  int64_t CacheBytes(int replica) const;
  // Positions for which the pages in use have room, likewise.
  int64_t CacheTokens(int replica) const;
  // Bytes of what GOLD layers keep beside the compressed caches, likewise.
  int64_t GoldKeptBytes(int replica) const;
  // Bytes that a transformer of the model's shape would keep for the same positions. From kModelKnown on. At most 2^62.
  int64_t TransformerCacheBytes(int replica) const;
  // Bytes of the recurrent states of one sequence, over all layers. From kModelKnown on.
  int64_t StateBytesPerSequence() const;
  // Sets groups, spare workers and the generation; Membership does not know sequences and requests.
  void FillClusterInfo(double now, v1::GetClusterInfoResponse* info) const;

 private:
  struct Worker;
  static bool OnGpu(const Worker& worker);
  struct Stage;
  struct Replica;
  struct HostShare;
  struct GroupPlan;
  // From one worker to another.
  struct Link {
    double bytes_per_second = 0;  // 0: its messages were too small to tell
    double round_trip_seconds = 0;
  };

  // membership.cc
  Worker* Heard(uint64_t id, bool registers, double now);
  void Send(uint64_t worker, cluster::v1::ToWorker message);
  void Refuse(uint64_t id, const std::string& reason, double now);
  void HandleRegister(uint64_t id, Worker& worker, const cluster::v1::Register& message, double now);
  void HandleDescribed(uint64_t id, Worker& worker, cluster::v1::Described message, double now);
  absl::Status CheckModel(const cluster::v1::Described& message) const;
  void HandlePong(Worker& worker, const cluster::v1::Pong& message, double now);
  void HandleEndGeneration(Worker& worker, const cluster::v1::EndGeneration& message, double now);
  Replica* ReplicaOf(const Worker& worker, uint64_t generation);
  void EndGeneration(Replica& replica, const std::string& reason, double retry_at, double now);
  void FindSilentWorkers(double now);
  void SendPings(double now);

  // membership_forming.cc
  size_t StagesWanted() const;
  void FormGroups(double now);
  std::vector<uint64_t> Spares() const;
  size_t TrustedSpares(const Replica& replica, const std::vector<uint64_t>& spares) const;
  std::vector<uint64_t> AssignStages(const Replica& replica, std::vector<uint64_t> spares, size_t stages) const;
  absl::StatusOr<GroupPlan> PlanFor(const Replica& replica, const std::vector<uint64_t>& members,
                                    const PartitionOptions& limits) const;
  absl::StatusOr<GroupPlan> PlanAmong(const std::vector<uint64_t>& users, const Replica& replica,
                                      const std::vector<uint64_t>& members, const PartitionOptions& limits) const;
  absl::StatusOr<GroupPlan> SmallerPlanFor(const Replica& replica, const std::vector<uint64_t>& members) const;
  absl::StatusOr<GroupPlan> BestPlan(const Replica& replica, const std::vector<uint64_t>& members,
                                     bool take_less) const;
  absl::StatusOr<GroupPlan> NextPlan(const Replica& replica, double now);
  void Form(Replica& replica, GroupPlan plan, double now);
  void LogPlan(const Replica& replica, const std::string& shortage);
  void BecomeStage(Replica& replica, int index, uint64_t id, std::string reach);
  void HandleJoined(Worker& worker, const cluster::v1::Joined& message, double now);
  std::string Numerics(const Replica& replica) const;
  absl::StatusOr<ShelfGroup> ShelvesOf(const Replica& replica) const;
  void HandleReady(Worker& worker, const cluster::v1::Ready& message, double now);
  void Blame(const Replica& replica, Worker& reporter);
  void CheckForming(Replica& replica, double now);

  // membership_growing.cc
  void Grow(Replica& replica, bool idle, double now);
  std::vector<uint64_t> SparesToGrow(const Replica& replica, double now);
  std::optional<GroupPlan> LargerPlan(const Replica& replica, const std::vector<uint64_t>& spares) const;
  bool MakeRoom(Replica& replica, const std::vector<Replica*>& crowding, double now);
  void Drain(Replica& replica, const std::string& purpose, const std::string& reason, double now);

  // membership_splits.cc
  LinkSpeeds LinksAmong(const std::vector<uint64_t>& members) const;
  const Link* FindLink(uint64_t from, uint64_t to) const;
  std::vector<std::pair<int, int>> LinksUsed(const Replica& replica) const;
  bool HasUnmeasuredLinks(const Replica& replica) const;
  void MeasureLinks(Replica& replica, bool idle, double now);
  void HandleLinksMeasured(Worker& worker, const cluster::v1::LinksMeasured& message, double now);
  void ForgetLinks(uint64_t id);
  void Replan(Replica& replica, double now);

  // membership_hosts.cc
  std::vector<uint64_t> HostUsers(const Replica& replica, const std::vector<uint64_t>& members, bool with_spares) const;
  HostShare ShareOf(uint64_t id, const std::vector<uint64_t>& users) const;
  WorkerResources ResourcesOf(uint64_t id, const HostShare& share) const;
  absl::StatusOr<std::vector<Replica*>> Crowding(const Replica& replica, const GroupPlan& plan) const;
  absl::StatusOr<std::string> ReachFor(uint64_t id, const std::vector<uint64_t>& members) const;
  std::optional<std::pair<uint64_t, absl::Status>> Unreachable(const std::vector<uint64_t>& members) const;
  void ForgetOldConnection(uint64_t id, const cluster::v1::Register& message, double now);
  bool CheckGpu(uint64_t id, const cluster::v1::Register& message, double now);

  const MembershipOptions options_;
  const SharedKey secret_;
  std::unique_ptr<cluster::v1::Described> model_;
  bool has_vocabulary_ = false;
  std::string sampleable_bits_;
  std::string repeats_freely_bits_;
  std::map<uint64_t, std::unique_ptr<Worker>> workers_;  // by connection
  std::map<std::pair<uint64_t, uint64_t>, Link> links_;  // from worker to worker, as last measured
  std::vector<std::unique_ptr<Replica>> replicas_;
  uint64_t last_generation_ = 0;
  double last_tick_ = -1;
  double last_ping_ = -1e9;
  uint64_t last_ping_number_ = 0;
  MembershipEffects effects_;
};

}  // namespace goldfinch

#endif  // GOLDFINCH_COORDINATOR_MEMBERSHIP_MEMBERSHIP_H_
