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

class BodyPoolTest : public testing::Test {
 protected:
  std::unique_ptr<BodyPool::Account> Open(const std::string& name, const std::string& address) {
    return std::make_unique<BodyPool::Account>(
        &pool_, BodyPool::Owner{address, [this, name] { events_.push_back(name + " has room"); },
                                [this, name] { events_.push_back(name + " goes"); }});
  }

  std::vector<std::string> events_;
  BodyPool pool_{1000, 400, 5};
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

TEST(BodyPoolThreads, ManyAtOnce) {
  BodyPool pool(1000, 400, 0);
  std::vector<std::thread> threads;
  for (int i = 0; i < 8; ++i) {
    threads.emplace_back([&pool, i] {
      for (int round = 0; round < 500; ++round) {
        BodyPool::Account account(&pool, {std::to_string(i % 3), [] {}, [] {}});
        int64_t held = 10;
        account.Take(held);
        for (int tries = 0; tries < 10; ++tries) {
          if (!account.Reserve(150)) continue;
          held += 150;
          break;
        }
        pool.Tick(round);
        account.Release(held);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(pool.bytes(), 0);
}

}  // namespace
}  // namespace goldfinch
