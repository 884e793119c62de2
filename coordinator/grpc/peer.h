// Where a call comes from.
#ifndef GOLDFINCH_COORDINATOR_GRPC_PEER_H_
#define GOLDFINCH_COORDINATOR_GRPC_PEER_H_

#include <string>

namespace grpc {
class ServerContextBase;
}

namespace goldfinch {

// The numeric address of the client without its port, such as "192.0.2.7" or "2001:db8::7"; "unknown" if there is none.
std::string PeerHost(const grpc::ServerContextBase& context);

}  // namespace goldfinch

#endif  // GOLDFINCH_COORDINATOR_GRPC_PEER_H_
