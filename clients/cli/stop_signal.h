// Waiting for the signal that ends a server.
#ifndef GOLDFINCH_CLIENTS_CLI_STOP_SIGNAL_H_
#define GOLDFINCH_CLIENTS_CLI_STOP_SIGNAL_H_

#include <mutex>

#include "absl/status/status.h"

namespace goldfinch {

// SIGTERM and SIGINT no longer end the process from its construction on, which must be before any thread starts; a
// second one, after the first has been waited for, does. One at a time.
class StopSignal {
 public:
  StopSignal();
  ~StopSignal();
  StopSignal(const StopSignal&) = delete;
  StopSignal& operator=(const StopSignal&) = delete;

  // True once a signal has come or Raise was called; false after so long.
  bool WaitFor(double seconds);
  // Ends the waiting with an error, of which the first is kept. Any thread.
  void Raise(const absl::Status& status);
  // OK if it was a signal.
  absl::Status status();

 private:
  int signals_;  // a signalfd
  int raised_;   // an eventfd
  std::mutex mutex_;
  absl::Status status_;  // guarded by mutex_
};

}  // namespace goldfinch

#endif  // GOLDFINCH_CLIENTS_CLI_STOP_SIGNAL_H_
