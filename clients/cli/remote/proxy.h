// The HTTP proxy by which gRPC goes to a server, as the environment says.
#ifndef GOLDFINCH_CLIENTS_CLI_REMOTE_PROXY_H_
#define GOLDFINCH_CLIENTS_CLI_REMOTE_PROXY_H_

#include <optional>
#include <string>

namespace goldfinch {

struct Proxy {
  std::string variable;  // that names it: "http_proxy"
  std::string address;   // "proxy.example.com:3128", without a user or a password
};

// Nothing if the server is reached directly: no variable is set, `no_proxy` (or NO_PROXY) names the host or a domain
// that it is in, or the host is this machine. `host` is as in HostPort.
std::optional<Proxy> ProxyFor(const std::string& host);

}  // namespace goldfinch

#endif  // GOLDFINCH_CLIENTS_CLI_REMOTE_PROXY_H_
