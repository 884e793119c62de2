// From names and numbers of hosts to socket addresses, and back.
#ifndef GOLDFINCH_BASE_RESOLVE_H_
#define GOLDFINCH_BASE_RESOLVE_H_

#include <netdb.h>

#include <memory>
#include <string>

#include "absl/status/statusor.h"

namespace goldfinch {

struct FreeAddresses {
  void operator()(addrinfo* found) const { freeaddrinfo(found); }
};
using AddressList = std::unique_ptr<addrinfo, FreeAddresses>;

// The addresses of a host, at least one, for sockets of TCP. `host` has no brackets; `flags` are those of getaddrinfo,
// such as AI_PASSIVE or AI_NUMERICHOST. Asks the system's resolver, which may take seconds unless the host is a number.
// UNAVAILABLE says why, without naming the host.
absl::StatusOr<AddressList> ResolveHost(const std::string& host, int port, int flags = 0);

// This machine's own address on the route to a host, by which the host's network reaches it. `flags` as above.
// UNAVAILABLE says why there is none.
absl::StatusOr<std::string> OwnAddressTowards(const std::string& host, int port, int flags = 0);

// "10.0.0.7", "::1" or "fe80::1%eth0"; empty if the address is neither of IPv4 nor of IPv6.
std::string NumericHost(const sockaddr& address);
// 0 likewise.
int PortOf(const sockaddr& address);

}  // namespace goldfinch

#endif  // GOLDFINCH_BASE_RESOLVE_H_
