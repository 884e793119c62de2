#include "clients/cli/context/transfer_retry.h"

#include <algorithm>
#include <thread>

namespace goldfinch {
namespace {

constexpr std::chrono::duration<double> kPause{0.1};
constexpr std::chrono::duration<double> kPauseMax{5};

}  // namespace

void TransferRetry::Progress() {
  progress_ = Clock::now();
  pause_ = kPause;
}

bool TransferRetry::Wait(const absl::Status& status) {
  if (!absl::IsUnavailable(status) || !progress_) return false;
  const std::chrono::duration<double> left = *progress_ + std::chrono::duration<double>(seconds_) - Clock::now();
  if (left.count() <= 0) return false;
  std::this_thread::sleep_for(std::min(pause_, left));
  pause_ = std::min(2 * pause_, kPauseMax);
  return true;
}

}  // namespace goldfinch
