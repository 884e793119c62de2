// Calls of the public service, over gRPC. To gRPC every method is one that streams both ways: then a call begins with
// its headers, and its message stays with the client, held up by flow control, until the key has been checked and there
// is room for it. Clients cannot tell the difference.
#ifndef GOLDFINCH_COORDINATOR_GRPC_CALL_REACTOR_H_
#define GOLDFINCH_COORDINATOR_GRPC_CALL_REACTOR_H_

#include <memory>
#include <mutex>
#include <string>
#include <utility>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "coordinator/calls/authenticator.h"
#include "coordinator/calls/call.h"
#include "coordinator/calls/message_gate.h"
#include "coordinator/grpc/wire.h"
#include "grpcpp/server_context.h"
#include "grpcpp/support/byte_buffer.h"
#include "grpcpp/support/server_callback.h"

namespace goldfinch {

// Waits for a place at the gate, and reads the one message of a client. Whatever the client sends after it is never
// read, so that flow control stops it.
//
// It keeps itself alive until gRPC is done with it, which is after Finish.
class MessageReactor : public ByteReactor,
                       public MessageGate::Guest,
                       public std::enable_shared_from_this<MessageReactor> {
 public:
  // Called once. gRPC gets the raw pointer.
  void Start();

  void Admit() final;
  void Dismiss(const absl::Status& status) final;
  void Evict() final;
  void OnReadDone(bool ok) final;
  void OnCancel() final;
  void OnDone() final;

 protected:
  // gRPC keeps `context` valid until OnDone.
  MessageReactor(CallEnvironment* environment, grpc::CallbackServerContext* context, Caller caller)
      : environment_(environment), context_(context), caller_(std::move(caller)) {}

  // One of these is called. Received runs on a thread of gRPC, or on another one if the message is large.
  virtual void Received() = 0;
  virtual void NotReceived(const absl::Status& status) = 0;
  // The client has gone after Received was called, or was about to be.
  virtual void Gone() = 0;
  // The message has been received, but the place was kept for too long by a client that does not take its answer.
  virtual void Overdue(const absl::Status& status) = 0;
  virtual void Done() = 0;

  // Drops the message and gives up the place. Does nothing if that has been done.
  void Release();

  CallEnvironment* const environment_;
  grpc::CallbackServerContext* const context_;
  const Caller caller_;
  grpc::ByteBuffer message_;  // belongs to gRPC until Received

 private:
  enum class Stage { kWaiting, kReading, kReceived, kFailed, kDone };

  // True if neither Received nor NotReceived has been called, and the caller must now call the latter.
  bool Fail();

  std::mutex mutex_;
  Stage stage_ = Stage::kWaiting;              // guarded by mutex_
  std::shared_ptr<MessageReactor> self_ = {};  // until OnDone
};

// The stream of a Call.
class StreamReactor final : public MessageReactor, public CallStream {
 public:
  StreamReactor(CallEnvironment* environment, grpc::CallbackServerContext* context, Caller caller)
      : MessageReactor(environment, context, std::move(caller)) {}
  // Must be called before Start. The stream keeps the call alive. The call reads message().
  void Attach(std::shared_ptr<Call> call) { call_ = std::move(call); }
  const grpc::ByteBuffer& message() const { return message_; }

  void Write(const google::protobuf::MessageLite& message) override;
  void End(const absl::Status& status) override;
  void Abort() override { context_->TryCancel(); }
  void OnWriteDone(bool ok) override { call_->WriteDone(ok); }

 private:
  void Received() override;
  void NotReceived(const absl::Status& status) override { call_->Refuse(status); }
  void Gone() override { call_->ClientGone(); }
  void Overdue(const absl::Status&) override {}  // the call has a timeout of its own
  void Done() override { call_->Closed(); }

  std::shared_ptr<Call> call_;
  grpc::ByteBuffer bytes_;  // what the write under way sends
};

// Answers a message with a message.
class UnaryReactor final : public MessageReactor {
 public:
  // Calls `done` once when it has filled in `answer`, or has failed; on any thread, also from within. It runs on
  // another thread than gRPC's if it `takes_long`, or if the message is large. Message and answer are there until
  // `done`.
  using Work = absl::AnyInvocable<void(const grpc::ByteBuffer& message, grpc::ByteBuffer* answer,
                                       absl::AnyInvocable<void(const absl::Status& status)> done)>;

  // `method` is for the log.
  UnaryReactor(CallEnvironment* environment, grpc::CallbackServerContext* context, Caller caller, const char* method,
               bool takes_long, Work work)
      : MessageReactor(environment, context, std::move(caller)),
        method_(method),
        takes_long_(takes_long),
        work_(std::move(work)) {}

 private:
  void Received() override;
  void NotReceived(const absl::Status& status) override { End(status); }
  void Gone() override {}
  void Overdue(const absl::Status& status) override;
  void Done() override {}

  void Run();
  void Answer(const absl::Status& status);
  void End(const absl::Status& status);

  const char* const method_;
  const bool takes_long_;
  Work work_;
  grpc::ByteBuffer answer_;
};

}  // namespace goldfinch

#endif  // GOLDFINCH_COORDINATOR_GRPC_CALL_REACTOR_H_
