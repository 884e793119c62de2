// What a stage of the pipeline costs under the traffic that is expected: the time of its worker and of its links, and
// the bytes that cross its boundaries. Pure. docs/decisions/0028-model-of-costs.md has the model and its sources.
#ifndef GOLDFINCH_COORDINATOR_PLANNER_STAGE_COST_H_
#define GOLDFINCH_COORDINATOR_PLANNER_STAGE_COST_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/types/span.h"
#include "base/stage_extent.h"
#include "base/stage_memory.h"

namespace goldfinch {

namespace cluster::v1 {
class Described;
}  // namespace cluster::v1

// What one worker offers. The planner takes workers in the order of the stages.
struct WorkerResources {
  int64_t memory_bytes = 0;            // that the stage may use, for everything that base/stage_memory.h plans
  double flops = 0;                    // a second, at least 1
  double read_bytes_per_second = 0;    // at least 1
  const ModelMemory* model = nullptr;  // the model's memory on this worker; must outlive the call
};

// The requests that a group is planned for. The defaults are those of long documents. All are at least 1.
struct ExpectedTraffic {
  int64_t prompt_tokens = 32'768;   // that are read for a request
  int64_t output_tokens = 512;      // that are sampled for it
  int64_t context_tokens = 65'536;  // positions that an output token attends to; prompt and output at least
  int64_t sequences = 16;           // that run at a time

  bool operator==(const ExpectedTraffic&) const = default;
};

// How fast rows go from worker to worker. A worker sends one message after another.
struct LinkSpeeds {
  double bytes_per_second = 0;  // between any two workers; 0: sending takes no time
  // [stages * stages] in bytes per second, from the stage of the row to that of the column; empty: all as above.
  std::vector<double> table;
};

// What is assumed of a link until it is measured or given, by the name of its transport, which must be one of
// base/transports.h.
double AssumedLinkSpeed(const std::string& transport);

// Bytes that a stage receives, as StepDone counts them.
struct ReceivedBytes {
  int64_t hidden = 0;
  int64_t compressed = 0;
  int64_t ids = 0;

  int64_t total() const { return hidden + compressed + ids; }
  bool operator==(const ReceivedBytes&) const = default;
};

// What stage `stage` of the pipeline whose stages begin with `first_layers` receives for one request that reads a
// prompt of `prompt_tokens` from its beginning and draws `output_tokens`, at least one each. Exact.
ReceivedBytes ReceivedForRequest(const ModelMemory& model, absl::Span<const int> first_layers, int stage,
                                 int64_t prompt_tokens, int64_t output_tokens);

struct StageLimits {
  int64_t max_sequences = 1;
  int64_t cache_tokens_least = 1;  // that must fit beside all else
  int64_t max_step_tokens = 1;
  int64_t max_logit_rows = 1;
};

// The costs of layers [first, last) as one stage. Times are in seconds, of what takes longest: the worker or what it
// sends.
struct StageCost {
  double request = 0;       // for one request: its prompt and its output
  double token = 0;         // for one token of a prompt
  double output_token = 0;  // for one output token of one sequence
  // What it adds to the time to the first token before and after the prompt streams through the slowest stage: it
  // passes the first chunk on, and runs the rows of its GOLD layers at the prompt's end.
  double first_token = 0;

  double compute_request = 0, send_request = 0;  // the two that `request` is the longer of
  int64_t memory_bytes = 0;                      // that are planned, kept rows included
  KeptTokens kept;                               // of `context_tokens` positions of all sequences, at which tier
};

// The costs of all stages that there may be. Made once for a search: each range of layers takes a few look-ups then.
class StageCosts {
 public:
  // All spans and models must outlive it. Workers have at least one layer each, and their models as many layers as
  // `model`. `traffic` keeps within the limits of sequences and caches.
  StageCosts(const cluster::v1::Described& model, absl::Span<const WorkerResources> workers, const LinkSpeeds& links,
             const ExpectedTraffic& traffic, const StageLimits& limits);

