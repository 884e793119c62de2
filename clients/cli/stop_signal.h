// Waits for the signal that ends a server.
#ifndef GOLDFINCH_CLIENTS_CLI_STOP_SIGNAL_H_
#define GOLDFINCH_CLIENTS_CLI_STOP_SIGNAL_H_

#include <mutex>

#include "absl/status/status.h"

namespace goldfinch {

// Once this object exists, the first SIGTERM or SIGINT does not end the process but ends WaitFor; a second one after
// that ends the process. Construct it before any thread starts, and only one at a time.
class StopSignal {
 public:
  StopSignal();
  ~StopSignal();
  StopSignal(const StopSignal&) = delete;
  StopSignal& operator=(const StopSignal&) = delete;

  // True once a signal has come or Raise was called; false after the given time.
  bool WaitFor(double seconds);
  // Ends WaitFor with an error; the first error is kept. Any thread.
  void Raise(const absl::Status& status);
  // The error that Raise gave; OK if a signal came.
  absl::Status status();

 private:
  int signals_;  // a signalfd
  int raised_;   // an eventfd
  std::mutex mutex_;
  absl::Status status_;  // guarded by mutex_
};

}  // namespace goldfinch

#endif  // GOLDFINCH_CLIENTS_CLI_STOP_SIGNAL_H_
