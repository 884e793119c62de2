#include "kernels/cpu/thread_pool.h"

#include <atomic>
#include <chrono>
#include <memory>
#include <thread>
#include <vector>

#include "gtest/gtest.h"

namespace goldfinch::cpu {
namespace {

class ThreadPoolTest : public testing::TestWithParam<int> {
 protected:
  int threads() const { return GetParam(); }
};

TEST_P(ThreadPoolTest, RunsEveryTaskOnce) {
  ThreadPool pool(threads());
  EXPECT_EQ(pool.threads(), threads());
  for (int64_t tasks : {0, 1, 2, 3, 7, 64, 1000, 10'007}) {
    std::vector<std::atomic<int>> runs(tasks);
    std::vector<int64_t> runs_of_thread(threads());  // no lock: no two threads have the same number
    pool.ParallelFor(tasks, [&](int64_t task, int thread) {
      ASSERT_TRUE(task >= 0 && task < tasks);
      ASSERT_TRUE(thread >= 0 && thread < threads());
      ++runs[task];
      ++runs_of_thread[thread];
    });
    for (int64_t task = 0; task < tasks; ++task) EXPECT_EQ(runs[task], 1) << "task " << task << " of " << tasks;
    int64_t total = 0;
    for (int64_t count : runs_of_thread) total += count;
    EXPECT_EQ(total, tasks);
  }
}

TEST_P(ThreadPoolTest, CallerIsThreadZero) {
  ThreadPool pool(threads());
  const std::thread::id caller = std::this_thread::get_id();
  pool.ParallelFor(1000, [&](int64_t, int thread) { EXPECT_EQ(std::this_thread::get_id() == caller, thread == 0); });
}

// Each loop reads what the loop before it wrote, on any thread.
TEST_P(ThreadPoolTest, ManyShortLoopsSeeEachOther) {
  ThreadPool pool(threads());
  constexpr int kTasks = 5, kLoops = 1000;
  std::vector<int64_t> from(kTasks, 1), to(kTasks);
  for (int loop = 0; loop < kLoops; ++loop) {
    pool.ParallelFor(kTasks, [&](int64_t task, int) { to[task] = from[(task + 1) % kTasks] + 1; });
    std::swap(from, to);
  }
  for (int64_t value : from) EXPECT_EQ(value, kLoops + 1);
}

// Pauses between loops in which the threads fall asleep, and tasks of different length.
TEST_P(ThreadPoolTest, WakesUp) {
  ThreadPool pool(threads());
  for (int loop = 0; loop < 10; ++loop) {
    std::atomic<int> runs{0};
    pool.ParallelFor(6, [&](int64_t task, int) {
      if (task == loop % 6) std::this_thread::sleep_for(std::chrono::milliseconds(2));
      ++runs;
    });
    EXPECT_EQ(runs, 6);
    std::this_thread::sleep_for(std::chrono::milliseconds(3));
  }
}

TEST_P(ThreadPoolTest, ComesAndGoes) {
  for (int i = 0; i < 20; ++i) {
    ThreadPool pool(threads());
    if (i % 3 == 0) continue;  // unused
    std::atomic<int> runs{0};
    for (int loop = 0; loop < i; ++loop) pool.ParallelFor(3, [&](int64_t, int) { ++runs; });
    EXPECT_EQ(runs, 3 * i);
  }
}

TEST_P(ThreadPoolTest, PoolsNest) {
  ThreadPool outer(threads());
  std::atomic<int> runs{0};
  outer.ParallelFor(4, [&](int64_t, int) {
    ThreadPool inner(threads());
    inner.ParallelFor(25, [&](int64_t, int) { ++runs; });
  });
  EXPECT_EQ(runs, 100);
}

TEST_P(ThreadPoolTest, TellsHowLongOthersWorked) {
  ThreadPool pool(threads());
  constexpr std::chrono::milliseconds kLong(5);
  std::atomic<bool> other{threads() == 1};
  pool.ParallelFor(2, [&](int64_t, int thread) {
    if (thread != 0) {
      other.store(true);
      std::this_thread::sleep_for(kLong);
    }
    while (!other.load()) std::this_thread::yield();
  });
  const ThreadPool::Times times = pool.times();
  EXPECT_GE(times.waiting_ns, 0);
  if (threads() == 1) {
    EXPECT_EQ(times.working_ns + times.waiting_ns, 0);
  } else {
    EXPECT_GE(std::chrono::nanoseconds(times.working_ns), kLong);
  }
  pool.ParallelFor(1, [](int64_t, int) {});  // not shared: nothing to count
  EXPECT_EQ(pool.times().working_ns, times.working_ns);
  EXPECT_EQ(pool.times().waiting_ns, times.waiting_ns);
}

TEST_P(ThreadPoolTest, ProgressChangesWithEveryTask) {
  ThreadPool pool(threads());
  uint64_t last = pool.progress();
  for (const int64_t work : {int64_t{0}, int64_t{1} << 30}) {  // not shared, and shared
    const int64_t tasks = 10;
    std::atomic<int> changes = 0;
    pool.ParallelFor(
        tasks, [&](int64_t, int thread) { changes += thread == 0 && pool.progress() != last ? 1 : 0; }, work);
    EXPECT_GE(changes, 1);
    EXPECT_NE(pool.progress(), last);
    last = pool.progress();
    EXPECT_EQ(pool.progress(), last) << "while nothing runs, it stays";
  }
}

TEST_P(ThreadPoolTest, HasAsManyThreadsAsItIsToldTo) {
  ThreadPool pool(4);
  for (const int count : {threads(), 1, 4, threads()}) {
    pool.Resize(count);
    EXPECT_EQ(pool.threads(), count);
    for (int loop = 0; loop < 100; ++loop) {
      std::atomic<int64_t> sum{0};
      pool.ParallelFor(50, [&](int64_t task, int thread) { sum += thread < count ? task : 1000; });
      ASSERT_EQ(sum.load(), 49 * 50 / 2);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Threads, ThreadPoolTest, testing::Values(1, 2, 3, 4), testing::PrintToStringParamName());

TEST(ThreadPoolDeathTest, NeedsAThread) { EXPECT_DEATH(ThreadPool(0), "CHECK failed"); }

}  // namespace
}  // namespace goldfinch::cpu
