// What a load test measured, in memory that does not grow with its requests.
#ifndef GOLDFINCH_CLIENTS_CLI_LOAD_TEST_STATS_H_
#define GOLDFINCH_CLIENTS_CLI_LOAD_TEST_STATS_H_

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "nlohmann/json_fwd.hpp"

namespace goldfinch {

// Counts by size, in steps of 1%, from a microsecond to three hours: percentiles are right to 1%.
class LatencyHistogram {
 public:
  LatencyHistogram();

  void Add(double seconds, int64_t count = 1);
  int64_t count() const { return count_; }
  double max() const { return max_; }
  // The least time that `share`, in [0, 1], of all do not exceed; 0 of none.
  double Quantile(double share) const;

 private:
  std::vector<int64_t> counts_;
  int64_t count_ = 0;
  double max_ = 0;
};

// Times are seconds from the start of the test.
struct RequestRecord {
  int64_t number = 0;
  double scheduled_seconds = 0;
  double sent_seconds = 0;
  std::optional<double> first_token_seconds;
  double done_seconds = 0;
  int64_t prompt_tokens = 0;  // the server's count, or the plan's until it told
  int64_t output_tokens = 0;
  absl::Status status;
};

// One line, without its end.
std::string CsvHeader();
std::string CsvRow(const RequestRecord& record);

// Not thread-safe.
class LoadTestStats {
 public:
  // A request is over. Its latencies count from when it was to be sent: a server that is behind cannot hide it by
  // making the client send later.
  void Add(const RequestRecord& record);
  // Between a response with tokens and the next one, of `tokens` tokens.
  void AddGap(double seconds, int64_t tokens);
  // A request was sent late because too many were under way.
  void AddHeld() { ++held_; }

  int64_t completed() const { return completed_; }
  int64_t finished() const { return completed_ + failed_; }
  // The first error of all; OK if there was none.
  const absl::Status& first_error() const { return first_error_; }

  std::string Table(double rate, int64_t max_concurrency) const;
  nlohmann::json Json(double rate) const;

 private:
  struct Errors {
    int64_t count = 0;
    std::string message;  // of the first one
  };

  double PerSecond(int64_t amount) const { return seconds_ > 0 ? static_cast<double>(amount) / seconds_ : 0; }

  LatencyHistogram first_token_, inter_token_, end_to_end_;
  std::map<std::string, Errors> errors_;  // by code
  absl::Status first_error_;
  int64_t completed_ = 0;
  int64_t failed_ = 0;
  int64_t held_ = 0;
  int64_t prompt_tokens_ = 0;  // of completed requests
  int64_t output_tokens_ = 0;  // of all
  double seconds_ = 0;         // to the end of the last request
  double lag_seconds_max_ = 0;
};

}  // namespace goldfinch

#endif  // GOLDFINCH_CLIENTS_CLI_LOAD_TEST_STATS_H_
