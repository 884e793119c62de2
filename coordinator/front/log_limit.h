// Log lines that strangers can cause.
#ifndef GOLDFINCH_COORDINATOR_FRONT_LOG_LIMIT_H_
#define GOLDFINCH_COORDINATOR_FRONT_LOG_LIMIT_H_

#include <cstdint>
#include <mutex>
#include <string>

namespace goldfinch {

// At most ten lines at once and one a second; what is left out is counted and told with the next line. Thread-safe.
class LogLimit {
 public:
  void Warn(double now, const std::string& line);

 private:
  std::mutex mutex_;
  // Guarded by mutex_.
  double level_ = 10;
  double at_ = 0;
  int64_t left_out_ = 0;
};

}  // namespace goldfinch

#endif  // GOLDFINCH_COORDINATOR_FRONT_LOG_LIMIT_H_
