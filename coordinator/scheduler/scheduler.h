// Decides what each Step computes. Pure: no clock, no I/O, no thread of its own; whole scenarios are tested as data.
//
// CLIENTS. Request::client says who asks; requests without a client are one client's too. What a client has of the
// server is its share: of the slots or of the cache pages of all groups, whichever is larger.
//
// THE QUEUE. A client's requests wait by priority, then by arrival. The next one to be admitted is the first one of
// some client: of those with the highest priority that of the client with the smallest share, and of equals that of the
// client whose last turn is the longest ago. Its sequences (samples, continuations) are admitted one by one, each to
// the least loaded group (see KEPT TEXTS) that has a state slot and the cache pages that it reserves. A request that
// does not fit yet blocks those of its own client, those of a lower priority and, once it has waited for kTurnSeconds,
// all others: otherwise a large request could starve. It blocks nobody but its own client while it would not even fit
// beside what that runs, and short requests only as the next but one paragraph says.
//
// MEMORY. A sequence can run only where a group holds the pages of its worst case, which is as long as max_tokens
// allows, so it could run there alone to its end. What it reserves of them at admission is what is likely: its prompt
// and an answer of average length, as answers have been lately. From then on it gets page by page as it decodes, always
// before the Step that needs the page. To be admitted, it must leave one page for each sequence that may grow. If there
// is none left all the same, one sequence of the group is parked: of the paused ones, or else of all, those of the
// lowest priority, of them those of the client with the largest share, of them the one with the fewest tokens to read
// again; it may be the very one that grows. What was parked so reserves twice as much beyond its tokens each time, and
// is not parked again for this before it has used that up. So every sequence comes to its end. Without `overcommit`,
// all reserve their worst case.
//
// SHORT REQUESTS are those that read and sample at most kShortTokens, over all their sequences. They reserve their
// worst case. One slot in eight, at least one of four or more, is kept for them, and as many pages as fill these, but
// no more than an eighth. Other requests get none of these pages, unless nothing but short requests runs beside them.
// They may borrow such a slot for a request of which nothing else runs. So one request of many long sequences leaves
// room, whatever its priority, and many users with one long sequence each leave no slot idle.
//   - A request that waits does not block short ones behind it, in its own client's queue or in others, before it has
//     waited for kTurnSeconds. From then on they may take only what is kept for them, and nothing if it is what the
//     request waits for: because it is short itself, or needs more pages than others may have.
//   - What is behind a request of a higher priority, or one that stays parked for kHoldSeconds, is admitted so, too.
//
// PLACES. A request of which no sequence runs takes a place in the queue, and its bytes. If places or bytes run out,
// the client with the most of them (the new request counts) loses: if another client has more than the one that asks,
// its request that would be served last and has never run ends with RESOURCE_EXHAUSTED, or its last one that was parked
// because its client does not read; otherwise the new one does.
//
// PARKING. If the next request does not fit, sequences of others give up their slots. They wait and are later read
// again, so that their clients get the very tokens that they would have got. A sequence may be parked for a request
//   - if its client has not read for kPauseSeconds, and for as long as catching up took, for whatever waits, its own
//     client's requests included;
//   - if its priority is lower, its own client's included, once it has been served for kServiceSeconds;
//   - if its priority is not higher, and after that its client's share is still not smaller than the other's will be,
//     once it has been served for kServiceSeconds;
//   - if its priority is not higher, its client has the larger share, and the request has waited for kTurnSeconds, once
//     the sequence has been served for kTurnSeconds: so clients whose requests only fit one after another take turns;
//   - if its priority is not higher, and it has what is kept for short requests, for a short request that has waited
//     for kTurnSeconds, its own client's included, once the sequence has been served for kTurnSeconds.
// Service counts from the moment when a sequence has caught up with what it had reached before, and must also last as
// long as catching up took: at least half of the time of a slot is useful. Before it has caught up, a sequence is
// parked only after twice as long as the last time. One that has not begun costs nothing, and the second and the third
// rule park it at once. Of those that may be parked, the paused ones go first, then those of the lowest priority, then
// those of the largest share, then those with the fewest tokens to read again. What was parked for a client's sake
// stays so for kHoldSeconds, and with it what is behind it in its own client's queue, to leave the slot to that
// client's next.
//
// LIMITS. A client's requests wait while it has max_running running ones, or while its minute's tokens are used up: a
// request takes what it may need of them at most when it is admitted, and gives back what it did not use when it ends.
// RESOURCE_EXHAUSTED if it has max_queued waiting ones already, or its tokens would not do for kTokenWaitSeconds.
//
// DEADLINES. A request ends with DEADLINE_EXCEEDED at once if it would certainly miss its deadline: if what it waits
// for a slot and for its first token beside the others, or for its scores, is estimated to be a quarter longer than
// that, or still longer if Steps have not been measured for a while. The rest of an answer does not count, as it may be
// short.
//
// STEPS. A Step has a budget of tokens and one of time. Decoding sequences come first with one token each, in turns
// between the clients; of each client's, those that have waited longest go first. A pipeline of S stages takes at most
// 1/S of them into one Step, so that every stage has some to work on. While there are prompts to read, they take three
// quarters of the tokens at most. Pre-fill chunks fill the rest, highest priority first. Within a priority, the clients
// share it equally, and of a client's part one half goes to the requests with the fewest tokens left to read and the
// other to the oldest requests; what one does not use goes to the others. So a short prompt overtakes long ones, and a
// long one always makes progress.
//
// TIME. The time of a Step is estimated from its tokens and from the positions that they attend to, by what Steps have
// been measured to take (step_cost.h). A Step costs some time whatever is in it, step_seconds. A stage has
// target_seconds for a Step: the group's step target divided by its number of stages, but no more than 20 step_seconds
// or kStepSecondsLeast, as longer Steps would make all wait longer and get hardly more done.
// Below, brief_seconds is kBriefSeconds divided by the number of stages.
//   - Decoding takes as many sequences into a Step as fit max(8 step_seconds, brief_seconds). The others go into the
//     next ones: longer Steps would get hardly more done.
//   - While anything decodes, a Step may take this time after prompts have been added. `decode` is what its decoding
//     sequences take, and `readers` is the number of sequences that read:
//       max(min(max((1 + max(readers, 2)) * decode, brief_seconds), target_seconds), 1.5 decode)
//     A sequence decodes from the Step on that samples its first token.
//   - While nothing decodes, they get max(target_seconds, 10 step_seconds): nine tenths of the best rate.
// A token that takes longer than max(target_seconds, 8 step_seconds), or a prompt's end that takes longer than prompts
// get, runs in a Step of its own length. What such Steps take too much is counted, and there is no further one before
// other Steps have had as much time, unless there is nothing else to do. So no sequence is too long to be served, and
// those that are long have half of the time at most.
//
// KEPT TEXTS. A sequence that reads its prompt begins with what is kept of it (prefix_keeper.h), but for tokens whose
// scores are wanted. If all of it is kept, nothing is run, and its next token is drawn from the logits that were kept,
// too. It is saved where the keeper says, in its answer as well, for which its chunks end there, and when it is parked.
// What it should begin with may have to be brought first: then it waits, and others pass it. Of several groups that
// have room, it goes to the one with the least load in tokens, less those that it would not have to read there
// (preferred_tokens): a long text is worth a wait, and a short one is read again elsewhere. A request with keep_as runs
// its last token as well, and is saved there.
//
// The workers share the full pages of kept texts between all sequences that began with them, so they are counted once:
// while one of these runs, another needs only the pages of what follows. A sequence that finds no room otherwise is
// admitted into what this leaves. Short requests reserve their worst case without it.
//
// FORKS. The sequences of a request that share a prompt and are admitted before it has been read run it once, all but
// its last token; then the sequence that ran it is forked, and each one goes on by itself. If all of that is kept, one
// sequence begins with it, and those that have been admitted by then are copies of it.
//
// Implementation: scheduler.cc keeps requests and groups, scheduler_admission.cc decides who runs and who is parked,
// scheduler_memory.cc what is reserved, scheduler_queue.cc keeps clients and the places in the queue, scheduler_plan.cc
// plans Steps, scheduler_results.cc applies their results, scheduler_estimate.cc looks ahead; scheduler_state.h has the
// state that they share.
#ifndef GOLDFINCH_COORDINATOR_SCHEDULER_SCHEDULER_H_
#define GOLDFINCH_COORDINATOR_SCHEDULER_SCHEDULER_H_

