#include "worker/sampling_message.h"

#include <algorithm>
#include <cstdint>
#include <limits>

#include "base/status.h"
#include "protos/cluster.pb.h"

namespace goldfinch {
namespace {

// Values that are too large for the type become its largest, which Validate refuses.
int32_t Clamp(uint32_t value) {
  return static_cast<int32_t>(std::min<uint32_t>(value, std::numeric_limits<int32_t>::max()));
}

}  // namespace

absl::StatusOr<SamplingOptions> ReadSampling(const cluster::v1::Sampling& message,
                                             const SamplerVocabulary& vocabulary) {
  SamplingOptions options;
  options.temperature = message.temperature();
  options.top_p = message.top_p();
  options.top_k = message.top_k();
  options.min_p = message.min_p();
  options.presence_penalty = message.presence_penalty();
  options.frequency_penalty = message.frequency_penalty();
  options.penalty_decay = message.penalty_decay();
  for (const cluster::v1::LogitBias& entry : message.logit_bias()) {
    options.logit_bias.push_back({Clamp(entry.id()), entry.bias()});
  }
  for (const uint32_t id : message.banned_tokens()) options.banned_tokens.push_back(Clamp(id));
  options.seed = message.seed();
  if (message.has_logprobs()) options.logprobs = Clamp(message.logprobs());
  GF_RETURN_IF_ERROR(Validate(options, vocabulary));
  return options;
}

}  // namespace goldfinch
