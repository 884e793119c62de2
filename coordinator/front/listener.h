// Sockets that listen, and addresses as text.
#ifndef GOLDFINCH_COORDINATOR_FRONT_LISTENER_H_
#define GOLDFINCH_COORDINATOR_FRONT_LISTENER_H_

#include <sys/socket.h>

#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace goldfinch {

// Where a connection comes from. An IPv4 address that arrived at an IPv6 socket is an IPv4 address here.
struct PeerAddress {
  std::string host;  // numeric, such as "192.0.2.7" or "2001:db8::7"
  int port = 0;
  // The addresses that one client may well have all of: an IPv4 address, or the first 64 bits of an IPv6 address.
  std::string network;
  bool loopback = false;

  // "192.0.2.7:41233" or "[2001:db8::7]:41233".
  std::string Text() const;
};

PeerAddress ToPeerAddress(const sockaddr_storage& address);

// The hosts of a list that commas separate, without brackets and spaces around them, each once. Empty ones are left
// out.
std::vector<std::string> SplitHosts(const std::string& hosts);

// A listening socket of its own; it closes with its object.
class Listener {
 public:
  // Listens on every address of every host; port 0 takes a free port, the same for all. "::" takes IPv4 too, unless
  // "0.0.0.0" is among the hosts. UNAVAILABLE names host and port if there is one that cannot be listened on, also if
  // another process or server has the port.
  static absl::StatusOr<std::vector<Listener>> Open(const std::vector<std::string>& hosts, int port);

  Listener(Listener&& other) noexcept;
  Listener& operator=(Listener&& other) = delete;
  ~Listener();

  int fd() const { return fd_; }
  int port() const { return port_; }

 private:
  Listener(int fd, int port) : fd_(fd), port_(port) {}

  static absl::Status OpenHost(const std::string& host, int port, bool any_ipv4, std::vector<Listener>* listeners);

  int fd_;
  int port_;
};

}  // namespace goldfinch

#endif  // GOLDFINCH_COORDINATOR_FRONT_LISTENER_H_
