#include "coordinator/metrics.h"

#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "prometheus/counter.h"
#include "prometheus/gauge.h"
#include "prometheus/histogram.h"
#include "prometheus/registry.h"

namespace goldfinch {
namespace {

using prometheus::Histogram;

constexpr int kScored = 3;  // index into `successes_`, after the values of Finish
constexpr const char* kFinishNames[] = {"end_of_text", "stop", "length", "scored"};
// Their failures are there from the start, as 0.
constexpr const char* kMethods[] = {"Generate", "Score", "Tokenize", "Detokenize", "GetModelInfo", "GetClusterInfo"};

// Small models answer within milliseconds; reading a long document takes minutes.
const Histogram::BucketBoundaries& FirstTokenBuckets() {
  static const Histogram::BucketBoundaries buckets = {0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5,
                                                      1,     2.5,    5,     10,   25,    50,   100, 250,  500};
  return buckets;
}

const Histogram::BucketBoundaries& InterTokenBuckets() {
  static const Histogram::BucketBoundaries buckets = {0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075,
                                                      0.1,    0.15,  0.25,   0.5,   1,    2.5,   5,    10};
  return buckets;
}

const Histogram::BucketBoundaries& RequestBuckets() {
  static const Histogram::BucketBoundaries buckets = {0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1,    2.5,
                                                      5,     10,   25,    50,   100, 250,  500, 1000, 2500};
  return buckets;
}

// The aim is below 100 microseconds.
const Histogram::BucketBoundaries& SchedulingBuckets() {
  static const Histogram::BucketBoundaries buckets = {5e-6, 1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4,
                                                      5e-4, 1e-3, 2.5e-3, 5e-3, 1e-2, 1e-1};
  return buckets;
}

std::string Label(int value) { return std::to_string(value); }

double Amount(int64_t value) {
  GF_CHECK_GE(value, 0) << "a counter only grows";
  return static_cast<double>(value);
}

// Checked here, for prometheus-cpp drops negative amounts silently.
double Amount(double value) {
  GF_CHECK(value >= 0) << "a counter only grows: " << value;
  return value;
}

}  // namespace

prometheus::Family<prometheus::Counter>* Metrics::MakeCounters(const char* name, const char* help) {
  return &prometheus::BuildCounter()
              .Name(absl::StrCat("goldfinch_", name))
              .Help(help)
              .Labels({{"model_name", model_name_}})
              .Register(*registry_);
}

prometheus::Counter* Metrics::MakeCounter(const char* name, const char* help) {
  return &MakeCounters(name, help)->Add({});
}

prometheus::Gauge* Metrics::MakeGauge(const char* name, const char* help) {
  return &prometheus::BuildGauge()
              .Name(absl::StrCat("goldfinch_", name))
              .Help(help)
              .Labels({{"model_name", model_name_}})
              .Register(*registry_)
              .Add({});
}

prometheus::Histogram* Metrics::MakeHistogram(const char* name, const char* help, const std::vector<double>& buckets) {
  return &prometheus::BuildHistogram()
              .Name(absl::StrCat("goldfinch_", name))
              .Help(help)
              .Labels({{"model_name", model_name_}})
              .Register(*registry_)
              .Add({}, buckets);
}

Metrics::Metrics(const std::string& model_name)
    : model_name_(model_name),
      registry_(std::make_shared<prometheus::Registry>()),
      requests_running_(MakeGauge("num_requests_running", "Requests of which a sequence runs in a group of workers")),
      requests_waiting_(MakeGauge("num_requests_waiting", "Requests that wait, including those that were parked")),
      prompt_tokens_(MakeCounter("prompt_tokens_total",
                                 "Prompt tokens that were read, those of each request once, as its usage says")),
      completion_tokens_(
          MakeCounter("generation_tokens_total", "Completion tokens that were generated, or scored in continuations")),
      replayed_tokens_(MakeCounter("replayed_tokens_total",
                                   "Tokens of prompts and answers that were read again: after a loss of workers, after "
                                   "a parking, or for a further sample")),
      time_to_first_token_(MakeHistogram("time_to_first_token_seconds",
                                         "Seconds from a request to its first token, including its time in the queue",
                                         FirstTokenBuckets())),
      inter_token_latency_(MakeHistogram("inter_token_latency_seconds", "Seconds between two tokens of one sample",
                                         InterTokenBuckets())),
      request_latency_(
          MakeHistogram("e2e_request_latency_seconds", "Seconds from a request to its end", RequestBuckets())),
      failures_(MakeCounters("request_failure_total", "Calls that were refused or ended with an error")),
      recoveries_(MakeCounter("request_recoveries_total", "Requests that were restored after a loss of workers")),
      parkings_(MakeCounter("sequence_parkings_total",
                            "Sequences that gave up their slot for requests of others, to be read again later")),
      group_generation_(MakeGauge("group_generation", "The latest generation of any group of workers")),
      groups_ready_(MakeGauge("groups_ready", "Groups of workers that are ready to serve")),
      workers_connected_(MakeGauge("workers_connected", "Workers that are connected to the coordinator")),
      cache_bytes_(MakeGauge("cache_bytes", "Bytes of the compressed caches and key/value caches in use")),
      gold_kept_bytes_(
          MakeGauge("gold_kept_bytes", "Bytes of the rows that GOLD layers keep beside the compressed caches")),
      transformer_cache_bytes_(MakeGauge(
          "transformer_cache_bytes", "Bytes that a transformer of the same shape would keep for the same positions")),
      state_bytes_(MakeGauge("state_bytes", "Bytes of the recurrent states of running sequences")),
      cache_tokens_reserved_(
          MakeGauge("cache_tokens_reserved", "Tokens of cache that are reserved for running requests")),
      cache_tokens_max_(MakeGauge("cache_tokens_max", "Tokens that the caches of all groups can hold")),
      steps_(MakeCounter("steps_total", "Steps that were sent to groups of workers")),
      step_scheduling_(MakeHistogram("step_scheduling_seconds", "Seconds that the scheduler takes to plan one Step",
                                     SchedulingBuckets())),
      stage_busy_(MakeCounters("stage_busy_seconds_total", "Seconds that a stage spent computing")),
      stage_bubble_(MakeCounters("stage_bubble_seconds_total",
                                 "Seconds that a stage with a Step to run waited for rows or for the next stage")),
      stage_idle_(MakeCounters("stage_idle_seconds_total", "Seconds that a stage waited for a Step")),
      boundary_bytes_(MakeCounters("boundary_bytes_total", "Bytes that were sent from one stage to the next")) {
  auto* successes = MakeCounters("request_success_total", "Samples and score requests that were completed");
  for (int i = 0; i < kFinishes; ++i) successes_[i] = &successes->Add({{"finished_reason", kFinishNames[i]}});
  for (const char* method : kMethods) {
    for (int i = 1; i < kCodes; ++i) FailuresOf(method, static_cast<absl::StatusCode>(i));
  }
}

Metrics::~Metrics() = default;

void Metrics::SetRequestsRunning(int64_t requests) { requests_running_->Set(static_cast<double>(requests)); }
void Metrics::SetRequestsWaiting(int64_t requests) { requests_waiting_->Set(static_cast<double>(requests)); }
void Metrics::AddPromptTokens(int64_t tokens) { prompt_tokens_->Increment(Amount(tokens)); }
void Metrics::AddCompletionTokens(int64_t tokens) { completion_tokens_->Increment(Amount(tokens)); }
void Metrics::AddReplayedTokens(int64_t tokens) { replayed_tokens_->Increment(Amount(tokens)); }
void Metrics::ObserveTimeToFirstToken(double seconds) { time_to_first_token_->Observe(seconds); }
void Metrics::ObserveInterTokenLatency(double seconds) { inter_token_latency_->Observe(seconds); }
void Metrics::ObserveRequestLatency(double seconds) { request_latency_->Observe(seconds); }
void Metrics::CountSuccess(Finish finish) { successes_[static_cast<int>(finish)]->Increment(); }
void Metrics::CountScored() { successes_[kScored]->Increment(); }
void Metrics::CountRecovery() { recoveries_->Increment(); }
void Metrics::CountParkings(int64_t sequences) { parkings_->Increment(Amount(sequences)); }

void Metrics::CountFailure(const std::string& method, absl::StatusCode code) {
  const auto number = static_cast<int>(code);
  GF_CHECK_NE(number, 0) << "OK is no failure";
  const bool canonical = number > 0 && number < kCodes;
  FailuresOf(method, canonical ? code : absl::StatusCode::kUnknown)->Increment();
}

// Family::Add returns the counter of the labels if there is one.
prometheus::Counter* Metrics::FailuresOf(const std::string& method, absl::StatusCode code) {
  return &failures_->Add({{"method", method}, {"code", absl::StatusCodeToString(code)}});
}

void Metrics::SetGroupGeneration(uint64_t generation) { group_generation_->Set(static_cast<double>(generation)); }
void Metrics::SetGroupsReady(int64_t groups) { groups_ready_->Set(static_cast<double>(groups)); }
void Metrics::SetWorkersConnected(int64_t workers) { workers_connected_->Set(static_cast<double>(workers)); }

void Metrics::SetMemory(const Memory& memory) {
  cache_bytes_->Set(static_cast<double>(memory.cache_bytes));
  gold_kept_bytes_->Set(static_cast<double>(memory.gold_kept_bytes));
  transformer_cache_bytes_->Set(static_cast<double>(memory.transformer_cache_bytes));
  state_bytes_->Set(static_cast<double>(memory.state_bytes));
  cache_tokens_reserved_->Set(static_cast<double>(memory.cache_tokens_reserved));
  cache_tokens_max_->Set(static_cast<double>(memory.cache_tokens_max));
}

void Metrics::CountStep() { steps_->Increment(); }
void Metrics::ObserveStepScheduling(double seconds) { step_scheduling_->Observe(seconds); }

void Metrics::AddStageSeconds(int replica, int stage, const StageSeconds& seconds) {
  const std::lock_guard<std::mutex> lock(mutex_);
  StageCounters& counters = stages_[{replica, stage}];
  if (counters.busy == nullptr) {
    const prometheus::Labels labels = {{"replica", Label(replica)}, {"stage", Label(stage)}};
    counters = {&stage_busy_->Add(labels), &stage_bubble_->Add(labels), &stage_idle_->Add(labels)};
  }
  counters.busy->Increment(Amount(seconds.busy));
  counters.bubble->Increment(Amount(seconds.bubble));
  counters.idle->Increment(Amount(seconds.idle));
}

void Metrics::AddBoundaryBytes(int replica, int boundary, const BoundaryAmounts& amounts) {
  const std::lock_guard<std::mutex> lock(mutex_);
  BoundaryCounters& counters = boundaries_[{replica, boundary}];
  if (counters.hidden == nullptr) {
    const auto add = [&](const char* kind) {
      return &boundary_bytes_->Add({{"replica", Label(replica)}, {"boundary", Label(boundary)}, {"kind", kind}});
    };
    counters = {add("hidden"), add("compressed"), add("ids")};
  }
  counters.hidden->Increment(Amount(amounts.hidden_bytes));
  counters.compressed->Increment(Amount(amounts.compressed_bytes));
  counters.ids->Increment(Amount(amounts.id_bytes));
}

}  // namespace goldfinch