#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "coordinator/scheduler/dispatcher.h"
#include "coordinator/scheduler/prefix_keeper.h"
#include "coordinator/scheduler/step.h"

namespace goldfinch {

// What a group of workers can hold, and how much it can do in one Step.
struct GroupCapacity {
  int stages = 1;
  int max_sequences = 1;
  int64_t cache_tokens = 0;         // over all sequences
  int64_t max_sequence_tokens = 0;  // of one sequence
  int64_t max_step_tokens = 1;      // of one Step
  int64_t max_logit_rows = 1;       // of one Step
  double step_target_seconds = 0;   // how long a Step should take through all stages; 0: as long as it likes
  double row_seconds = 0;           // what a stage should take for a token of a prompt; 0: unknown
};

// What has happened since TakeEvents was last called; for metrics.
struct SchedulerEvents {
  struct Ended {
    std::string id;  // Request::id
    absl::Status status;
    std::vector<Finish> finishes;  // of its samples
    double seconds = 0;            // since Submit
    RequestUsage usage;
  };

  // The sums of both over all requests that end well are those of their usage.
  int64_t prompt_tokens = 0;      // of prompts that were read, each request's once
  int64_t cached_tokens = 0;      // of these, those that kept segments spared
  int64_t completion_tokens = 0;  // that were sampled, or scored in continuations
  int64_t sampled_tokens = 0;     // of these, those that were sampled
  int64_t sampled_positions = 0;  // that they attend to: each the prompt, and its sample up to it
  // Tokens that were run again: after a loss or a parking, or the prompt's for a further sample that was not forked in
  // time, and its last one for every further sample.
  int64_t reread_tokens = 0;
  int64_t parkings = 0;                     // sequences that gave up their slot, for others or for want of cache
  int64_t recoveries = 0;                   // requests that went back to the queue because a generation ended
  std::vector<double> first_token_seconds;  // since Submit, one for each request
  std::vector<double> inter_token_seconds;  // between two tokens of a sample
  std::vector<Ended> ended;
};

struct GroupLoad {
  int sequences = 0;
  int sequences_max = 0;
  int64_t cache_tokens_used = 0;      // that Steps have taken, in whole pages, as are the next two
  int64_t cache_tokens_reserved = 0;  // of those that run
  int64_t cache_tokens_max = 0;
  int steps_in_flight = 0;
};

// How much may wait: requests of which nothing runs.
struct QueueLimits {
  int requests = 1024;
  int64_t bytes = int64_t{256} << 20;  // of prompts and whatever else is kept for the requests
};

// Not thread-safe. `now` is in seconds and never goes back. RequestSinks are called from within these calls.
class Scheduler {
 public:
  // `replicas`: how many groups there can be. While one of them is not ready, a request that is too large for the
  // others waits for it. `overcommit`: whether a sequence may be admitted with less memory than its worst case.
  explicit Scheduler(const QueueLimits& queue, int replicas = 1, bool overcommit = true);
  ~Scheduler();
  // `vocab_size`: larger ids in results are errors. The bytes of a token in the caches, and in those of a transformer
  // of this shape, are for RequestUsage. Call it before the first GenerationReady.
  void SetModel(int64_t vocab_size, int64_t cache_bytes_per_token, int64_t transformer_bytes_per_token,
                const AttentionShape& attention = {});

