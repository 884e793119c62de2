// How many threads and how much memory this process may use: what the machine has, or less where a container or a
// service manager limits it by control groups.
#ifndef GOLDFINCH_CLIENTS_CLI_MACHINE_MACHINE_LIMITS_H_
#define GOLDFINCH_CLIENTS_CLI_MACHINE_MACHINE_LIMITS_H_

#include <cstdint>
#include <string>
#include <vector>

namespace goldfinch {

inline constexpr char kTheMachine[] = "the machine";  // the reason if nothing else sets a limit

struct MachineLimits {
  struct Memory {
    int64_t bytes = 0;
    std::string reason;  // what sets the limit: "the machine", or a file of a control group
  };
  struct Cpus {
    double count = 0;  // a quota may be a fraction of a CPU
    std::string reason;

    // To compute with: the nearest whole number, at least 1. With more threads than a quota pays for, the system stops
    // all of them for the rest of each period.
    int threads() const;
  };

  // "CPUs 1.5 (/sys/fs/cgroup/cpu.max), memory 1.07 GB (the machine)", for the log.
  std::string Describe() const;

  Memory memory;
  Cpus cpus;
};

// The smallest of `memory`, of `cpus`, and of what the control groups of this process and all groups above them allow:
// the CPU quota, the CPU set, and the memory limits (also memory.high, above which the system throttles). Reads
// control groups of version 1 and 2 and mixtures of both, below `root`, which is "/" but for tests; what is missing or
// is not understood limits nothing.
MachineLimits ReadMachineLimits(const std::vector<MachineLimits::Memory>& memory, const MachineLimits::Cpus& cpus,
                                const std::string& root);

// What is kept of texts takes this part of the memory that a process may use, unless the user says how much.
inline constexpr int64_t kContextMemoryPart = 16;

// Those of this process on this machine. Resource limits (ulimit, LimitAS= of systemd) count too.
MachineLimits ThisMachine();

}  // namespace goldfinch

#endif  // GOLDFINCH_CLIENTS_CLI_MACHINE_MACHINE_LIMITS_H_
