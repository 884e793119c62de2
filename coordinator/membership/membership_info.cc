// Membership: what others ask of it.
#include <algorithm>
#include <limits>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_join.h"
#include "base/stage_extent.h"
#include "base/state_part_kind.h"
#include "coordinator/membership/membership.h"
#include "coordinator/membership/membership_state.h"
#include "coordinator/shelves/shelf_group.h"
#include "protos/generate.pb.h"

namespace goldfinch {

void FillTraffic(const ExpectedTraffic& traffic, v1::TrafficInfo* info) {
  info->set_prompt_tokens(traffic.prompt_tokens);
  info->set_output_tokens(traffic.output_tokens);
  info->set_context_tokens(traffic.context_tokens);
  info->set_sequences(traffic.sequences);
}

bool Membership::ready(int replica) const { return replicas_[replica]->state == Replica::State::kReady; }

int Membership::groups_ready() const {
  return static_cast<int>(std::count_if(replicas_.begin(), replicas_.end(),
                                        [](const auto& replica) { return replica->state == Replica::State::kReady; }));
}

int Membership::spares() const {
  return static_cast<int>(
      std::count_if(workers_.begin(), workers_.end(), [](const auto& one) { return one.second->spare(); }));
}

GroupCapacity Membership::Capacity(int replica) const {
  const Replica& ready = *replicas_[replica];
  return {.stages = static_cast<int>(ready.stages.size()),
          .max_sequences = ready.partition.max_sequences,
          .cache_tokens = ready.partition.cache_tokens,
          .max_sequence_tokens = ready.limits.max_sequence_tokens,
          .max_step_tokens = ready.limits.max_step_tokens,
          .max_logit_rows = ready.partition.max_logit_rows,
          .row_seconds = ready.partition.seconds_per_prompt_token};
}

ShelfCapacity Membership::Shelf(int replica) const {
  constexpr int64_t kLayerPartsMax = 8;  // of a segment, those per token included
  ShelfCapacity shelf{.bytes_max = std::numeric_limits<int64_t>::max()};
  const int finch_layers = model_->layers_size() - static_cast<int>(model_->gold_layers());
  const int64_t logits = 4 * static_cast<int64_t>(model_->vocab_size());
  int64_t most_per_token = 0, most_snapshot = 0;  // of any worker
  const Replica& formed = *replicas_[replica];
  for (size_t i = 0; i < formed.stages.size(); ++i) {
    const Stage& stage = formed.stages[i];
    const StageExtent extent =
        StageExtentAt(formed.partition.first_layers, static_cast<int>(i), model_->layers_size(), finch_layers);
    int64_t per_token = 0, snapshot = kLayerPartsMax * kPartOverheadBytes * (stage.last_layer - stage.first_layer);
    for (int layer = stage.first_layer; layer < stage.last_layer; ++layer) {
      per_token += static_cast<int64_t>(model_->layers(layer).cache_bytes_per_token());
      snapshot += static_cast<int64_t>(model_->layers(layer).state_bytes());
    }
    if (extent.has_head()) snapshot += logits;
    shelf.bytes_per_token += per_token;
    shelf.snapshot_bytes += snapshot;
    if (extent.has_gold()) {
      per_token += static_cast<int64_t>(model_->compressed_bytes_per_token());
    }
    shelf.bytes_max =
        std::min(shelf.bytes_max, static_cast<int64_t>(workers_.at(stage.worker)->registration.shelf_bytes()));
    most_per_token = std::max(most_per_token, per_token);
    most_snapshot = std::max(most_snapshot, snapshot);
  }
  // Every stage with GOLD layers has the compressed cache; it is kept once elsewhere.
  if (model_->gold_layers() > 0) shelf.bytes_per_token += static_cast<int64_t>(model_->compressed_bytes_per_token());
  const auto share = [](int64_t most, int64_t all) {
    return all == 0 ? 1 : static_cast<double>(most) / static_cast<double>(all);
  };
  shelf.rows_share = share(most_per_token, shelf.bytes_per_token);
  shelf.snapshots_share = share(most_snapshot, shelf.snapshot_bytes);
  return shelf;
}

// All that the stages compute with; where their layers are does not matter.
std::string Membership::Numerics(const Replica& replica) const {
  std::set<std::string> numerics;
  for (const Stage& stage : replica.stages) numerics.insert(stage.numerics);
  return absl::StrJoin(numerics, "+");
}

absl::StatusOr<ShelfGroup> Membership::ShelvesOf(const Replica& replica) const {
  std::vector<ShelfStage> stages;
  for (const Stage& stage : replica.stages) stages.push_back(stage.shelf);
  return MakeShelfGroup({.fingerprint = model_->fingerprint(),
                         .vocabulary = model_->vocabulary(),
                         .cache_dtype = options_.cache_dtype,
                         .numerics = Numerics(replica),
                         .format_version = kContextFormat},
                        model_->vocab_size(), model_->layers_size(), std::move(stages));
}

std::optional<ShelfGroup> Membership::Shelves(int replica) const {
  const std::vector<Stage>& stages = replicas_[replica]->stages;
  const bool told = std::all_of(stages.begin(), stages.end(), [](const Stage& stage) {
    return !stage.shelf.parts.empty() || stage.shelf.has_logits;
  });
  if (!told) return std::nullopt;
  absl::StatusOr<ShelfGroup> group = ShelvesOf(*replicas_[replica]);  // HandleJoined has refused others
  return group.ok() ? std::optional<ShelfGroup>(*std::move(group)) : std::nullopt;
}

bool Membership::OnGpus(int replica) const {
  const std::vector<Stage>& stages = replicas_[replica]->stages;
  return std::all_of(stages.begin(), stages.end(),
                     [&](const Stage& stage) { return OnGpu(*workers_.at(stage.worker)); });
}

double Membership::LastProgress(int replica) const { return replicas_[replica]->last_progress; }

uint64_t Membership::generation(int replica) const { return replicas_[replica]->generation; }

const std::vector<Membership::StageView>& Membership::stages(int replica) const { return replicas_[replica]->views; }

int64_t Membership::CacheBytes(int replica) const {
  int64_t bytes = 0;
  for (const Stage& stage : replicas_[replica]->stages) bytes += stage.cache_bytes;
  return bytes;
}

int64_t Membership::GoldKeptBytes(int replica) const {
  int64_t bytes = 0;
  for (const Stage& stage : replicas_[replica]->stages) bytes += stage.gold_kept_bytes;
  return bytes;
}

int64_t Membership::CacheTokens(int replica) const {
  int64_t tokens = 0;  // the same in every stage that has caches
  for (const Stage& stage : replicas_[replica]->stages) tokens = std::max(tokens, stage.cache_tokens);
  return tokens;
}

int64_t Membership::TransformerCacheBytes(int replica) const {
  return CacheTokens(replica) * static_cast<int64_t>(model_->transformer_cache_bytes_per_token());
}

int64_t Membership::StateBytesPerSequence() const {
  int64_t bytes = 0;
  for (const auto& layer : model_->layers()) bytes += static_cast<int64_t>(layer.state_bytes());
  return bytes;
}

void Membership::FillClusterInfo(double now, v1::GetClusterInfoResponse* info) const {
  for (const auto& replica : replicas_) {
    v1::GroupInfo& out = *info->add_groups();
    out.set_replica(replica->index);
    out.set_state(replica->state == Replica::State::kReady     ? v1::READY
                  : replica->state == Replica::State::kForming ? v1::FORMING
                                                               : v1::WAITING_FOR_WORKERS);
    out.set_generation(replica->generation);
    out.set_steps(replica->steps);
    out.set_message(replica->message);
    if (!replica->stages.empty()) {
      out.set_plan(replica->partition.why);
      PartitionOptions limits = replica->limits;
      limits.max_sequences = replica->partition.max_sequences;
      FillTraffic(TrafficWithinLimits(limits), out.mutable_expected_traffic());
    }
    if (replica->advice) {
      out.set_best_split(SplitText(replica->advice->first_layers, model_->layers_size()));
      out.set_split_gain(replica->advice->gain);
    }
    for (const Stage& stage : replica->stages) {
      const Worker& worker = *workers_.at(stage.worker);
      v1::StageInfo& to = *out.add_stages();
      to.set_worker(worker.registration.name());
      to.set_address(worker.address);
      to.set_device(worker.registration.device());
      to.set_first_layer(stage.first_layer);
      to.set_last_layer(stage.last_layer);
      to.set_weight_bytes(stage.weight_bytes);
      to.set_memory_bytes(stage.share.memory_bytes);
      to.set_reserved_bytes(stage.reserved_bytes);
      to.set_gold_kept_bytes(stage.gold_kept_bytes);
      to.set_gold_tier_drops(stage.gold_tier_drops);
      to.set_busy_seconds(stage.busy_seconds);
      to.set_bubble_seconds(stage.bubble_seconds);
      to.set_idle_seconds(stage.idle_seconds);
      to.mutable_received()->set_hidden(stage.hidden_bytes);
      to.mutable_received()->set_compressed(stage.compressed_bytes);
      to.mutable_received()->set_ids(stage.id_bytes);
      to.set_heartbeat_age_seconds(now - worker.last_heard);
      for (const auto& [name, bytes] : stage.memory) {
        v1::MemoryPart& part = *to.add_memory();
        part.set_name(name);
        part.set_bytes(bytes);
      }
    }
    for (const LinkView& link : Links(replica->index)) {
      v1::LinkInfo& to = *out.mutable_stages(link.from)->add_links();
      to.set_stage(link.to);
      to.set_bytes_per_second(link.bytes_per_second);
      to.set_round_trip_seconds(link.round_trip_seconds);
    }
  }
  for (uint64_t id : Spares()) info->add_spare_workers(workers_.at(id)->registration.name());
  info->set_group_generation(last_generation_);
}

}  // namespace goldfinch
