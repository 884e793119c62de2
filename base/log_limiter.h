// Keeps a log from being filled by lines that a stranger causes.
#ifndef GOLDFINCH_BASE_LOG_LIMITER_H_
#define GOLDFINCH_BASE_LOG_LIMITER_H_

#include <cstdint>
#include <mutex>
#include <optional>
#include <string>

#include "base/token_bucket.h"

namespace goldfinch {

// One for each kind of line. Thread-safe. `now` is in seconds of a clock that never goes back.
class LogLimiter {
 public:
  // Lets `burst` lines pass at once, and `per_second` in the long run.
  LogLimiter(double per_second, double burst) : bucket_(per_second, burst, 0) {}

  // Nothing if the line must not be logged. Else what to put at its end: empty, or how many lines were left out since
  // the last one that was logged.
  std::optional<std::string> Take(double now);
  // The same, by the steady clock.
  std::optional<std::string> Take();

 private:
  std::mutex mutex_;
  TokenBucket bucket_;    // guarded by mutex_
  int64_t left_out_ = 0;  // guarded by mutex_
};

// Seconds of the steady clock.
double SteadySeconds();

}  // namespace goldfinch

#endif  // GOLDFINCH_BASE_LOG_LIMITER_H_
