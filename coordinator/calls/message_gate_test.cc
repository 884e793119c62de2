#include "coordinator/calls/message_gate.h"

#include <memory>
#include <string>
#include <vector>

#include "gtest/gtest.h"

namespace goldfinch {
namespace {

class Visitor : public MessageGate::Guest {
 public:
  void Admit() override { admitted = true; }
  void Dismiss(const absl::Status& status) override {
    EXPECT_TRUE(dismissed.ok()) << "twice";
    dismissed = status;
  }
  void Evict() override { ++evictions; }

  bool admitted = false;
  absl::Status dismissed;
  int evictions = 0;
};

class MessageGateTest : public testing::Test {
 protected:
  std::shared_ptr<Visitor> Enter(const std::shared_ptr<const Client>& client, double now = 0) {
    auto visitor = std::make_shared<Visitor>();
    gate_.Enter(visitor, client, now);
    return visitor;
  }
  static std::shared_ptr<const Client> NewClient(const std::string& name) {
    return std::make_shared<const Client>(Client{name, {}});
  }
  static std::string Reason(const Visitor& visitor) { return std::string(visitor.dismissed.message()); }

  MessageGate gate_{
      {.places = 4, .places_of_client = 3, .waiting = 5, .seconds = 60, .contested_seconds = 5, .leave_seconds = 8}};
  const std::shared_ptr<const Client> hog_ = NewClient("hog");
  const std::shared_ptr<const Client> other_ = NewClient("other");
};

TEST_F(MessageGateTest, AClientHasSoManyPlacesAndTheOthersRemain) {
  std::vector<std::shared_ptr<Visitor>> hogs;
  for (int i = 0; i < 5; ++i) hogs.push_back(Enter(hog_));
  EXPECT_EQ(gate_.inside(), 3);
  EXPECT_EQ(gate_.waiting(), 2);
  EXPECT_FALSE(hogs[3]->admitted);
  EXPECT_TRUE(Enter(other_)->admitted);
  gate_.Leave(hogs[0].get(), 1);
  EXPECT_TRUE(hogs[3]->admitted) << "in the order in which they came";
  EXPECT_FALSE(hogs[4]->admitted);
}

TEST_F(MessageGateTest, AFreePlaceGoesToTheClientWithTheFewest) {
  std::vector<std::shared_ptr<Visitor>> hogs, others;
  for (int i = 0; i < 3; ++i) hogs.push_back(Enter(hog_));
  others.push_back(Enter(other_));
  for (int i = 0; i < 2; ++i) hogs.push_back(Enter(hog_));
  for (int i = 0; i < 2; ++i) others.push_back(Enter(other_));
  gate_.Leave(hogs[0].get(), 1);
  EXPECT_TRUE(others[1]->admitted);
  EXPECT_FALSE(hogs[3]->admitted);
  // Now both have two: the turn is the hog's.
  gate_.Leave(others[0].get(), 2);
  EXPECT_TRUE(others[2]->admitted) << "1 against 2";
  gate_.Leave(others[1].get(), 2);
  EXPECT_TRUE(hogs[3]->admitted) << "nobody else waits";
}

TEST_F(MessageGateTest, ASlowMessageLosesItsPlaceInTime) {
  const auto slow = Enter(hog_, 10);
  gate_.Sweep(69.9);
  EXPECT_TRUE(slow->dismissed.ok());
  gate_.Sweep(70);
  EXPECT_EQ(slow->dismissed.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(Reason(*slow), "the client is too slow: its message has not arrived, or was not taken, in 60 s");
  EXPECT_EQ(gate_.inside(), 1) << "until the message has been freed";
  gate_.Leave(slow.get(), 70);
  EXPECT_EQ(gate_.inside(), 0);
  const auto answer = Enter(hog_, 70);
  gate_.Prolong(answer.get(), 200, 100);
  gate_.Sweep(299);
  EXPECT_TRUE(answer->dismissed.ok());
  gate_.Sweep(300);
  EXPECT_FALSE(answer->dismissed.ok());
}

TEST_F(MessageGateTest, WaitingHasAnEndToo) {
  for (int i = 0; i < 3; ++i) Enter(hog_, 0);
  const auto waiting = Enter(hog_, 0);
  for (int i = 0; i < 3; ++i) gate_.Sweep(30);
  gate_.Sweep(60);
  EXPECT_FALSE(waiting->admitted);
  EXPECT_EQ(Reason(*waiting), "other messages have been arriving for 60 s");
  EXPECT_EQ(gate_.waiting(), 0);
}

TEST_F(MessageGateTest, WhenAllPlacesAreTakenTheLargestHolderGivesWayToOthers) {
  std::vector<std::shared_ptr<Visitor>> hogs;
  for (int i = 0; i < 3; ++i) hogs.push_back(Enter(hog_, i));
  const auto other = Enter(other_, 3);
  const auto third = Enter(NewClient("third"), 3);
  gate_.Sweep(4.9);
  EXPECT_TRUE(hogs[0]->dismissed.ok()) << "everyone has a few seconds";
  EXPECT_FALSE(third->admitted);
  gate_.Sweep(5);
  EXPECT_EQ(hogs[0]->dismissed.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_FALSE(third->admitted) << "the place is free when the message is";
  gate_.Sweep(10);
  EXPECT_TRUE(hogs[1]->dismissed.ok()) << "one for each client that waits";
  gate_.Leave(hogs[0].get(), 10);
  EXPECT_TRUE(third->admitted);
  EXPECT_TRUE(other->dismissed.ok());
  // The rest is shared fairly: 2, 1 and 1.
  const auto fourth = Enter(NewClient("fourth"), 11);
  gate_.Sweep(59);
  EXPECT_FALSE(hogs[1]->dismissed.ok());
  gate_.Leave(hogs[1].get(), 59);
  EXPECT_TRUE(fourth->admitted);
  const auto fifth = Enter(NewClient("fifth"), 59);
  gate_.Sweep(59.5);
  EXPECT_FALSE(fifth->admitted) << "nobody has two";
  EXPECT_TRUE(hogs[2]->dismissed.ok());
}

TEST_F(MessageGateTest, AMessageCountsUntilItHasBeenFreed) {
  std::vector<std::shared_ptr<Visitor>> hogs;
  for (int i = 0; i < 3; ++i) hogs.push_back(Enter(hog_));
  const auto other = Enter(other_);
  gate_.Sweep(60);
  for (const auto& hog : hogs) EXPECT_FALSE(hog->dismissed.ok());
  const auto next = Enter(other_, 60);
  EXPECT_FALSE(next->admitted) << "four messages are still in memory";
  EXPECT_EQ(gate_.inside(), 4);
  gate_.Sweep(67);
  EXPECT_EQ(hogs[0]->evictions, 0);
  for (const double now : {68, 69, 200}) gate_.Sweep(now);
  EXPECT_EQ(hogs[0]->evictions, 1) << "it was told to leave 8 s ago";
  gate_.Leave(hogs[0].get(), 200);
  EXPECT_EQ(gate_.inside(), 3) << "the other one had waited for too long";
  EXPECT_TRUE(Enter(other_, 200)->admitted);
}

TEST_F(MessageGateTest, TimeDoesNotCountWhileTheServerWorks) {
  std::vector<std::shared_ptr<Visitor>> hogs;
  for (int i = 0; i < 3; ++i) hogs.push_back(Enter(hog_));
  gate_.Pause(Enter(other_).get());
  for (const auto& hog : hogs) gate_.Pause(hog.get());
  const auto third = Enter(NewClient("third"), 0);
  for (const double now : {6, 30, 59}) gate_.Sweep(now);
  for (const auto& hog : hogs) EXPECT_TRUE(hog->dismissed.ok()) << "it has sent its message";
  // The answer waits for its client.
  gate_.Prolong(hogs[2].get(), 100, 59);
  gate_.Sweep(59);
  EXPECT_TRUE(hogs[2]->dismissed.ok());
  const auto fourth = Enter(NewClient("fourth"), 60);
  gate_.Sweep(64);
  EXPECT_FALSE(hogs[2]->dismissed.ok()) << "it has the most places, and another client needs one";
  EXPECT_TRUE(hogs[0]->dismissed.ok());
  EXPECT_TRUE(hogs[1]->dismissed.ok());
}

TEST_F(MessageGateTest, AFullQueueTurnsAwayTheClientThatWaitsMost) {
  std::vector<std::shared_ptr<Visitor>> hogs;
  for (int i = 0; i < 3 + 5; ++i) hogs.push_back(Enter(hog_));
  EXPECT_EQ(gate_.waiting(), 5);
  std::vector<std::shared_ptr<Visitor>> others;
  for (int i = 0; i < 2; ++i) others.push_back(Enter(other_));
  EXPECT_TRUE(others[0]->admitted);
  EXPECT_TRUE(others[1]->dismissed.ok());
  EXPECT_EQ(hogs.back()->dismissed.code(), absl::StatusCode::kResourceExhausted) << "its newest";
  EXPECT_TRUE(hogs[6]->dismissed.ok());
  EXPECT_FALSE(Enter(hog_)->dismissed.ok());
  EXPECT_EQ(gate_.waiting(), 5);
}

TEST_F(MessageGateTest, WhoHasLeftIsForgotten) {
  std::vector<std::shared_ptr<Visitor>> hogs;
  for (int i = 0; i < 4; ++i) hogs.push_back(Enter(hog_));
  gate_.Leave(hogs[3].get(), 1);  // did not wait any longer
  for (const auto& visitor : hogs) gate_.Leave(visitor.get(), 2);
  gate_.Sweep(1000);
  EXPECT_EQ(gate_.inside() + gate_.waiting(), 0);
  EXPECT_FALSE(hogs[3]->admitted);
  for (const auto& visitor : hogs) {
    EXPECT_TRUE(visitor->dismissed.ok());
    EXPECT_EQ(visitor.use_count(), 1);
  }
}

}  // namespace
}  // namespace goldfinch
