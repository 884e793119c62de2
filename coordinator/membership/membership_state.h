// Membership's private state, for its own source files alone: workers, stages, and replicas with their groups.
#ifndef GOLDFINCH_COORDINATOR_MEMBERSHIP_MEMBERSHIP_STATE_H_
#define GOLDFINCH_COORDINATOR_MEMBERSHIP_MEMBERSHIP_STATE_H_

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/stage_memory.h"
#include "coordinator/membership/membership.h"
#include "coordinator/shelves/shelf_group.h"
#include "protos/cluster.pb.h"

namespace goldfinch {

// How long a replica waits after a worker's EndGeneration: the loss that caused it may be about to show up.
inline constexpr double kRetrySeconds = 0.05;
// Seconds before planning is retried after the model did not fit.
inline constexpr double kPartitionRetrySeconds = 1;

// A worker's part of what its host has.
struct Membership::HostShare {
  int64_t memory_bytes = 0;
  uint32_t threads = 0;  // 0: it computes on a GPU
  int on_device = 1;     // how many workers share the GPU, itself included
};

// A group that can form.
struct Membership::GroupPlan {
  std::vector<uint64_t> members;  // [stages]
  std::vector<HostShare> shares;  // [stages]
  std::vector<uint64_t> users;    // of the hosts, by which these are their shares
  PartitionOptions limits;        // of Steps, sequences and caches
  Partition partition;            // within these limits
  std::string shortage;           // why limits are less than MembershipOptions::partition; empty: they are not
};

// One connection. A worker is registered, then described, and from then on a spare or a stage of a group.
struct Membership::Worker {
  std::string address;
  bool registered = false;
  cluster::v1::Register registration;
  bool described = false;
  ModelMemory memory;  // the model's memory on this worker
  double last_heard = 0;
  std::optional<uint64_t> progress;  // of its last Pong

  Replica* replica = nullptr;  // null: it is no stage
  int stage = 0;
  // The stage it last was; old_replica is -1 if it never was one.
  int old_replica = -1;
  int old_stage = 0;
  bool was_ready = false;  // it has been part of a ready group
  int failures = 0;        // groups that did not become ready, perhaps because of it, since it last was part of one

  bool spare() const { return described && replica == nullptr; }
};

// One stage of a group, with what its worker last reported.
struct Membership::Stage {
  uint64_t worker = 0;
  int first_layer = 0;
  int last_layer = 0;  // one after the last
  HostShare share;
  bool joined = false;
  bool ready = false;
  bool measures_links = false;  // it was asked to, and has not answered

  // From Joined:
  std::vector<std::string> addresses;  // [stages]
  int64_t weight_bytes = 0;
  int64_t reserved_bytes = 0;
  std::vector<std::pair<std::string, int64_t>> memory;  // (use, bytes)
  ShelfStage shelf;                                     // without parts: it cannot be moved to and from
  std::string numerics;

  // From StepDone, the latest values:
  int64_t cache_bytes = 0, cache_tokens = 0;
  int64_t gold_kept_bytes = 0;
  int64_t gold_tier_drops = 0;
  // From StepDone, summed over this generation:
  double busy_seconds = 0, bubble_seconds = 0, idle_seconds = 0;
  uint64_t hidden_bytes = 0, compressed_bytes = 0, id_bytes = 0;
};

// A replica and its present group.
struct Membership::Replica {
  enum class State { kWaiting, kForming, kReady };

  int index = 0;
  State state = State::kWaiting;
  double since = 0;                             // when it entered this state
  double retry_at = 0;                          // it does not form, or grow, before this
  bool was_ready = false;                       // some generation of it has been ready
  int failures = 0;                             // groups in a row that did not become ready
  std::string message = "waiting for workers";  // for people; empty when ready

  // kReady:
  bool shrunken = false;       // its caches or slots are fewer than wanted
  double may_grow_since = -1;  // when workers for a larger group were there; < 0: they are not
  double drains_since = -1;    // when it got its last Step, before it ends; < 0: it does not drain
  std::string drains_for;      // why it is about to end
  // Times that it has grown, under load and while it was idle, without having been whole for long since.
  int regrowths = 0, idle_regrowths = 0;
  std::vector<uint64_t> next_workers;  // of the group that forms next, if they are all still there

  // kReady:
  bool wants_links = false;  // some links have not been measured yet
  std::optional<SplitAdvice> advice;
  double better_since = -1;  // since when the advice has been to change the split; < 0: it is not

  std::vector<int> ready_split;                   // of the last group that was ready
  std::optional<ExpectedTraffic> traffic;         // that groups are planned for; not set: as MembershipOptions says
  std::optional<ExpectedTraffic> traffic_before;  // what it was before the last change of the split
  bool replans = false;                           // the split is being changed: the next group need not keep it
  int replans_done = 0;                           // without having kept one for long since
  double last_replan = 0;

  // The group, or what the last one was.
  uint64_t generation = 0;
  Partition partition;
  PartitionOptions limits;   // of the partition
  uint64_t steps = 0;        // that are done
  double last_progress = 0;  // LastProgress
  // Empty while it waits.
  std::vector<Stage> stages;
  std::vector<StageView> views;  // [stages]
};

}  // namespace goldfinch

#endif  // GOLDFINCH_COORDINATOR_MEMBERSHIP_MEMBERSHIP_STATE_H_
