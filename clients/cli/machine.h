// Facts about the machine and this process.
#ifndef GOLDFINCH_CLIENTS_CLI_MACHINE_H_
#define GOLDFINCH_CLIENTS_CLI_MACHINE_H_

#include <string>

#include "absl/status/statusor.h"

namespace goldfinch {

// "node-7:4021": host name and process.
std::string ProcessName();
// The address of this machine on the route to `target`, HOST:PORT, by which the target's network reaches it.
// UNAVAILABLE if the host has no address or there is no route to it, which may change; INVALID_ARGUMENT if `target` is
// not HOST:PORT.
absl::StatusOr<std::string> AddressTowards(const std::string& target);

}  // namespace goldfinch

#endif  // GOLDFINCH_CLIENTS_CLI_MACHINE_H_
