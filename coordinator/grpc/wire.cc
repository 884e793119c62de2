#include "coordinator/grpc/wire.h"

#include <string>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "coordinator/calls/wire_limits.h"
#include "google/protobuf/message.h"
#include "grpcpp/support/byte_buffer.h"
#include "grpcpp/support/proto_buffer_reader.h"
#include "grpcpp/support/proto_buffer_writer.h"
#include "grpcpp/support/status.h"

namespace goldfinch {
namespace {

constexpr int kBlockBytes = 1 << 20;

class RefusedCall final : public ByteReactor {
 public:
  explicit RefusedCall(const absl::Status& status) { Finish(ToGrpc(status)); }
  void OnDone() override { delete this; }
};

}  // namespace

absl::Status ParseMessage(const grpc::ByteBuffer& bytes, google::protobuf::Message* message) {
  grpc::ByteBuffer shared(bytes);  // the reader's constructor takes a mutable buffer; the bytes are shared, not copied
  grpc::ProtoBufferReader counter(&shared), reader(&shared);
  if (counter.status().ok() && reader.status().ok()) {
    const absl::Status status = CheckWire(*message->GetDescriptor(), &counter);
    if (absl::IsInvalidArgument(status)) return status;
    if (status.ok() && message->ParseFromZeroCopyStream(&reader)) return absl::OkStatus();
  }
  return absl::InvalidArgumentError(absl::StrCat("the request, of ", bytes.Length(), " bytes, is not a valid ",
                                                 message->GetTypeName(), " message, or a text in it is not UTF-8"));
}

void SerializeMessage(const google::protobuf::MessageLite& message, grpc::ByteBuffer* bytes) {
  const size_t size = message.ByteSizeLong();
  grpc::ProtoBufferWriter writer(bytes, kBlockBytes, static_cast<int>(size));
  GF_CHECK(message.SerializeToZeroCopyStream(&writer)) << message.GetTypeName() << " of " << size << " bytes";
}

grpc::Status ToGrpc(const absl::Status& status) {
  // gRPC and abseil number the canonical codes alike.
  return grpc::Status(static_cast<grpc::StatusCode>(status.code()), std::string(status.message()));
}

ByteReactor* RefuseCall(const absl::Status& status) { return new RefusedCall(status); }

}  // namespace goldfinch
