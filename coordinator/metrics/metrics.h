// The coordinator's metrics for Prometheus. All names begin with goldfinch_, and all series have the label model_name.
#ifndef GOLDFINCH_COORDINATOR_METRICS_METRICS_H_
#define GOLDFINCH_COORDINATOR_METRICS_METRICS_H_

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "coordinator/planner/stage_cost.h"
#include "coordinator/scheduler/dispatcher.h"

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
    int64_t cache_tokens_used = 0;        // positions for which pages are in use; whole pages, as are the next two
    int64_t cache_tokens_reserved = 0;
    int64_t cache_tokens_max = 0;
    int64_t slots_used = 0;
    int64_t slots_max = 0;
  };
  // What one stage's GOLD layers keep of their sequences, as its StepDone says.
  struct Tiers {
    int64_t compressed_sequences = 0;
    int64_t shared_sequences = 0;
    int64_t full_sequences = 0;
    int64_t drops = 0;  // since the generation began
  };

  // What was kept of texts, since the server started.
  struct Contexts {
    int64_t hits = 0;
    int64_t misses_none_kept = 0;
    int64_t misses_evicted = 0;
    int64_t misses_cheaper_to_compute = 0;
    int64_t misses_other_model = 0;
    int64_t evictions = 0;
    int64_t tokens_saved = 0;
    int64_t memory_bytes = 0;  // now; of workers
    // The store:
    int64_t disk_bytes = 0;         // now, on disk,
    int64_t coordinator_bytes = 0;  // or in the coordinator's memory
    int64_t protected_bytes = 0;    // of these, those of long texts
    int64_t saved = 0;              // segments that have come to it,
    int64_t loaded = 0;             // or from it
    int64_t move_failures = 0;
    int64_t quarantined = 0;  // files that were found damaged
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
  void AddRereadTokens(int64_t tokens);           // reread_tokens_total: run again, beside those two
  void ObserveTimeToFirstToken(double seconds);   // time_to_first_token_seconds: since Submit
  void ObserveInterTokenLatency(double seconds);  // inter_token_latency_seconds: between tokens of one sample
  // A request that has ended well, `seconds` after Submit: e2e_request_latency_seconds, request_queue_time_seconds,
  // request_prefill_time_seconds, request_decode_time_seconds, request_prompt_tokens, request_generation_tokens.
  void ObserveRequest(double seconds, const RequestUsage& usage);
  void CountSuccess(Finish finish);  // request_success_total{finished_reason}: once for each sample
  void CountScored();                // request_success_total{finished_reason="scored"}: once for each request
  // request_failure_total{method,code}: calls of the API that were refused or ended with an error; not kOk.
  void CountFailure(const std::string& method, absl::StatusCode code);
  void CountRecovery();                   // request_recoveries_total: once for each request that is restored
  void CountParkings(int64_t sequences);  // sequence_parkings_total
  void CountDeadlineRefusal();            // request_deadline_refusals_total: refused at once, as it cannot be met
  void CountDeadlineMiss();               // request_deadline_misses_total: it passed while the request waited or ran

  // ---- Groups ----
  void SetGroupGeneration(uint64_t generation);       // group_generation: the latest of any group
  void SetGroupsReady(int64_t groups);                // groups_ready
  void SetWorkers(int64_t connected, int64_t spare);  // workers_connected, workers_spare
  void SetMemory(const Memory& memory);               // one gauge for each field, of its name
  // context_hits_total, context_misses_total{reason}, context_evictions_total, context_tokens_saved_total,
  // context_bytes{tier}, protected_bytes, context_moves_total{direction}, context_move_failures_total,
  // context_quarantined_files_total
  void SetContexts(const Contexts& contexts);

  // ---- Splits ----
  struct Link {
    int from = 0;  // stages
    int to = 0;
    double bytes_per_second = 0;
    double round_trip_seconds = 0;
  };
  // traffic_prompt_tokens, traffic_output_tokens, traffic_context_tokens, traffic_sequences: absent until it is known.
  void SetTraffic(const ExpectedTraffic& traffic);
  // split_gain_ratio: the part of its time that a replica would save with another split.
  void SetSplitGain(int replica, double gain);
  // link_bytes_per_second, link_round_trip_seconds: all links of a replica. A speed of 0 is not known, and absent.
  void SetLinks(int replica, const std::vector<Link>& links);
  // The replica's generation has ended: its links and gain are absent.
  void ClearSplit(int replica);

  // ---- Steps ----
  // A Step was sent: steps_total, step_sequences, step_tokens.
  void CountStep(int64_t sequences, int64_t tokens);
  void ObserveStepScheduling(double seconds);  // step_scheduling_seconds: to plan one Step
  // All stages have answered a Step. `seconds`: how long the slowest stage computed (step_seconds). `target_seconds`:
  // how long it should at most (step_target_seconds). `attended_positions`: pairs of a row and a position that it
  // attended to (attended_positions_total). What is 0 is not known, and its series is absent until it is.
  void ObserveStep(double seconds, double target_seconds, double attended_positions);
  // stage_busy_seconds_total, stage_bubble_seconds_total, stage_idle_seconds_total
  void AddStageSeconds(int replica, int stage, const StageSeconds& seconds);
  // boundary_bytes_total{kind}. Boundary i lies between stages i and i + 1.
  void AddBoundaryBytes(int replica, int boundary, const BoundaryAmounts& amounts);
  // gold_tier_sequences{tier}, gold_tier_drops_total. A stage that never has such a sequence has no series.
  void SetTiers(int replica, int stage, const Tiers& tiers);
  // The replica's generation has ended: its stages have no sequences, and their drops count from 0 again.
  void ClearTiers(int replica);

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
  struct TierSeries {
    prometheus::Gauge* compressed = nullptr;
    prometheus::Gauge* shared = nullptr;
    prometheus::Gauge* full = nullptr;
    prometheus::Counter* drops = nullptr;
    int64_t drops_counted = 0;  // of the present generation
  };
  static constexpr int kFinishes = 4;  // the values of Finish, and "scored"
  static constexpr int kCodes = 17;    // the canonical status codes

  void RemoveLinks(int replica);  // with mutex_ held
  prometheus::Counter* FailuresOf(const std::string& method, absl::StatusCode code);

  prometheus::Counter* MakeCounter(const char* name, const char* help);
  prometheus::Gauge* MakeGauge(const char* name, const char* help);
  prometheus::Family<prometheus::Gauge>* MakeGauges(const char* name, const char* help);
  prometheus::Histogram* MakeHistogram(const char* name, const char* help, const std::vector<double>& buckets);
  prometheus::Family<prometheus::Counter>* MakeCounters(const char* name, const char* help);

  const std::string model_name_;
  const std::shared_ptr<prometheus::Registry> registry_;  // owns what the pointers below point to

  prometheus::Gauge* requests_running_;
  prometheus::Gauge* requests_waiting_;
  prometheus::Counter* prompt_tokens_;
  prometheus::Counter* completion_tokens_;
  prometheus::Counter* reread_tokens_;
  prometheus::Histogram* time_to_first_token_;
  prometheus::Histogram* inter_token_latency_;
  prometheus::Histogram* request_latency_;
  prometheus::Histogram* queue_time_;
  prometheus::Histogram* prefill_time_;
  prometheus::Histogram* decode_time_;
  prometheus::Histogram* request_prompt_tokens_;
  prometheus::Histogram* request_completion_tokens_;
  std::array<prometheus::Counter*, kFinishes> successes_;
  prometheus::Family<prometheus::Counter>* failures_;
  prometheus::Counter* recoveries_;
  prometheus::Counter* parkings_;
  prometheus::Counter* deadline_refusals_;
  prometheus::Counter* deadline_misses_;

  prometheus::Gauge* group_generation_;
  prometheus::Gauge* groups_ready_;
  prometheus::Gauge* workers_connected_;
  prometheus::Gauge* workers_spare_;
  prometheus::Gauge* cache_bytes_;
  prometheus::Gauge* gold_kept_bytes_;
  prometheus::Gauge* transformer_cache_bytes_;
  prometheus::Gauge* state_bytes_;
  prometheus::Gauge* cache_tokens_used_;
  prometheus::Gauge* cache_tokens_reserved_;
  prometheus::Gauge* cache_tokens_max_;
  prometheus::Gauge* slots_used_;
  prometheus::Gauge* slots_max_;

  prometheus::Counter* context_hits_;
  prometheus::Family<prometheus::Counter>* context_misses_;
  prometheus::Counter* context_evictions_;
  prometheus::Counter* context_tokens_saved_;
  prometheus::Family<prometheus::Gauge>* context_bytes_;
  prometheus::Gauge* protected_bytes_;
  prometheus::Family<prometheus::Counter>* context_moves_;
  prometheus::Counter* context_move_failures_;
  prometheus::Counter* context_quarantined_;
  Contexts contexts_;  // the last ones; of the one thread that calls SetContexts

  prometheus::Family<prometheus::Gauge>* traffic_prompt_tokens_;
  prometheus::Family<prometheus::Gauge>* traffic_output_tokens_;
  prometheus::Family<prometheus::Gauge>* traffic_context_tokens_;
  prometheus::Family<prometheus::Gauge>* traffic_sequences_;
  prometheus::Family<prometheus::Gauge>* split_gain_;
  prometheus::Family<prometheus::Gauge>* link_speed_;
  prometheus::Family<prometheus::Gauge>* link_round_trip_;

  prometheus::Counter* steps_;
  prometheus::Histogram* step_sequences_;
  prometheus::Histogram* step_tokens_;
  prometheus::Histogram* step_scheduling_;
  prometheus::Histogram* step_seconds_;
  prometheus::Family<prometheus::Gauge>* step_target_;
  prometheus::Family<prometheus::Counter>* attended_positions_;
  prometheus::Family<prometheus::Counter>* stage_busy_;
  prometheus::Family<prometheus::Counter>* stage_bubble_;
  prometheus::Family<prometheus::Counter>* stage_idle_;
  prometheus::Family<prometheus::Counter>* boundary_bytes_;
  prometheus::Family<prometheus::Gauge>* tier_sequences_;
  prometheus::Family<prometheus::Counter>* tier_drops_;

  std::mutex mutex_;
  std::map<std::pair<int, int>, StageCounters> stages_;         // guarded by mutex_, by replica and stage
  std::map<std::pair<int, int>, BoundaryCounters> boundaries_;  // guarded by mutex_, by replica and boundary
  std::map<std::pair<int, int>, TierSeries> tiers_;             // guarded by mutex_, by replica and stage
  std::map<int, prometheus::Gauge*> split_gains_;               // guarded by mutex_, by replica
  // Guarded by mutex_, by replica: the series of its links, with their families.
  std::map<int, std::vector<std::pair<prometheus::Family<prometheus::Gauge>*, prometheus::Gauge*>>> links_;
};

}  // namespace goldfinch

#endif  // GOLDFINCH_COORDINATOR_METRICS_METRICS_H_
