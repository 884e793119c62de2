#include "coordinator/grpc/peer.h"

#include "absl/strings/match.h"
#include "absl/strings/str_replace.h"
#include "grpcpp/server_context.h"

namespace goldfinch {

std::string PeerHost(const grpc::ServerContextBase& context) {
  // gRPC writes ipv4:192.0.2.7:50051, and ipv6:%5B2001:db8::7%5D:50051.
  const std::string peer = context.peer();
  if (!absl::StartsWith(peer, "ipv4:") && !absl::StartsWith(peer, "ipv6:")) return "unknown";
  const std::string host = peer.substr(5, peer.rfind(':') - 5);
  return absl::StrReplaceAll(host, {{"%5B", ""}, {"%5D", ""}, {"[", ""}, {"]", ""}});
}

}  // namespace goldfinch
