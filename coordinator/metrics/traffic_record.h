// What the traffic really is, in the terms of the traffic that splits are planned for. Pure: no clock, no I/O.
#ifndef GOLDFINCH_COORDINATOR_METRICS_TRAFFIC_RECORD_H_
#define GOLDFINCH_COORDINATOR_METRICS_TRAFFIC_RECORD_H_

#include <optional>
#include <vector>

#include "coordinator/planner/stage_cost.h"
#include "coordinator/scheduler/scheduler.h"

namespace goldfinch {

// Averages in which the past counts ever less: half as much for each half-life. Only time in which sequences run
// counts, so after a quiet night the record still says what the traffic was.
//
// Not thread-safe. `now` is in seconds and never goes back.
class TrafficRecord {
 public:
  explicit TrafficRecord(double half_life_seconds) : half_life_seconds_(half_life_seconds) {}

  void Count(const SchedulerEvents& events);
  // How many sequences run now in each group. Call it several times a second.
  void Observe(const std::vector<int>& sequences, double now);

  // What a request reads and samples, which positions its tokens attend to, and how many sequences run at a time in a
  // group while any do. Nothing before the first request has been read.
  std::optional<ExpectedTraffic> Average() const;

 private:
  const double half_life_seconds_;
  double last_ = -1;  // when Observe was called; < 0: never
  // Sums, of which the past counts ever less.
  double requests_ = 0;  // whose prompts have been read
  double prompt_tokens_ = 0;
  double sampled_tokens_ = 0;
  double attended_positions_ = 0;  // of sampled tokens
  double sequence_seconds_ = 0;
  double group_seconds_ = 0;  // in which sequences run in a group
};

}  // namespace goldfinch

#endif  // GOLDFINCH_COORDINATOR_METRICS_TRAFFIC_RECORD_H_
