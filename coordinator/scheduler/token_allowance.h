// How many tokens a client may use by the minute.
#ifndef GOLDFINCH_COORDINATOR_SCHEDULER_TOKEN_ALLOWANCE_H_
#define GOLDFINCH_COORDINATOR_SCHEDULER_TOKEN_ALLOWANCE_H_

#include <cstdint>

#include "base/token_bucket.h"

namespace goldfinch {

// It holds the tokens of one minute and is full at first. What is taken may exceed what it holds: the debt is paid off
// before anything more can be taken. `now` is in seconds and never goes back. Not thread-safe.
class TokenAllowance {
 public:
  // 0: no limit. A new limit leaves what has been used as it is.
  void SetLimit(int64_t tokens_per_minute, double now) {
    const auto tokens = static_cast<double>(tokens_per_minute);
    bucket_.SetRate(tokens / 60, tokens, now);
  }
  bool limited() const { return bucket_.capacity() > 0; }
  // Seconds until `tokens` can be taken. More than it can ever hold can be taken when it is full.
  double SecondsUntil(int64_t tokens, double now) const {
    return limited() ? bucket_.SecondsUntil(static_cast<double>(tokens), now) : 0;
  }
  void Take(int64_t tokens, double now) {
    if (limited()) bucket_.Spend(static_cast<double>(tokens), now);
  }
  void GiveBack(int64_t tokens) {
    if (limited()) bucket_.GiveBack(static_cast<double>(tokens));
  }
  bool full(double now) const { return !limited() || bucket_.full(now); }
  // How long `tokens` take to flow in.
  double SecondsOf(int64_t tokens) const { return limited() ? static_cast<double>(tokens) / bucket_.per_second() : 0; }

 private:
  TokenBucket bucket_{/*per_second=*/0, /*capacity=*/0, /*now=*/0};
};

}  // namespace goldfinch

#endif  // GOLDFINCH_COORDINATOR_SCHEDULER_TOKEN_ALLOWANCE_H_
