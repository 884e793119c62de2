#include "base/resolve.h"

#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace goldfinch {

absl::StatusOr<AddressList> ResolveHost(const std::string& host, int port, int flags) {
  addrinfo hints = {};
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = flags | AI_NUMERICSERV;
  addrinfo* found = nullptr;
  const int error = getaddrinfo(host.c_str(), std::to_string(port).c_str(), &hints, &found);
  if (error == 0) return AddressList(found);
  return absl::UnavailableError(error == EAI_SYSTEM ? std::strerror(errno) : gai_strerror(error));
}

absl::StatusOr<std::string> OwnAddressTowards(const std::string& host, int port, int flags) {
  absl::StatusOr<AddressList> found = ResolveHost(host, port, flags);
  if (!found.ok()) return absl::UnavailableError(absl::StrCat(host, ": ", found.status().message()));
  // Connecting a datagram socket sends nothing, but chooses the route.
  int error = 0;
  for (const addrinfo* one = found->get(); one != nullptr; one = one->ai_next) {
    const int fd = socket(one->ai_family, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    sockaddr_storage own{};
    socklen_t size = sizeof(own);
    const bool known = fd >= 0 && connect(fd, one->ai_addr, one->ai_addrlen) == 0 &&
                       getsockname(fd, reinterpret_cast<sockaddr*>(&own), &size) == 0;
    error = errno;
    if (fd >= 0) close(fd);
    if (known) return NumericHost(reinterpret_cast<const sockaddr&>(own));
  }
  return absl::UnavailableError(absl::StrCat(host, ": no route to it: ", std::strerror(error)));
}

std::string NumericHost(const sockaddr& address) {
  if (address.sa_family != AF_INET && address.sa_family != AF_INET6) return "";
  const socklen_t size = address.sa_family == AF_INET6 ? sizeof(sockaddr_in6) : sizeof(sockaddr_in);
  char text[NI_MAXHOST];
  return getnameinfo(&address, size, text, sizeof(text), nullptr, 0, NI_NUMERICHOST) == 0 ? text : "";
}

int PortOf(const sockaddr& address) {
  if (address.sa_family == AF_INET) return ntohs(reinterpret_cast<const sockaddr_in&>(address).sin_port);
  if (address.sa_family == AF_INET6) return ntohs(reinterpret_cast<const sockaddr_in6&>(address).sin6_port);
  return 0;
}

}  // namespace goldfinch
