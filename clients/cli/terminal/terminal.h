// What commands print beside their result (progress, warnings, errors), and their exit codes.
#ifndef GOLDFINCH_CLIENTS_CLI_TERMINAL_TERMINAL_H_
#define GOLDFINCH_CLIENTS_CLI_TERMINAL_TERMINAL_H_

#include <chrono>
#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "base/units.h"

namespace goldfinch {

// An error in what the user typed: the exit code is 2, not 1.
absl::Status UsageError(const std::string& message);
// The same status, marked as an error in what the user typed.
absl::Status AsUsageError(const absl::Status& status);
// RESOURCE_EXHAUSTED if standard output could not be written: detects a full disk or a closed pipe.
absl::Status FlushOutput();
// 0, 1 or 2.
int ExitCode(const absl::Status& status);

// A bar on standard error, redrawn at most ten times a second and only if standard error is a terminal. It appears
// after the work has taken a moment, and Done removes it.
class ProgressBar {
 public:
  // Amounts are shown as "3,072 of 20,000 tokens, 812 tokens/s".
  ProgressBar(std::string label, std::string unit);
  ~ProgressBar() { Done(); }
  ProgressBar(const ProgressBar&) = delete;
  ProgressBar& operator=(const ProgressBar&) = delete;

  void Update(int64_t done, int64_t all);
  void Done();

 private:
  using Clock = std::chrono::steady_clock;

  const std::string label_;
  const std::string unit_;
  const bool visible_;
  const Clock::time_point start_ = Clock::now();
  Clock::time_point drawn_ = start_;
  bool on_screen_ = false;
};

}  // namespace goldfinch

#endif  // GOLDFINCH_CLIENTS_CLI_TERMINAL_TERMINAL_H_
