#include "base/fair_queue.h"

#include <atomic>
#include <future>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace goldfinch {
namespace {

using ::testing::ElementsAre;

TEST(FairQueue, OneClientsTasksRunInTheirOrderAndOneAtATime) {
  FairQueue queue(4);
  std::atomic<int> running = 0, most = 0;
  std::vector<int> order;  // written by one task at a time
  std::promise<void> done;
  for (int i = 0; i < 200; ++i) {
    queue.Post("alice", [&, i] {
      const int now = ++running;
      if (now > most) most = now;
      order.push_back(i);
      --running;
      if (i == 199) done.set_value();
    });
  }
  done.get_future().get();
  EXPECT_EQ(most, 1);
  ASSERT_EQ(order.size(), 200u);
  for (int i = 0; i < 200; ++i) EXPECT_EQ(order[i], i);
}

TEST(FairQueue, AClientThatWaitsHoldsUpNobodyElse) {
  FairQueue queue(2);
  std::promise<void> slow;
  std::shared_future<void> may_end = slow.get_future().share();
  for (int i = 0; i < 3; ++i) queue.Post("slow", [may_end] { may_end.get(); });
  for (int i = 0; i < 50; ++i) {
    std::promise<void> done;
    queue.Post(absl::StrCat("client ", i % 3), [&] { done.set_value(); });
    done.get_future().get();
  }
  slow.set_value();
}

TEST(FairQueue, ClientsTakeTurns) {
  FairQueue queue(1);
  std::promise<void> begin;
  std::shared_future<void> may_begin = begin.get_future().share();
  std::vector<std::string> order;
  std::promise<void> done;
  queue.Post("first", [may_begin] { may_begin.get(); });
  for (int i = 0; i < 3; ++i) queue.Post("alice", [&, i] { order.push_back(absl::StrCat("alice", i)); });
  queue.Post("bob", [&] { order.push_back("bob"); });
  queue.Post("carol", [&] { order.push_back("carol"); });
  begin.set_value();
  queue.Post("alice", [&] { done.set_value(); });
  done.get_future().get();
  EXPECT_THAT(order, ElementsAre("alice0", "bob", "carol", "alice1", "alice2"));
}

TEST(FairQueue, StopDropsWhatHasNotBegun) {
  const auto owned = std::make_shared<int>(1);
  std::atomic<int> ran = 0;
  FairQueue queue(1);
  std::promise<void> begun, end;
  std::shared_future<void> may_end = end.get_future().share();
  queue.Post("alice", [&, may_end] {
    begun.set_value();
    may_end.get();
    ++ran;
  });
  begun.get_future().get();
  for (int i = 0; i < 5; ++i) queue.Post("bob", [&, owned] { ++ran; });
  std::thread stopper([&] { queue.Stop(); });
  end.set_value();
  stopper.join();
  EXPECT_LE(ran, 6);
  queue.Post("carol", [&, owned] { ++ran; });
  EXPECT_EQ(owned.use_count(), 1) << "what was dropped is gone";
}

}  // namespace
}  // namespace goldfinch
