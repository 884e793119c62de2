// When a transfer whose connection broke is tried again.
#ifndef GOLDFINCH_CLIENTS_CLI_CONTEXT_TRANSFER_RETRY_H_
#define GOLDFINCH_CLIENTS_CLI_CONTEXT_TRANSFER_RETRY_H_

#include <chrono>
#include <optional>

#include "absl/status/status.h"

namespace goldfinch {

// A transfer is tried again for some time after the last progress. A server that never answered is not tried again.
class TransferRetry {
 public:
  explicit TransferRetry(double seconds) : seconds_(seconds) {}

  // The server has taken or sent something.
  void Progress();
  // Whether to go on after this error. Waits before that, twice as long each time.
  bool Wait(const absl::Status& status);

 private:
  using Clock = std::chrono::steady_clock;

  const double seconds_;
  std::optional<Clock::time_point> progress_;
  std::chrono::duration<double> pause_{0};
};

}  // namespace goldfinch

#endif  // GOLDFINCH_CLIENTS_CLI_CONTEXT_TRANSFER_RETRY_H_
