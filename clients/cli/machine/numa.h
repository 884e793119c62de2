// NUMA nodes: which CPUs are near which memory, and keeping threads there.
#ifndef GOLDFINCH_CLIENTS_CLI_MACHINE_NUMA_H_
#define GOLDFINCH_CLIENTS_CLI_MACHINE_NUMA_H_

#include <sched.h>

#include <string>
#include <vector>

namespace goldfinch {

struct NumaNode {
  int number = 0;
  std::vector<int> cpus = {};  // that this process may use, ascending; at least one

  bool operator==(const NumaNode&) const = default;
};

// The nodes with CPUs of `allowed`, by number. Reads /sys/devices/system/node below `root`, which is "/" but for tests.
// Empty if the system does not say, or if some allowed CPU is on no node.
std::vector<NumaNode> ReadNumaNodes(const std::vector<int>& allowed, const std::string& root);
// Those of this process on this machine.
std::vector<NumaNode> ThisMachinesNodes();

// The CPUs of a list as Linux writes it, "0-3,8", ascending. Empty if it is none, or if there are CPUs from CPU_SETSIZE
// on.
std::vector<int> ParseCpuList(const std::string& list);

// While it exists, the calling thread runs on these CPUs, and so does every thread that it starts meanwhile, for as
// long as that one lives. Linux gives a thread memory of the node that it runs on when it first writes there, so what
// these threads fill lies beside them, as does what they are the first to read of a file. Without CPUs, or if the
// system refuses, nothing changes. To be destroyed by the thread that made it.
class RunsOn {
 public:
  explicit RunsOn(const std::vector<int>& cpus);
  ~RunsOn();
  RunsOn(const RunsOn&) = delete;
  RunsOn& operator=(const RunsOn&) = delete;

 private:
  bool changed_ = false;
  cpu_set_t before_;
};

}  // namespace goldfinch

#endif  // GOLDFINCH_CLIENTS_CLI_MACHINE_NUMA_H_
