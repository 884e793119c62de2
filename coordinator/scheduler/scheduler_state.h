// The scheduler's private state, for its own source files alone: requests, their sequences, and groups.
//
// The sequences of a request are admitted one by one, all to the same group. A sequence that runs has an id and holds a
// state slot and pages. When it is parked or its generation ends, it loses all that, and it waits again:
//
//   Submit -> waiting -- Admit --> running -- done, Cancel --> ended
//                ^                   |
//                +- Park, GenerationEnded
#ifndef GOLDFINCH_COORDINATOR_SCHEDULER_SCHEDULER_STATE_H_
#define GOLDFINCH_COORDINATOR_SCHEDULER_SCHEDULER_STATE_H_

#include <algorithm>
#include <cstdint>
#include <deque>
#include <limits>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "absl/types/span.h"
#include "base/cache_page.h"
#include "base/stage_memory.h"
#include "coordinator/scheduler/kept_pages.h"
#include "coordinator/scheduler/scheduler.h"
#include "coordinator/scheduler/token_allowance.h"

namespace goldfinch {

// One sample or continuation of a request.
struct Scheduler::Sequence {
  RequestState* owner = nullptr;
  int index = 0;                      // of the sample or continuation
  std::vector<int32_t> after_prompt;  // the completion tokens so far, or the continuation that is scored
  bool done = false;
  // When scoring: the rows of the positions before this one have been delivered, from the prompt's last position on.
  int64_t delivered = 0;

  // In the present run, which lasts from its admission until it is done, parked or lost:
  uint64_t id = 0;  // 0: it does not run and holds nothing of a group
  Cohort* cohort = nullptr;
  Lane* lane = nullptr;
  int64_t pages = 0;                  // that are its own
  bool growing = false;               // they are fewer than its worst case
  bool grown = false;                 // it has got some since it was admitted
  bool opened = false;                // the workers know it
  double started = 0;                 // when it was admitted
  double caught_up = -1;              // when it got beyond what earlier runs had reached; < 0: not yet
  int64_t reached_before = 0;         // what they had reached
  int64_t scheduled = 0;              // positions that Steps have taken
  bool awaiting_token = false;        // a Step in flight samples its next token
  bool decoding = false;              // a Step has sampled a token, or is about to: one token a Step from here on
  int64_t listed_tokens = -1;         // tokens left to read, as listed for pre-fill; -1: not listed
  int64_t granted_tokens = 0;         // tokens that it gets of the Step that is being planned
  PrefixKeeper::Beginning beginning;  // of the one that reads; its chain is released when the sequence is opened
  size_t saved = 0;                   // how many of beginning.save_at it has come to
  int64_t begun = 0;                  // tokens of the prompt that it began with, until its first results come
  bool draws = false;                 // all of it is kept: its next token is drawn from what it begins with

  std::optional<Finish> finish;  // with keep_as: it has all its tokens, and ends when the last one has been run
  int64_t reached = 0;           // one after the last position whose results have come, of any run
  int lost_runs = 0;             // runs in a row that were parked before they had caught up
  int growth_parkings = 0;       // when the caches were full and one of the group's sequences had to grow
  int64_t own_positions = 0;     // not shared, that it had reached when it was released
  double last_token_time = -1;   // < 0: no token yet
};

// Sequences of one request that were admitted before the first of them had read what they share, or had begun with it.
struct Scheduler::Cohort {
  Sequence* leader = nullptr;  // runs for all what they share; the others are then forked from it
  int64_t shared_tokens = 0;   // at the beginning; 0: there is nothing to share
  int members = 0;             // those that run
  bool forked = false;         // it is too late to join
  // What other requests may share as well, of what the leader began with. Short ones reserve their worst case, and
  // count all as their own.
  std::vector<KeptPages::Run> kept;
  int64_t kept_pages = 0;

