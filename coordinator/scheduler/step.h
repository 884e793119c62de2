// One Step as plain data: what the scheduler plans and what the last stage answers. step_encoding.h converts both to
// and from the messages that workers understand.
#ifndef GOLDFINCH_COORDINATOR_SCHEDULER_STEP_H_
#define GOLDFINCH_COORDINATOR_SCHEDULER_STEP_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/types/span.h"
#include "base/sampling.h"
#include "coordinator/scheduler/dispatcher.h"
#include "coordinator/scheduler/step_cost.h"

namespace goldfinch {

// Workers carry it out in this order: the saves of sequences without a chunk, close, open, then the chunks, each
// followed by its save and its forks. Spans and pointers are valid until the scheduler's next call.
struct StepPlan {
  struct NewSequence {
    uint64_t sequence = 0;                      // never used before in this generation
    const SamplingOptions* sampling = nullptr;  // null: it does not sample; of a fork that of what it is a copy of
    uint64_t seed = 0;                          // used in place of sampling->seed
    absl::Span<const int32_t> observed = {};    // the completion tokens so far, which penalties look at
    // The chain of segments that it begins with, from position 0 on; empty: it begins empty. Never of a fork.
    absl::Span<const uint64_t> restore = {};
    // A sequence that is opened before it in this Step, and that it is a copy of; 0: none. Never of a fork.
    uint64_t copy_of = 0;
    bool draw = false;  // draw the token that follows the chain, from the logits that its last segment has
  };
  // What is saved of a sequence: positions [begin, its position), and its state there.
  struct Save {
    uint64_t sequence = 0;
    uint64_t segment = 0;  // the number by which the workers know it from then on
    int64_t begin = 0;
  };
  // The next tokens of one sequence.
  struct Chunk {
    uint64_t sequence = 0;
    int64_t position = 0;   // of the first token
    int64_t ids_begin = 0;  // index into `ids` of the first token
    int64_t tokens = 0;
    int64_t logit_rows = 0;      // number of last tokens that need logits
    bool sample = false;         // sample the token after the chunk; logit_rows is 1
    int64_t targets_begin = -1;  // index into `targets` of the first of logit_rows targets; -1: nothing to score
    int top_logprobs = 0;
    bool logits = false;      // return the raw logits of the rows that are scored
    int64_t forks_begin = 0;  // index into `forks` of the first sequence that becomes a copy after this chunk
    int64_t forks = 0;
  };

  uint64_t id = 0;  // ascending by one within a generation, from 1
  std::vector<uint64_t> close;
  std::vector<NewSequence> open;
  std::vector<Chunk> chunks;  // of distinct sequences
  std::vector<int32_t> ids;
  std::vector<int32_t> targets;
  std::vector<NewSequence> forks;
  std::vector<Save> saves;     // at most one a sequence
  int64_t prefill_tokens = 0;  // those of `ids` that belong to prompts, not to decoding sequences
  StepWork work;

  // Empties it and keeps its memory.
  void Clear() {
    close.clear();
    open.clear();
    chunks.clear();
    ids.clear();
    targets.clear();
    forks.clear();
    saves.clear();
    prefill_tokens = 0;
    work = {};
  }
};

// The last stage's answer to one Step, unchecked: Scheduler::Apply checks it against the plan.
struct StepResult {
  struct Chunk {
    uint64_t sequence = 0;
    std::string error;   // not empty: why the sequence cannot go on; no other field counts then
    uint32_t token = 0;  // the sampled token
    std::vector<float>
        logprobs;  // [1] of the sampled token if its sampling asks for it, or [logit_rows] of the targets
    std::vector<std::vector<OutputToken::Likely>> top;  // [logprobs] or empty: the likeliest tokens, best first
    std::string logits;                                 // [logit_rows, vocab] float32 little-endian, or empty
  };

  uint64_t id = 0;
  std::vector<Chunk> chunks;  // the plan's chunks that have logit rows, in their order
};

}  // namespace goldfinch

#endif  // GOLDFINCH_COORDINATOR_SCHEDULER_STEP_H_
