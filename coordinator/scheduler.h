// Decides what each Step computes. Pure: no clock, no I/O, no thread of its own; whole scenarios are tested as data.
//
// Requests of all groups wait in one queue, ordered by priority, then by arrival. The first one is admitted to the
// least loaded group that has the state slots and the cache pages of its worst-case memory (every sample as long as
// max_tokens allows), so nothing that runs ever runs out of memory. While the first one does not fit, nothing behind it
// is admitted: otherwise a large request could starve.
//
// A Step has a budget of tokens. Decoding sequences come first with one token each, those that have waited longest
// first; a pipeline of S stages takes at most 1/S of them into one Step, so that every stage has some to work on.
// Pre-fill chunks fill the rest, highest priority first. Within a priority, half of the budget goes to the requests
// with the fewest tokens left to read and the other half to the oldest requests; what one half does not use goes to the
// other. So a short prompt overtakes long ones, and a long one always makes progress.
//
// The sequences of a request that share a prompt (samples, continuations) run it once, all but its last token; then the
// sequence that ran it is forked, and each one goes on by itself.
//
// Implementation: scheduler.cc keeps requests and groups, scheduler_plan.cc plans Steps, scheduler_results.cc applies
// their results; scheduler_state.h has the state that they share.
#ifndef GOLDFINCH_COORDINATOR_SCHEDULER_H_
#define GOLDFINCH_COORDINATOR_SCHEDULER_H_

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "coordinator/dispatcher.h"
#include "coordinator/step.h"

namespace goldfinch {

// What a group of workers can hold, and how much it can do in one Step.
struct GroupCapacity {
  int stages = 1;
  int max_sequences = 1;
  int64_t cache_tokens = 0;         // over all sequences
  int64_t max_sequence_tokens = 0;  // of one sequence
  int64_t max_step_tokens = 1;      // of one Step
  int64_t max_logit_rows = 1;       // of one Step
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

  int64_t prompt_tokens = 0;  // tokens of prompts that were read, counted again when they are read again
  int64_t completion_tokens = 0;
  int64_t recoveries = 0;                   // requests that went back to the queue because a generation ended
  std::vector<double> first_token_seconds;  // since Submit, one for each request
  std::vector<double> inter_token_seconds;  // between two tokens of a sample
  std::vector<Ended> ended;
};

struct GroupLoad {
  int sequences = 0;
  int sequences_max = 0;
  int64_t cache_tokens_reserved = 0;
  int64_t cache_tokens_max = 0;
  int steps_in_flight = 0;
};

// Not thread-safe. `now` is in seconds and never goes back. RequestSinks are called from within these calls.
class Scheduler {
 public:
  // `max_queue`: the most requests that may wait. `replicas`: how many groups there can be. While one of them is not
  // ready, a request that is too large for the others waits for it.
  explicit Scheduler(int max_queue, int replicas = 1);
  ~Scheduler();
  // `vocab_size`: larger ids in results are errors. The bytes of a token in the caches, and in those of a transformer
  // of this shape, are for RequestUsage. Call it before the first GenerationReady.
  void SetModel(int64_t vocab_size, int64_t cache_bytes_per_token, int64_t transformer_bytes_per_token);

  // Takes the request, or calls OnDone at once: with RESOURCE_EXHAUSTED if the queue is full, or if all groups are
  // ready and it can never fit any. `number` must be new.
  void Submit(uint64_t number, Request request, std::shared_ptr<RequestSink> sink, double now);
  // Ends a request with `status`; its memory is free for the next Step. Does nothing if it has ended.
  void Cancel(uint64_t number, const absl::Status& status, double now);
  void CancelAll(const absl::Status& status, double now);
  // Ends the requests that no group has admitted.
  void CancelWaiting(const absl::Status& status, double now);
  // Lets a request go on after RequestSink::Verdict::kPause.
  void Resume(uint64_t number);