  // Sequences begin with what `keeper` has of their texts, and are saved where it says; null: they read everything. It
  // must outlive the scheduler. Call it before the first Submit.
  void SetKeeper(PrefixKeeper* keeper) { keeper_ = keeper; }

  // Takes the request, or calls OnDone at once: with RESOURCE_EXHAUSTED if the queue is full, its client's limits are
  // reached, or all groups are ready and it can never fit any, and with DEADLINE_EXCEEDED as above. It may also end
  // another request with RESOURCE_EXHAUSTED, in whose place it waits. `number` must be new.
  void Submit(uint64_t number, Request request, std::shared_ptr<RequestSink> sink, double now);
  // Ends a request with `status`; its memory is free for the next Step. Does nothing if it has ended.
  void Cancel(uint64_t number, const absl::Status& status, double now);
  void CancelAll(const absl::Status& status, double now);
  // Ends the requests of which nothing runs.
  void CancelWaiting(const absl::Status& status, double now);
  // Lets a request go on after RequestSink::Verdict::kPause.
  void Resume(uint64_t number);
  // What the keeper was to bring for the request (PrefixKeeper::Prepare) has come or has failed. Does nothing if the
  // request does not wait for it.
  void Prepared(uint64_t number, double now);

  // A group serves from now on as this replica.
  void GenerationReady(int replica, const GroupCapacity& capacity, double now);
  // The replica's group has ended. Its requests wait again and later go on as if nothing had happened. A request that
  // has been through kLossesMax ends without any progress ends with INTERNAL: it may be what brings groups down.
  void GenerationEnded(int replica, double now);
  static constexpr int kLossesMax = 6;

