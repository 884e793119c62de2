#include "coordinator/metrics/metrics.h"

#include <algorithm>
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
// The reasons of misses in Contexts, in the order of its fields.
constexpr const char* kMissReasons[] = {"none_kept", "evicted", "cheaper_to_compute", "other_model"};
constexpr const char* kFinishNames[] = {"end_of_text", "stop", "length", "scored"};
// Their failures are there from the start, as 0.
constexpr const char* kMethods[] = {"Generate",     "Score",          "Tokenize",      "Detokenize",
                                    "GetModelInfo", "GetClusterInfo", "CreateContext", "AppendContext",
                                    "ForkContext",  "GetContext",     "ListContexts",  "RenameContext",
                                    "PinContext",   "DeleteContext",  "ExportContext", "ImportContext"};

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

// From a chat's question to the longest context.
const Histogram::BucketBoundaries& LengthBuckets() {
  static const Histogram::BucketBoundaries buckets = {
      1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000, 200000, 500000, 1000000};
  return buckets;
}

const Histogram::BucketBoundaries& SequenceBuckets() {
  static const Histogram::BucketBoundaries buckets = {0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024};
  return buckets;
}

const Histogram::BucketBoundaries& StepTokenBuckets() {
  static const Histogram::BucketBoundaries buckets = {0,   1,   2,   4,    8,    16,   32,   64,
                                                      128, 256, 512, 1024, 2048, 4096, 8192, 16384};
  return buckets;
}

