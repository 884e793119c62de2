// The devices of the stages that `goldfinch serve` has in its own process.
#ifndef GOLDFINCH_CLIENTS_CLI_SERVE_STAGE_DEVICES_H_
#define GOLDFINCH_CLIENTS_CLI_SERVE_STAGE_DEVICES_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "clients/cli/flags/serve_options.h"
#include "clients/cli/machine/device.h"
#include "clients/cli/machine/machine_lock.h"
#include "clients/cli/machine/numa.h"
#include "kernels/backend.h"
#include "worker/device_speed.h"

namespace goldfinch {

// What there is to place stages on.
struct StageMachine {
  std::vector<std::string> gpu_uuids = {};  // by number; empty texts for those that cannot be asked
  std::vector<NumaNode> nodes = {};
  int threads = 1;  // that the machine's limits allow
};
StageMachine ThisStageMachine();

struct StageDevice {
  std::unique_ptr<Backend> backend;
  std::string description;   // as of OpenDevice
  int device = 0;            // stages with the same number share a GPU, or the CPUs of their NUMA nodes
  int sharing = 1;           // how many stages do
  std::vector<int> cpus;     // what its threads are to run on (RunsOn); empty: anywhere
  int64_t memory_bytes = 0;  // its own part
  int64_t shelf_bytes = 0;   // its own part of the host's memory for segments
  // Set by MeasureStages: of a GPU as if the stage had it to itself, of the CPU with its own threads.
  DeviceSpeed speed = {};
};

struct StageDevices {
  std::vector<StageDevice> stages;  // [stages]
  std::vector<MachineLock> locks;   // tell others for as long as they are held that the GPUs are taken
  std::vector<std::string> lines;   // for the log: which stages run where
};

// Opens a device for each of `count` stages, as --devices or --device of `options` say: PlaceStages places them on the
// GPUs by their memory, or PlaceOnNodes on the CPUs. Memory is divided equally among the stages of a device or, if
// --memory is given, among all. Of all GPUs, as many are opened as there are stages at most, and those are passed over
// that other workers of this machine compute on, that cannot be opened or that have no memory left; it is a usage
// error if others have all of them, and the CPU is taken if there is none. GPUs that are named are opened in any case.
// `claims`: others are to leave the GPUs alone from now on.
absl::StatusOr<StageDevices> OpenStageDevices(const ServeOptions& options, int count, const StageMachine& machine,
                                              bool claims, const DeviceOpener& open = OpenDevice);

// Measures each device once. The errors are those of MeasureDevice.
absl::Status MeasureStages(StageDevices* devices);

}  // namespace goldfinch

#endif  // GOLDFINCH_CLIENTS_CLI_SERVE_STAGE_DEVICES_H_
