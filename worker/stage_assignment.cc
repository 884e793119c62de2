#include "worker/stage_assignment.h"

#include <algorithm>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "base/shared_key.h"
#include "base/stage_extent.h"
#include "base/status.h"
#include "protos/cluster.pb.h"
#include "protos/cluster_protocol.h"

namespace goldfinch {
namespace {

using cluster::v1::Form;

// Limits that no machine reaches, and that are far from overflow in what is computed from them.
constexpr uint64_t kSequencesMax = 1 << 20;
constexpr uint64_t kStepTokensMax = 1 << 20;

absl::Status CheckField(const char* name, uint64_t value, uint64_t low, uint64_t high) {
  if (value >= low && value <= high) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("Form.", name, " is ", value, ", it must be in [", low, ", ", high, "]"));
}

absl::Status CheckLayers(const Form& form, int layers) {
  const auto& first = form.first_layers();
  GF_RETURN_IF_ERROR(CheckField("first_layers.size", first.size(), 1, layers));
  GF_RETURN_IF_ERROR(CheckField("stage", form.stage(), 0, first.size() - 1));
  GF_RETURN_IF_ERROR(CheckField("first_layers[0]", first[0], 0, 0));
  for (int i = 1; i < first.size(); ++i) {
    GF_RETURN_IF_ERROR(
        CheckField(absl::StrCat("first_layers[", i, "]").c_str(), first[i], uint64_t{first[i - 1]} + 1, layers - 1));
  }
  return absl::OkStatus();
}

StageLinks PlanLinks(const std::vector<StageExtent>& pipeline, int stage) {
  const int stages = static_cast<int>(pipeline.size());
  StageLinks links;
  if (pipeline[stage].receives_hidden()) links.hidden_from = stage - 1;
  if (pipeline[stage].sends_hidden()) links.hidden_to = stage + 1;
  for (int before = 0; pipeline[stage].receives_compressed() && before < stage; ++before) {
    if (pipeline[before].sends_compressed()) links.compressed_from = before;
  }
  for (int later = stage + 1; pipeline[stage].sends_compressed() && later < stages; ++later) {
    links.compressed_to.push_back(later);
  }
  return links;
}

absl::StatusOr<std::vector<bool>> ReadBits(const char* name, const std::string& bytes, int64_t count) {
  const auto expected = static_cast<uint64_t>((count + 7) / 8);
  GF_RETURN_IF_ERROR(CheckField(absl::StrCat(name, ".size").c_str(), bytes.size(), expected, expected));
  std::vector<bool> bits(count);
  for (int64_t i = 0; i < count; ++i) bits[i] = (static_cast<uint8_t>(bytes[i / 8]) >> (i % 8) & 1) != 0;
  return bits;
}

absl::StatusOr<std::shared_ptr<const SamplerVocabulary>> ReadVocabulary(const Form& form, int64_t vocab_size) {
  GF_ASSIGN_OR_RETURN(std::vector<bool> sampleable, ReadBits("sampleable", form.sampleable(), vocab_size));
  GF_ASSIGN_OR_RETURN(std::vector<bool> repeats_freely, ReadBits("repeats_freely", form.repeats_freely(), vocab_size));
  if (std::find(sampleable.begin(), sampleable.end(), true) == sampleable.end()) {
    return absl::InvalidArgumentError("Form.sampleable has no id");
  }
  return std::make_shared<const SamplerVocabulary>(std::move(sampleable), std::move(repeats_freely));
}

}  // namespace

std::vector<StageTraffic> StageAssignment::Traffic(const ModelShape& shape) const {
  const int64_t hidden_bytes = hidden_rows_max * shape.width * SizeOf(DType::kF32);
  const int64_t compressed_bytes = options.max_step_tokens * shape.CompressedRowBytes(options.cache_dtype);
  std::vector<StageTraffic> traffic(stages);
  const auto raise = [&](int peer, int64_t StageTraffic::*most, int64_t bytes) {
    if (peer >= 0) traffic[peer].*most = std::max(traffic[peer].*most, bytes);
  };
  raise(links.hidden_from, &StageTraffic::receive_bytes_max, hidden_bytes);
  raise(links.hidden_to, &StageTraffic::send_bytes_max, hidden_bytes);
  raise(links.compressed_from, &StageTraffic::receive_bytes_max, compressed_bytes);
  for (const int peer : links.compressed_to) raise(peer, &StageTraffic::send_bytes_max, compressed_bytes);
  return traffic;
}

absl::StatusOr<StageAssignment> AssignStage(const Form& form, const ModelShape& shape, DType cache_dtype) {
  GF_RETURN_IF_ERROR(CheckLayers(form, shape.layers()));
  GF_RETURN_IF_ERROR(CheckField("max_sequences", form.max_sequences(), 1, kSequencesMax));
  GF_RETURN_IF_ERROR(CheckField("max_sequence_tokens", form.max_sequence_tokens(), 1, kCacheTokensMax));
  GF_RETURN_IF_ERROR(CheckField("cache_tokens", form.cache_tokens(), 1, kCacheTokensMax));
  GF_RETURN_IF_ERROR(CheckField("max_step_tokens", form.max_step_tokens(), 1, kStepTokensMax));
  GF_RETURN_IF_ERROR(CheckField("max_logit_rows", form.max_logit_rows(), 1, kStepTokensMax));
  GF_RETURN_IF_ERROR(
      CheckField("transport_key.size", form.transport_key().size(), SharedKey::kProofBytes, SharedKey::kProofBytes));
  StageAssignment assignment;
  assignment.generation = form.generation();
  assignment.transport_key = form.transport_key();
  assignment.stage = static_cast<int>(form.stage());
  assignment.stages = form.first_layers_size();
  const std::vector<int> first_layers(form.first_layers().begin(), form.first_layers().end());
  std::vector<StageExtent> pipeline;
  for (int stage = 0; stage < assignment.stages; ++stage) {
    pipeline.push_back(StageExtentAt(first_layers, stage, shape.layers(), shape.finch_layers()));
  }
  const StageExtent& extent = pipeline[assignment.stage];
  assignment.first_layer = extent.first_layer;
  assignment.last_layer = extent.last_layer;
  assignment.options = {.max_sequences = static_cast<int>(form.max_sequences()),
                        .max_sequence_tokens = static_cast<int64_t>(form.max_sequence_tokens()),
                        .cache_tokens = static_cast<int64_t>(form.cache_tokens()),
                        .max_step_tokens = form.max_step_tokens(),
                        .max_logit_rows = form.max_logit_rows(),
                        .cache_dtype = cache_dtype};
  assignment.links = PlanLinks(pipeline, assignment.stage);
  assignment.hidden_rows_max = HiddenRowsMax(assignment.options.max_step_tokens, assignment.options.max_sequences,
                                             shape.gold_layers(), shape.uses_side_rows());
  if (extent.has_head()) {
    GF_ASSIGN_OR_RETURN(assignment.vocabulary, ReadVocabulary(form, shape.vocab_size));
  }
  return assignment;
}

}  // namespace goldfinch