  static constexpr double kStepSecondsLeast = 0.01;  // far above what messages between coordinator and workers take
  static constexpr double kBriefSeconds = 0.002;     // some times what they take
  static constexpr int64_t kShortTokens = 1024;
  static constexpr int64_t kAnswerTokens = 256;  // of an average answer, before there are any

  static constexpr double kServiceSeconds = 0.02;
  static constexpr double kTurnSeconds = 5;
  static constexpr double kPauseSeconds = 1;
  static constexpr double kHoldSeconds = 1;
  static constexpr double kTokenWaitSeconds = 60;

  // Fills `plan` with the next Step of a replica's group. False if there is nothing to do now.
  bool NextStep(int replica, double now, StepPlan* plan);
  // Takes the results of the oldest Step in flight; moves logits and other large parts out of `result`. An error means
  // that the answer does not fit the Step: the group is broken, and the caller must end its generation.
  absl::Status Apply(int replica, StepResult* result, double now);
  // A Step of this work has taken so long in the slowest stage of the replica's group.
  void Measured(int replica, const StepWork& work, double seconds, double now);
  // What a stage of the replica's group has for a Step, as above; 0: there is no target.
  double StepTargetSeconds(int replica) const;

  // Requests of which a sequence runs, and the others.
  int running() const { return static_cast<int>(requests_.size()) - places_; }
  int waiting() const { return places_; }
  bool has_group() const { return !groups_.empty(); }
  GroupLoad Load(int replica) const;
  SchedulerEvents TakeEvents() { return std::exchange(events_, {}); }

 private:
  struct RequestState;
  struct Sequence;
  struct Cohort;
  struct Account;
  struct Holding;
  struct Lane;
  struct Group;
  struct ChunkInFlight;
  struct StepInFlight;
  struct ParkedSequence;
  // (-priority, arrival): the order of a client's queue.
  using QueueKey = std::tuple<int, uint64_t>;
  // (-priority, tokens left, arrival, sequence id) and (-priority, arrival, sequence id): the orders of pre-fill.
  using ShortestKey = std::tuple<int, int64_t, uint64_t, uint64_t>;
  using OldestKey = std::tuple<int, uint64_t, uint64_t>;

  // scheduler.cc
  bool all_groups_ready() const { return groups_.size() == replicas_; }
  void GroupsChanged();
  void Pause(RequestState& state, double now);
  void End(RequestState& state, const absl::Status& status, double now);
  void Start(RequestState& state, Sequence& sequence, Group& group, double now);
  bool Prepare(RequestState& state, const Sequence& next, double now);
  int64_t Begin(Sequence& sequence, double now);
  static void SaveToEnd(Sequence& sequence, int64_t position);
  void Activate(Sequence& sequence, int64_t position);
  void ListPrefill(Sequence& sequence);
  void UnlistPrefill(Sequence& sequence);
  void Release(Sequence& sequence);

  // scheduler_admission.cc
  struct Candidate;
  bool EverFits(const RequestState& state) const;
  absl::Status TooLarge(const RequestState& state) const;
  double Share(int64_t slots, int64_t pages) const;
  double Share(const Account& account) const;
  void Admit(double now);
  bool AdmitOne(double now);
  std::vector<Candidate> Candidates(double now);
  bool NeedsKept(RequestState& state) const;
  static bool MayRun(const RequestState& state, int replica, const Group& group);
  Group* FindRoom(RequestState& state, const Sequence& next, bool only_kept, double now);
  Group* MakeRoom(const RequestState& state, const Sequence& next, double now);
  bool FitsBesideOwn(const RequestState& state, const Sequence& next) const;
  std::vector<Sequence*> Victims(const RequestState& state, const Sequence& next, const Group& group, double now) const;
  void Park(Sequence& sequence);

  // scheduler_memory.cc
  int64_t PagesToReserve(const RequestState& state, const Sequence& sequence) const;
  int64_t NextPages(const RequestState& state, const Sequence& next) const;
  bool HasRoomBesideKept(RequestState& state, const Sequence& next, const Group& group, double now);
  static int64_t HeldPages(const Sequence& sequence);
  int64_t UsedPages(const Group& group) const;
  void Hold(const Sequence& sequence, int sequences, int64_t pages, int growing);
  void HoldKept(const Sequence& sequence, bool more);
  void Grow(Group& group, double now);
  Sequence& GrowthVictim(Sequence& grower, double now);
  void LearnAnswer(int64_t tokens);

