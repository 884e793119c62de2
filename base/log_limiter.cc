#include "base/log_limiter.h"

#include <chrono>
#include <utility>

#include "absl/strings/str_cat.h"

namespace goldfinch {

std::optional<std::string> LogLimiter::Take(double now) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (!bucket_.Take(now)) {
    ++left_out_;
    return std::nullopt;
  }
  const int64_t left_out = std::exchange(left_out_, 0);
  if (left_out == 0) return "";
  return absl::StrCat(" (", left_out, " more like this were not logged)");
}

std::optional<std::string> LogLimiter::Take() { return Take(SteadySeconds()); }

double SteadySeconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace goldfinch