  // What no member holds by itself. The page that a fork cuts is each one's own.
  int64_t pages() const { return std::max(shared_tokens / kCachePageTokens, kept_pages); }
  int64_t own_pages() const { return pages() - kept_pages; }
};

struct Scheduler::RequestState {
  uint64_t number = 0;
  uint64_t arrival = 0;
  Request request;
  std::shared_ptr<RequestSink> sink;
  Account* account = nullptr;
  int64_t bytes = 0;      // of memory that it takes while it waits
  bool is_short = false;  // it has little to read and to sample: it may take what is kept for such requests
  std::vector<Sequence> sequences;
  int live = 0;               // sequences that are not done
  int64_t prompt_scored = 0;  // with score_prompt: the rows of the positions before this one have been delivered
  int64_t prompt_read = 0;    // the most tokens of the prompt that any generation has read
  int losses = 0;             // generations that have ended since it last made progress
  bool paused = false;
  double paused_since = 0;
  double blocked_since = -1;    // when it first found no room since it has waited; < 0: it has not yet
  double held_until = 0;        // what was parked stays so until then
  bool wants_slot = false;      // in account->waiting: a sequence waits to be admitted
  bool counted_parked = false;  // in account->parked
  bool has_place = false;       // takes a place in the queue: no sequence runs
  int64_t kept_tokens = 0;      // of the prompt that were kept when it came; only with a deadline
  bool prepared = false;        // the keeper has nothing to bring for its next sequence
  int coming = -1;              // the replica to which what it should begin with is on its way; -1: none
  // The replica where it would be read first thanks to what is kept there (-1: none), and what it need not read there.
  int preferred = -1;
  int64_t preferred_tokens = 0;
  double peeked = -1;  // when it was last looked up which pages it could share

  // What runs of it:
  Group* group = nullptr;  // null: nothing
  int slots = 0;           // sequences
  std::vector<std::unique_ptr<Cohort>> cohorts;

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
  // The highest End it can come to. The last token of an answer is run only if it is kept.
  int64_t EndMax(const Sequence& sequence) const {
    if (request.score) return End(sequence);
    const int64_t answer = request.generate->max_tokens;
    return prompt_tokens() + (request.keep_as ? answer : std::max<int64_t>(answer - 1, 0));
  }
  // Where the next chunk has to end at the latest.
  int64_t ChunkEndMax(const Sequence& sequence) const {
    const int64_t shared = sequence.cohort->shared_tokens;
    const int64_t end = sequence.scheduled < shared ? shared : End(sequence);
    const std::vector<int64_t>& save_at = sequence.beginning.save_at;
    return sequence.saved < save_at.size() ? std::min(end, save_at[sequence.saved]) : end;
  }
  // Its tokens before `end`, which must be known. Only those that end beyond the prompt are copied, to `joined`.
  absl::Span<const int32_t> Tokens(const Sequence& sequence, int64_t end, std::vector<int32_t>* joined) const {
    const int64_t after = end - prompt_tokens();
    if (after <= 0) return absl::MakeConstSpan(request.prompt).first(end);
    joined->reserve(end);
    joined->assign(request.prompt.begin(), request.prompt.end());
    joined->insert(joined->end(), sequence.after_prompt.begin(), sequence.after_prompt.begin() + after);
    return *joined;
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
    return end == End(sequence) && (request.generate->max_tokens > 0 || request.keep_as) ? 1 : 0;
  }
  // How much of what it is to read may be kept.
  int64_t BeginMax(const Sequence& sequence) const {
    // Without a token to draw, the last one must be run.
    const bool may_draw = request.generate && (request.generate->max_tokens > 0 || request.keep_as);
    const int64_t end = may_draw ? End(sequence) : End(sequence) - 1;
    return request.score ? std::min(end, ScoredFrom(sequence, 0)) : end;
  }
  // What the workers have to know of a new sequence.
  StepPlan::NewSequence Opening(const Sequence& sequence) const {
    const std::vector<uint64_t>& restore = sequence.beginning.segments;
    if (request.score) return {.sequence = sequence.id, .restore = restore};
    const SamplingOptions& sampling = request.generate->sampling;
    return {.sequence = sequence.id,
            .sampling = &sampling,
            .seed = sampling.seed + sequence.index,
            .observed = sequence.after_prompt,
            .restore = restore,
            .draw = sequence.draws};
  }

