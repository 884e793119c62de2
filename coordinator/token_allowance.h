// How many tokens a client may use by the minute.
#ifndef GOLDFINCH_COORDINATOR_TOKEN_ALLOWANCE_H_
#define GOLDFINCH_COORDINATOR_TOKEN_ALLOWANCE_H_

#include <algorithm>
#include <cstdint>

namespace goldfinch {

// It holds the tokens of one minute and is full at first. What is taken may exceed what it holds: the debt is paid off
// before anything more can be taken. `now` is in seconds and never goes back. Not thread-safe.
class TokenAllowance {
 public:
  // 0: no limit. A new limit leaves what has been used as it is.
  void SetLimit(int64_t tokens_per_minute) {
    level_ += static_cast<double>(tokens_per_minute - per_minute_);
    per_minute_ = tokens_per_minute;
  }
  bool limited() const { return per_minute_ > 0; }
  // Seconds until `tokens` can be taken. More than it can ever hold can be taken when it is full.
  double SecondsUntil(int64_t tokens, double now) {
    if (!limited()) return 0;
    Fill(now);
    return std::max(static_cast<double>(std::min(tokens, per_minute_)) - level_, 0.0) / per_second();
  }
  void Take(int64_t tokens, double now) {
    if (!limited()) return;
    Fill(now);
    level_ -= static_cast<double>(tokens);
  }
  void GiveBack(int64_t tokens, double now) { Take(-tokens, now); }
  bool full(double now) { return SecondsUntil(per_minute_, now) == 0; }
  // How long `tokens` take to flow in.
  double SecondsOf(int64_t tokens) const { return limited() ? static_cast<double>(tokens) / per_second() : 0; }

 private:
  double per_second() const { return static_cast<double>(per_minute_) / 60; }
  void Fill(double now) {
    level_ = std::min(level_ + (now - filled_) * per_second(), static_cast<double>(per_minute_));
    filled_ = now;
  }

  int64_t per_minute_ = 0;
  double level_ = 0;
  double filled_ = 0;
};

}  // namespace goldfinch

#endif  // GOLDFINCH_COORDINATOR_TOKEN_ALLOWANCE_H_