  // scheduler_queue.cc
  Account& AccountOf(const Request& request, double now);
  void Forget(Account& account, double now);
  void Requeue(RequestState& state);
  absl::Status ClientLimit(const RequestState& state, double now) const;
  bool QueueOverflows() const;
  absl::Status QueueFull() const;
  RequestState* Evictable(const Account& account, const RequestState& newest) const;
  bool MakePlace(const RequestState& newest, double now);

  // scheduler_plan.cc
  bool WantsStep(const Group& group) const;
  bool PlanDecode(Group& group, StepPlan* plan);
  Sequence* NextToDecode(Lane& lane);
  template <typename Grant>
  void GrantLane(const Lane& lane, int priority, int64_t budget, const Grant& grant);
  bool PlanPrefill(Group& group, StepPlan* plan);
  std::vector<Sequence*> GrantPrefill(Group& group, int64_t budget);
  int64_t TokensWithin(const Group& group, const Sequence& sequence, int64_t tokens, const StepWork& before,
                       double seconds) const;
  StepWork PrefillWork(const Sequence& sequence, int64_t tokens) const;
  void PlanOpening(const Group& group, Sequence& sequence, StepPlan* plan);
  void PlanDraw(Group& group, Sequence& sequence, StepPlan* plan);
  static void AwaitDraw(Group& group, Sequence& sequence);
  void PlanChunk(Group& group, Sequence& sequence, int64_t tokens, StepPlan* plan);
  void PlanParked(Group& group, StepPlan* plan);
  void PlanSave(const Group& group, Sequence& sequence, bool logits, StepPlan* plan);
  void PlanForks(RequestState& state, Cohort& cohort, StepPlan* plan);
  void PlanCopies(Group& group, const Sequence& sequence, StepPlan* plan);

  // scheduler_estimate.cc
  StepWork WorkOf(const RequestState& state) const;
  double TokensRead(const Group& group, const RequestState& state, double tokens) const;
  double ReadSeconds(const Group& group, const RequestState& state) const;
  double QueueSeconds(const Group& group, const RequestState& state, double now) const;
  absl::Status CheckDeadline(const RequestState& state, bool admitted, double now) const;

  // scheduler_results.cc
  void CountChunk(const ChunkInFlight& chunk, Sequence& sequence, double now);
  absl::Status ApplyChunk(const ChunkInFlight& chunk, Sequence& sequence, StepResult::Chunk* result, double now);
  absl::Status TakeToken(Sequence& sequence, StepResult::Chunk* result, double now);
  absl::Status TakeScores(const ChunkInFlight& chunk, Sequence& sequence, StepResult::Chunk* result, double now);
  void FinishSequence(Sequence& sequence, Finish finish, double now);

  const QueueLimits queue_;
  const size_t replicas_;
  const bool overcommit_;
  PrefixKeeper* keeper_ = nullptr;
  int64_t vocab_size_ = int64_t{1} << 31;
  int64_t cache_bytes_per_token_ = 0;
  int64_t transformer_bytes_per_token_ = 0;
  AttentionShape attention_;
  uint64_t last_arrival_ = 0;
  uint64_t last_sequence_ = 0;
  uint64_t last_account_ = 0;
  uint64_t last_turn_ = 0;
  absl::flat_hash_map<uint64_t, std::unique_ptr<RequestState>> requests_;  // by number
  absl::flat_hash_map<std::string, std::unique_ptr<Account>> accounts_;    // by name, with a letter before it
  size_t accounts_sweep_ = 64;                                             // so many accounts are looked through
  std::map<uint64_t, Account*> waiting_;                                   // by id: those with a sequence to admit
  int places_ = 0;                                                         // requests of which no sequence runs
  int64_t place_bytes_ = 0;
  int64_t slots_max_ = 0, pages_max_ = 0;               // of all groups
  double answer_tokens_ = kAnswerTokens;                // what answers have had lately, on average
  bool changed_ = false;                                // something may fit that did not when Admit last looked
  double next_look_ = 0;                                // when Admit looks in any case
  absl::flat_hash_map<uint64_t, Sequence*> sequences_;  // by id: those that hold memory of a group
  std::map<int, std::unique_ptr<Group>> groups_;        // by replica: those that are ready
  SchedulerEvents events_;
  double step_time_ = 0;             // NextStep's `now`
  std::vector<Sequence*> put_back_;  // PlanDecode's, kept for its memory, as is the next one
  std::vector<int32_t> joined_;      // tokens of a prompt and of what comes after it
};

}  // namespace goldfinch

#endif  // GOLDFINCH_COORDINATOR_SCHEDULER_SCHEDULER_H_
