// A group of workers as the scheduler sees it, and a client that records what it gets.
#ifndef GOLDFINCH_COORDINATOR_SCHEDULER_SCHEDULER_TEST_UTIL_H_
#define GOLDFINCH_COORDINATOR_SCHEDULER_SCHEDULER_TEST_UTIL_H_

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "coordinator/scheduler/prefix_keeper.h"
#include "coordinator/scheduler/scheduler.h"
#include "coordinator/scheduler/step.h"

namespace goldfinch {

// The token that the fake model samples after `ids`; never 0.
int32_t FakeToken(absl::Span<const int32_t> ids, uint64_t seed);
float FakeLogprob(absl::Span<const int32_t> ids, int32_t target);
// What a request that runs alone gets: `count` tokens after the prompt.
std::vector<int32_t> FakeAnswer(std::vector<int32_t> prompt, uint64_t seed, int64_t count);

// Runs Steps as workers do, and fails the test at a Step that they would refuse.
class FakeGroup {
 public:
  explicit FakeGroup(const GroupCapacity& capacity) : capacity_(capacity) {}

  // What is saved of the positions [begin, ids.size()).
  struct Segment {
    std::vector<int32_t> ids;  // from position 0 on
    int64_t begin = 0;
    bool snapshot = true;
    bool logits = false;
  };

  StepResult Run(const StepPlan& plan);
  void DropSegment(uint64_t segment);
  void DropSnapshot(uint64_t segment);
  // By number; what comes from outside is put there.
  std::map<uint64_t, Segment>& segments() { return segments_; }
  size_t sequences() const { return sequences_.size(); }
  int64_t tokens_run() const { return tokens_run_; }
  int64_t pages_used() const { return pages_used_; }

 private:
  // A page of the caches. Forked sequences share it when it is full, and so do those that begin with the same segment.
  struct Page {
    explicit Page(int64_t* used) : used(used) { ++*used; }
    ~Page() { --*used; }
    int64_t* const used;
  };
  struct Sequence {
    std::vector<int32_t> ids;
    std::vector<std::shared_ptr<Page>> pages;
    std::optional<uint64_t> seed;
    size_t observed = 0;
  };
  void Open(const StepPlan::NewSequence& sequence, const Sequence* forked);
  void Restore(absl::Span<const uint64_t> segments, Sequence* sequence);
  void SharePages(uint64_t segment, int64_t begin, int64_t end, Sequence* sequence);
  void Save(const StepPlan::Save& save, bool logits);
  void TakePages(Sequence* sequence);
  void RunChunk(const StepPlan& plan, const StepPlan::Chunk& chunk, StepResult* result);

  const GroupCapacity capacity_;
  int64_t pages_used_ = 0;  // before sequences_, whose pages count themselves
  std::map<uint64_t, Sequence> sequences_;
  uint64_t last_step_ = 0;
  std::set<uint64_t> used_;
  std::map<uint64_t, Segment> segments_;
  // Full pages of segments that sequences began with, by segment and the index of the first one.
  std::map<std::pair<uint64_t, int64_t>, std::vector<std::weak_ptr<Page>>> restored_;
  int64_t tokens_run_ = 0;
};

// Keeps what groups have saved until it is dropped.
class FakeKeeper : public PrefixKeeper {
 public:
  int64_t Kept(int replica, const Request& request, absl::Span<const int32_t> ids) const override;
  bool Prepare(int replica, uint64_t request_number, const Request& request, absl::Span<const int32_t> ids,
               double token_seconds, double now) override;
  Beginning Begin(int replica, const Request& request, absl::Span<const int32_t> ids, int64_t tokens_max,
                  double token_seconds, double now) override;
  Beginning Peek(int replica, const Request& request, absl::Span<const int32_t> ids, int64_t tokens_max,
                 double token_seconds) const override;
  void Release(int replica, const Beginning& beginning) override;
  Saved Save(int replica, const Request& request, absl::Span<const int32_t> ids, const SavePoint& point,
             double now) override;
  absl::Status Keep(int replica, const Request& request, absl::Span<const int32_t> ids, double now) override;

  // The replica's group has ended.
  void Lose(int replica);
  // One that nothing holds and none continues, and which is forgotten; 0: there is none.
  uint64_t Drop(int replica);
  int held() const;
  int kept(int replica) { return static_cast<int>(kept_[replica].size()); }

  // Where a sequence is saved that reads so many tokens; by default at their end.
  std::function<std::vector<int64_t>(int64_t tokens)> save_at;
  // Whether a request has to wait for what is brought; by default none has.
  std::function<bool(int replica, uint64_t request_number)> brings;
  // What Keep answers, and the last text that it was called for.
  absl::Status keep_status;
  std::vector<int32_t> kept_text;

