// One call of a client that streams its answer, over whatever protocol it came: its validated request, deadline,
// cancellation and flow control. The door (coordinator/grpc) implements CallStream and tells the call what happens to
// the client; nothing here knows how bytes travel.
#ifndef GOLDFINCH_COORDINATOR_CALLS_CALL_H_
#define GOLDFINCH_COORDINATOR_CALLS_CALL_H_

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/log_limiter.h"
#include "base/work_queue.h"
#include "coordinator/calls/authenticator.h"
#include "coordinator/calls/message_gate.h"
#include "coordinator/dispatcher.h"

namespace google::protobuf {
class MessageLite;
}

namespace goldfinch {

class Metrics;

// What all calls of one service share. It must outlive them.
struct CallEnvironment {
  // Count a call that was refused or that failed, and log it unless there are too many. A stranger is someone who has
  // no valid key.
  void ReportFailure(const char* method, const Caller& caller, const absl::Status& status);
  void ReportStranger(const char* method, const std::string& peer, const absl::Status& status);
  // Gives memory that is free back to the system in a few seconds. Call it after a large message: malloc would keep
  // what it took.
  void ReturnMemorySoon();

  Dispatcher* dispatcher = nullptr;
  Metrics* metrics = nullptr;
  // A client loses its call if it does not take a message within the timeout, or if it takes less than the least bytes
  // a second over so much time in which messages waited for it. Time in which nothing waits for it does not count.
  double stall_timeout_seconds = 0;     // must be set
  double least_bytes_per_second = 128;  // what the slowest modems took; a token of text is some 10 bytes
  MessageGate gate{{}};
  LogLimiter request_log{/*per_second=*/20, /*burst=*/200};  // requests that are logged from start to end
  LogLimiter failure_log{/*per_second=*/10, /*burst=*/200};  // ends of others that failed
  LogLimiter stranger_log{/*per_second=*/1, /*burst=*/40};
  std::atomic<bool> returning_memory = false;
  WorkQueue tokenizing{2};  // for long texts, and for other work that would hold up a door's threads
  WorkQueue writing{1};     // for messages to clients: serializing them would hold up the coordinator's thread
};

// The way to the client. Every function returns at once and calls the Call back only after it has returned.
class CallStream {
 public:
  virtual ~CallStream() = default;
  // Sends a message, which must stay as it is until the call's WriteDone. There is one write at a time.
  virtual void Write(const google::protobuf::MessageLite& message) = 0;
  // Ends the stream with `status`. Called once; no Write follows.
  virtual void End(const absl::Status& status) = 0;
  // Breaks the connection of a client that does not even take the status.
  virtual void Abort() = 0;
};

// Buffers what the dispatcher delivers and writes it, one message at a time; what arrives during a write goes into the
// next messages. While more than a bound is buffered, the dispatcher is told to pause. The call ends when the
// dispatcher has ended the request, or at once if the dispatcher did not take it.
//
// Thread-safe. It lives as long as its stream or the dispatcher refers to it.
class Call : public RequestSink, public std::enable_shared_from_this<Call> {
 public:
  ~Call() override = default;

  // ---- For the door ----
  // Reads, validates and submits the request. Called once; it takes as long as tokenizing the text does.
  void Begin();
  // Ends the call with an error; called instead of Begin, or by it.
  void Refuse(const absl::Status& status);
  // The write under way has ended. `ok` is false if the client can no longer be reached.
  void WriteDone(bool ok);
  // The client has cancelled the call, its connection is lost, or the deadline has passed.
  void ClientGone();
  // The stream has ended and must not be used any more.
  void Closed();

  // ---- For the dispatcher ----
  void OnDone(const absl::Status& status, const RequestUsage& usage) final;

 protected:
  using Deadline = std::optional<std::chrono::system_clock::time_point>;  // none if the client set none

  // `method` is for the log. `stream` must be valid until Closed.
  Call(CallEnvironment* environment, const char* method, Caller caller, Deadline deadline, CallStream* stream);

  // Reads and validates the request, before anything can be delivered. `buffer_max` is in the units of `buffered_`.
  virtual absl::StatusOr<Request> Prepare(std::shared_ptr<const ServedModel> model, int64_t* buffer_max) = 0;
  // The message that TakeMessage made. It does not change during a write.
  virtual const google::protobuf::MessageLite& message() const = 0;

  // All of these are called with `mutex_` held.
  // Makes a message of what is buffered and moves its amount from `buffered_` to `in_flight_`. Returns false if there
  // is nothing to send.
  virtual bool TakeMessage() = 0;
  // Must be called after the buffer has changed.
  void Wake();
  // Must be called when a token or a score has come.
  void NoteOutput();
  // What a sink must return after it has buffered something.
  Verdict PauseIfFull();

  std::mutex mutex_;

  // Guarded by mutex_.
  std::string id_;
  int64_t buffered_ = 0;              // what no write has taken yet
  int64_t in_flight_ = 0;             // what the write under way has taken
  std::optional<absl::Status> done_;  // what OnDone said, or why the dispatcher never got the request
  RequestUsage usage_;

 private:
  using Clock = std::chrono::steady_clock;

  void Submit(Request request);
  void LogStart(const Request& request);
  void LogFirstOutput(double seconds) const;
  // Writes what there is, or finishes the call. Runs on a thread of CallEnvironment::writing, or on the door's.
  void Pump();
  void Cancel(absl::Status status);
  void ResumeIfDrained();
  absl::Status GoneStatus() const;
  // With mutex_ held.
  void FinishIfDone();
  void Report() const;  // counts and logs the call
  // Checks the current write again after `seconds`.
  void Watch(double seconds);
  // With mutex_ held: whether the client has taken too little while messages waited for it.
  bool TooSlow(Clock::time_point now);
  void CheckStall();

  CallEnvironment* const environment_;
  const char* const method_;
  const Caller caller_;
  const Deadline deadline_;
  CallStream* const stream_;
  const Clock::time_point start_ = Clock::now();

  // Guarded by mutex_.
  bool logged_ = false;                            // its lines are logged
  std::optional<Clock::time_point> first_output_;  // when the first token or score came
  bool first_output_logged_ = false;
  int64_t buffer_max_ = 0;
  std::optional<uint64_t> number_;      // what the dispatcher calls the request
  std::optional<absl::Status> cancel_;  // the status with which the dispatcher was asked to end the request
  bool scheduled_ = false;              // a Pump is posted
  bool writing_ = false;
  bool paused_ = false;
  bool gone_ = false;     // the client is gone
  bool stalled_ = false;  // the client does not read, but its connection stands
  bool finished_ = false;
  bool closed_ = false;
  bool watched_ = false;  // a CheckStall is posted
  Clock::time_point write_start_;
  int64_t write_bytes_ = 0;  // of the write under way: set before it and read after it, without the mutex
  double owed_seconds_ = 0;  // how long writes before that one have waited for the client, and
  int64_t taken_bytes_ = 0;  // what it took in that time; both since the rate was last found to be enough
};

uint64_t RandomNumber();

}  // namespace goldfinch

#endif  // GOLDFINCH_COORDINATOR_CALLS_CALL_H_
