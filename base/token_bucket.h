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

  // What has been taken from it stays taken.
  void SetRate(double per_second, double capacity, double now) {
    tokens_ = Tokens(now) + capacity - capacity_;
    filled_at_ = now;
    per_second_ = per_second;
    capacity_ = capacity;
  }
  double per_second() const { return per_second_; }
  double capacity() const { return capacity_; }

  // Takes a token. False if there is none.
  bool Take(double now) {
    if (Tokens(now) < 1) return false;
    Spend(1, now);
    return true;
  }
  // Takes tokens whether they are there or not: the debt is paid off before there are any again.
  void Spend(double tokens, double now) {
    tokens_ = Tokens(now) - tokens;
    filled_at_ = now;
  }
  void GiveBack(double tokens) { tokens_ += tokens; }  // what is too much flows over
  // Negative if there is a debt.
  double Tokens(double now) const { return std::min(capacity_, tokens_ + per_second_ * (now - filled_at_)); }
  bool full(double now) const { return Tokens(now) >= capacity_; }
  // How long it takes until there are so many, or it is full; 0 if that is so now.
  double SecondsUntil(double tokens, double now) const {
    return std::max(0.0, (std::min(tokens, capacity_) - Tokens(now)) / per_second_);
  }

 private:
  double per_second_;
  double capacity_;
  double tokens_;
  double filled_at_;
};

}  // namespace goldfinch

#endif  // GOLDFINCH_BASE_TOKEN_BUCKET_H_
