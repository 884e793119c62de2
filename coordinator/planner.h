// Cuts the layers of a model over workers. Pure.
#ifndef GOLDFINCH_COORDINATOR_PLANNER_H_
#define GOLDFINCH_COORDINATOR_PLANNER_H_

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace goldfinch {

namespace cluster::v1 {
class Described;
}  // namespace cluster::v1

// What a worker has to offer, in the order of the stages.
struct WorkerResources {
  int64_t memory_bytes = 0;
  double flops = 0;
  double read_bytes_per_second = 0;
};

struct PlanOptions {
  int max_sequences = 1;
  int64_t max_sequence_tokens = 1;
  int64_t cache_tokens = 0;  // over all sequences; 0: what memory allows
  int64_t max_step_tokens = 1;
  std::vector<int> split;  // first layer of each stage, from 0; empty: balanced
  int split_layers = 0;    // that the split is for
};

struct Plan {
  std::vector<int> first_layers;  // of each stage, ascending from 0
  int64_t cache_tokens = 0;
  double seconds_per_prompt_token = 0;  // of the slowest stage, if it reached its worker's measured speed
};

// The split whose slowest stage is fastest: a stage's cost is what its layers take on its worker for kPromptTokens of
// pre-fill and kDecodedTokens of decoding. A stage's weights, its states of all sequences and the caches of at least
// one full sequence must fit its worker's memory, kMemoryShare of it. RESOURCE_EXHAUSTED names the stage or what would
// be needed; INVALID_ARGUMENT if a given split does not fit the model or the number of workers.
absl::StatusOr<Plan> PlanStages(const cluster::v1::Described& model, absl::Span<const WorkerResources> workers,
                                const PlanOptions& options);

inline constexpr double kMemoryShare = 0.9;
inline constexpr double kKeptShare = 0.25;  // of what is left for caches: for what GOLD layers keep beside them
inline constexpr double kPromptTokens = 8;  // typical requests read more than they write
inline constexpr double kDecodedTokens = 1;

}  // namespace goldfinch

#endif  // GOLDFINCH_COORDINATOR_PLANNER_H_
