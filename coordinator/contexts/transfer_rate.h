// How long it takes to move bytes, learned from the moves before. Pure.
#ifndef GOLDFINCH_COORDINATOR_CONTEXTS_TRANSFER_RATE_H_
#define GOLDFINCH_COORDINATOR_CONTEXTS_TRANSFER_RATE_H_

#include <cstdint>

namespace goldfinch {

// seconds = fixed_seconds + bytes / bytes_per_second, fitted to the measured moves by least squares. A move counts half
// as much as one that came kHalfLife moves later. The rate that is given at the beginning counts as two moves that are
// never forgotten, with a small weight. Not thread-safe.
class TransferRate {
 public:
  // Both positive.
  TransferRate(double bytes_per_second, double fixed_seconds);

  double Seconds(double bytes) const { return fixed_seconds_ + bytes / bytes_per_second_; }
  double bytes_per_second() const { return bytes_per_second_; }
  double fixed_seconds() const { return fixed_seconds_; }

  // A move counts as at most kTooSlow times as long as was expected, because something else may have held it up.
  // Seconds and bytes that are not positive are ignored.
  void Measured(int64_t bytes, double seconds);

  static constexpr double kHalfLife = 16;
  static constexpr double kTooSlow = 10;

 private:
  void Add(double weight, double bytes, double seconds);
  void Fit();

  double begun_rate_, begun_fixed_;
  double bytes_per_second_, fixed_seconds_;
  // Weighted sums over the moves.
  double weight_ = 0, bytes_ = 0, bytes_squared_ = 0, seconds_ = 0, bytes_seconds_ = 0;
};

}  // namespace goldfinch

#endif  // GOLDFINCH_COORDINATOR_CONTEXTS_TRANSFER_RATE_H_
