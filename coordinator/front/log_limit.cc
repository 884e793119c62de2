#include "coordinator/front/log_limit.h"

#include <algorithm>
#include <utility>

#include "spdlog/spdlog.h"

namespace goldfinch {
namespace {

constexpr double kLinesAtOnce = 10, kLinesASecond = 1;

}  // namespace

void LogLimit::Warn(double now, const std::string& line) {
  int64_t left_out = 0;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    level_ = std::min(kLinesAtOnce, level_ + kLinesASecond * (now - at_));
    at_ = now;
    if (level_ < 1) {
      ++left_out_;
      return;
    }
    level_ -= 1;
    left_out = std::exchange(left_out_, 0);
  }
  if (left_out > 0) {
    spdlog::warn("{} ({} such lines before it were left out)", line, left_out);
  } else {
    spdlog::warn("{}", line);
  }
}

}  // namespace goldfinch
