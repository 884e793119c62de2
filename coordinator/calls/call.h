// One call of a client that streams its answer, over whatever protocol it came: its deadline, cancellation and flow
// control. The door (coordinator/grpc) implements CallStream and tells the call what happens to the client; nothing
// here knows how bytes travel.
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
#include "base/log_limiter.h"
#include "base/work_queue.h"
#include "coordinator/calls/authenticator.h"
#include "coordinator/calls/message_gate.h"
#include "coordinator/scheduler/dispatcher.h"

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

// Sends messages, one at a time, to a client that may be slow, and ends when its work has ended: with an error at once,
// else when all has been written. Who derives from it does the work, and says what is to be sent.
//
// Thread-safe. It lives as long as its stream, or whatever works for it, refers to it.
class Call : public std::enable_shared_from_this<Call> {
 public:
  virtual ~Call() = default;

  // ---- For the door ----
  // Reads the client's message and begins the work. Called once, unless Refuse is.
  virtual void Begin() = 0;
  // Ends the call with an error, before any work has begun; called instead of Begin, or by it.
  void Refuse(const absl::Status& status);
  // The write under way has ended. `ok` is false if the client can no longer be reached.
  void WriteDone(bool ok);
  // The client has cancelled the call, its connection is lost, or the deadline has passed.
  void ClientGone();
  // The stream has ended and must not be used any more.
  void Closed();

 protected:
  using Deadline = std::optional<std::chrono::system_clock::time_point>;  // none if the client set none

  // `method` is for the log. `stream` must be valid until Closed.
  Call(CallEnvironment* environment, const char* method, Caller caller, Deadline deadline, CallStream* stream);

  // The message that TakeMessage made. It does not change during a write.
  virtual const google::protobuf::MessageLite& message() const = 0;
  // Ends the work with this status: Done follows, from within or later. Called at most once, maybe before Begin has
  // returned, and not after Done. Without `mutex_`.
  virtual void Stop(const absl::Status& status) = 0;
  // A message is about to be written; a write has ended, and the client has room for more. Without `mutex_`.
  virtual void Writing() {}
  virtual void Drained() {}

  // All of these are called with `mutex_` held.
  // Makes a message of what is buffered. Returns false if there is nothing to send.
  virtual bool TakeMessage() = 0;
  virtual void WriteEnded() {}  // the message has been written, or will not be
  // What the log says of the call: what it is, and what it has done. Each "key=value" has a space behind it.
  virtual std::string Subject() const { return ""; }
  virtual std::string Work() const { return ""; }
  // Must be called after what is to be sent has changed.
  void Wake();
  // The work has ended. Called once.
  void Done(const absl::Status& status);
  bool is_done() const { return done_.has_value(); }
  bool succeeded() const { return done_ && done_->ok(); }
  // Whether its end will be logged in any case.
  bool logged() const { return logged_; }
  void SetLogged() { logged_ = true; }

  double SecondsSinceBegin() const;
  // The seconds that are left; nothing if the client set no deadline.
  std::optional<double> SecondsLeft() const;

  CallEnvironment* const environment_;
  const char* const method_;
  const Caller caller_;
  std::mutex mutex_;

 private:
  using Clock = std::chrono::steady_clock;

  // Writes what there is, or finishes the call. Runs on a thread of CallEnvironment::writing, or on the door's.
  void Pump();
  void Cancel(const absl::Status& status);
  absl::Status GoneStatus() const;
  // With mutex_ held.
  void FinishIfDone();
  void Report() const;  // counts and logs the call
  // Checks the current write again after `seconds`.
  void Watch(double seconds);
  // With mutex_ held: whether the client has taken too little while messages waited for it.
  bool TooSlow(Clock::time_point now);
  void CheckStall();

  const Deadline deadline_;
  CallStream* const stream_;
  const Clock::time_point start_ = Clock::now();

  // Guarded by mutex_.
  bool logged_ = false;
  std::optional<absl::Status> done_;  // how the work has ended
  bool cancelled_ = false;            // Stop was called
  bool scheduled_ = false;            // a Pump is posted
  bool writing_ = false;
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
// The value of a key=value pair in the log. One that could be read as several words is quoted.
std::string LogValue(const std::string& text);
// "client=alice peer=192.0.2.7"
std::string NameOf(const Caller& caller);

}  // namespace goldfinch

#endif  // GOLDFINCH_COORDINATOR_CALLS_CALL_H_
