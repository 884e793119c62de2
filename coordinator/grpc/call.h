// One call of the public service that streams: what it shares with all others, whatever it streams.
#ifndef GOLDFINCH_COORDINATOR_GRPC_CALL_H_
#define GOLDFINCH_COORDINATOR_GRPC_CALL_H_

#include <chrono>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "coordinator/dispatcher.h"
#include "coordinator/grpc/work_queue.h"

namespace google::protobuf {
class MessageLite;
}

namespace grpc {
class ByteBuffer;
class CallbackServerContext;
}  // namespace grpc

namespace goldfinch {

class Metrics;

// What all calls of one service share. Outlives them.
struct CallEnvironment {
  Dispatcher* dispatcher = nullptr;
  Metrics* metrics = nullptr;
  double stall_timeout_seconds = 60;
  WorkQueue tokenizing{2};  // long texts, and what else may take a while
  WorkQueue writing{1};     // messages to clients: serializing and sending would hold the coordinator's thread up
};

// The way to the client. Returns at once, and does not call back before it has returned.
class CallStream {
 public:
  virtual ~CallStream() = default;
  // The call's WriteDone follows. One at a time.
  virtual void Write(const google::protobuf::MessageLite& message) = 0;
  // Once. Nothing of the stream is used afterwards.
  virtual void End(const absl::Status& status) = 0;
};

// Buffers what the dispatcher delivers and writes it, one message at a time; what comes while a write is under way goes
// into the next ones. The dispatcher is told to pause while more than a bound is buffered. Ends as soon as the
// dispatcher has ended the request: earlier than that, only if it did not take it.
//
// Thread-safe. Lives as long as its stream or the dispatcher refers to it.
class Call : public RequestSink, public std::enable_shared_from_this<Call> {
 public:
  ~Call() override = default;

  // ---- For the service ----
  // Begins to work: parses, validates and submits. Once; may take as long as a text takes to be tokenized.
  void Begin();
  // Instead of Begin.
  void Refuse(const absl::Status& status);

  // ---- For the stream ----
  void WriteDone(bool ok);
  // Cancelled, the connection lost, or the deadline passed.
  void ClientGone();
  // The stream and the context have ended.
  void Closed();

  // ---- For the dispatcher ----
  void OnDone(const absl::Status& status, const RequestUsage& usage) final;

 protected:
  // `stream` is used until its End, `context` and `message` until Closed.
  Call(CallEnvironment* edge, const char* method, grpc::CallbackServerContext* context, const grpc::ByteBuffer* message,
       CallStream* stream);

  // Before anything can be delivered. `buffer_max`: in the units of `buffered_`.
  virtual absl::StatusOr<Request> Prepare(const grpc::ByteBuffer& message, std::shared_ptr<const ServedModel> model,
                                          int64_t* buffer_max) = 0;
  // What TakeMessage made; it is left alone while a write is under way.
  virtual const google::protobuf::MessageLite& message() const = 0;

  // All of these are under `mutex_`.
  // Makes a message of what is buffered, and moves its amount from `buffered_` to `in_flight_`. False: there is
  // nothing.
  virtual bool TakeMessage() = 0;
  // After the buffer has changed.
  void Wake();
  // For what a sink returns.
  Verdict PauseIfFull();

  std::mutex mutex_;

  // Guarded by mutex_.
  std::string id_;
  int64_t buffered_ = 0;              // not yet in a write
  int64_t in_flight_ = 0;             // in the write under way
  std::optional<absl::Status> done_;  // the dispatcher's OnDone, or why there was none
  RequestUsage usage_;

 private:
  using Clock = std::chrono::steady_clock;

  void Submit(Request request);
  // Writes what there is, or finishes. On a thread of edge_->writing.
  void Pump();
  void Cancel(absl::Status status);
  void ResumeIfDrained();
  absl::Status GoneStatus() const;
  // Under mutex_.
  void FinishIfDone();
  void Log() const;
  // For the stall timeout.
  void Watch(double seconds);
  void CheckStall();

  CallEnvironment* const edge_;
  const char* const method_;
  grpc::CallbackServerContext* const context_;
  const grpc::ByteBuffer* const message_;
  CallStream* const stream_;
  const Clock::time_point start_ = Clock::now();

  // Guarded by mutex_.
  int64_t buffer_max_ = 0;
  std::optional<uint64_t> number_;      // the dispatcher's
  std::optional<absl::Status> cancel_;  // asked of the dispatcher
  bool scheduled_ = false;              // a Pump is posted
  bool writing_ = false;
  bool paused_ = false;
  bool gone_ = false;     // nobody reads
  bool stalled_ = false;  // nobody reads, but the connection stands
  bool finished_ = false;
  bool closed_ = false;
  bool watched_ = false;  // a CheckStall is posted
  Clock::time_point write_start_;
};

uint64_t RandomNumber();
// For as long as Dispatcher::model() is null.
absl::Status NoModel();

}  // namespace goldfinch

#endif  // GOLDFINCH_COORDINATOR_GRPC_CALL_H_
