// Waits for the signals of a server: to end, and to read its files again.
#ifndef GOLDFINCH_CLIENTS_CLI_SERVE_STOP_SIGNAL_H_
#define GOLDFINCH_CLIENTS_CLI_SERVE_STOP_SIGNAL_H_

#include <mutex>
#include <utility>

#include "absl/status/status.h"

namespace goldfinch {

// Once this object exists, the first SIGTERM or SIGINT does not end the process but ends WaitFor; a second one after
// that ends the process, unless `second_ends` is false. SIGHUP never ends it. Construct it before any thread starts,
// and only one at a time.
class StopSignal {
 public:
  explicit StopSignal(bool second_ends = true);
  ~StopSignal();
  StopSignal(const StopSignal&) = delete;
  StopSignal& operator=(const StopSignal&) = delete;

  // True once a signal has come or Raise was called; false after the given time, or earlier after SIGHUP.
  bool WaitFor(double seconds);
  // Whether SIGHUP has come since the last call.
  bool TakeReload() { return std::exchange(reload_, false); }
  // Ends WaitFor with an error; the first error is kept. Any thread.
  void Raise(const absl::Status& status);
  // The error that Raise gave; OK if a signal came.
  absl::Status status();

 private:
  const bool second_ends_;
  int signals_;  // a signalfd
  int reloads_;  // another one, for SIGHUP
  int raised_;   // an eventfd
  std::mutex mutex_;
  absl::Status status_;  // guarded by mutex_
  bool reload_ = false;  // WaitFor's thread alone uses it
};

}  // namespace goldfinch

#endif  // GOLDFINCH_CLIENTS_CLI_SERVE_STOP_SIGNAL_H_
