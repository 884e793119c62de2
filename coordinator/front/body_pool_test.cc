#include "coordinator/front/body_pool.h"

#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace goldfinch {
namespace {

using testing::ElementsAre;

FrontLimits Limits(double patience_seconds) {
  FrontLimits limits;
  limits.calls_max = 12;
  limits.calls_per_address_max = 5;
  limits.total_bytes_max = 1000;
  limits.connection_bytes_max = 400;
  limits.patience_seconds = patience_seconds;
  return limits;
}

// How many calls the account can open.
int OpenCalls(BodyPool::Account& account) {
  int calls = 0;
  while (account.OpenCall().ok()) ++calls;
  return calls;
}

void CloseCalls(BodyPool::Account& account, int calls) {
  for (int i = 0; i < calls; ++i) account.CloseCall();
}

class BodyPoolTest : public testing::Test {
 protected:
  std::unique_ptr<BodyPool::Account> Open(const std::string& name, const std::string& address) {
    return std::make_unique<BodyPool::Account>(
        &pool_, BodyPool::Owner{address, [this, name] { events_.push_back(name + " has room"); },
                                [this, name] { events_.push_back(name + " goes"); }});
  }

  std::vector<std::string> events_;
  BodyPool pool_{Limits(5)};
};

TEST_F(BodyPoolTest, GivesRoomInTheOrderOfAsking) {
  const auto a = Open("a", "1"), b = Open("b", "2"), c = Open("c", "3"), d = Open("d", "4");
  EXPECT_TRUE(a->Reserve(400));
  EXPECT_TRUE(b->Reserve(400));
  EXPECT_FALSE(c->Reserve(300));
  EXPECT_FALSE(d->Reserve(100)) << "it would fit, but others were first";
  EXPECT_THAT(events_, ElementsAre());
  a->Release(400);
  EXPECT_THAT(events_, ElementsAre("c has room"));
  EXPECT_FALSE(a->Reserve(10)) << "room that is given is not taken by others";
  EXPECT_TRUE(c->Reserve(300));
  EXPECT_THAT(events_, ElementsAre("c has room", "d has room"));
  EXPECT_TRUE(d->Reserve(100));
  EXPECT_TRUE(a->Reserve(10));
  EXPECT_EQ(pool_.bytes(), 810);
  a->Release(10);
  b->Release(400);
  c->Release(300);
  d->Release(100);
}

TEST_F(BodyPoolTest, WhoWaitsNoLongerHoldsNobodyUp) {
  const auto a = Open("a", "1"), b = Open("b", "2"), c = Open("c", "3"), d = Open("d", "4");
  EXPECT_TRUE(a->Reserve(400));
  EXPECT_TRUE(b->Reserve(400));
  EXPECT_FALSE(c->Reserve(300));
  EXPECT_FALSE(d->Reserve(300));
  a->Release(400);
  EXPECT_THAT(events_, ElementsAre("c has room"));
  c->Withdraw();
  EXPECT_THAT(events_, ElementsAre("c has room", "d has room"));
  EXPECT_TRUE(d->Reserve(300));
  c->Withdraw();
  EXPECT_TRUE(a->Reserve(300));
  a->Release(300);
  b->Release(400);
  d->Release(300);
}

TEST_F(BodyPoolTest, AConnectionAndAnAddressHaveTheirParts) {
  const auto a = Open("a", "1"), b = Open("b", "1"), c = Open("c", "2");
  EXPECT_TRUE(a->Reserve(300));
  EXPECT_FALSE(a->Reserve(200)) << "400 for a connection";
  EXPECT_FALSE(b->Reserve(300)) << "500 for an address";
  EXPECT_FALSE(c->Reserve(300)) << "it asks when others wait";
  // But those wait for themselves.
  pool_.Tick(1);
  EXPECT_THAT(events_, ElementsAre("c has room"));
  EXPECT_TRUE(c->Reserve(300));
  pool_.Tick(100);
  EXPECT_THAT(events_, ElementsAre("c has room")) << "nobody goes";
  a->Release(300);
  c->Release(300);
}

TEST_F(BodyPoolTest, TheLargestOfTheAddressThatHoldsTheMostGoes) {
  const auto a = Open("a", "1"), b = Open("b", "1"), c = Open("c", "2"), d = Open("d", "3");
  EXPECT_TRUE(a->Reserve(200));
  EXPECT_TRUE(b->Reserve(250));
  EXPECT_TRUE(c->Reserve(300));
  EXPECT_FALSE(d->Reserve(300));
  pool_.Tick(10);
  pool_.Tick(14);
  EXPECT_THAT(events_, ElementsAre());
  pool_.Tick(15);
  EXPECT_THAT(events_, ElementsAre("b goes"));
  pool_.Tick(20);
  EXPECT_THAT(events_, ElementsAre("b goes")) << "one after the other";
  b->Release(250);
  EXPECT_THAT(events_, ElementsAre("b goes", "d has room"));
  EXPECT_TRUE(d->Reserve(300));
  a->Release(200);
  c->Release(300);
  d->Release(300);
}

TEST_F(BodyPoolTest, BytesThatNobodyAskedForFillThePoolToo) {
  const auto a = Open("a", "1"), b = Open("b", "2");
  a->Take(900);
  b->Take(200);
  pool_.Tick(1);
  EXPECT_THAT(events_, ElementsAre("a goes"));
  a->Release(900);
  b->Release(200);
}

TEST_F(BodyPoolTest, WhoeverLeavesLetsOthersIn) {
  auto a = Open("a", "1"), b = Open("b", "2"), c = Open("c", "3");
  EXPECT_TRUE(a->Reserve(400));
  b->Take(400);
  EXPECT_FALSE(c->Reserve(300));
  auto d = Open("d", "4");
  EXPECT_FALSE(d->Reserve(250));
  a->Release(400);
  EXPECT_THAT(events_, ElementsAre("c has room"));
  c.reset();
  EXPECT_THAT(events_, ElementsAre("c has room", "d has room"));
  b->Release(400);
}

TEST_F(BodyPoolTest, AnAddressHasSoManyCallsOverAllItsConnections) {
  const auto a = Open("a", "1"), b = Open("b", "1"), c = Open("c", "2");
  EXPECT_TRUE(a->OpenCall().ok());
  EXPECT_TRUE(a->OpenCall().ok());
  EXPECT_EQ(OpenCalls(*b), 3);
  EXPECT_EQ(std::string(a->OpenCall().message()), "there are 5 open calls from this address, the limit is 5");
  EXPECT_TRUE(c->OpenCall().ok());
  b->CloseCall();
  EXPECT_EQ(OpenCalls(*a), 1);
  CloseCalls(*a, 3);
  CloseCalls(*b, 2);
  CloseCalls(*c, 1);
}

TEST_F(BodyPoolTest, WhenFewCallsAreLeftAnAddressMayHaveFewer) {
  const auto a = Open("a", "1"), b = Open("b", "2"), c = Open("c", "3"), d = Open("d", "4");
  EXPECT_EQ(OpenCalls(*a), 5);
  EXPECT_EQ(OpenCalls(*b), 4) << "7 were left, then 3";
  EXPECT_EQ(OpenCalls(*c), 2) << "3 were left, then 1";
  EXPECT_EQ(OpenCalls(*d), 1) << "whoever has none gets one";
  EXPECT_EQ(std::string(d->OpenCall().message()), "there are 12 open calls, which is the limit");
  CloseCalls(*a, 5);
  EXPECT_EQ(OpenCalls(*d), 2);
  CloseCalls(*b, 4);
  CloseCalls(*c, 2);
  CloseCalls(*d, 3);
}

TEST_F(BodyPoolTest, LoopbackCountsOnlyAmongAllCalls) {
  BodyPool::Account local(&pool_, {.address = "127.0.0.1", .on_room = [] {}, .evict = [] {}, .loopback = true});
  EXPECT_EQ(OpenCalls(local), 12);
  EXPECT_FALSE(Open("a", "1")->OpenCall().ok());
  CloseCalls(local, 12);
}

TEST(BodyPoolThreads, ManyAtOnce) {
  BodyPool pool(Limits(0));
  std::vector<std::thread> threads;
  for (int i = 0; i < 8; ++i) {
    threads.emplace_back([&pool, i] {
      for (int round = 0; round < 500; ++round) {
        BodyPool::Account account(&pool, {std::to_string(i % 3), [] {}, [] {}});
        const bool opened = account.OpenCall().ok();
        int64_t held = 10;
        account.Take(held);
        for (int tries = 0; tries < 10; ++tries) {
          if (!account.Reserve(150)) continue;
          held += 150;
          break;
        }
        pool.Tick(round);
        account.Release(held);
        if (opened) account.CloseCall();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(pool.bytes(), 0);
}

}  // namespace
}  // namespace goldfinch