  // A group serves from now on as this replica.
  void GenerationReady(int replica, const GroupCapacity& capacity, double now);
  // The replica's group has ended. Its requests wait again and later go on as if nothing had happened. A request that
  // has been through kLossesMax ends without any progress ends with INTERNAL: it may be what brings groups down.
  void GenerationEnded(int replica, double now);
  static constexpr int kLossesMax = 6;

  // Fills `plan` with the next Step of a replica's group. False if there is nothing to do now.
  bool NextStep(int replica, double now, StepPlan* plan);
  // Takes the results of the oldest Step in flight; moves logits and other large parts out of `result`. An error means
  // that the answer does not fit the Step: the group is broken, and the caller must end its generation.
  absl::Status Apply(int replica, StepResult* result, double now);

  int running() const { return static_cast<int>(requests_.size() - waiting_.size()); }
  int waiting() const { return static_cast<int>(waiting_.size()); }
  bool has_group() const { return !groups_.empty(); }
  GroupLoad Load(int replica) const;
  SchedulerEvents TakeEvents() { return std::exchange(events_, {}); }

 private:
  struct RequestState;
  struct Sequence;
  struct Group;
  struct ChunkInFlight;
  struct StepInFlight;
  // (-priority, arrival): the order of the queue.
  using QueueKey = std::tuple<int, uint64_t>;
  // (-priority, tokens left, arrival, sequence id) and (-priority, arrival, sequence id): the orders of pre-fill.
  using ShortestKey = std::tuple<int, int64_t, uint64_t, uint64_t>;
  using OldestKey = std::tuple<int, uint64_t, uint64_t>;

  // scheduler.cc
  bool all_groups_ready() const { return groups_.size() == replicas_; }
  bool EverFits(const RequestState& state) const;
  absl::Status TooLarge(const RequestState& state) const;
  void Pause(RequestState& state);
  void End(RequestState& state, const absl::Status& status, double now);
  void Admit(double now);
  void Start(RequestState& state, Group& group, double now);
  void Activate(Sequence& sequence, int64_t position);
  void ListPrefill(Sequence& sequence);
  void UnlistPrefill(Sequence& sequence);
  void Release(Sequence& sequence);

  // scheduler_plan.cc
  void PlanDecode(Group& group, StepPlan* plan);
  void PlanPrefill(Group& group, StepPlan* plan);
  std::vector<Sequence*> GrantPrefill(Group& group, int64_t budget);
  void PlanChunk(Group& group, Sequence& sequence, int64_t tokens, StepPlan* plan);
  void PlanForks(RequestState& state, StepPlan* plan);

  // scheduler_results.cc
  absl::Status ApplyChunk(const ChunkInFlight& chunk, Sequence& sequence, StepResult::Chunk* result, double now);
  absl::Status TakeToken(Sequence& sequence, StepResult::Chunk* result, double now);
  absl::Status TakeScores(const ChunkInFlight& chunk, Sequence& sequence, StepResult::Chunk* result, double now);
  void FinishSequence(Sequence& sequence, Finish finish, double now);

  const int max_queue_;
  const size_t replicas_;
  int64_t vocab_size_ = int64_t{1} << 31;
  int64_t cache_bytes_per_token_ = 0;
  int64_t transformer_bytes_per_token_ = 0;
  uint64_t last_arrival_ = 0;
  uint64_t last_sequence_ = 0;
  absl::flat_hash_map<uint64_t, std::unique_ptr<RequestState>> requests_;  // by number
  std::map<QueueKey, RequestState*> waiting_;
  absl::flat_hash_map<uint64_t, Sequence*> sequences_;  // by id: those that hold memory of a group
  std::map<int, std::unique_ptr<Group>> groups_;        // by replica: those that are ready
  SchedulerEvents events_;
};

}  // namespace goldfinch

#endif  // GOLDFINCH_COORDINATOR_SCHEDULER_H_
