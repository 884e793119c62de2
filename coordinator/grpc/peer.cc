#include "coordinator/grpc/peer.h"

#include <map>
#include <mutex>

#include "absl/strings/numbers.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"
#include "grpcpp/server_context.h"

namespace goldfinch {
namespace {

// Descriptors are numbers of the process, so one table is enough for all servers. It has at most as many entries as
// there can be descriptors.
struct Peers {
  std::mutex mutex;
  std::map<int, PeerAddress> by_fd;  // guarded by mutex
};

Peers& AllPeers() {
  static auto& peers = *new Peers;
  return peers;
}

// gRPC writes "fd:12".
PeerAddress PeerOf(const grpc::ServerContextBase& context) {
  const PeerAddress unknown = {.host = "unknown", .port = 0, .network = {}, .loopback = false};
  const std::string text = context.peer();
  absl::string_view number = text;
  int fd = 0;
  if (!absl::ConsumePrefix(&number, "fd:") || !absl::SimpleAtoi(number, &fd)) return unknown;
  Peers& peers = AllPeers();
  const std::lock_guard<std::mutex> lock(peers.mutex);
  const auto found = peers.by_fd.find(fd);
  return found == peers.by_fd.end() ? unknown : found->second;
}

}  // namespace

void RememberPeer(int fd, const PeerAddress& peer) {
  Peers& peers = AllPeers();
  const std::lock_guard<std::mutex> lock(peers.mutex);
  peers.by_fd[fd] = peer;
}

std::string PeerHost(const grpc::ServerContextBase& context) { return PeerOf(context).host; }

std::string PeerHostPort(const grpc::ServerContextBase& context) { return PeerOf(context).Text(); }

}  // namespace goldfinch
