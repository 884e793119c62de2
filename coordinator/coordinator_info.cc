// Coordinator: what others see of it.
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "base/stage_memory.h"
#include "coordinator/coordinator.h"
#include "coordinator/metrics/activity_log.h"
#include "coordinator/metrics/metrics.h"
#include "protos/generate.pb.h"
#include "spdlog/spdlog.h"

namespace goldfinch {

void Coordinator::PublishEvents() {
  const SchedulerEvents events = scheduler_.TakeEvents();
  const int64_t read = events.prompt_tokens - events.cached_tokens;
  prompt_tokens_ += read;
  completion_tokens_ += events.completion_tokens;
  if (read > 0) metrics_->AddPromptTokens(read);
  if (events.completion_tokens > 0) metrics_->AddCompletionTokens(events.completion_tokens);
  if (events.reread_tokens > 0) metrics_->AddRereadTokens(events.reread_tokens);
  if (events.parkings > 0) metrics_->CountParkings(events.parkings);
  for (int64_t i = 0; i < events.recoveries; ++i) metrics_->CountRecovery();
  for (const double seconds : events.first_token_seconds) metrics_->ObserveTimeToFirstToken(seconds);
  for (const double seconds : events.inter_token_seconds) metrics_->ObserveInterTokenLatency(seconds);
  activity_.Count(events);
  traffic_.Count(events);
  for (const SchedulerEvents::Ended& ended : events.ended) {
    if (absl::IsDeadlineExceeded(ended.status)) {
      // What ends at the moment of its arrival was refused.
      if (ended.seconds > 0) {
        metrics_->CountDeadlineMiss();
      } else {
        metrics_->CountDeadlineRefusal();
      }
    }
    if (!ended.status.ok()) continue;  // the call counts it
    metrics_->ObserveRequest(ended.seconds, ended.usage);
    for (const Finish finish : ended.finishes) metrics_->CountSuccess(finish);
    if (ended.finishes.empty()) metrics_->CountScored();
  }
}

void Coordinator::PublishGauges() {
  metrics_->SetRequestsRunning(scheduler_.running());
  metrics_->SetRequestsWaiting(scheduler_.waiting());
  metrics_->SetGroupGeneration(membership_.last_generation());
  metrics_->SetGroupsReady(membership_.groups_ready());
  metrics_->SetWorkers(membership_.workers(), membership_.spares());
  metrics_->SetMemory(MemoryNow());
  const ContextCounters& kept = keeper_.counters();
  const auto misses = [&](ContextMiss reason) { return kept.misses[static_cast<size_t>(reason)]; };
  Metrics::Contexts contexts = {.hits = kept.hits,
                                .misses_none_kept = misses(ContextMiss::kNoneKept),
                                .misses_evicted = misses(ContextMiss::kEvicted),
                                .misses_cheaper_to_compute = misses(ContextMiss::kCheaperToCompute),
                                .misses_other_model = misses(ContextMiss::kOtherModel),
                                .evictions = kept.evictions,
                                .tokens_saved = kept.tokens_saved,
                                .memory_bytes = keeper_.bytes()};
  if (store_threads_ != nullptr) {
    const StoreTotals totals = store_threads_->totals();
    (options_.store_tier.durable ? contexts.disk_bytes : contexts.coordinator_bytes) = totals.bytes;
    contexts.quarantined = totals.quarantined_total;
  }
  if (const StoreTier* const store = keeper_.store(); store != nullptr) {
    contexts.protected_bytes = store->protected_bytes();
    contexts.saved = store->saved();
    contexts.loaded = store->brought();
    contexts.move_failures = store->moves_failed();
  }
  metrics_->SetContexts(contexts);
}

Metrics::Memory Coordinator::MemoryNow() const {
  Metrics::Memory memory;
  for (int replica = 0; replica < options_.membership.replicas; ++replica) {
    const GroupLoad load = scheduler_.Load(replica);
    memory.slots_used += load.sequences;
    memory.slots_max += load.sequences_max;
    memory.cache_tokens_used += membership_.CacheTokens(replica);
    memory.cache_bytes += membership_.CacheBytes(replica);
    memory.gold_kept_bytes += membership_.GoldKeptBytes(replica);
    memory.cache_tokens_reserved += load.cache_tokens_reserved;
    memory.cache_tokens_max += load.cache_tokens_max;
    if (!membership_.has_model()) continue;
    memory.state_bytes += load.sequences * membership_.StateBytesPerSequence();
    memory.transformer_cache_bytes += membership_.TransformerCacheBytes(replica);
  }
  return memory;
}

void Coordinator::LogActivity(double now) {
  const std::optional<std::string> line = activity_.Take(now, [this] {
    const Metrics::Memory memory = MemoryNow();
    return ActivityLog::Present{scheduler_.running(),
                                scheduler_.waiting(),
                                memory.slots_used,
                                memory.slots_max,
                                memory.cache_tokens_used / kCachePageTokens,
                                memory.cache_tokens_reserved / kCachePageTokens,
                                memory.cache_tokens_max / kCachePageTokens};
  });
  if (line) spdlog::info("{}", *line);
}

void Coordinator::FillCounts(double now, v1::GetClusterInfoResponse* info) const {
  membership_.FillClusterInfo(now, info);
  for (int replica = 0; replica < options_.membership.replicas; ++replica) {
    const GroupLoad load = scheduler_.Load(replica);
    v1::GroupInfo& to = *info->mutable_groups(replica);
    to.set_steps_in_flight(load.steps_in_flight);
    to.set_sequences(load.sequences);
    to.set_sequences_max(load.sequences_max);
    to.set_cache_tokens_reserved(load.cache_tokens_reserved);
    to.set_cache_tokens_max(load.cache_tokens_max);
  }
  const Metrics::Memory memory = MemoryNow();
  info->set_requests_running(scheduler_.running());
  info->set_requests_waiting(scheduler_.waiting());
  info->set_prompt_tokens(prompt_tokens_);
  info->set_completion_tokens(completion_tokens_);
  info->set_cache_bytes(memory.cache_bytes);
  info->set_gold_kept_bytes(memory.gold_kept_bytes);
  info->set_transformer_cache_bytes(memory.transformer_cache_bytes);
  info->set_state_bytes(memory.state_bytes);
  info->set_uptime_seconds(now - start_);
  info->set_draining(draining_);
  if (const auto traffic = traffic_.Average()) FillTraffic(*traffic, info->mutable_traffic());
}

}  // namespace goldfinch
