// One streaming call that has the dispatcher run a request: Generate, Score, and reading the text of a context.
#ifndef GOLDFINCH_COORDINATOR_CALLS_REQUEST_CALL_H_
#define GOLDFINCH_COORDINATOR_CALLS_REQUEST_CALL_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "coordinator/calls/call.h"
#include "coordinator/scheduler/dispatcher.h"

namespace goldfinch {

// Buffers what the dispatcher delivers and writes it; what arrives during a write goes into the next messages. While
// more than a bound is buffered, the dispatcher is told to pause. The call ends when the dispatcher has ended the
// request, or at once if the dispatcher did not take it.
class RequestCall : public Call, public RequestSink {
 public:
  // Reads, validates and submits the request; it takes as long as tokenizing the text does.
  void Begin() final;

  // ---- For the dispatcher ----
  void OnDone(const absl::Status& status, const RequestUsage& usage) final;

 protected:
  using Call::Call;

  // Reads and validates the request, before anything can be delivered. `buffer_max` is in the units of `buffered_`.
  virtual absl::StatusOr<Request> Prepare(std::shared_ptr<const ServedModel> model, int64_t* buffer_max) = 0;

  // With `mutex_` held, as is Call::TakeMessage, which moves the amount of its message from `buffered_` to
  // `in_flight_`.
  // Must be called when a token or a score has come.
  void NoteOutput();
  // What a sink must return after it has buffered something.
  Verdict PauseIfFull();

  // Guarded by mutex_.
  std::string id_;
  int64_t buffered_ = 0;   // what no write has taken yet
  int64_t in_flight_ = 0;  // what the write under way has taken
  RequestUsage usage_;

 private:
  void Stop(const absl::Status& status) final;
  void Writing() final;
  void Drained() final;
  void WriteEnded() final { in_flight_ = 0; }
  std::string Subject() const final;
  std::string Work() const final;

  std::shared_ptr<RequestCall> Self() { return std::static_pointer_cast<RequestCall>(shared_from_this()); }
  void Submit(Request request);
  void LogStart(const Request& request);

  // Guarded by mutex_.
  std::optional<double> first_output_seconds_;  // when the first token or score came, after the beginning
  bool first_output_logged_ = false;
  int64_t buffer_max_ = 0;
  std::optional<uint64_t> number_;      // what the dispatcher calls the request
  std::optional<absl::Status> cancel_;  // the status with which the dispatcher was asked to end the request
  bool paused_ = false;
};

}  // namespace goldfinch

#endif  // GOLDFINCH_COORDINATOR_CALLS_REQUEST_CALL_H_
