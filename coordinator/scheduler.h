// Decides what each Step computes. Pure: no clock, no I/O, no thread of its own; whole scenarios are tested as data.
//
// Requests wait in one queue for all groups, in order of priority, then of arrival. The first one is admitted to the
// least loaded group that has the state slots and cache pages of its longest possible course, so nothing that runs is
// ever short of memory; while it does not fit, nothing behind it is admitted (else a large request could wait for
// ever).
//
// A Step has a budget of tokens. First come decoding sequences, a token each, those that have waited longest first; a
// pipeline of S stages takes at most 1/S of them into one Step, so that every stage has some to work on. Pre-fill
// chunks fill the rest: the highest priority first; within it, half of the budget goes to the requests with the least
// left to read, the other half to the oldest, and what one half does not use to the other. So a short prompt overtakes
// long ones, and a long one always gets half of what is there.
//
// Members of a request that share a prompt (samples, continuations) run all of it but its last token once; then each is
// forked and goes on for itself.
#ifndef GOLDFINCH_COORDINATOR_SCHEDULER_H_
#define GOLDFINCH_COORDINATOR_SCHEDULER_H_

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
#include "absl/types/span.h"
#include "base/sampling.h"
#include "base/stage_memory.h"
#include "coordinator/dispatcher.h"

namespace goldfinch {

namespace cluster::v1 {
class ChunkResult;
class StepDone;
}  // namespace cluster::v1

// What a group of workers can hold and do at a time.
struct GroupCapacity {
  int stages = 1;
  int max_sequences = 1;
  int64_t cache_tokens = 0;         // over all sequences
  int64_t max_sequence_tokens = 0;  // of one sequence
  int64_t max_step_tokens = 1;
  int64_t max_logit_rows = 1;  // of one Step
};

// One Step as data. Spans and pointers are valid until the scheduler's next call.
struct StepPlan {
  struct NewSequence {
    uint64_t sequence = 0;
    const SamplingOptions* sampling = nullptr;  // null: it does not sample
    uint64_t seed = 0;                          // in place of sampling->seed
    absl::Span<const int32_t> observed = {};    // tokens of the answer so far
  };
  struct Chunk {
    uint64_t sequence = 0;
    int64_t position = 0;
    int64_t ids_begin = 0;  // into `ids`
    int64_t tokens = 0;
    int64_t logit_rows = 0;
    bool sample = false;
    int64_t targets_begin = -1;  // into `targets`, logit_rows of them; -1: nothing to score
    int top_logprobs = 0;
    bool logits = false;
    int64_t forks_begin = 0;  // into `forks`
    int64_t forks = 0;
  };

  uint64_t id = 0;
  std::vector<uint64_t> close;
  std::vector<NewSequence> open;
  std::vector<Chunk> chunks;
  std::vector<int32_t> ids;
  std::vector<int32_t> targets;
  std::vector<NewSequence> forks;
  int64_t prefill_tokens = 0;  // of `ids`, those that are not of decoding sequences

  void Clear();
};

// What has happened since it was last taken; for metrics.
struct SchedulerEvents {
  struct Ended {
    std::string id;
    absl::Status status;
    std::vector<Finish> finishes;  // of its samples
    double seconds = 0;            // from Submit on
    RequestUsage usage;
  };

  int64_t prompt_tokens = 0;  // read, once for each time that they were
  int64_t generation_tokens = 0;
  int64_t recoveries = 0;
  std::vector<double> first_token_seconds;  // from Submit on
  std::vector<double> inter_token_seconds;
  std::vector<Ended> ended;
};

struct GroupLoad {
  int sequences = 0;
  int sequences_max = 0;
  int64_t cache_tokens_reserved = 0;
  int64_t cache_tokens_max = 0;
  int steps_in_flight = 0;
};

class Scheduler {
 public:
  // `max_queue`: requests that may wait. `places`: groups there can be; while one is not up, a request that is too
  // large for the others waits for it.
  explicit Scheduler(int max_queue, int places = 1);
  ~Scheduler();
  // Bytes a token are for RequestUsage. Before the first group.
  void SetModel(int64_t vocab_size, int64_t cache_bytes_per_token, int64_t transformer_bytes_per_token);