  // A sequence that was admitted now could be forked from this cohort's leader; null: it would read the prompt itself.
  Cohort* OpenCohort() const {
    for (const auto& cohort : cohorts) {
      if (!cohort->forked) return cohort.get();
    }
    return nullptr;
  }
  // The next sequence to admit.
  Sequence* Next() {
    for (Sequence& sequence : sequences) {
      if (!sequence.done && sequence.id == 0) return &sequence;
    }
    return nullptr;
  }
  // The most tokens that it may use of its client's minute.
  int64_t CostMax() const {
    int64_t cost = prompt_tokens();
    if (request.generate) return cost + request.generate->samples * request.generate->max_tokens;
    for (const Sequence& sequence : sequences) cost += static_cast<int64_t>(sequence.after_prompt.size());
    return cost;
  }
  // Whether it has waited for room so long that it comes before others.
  bool Overdue(double now) const { return blocked_since >= 0 && now - blocked_since >= kTurnSeconds; }
  int64_t SharedTokens() const { return prompt_tokens() - 1; }  // that several sequences of it run once
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
  bool reads = false;  // it is not the one token of a decoding sequence
};

struct Scheduler::StepInFlight {
  uint64_t id = 0;
  std::vector<ChunkInFlight> chunks;  // in the order of their results: those without tokens, which only draw, first
  size_t draws = 0;                   // how many of these there are
  double seconds = 0;                 // that it should take in the slowest stage
  bool is_long = false;               // it has what needs longer than a Step by itself
};

// A sequence that was parked, for the next Step to save it before it is closed.
struct Scheduler::ParkedSequence {
  uint64_t sequence = 0;
  uint64_t request = 0;  // RequestState::number
  int index = 0;         // in RequestState::sequences
  int64_t position = 0;
};

// What a client has and wants.
struct Scheduler::Account {
  std::string name;
  uint64_t id = 0;
  ClientLimits limits;
  std::string key;  // in accounts_; empty: requests without a Client share the account, which has no limits
  TokenAllowance allowance;
  int admitted = 0;                                 // requests that have been admitted and have not ended
  int queued = 0;                                   // requests that have not been admitted
  int64_t queued_cost = 0;                          // CostMax of these
  int places = 0;                                   // requests of which no sequence runs
  int64_t place_bytes = 0;                          // of these
  int64_t slots = 0;                                // in all groups
  int64_t pages = 0;                                // in all groups
  uint64_t last_turn = 0;                           // when a sequence was last admitted, as a count of admissions
  int parked = 0;                                   // requests in `waiting` that have been admitted before
  std::map<QueueKey, RequestState*> waiting;        // with a sequence to admit
  std::map<QueueKey, RequestState*> waiting_short;  // those of them that are short
};

// What sequences that run hold of a group.
struct Scheduler::Holding {
  int sequences = 0;
  int64_t pages = 0;
  // What of these belongs to requests that are not short.
  int long_sequences = 0;
  int64_t long_pages = 0;
  int growing = 0;  // sequences that hold less than their worst case; none of them is short

  void Add(const RequestState& owner, int more_sequences, int64_t more_pages, int more_growing) {
    sequences += more_sequences;
    pages += more_pages;
    long_sequences += owner.is_short ? 0 : more_sequences;
    long_pages += owner.is_short ? 0 : more_pages;
    growing += more_growing;
  }
};

// What a client runs in one group.
struct Scheduler::Lane {
  Account* account = nullptr;
  Holding held;
  KeptPages kept;  // in `held`
  // The sequences with prompt to read, in two orders.
  std::set<ShortestKey> shortest;
  std::set<OldestKey> oldest;
  uint64_t last_long_turn = 0;  // Group::long_turns when one of its sequences last had one
  // Ids of decoding sequences with a token to run, longest waiting first; they may have ended or been paused since.
  std::deque<uint64_t> ready;
};

struct Scheduler::Group {
  Group(int replica, const GroupCapacity& capacity)
      : replica(replica),
        capacity(capacity),
        pages_max(CachePagesFor(capacity.cache_tokens)),
        cost(capacity.row_seconds) {}

  int replica = 0;
  GroupCapacity capacity;
  int64_t pages_max = 0;
  StepCost cost;
  double overdrawn_seconds = 0;    // what Steps have taken too much that other Steps have not made up for
  double decode_seconds = 0;       // of a Step's decoding sequences, but for those that are longer than a Step
  bool long_prompt_waits = false;  // a prompt's end was put off that is longer than a Step by itself
  bool long_prompt_last = false;   // the last chunk that was longer than a Step was one of a prompt
  uint64_t long_turns = 0;         // given to decoding sequences that are
  double measured_at = 0;          // when a Step was last measured

  Holding held;
  KeptPages kept;  // in `held`
  // Ids of decoding sequences whose next token needs one more page; some may have ended or been paused since.
  std::vector<uint64_t> full;
  int64_t prefill_tokens = 0;  // left to read by the sequences that are listed
  int reading = 0;             // these sequences
  int decoding = 0;            // sequences, but for paused ones

