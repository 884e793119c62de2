// Partitions the layers of a model over the workers of a pipeline. Pure.
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

// What one worker offers. The planner takes workers in the order of the stages.
struct WorkerResources {
  int64_t memory_bytes = 0;  // that the stage may use, for everything that base/stage_memory.h plans
  double flops = 0;          // a second
  double read_bytes_per_second = 0;
  const ModelMemory* model = nullptr;  // the model's memory on this worker; must outlive the call
};

struct PartitionOptions {
  int max_sequences = 1;  // 0: what AutoSequences says, max_step_tokens and memory allow
  int64_t max_sequence_tokens = 1;
  int64_t cache_tokens = 0;     // over all sequences; 0: as many as memory allows
  int64_t max_step_tokens = 1;  // of one Step
  int64_t max_logit_rows = 1;   // of one Step; if max_sequences is 0, beside one for each sequence
  std::vector<int> split;       // the first layer of each stage, ascending from 0; empty: balanced
  int split_layers = 0;         // with `split`: how many layers the model must have
};

struct Partition {
  std::vector<int> first_layers;  // of each stage, ascending from 0
  int max_sequences = 1;          // as in PartitionOptions, or what was chosen, as is max_logit_rows
  int64_t max_logit_rows = 1;
  int64_t cache_tokens = 0;         // over all sequences
  int64_t cache_tokens_wanted = 0;  // of all sequences at full length; more than cache_tokens if memory is short
  int tightest_stage = 0;           // the stage whose memory limits cache_tokens then
  // The time of the slowest stage for one token of a prompt, if its worker reached its measured speed.
  double seconds_per_prompt_token = 0;
};

// The balance aims at requests that read this many prompt tokens for each token that they generate.
inline constexpr double kPromptTokensPerCompletionToken = 8;
// The load for which tiers of GOLD layers are weighed: as many sequences of so many tokens, or of max_sequence_tokens
// if that is less, as run at once. Short contexts are fast at any tier.
inline constexpr int64_t kExpectedContextTokens = 16'384;
// How many times as slow as the fastest partition another may be that decodes the expected load at better tiers.
inline constexpr double kSlowerForTiers = 1.5;
// The most sequences that a group runs at once unless the user says: beyond, decoding gains nothing, as reading the
// weights is no longer what a step waits for. Devices from kManyFlops on are GPUs or large machines.
inline constexpr int kSequencesFewMax = 64, kSequencesManyMax = 256;
inline constexpr double kManyFlops = 2e12;
// The largest fraction that states of sequences may take of what a worker has beside weights and tables.
inline constexpr double kStatesFraction = 0.125;

// The most sequences for these workers, whatever their memory: a stage that would gain nothing decides for all.
int AutoSequences(absl::Span<const WorkerResources> workers);

// Finds the partition whose slowest stage is fastest. A stage's cost is the time that its layers take on its worker for
// kPromptTokensPerCompletionToken tokens of pre-fill and one token of decoding. A partition that is slower by this
// cost, by less than kSlowerForTiers, is taken instead if the kept rows that GOLD layers have memory for there make up
// for it: if the cost and the time in which all GOLD layers attend to one sequence of the expected load are less
// together. Everything that base/stage_memory.h plans for a stage must fit its worker's memory, with caches of
// options.cache_tokens or, if that is 0, of at least one sequence of max_sequence_tokens. The caches are as large as
// all sequences at full length can use, or else as large as the memory of the tightest stage allows. RESOURCE_EXHAUSTED
// names the parts of the memory, the limit and what to change; INVALID_ARGUMENT means that `options.split` does not fit
// the model or the number of workers, that there are more workers than layers, or that a worker's memory is that of
// another number of layers.
absl::StatusOr<Partition> PartitionLayers(const cluster::v1::Described& model,
                                          absl::Span<const WorkerResources> workers, const PartitionOptions& options);

}  // namespace goldfinch

#endif  // GOLDFINCH_COORDINATOR_PLANNER_H_