  // Takes the request, or ends it with OnDone at once: RESOURCE_EXHAUSTED if the queue is full or it can never fit the
  // groups that are up. `number` must be new; `now` is in seconds and never goes back.
  void Submit(uint64_t number, Request request, std::shared_ptr<RequestSink> sink, double now);
  // Ends a request; its memory is free for the next Step.
  void Cancel(uint64_t number, const absl::Status& status, double now);
  void CancelAll(const absl::Status& status, double now);
  // Ends those that wait for a group.
  void CancelWaiting(const absl::Status& status, double now);
  // After RequestSink::Verdict::kPause.
  void Resume(uint64_t number);

  void GroupUp(int group, const GroupCapacity& capacity, double now);
  // What ran there waits again, and will go on as if nothing had happened; what has been lost kLossesMax times without
  // getting any further ends with INTERNAL, for it may be what brings groups down.
  void GroupLost(int group, double now);
  static constexpr int kLossesMax = 6;

  // Fills `plan` with the next Step of a group; false if there is nothing to do now.
  bool NextStep(int group, double now, StepPlan* plan);
  // Takes the results of the oldest Step in flight, as the last stage sent them. An error: the group is broken (its
  // answer does not fit the Step), call GroupLost.
  absl::Status Apply(int group, const cluster::v1::StepDone& done, double now);

  int running() const { return static_cast<int>(entries_.size() - waiting_.size()); }
  int waiting() const { return static_cast<int>(waiting_.size()); }
  bool has_group() const { return !groups_.empty(); }
  GroupLoad Load(int group) const;
  SchedulerEvents TakeEvents() { return std::exchange(events_, {}); }

 private:
  struct Entry;
  struct Member;
  struct Group;
  struct Flight;
  // (-priority, arrival): the order of the queue.
  using QueueKey = std::tuple<int, uint64_t>;
  // (-priority, tokens left, arrival, sequence) and (-priority, arrival, sequence): orders of pre-fill.
  using ShortestKey = std::tuple<int, int64_t, uint64_t, uint64_t>;
  using OldestKey = std::tuple<int, uint64_t, uint64_t>;

  void Pause(Entry& entry);
  bool all_groups_up() const { return groups_.size() == places_; }
  bool EverFits(const Entry& entry) const;
  absl::Status TooLarge(const Entry& entry) const;
  void Admit(double now);
  void Start(Entry& entry, Group& group, double now);
  void Activate(Member& member, int64_t position);
  void ListPrefill(Member& member);
  void UnlistPrefill(Member& member);

  void PlanDecode(Group& group, StepPlan* plan);
  void PlanPrefill(Group& group, StepPlan* plan);
  void PlanChunk(Group& group, Member& member, int64_t tokens, StepPlan* plan);
  void PlanForks(Entry& entry, StepPlan* plan);

  absl::Status ApplyChunk(const Flight& flight, Member& member, const cluster::v1::ChunkResult* result, double now);
  absl::Status TakeToken(Member& member, const cluster::v1::ChunkResult& result, double now);
  absl::Status TakeScores(const Flight& flight, Member& member, const cluster::v1::ChunkResult& result, double now);
  void FinishMember(Member& member, Finish finish, double now);
  void Release(Member& member);
  void End(Entry& entry, const absl::Status& status, double now);

  const int max_queue_;
  const size_t places_;
  int64_t vocab_size_ = int64_t{1} << 31;
  int64_t cache_bytes_per_token_ = 0;
  int64_t transformer_bytes_per_token_ = 0;
  uint64_t last_arrival_ = 0;
  uint64_t last_sequence_ = 0;
  absl::flat_hash_map<uint64_t, std::unique_ptr<Entry>> entries_;  // by number
  std::map<QueueKey, Entry*> waiting_;
  absl::flat_hash_map<uint64_t, Member*> members_;  // by sequence: those that run
  std::map<int, std::unique_ptr<Group>> groups_;
  SchedulerEvents events_;
};

}  // namespace goldfinch

#endif  // GOLDFINCH_COORDINATOR_SCHEDULER_H_
