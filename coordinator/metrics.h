// What the coordinator counts, for Prometheus: families of the prefix goldfinch_, all with the label model_name.
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
#include "absl/status/statusor.h"
#include "coordinator/dispatcher.h"

namespace prometheus {
class Counter;
class Exposer;
class Gauge;
class Histogram;
class Registry;
template <typename T>
class Family;
}  // namespace prometheus

namespace goldfinch {

// The edge counts failures of requests that Submit did not take; the core counts everything of those that it took.
//
// Thread-safe. Every call is an atomic operation or two: label look-ups are done once and kept. Counters only grow; a
// negative amount is the programmer's error.
class Metrics {
 public:
  // What a StepDone says of one stage.
  struct StageSeconds {
    double busy = 0;
    double bubble = 0;
    double idle = 0;
  };
  // Received over one boundary.
  struct BoundaryAmounts {
    int64_t hidden_bytes = 0;
    int64_t compressed_bytes = 0;
    int64_t id_bytes = 0;
  };
  struct Memory {
    int64_t cache_bytes = 0;              // resident, over all groups
    int64_t gold_kept_bytes = 0;          // beside them
    int64_t transformer_cache_bytes = 0;  // what full keys and values of all layers would take in as many pages
    int64_t state_bytes = 0;              // of running sequences
    int64_t cache_tokens_reserved = 0;    // over all groups
    int64_t cache_tokens_max = 0;
  };

  explicit Metrics(const std::string& model_name);
  ~Metrics();
  Metrics(const Metrics&) = delete;
  Metrics& operator=(const Metrics&) = delete;

  // ---- Requests ----
  void SetRequestsRunning(int64_t requests);  // num_requests_running
  void SetRequestsWaiting(int64_t requests);  // num_requests_waiting
  void AddPromptTokens(int64_t tokens);  // prompt_tokens_total: read by a group; read again after a loss: counted again
  void AddGenerationTokens(int64_t tokens);       // generation_tokens_total: drawn and delivered
  void ObserveTimeToFirstToken(double seconds);   // time_to_first_token_seconds: since Submit
  void ObserveInterTokenLatency(double seconds);  // inter_token_latency_seconds: between tokens of one sample
  void ObserveRequestLatency(double seconds);     // e2e_request_latency_seconds: from Submit to OnDone
  void CountSuccess(Finish finish);               // request_success_total{finished_reason}: one a sample
  void CountScored();                             // request_success_total{finished_reason="scored"}: one a request
  void CountFailure(absl::StatusCode code);       // request_failure_total{code}: refused ones too; not for kOk
  void CountRecovery();                           // request_recoveries_total: one a request restored

  // ---- Groups ----
  void SetGroupGeneration(uint64_t generation);  // group_generation: the latest of all groups
  void SetGroupsReady(int64_t groups);           // groups_ready
  void SetWorkersConnected(int64_t workers);     // workers_connected
  void SetMemory(const Memory& memory);          // a gauge of each name

  // ---- Steps ----
  void CountStep();                            // steps_total
  void ObserveStepScheduling(double seconds);  // step_scheduling_seconds: the scheduler's own time for one Step
  // stage_busy_seconds_total, stage_bubble_seconds_total, stage_idle_seconds_total
  void AddStageSeconds(int replica, int stage, const StageSeconds& seconds);
  // boundary_bytes_total{kind}. `boundary` is the one before stage `boundary` + 1: between stages 0 and 1 is 0.
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
  static constexpr int kFinishes = 4;  // of Finish, and "scored"
  static constexpr int kCodes = 17;    // canonical codes

  prometheus::Counter* MakeCounter(const char* name, const char* help);
  prometheus::Gauge* MakeGauge(const char* name, const char* help);
  prometheus::Histogram* MakeHistogram(const char* name, const char* help, const std::vector<double>& buckets);
  prometheus::Family<prometheus::Counter>* MakeCounters(const char* name, const char* help);

  const std::string model_name_;
  const std::shared_ptr<prometheus::Registry> registry_;  // owns what the pointers below point to

  prometheus::Gauge* requests_running_;
  prometheus::Gauge* requests_waiting_;
  prometheus::Counter* prompt_tokens_;
  prometheus::Counter* generation_tokens_;
  prometheus::Histogram* time_to_first_token_;
  prometheus::Histogram* inter_token_latency_;
  prometheus::Histogram* request_latency_;
  std::array<prometheus::Counter*, kFinishes> successes_;
  std::array<prometheus::Counter*, kCodes> failures_;
  prometheus::Counter* recoveries_;

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

// Serves /metrics over HTTP, as long as it lives.
class MetricsServer {
 public:
  // `host` as for --host: a name or an address; port 0 takes a free one. UNAVAILABLE names host and port if they cannot
  // be listened on. Keeps the metrics' registry, not the metrics.
  static absl::StatusOr<std::unique_ptr<MetricsServer>> Start(const std::string& host, int port,
                                                              const Metrics& metrics);
  ~MetricsServer();

  int port() const { return port_; }

 private:
  MetricsServer(std::shared_ptr<prometheus::Registry> registry, std::unique_ptr<prometheus::Exposer> exposer, int port);

  std::shared_ptr<prometheus::Registry> registry_;
  std::unique_ptr<prometheus::Exposer> exposer_;
  const int port_;
};

}  // namespace goldfinch

#endif  // GOLDFINCH_COORDINATOR_METRICS_H_
