// Which stage of a process runs where. Pure.
#ifndef GOLDFINCH_CLIENTS_CLI_MACHINE_PLACEMENT_H_
#define GOLDFINCH_CLIENTS_CLI_MACHINE_PLACEMENT_H_

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "clients/cli/machine/numa.h"

namespace goldfinch {

// [stages] The device of each stage, ascending, so that stages that follow each other share a device and as few
// boundaries as may be lie between two. `sizes` [devices] says how large the devices are, each at least 1: memory of
// GPUs, or CPUs of NUMA nodes. With as many stages as devices or more, each device has one at least, and each stage
// beyond goes where a stage then has most. With fewer stages, the first devices have one each.
std::vector<int> PlaceStages(int stages, absl::Span<const int64_t> sizes);

// How many stages each of the devices [devices] has.
std::vector<int> StagesOnEach(absl::Span<const int> device_of_stage, int devices);

// Where the threads of one stage run, and how many it computes with.
struct CpuPart {
  std::vector<int> cpus = {};  // ascending; empty: wherever the process may
  int threads = 1;
};
// [stages] Stages are kept within NUMA nodes: each has its part of one, or several whole ones if there are fewer stages
// than nodes. They share `threads`, at least one each, by the CPUs of their nodes. On a single node, and with a single
// stage, the system places the threads, and all stages have equally many.
std::vector<CpuPart> PlaceOnNodes(int stages, int threads, absl::Span<const NumaNode> nodes);

}  // namespace goldfinch

#endif  // GOLDFINCH_CLIENTS_CLI_MACHINE_PLACEMENT_H_
