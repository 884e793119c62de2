// What keeping texts allocates on the coordinator's thread, which plans Steps.
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "base/allocation_counter.h"
#include "coordinator/keeper/context_keeper.h"
#include "coordinator/scheduler/dispatcher.h"
#include "coordinator/scheduler/scheduler.h"
#include "coordinator/scheduler/step.h"
#include "gtest/gtest.h"

namespace goldfinch {
namespace {

struct CountingSink : RequestSink {
  void OnProgress(int64_t) override {}
  Verdict OnToken(int, const OutputToken&) override {
    ++tokens;
    return Verdict::kContinue;
  }
  void OnSampleDone(int, Finish) override {}
  Verdict OnScores(int, int64_t, absl::Span<const OutputToken>, std::string) override { return Verdict::kContinue; }
  void OnDone(const absl::Status&, const RequestUsage&) override {}

  int tokens = 0;
};

// A group with shelves, and a store to which nothing is moved.
class ContextKeeperAllocationTest : public testing::Test {
 protected:
  ContextKeeperAllocationTest() : scheduler_({.requests = 16, .bytes = int64_t{1} << 30}) {
    const ShelfCapacity shelf = {.bytes_max = int64_t{1} << 40, .bytes_per_token = 258, .snapshot_bytes = 9'000'000};
    keeper_.SetModel({"f", "bytes", "bf16", "cpu-f32"});
    keeper_.SetStore({.bytes_max = int64_t{1} << 40}, {}, shelf, 1e-5, 0);
    keeper_.GenerationReady(0, shelf);
    scheduler_.SetKeeper(&keeper_);
    scheduler_.GenerationReady(0,
                               {.max_sequences = 16,
                                .cache_tokens = int64_t{1} << 24,
                                .max_sequence_tokens = int64_t{1} << 22,
                                .max_step_tokens = 1 << 16,
                                .max_logit_rows = 16,
                                .row_seconds = 1e-5},
                               0);
  }

  void Submit(Request request) { scheduler_.Submit(++number_, std::move(request), sink_, now_); }
  // What one Step takes of the keeper, as the coordinator calls it. Returns how often it has allocated.
  int64_t Step() {
    int64_t before = CountedAllocations().count;
    for (const uint64_t request : keeper_.TakePrepared(now_)) scheduler_.Prepared(request, now_);
    if (moves_) keeper_.TakeStoreActions(now_);
    keeper_.TakeDrops(0);
    int64_t count = CountedAllocations().count - before;
    if (!scheduler_.NextStep(0, now_, &plan_)) return count;
    before = CountedAllocations().count;
    keeper_.TakeDrops(0);
    keeper_.StepPlanned(0, plan_.id);
    count += CountedAllocations().count - before;
    result_.id = plan_.id;
    result_.chunks.clear();
    for (const StepPlan::Chunk& chunk : plan_.chunks) {
      if (chunk.logit_rows == 0) continue;
      result_.chunks.emplace_back().sequence = chunk.sequence;
      result_.chunks.back().token = 7;
    }
    EXPECT_TRUE(scheduler_.Apply(0, &result_, ++now_).ok());
    scheduler_.TakeEvents();
    before = CountedAllocations().count;
    keeper_.Unsaved(0, {});
    keeper_.StepAnswered(0, plan_.id, {}, now_);
    keeper_.Expire(now_);
    return count + CountedAllocations().count - before;
  }

  ContextKeeper keeper_;
  Scheduler scheduler_;
  std::shared_ptr<CountingSink> sink_ = std::make_shared<CountingSink>();
  StepPlan plan_;
  StepResult result_;
  uint64_t number_ = 0;
  double now_ = 0;
  bool moves_ = true;
};

TEST_F(ContextKeeperAllocationTest, AStepThatKeepsNothingAllocatesNothing) {
  Request request;
  request.prompt.assign(100, 3);
  request.generate.emplace().max_tokens = 1000;
  Submit(std::move(request));
  for (int i = 0; i < 20; ++i) Step();
  ASSERT_GT(sink_->tokens, 10);
  int64_t count = 0;
  for (int i = 0; i < 100; ++i) count += Step();
  EXPECT_EQ(count, 0);
}

TEST_F(ContextKeeperAllocationTest, ALongPromptIsNotCopied) {
  Request request;
  request.prompt.resize(1 << 20);
  for (size_t i = 0; i < request.prompt.size(); ++i) request.prompt[i] = static_cast<int32_t>(i * i % 60'013);
  request.generate.emplace().max_tokens = 1;
  const int64_t prompt_bytes = int64_t{4} << 20;
  moves_ = false;
  const int64_t before = CountedAllocations().bytes;
  Submit(std::move(request));
  while (sink_->tokens == 0) Step();
  EXPECT_GT(keeper_.tree()->segments(), 10U);
  EXPECT_LT(CountedAllocations().bytes - before, 3 * prompt_bytes);
}

}  // namespace
}  // namespace goldfinch
