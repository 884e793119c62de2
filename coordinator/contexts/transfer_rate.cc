#include "coordinator/contexts/transfer_rate.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"

namespace goldfinch {
namespace {

// The two moves that it begins with: one without bytes, and one of so many seconds beyond the fixed ones.
constexpr double kBegunWeight = 0.1, kBegunSeconds = 0.01;
// The coefficients stay within this factor of what they began as.
constexpr double kFurthest = 1e4;

}  // namespace

TransferRate::TransferRate(double bytes_per_second, double fixed_seconds)
    : begun_rate_(bytes_per_second),
      begun_fixed_(fixed_seconds),
      bytes_per_second_(bytes_per_second),
      fixed_seconds_(fixed_seconds) {
  GF_CHECK(bytes_per_second > 0 && fixed_seconds > 0);
}

void TransferRate::Measured(int64_t bytes, double seconds) {
  if (bytes <= 0 || !(seconds > 0) || !std::isfinite(seconds)) return;
  const double keep = std::exp2(-1 / kHalfLife);
  for (double* const sum : {&weight_, &bytes_, &bytes_squared_, &seconds_, &bytes_seconds_}) *sum *= keep;
  const auto moved = static_cast<double>(bytes);
  Add(1, moved, std::min(seconds, kTooSlow * Seconds(moved)));
  Fit();
}

void TransferRate::Add(double weight, double bytes, double seconds) {
  weight_ += weight;
  bytes_ += weight * bytes;
  bytes_squared_ += weight * bytes * bytes;
  seconds_ += weight * seconds;
  bytes_seconds_ += weight * bytes * seconds;
}

void TransferRate::Fit() {
  TransferRate all = *this;
  all.Add(kBegunWeight, 0, begun_fixed_);
  const double begun_bytes = kBegunSeconds * begun_rate_;
  all.Add(kBegunWeight, begun_bytes, begun_fixed_ + kBegunSeconds);
  const double spread = all.weight_ * all.bytes_squared_ - all.bytes_ * all.bytes_;  // > 0: two of them differ
  const double slope = (all.weight_ * all.bytes_seconds_ - all.bytes_ * all.seconds_) / spread;
  bytes_per_second_ = 1 / std::clamp(slope, 1 / (kFurthest * begun_rate_), kFurthest / begun_rate_);
  const double fixed = (all.seconds_ - all.bytes_ / bytes_per_second_) / all.weight_;
  fixed_seconds_ = std::clamp(fixed, begun_fixed_ / kFurthest, kFurthest * begun_fixed_);
}

}  // namespace goldfinch
