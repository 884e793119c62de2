// Partitions the layers of a model over the workers of a pipeline. Pure.
#ifndef GOLDFINCH_COORDINATOR_PLANNER_PLANNER_H_
#define GOLDFINCH_COORDINATOR_PLANNER_PLANNER_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "base/stage_memory.h"
#include "coordinator/planner/stage_cost.h"

namespace goldfinch {

// Which split is wanted if none is given.
enum class SplitAim {
  kAuto,      // the least time for the expected traffic; a border split within kBorderMargin of it
  kBorder,    // the same among border splits: a stage begins with the first GOLD layer
  kBalanced,  // the fastest slowest stage or link
};

struct PartitionOptions {
  int max_sequences = 1;  // 0: what AutoSequences says, max_step_tokens and memory allow
  int64_t max_sequence_tokens = 1;
  int64_t cache_tokens = 0;     // over all sequences; 0: as many as memory allows
  int64_t max_step_tokens = 1;  // of one Step
  int64_t max_logit_rows = 1;   // of one Step; if max_sequences is 0, beside one for each sequence
  std::vector<int> split;       // the first layer of each stage, ascending from 0; empty: as `aim` says
  int split_layers = 0;         // with `split`: how many layers the model must have
  SplitAim aim = SplitAim::kAuto;
  // What the same stages had until now, if anything: it stays unless another split is better by kKeepMargin, as workers
  // have its layers loaded.
  std::vector<int> kept_split;
  ExpectedTraffic traffic;  // where it exceeds the limits above, what is within them is expected
  LinkSpeeds links;
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
  std::string why;           // for people, one line: why this split, and whether a stage begins at the border
  int64_t search_steps = 0;  // how often a stage was weighed
};

// What a split is expected to do.
struct SplitEstimate {
  std::vector<int> first_layers;
  std::vector<StageCost> stages;        // [stages]
  std::vector<ReceivedBytes> received;  // [stages] for one request
  ExpectedTraffic traffic;              // within the limits of the partition
  double request_seconds = 0;           // of the slowest stage or link for one request
  int slowest_stage = 0;
  bool slowest_sends = false;            // it is slow because of what it sends
  double first_token_seconds = 0;        // of a request that is alone
  double prefill_tokens_per_second = 0;  // while prompts alone are read
  double decode_tokens_per_second = 0;   // of all sequences together, at the expected context
  // The time in which the expected sequences are served together, for each of them: what SplitAim::kAuto minimizes.
  double cost = 0;
};

// How much longer a border split may take and still be preferred: it needs no fast link and only its later stages hold
// what GOLD layers need, while predictions are no better than that.
inline constexpr double kBorderMargin = 0.05;
// How much longer the split that the stages have had may take and still be kept.
inline constexpr double kKeepMargin = 0.1;
// The most sequences that a group runs at once unless the user says: beyond, decoding gains nothing, as reading the
// weights is no longer what a step waits for. Devices from kManyFlops on are GPUs or large machines.
inline constexpr int kSequencesFewMax = 64, kSequencesManyMax = 256;
inline constexpr double kManyFlops = 2e12;
// The largest fraction that states of sequences may take of what a worker has beside weights and tables.
inline constexpr double kStatesFraction = 0.125;

// What is expected within the limits of sequences and caches, for options.max_sequences above 0: shorter requests of
// the same kind, and fewer of them.
ExpectedTraffic TrafficWithinLimits(const PartitionOptions& options);

// The ranges of layers, as users give them: "0-7,8-15,16-23".
std::string SplitText(absl::Span<const int> first_layers, int layers);

// The most sequences for these workers, whatever their memory: a stage that would gain nothing decides for all.
int AutoSequences(absl::Span<const WorkerResources> workers);

// Finds the partition that serves the expected traffic in the least time: as many requests together as run at a time,
// which takes as long as the first of them takes to its first token, and then the slowest stage or link for each of
// them. coordinator/planner/stage_cost.h says what a stage costs. Everything that base/stage_memory.h plans for a stage
// must fit its worker's memory, with caches of options.cache_tokens or, if that is 0, of at least one sequence of
// max_sequence_tokens. The caches are as large as all sequences at full length can use, or else as large as the memory
// of the tightest stage allows. RESOURCE_EXHAUSTED names the parts of the memory, the limit and what to change;
// INVALID_ARGUMENT means that `options.split` does not fit the model or the number of workers, that a model without
// GOLD layers should be split at the border, that there are more workers than layers, or that a worker's memory is that
// of another number of layers.
absl::StatusOr<Partition> PartitionLayers(const cluster::v1::Described& model,
                                          absl::Span<const WorkerResources> workers, const PartitionOptions& options);

// The same where options->max_step_tokens is 0: sets it to `most`, or to fewer, but not to less than `least` and
// max_sequences, if activations do not fit otherwise.
absl::StatusOr<Partition> PartitionWithLongSteps(const cluster::v1::Described& model,
                                                 absl::Span<const WorkerResources> workers, int64_t most, int64_t least,
                                                 PartitionOptions* options);

// What the split is expected to do; nothing if it does not fit, or has another number of stages than there are workers.
// options.max_sequences is not 0.
std::optional<SplitEstimate> EstimateSplit(const cluster::v1::Described& model,
                                           absl::Span<const WorkerResources> workers, const PartitionOptions& options,
                                           const std::vector<int>& first_layers);
// What `aim` minimizes, in seconds.
inline double CostOf(const SplitEstimate& estimate, SplitAim aim) {
  return aim == SplitAim::kBalanced ? estimate.request_seconds : estimate.cost;
}

// What `partition`, which PartitionLayers returned for the same arguments, is expected to do, and then the two best
// others among these: the best border split, the best by the slowest stage alone and by the first token alone, and the
// splits that differ from `partition` in one layer of one stage. The best border split follows if none of them is one.
std::vector<SplitEstimate> CompareSplits(const cluster::v1::Described& model, absl::Span<const WorkerResources> workers,
                                         const PartitionOptions& options, const Partition& partition);

}  // namespace goldfinch

#endif  // GOLDFINCH_COORDINATOR_PLANNER_PLANNER_H_
