// How often something may happen: so many times at once, and so many times a second in the long run.
#ifndef GOLDFINCH_BASE_TOKEN_BUCKET_H_
#define GOLDFINCH_BASE_TOKEN_BUCKET_H_

#include <algorithm>

namespace goldfinch {

// Not thread-safe. `now` is in seconds of a clock that never goes back.
class TokenBucket {
 public:
  // It begins full, with `capacity` tokens, and gets `per_second` new ones until it is full again.
  TokenBucket(double per_second, double capacity, double now)
      : per_second_(per_second), capacity_(capacity), tokens_(capacity), filled_at_(now) {}

  // Takes a token. False if there is none.
  bool Take(double now) {
    if (Tokens(now) < 1) return false;
    tokens_ = Tokens(now) - 1;
    filled_at_ = now;
    return true;
  }
  double Tokens(double now) const { return std::min(capacity_, tokens_ + per_second_ * (now - filled_at_)); }
  bool full(double now) const { return Tokens(now) >= capacity_; }
  // How long it takes until Take succeeds again; 0 if it would succeed now.
  double SecondsUntilToken(double now) const { return std::max(0.0, (1 - Tokens(now)) / per_second_); }

 private:
  double per_second_;
  double capacity_;
  double tokens_;
  double filled_at_;
};

}  // namespace goldfinch

#endif  // GOLDFINCH_BASE_TOKEN_BUCKET_H_
