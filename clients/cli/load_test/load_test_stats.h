// What a load test measured. The memory it takes does not grow with the number of requests.
#ifndef GOLDFINCH_CLIENTS_CLI_LOAD_TEST_LOAD_TEST_STATS_H_
#define GOLDFINCH_CLIENTS_CLI_LOAD_TEST_LOAD_TEST_STATS_H_

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "nlohmann/json_fwd.hpp"

namespace goldfinch {

// Counts latencies in buckets 1% wide, from a microsecond to three hours, so that quantiles are right to 1%.
class LatencyHistogram {
 public:
  LatencyHistogram();

  void Add(double seconds, int64_t count = 1);
  int64_t count() const { return count_; }
  double max() const { return max_; }
  // The least latency that a share, [0, 1], of all latencies does not exceed; 0 if there are none.
  double Quantile(double share) const;

 private:
  std::vector<int64_t> counts_;
  int64_t count_ = 0;
  double max_ = 0;
};

// "1.23 s", "45.6 ms" or "7.89 us".
std::string HumanSeconds(double seconds);
// The count, the largest and some quantiles, in seconds.
nlohmann::json LatencyJson(const LatencyHistogram& latencies);

// Times are seconds from the start of the test.
struct RequestRecord {
  int64_t number = 0;
  int group = 0;  // of a scenario, and its client
  int client = 0;
  double scheduled_seconds = 0;
  double sent_seconds = 0;
  std::optional<double> first_token_seconds;
  double done_seconds = 0;
  int64_t prompt_tokens = 0;  // the server's count, or the scheduled length until the server has sent its own
  int64_t output_tokens = 0;
  bool cut = false;  // the test itself has ended it, as its work was done: neither completed nor failed
  absl::Status status;
};

// One line, without the newline.
std::string CsvHeader();
std::string CsvRow(const RequestRecord& record);

// Not thread-safe.
class LoadTestStats {
 public:
  // Adds a request that has ended. Its latencies count from the time at which it was scheduled, so that a slow server
  // cannot hide its delay by making the client send later.
  void Add(const RequestRecord& record);
  // Adds the time between two responses with tokens, of which the second has `tokens` tokens.
  void AddGap(double seconds, int64_t tokens);
  // Counts a request that was sent late because too many were running.
  void AddHeld() { ++held_; }

  struct Errors {
    int64_t count = 0;
    std::string message;  // the first one's
  };

  int64_t completed() const { return completed_; }
  int64_t failed() const { return failed_; }
  int64_t cut() const { return cut_; }
  int64_t finished() const { return completed_ + failed_ + cut_; }
  int64_t prompt_tokens() const { return prompt_tokens_; }
  int64_t output_tokens() const { return output_tokens_; }
  const LatencyHistogram& first_token() const { return first_token_; }
  const LatencyHistogram& inter_token() const { return inter_token_; }
  const std::map<std::string, Errors>& errors() const { return errors_; }  // by code
  // From the time at which the first request was scheduled until the last one ended; 0 if none has ended.
  double seconds() const { return finished() > 0 ? seconds_ - begin_seconds_ : 0; }
  // The first error; OK if there was none.
  const absl::Status& first_error() const { return first_error_; }

  std::string Table(double rate, int64_t max_concurrency) const;
  nlohmann::json Json(double rate) const;

 private:
  double PerSecond(int64_t amount) const { return seconds_ > 0 ? static_cast<double>(amount) / seconds_ : 0; }

  LatencyHistogram first_token_, inter_token_, end_to_end_;
  std::map<std::string, Errors> errors_;  // by code
  absl::Status first_error_;
  int64_t completed_ = 0;
  int64_t failed_ = 0;
  int64_t cut_ = 0;
  int64_t held_ = 0;
  int64_t prompt_tokens_ = 0;  // of completed requests, and of those that were cut after their first token
  int64_t output_tokens_ = 0;  // all requests
  double begin_seconds_ = 0;   // when the first request was scheduled
  double seconds_ = 0;         // until the last request ended
  double lag_seconds_max_ = 0;
};

}  // namespace goldfinch

#endif  // GOLDFINCH_CLIENTS_CLI_LOAD_TEST_LOAD_TEST_STATS_H_
