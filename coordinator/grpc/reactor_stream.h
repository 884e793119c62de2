// The stream of a call, over gRPC.
#ifndef GOLDFINCH_COORDINATOR_GRPC_REACTOR_STREAM_H_
#define GOLDFINCH_COORDINATOR_GRPC_REACTOR_STREAM_H_

#include <memory>
#include <utility>

#include "coordinator/calls/call.h"
#include "coordinator/grpc/wire.h"
#include "grpcpp/server_context.h"
#include "grpcpp/support/byte_buffer.h"
#include "grpcpp/support/server_callback.h"

namespace goldfinch {

// Belongs to gRPC once the handler has returned it, and deletes itself when gRPC is done with it, which is after End.
class ReactorStream final : public grpc::ServerWriteReactor<grpc::ByteBuffer>, public CallStream {
 public:
  // gRPC keeps `context` valid until OnDone.
  explicit ReactorStream(grpc::CallbackServerContext* context) : context_(context) {}
  // Must be called first. The stream keeps the call alive.
  void Attach(std::shared_ptr<Call> call) { call_ = std::move(call); }

  void Write(const google::protobuf::MessageLite& message) override {
    bytes_.Clear();
    SerializeMessage(message, &bytes_);
    StartWrite(&bytes_);
  }
  void End(const absl::Status& status) override { Finish(ToGrpc(status)); }
  void Abort() override { context_->TryCancel(); }

  void OnWriteDone(bool ok) override { call_->WriteDone(ok); }
  void OnCancel() override { call_->ClientGone(); }
  void OnDone() override {
    call_->Closed();
    delete this;
  }

 private:
  grpc::CallbackServerContext* const context_;
  std::shared_ptr<Call> call_;
  grpc::ByteBuffer bytes_;  // what the write under way sends
};

}  // namespace goldfinch

#endif  // GOLDFINCH_COORDINATOR_GRPC_REACTOR_STREAM_H_
