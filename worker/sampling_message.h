// Reads the sampling options of base/sampling.h from a message of the coordinator.
#ifndef GOLDFINCH_WORKER_SAMPLING_MESSAGE_H_
#define GOLDFINCH_WORKER_SAMPLING_MESSAGE_H_

#include "absl/status/statusor.h"
#include "base/sampling.h"

namespace goldfinch {

namespace cluster::v1 {
class Sampling;
}  // namespace cluster::v1

// Returns options that are valid for the vocabulary. INVALID_ARGUMENT names the bad field, its value and its limit.
absl::StatusOr<SamplingOptions> ReadSampling(const cluster::v1::Sampling& message, const SamplerVocabulary& vocabulary);

}  // namespace goldfinch

#endif  // GOLDFINCH_WORKER_SAMPLING_MESSAGE_H_
