// The coordinator's metrics for Prometheus. All names begin with goldfinch_, and all series have the label model_name.
#ifndef GOLDFINCH_COORDINATOR_METRICS_H_
#define GOLDFINCH_COORDINATOR_METRICS_H_

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "coordinator/dispatcher.h"

namespace prometheus {
class Counter;
class Gauge;
class Histogram;
class Registry;
template <typename T>
class Family;
}  // namespace prometheus

namespace goldfinch {

// The front ends count calls that fail; the coordinator's core counts everything else about the requests that it took.
//
// Thread-safe. A call takes an atomic operation or two: labels are looked up once and kept, but for those of failures.
// A negative amount for a counter is the programmer's error.
class Metrics {
 public:
  // How one stage spent its time, as its StepDone says.
  struct StageSeconds {
    double busy = 0;
    double bubble = 0;
    double idle = 0;
  };
  // What one stage received from the stage before it.
  struct BoundaryAmounts {
    int64_t hidden_bytes = 0;
    int64_t compressed_bytes = 0;
    int64_t id_bytes = 0;
  };
  // Sums over all groups.
  struct Memory {
    int64_t cache_bytes = 0;              // cache pages in use
    int64_t gold_kept_bytes = 0;          // what GOLD layers keep beside them
    int64_t transformer_cache_bytes = 0;  // what a transformer of the same shape would keep for the same positions
    int64_t state_bytes = 0;              // recurrent states of running sequences
    int64_t cache_tokens_reserved = 0;
    int64_t cache_tokens_max = 0;
  };

  explicit Metrics(const std::string& model_name);
  ~Metrics();
  Metrics(const Metrics&) = delete;
  Metrics& operator=(const Metrics&) = delete;

  // ---- Requests ----
  void SetRequestsRunning(int64_t requests);      // num_requests_running
  void SetRequestsWaiting(int64_t requests);      // num_requests_waiting
  void AddPromptTokens(int64_t tokens);           // prompt_tokens_total: of each request once, as its usage says
  void AddCompletionTokens(int64_t tokens);       // generation_tokens_total
  void AddReplayedTokens(int64_t tokens);         // replayed_tokens_total: run again, beside those two
  void ObserveTimeToFirstToken(double seconds);   // time_to_first_token_seconds: since Submit
  void ObserveInterTokenLatency(double seconds);  // inter_token_latency_seconds: between tokens of one sample
  void ObserveRequestLatency(double seconds);     // e2e_request_latency_seconds: from Submit to OnDone
  void CountSuccess(Finish finish);               // request_success_total{finished_reason}: once for each sample
  void CountScored();  // request_success_total{finished_reason="scored"}: once for each request
  // request_failure_total{method,code}: calls of the API that were refused or ended with an error; not kOk.
  void CountFailure(const std::string& method, absl::StatusCode code);
  void CountRecovery();                   // request_recoveries_total: once for each request that is restored
  void CountParkings(int64_t sequences);  // sequence_parkings_total

  // ---- Groups ----
  void SetGroupGeneration(uint64_t generation);  // group_generation: the latest of any group
  void SetGroupsReady(int64_t groups);           // groups_ready
  void SetWorkersConnected(int64_t workers);     // workers_connected
  void SetMemory(const Memory& memory);          // one gauge for each field, of its name

  // ---- Steps ----
  void CountStep();                            // steps_total
  void ObserveStepScheduling(double seconds);  // step_scheduling_seconds: to plan one Step
  // stage_busy_seconds_total, stage_bubble_seconds_total, stage_idle_seconds_total
  void AddStageSeconds(int replica, int stage, const StageSeconds& seconds);
  // boundary_bytes_total{kind}. Boundary i lies between stages i and i + 1.
  void AddBoundaryBytes(int replica, int boundary, const BoundaryAmounts& amounts);

  const std::shared_ptr<prometheus::Registry>& registry() const { return registry_; }

 private:
  struct StageCounters {
    prometheus::Counter* busy = nullptr;
    prometheus::Counter* bubble = nullptr;
    prometheus::Counter* idle = nullptr;
  };
  struct BoundaryCounters {
    prometheus::Counter* hidden = nullptr;
    prometheus::Counter* compressed = nullptr;
    prometheus::Counter* ids = nullptr;
  };
  static constexpr int kFinishes = 4;  // the values of Finish, and "scored"
  static constexpr int kCodes = 17;    // the canonical status codes

  prometheus::Counter* FailuresOf(const std::string& method, absl::StatusCode code);

  prometheus::Counter* MakeCounter(const char* name, const char* help);
  prometheus::Gauge* MakeGauge(const char* name, const char* help);
  prometheus::Histogram* MakeHistogram(const char* name, const char* help, const std::vector<double>& buckets);
  prometheus::Family<prometheus::Counter>* MakeCounters(const char* name, const char* help);

  const std::string model_name_;
  const std::shared_ptr<prometheus::Registry> registry_;  // owns what the pointers below point to

  prometheus::Gauge* requests_running_;
  prometheus::Gauge* requests_waiting_;
  prometheus::Counter* prompt_tokens_;
  prometheus::Counter* completion_tokens_;
  prometheus::Counter* replayed_tokens_;
  prometheus::Histogram* time_to_first_token_;
  prometheus::Histogram* inter_token_latency_;
  prometheus::Histogram* request_latency_;
  std::array<prometheus::Counter*, kFinishes> successes_;
  prometheus::Family<prometheus::Counter>* failures_;
  prometheus::Counter* recoveries_;
  prometheus::Counter* parkings_;

  prometheus::Gauge* group_generation_;
  prometheus::Gauge* groups_ready_;
  prometheus::Gauge* workers_connected_;
  prometheus::Gauge* cache_bytes_;
  prometheus::Gauge* gold_kept_bytes_;
  prometheus::Gauge* transformer_cache_bytes_;
  prometheus::Gauge* state_bytes_;
  prometheus::Gauge* cache_tokens_reserved_;
  prometheus::Gauge* cache_tokens_max_;

  prometheus::Counter* steps_;
  prometheus::Histogram* step_scheduling_;
  prometheus::Family<prometheus::Counter>* stage_busy_;
  prometheus::Family<prometheus::Counter>* stage_bubble_;
  prometheus::Family<prometheus::Counter>* stage_idle_;
  prometheus::Family<prometheus::Counter>* boundary_bytes_;

  std::mutex mutex_;
  std::map<std::pair<int, int>, StageCounters> stages_;         // guarded by mutex_, by replica and stage
  std::map<std::pair<int, int>, BoundaryCounters> boundaries_;  // guarded by mutex_, by replica and boundary
};

}  // namespace goldfinch

#endif  // GOLDFINCH_COORDINATOR_METRICS_H_
