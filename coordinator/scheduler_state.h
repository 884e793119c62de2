// The scheduler's private state, for its own source files alone: requests, their sequences, and groups.
//
// A request waits in the queue (group == null) or runs in a group. In a group each of its unfinished sequences has an
// id and holds a state slot and pages; when the generation ends they lose all that, and the request waits again:
//
//   Submit -> waiting -- Admit --> running -- all sequences done, Cancel --> ended
//                ^                   |
//                +- GenerationEnded -+
#ifndef GOLDFINCH_COORDINATOR_SCHEDULER_STATE_H_
#define GOLDFINCH_COORDINATOR_SCHEDULER_STATE_H_

#include <algorithm>
#include <cstdint>
#include <deque>
#include <memory>
#include <set>
#include <vector>

#include "base/stage_memory.h"
#include "coordinator/scheduler.h"

namespace goldfinch {

inline int64_t PagesOf(int64_t tokens) { return (tokens + kCachePageTokens - 1) / kCachePageTokens; }

// One sample or continuation of a request.
struct Scheduler::Sequence {
  RequestState* owner = nullptr;
  int index = 0;                      // of the sample or continuation
  std::vector<int32_t> after_prompt;  // the completion tokens so far, or the continuation that is scored
  bool done = false;
  // When scoring: the rows of the positions before this one have been delivered, from the prompt's last position on.
  int64_t delivered = 0;

  // In the present generation:
  uint64_t id = 0;              // 0: holds nothing of a group
  bool opened = false;          // the workers know it
  int64_t scheduled = 0;        // positions that Steps have taken
  bool awaiting_token = false;  // a Step in flight samples its next token
  bool decoding = false;        // has sampled a token: one token a Step from here on
  int64_t listed_tokens = -1;   // tokens left to read, as listed for pre-fill; -1: not listed
  int64_t granted_tokens = 0;   // tokens that it gets of the Step that is being planned

  int64_t cached_tokens = 0;    // positions of its own, not shared, that it had reached when it was released
  double last_token_time = -1;  // < 0: no token yet
};

struct Scheduler::RequestState {
  uint64_t number = 0;
  uint64_t arrival = 0;
  Request request;
  std::shared_ptr<RequestSink> sink;
  std::vector<Sequence> sequences;
  int live = 0;               // sequences that are not done
  int64_t prompt_scored = 0;  // with score_prompt: the rows of the positions before this one have been delivered
  int64_t prompt_read = 0;    // the most tokens of the prompt that any generation has read
  int losses = 0;             // generations that have ended since it last made progress
  bool paused = false;

  // In the present generation:
  Group* group = nullptr;     // null: it waits
  int64_t shared_tokens = 0;  // tokens at the beginning that one sequence runs for all

  // Times in seconds; < 0: not yet.
  double submitted = 0;
  double admitted = -1;
  double first_token = -1;
  double last_token = -1;
  std::vector<Finish> finishes;
  RequestUsage usage;

