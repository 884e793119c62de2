// One line of the log about the whole, every minute while anything happens. Pure: no clock, no I/O.
#ifndef GOLDFINCH_COORDINATOR_METRICS_ACTIVITY_LOG_H_
#define GOLDFINCH_COORDINATOR_METRICS_ACTIVITY_LOG_H_

#include <array>
#include <cstdint>
#include <optional>
#include <string>

#include "absl/functional/function_ref.h"
#include "coordinator/scheduler/scheduler.h"

namespace goldfinch {

// Not thread-safe. `now` is in seconds and never goes back.
class ActivityLog {
 public:
  static constexpr double kPeriodSeconds = 60;

  // What is the case when the line is written.
  struct Present {
    int64_t running = 0;  // requests
    int64_t waiting = 0;
    int64_t slots_used = 0;
    int64_t slots_max = 0;
    int64_t cache_pages_used = 0;
    int64_t cache_pages_reserved = 0;
    int64_t cache_pages_max = 0;
  };

  explicit ActivityLog(double now) : since_(now) {}

  void Count(const SchedulerEvents& events);
  // `seconds`: how long a Step took in the slowest stage.
  void CountStep(double seconds);

  // The line, when a period has passed since the last one was due and something has happened in it, or a request is
  // there. Call it often; `present` is asked once a period.
  std::optional<std::string> Take(double now, absl::FunctionRef<Present()> present);

 private:
  // Seconds of Steps are counted in classes, each a tenth of a decade wide: 10 us to 1,000 s.
  static constexpr int kClasses = 80;

  double StepSeconds(double quantile) const;

  double since_;
  int64_t ended_ = 0;   // requests that ended well
  int64_t failed_ = 0;  // the others that ended
  int64_t prompt_tokens_ = 0;
  int64_t completion_tokens_ = 0;
  int64_t reread_tokens_ = 0;
  int64_t parkings_ = 0;
  int64_t steps_ = 0;
  std::array<int64_t, kClasses> step_classes_ = {};
};

}  // namespace goldfinch

#endif  // GOLDFINCH_COORDINATOR_METRICS_ACTIVITY_LOG_H_