const Histogram::BucketBoundaries& StepBuckets() {
  static const Histogram::BucketBoundaries buckets = {0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15,
                                                      0.2,   0.3,    0.5,   1,    2.5,   5,    10,    25,  100};
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

prometheus::Family<prometheus::Gauge>* Metrics::MakeGauges(const char* name, const char* help) {
  return &prometheus::BuildGauge()
              .Name(absl::StrCat("goldfinch_", name))
              .Help(help)
              .Labels({{"model_name", model_name_}})
              .Register(*registry_);
}

prometheus::Gauge* Metrics::MakeGauge(const char* name, const char* help) { return &MakeGauges(name, help)->Add({}); }

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
      reread_tokens_(MakeCounter("reread_tokens_total",
                                 "Tokens of prompts and answers that were read again: after a loss of workers, after "
                                 "a parking, or for a further sample")),
      time_to_first_token_(MakeHistogram("time_to_first_token_seconds",
                                         "Seconds from a request to its first token, including its time in the queue",
                                         FirstTokenBuckets())),
      inter_token_latency_(MakeHistogram("inter_token_latency_seconds", "Seconds between two tokens of one sample",
                                         InterTokenBuckets())),
      request_latency_(
          MakeHistogram("e2e_request_latency_seconds", "Seconds from a request to its end", RequestBuckets())),
      queue_time_(MakeHistogram("request_queue_time_seconds",
                                "Seconds from a request to its admission, of requests that ended well",
                                FirstTokenBuckets())),
      prefill_time_(MakeHistogram("request_prefill_time_seconds",
                                  "Seconds from a request's admission to its first token, or to its end if it has "
                                  "none (Score), of requests that ended well",
                                  RequestBuckets())),
      decode_time_(MakeHistogram("request_decode_time_seconds",
                                 "Seconds from a request's first token to its last, of requests that ended well and "
                                 "have more than one",
                                 RequestBuckets())),
      request_prompt_tokens_(MakeHistogram(
          "request_prompt_tokens", "Tokens of a request's prompt, of requests that ended well", LengthBuckets())),
      request_completion_tokens_(MakeHistogram(
          "request_generation_tokens",
          "Completion tokens of a request, over all samples or continuations, of requests that ended well",
          LengthBuckets())),
      failures_(MakeCounters("request_failure_total", "Calls that were refused or ended with an error")),
      recoveries_(MakeCounter("request_recoveries_total", "Requests that were restored after a loss of workers")),
      parkings_(
          MakeCounter("sequence_parkings_total",
                      "Sequences that gave up their slot for others or for want of cache, to be read again later")),
      deadline_refusals_(MakeCounter("request_deadline_refusals_total",
                                     "Requests that were refused at once because their deadline cannot be met")),
      deadline_misses_(
          MakeCounter("request_deadline_misses_total", "Requests whose deadline passed while they waited or ran")),
      group_generation_(MakeGauge("group_generation", "The latest generation of any group of workers")),
      groups_ready_(MakeGauge("groups_ready", "Groups of workers that are ready to serve")),
      workers_connected_(MakeGauge("workers_connected", "Workers that are connected to the coordinator")),
      workers_spare_(MakeGauge("workers_spare", "Workers that know the model and belong to no group")),
      cache_bytes_(MakeGauge("cache_bytes", "Bytes of the compressed caches and key/value caches in use")),
      gold_kept_bytes_(
          MakeGauge("gold_kept_bytes", "Bytes of the rows that GOLD layers keep beside the compressed caches")),
      transformer_cache_bytes_(MakeGauge(
          "transformer_cache_bytes", "Bytes that a transformer of the same shape would keep for the same positions")),
      state_bytes_(MakeGauge("state_bytes", "Bytes of the recurrent states of running sequences")),
      cache_tokens_used_(MakeGauge("cache_tokens_used", "Tokens for which pages of the caches are in use")),
      cache_tokens_reserved_(
          MakeGauge("cache_tokens_reserved", "Tokens of cache that are reserved for running requests")),
      cache_tokens_max_(MakeGauge("cache_tokens_max", "Tokens that the caches of all groups can hold")),
      slots_used_(MakeGauge("slots_used", "Slots of all groups that running sequences hold")),
      slots_max_(MakeGauge("slots_max", "Slots of all groups")),
      context_hits_(MakeCounter("context_hits_total", "Requests that began with what was kept of their text")),
      context_misses_(MakeCounters("context_misses_total", "Requests that read their text from its beginning")),
      context_evictions_(MakeCounter("context_evictions_total",
                                     "Segments of texts, or their snapshots, that were removed for others")),
      context_tokens_saved_(MakeCounter("context_tokens_saved_total", "Tokens that were kept and not read again")),
      context_bytes_(MakeGauges("context_bytes", "Bytes that are kept of texts; in workers, of the fullest one")),
      protected_bytes_(MakeGauge("protected_bytes", "Bytes of long texts that a loss of workers leaves")),
      context_moves_(MakeCounters("context_moves_total",
                                  "Segments of texts that were moved between the memory of workers and the store")),
      context_move_failures_(MakeCounter("context_move_failures_total", "Such moves that failed")),
      context_quarantined_(MakeCounter("context_quarantined_files_total", "Files of the store that were damaged")),
      traffic_prompt_tokens_(MakeGauges("traffic_prompt_tokens", "Tokens that are read for a request, on average")),
      traffic_output_tokens_(MakeGauges("traffic_output_tokens", "Tokens that are sampled for a request, on average")),
      traffic_context_tokens_(
          MakeGauges("traffic_context_tokens", "Positions that a sampled token attends to, on average")),
      traffic_sequences_(
          MakeGauges("traffic_sequences", "Sequences that run at a time in a group while any do, on average")),
      split_gain_(MakeGauges("split_gain_ratio", "Part of the time that another split would save for the traffic")),
      link_speed_(MakeGauges("link_bytes_per_second", "Speed of a link from a stage to a later one, as measured")),
      link_round_trip_(MakeGauges("link_round_trip_seconds", "Seconds of a small message and its answer, as measured")),
      steps_(MakeCounter("steps_total", "Steps that were sent to groups of workers")),
      step_sequences_(MakeHistogram("step_sequences", "Sequences of which a Step runs tokens", SequenceBuckets())),
      step_tokens_(MakeHistogram("step_tokens", "Tokens that a Step runs", StepTokenBuckets())),
      step_scheduling_(MakeHistogram("step_scheduling_seconds", "Seconds that the scheduler takes to plan one Step",
                                     SchedulingBuckets())),
      step_seconds_(
          MakeHistogram("step_seconds", "Seconds that a Step took to compute in the slowest stage", StepBuckets())),
      step_target_(MakeGauges("step_target_seconds", "Seconds that a Step is planned to take at most")),
      attended_positions_(MakeCounters("attended_positions_total",
                                       "Positions that rows attended to in one layer, summed over the rows of Steps")),
      stage_busy_(MakeCounters("stage_busy_seconds_total", "Seconds that a stage spent computing")),
      stage_bubble_(MakeCounters("stage_bubble_seconds_total",
                                 "Seconds that a stage with a Step to run waited for rows or for the next stage")),
      stage_idle_(MakeCounters("stage_idle_seconds_total", "Seconds that a stage waited for a Step")),
      boundary_bytes_(MakeCounters("boundary_bytes_total", "Bytes that were sent from one stage to the next")),
      tier_sequences_(MakeGauges("gold_tier_sequences",
                                 "Sequences that a stage holds, by the tier of what its GOLD layers keep of them")),
      tier_drops_(MakeCounters("gold_tier_drops_total",
                               "How often GOLD layers of a stage dropped kept rows of a sequence to make room")) {
  for (const char* reason : kMissReasons) context_misses_->Add({{"reason", reason}});
  SetContexts({});
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
void Metrics::AddRereadTokens(int64_t tokens) { reread_tokens_->Increment(Amount(tokens)); }
void Metrics::ObserveTimeToFirstToken(double seconds) { time_to_first_token_->Observe(seconds); }
void Metrics::ObserveInterTokenLatency(double seconds) { inter_token_latency_->Observe(seconds); }

void Metrics::ObserveRequest(double seconds, const RequestUsage& usage) {
  request_latency_->Observe(seconds);
  queue_time_->Observe(usage.queue_seconds);
  prefill_time_->Observe(usage.prefill_seconds);
  if (usage.decode_seconds > 0) decode_time_->Observe(usage.decode_seconds);
  request_prompt_tokens_->Observe(static_cast<double>(usage.prompt_tokens));
  request_completion_tokens_->Observe(static_cast<double>(usage.completion_tokens));
}

void Metrics::CountSuccess(Finish finish) { successes_[static_cast<int>(finish)]->Increment(); }
void Metrics::CountScored() { successes_[kScored]->Increment(); }
void Metrics::CountRecovery() { recoveries_->Increment(); }
void Metrics::CountParkings(int64_t sequences) { parkings_->Increment(Amount(sequences)); }
void Metrics::CountDeadlineRefusal() { deadline_refusals_->Increment(); }
void Metrics::CountDeadlineMiss() { deadline_misses_->Increment(); }

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

void Metrics::SetWorkers(int64_t connected, int64_t spare) {
  workers_connected_->Set(static_cast<double>(connected));
  workers_spare_->Set(static_cast<double>(spare));
}

void Metrics::SetMemory(const Memory& memory) {
  cache_bytes_->Set(static_cast<double>(memory.cache_bytes));
  gold_kept_bytes_->Set(static_cast<double>(memory.gold_kept_bytes));
  transformer_cache_bytes_->Set(static_cast<double>(memory.transformer_cache_bytes));
  state_bytes_->Set(static_cast<double>(memory.state_bytes));
  cache_tokens_used_->Set(static_cast<double>(memory.cache_tokens_used));
  cache_tokens_reserved_->Set(static_cast<double>(memory.cache_tokens_reserved));
  cache_tokens_max_->Set(static_cast<double>(memory.cache_tokens_max));
  slots_used_->Set(static_cast<double>(memory.slots_used));
  slots_max_->Set(static_cast<double>(memory.slots_max));
}

void Metrics::SetContexts(const Contexts& contexts) {
  const Contexts before = std::exchange(contexts_, contexts);
  context_hits_->Increment(Amount(contexts.hits - before.hits));
  const int64_t misses[] = {contexts.misses_none_kept - before.misses_none_kept,
                            contexts.misses_evicted - before.misses_evicted,
                            contexts.misses_cheaper_to_compute - before.misses_cheaper_to_compute,
                            contexts.misses_other_model - before.misses_other_model};
  for (size_t i = 0; i < std::size(kMissReasons); ++i) {
    context_misses_->Add({{"reason", kMissReasons[i]}}).Increment(Amount(misses[i]));
  }
  context_evictions_->Increment(Amount(contexts.evictions - before.evictions));
  context_tokens_saved_->Increment(Amount(contexts.tokens_saved - before.tokens_saved));
  const auto set_bytes = [&](const char* tier, int64_t bytes) {
    context_bytes_->Add({{"tier", tier}}).Set(static_cast<double>(bytes));
  };
  set_bytes("memory", contexts.memory_bytes);
  set_bytes("disk", contexts.disk_bytes);
  set_bytes("coordinator", contexts.coordinator_bytes);
  protected_bytes_->Set(static_cast<double>(contexts.protected_bytes));
  context_moves_->Add({{"direction", "save"}}).Increment(Amount(contexts.saved - before.saved));
  context_moves_->Add({{"direction", "load"}}).Increment(Amount(contexts.loaded - before.loaded));
  context_move_failures_->Increment(Amount(contexts.move_failures - before.move_failures));
  context_quarantined_->Increment(Amount(contexts.quarantined - before.quarantined));
}

void Metrics::SetTraffic(const ExpectedTraffic& traffic) {
  traffic_prompt_tokens_->Add({}).Set(static_cast<double>(traffic.prompt_tokens));
  traffic_output_tokens_->Add({}).Set(static_cast<double>(traffic.output_tokens));
  traffic_context_tokens_->Add({}).Set(static_cast<double>(traffic.context_tokens));
  traffic_sequences_->Add({}).Set(static_cast<double>(traffic.sequences));
}

void Metrics::SetSplitGain(int replica, double gain) {
  const std::lock_guard<std::mutex> lock(mutex_);
  prometheus::Gauge*& series = split_gains_[replica];
  if (series == nullptr) series = &split_gain_->Add({{"replica", Label(replica)}});
  series->Set(gain);
}

void Metrics::SetLinks(int replica, const std::vector<Link>& links) {
  const std::lock_guard<std::mutex> lock(mutex_);
  RemoveLinks(replica);
  for (const Link& link : links) {
    const prometheus::Labels labels = {
        {"replica", Label(replica)}, {"stage", Label(link.from)}, {"to_stage", Label(link.to)}};
    const auto set = [&](prometheus::Family<prometheus::Gauge>* family, double value) {
      links_[replica].emplace_back(family, &family->Add(labels));
      links_[replica].back().second->Set(value);
    };
    set(link_round_trip_, link.round_trip_seconds);
    if (link.bytes_per_second > 0) set(link_speed_, link.bytes_per_second);
  }
}

void Metrics::RemoveLinks(int replica) {
  for (const auto& [family, series] : links_[replica]) family->Remove(series);
  links_.erase(replica);
}

void Metrics::ClearSplit(int replica) {
  const std::lock_guard<std::mutex> lock(mutex_);
  RemoveLinks(replica);
  const auto gain = split_gains_.find(replica);
  if (gain == split_gains_.end()) return;
  split_gain_->Remove(gain->second);
  split_gains_.erase(gain);
}

void Metrics::CountStep(int64_t sequences, int64_t tokens) {
  steps_->Increment();
  step_sequences_->Observe(static_cast<double>(sequences));
  step_tokens_->Observe(static_cast<double>(tokens));
}

void Metrics::ObserveStepScheduling(double seconds) { step_scheduling_->Observe(seconds); }

// Add returns the series of the labels if there is one.
void Metrics::ObserveStep(double seconds, double target_seconds, double attended_positions) {
  step_seconds_->Observe(seconds);
  if (target_seconds > 0) step_target_->Add({}).Set(target_seconds);
  if (attended_positions > 0) attended_positions_->Add({}).Increment(attended_positions);
}

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

void Metrics::SetTiers(int replica, int stage, const Tiers& tiers) {
  const std::lock_guard<std::mutex> lock(mutex_);
  TierSeries& series = tiers_[{replica, stage}];
  if (series.drops == nullptr) {
    if (tiers.compressed_sequences + tiers.shared_sequences + tiers.full_sequences + tiers.drops == 0) return;
    const auto add = [&](const char* tier) {
      return &tier_sequences_->Add({{"replica", Label(replica)}, {"stage", Label(stage)}, {"tier", tier}});
    };
    series = {add("compressed"), add("shared"), add("full"),
              &tier_drops_->Add({{"replica", Label(replica)}, {"stage", Label(stage)}})};
  }
  series.compressed->Set(static_cast<double>(tiers.compressed_sequences));
  series.shared->Set(static_cast<double>(tiers.shared_sequences));
  series.full->Set(static_cast<double>(tiers.full_sequences));
  // A worker may say fewer than before, whatever that means.
  series.drops->Increment(Amount(std::max<int64_t>(tiers.drops - series.drops_counted, 0)));
  series.drops_counted = std::max(series.drops_counted, tiers.drops);
}

void Metrics::ClearTiers(int replica) {
  const std::lock_guard<std::mutex> lock(mutex_);
  for (auto it = tiers_.lower_bound({replica, 0}); it != tiers_.end() && it->first.first == replica; ++it) {
    TierSeries& series = it->second;
    series.drops_counted = 0;
    if (series.drops == nullptr) continue;
    for (prometheus::Gauge* gauge : {series.compressed, series.shared, series.full}) gauge->Set(0);
  }
}

}  // namespace goldfinch
