#include "coordinator/metrics/activity_log.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_format.h"

namespace goldfinch {
namespace {

constexpr double kLeastSeconds = 1e-5;  // of a Step: where the first class begins
constexpr int kClassesPerDecade = 10;

}  // namespace

void ActivityLog::Count(const SchedulerEvents& events) {
  for (const SchedulerEvents::Ended& one : events.ended) ++(one.status.ok() ? ended_ : failed_);
  prompt_tokens_ += events.prompt_tokens;
  completion_tokens_ += events.completion_tokens;
  reread_tokens_ += events.reread_tokens;
  parkings_ += events.parkings;
}

void ActivityLog::CountStep(double seconds) {
  const double decades = std::log10(std::max(seconds, kLeastSeconds) / kLeastSeconds);
  ++step_classes_[std::min(static_cast<int>(decades * kClassesPerDecade), kClasses - 1)];
  ++steps_;
}

// The middle of the class in which the quantile lies: within 12 % of it.
double ActivityLog::StepSeconds(double quantile) const {
  int64_t before = 0;
  for (int i = 0; i < kClasses; ++i) {
    before += step_classes_[i];
    if (static_cast<double>(before) >= quantile * static_cast<double>(steps_)) {
      return kLeastSeconds * std::pow(10, (i + 0.5) / kClassesPerDecade);
    }
  }
  return 0;
}

std::optional<std::string> ActivityLog::Take(double now, absl::FunctionRef<Present()> present) {
  const double seconds = now - since_;
  if (seconds < kPeriodSeconds) return std::nullopt;
  const Present is = present();
  std::optional<std::string> line;
  if (is.running + is.waiting + ended_ + failed_ + steps_ > 0) {
    const auto rate = [&](int64_t tokens) { return static_cast<double>(tokens) / seconds; };
    line = absl::StrFormat(
        "activity seconds=%.0f running=%d waiting=%d ended=%d failed=%d parkings=%d prompt_tokens_per_second=%.1f "
        "completion_tokens_per_second=%.1f reread_tokens_per_second=%.1f slots_used=%d slots_max=%d "
        "cache_pages_used=%d cache_pages_reserved=%d cache_pages_max=%d steps=%d",
        seconds, is.running, is.waiting, ended_, failed_, parkings_, rate(prompt_tokens_), rate(completion_tokens_),
        rate(reread_tokens_), is.slots_used, is.slots_max, is.cache_pages_used, is.cache_pages_reserved,
        is.cache_pages_max, steps_);
    if (steps_ > 0) {
      absl::StrAppendFormat(&*line, " step_seconds_p50=%.2g step_seconds_p99=%.2g", StepSeconds(0.5),
                            StepSeconds(0.99));
    }
  }
  *this = ActivityLog(now);
  return line;
}

}  // namespace goldfinch
