// How the coordinator says in a message what base/sampling.h says in C++.
#ifndef GOLDFINCH_WORKER_SAMPLING_MESSAGE_H_
#define GOLDFINCH_WORKER_SAMPLING_MESSAGE_H_

#include "absl/status/statusor.h"
#include "base/sampling.h"

namespace goldfinch {

namespace cluster::v1 {
class Sampling;
}  // namespace cluster::v1

// Valid for the vocabulary; else INVALID_ARGUMENT that names field, value and limit.
absl::StatusOr<SamplingOptions> ReadSampling(const cluster::v1::Sampling& message, const SamplerVocabulary& vocabulary);

}  // namespace goldfinch

#endif  // GOLDFINCH_WORKER_SAMPLING_MESSAGE_H_
