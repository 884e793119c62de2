// One stream of a worker, whose messages are sent from any thread and read no faster than they are handled.
#ifndef GOLDFINCH_COORDINATOR_GRPC_MESSAGE_STREAM_H_
#define GOLDFINCH_COORDINATOR_GRPC_MESSAGE_STREAM_H_

#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <string>

#include "coordinator/grpc/wire.h"
#include "grpcpp/alarm.h"
#include "grpcpp/server_context.h"
#include "grpcpp/support/byte_buffer.h"
#include "grpcpp/support/status.h"

namespace goldfinch {

struct MessageStreamLimits {
  int64_t queue_bytes_max;     // that wait to be sent; beyond it the stream is cut off
  int unhandled_messages_max;  // that were taken and not handled, and the bytes of these: nothing is read meanwhile
  int64_t unhandled_bytes_max;
  const char* what;  // for the log: "worker"
};

// Thread-safe. No call blocks. The reactor and `incoming`, which it reads into, are used until Finish, which is called
// after Ended or End.
class MessageStream : public std::enable_shared_from_this<MessageStream> {
 public:
  MessageStream(ByteReactor* reactor, grpc::ByteBuffer* incoming, grpc::CallbackServerContext* context,
                const MessageStreamLimits& limits);
  virtual ~MessageStream() = default;
  MessageStream(const MessageStream&) = delete;
  MessageStream& operator=(const MessageStream&) = delete;

  const std::string& address() const { return address_; }

  // ---- For whoever talks to the worker.

  void Write(const google::protobuf::MessageLite& message);
  // Ends the stream after the messages that wait. A worker that does not read them must not keep them.
  void End(const grpc::Status& status);
  // Ends it at once.
  void Cancel();
  void MessageHandled();

  // ---- For the reactor.

  // For each message before the listener gets it; ReadNext follows.
  void Took(int64_t bytes);
  // Reads the next message, at once or when few enough are unhandled.
  void ReadNext();
  // Returns the bytes of the message.
  int64_t WriteDone(bool ok);
  // Nothing more comes from the worker.
  void Ended();
  // The context is about to be destroyed.
  void Gone();

 private:
  // All of these are called with mutex_ held.
  void Read();
  void WriteNext();
  void EndSoon(const grpc::Status& status);
  void Drop();
  void Finish();
  void CutOff(int64_t bytes);

  const MessageStreamLimits limits_;
  const std::string address_;
  ByteReactor* const reactor_;
  grpc::ByteBuffer* const incoming_;

  std::mutex mutex_;
  // Guarded by mutex_.
  grpc::CallbackServerContext* context_;  // null once the stream has ended
  std::deque<grpc::ByteBuffer> queue_;    // the first is under way if `writing_`
  int64_t queued_bytes_ = 0;
  bool writing_ = false;
  bool closing_ = false;
  bool finished_ = false;
  grpc::Status status_;            // of the end
  std::deque<int64_t> unhandled_;  // the bytes of the messages that the listener has not handled, oldest first
  int64_t unhandled_bytes_ = 0;
  bool paused_ = false;  // nothing is read until some of them have been handled
  grpc::Alarm close_by_;
};

}  // namespace goldfinch

#endif  // GOLDFINCH_COORDINATOR_GRPC_MESSAGE_STREAM_H_
