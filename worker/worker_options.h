// What a worker is told when it starts.
#ifndef GOLDFINCH_WORKER_WORKER_OPTIONS_H_
#define GOLDFINCH_WORKER_WORKER_OPTIONS_H_

#include <cstdint>
#include <functional>
#include <optional>
#include <string>

#include "worker/device_speed.h"
#include "worker/stage/gold_tiers.h"

namespace goldfinch {

// Where a worker runs, as it tells the coordinator. protos/cluster.proto says what the fields of Register mean.
struct WorkerPlace {
  std::string memory_pool = {};
  bool memory_given = false;
  std::string cpu_pool = {};
  bool threads_given = false;
  std::string processor = {};
  std::string address = {};
  std::string network = {};
};

struct WorkerOptions {
  std::string name = {};    // shown to people only
  std::string model = {};   // path of the checkpoint; empty: the path that the coordinator names
  std::string config = {};  // path of the model's configuration; empty: the path that the coordinator names
  // Limit on all that base/stage_memory.h plans, of which the coordinator may allow a part only; 0: no limit.
  int64_t memory_bytes = 0;
  GoldTier gold_tier = GoldTier::kFull;  // the most that GOLD layers keep of a sequence
  // Memory for kept rows, which then borrow nothing. If not set, they take what is left of memory_bytes and borrow from
  // the compressed cache.
  std::optional<int64_t> kept_bytes = {};
  // The host's memory for segments of contexts, beside memory_bytes. It is taken at once, but the CPU commits it as it
  // is used.
  int64_t shelf_bytes = 0;
  DeviceSpeed speed = {};  // as MeasureDevice returns it
  WorkerPlace place = {};
  double connect_timeout_seconds = 30;  // within which the stages of a new group must have connected to each other
  // How long a worker that is in no group keeps its stage, to be part of the next one at once. Then it gives the memory
  // back to others on its machine.
  double keep_stage_seconds = 30;
  // Takes lines for the log: the stage's memory, weights that are NaN, why a generation failed. Called on any thread.
  // May be null.
  std::function<void(const std::string& line)> log = nullptr;
};

}  // namespace goldfinch

#endif  // GOLDFINCH_WORKER_WORKER_OPTIONS_H_
