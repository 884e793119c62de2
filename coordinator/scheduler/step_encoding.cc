#include "coordinator/scheduler/step_encoding.h"

#include <algorithm>
#include <string>
#include <utility>

#include "base/safe_text.h"
#include "protos/cluster.pb.h"

namespace goldfinch {
namespace {

// It is sent to a client in a trailer, whose size is limited.
constexpr size_t kErrorBytesMax = 1024;

void EncodeSampling(const SamplingOptions& options, uint64_t seed, cluster::v1::Sampling* out) {
  out->set_temperature(options.temperature);
  out->set_top_p(options.top_p);
  out->set_top_k(static_cast<uint32_t>(options.top_k));
  out->set_min_p(options.min_p);
  out->set_presence_penalty(options.presence_penalty);
  out->set_frequency_penalty(options.frequency_penalty);
  out->set_penalty_decay(options.penalty_decay);
  for (const LogitBias& entry : options.logit_bias) {
    cluster::v1::LogitBias& bias = *out->add_logit_bias();
    bias.set_id(entry.id);
    bias.set_bias(entry.bias);
  }
  out->mutable_banned_tokens()->Assign(options.banned_tokens.begin(), options.banned_tokens.end());
  out->set_seed(seed);
  if (options.logprobs) out->set_logprobs(*options.logprobs);
}

void EncodeNew(const StepPlan::NewSequence& sequence, bool is_last, bool is_fork, cluster::v1::NewSequence* out) {
  out->set_sequence(sequence.sequence);
  out->mutable_restore()->Assign(sequence.restore.begin(), sequence.restore.end());
  out->set_copy_of(sequence.copy_of);
  if (!is_last || sequence.sampling == nullptr) return;
  if (is_fork || sequence.copy_of != 0) {
    out->set_seed(sequence.seed);
  } else {
    EncodeSampling(*sequence.sampling, sequence.seed, out->mutable_sampling());
  }
  out->set_draw(sequence.draw);
  out->mutable_observed()->Assign(sequence.observed.begin(), sequence.observed.end());
}

// Writes the ids in little-endian order, `id_bytes` each.
void EncodeIds(absl::Span<const int32_t> ids, int id_bytes, std::string* out) {
  out->resize(ids.size() * id_bytes);
  char* to = out->data();
  for (const int32_t id : ids) {
    for (int byte = 0; byte < id_bytes; ++byte) *to++ = static_cast<char>(static_cast<uint32_t>(id) >> (8 * byte));
  }
}

void EncodeChunk(const StepPlan& plan, const StepPlan::Chunk& chunk, const StepAudience& audience,
                 cluster::v1::Chunk* out) {
  out->set_sequence(chunk.sequence);
  out->set_position(chunk.position);
  out->set_tokens(static_cast<uint32_t>(chunk.tokens));
  if (audience.reads_ids) {
    EncodeIds(absl::MakeConstSpan(plan.ids).subspan(chunk.ids_begin, chunk.tokens), audience.id_bytes,
              out->mutable_ids());
  }
  out->set_logit_rows(static_cast<uint32_t>(chunk.logit_rows));
  for (int64_t i = 0; i < chunk.forks; ++i) {
    EncodeNew(plan.forks[chunk.forks_begin + i], audience.is_last, /*is_fork=*/true, out->add_forks());
  }
  if (!audience.is_last) return;
  out->set_sample(chunk.sample);
  if (chunk.targets_begin < 0) return;
  const auto targets = absl::MakeConstSpan(plan.targets).subspan(chunk.targets_begin, chunk.logit_rows);
  out->mutable_targets()->Assign(targets.begin(), targets.end());
  out->set_top_logprobs(chunk.top_logprobs);
  out->set_logits(chunk.logits);
}

void DecodeChunk(cluster::v1::ChunkResult* from, StepResult::Chunk* to) {
  to->sequence = from->sequence();
  to->token = from->token();
  to->logprobs.assign(from->logprobs().begin(), from->logprobs().end());
  to->top.resize(from->top_size());
  for (int row = 0; row < from->top_size(); ++row) {
    const cluster::v1::TopLogprobs& top = from->top(row);
    to->top[row].clear();
    for (int i = 0; i < std::min(top.ids_size(), top.logprobs_size()); ++i) {
      to->top[row].push_back({static_cast<int32_t>(top.ids(i)), top.logprobs(i)});
    }
  }
  // mutable_ of an empty string would allocate one.
  to->error.clear();
  to->logits.clear();
  if (!from->error().empty()) to->error = SafeText(from->error(), kErrorBytesMax);
  if (!from->logits().empty()) to->logits = std::move(*from->mutable_logits());
}

}  // namespace

void EncodeStep(const StepPlan& plan, const StepAudience& audience, cluster::v1::Step* step) {
  step->Clear();
  step->set_generation(audience.generation);
  step->set_id(plan.id);
  step->mutable_close()->Assign(plan.close.begin(), plan.close.end());
  for (const StepPlan::NewSequence& sequence : plan.open) {
    EncodeNew(sequence, audience.is_last, /*is_fork=*/false, step->add_open());
  }
  step->mutable_chunks()->Reserve(static_cast<int>(plan.chunks.size()));
  for (const StepPlan::Chunk& chunk : plan.chunks) EncodeChunk(plan, chunk, audience, step->add_chunks());
  for (const StepPlan::Save& save : plan.saves) {
    cluster::v1::SaveSegment& out = *step->add_saves();
    out.set_sequence(save.sequence);
    out.set_segment(save.segment);
    out.set_begin(static_cast<uint64_t>(save.begin));
  }
}

void DecodeStepDone(cluster::v1::StepDone* done, StepResult* result) {
  result->id = done->id();
  result->chunks.resize(done->results_size());
  for (int i = 0; i < done->results_size(); ++i) DecodeChunk(done->mutable_results(i), &result->chunks[i]);
}

}  // namespace goldfinch
