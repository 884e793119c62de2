#include "worker/transport/transport_cases.h"

#include <chrono>
#include <filesystem>
#include <future>
#include <iterator>
#include <thread>

#include "gmock/gmock.h"

namespace goldfinch {
namespace {

using std::chrono::milliseconds;
using ::testing::HasSubstr;

TEST_P(TransportTest, MessagesOfManySizesArriveInOrder) {
  const Group group = Connect(2);
  std::vector<int64_t> sizes = {2, 4, 62, 64, 66, 4096, 8192, 100000, kBytesMax - 2, kBytesMax};
  for (int i = 0; i < 300; ++i) sizes.push_back(2 + (i * 7919) % 3000 * 2);
  std::thread sender([&] {
    for (size_t i = 0; i < sizes.size(); ++i) {
      ASSERT_EQ(group[0]->Send(1, TestMessage(sizes[i], static_cast<int>(i))), absl::OkStatus());
    }
  });
  for (size_t i = 0; i < sizes.size(); ++i) {
    EXPECT_EQ(group[1]->Recv(0, TestMessage(sizes[i], static_cast<int>(i))), absl::OkStatus()) << i;
  }
  sender.join();
}

TEST_P(TransportTest, BothDirectionsAtOnce) {
  const Group group = Connect(2);
  const auto run = [&](int self) {
    for (int i = 0; i < 200; ++i) {
      EXPECT_EQ(group[self]->Send(1 - self, TestMessage(2000, 2 * i + self)), absl::OkStatus());
      EXPECT_EQ(group[self]->Recv(1 - self, TestMessage(2000, 2 * i + 1 - self)), absl::OkStatus());
    }
  };
  std::thread other([&] { run(1); });
  run(0);
  other.join();
}

// One thread may queue messages without waiting; in the end all are there, in order.
TEST_P(TransportTest, MessagesMayBeQueuedAhead) {
  constexpr int kMessages = 3 * Transport::kAheadSends;
  const Group group = Connect(2);
  for (int i = 0; i < kMessages; ++i) {
    EXPECT_EQ(group[0]->Send(1, TestMessage(20000, i)), absl::OkStatus());
    EXPECT_EQ(group[1]->Queue(0, 20000, i * 32768), absl::OkStatus());
  }
  // The sender is done with all of it before the receiver looks at any.
  EXPECT_EQ(Device(0).Synchronize(), absl::OkStatus());
  for (int i = 0; i < kMessages; ++i) {
    EXPECT_EQ(group[1]->Queued(20000, i * 32768), TestMessage(20000, i).values) << i;
  }
  EXPECT_EQ(group[1]->transport->status(), absl::OkStatus());
}

// As in a pipeline: the first stage sends compressed rows to every later stage, and each stage sends hidden rows to the
// next.
TEST_P(TransportTest, FanOutToSeveralPeers) {
  if (GetParam().stages_max < 4) GTEST_SKIP() << "needs 4 stages";
  constexpr int kStages = 4, kSteps = 60;
  const Group group = Connect(kStages);
  std::vector<std::thread> threads;
  for (int stage = 0; stage < kStages; ++stage) {
    threads.emplace_back([&, stage] {
      for (int step = 0; step < kSteps; ++step) {
        const TestMessage hidden(6000, 3 * step), compressed(400, 3 * step + 1);
        if (stage > 0) {
          EXPECT_EQ(group[stage]->Recv(stage - 1, hidden), absl::OkStatus());
          EXPECT_EQ(group[stage]->Recv(0, compressed), absl::OkStatus());
        }
        if (stage + 1 < kStages) {
          EXPECT_EQ(group[stage]->Send(stage + 1, hidden), absl::OkStatus());
        }
        for (int to = 1; stage == 0 && to < kStages; ++to) {
          EXPECT_EQ(group[0]->Send(to, compressed), absl::OkStatus());
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

TEST_P(TransportTest, SenderMayBeSomeMessagesAhead) {
  const Group group = Connect(2);
  for (int i = 0; i < Transport::kAheadSends; ++i) {
    EXPECT_EQ(group[0]->Send(1, TestMessage(100000, i)), absl::OkStatus()) << "nobody receives yet";
  }
  std::promise<void> sent;
  std::thread sender([&] {
    EXPECT_EQ(group[0]->Send(1, TestMessage(100000, Transport::kAheadSends)), absl::OkStatus());
    sent.set_value();
  });
  std::future<void> done = sent.get_future();
  EXPECT_EQ(done.wait_for(milliseconds(50)), std::future_status::timeout) << "no buffer is free";
  for (int i = 0; i <= Transport::kAheadSends; ++i) {
    EXPECT_EQ(group[1]->Recv(0, TestMessage(100000, i)), absl::OkStatus());
  }
  done.get();
  sender.join();
}

TEST_P(TransportTest, AnotherSizeIsAnError) {
  if (!GetParam().minds_sizes) GTEST_SKIP() << "a mismatch is not noticed";
  if (!GetParam().tells_sizes) timeout_seconds = 0.2;
  for (const int64_t sent : {100, 300}) {
    const Group group = Connect(2);
    EXPECT_EQ(group[0]->Send(1, TestMessage(sent, 0)), absl::OkStatus());
    std::vector<uint8_t> inbox;
    const absl::Status status = group[1]->Recv(0, 200, &inbox);
    if (GetParam().tells_sizes) {
      EXPECT_EQ(status.code(), absl::StatusCode::kInternal);
      EXPECT_THAT(std::string(status.message()), HasSubstr("expected 200"));
    } else {
      EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
    }
    if (!GetParam().late) {
      EXPECT_EQ(inbox, std::vector<uint8_t>(200)) << "nothing is written";
    }
    EXPECT_FALSE(group[1]->Recv(0, 200, &inbox).ok()) << "errors are final";
  }
}

TEST_P(TransportTest, AbortUnblocksRecv) {
  const Group group = Connect(2);
  std::thread aborter([&] {
    std::this_thread::sleep_for(milliseconds(20));  // Recv has usually begun by then; it must fail either way
    group[1]->transport->Abort();
  });
  std::vector<uint8_t> inbox;
  EXPECT_EQ(group[1]->Recv(0, 200, &inbox).code(), absl::StatusCode::kUnavailable);
  aborter.join();
  EXPECT_EQ(group[1]->Recv(0, 200, &inbox).code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(group[1]->Send(0, TestMessage(200, 0)).code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(group[1]->transport->status().code(), absl::StatusCode::kUnavailable);
  group[1]->transport->Abort();  // may be called again
}

TEST_P(TransportTest, AbortBeforeAndAfterRecv) {
  const Group group = Connect(2);
  group[1]->transport->Abort();
  std::vector<uint8_t> inbox;
  EXPECT_EQ(group[1]->Recv(0, 200, &inbox).code(), absl::StatusCode::kUnavailable);
  group[1]->transport->Abort();
}

TEST_P(TransportTest, AbortUnblocksSend) {
  const Group group = Connect(2);
  std::thread aborter([&] {
    std::this_thread::sleep_for(milliseconds(20));
    group[0]->transport->Abort();
  });
  absl::Status status;
  for (int i = 0; i <= Transport::kAheadSends && status.ok(); ++i) {
    status = group[0]->Send(1, TestMessage(kBytesMax, i));
  }
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  aborter.join();
  EXPECT_FALSE(group[0]->Send(1, TestMessage(200, 0)).ok());
}

// Once a stage has failed, its peers fail too, with most transports at once.
TEST_P(TransportTest, AbortReachesThePeer) {
  if (!GetParam().tells_losses) timeout_seconds = 0.2;
  const Group group = Connect(2);
  group[0]->transport->Abort();
  EXPECT_FALSE(group[0]->Send(1, TestMessage(200, 0)).ok());
  std::vector<uint8_t> inbox;
  EXPECT_EQ(group[1]->Recv(0, 200, &inbox).code(), absl::StatusCode::kUnavailable);
}

TEST_P(TransportTest, ALostPeerIsAnError) {
  if (GetParam().stages_max < 3) GTEST_SKIP() << "needs 3 stages";
  if (!GetParam().tells_losses) timeout_seconds = 0.2;
  for (const bool waiting : {true, false}) {
    Group group = Connect(3);
    std::thread receiver([&] {
      if (!waiting) return;
      std::vector<uint8_t> inbox;
      EXPECT_EQ(group[1]->Recv(0, 200, &inbox).code(), absl::StatusCode::kUnavailable);
    });
    if (waiting) std::this_thread::sleep_for(milliseconds(20));
    group[0].reset();
    receiver.join();
    absl::Status status;  // one or more sends may be taken before the loss is seen
    for (int i = 0; i < 2 * Transport::kAheadSends && status.ok(); ++i) {
      status = group[1]->Send(0, TestMessage(200, i));
    }
    EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  }
}

TEST_P(TransportTest, AbortUnblocksConnect) {
  for (const int self : {0, 1, 0, 1, 0, 1}) {
    for (const bool before : {true, false}) {
      const auto setups = Setups(2);
      if (before) setups[self]->Abort();
      std::thread aborter([&] {
        std::this_thread::sleep_for(milliseconds(20));
        setups[self]->Abort();
      });
      const auto connected = setups[self]->Connect(AddressesFor(setups, self), kConnectSeconds);
      aborter.join();
      EXPECT_EQ(connected.status().code(), absl::StatusCode::kUnavailable) << "side " << self;
    }
  }
}

TEST_P(TransportTest, ConnectHasATimeLimit) {
  for (const int self : {0, 1, 0, 1}) {
    const auto setups = Setups(2);
    const auto connected = setups[self]->Connect(AddressesFor(setups, self), 0.05);
    EXPECT_EQ(connected.status().code(), absl::StatusCode::kUnavailable) << "side " << self;
  }
}

// Each stage's transport ends as soon as it has connected, while others may still be connecting: they succeed or fail,
// and their processes live on.
TEST_P(TransportTest, PeersThatGoWhileOthersConnect) {
  if (GetParam().stages_max < 3) GTEST_SKIP() << "needs 3 stages";
  for (int round = 0; round < GetParam().rounds; ++round) {
    const auto setups = Setups(3);
    std::vector<std::thread> threads;
    for (int stage = 0; stage < 3; ++stage) {
      threads.emplace_back([&, stage] {
        const auto connected = setups[stage]->Connect(AddressesFor(setups, stage), kConnectSeconds);
        if (!connected.ok()) {
          EXPECT_EQ(connected.status().code(), absl::StatusCode::kUnavailable);
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
  }
}

TEST_P(TransportTest, BadAddressesAreErrors) {
  for (const std::string& bad : {std::string(), std::string("x"), std::string(136, '\0'), std::string(136, '\xFF')}) {
    const auto setups = Setups(2);
    EXPECT_FALSE(setups[0]->Connect({"", bad}, 0.2).ok());
  }
  const auto setups = Setups(2);
  EXPECT_EQ(setups[0]->Connect({""}, 1).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST_P(TransportTest, PeerThatWentBeforeConnect) {
  auto setups = Setups(2);
  const std::vector<std::string> addresses = AddressesFor(setups, 0);
  setups[1].reset();
  EXPECT_EQ(setups[0]->Connect(addresses, 0.5).status().code(), absl::StatusCode::kUnavailable);
}

// A group is aborted in the middle of its work and the next one forms. Two stages, for machines that have no more.
TEST_P(TransportTest, PairsFormAgain) {
  for (int generation = 0; generation < 3; ++generation) {
    const Group group = Connect(2);
    EXPECT_EQ(group[0]->Send(1, TestMessage(200, generation)), absl::OkStatus());
    EXPECT_EQ(group[1]->Recv(0, TestMessage(200, generation)), absl::OkStatus());
    EXPECT_EQ(group[0]->Send(1, TestMessage(200, 1)), absl::OkStatus()) << "never received";
    group[generation % 2]->transport->Abort();
  }
}

int Threads() {
  const std::filesystem::directory_iterator tasks("/proc/self/task");
  return static_cast<int>(std::distance(begin(tasks), end(tasks)));
}

TEST_P(TransportTest, GroupsFormAgainAndLeaveNoThreads) {
  if (GetParam().stages_max < 3) GTEST_SKIP() << "needs 3 stages";
  const int before = Threads();
  for (int generation = 0; generation < 10; ++generation) {
    Group group = Connect(3);
    EXPECT_EQ(group[0]->Send(2, TestMessage(200, generation)), absl::OkStatus());
    EXPECT_EQ(group[2]->Recv(0, TestMessage(200, generation)), absl::OkStatus());
    EXPECT_EQ(group[0]->Send(2, TestMessage(200, 1)), absl::OkStatus()) << "never received";
    group[generation % 3]->transport->Abort();
  }
  factories.clear();
  if (!GetParam().leaves_threads) {
    // A thread is listed until a moment after it has been joined, now as well as above.
    for (int tries = 0; tries < 100 && Threads() > before; ++tries) {
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    EXPECT_LE(Threads(), before);
  }
}

}  // namespace
}  // namespace goldfinch
