#include "coordinator/metrics/traffic_record.h"

#include <algorithm>
#include <cmath>
#include <cstdint>

namespace goldfinch {
namespace {

// Less than this part of a request is left of the past when the averages are of nothing that matters any more.
constexpr double kLeastRequests = 1e-9;

int64_t Rounded(double sum, double count) {
  constexpr double kMost = 1e12;  // far from overflow
  return count > 0 ? std::llround(std::clamp(sum / count, 1.0, kMost)) : 1;
}

}  // namespace

void TrafficRecord::Count(const SchedulerEvents& events) {
  prompt_tokens_ += static_cast<double>(events.prompt_tokens - events.cached_tokens);
  sampled_tokens_ += static_cast<double>(events.sampled_tokens);
  attended_positions_ += static_cast<double>(events.sampled_positions);
  requests_ += static_cast<double>(events.first_token_seconds.size());
  // Some only read.
  requests_ += static_cast<double>(
      std::count_if(events.ended.begin(), events.ended.end(), [](const SchedulerEvents::Ended& ended) {
        return ended.status.ok() && (ended.finishes.empty() || ended.usage.completion_tokens == 0);
      }));
}

void TrafficRecord::Observe(const std::vector<int>& sequences, double now) {
  const double passed = last_ < 0 ? 0 : now - last_;
  last_ = now;
  double running = 0, groups = 0;
  for (const int one : sequences) {
    running += one;
    groups += one > 0 ? 1 : 0;
  }
  if (groups == 0) return;
  const double kept = std::exp2(-passed / half_life_seconds_);
  for (double* const sum :
       {&requests_, &prompt_tokens_, &sampled_tokens_, &attended_positions_, &sequence_seconds_, &group_seconds_}) {
    *sum *= kept;
  }
  sequence_seconds_ += passed * running;
  group_seconds_ += passed * groups;
}

std::optional<ExpectedTraffic> TrafficRecord::Average() const {
  if (requests_ < kLeastRequests) return std::nullopt;
  // Of a stream that has run for long, tokens count and its beginning no longer does. But whatever the requests are, no
  // more is sampled for one on average than twice the positions that sampled tokens attend to.
  double requests = requests_;
  if (attended_positions_ > 0) {
    requests = std::max(requests, sampled_tokens_ * sampled_tokens_ / (2 * attended_positions_));
  }
  return ExpectedTraffic{.prompt_tokens = Rounded(prompt_tokens_, requests),
                         .output_tokens = Rounded(sampled_tokens_, requests),
                         .context_tokens = Rounded(attended_positions_, sampled_tokens_),
                         .sequences = Rounded(sequence_seconds_, group_seconds_)};
}

}  // namespace goldfinch
