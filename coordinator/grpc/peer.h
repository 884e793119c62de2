// Where a call comes from.
#ifndef GOLDFINCH_COORDINATOR_GRPC_PEER_H_
#define GOLDFINCH_COORDINATOR_GRPC_PEER_H_

#include <cstdint>
#include <string>

#include "coordinator/front/listener.h"

namespace grpc {
class ServerContextBase;
}

namespace goldfinch {

// To be called before gRPC gets the descriptor of a connection. gRPC knows its peer by this number alone. It closes the
// descriptor after the last call of the connection has ended, so the number means this peer for as long as a call can
// ask. Thread-safe, as are the functions below.
void RememberPeer(int fd, const PeerAddress& peer);

// The numeric address of the client without its port, such as "192.0.2.7" or "2001:db8::7"; "unknown" if there is none.
// To be called before the call has ended.
std::string PeerHost(const grpc::ServerContextBase& context);
// The same with the port: "192.0.2.7:41233" or "[2001:db8::7]:41233".
std::string PeerHostPort(const grpc::ServerContextBase& context);
// The number of the connection that the call came by: no other connection of this process has it, before or after. 0 if
// there is none.
uint64_t PeerConnection(const grpc::ServerContextBase& context);

}  // namespace goldfinch

#endif  // GOLDFINCH_COORDINATOR_GRPC_PEER_H_