  int layers() const { return layers_; }
  int finch_layers() const { return finch_layers_; }
  int stages() const { return static_cast<int>(workers_.size()); }
  const ExpectedTraffic& traffic() const { return traffic_; }
  // Tokens of a step that reads a prompt.
  double chunk_tokens() const { return chunk_tokens_; }

  // Whether the stage fits its worker, with caches of cache_tokens_least.
  bool Fits(int stage, int first, int last) const;
  // The cost of a stage that fits.
  StageCost Of(int stage, int first, int last) const;
  // What StageCost::request is at least for these layers, and for more of them from `first` on.
  double LeastRequest(int stage, int first, int last) const {
    return kSurely * (sums_[stage][last].least - sums_[stage][first].least);
  }
  // The settings of a stage with caches of so many tokens.
  StageSettings SettingsOf(int stage, int first, int last, int64_t cache_tokens) const;

 private:
  // Differences of sums are not exact to the last bit.
  static constexpr double kSurely = 1 - 1e-9;

  // Sums of seconds over layers from layer 0 on, on one worker.
  struct Sums {
    double read = 0;    // Finch-side layers, for one token of a prompt
    double output = 0;  // for one output token of one sequence, but for the attention of GOLD layers
    // That attention at each tier, for one output token.
    double attend_compressed = 0, attend_shared = 0, attend_full = 0;
    double derive = 0;  // keys and values of one position of GOLD layers from compressed rows
    double outer = 0;   // the part of it that is left for later at the shared tier
    double tail = 0;    // GOLD layers at a prompt's end, but for deriving
    double least = 0;   // for one request, at the tier that takes least
  };
  struct RangeMemory {
    int64_t least = -1;     // with the smallest caches; < 0: not known yet
    int64_t expected = -1;  // with caches for the traffic
    KeptTokenBytes per_token;
  };
  // Workers that keep the model alike.
  struct Kind {
    const ModelMemory* model;
    int64_t channel_bytes = 0;                // that each stage behind the next one adds to the stage with the boundary
    mutable std::vector<RangeMemory> ranges;  // [layers * (layers + 1)], or empty if that is too large
  };

  RangeMemory MemoryOf(int stage, int first, int last) const;
  RangeMemory PlanRange(const Kind& kind, int first, int last) const;
  std::vector<Sums> SumsOf(const cluster::v1::Described& model, const WorkerResources& worker) const;
  bool has_boundary(int first, int last) const {
    return StageExtent{layers_, finch_layers_, first, last}.has_boundary();
  }
  bool has_gold() const { return finch_layers_ < layers_; }
  double LinkSeconds(int from, int to) const;
  void SetSending(const cluster::v1::Described& model);

  const absl::Span<const WorkerResources> workers_;
  const LinkSpeeds& links_;
  const ExpectedTraffic traffic_;
  const StageLimits limits_;
  const int layers_;
  const int finch_layers_;
  const double chunk_tokens_;
  const double batch_;  // sequences that share a step's reading of weights

  std::vector<Kind> kinds_;
  std::vector<int> kind_of_;             // [stages]
  std::vector<std::vector<Sums>> sums_;  // [stages][layers + 1]
  std::vector<double> head_, compress_;  // [stages] seconds for an output token, and for a token of a prompt
  std::vector<double> send_next_;        // [stages] seconds for a byte to the next stage
  std::vector<double> send_later_;       // [stages] the same, to all later stages together
  double hidden_bytes_ = 0;              // of a token, between Finch-side layers
  double row_bytes_ = 0;                 // of a token's hidden row to GOLD layers
  double compressed_bytes_ = 0;          // of a token's compressed row
};

}  // namespace goldfinch

#endif  // GOLDFINCH_COORDINATOR_PLANNER_STAGE_COST_H_
