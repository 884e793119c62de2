// A call's stream, over gRPC.
#ifndef GOLDFINCH_COORDINATOR_GRPC_REACTOR_STREAM_H_
#define GOLDFINCH_COORDINATOR_GRPC_REACTOR_STREAM_H_

#include <memory>
#include <utility>

#include "coordinator/grpc/call.h"
#include "coordinator/grpc/wire.h"
#include "grpcpp/support/byte_buffer.h"
#include "grpcpp/support/server_callback.h"

namespace goldfinch {

// Belongs to gRPC from the handler's return on, and deletes itself when gRPC is done with it, which is not before End.
class ReactorStream final : public grpc::ServerWriteReactor<grpc::ByteBuffer>, public CallStream {
 public:
  // Before anything else. From here on the stream keeps the call.
  void Attach(std::shared_ptr<Call> call) { call_ = std::move(call); }

  void Write(const google::protobuf::MessageLite& message) override {
    bytes_.Clear();
    SerializeMessage(message, &bytes_);
    StartWrite(&bytes_);
  }
  void End(const absl::Status& status) override { Finish(ToGrpc(status)); }

  void OnWriteDone(bool ok) override { call_->WriteDone(ok); }
  void OnCancel() override { call_->ClientGone(); }
  void OnDone() override {
    call_->Closed();
    delete this;
  }

 private:
  std::shared_ptr<Call> call_;
  grpc::ByteBuffer bytes_;  // of the write under way
};

}  // namespace goldfinch

#endif  // GOLDFINCH_COORDINATOR_GRPC_REACTOR_STREAM_H_
