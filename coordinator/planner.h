// Cuts the layers of a model over workers. Pure.
#ifndef GOLDFINCH_COORDINATOR_PLANNER_H_
#define GOLDFINCH_COORDINATOR_PLANNER_H_

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "base/stage_memory.h"

namespace goldfinch {

namespace cluster::v1 {
class Described;
}  // namespace cluster::v1

// What a worker has to offer, in the order of the stages.
struct WorkerResources {
  int64_t memory_bytes = 0;  // that it may use
  double flops = 0;
  double read_bytes_per_second = 0;
  const ModelMemory* model = nullptr;  // as this worker keeps it; must outlive the call
};

struct PartitionOptions {
  int max_sequences = 1;
  int64_t max_sequence_tokens = 1;
  int64_t cache_tokens = 0;  // over all sequences; 0: what memory allows
  int64_t max_step_tokens = 1;
  int64_t max_logit_rows = 1;  // of one Step
  std::vector<int> split;      // first layer of each stage, from 0; empty: balanced
  int split_layers = 0;        // that the split is for
};

struct Partition {
  std::vector<int> first_layers;  // of each stage, ascending from 0
  int64_t cache_tokens = 0;
  int64_t cache_tokens_wanted = 0;      // of all sequences at full length; more than cache_tokens if memory is short
  int tightest_stage = 0;               // whose memory bounds cache_tokens then
  double seconds_per_prompt_token = 0;  // of the slowest stage, if it reached its worker's measured speed
};

// The model's memory as a worker has told of it.
ModelMemory ReadModelMemory(const cluster::v1::Described& model);

// The split whose slowest stage is fastest: a stage's cost is what its layers take on its worker for kPromptTokens of
// pre-fill and kDecodedTokens of decoding. All that base/stage_memory.h plans for a stage, with the caches of at least
// one full sequence, must fit its worker's memory. Caches are as large as all sequences can use, or else as the memory
// of the tightest stage allows. RESOURCE_EXHAUSTED names the parts, the limit and what to change; INVALID_ARGUMENT if a
// given split does not fit the model or the number of workers.
absl::StatusOr<Partition> PartitionLayers(const cluster::v1::Described& model,
                                          absl::Span<const WorkerResources> workers, const PartitionOptions& options);

inline constexpr double kKeptShare = 0.25;  // of what is left for caches: for what GOLD layers keep beside them
inline constexpr double kPromptTokens = 8;  // typical requests read more than they write
inline constexpr double kDecodedTokens = 1;

}  // namespace goldfinch

#endif  // GOLDFINCH_COORDINATOR_PLANNER_H_
