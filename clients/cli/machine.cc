#include "clients/cli/machine.h"

#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "base/host_port.h"
#include "base/resolve.h"
#include "base/status.h"

namespace goldfinch {

std::string ProcessName() {
  char host[256] = "worker";
  gethostname(host, sizeof(host) - 1);
  return absl::StrCat(host, ":", getpid());
}

absl::StatusOr<std::string> AddressTowards(const std::string& target) {
  GF_ASSIGN_OR_RETURN(const HostPort parsed, ParseHostPort(target));
  const absl::StatusOr<AddressList> found = ResolveHost(parsed.host, parsed.port);
  if (!found.ok()) return absl::UnavailableError(absl::StrCat(target, ": ", found.status().message()));
  // Connecting a datagram socket sends nothing, but chooses the route.
  for (const addrinfo* one = found->get(); one != nullptr; one = one->ai_next) {
    const int fd = socket(one->ai_family, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0) continue;
    const absl::Cleanup close_fd = [fd] { close(fd); };
    sockaddr_storage own{};
    socklen_t size = sizeof(own);
    if (connect(fd, one->ai_addr, one->ai_addrlen) == 0 &&
        getsockname(fd, reinterpret_cast<sockaddr*>(&own), &size) == 0) {
      return NumericHost(reinterpret_cast<const sockaddr&>(own));
    }
  }
  return absl::UnavailableError(absl::StrCat(target, ": no route to it: ", std::strerror(errno)));
}

}  // namespace goldfinch
