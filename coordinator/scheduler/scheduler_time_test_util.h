// Histories on a device whose times are given.
#ifndef GOLDFINCH_COORDINATOR_SCHEDULER_SCHEDULER_TIME_TEST_UTIL_H_
#define GOLDFINCH_COORDINATOR_SCHEDULER_SCHEDULER_TIME_TEST_UTIL_H_

#include <algorithm>
#include <cstdint>
#include <functional>
#include <memory>
#include <numeric>
#include <utility>
#include <vector>

#include "coordinator/scheduler/scheduler_test_util.h"
#include "gtest/gtest.h"

namespace goldfinch {

// A device of fixed speeds, with Steps of 512 tokens.
class SchedulerTimeTest : public testing::Test {
 protected:
  static constexpr double kTarget = 0.2;

  double step = 0.07, row = 4e-3, attend = 0;
  AttentionShape shape = {};

  void Start(double target = kTarget, int stages = 1) {
    cluster.seconds_of = [this](const StepWork& work) { return step + row * work.rows + attend * work.attended; };
    cluster.scheduler.SetModel(200, 1, 1, shape);
    GroupCapacity capacity = Roomy(stages);
    capacity.cache_tokens = int64_t{1} << 40;
    capacity.max_sequence_tokens = int64_t{1} << 40;
    capacity.max_step_tokens = 512;
    capacity.step_target_seconds = target;
    capacity.row_seconds = 3 * row;  // the planner is wrong
    cluster.Up(0, capacity);
    // What a server learns in its first seconds.
    Generate(300, 20);
    cluster.RunAll();
    clients.clear();
    cluster.step_times.clear();
  }
  std::shared_ptr<FakeClient> Generate(int64_t prompt, int64_t tokens, std::function<void(Request*)> edit = {}) {
    clients.push_back(std::make_shared<FakeClient>());
    cluster.Generate(FakePrompt(prompt, static_cast<int32_t>(clients.size())), tokens, clients.back(), edit);
    return clients.back();
  }
  // Runs Steps until the condition holds.
  template <typename Condition>
  void RunUntil(const Condition& condition) {
    for (int steps = 0; !condition(); ++steps) {
      ASSERT_LT(steps, 100'000);
      ASSERT_GT(cluster.Plan(0), 0);
      cluster.Answer(0);
    }
  }
  double longest() const { return *std::max_element(cluster.step_times.begin(), cluster.step_times.end()); }
  double total() const { return std::accumulate(cluster.step_times.begin(), cluster.step_times.end(), 0.0); }
  static bool Begun(const FakeClient& client) { return !client.tokens[0].empty(); }

  FakeCluster cluster;
  std::vector<std::shared_ptr<FakeClient>> clients;
};

}  // namespace goldfinch

#endif  // GOLDFINCH_COORDINATOR_SCHEDULER_SCHEDULER_TIME_TEST_UTIL_H_
