#include "base/work_queue.h"

#include <chrono>
#include <future>
#include <memory>
#include <numeric>
#include <vector>

#include "gtest/gtest.h"

namespace goldfinch {
namespace {

TEST(WorkQueue, OneThreadKeepsTheOrder) {
  std::vector<int> order;
  {
    WorkQueue queue(1);
    for (int i = 0; i < 1000; ++i) queue.Post([&order, i] { order.push_back(i); });
  }
  std::vector<int> expected(1000);
  std::iota(expected.begin(), expected.end(), 0);
  EXPECT_EQ(order, expected);
}

TEST(WorkQueue, TasksMayPost) {
  std::promise<void> done;
  WorkQueue queue(1);
  queue.Post([&] { queue.Post([&] { done.set_value(); }); });
  done.get_future().get();
}

TEST(WorkQueue, ThreadsWorkAtTheSameTime) {
  std::promise<void> first, second;
  WorkQueue queue(2);
  queue.Post([&] {
    first.set_value();
    second.get_future().get();
  });
  queue.Post([&] {
    first.get_future().get();
    second.set_value();
  });
  // The destructor returns only if each saw the other.
}

TEST(WorkQueue, LaterTasksComeByTime) {
  const auto start = std::chrono::steady_clock::now();
  std::vector<int> order;
  std::promise<void> done;
  {
    WorkQueue queue(1);
    queue.PostAfter(0.05, [&] {
      order.push_back(2);
      done.set_value();
    });
    queue.PostAfter(0.02, [&] { order.push_back(1); });
    queue.Post([&] { order.push_back(0); });
    done.get_future().get();
  }
  EXPECT_EQ(order, (std::vector<int>{0, 1, 2}));
  EXPECT_GE(std::chrono::steady_clock::now() - start, std::chrono::milliseconds(50));
}

TEST(WorkQueue, EndsWithoutWhatIsNotDueAndReleasesIt) {
  const auto held = std::make_shared<int>(0);
  bool ran = false;
  {
    WorkQueue queue(1);
    queue.PostAfter(3600, [&ran, held] { ran = true; });
  }
  EXPECT_FALSE(ran);
  EXPECT_EQ(held.use_count(), 1);
}

}  // namespace
}  // namespace goldfinch
