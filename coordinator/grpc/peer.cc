#include "coordinator/grpc/peer.h"

#include <map>
#include <mutex>

#include "absl/strings/numbers.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"
#include "grpcpp/server_context.h"

namespace goldfinch {
namespace {

struct Peer {
  PeerAddress address = {.host = "unknown", .port = 0, .network = {}, .loopback = false};
  uint64_t connection = 0;
};

// Descriptors are numbers of the process, so one table is enough for all servers. It has at most as many entries as
// there can be descriptors.
struct Peers {
  std::mutex mutex;
  // Guarded by mutex.
  std::map<int, Peer> by_fd;
  uint64_t connections = 0;  // that have been remembered
};

Peers& AllPeers() {
  static auto& peers = *new Peers;
  return peers;
}

// gRPC writes "fd:12".
Peer PeerOf(const grpc::ServerContextBase& context) {
  const std::string text = context.peer();
  absl::string_view number = text;
  int fd = 0;
  if (!absl::ConsumePrefix(&number, "fd:") || !absl::SimpleAtoi(number, &fd)) return {};
  Peers& peers = AllPeers();
  const std::lock_guard<std::mutex> lock(peers.mutex);
  const auto found = peers.by_fd.find(fd);
  return found == peers.by_fd.end() ? Peer{} : found->second;
}

}  // namespace

void RememberPeer(int fd, const PeerAddress& peer) {
  Peers& peers = AllPeers();
  const std::lock_guard<std::mutex> lock(peers.mutex);
  peers.by_fd[fd] = {peer, ++peers.connections};
}

std::string PeerHost(const grpc::ServerContextBase& context) { return PeerOf(context).address.host; }

std::string PeerHostPort(const grpc::ServerContextBase& context) { return PeerOf(context).address.Text(); }

uint64_t PeerConnection(const grpc::ServerContextBase& context) { return PeerOf(context).connection; }

}  // namespace goldfinch
