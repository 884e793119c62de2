// Turns messages and errors into gRPC's and back. The service's methods take raw bytes, because gRPC would answer a
// message that cannot be parsed with UNIMPLEMENTED, and would parse it on one of its few threads.
#ifndef GOLDFINCH_COORDINATOR_GRPC_WIRE_H_
#define GOLDFINCH_COORDINATOR_GRPC_WIRE_H_

#include "absl/status/status.h"
#include "grpcpp/support/byte_buffer.h"
#include "grpcpp/support/server_callback.h"

namespace google::protobuf {
class Message;
class MessageLite;
}  // namespace google::protobuf

namespace goldfinch {

// INVALID_ARGUMENT if the bytes are not such a message, if a string in it is not UTF-8, or if it has more entries than
// CheckWire allows, which is found out before they take memory.
absl::Status ParseMessage(const grpc::ByteBuffer& bytes, google::protobuf::Message* message);
void SerializeMessage(const google::protobuf::MessageLite& message, grpc::ByteBuffer* bytes);

grpc::Status ToGrpc(const absl::Status& status);

// A call whose messages are raw, so that their bytes are checked before they are parsed.
using ByteReactor = grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>;

// Ends the call that it is returned for with an error, before anything is read. It deletes itself.
ByteReactor* RefuseCall(const absl::Status& status);

}  // namespace goldfinch

#endif  // GOLDFINCH_COORDINATOR_GRPC_WIRE_H_