  // By client. Steps begin with another one each.
  std::vector<std::unique_ptr<Lane>> lanes;
  size_t first_to_decode = 0, first_to_read = 0;
  std::vector<uint64_t> close;         // for the next Step
  std::vector<ParkedSequence> parked;  // some of them, which it saves

  uint64_t last_step = 0;
  std::deque<StepInFlight> steps;                 // oldest first
  std::vector<std::vector<ChunkInFlight>> spare;  // emptied lists of chunks, kept for their memory

  // The seconds that a stage may take for a Step, see scheduler.h, TIME.
  bool has_target() const { return capacity.step_target_seconds > 0; }
  double target_seconds() const {
    return std::min(capacity.step_target_seconds / capacity.stages,
                    std::max(20 * cost.step_seconds(), kStepSecondsLeast));
  }
  double brief_seconds() const { return kBriefSeconds / capacity.stages; }
  // A token that takes longer needs a Step of its own length.
  double TokenSecondsMax() const {
    if (!has_target()) return std::numeric_limits<double>::infinity();
    return std::max(target_seconds(), 8 * cost.step_seconds());
  }
  // The decoding sequences of a Step take so long at most, if they are several.
  double DecodeSecondsMax() const {
    if (!has_target()) return std::numeric_limits<double>::infinity();
    return std::min(TokenSecondsMax(), std::max(8 * cost.step_seconds(), brief_seconds()));
  }
  // A Step takes so long at most after prompts have been added to decoding sequences that take `spent`.
  double PrefillSecondsMax(double spent) const {
    if (!has_target()) return std::numeric_limits<double>::infinity();
    if (decoding == 0) return std::max(target_seconds(), 10 * cost.step_seconds());
    const double alone = std::max(decode_seconds, cost.step_seconds());
    const double wanted = std::max((1 + std::max(reading, 2)) * alone, brief_seconds());
    return std::max(std::min(wanted, target_seconds()), spent + std::min(spent, TokenSecondsMax()) / 2);
  }

  Lane* LaneOf(Account& account) {
    for (const auto& lane : lanes) {
      if (lane->account == &account) return lane.get();
    }
    lanes.push_back(std::make_unique<Lane>());
    lanes.back()->account = &account;
    return lanes.back().get();
  }
  void Remove(const Lane* lane) {
    lanes.erase(std::find_if(lanes.begin(), lanes.end(), [&](const auto& one) { return one.get() == lane; }));
  }
  // What is kept for short requests.
  int slots_kept() const { return capacity.max_sequences < 4 ? 0 : std::max(capacity.max_sequences / 8, 1); }
  int64_t pages_kept() const { return std::min(slots_kept() * CachePagesFor(kShortTokens), pages_max / 8); }
  // Whether a sequence that needs `pages` has room beside `others`. With `only_kept`, which is for short requests, only
  // in what is kept for them.
  bool HasRoom(const Holding& others, const RequestState& state, int64_t pages, bool only_kept = false) const {
    const int64_t after = others.pages + pages;
    if (others.sequences >= capacity.max_sequences || after > pages_max) return false;
    // One page for each sequence that may grow stays free.
    const bool leaves_growth = after + others.growing <= pages_max;
    if (state.is_short) {
      const bool kept =
          others.sequences - others.long_sequences < slots_kept() && after - others.long_pages <= pages_kept();
      return kept || (!only_kept && leaves_growth);
    }
    if (others.long_sequences == 0) return leaves_growth;  // or it would never run if it needs everything
    return leaves_growth && others.long_pages + pages + others.growing <= pages_max - pages_kept() &&
           (state.slots == 0 || others.long_sequences < capacity.max_sequences - slots_kept());
  }
  // Whether a sequence that grows may have one more page. It is never short.
  bool HasPage() const {
    return held.pages < pages_max && (held.long_sequences == 1 || held.long_pages < pages_max - pages_kept());
  }
  bool EverFits(const RequestState& state) const {
    const int64_t longest = state.LongestTokens();
    // Sequences that find no slot wait for those of their own request.
    return CachePagesFor(longest) <= pages_max && longest <= capacity.max_sequence_tokens;
  }
  // How much is ahead of a new request, in tokens: a sequence counts as 16.
  int64_t load() const { return prefill_tokens + int64_t{16} * held.sequences; }
};

}  // namespace goldfinch

#endif  // GOLDFINCH_COORDINATOR_SCHEDULER_SCHEDULER_STATE_H_
