// Facts about the machine and this process.
#ifndef GOLDFINCH_CLIENTS_CLI_MACHINE_MACHINE_H_
#define GOLDFINCH_CLIENTS_CLI_MACHINE_MACHINE_H_

#include <string>

#include "absl/status/statusor.h"
#include "clients/cli/machine/machine_limits.h"

namespace goldfinch {

// "node-7:4021": host name and process.
std::string ProcessName();
// The address of this machine on the route to `target`, HOST:PORT, by which the target's network reaches it.
// UNAVAILABLE if the host has no address or there is no route to it, which may change; INVALID_ARGUMENT if `target` is
// not HOST:PORT.
absl::StatusOr<std::string> AddressTowards(const std::string& target);

// What this process shares with others, as hashes that are the same for all who share it and that nothing can be read
// from; empty if it shares nothing. Two processes share memory, or CPUs, if the same limit holds for both of them
// together: that of the machine or of one control group.
std::string MemoryPool(const MachineLimits& limits);
std::string CpuPool(const MachineLimits& limits);
// The network whose loopback addresses this process uses, as such a hash.
std::string OwnNetwork();
// "AMD EPYC 9B14", or empty.
std::string ProcessorModel();

}  // namespace goldfinch

#endif  // GOLDFINCH_CLIENTS_CLI_MACHINE_MACHINE_H_
