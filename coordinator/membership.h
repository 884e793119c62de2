// Which workers there are and which groups they form. Pure: messages, losses and ticks in, effects out; no clock, no
// I/O, no thread.
//
// A group is one pipeline, in one of `replicas` places. It forms when there are workers for all its stages, and lives
// for one generation: when one of its workers is lost, fails or leaves, the generation ends and the workers that are
// left are spares again. The place then takes spares, each at its old rank where it can, so that it keeps its layers
// loaded. With too few of them it waits `regroup_wait_seconds` for more, then forms with those there are. A group that
// is smaller than wanted grows once there are workers enough and it is idle.
#ifndef GOLDFINCH_COORDINATOR_MEMBERSHIP_H_
#define GOLDFINCH_COORDINATOR_MEMBERSHIP_H_

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "coordinator/planner.h"
#include "coordinator/scheduler.h"
#include "protos/cluster.pb.h"

namespace goldfinch {

namespace v1 {
class GetClusterInfoResponse;
}  // namespace v1

struct MembershipOptions {
  int replicas = 1;
  int stages = 1;  // wanted in each
  PartitionOptions plan;

  // What workers are told in Welcome.
  std::string model;
  std::string config;
  std::string verify;
  std::string cache_dtype;

  double heartbeat_interval_seconds = 1;
  double heartbeat_timeout_seconds = 5;  // without a word of a worker, it is lost
  double form_timeout_seconds = 600;     // loading and verifying weights
  double regroup_wait_seconds = 1;
};

// What the caller has to do, in this order.
struct MembershipEffects {
  struct Event {
    enum Kind { kModelKnown, kGroupReady, kGroupLost, kStepDone };
    Kind kind;
    int group = 0;
    int stage = 0;                         // kStepDone
    std::string reason = {};               // kGroupLost
    cluster::v1::StepDone step_done = {};  // kStepDone
  };
  std::vector<std::pair<uint64_t, cluster::v1::ToWorker>> sends;  // to that worker
  std::vector<uint64_t> closes;                                   // links to close, after the sends
  std::vector<Event> events;
  std::vector<std::string> log;  // for people
};

class Membership {
 public:
  explicit Membership(MembershipOptions options);
  ~Membership();

  // `now` is in seconds and never goes back.
  void Connected(uint64_t worker, const std::string& address, double now);
  void Received(uint64_t worker, cluster::v1::FromWorker message, double now);
  void Disconnected(uint64_t worker, double now);
  // Some times a second. `idle`: by group, nothing runs there.
  void Tick(double now, const std::vector<bool>& idle);
  // Ends a group's generation, because of `reason`.
  void EndGroup(int group, const std::string& reason, double now);
  // Ends the connection of the worker that runs a stage, which hangs.
  void LoseStage(int group, int stage, const std::string& reason, double now);
  // What the sampleable ids are; before the first group can form.
  void SetVocabulary(std::string sampleable_bits, std::string repeats_freely_bits, double now);

  MembershipEffects TakeEffects() { return std::exchange(effects_, {}); }

  // Set by kModelKnown.
  const cluster::v1::Described& model() const { return *model_; }
  bool has_model() const { return model_ != nullptr; }
  bool ready(int group) const;
  int groups_ready() const;
  int workers() const { return static_cast<int>(workers_.size()); }
  uint64_t last_generation() const { return last_generation_; }
  // Of a ready group.
  GroupCapacity Capacity(int group) const;
  double SecondsPerPromptToken(int group) const;
  uint64_t generation(int group) const;
  struct StageView {
    uint64_t worker;
    bool looks_at_ids;
    bool is_last;
  };
  const std::vector<StageView>& stages(int group) const;
  // Of all pages of the group's caches, as its stages last told.
  int64_t CacheBytes(int group) const;
  // What GOLD layers keep beside the compressed caches, likewise.
  int64_t GoldKeptBytes(int group) const;
  // What a transformer of the model's shape would keep in as many pages; with a model.
  int64_t TransformerCacheBytes(int group) const;
  int64_t StateBytesPerSequence() const;
  // The groups and spares; sequences and requests are not known here.
  void FillClusterInfo(double now, v1::GetClusterInfoResponse* info) const;

 private:
  struct Worker;
  struct Stage;
  struct Group;

  void Send(uint64_t worker, cluster::v1::ToWorker message);
  void Refuse(uint64_t id, const std::string& why, double now);
  void Lose(uint64_t id, const std::string& why, double now);
  void HandleRegister(uint64_t id, Worker& worker, const cluster::v1::Register& message, double now);
  void HandleDescribed(uint64_t id, Worker& worker, cluster::v1::Described message, double now);
  void HandleJoined(Worker& worker, const cluster::v1::Joined& message, double now);
  void HandleReady(Worker& worker, const cluster::v1::Ready& message, double now);
  void HandleStepDone(Worker& worker, cluster::v1::StepDone message);
  // The group of a worker whose message is of this generation, else null.
  Group* GroupOf(const Worker& worker, uint64_t generation);

  void FormGroups(double now);
  std::vector<uint64_t> Spares() const;
  std::vector<uint64_t> Seat(const Group& group, std::vector<uint64_t> spares, size_t stages) const;
  absl::StatusOr<Partition> PlanFor(const Group& group, const std::vector<uint64_t>& members) const;
  bool Form(Group& group, const std::vector<uint64_t>& members, double now);
  void Dissolve(Group& group, const std::string& reason, double retry_at, double now);
  void CheckForming(Group& group, double now);
  void Grow(Group& group, double now);

  const MembershipOptions options_;
  std::unique_ptr<cluster::v1::Described> model_;
  bool has_vocabulary_ = false;
  std::string sampleable_bits_;
  std::string repeats_freely_bits_;
  std::map<uint64_t, std::unique_ptr<Worker>> workers_;
  std::vector<std::unique_ptr<Group>> groups_;
  uint64_t last_generation_ = 0;
  double last_tick_ = -1;
  double last_ping_ = -1e9;
  uint64_t last_ping_number_ = 0;
  MembershipEffects effects_;
};

}  // namespace goldfinch

#endif  // GOLDFINCH_COORDINATOR_MEMBERSHIP_H_