  QueueKey queue_key() const { return {-request.priority, arrival}; }
  int64_t prompt_tokens() const { return static_cast<int64_t>(request.prompt.size()); }
  int32_t Token(const Sequence& sequence, int64_t position) const {
    const int64_t prompt = prompt_tokens();
    return position < prompt ? request.prompt[position] : sequence.after_prompt[position - prompt];
  }
  // One after the last position to run, as far as the tokens are known.
  int64_t End(const Sequence& sequence) const {
    const int64_t known = prompt_tokens() + static_cast<int64_t>(sequence.after_prompt.size());
    return request.score ? known - 1 : known;
  }
  // The highest End it can come to. The last token of an answer is not run.
  int64_t EndMax(const Sequence& sequence) const {
    if (request.score) return End(sequence);
    return prompt_tokens() + std::max<int64_t>(request.generate->max_tokens - 1, 0);
  }
  // The sequence that runs what all share.
  Sequence& leader() {
    return *std::find_if(sequences.begin(), sequences.end(), [](const Sequence& sequence) { return !sequence.done; });
  }
  // Where the next chunk has to end at the latest.
  int64_t ChunkEndMax(const Sequence& sequence) const {
    return sequence.scheduled < shared_tokens ? shared_tokens : End(sequence);
  }
  // When scoring: the first position from `begin` on whose logits are needed.
  int64_t ScoredFrom(const Sequence& sequence, int64_t begin) const {
    const int64_t last = prompt_tokens() - 1;
    const bool in_prompt = request.score->score_prompt && prompt_scored < last;
    return std::max(begin, in_prompt ? prompt_scored : std::max(last, sequence.delivered));
  }
  // How many of the last positions of [begin, end) need logits.
  int64_t LogitRows(const Sequence& sequence, int64_t begin, int64_t end) const {
    if (request.score) return std::max<int64_t>(end - ScoredFrom(sequence, begin), 0);
    return end == End(sequence) && request.generate->max_tokens > 0 ? 1 : 0;
  }
  // What the workers have to know of a new sequence.
  StepPlan::NewSequence Opening(const Sequence& sequence) const {
    if (request.score) return {sequence.id};
    const SamplingOptions& sampling = request.generate->sampling;
    return {sequence.id, &sampling, sampling.seed + sequence.index, sequence.after_prompt};
  }

  // The worst case of a run that starts now.
  int64_t SharedTokens() const { return live > 1 ? prompt_tokens() - 1 : 0; }
  int64_t Pages() const {
    const int64_t shared_pages = SharedTokens() / kCachePageTokens;  // the page that a fork cuts is each one's own
    int64_t pages = shared_pages;
    for (const Sequence& sequence : sequences) {
      if (!sequence.done) pages += PagesOf(EndMax(sequence)) - shared_pages;
    }
    return pages;
  }
  int64_t LongestTokens() const {
    int64_t longest = 0;
    for (const Sequence& sequence : sequences) longest = std::max(longest, EndMax(sequence));
    return longest;
  }
};

struct Scheduler::ChunkInFlight {
  uint64_t sequence = 0;
  int64_t begin = 0;  // positions [begin, end)
  int64_t end = 0;
  int64_t logit_rows = 0;
};

struct Scheduler::StepInFlight {
  uint64_t id = 0;
  std::vector<ChunkInFlight> chunks;
};

struct Scheduler::Group {
  GroupCapacity capacity;
  int64_t pages_max = 0;

  // What the running requests hold.
  int sequences = 0;
  int64_t pages = 0;
  int64_t prefill_tokens = 0;  // left to read by the sequences that are listed
  int decoding = 0;            // sequences

  // The sequences with prompt to read, in two orders.
  std::set<ShortestKey> shortest;
  std::set<OldestKey> oldest;
  // Ids of decoding sequences with a token to run, longest waiting first; they may have ended or been paused since.
  std::deque<uint64_t> ready;
  std::vector<uint64_t> close;  // for the next Step

  uint64_t last_step = 0;
  std::deque<StepInFlight> steps;                 // oldest first
  std::vector<std::vector<ChunkInFlight>> spare;  // emptied lists of chunks, kept for their memory

  bool FitsNow(const RequestState& state) const {
    return sequences + state.live <= capacity.max_sequences && pages + state.Pages() <= pages_max;
  }
  bool EverFits(const RequestState& state) const {
    return state.live <= capacity.max_sequences && state.Pages() <= pages_max &&
           state.LongestTokens() <= capacity.max_sequence_tokens;
  }
  // How much is ahead of a new request, in tokens: a sequence counts as 16.
  int64_t load() const { return prefill_tokens + int64_t{16} * sequences; }
};

}  // namespace goldfinch

#endif  // GOLDFINCH_COORDINATOR_SCHEDULER_STATE_H_