 private:
  struct Segment {
    std::vector<int32_t> ids;  // from position 0 on
    uint64_t parent = 0;
    bool logits = false;
    int held = 0;  // by how many Beginnings
  };
  // The longest one that `ids` begin with, of at most `tokens_max`; 0: none.
  // With `draws`, one that has all of `ids` must have logits.
  uint64_t Find(int replica, absl::Span<const int32_t> ids, int64_t tokens_max, bool draws) const;

  std::map<int, std::map<uint64_t, Segment>> kept_;  // by replica and number
  std::set<std::vector<int32_t>> ended_;             // texts that were saved as ends, or kept as a whole
  uint64_t last_ = 0;
};

struct FakeClient : RequestSink {
  explicit FakeClient(int samples = 1) : tokens(samples), finishes(samples) {}

  void OnProgress(int64_t done) override { progress.push_back(done); }
  Verdict OnToken(int sample, const OutputToken& token) override;
  void OnSampleDone(int sample, Finish finish) override;
  Verdict OnScores(int continuation, int64_t first, absl::Span<const OutputToken> scored, std::string logits) override;
  void OnDone(const absl::Status& end, const RequestUsage& used) override;

  std::vector<std::vector<int32_t>> tokens;  // by sample
  std::vector<std::optional<Finish>> finishes;
  std::map<int, std::vector<OutputToken>> scores;  // by continuation, -1 the prompt
  std::vector<int64_t> progress;
  std::optional<absl::Status> status;  // set at the end
  RequestUsage usage;
  std::function<Verdict(int sample, int32_t token)> verdict;  // not set: go on
};

// A scheduler with one or more fake groups whose Steps take a while.
class FakeCluster {
 public:
  explicit FakeCluster(int max_queue = 100, int replicas = 1) : FakeCluster(QueueLimits{max_queue}, replicas) {}
  explicit FakeCluster(const QueueLimits& queue, int replicas = 1, bool overcommit = true)
      : scheduler(queue, replicas, overcommit) {}

  // A group becomes ready as this replica.
  void Up(int replica, const GroupCapacity& capacity);
  void Lose(int replica);
  // Sequences begin with what is kept from now on.
  void Keep();
  // Drops one segment that can be dropped, if there is one.
  void DropSegment(int replica);
  // Plans Steps until there is nothing to do; returns how many are in flight.
  int Plan(int replica);
  // The oldest Step's results come back.
  void Answer(int replica);
  // Plans and answers until nothing is left to do.
  void RunAll();
  // Plans and answers until then, or until nothing is left to do.
  void RunUntil(double time);

  uint64_t Generate(const std::vector<int32_t>& prompt, int64_t max_tokens, std::shared_ptr<FakeClient> client,
                    std::function<void(Request*)> edit = {});
  uint64_t Score(const std::vector<int32_t>& prompt, const std::vector<std::vector<int32_t>>& continuations,
                 bool score_prompt, std::shared_ptr<FakeClient> client);

  std::unique_ptr<FakeKeeper> keeper;  // set by Keep
  Scheduler scheduler;
  double now = 0;
  double step_seconds = 1;  // what a Step takes
  // If it is set, what a Step takes instead; the scheduler is told.
  std::function<double(const StepWork&)> seconds_of;
  std::vector<double> step_times;  // of Steps that seconds_of has timed
  // Called for each Step before it runs, and when its results have come.
  std::function<void(int replica, const StepPlan& plan)> planned;
  std::function<void(int replica, uint64_t step)> answered;
  std::function<void()> in_round;  // called before Steps are planned, over and over
  std::map<int, std::unique_ptr<FakeGroup>> groups;
  std::map<int, std::deque<StepPlan>> plans;        // in flight; their spans are not valid any more
  std::map<int, std::deque<StepResult>> in_flight;  // results that have not come back yet
  uint64_t last_number = 0;
};

inline std::shared_ptr<FakeClient> NewClient(int samples = 1) { return std::make_shared<FakeClient>(samples); }

// 1, 2, ... from `first`, below 200.
std::vector<int32_t> FakePrompt(int64_t count, int32_t first = 1);
// FakePrompt(count), which goes on with `more`.
std::vector<int32_t> Prompt(int64_t count, const std::vector<int32_t>& more = {});

// A capacity that holds everything the tests ask for, with Steps of 16 tokens.
GroupCapacity Roomy(int stages = 1);

// The continuation's scores have come, each for what follows `before`.
void ExpectScores(const FakeClient& client, int continuation, std::vector<int32_t> before,
                  const std::vector<int32_t>& text);
// Runs what is left, and then nothing holds memory, neither in the scheduler nor in the workers.
void ExpectNothingLeft(FakeCluster& cluster);

}  // namespace goldfinch

#endif  // GOLDFINCH_COORDINATOR_SCHEDULER_SCHEDULER_TEST_UTIL_H_
