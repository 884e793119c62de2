#include "coordinator/front/listener.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <memory>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "base/host_port.h"
#include "base/resolve.h"
#include "base/status.h"

namespace goldfinch {
namespace {

constexpr int kBacklog = 1024;
constexpr int kPortTries = 20;  // to find a port that is free on all hosts

bool IsAnyIpv6(const addrinfo& address) {
  return address.ai_family == AF_INET6 &&
         IN6_IS_ADDR_UNSPECIFIED(&reinterpret_cast<const sockaddr_in6*>(address.ai_addr)->sin6_addr);
}

// A socket that listens on the address; an errno as a negative number if that is impossible.
int ListenOn(const addrinfo& address, bool both_kinds) {
  const int fd = socket(address.ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (fd < 0) return -errno;
  const int yes = 1, only_ipv6 = both_kinds ? 0 : 1;
  // Not SO_REUSEPORT: two servers would share a port, and each would get half of the clients.
  bool good = setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof(yes)) == 0;
  if (address.ai_family == AF_INET6) {
    good = good && setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &only_ipv6, sizeof(only_ipv6)) == 0;
  }
  if (good && bind(fd, address.ai_addr, address.ai_addrlen) == 0 && listen(fd, kBacklog) == 0) return fd;
  const int error = errno;
  close(fd);
  return -error;
}

std::string Reason(int error) {
  if (error == EADDRINUSE) return "the port is taken";
  if (error == EADDRNOTAVAIL) return "the address is not this machine's";
  return std::strerror(error);
}

absl::Status CannotListen(const std::string& host, int port, absl::string_view reason) {
  return absl::UnavailableError(absl::StrCat("cannot listen on ", HostPort{host, port}.ToString(), ": ", reason));
}

void SetPort(addrinfo* address, int port) {
  const auto number = htons(static_cast<uint16_t>(port));
  if (address->ai_family == AF_INET6) {
    reinterpret_cast<sockaddr_in6*>(address->ai_addr)->sin6_port = number;
  } else {
    reinterpret_cast<sockaddr_in*>(address->ai_addr)->sin_port = number;
  }
}

int OwnPort(int fd) {
  sockaddr_storage own{};
  socklen_t size = sizeof(own);
  getsockname(fd, reinterpret_cast<sockaddr*>(&own), &size);
  return PortOf(reinterpret_cast<const sockaddr&>(own));
}

}  // namespace

std::string PeerAddress::Text() const { return HostPort{host, port}.ToString(); }

PeerAddress ToPeerAddress(const sockaddr_storage& address) {
  sockaddr_storage plain = address;
  PeerAddress peer;
  peer.port = PortOf(reinterpret_cast<const sockaddr&>(address));
  if (address.ss_family == AF_INET6) {
    const auto& ipv6 = reinterpret_cast<const sockaddr_in6&>(address);
    if (IN6_IS_ADDR_V4MAPPED(&ipv6.sin6_addr)) {
      sockaddr_in ipv4{};
      ipv4.sin_family = AF_INET;
      ipv4.sin_port = ipv6.sin6_port;
      std::memcpy(&ipv4.sin_addr, &ipv6.sin6_addr.s6_addr[12], 4);
      plain = {};
      std::memcpy(&plain, &ipv4, sizeof(ipv4));
    } else {
      peer.loopback = IN6_IS_ADDR_LOOPBACK(&ipv6.sin6_addr);
      peer.network.assign(reinterpret_cast<const char*>(ipv6.sin6_addr.s6_addr), 8);
    }
  }
  peer.host = NumericHost(reinterpret_cast<const sockaddr&>(plain));
  if (plain.ss_family == AF_INET) {
    const auto& ipv4 = reinterpret_cast<const sockaddr_in&>(plain);
    peer.loopback = ntohl(ipv4.sin_addr.s_addr) >> 24 == 127;
    peer.network.assign(reinterpret_cast<const char*>(&ipv4.sin_addr), 4);
  }
  return peer;
}

Listener::Listener(Listener&& other) noexcept : fd_(std::exchange(other.fd_, -1)), port_(other.port_) {}

Listener::~Listener() {
  if (fd_ >= 0) close(fd_);
}

absl::Status Listener::OpenHost(const std::string& host, int port, bool any_ipv4, std::vector<Listener>* listeners) {
  const absl::StatusOr<AddressList> addresses = ResolveHost(host, port, AI_PASSIVE);
  if (!addresses.ok()) return CannotListen(host, port, addresses.status().message());
  int error = EADDRNOTAVAIL;
  bool listens = false;
  for (addrinfo* address = addresses->get(); address != nullptr; address = address->ai_next) {
    // All sockets have the port that the first one got.
    SetPort(address, listeners->empty() ? port : listeners->front().port());
    const int fd = ListenOn(*address, IsAnyIpv6(*address) && !any_ipv4);
    if (fd >= 0) {
      listeners->push_back(Listener(fd, OwnPort(fd)));
      listens = true;
      continue;
    }
    error = -fd;
    // A name may have addresses of a kind that this machine lacks, but a port that is taken is an error.
    if (error == EADDRINUSE) break;
  }
  if (listens && error != EADDRINUSE) return absl::OkStatus();
  return CannotListen(host, port, Reason(error));
}

absl::StatusOr<std::vector<Listener>> Listener::Open(const std::vector<std::string>& hosts, int port) {
  if (hosts.empty()) return absl::InvalidArgumentError("there is no host to listen on");
  const bool any_ipv4 = std::find(hosts.begin(), hosts.end(), "0.0.0.0") != hosts.end();
  absl::Status status;
  for (int attempt = 0; attempt < (port == 0 && hosts.size() > 1 ? kPortTries : 1); ++attempt) {
    std::vector<Listener> listeners;
    for (const std::string& host : hosts) {
      status = OpenHost(host, port, any_ipv4, &listeners);
      if (!status.ok()) break;
    }
    if (status.ok()) return listeners;
  }
  return status;
}

std::vector<std::string> SplitHosts(const std::string& hosts) {
  std::vector<std::string> result;
  for (const absl::string_view part : absl::StrSplit(hosts, ',')) {
    std::string host = WithoutBrackets(std::string(absl::StripAsciiWhitespace(part)));
    if (!host.empty() && std::find(result.begin(), result.end(), host) == result.end()) {
      result.push_back(std::move(host));
    }
  }
  return result;
}

}  // namespace goldfinch
