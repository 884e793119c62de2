// One body for all transports.
#include "worker/transport.h"

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <functional>
#include <future>
#include <iterator>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace goldfinch {
namespace {

using std::chrono::milliseconds;
using ::testing::HasSubstr;

constexpr int64_t kBytesMax = 1 << 20;
constexpr double kConnectSeconds = 20;

struct Kind {
  std::string name;
  std::function<std::unique_ptr<TransportFactory>(double timeout_seconds)> make;
  bool tells_sizes;  // a message of another size is an error at once
};
void PrintTo(const Kind& kind, std::ostream* out) { *out << kind.name; }

std::unique_ptr<TransportFactory> Gloo(const std::string& address, double timeout_seconds) {
  auto factory = MakeGlooTransportFactory(address, timeout_seconds);
  EXPECT_TRUE(factory.ok()) << factory.status();
  return *std::move(factory);
}

// A message: bytes that its number and size tell.
struct Message {
  Message(int64_t bytes, int number) : values(bytes) {
    for (int64_t i = 0; i < bytes; ++i) values[i] = static_cast<uint8_t>(i * 7 + number * 13 + bytes);
  }
  ConstTensor tensor() const { return {values.data(), DType::kU16, {static_cast<int64_t>(values.size()) / 2}}; }
  std::vector<uint8_t> values;
};

struct Inbox {
  explicit Inbox(int64_t bytes) : values(bytes) {}
  Tensor tensor() { return {values.data(), DType::kU16, {static_cast<int64_t>(values.size()) / 2}}; }
  std::vector<uint8_t> values;
};

absl::Status RecvAndCompare(Transport& transport, int from, const Message& expected) {
  Inbox inbox(static_cast<int64_t>(expected.values.size()));
  absl::Status status = transport.Recv(from, inbox.tensor());
  if (status.ok() && inbox.values != expected.values) return absl::DataLossError("another message");
  return status;
}

class TransportTest : public testing::TestWithParam<Kind> {
 public:
  using Group = std::vector<std::unique_ptr<Transport>>;

  // All stages are peers of each other.
  std::vector<std::unique_ptr<TransportSetup>> Setups(int stages) {
    std::vector<std::unique_ptr<TransportSetup>> setups;
    ++generation;
    for (int stage = 0; stage < stages; ++stage) {
      std::vector<bool> peers(stages, true);
      peers[stage] = false;
      auto setup = Factory(stage).Setup(generation, stage, peers, kBytesMax);
      EXPECT_TRUE(setup.ok()) << setup.status();
      setups.push_back(*std::move(setup));
    }
    return setups;
  }
  // Where `stage` connects to each other.
  static std::vector<std::string> AddressesFor(const std::vector<std::unique_ptr<TransportSetup>>& setups,
                                               size_t stage) {
    std::vector<std::string> addresses;
    for (const auto& setup : setups) addresses.push_back(setup->addresses()[stage]);
    return addresses;
  }
  Group Connect(int stages) {
    const auto setups = Setups(stages);
    Group group(stages);
    std::vector<std::thread> threads;
    for (int stage = 0; stage < stages; ++stage) {
      EXPECT_TRUE(setups[stage]->addresses()[stage].empty());
      threads.emplace_back([&, stage] {
        auto connected = setups[stage]->Connect(AddressesFor(setups, stage), kConnectSeconds);
        EXPECT_TRUE(connected.ok()) << connected.status();
        if (connected.ok()) group[stage] = *std::move(connected);
      });
    }
    for (std::thread& thread : threads) thread.join();
    return group;
  }

  TransportFactory& Factory(int stage) {
    while (static_cast<int>(factories.size()) <= stage) factories.push_back(GetParam().make(timeout_seconds));
    return *factories[stage];
  }

  uint64_t generation = 0;
  double timeout_seconds = 60;
  std::vector<std::unique_ptr<TransportFactory>> factories;  // as in separate processes: one a stage
};

TEST_P(TransportTest, MessagesOfManySizesArriveInOrder) {
  const Group group = Connect(2);
  std::vector<int64_t> sizes = {2, 4, 62, 64, 66, 4096, 8192, 100000, kBytesMax - 2, kBytesMax};
  for (int i = 0; i < 300; ++i) sizes.push_back(2 + (i * 7919) % 3000 * 2);
  std::thread sender([&] {
    for (size_t i = 0; i < sizes.size(); ++i) {
      Message message(sizes[i], static_cast<int>(i));
      ASSERT_TRUE(group[0]->Send(1, message.tensor()).ok());
      std::fill(message.values.begin(), message.values.end(), 0xEE);  // it may be changed once Send returns
    }
  });
  for (size_t i = 0; i < sizes.size(); ++i) {
    EXPECT_EQ(RecvAndCompare(*group[1], 0, Message(sizes[i], static_cast<int>(i))), absl::OkStatus()) << i;
  }
  sender.join();
}

TEST_P(TransportTest, BothDirectionsAtOnce) {
  const Group group = Connect(2);
  const auto run = [&](int self) {
    for (int i = 0; i < 200; ++i) {
      EXPECT_EQ(group[self]->Send(1 - self, Message(2000, 2 * i + self).tensor()), absl::OkStatus());
      EXPECT_EQ(RecvAndCompare(*group[self], 1 - self, Message(2000, 2 * i + 1 - self)), absl::OkStatus());
    }
  };
  std::thread other([&] { run(1); });
  run(0);
  other.join();
}

// The boundary stage sends rows to every later stage, and each stage hidden rows to the next.
TEST_P(TransportTest, FanOutToSeveralPeers) {
  constexpr int kStages = 4, kSteps = 60;
  const Group group = Connect(kStages);
  std::vector<std::thread> threads;
  for (int stage = 0; stage < kStages; ++stage) {
    threads.emplace_back([&, stage] {
      for (int step = 0; step < kSteps; ++step) {
        const Message hidden(6000, 3 * step), compressed(400, 3 * step + 1);
        if (stage > 0) {
          EXPECT_EQ(RecvAndCompare(*group[stage], stage - 1, hidden), absl::OkStatus());
          EXPECT_EQ(RecvAndCompare(*group[stage], 0, compressed), absl::OkStatus());
        }
        if (stage + 1 < kStages) {
          EXPECT_EQ(group[stage]->Send(stage + 1, hidden.tensor()), absl::OkStatus());
        }
        for (int to = 1; stage == 0 && to < kStages; ++to) {
          EXPECT_EQ(group[0]->Send(to, compressed.tensor()), absl::OkStatus());
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

TEST_P(TransportTest, SenderMayBeSomeMessagesAhead) {
  const Group group = Connect(2);
  for (int i = 0; i < Transport::kAheadSends; ++i) {
    EXPECT_EQ(group[0]->Send(1, Message(100000, i).tensor()), absl::OkStatus()) << "nobody receives yet";
  }
  std::promise<void> sent;
  std::thread sender([&] {
    EXPECT_EQ(group[0]->Send(1, Message(100000, Transport::kAheadSends).tensor()), absl::OkStatus());
    sent.set_value();
  });
  std::future<void> done = sent.get_future();
  EXPECT_EQ(done.wait_for(milliseconds(50)), std::future_status::timeout) << "no buffer is free";
  for (int i = 0; i <= Transport::kAheadSends; ++i) {
    EXPECT_EQ(RecvAndCompare(*group[1], 0, Message(100000, i)), absl::OkStatus());
  }
  done.get();
  sender.join();
}

TEST_P(TransportTest, AnotherSizeIsAnError) {
  if (!GetParam().tells_sizes) timeout_seconds = 0.2;
  for (const int64_t sent : {100, 300}) {
    const Group group = Connect(2);
    EXPECT_EQ(group[0]->Send(1, Message(sent, 0).tensor()), absl::OkStatus());
    Inbox inbox(200);
    const absl::Status status = group[1]->Recv(0, inbox.tensor());
    if (GetParam().tells_sizes) {
      EXPECT_EQ(status.code(), absl::StatusCode::kInternal);
      EXPECT_THAT(std::string(status.message()), HasSubstr("expected 200"));
    } else {
      EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
    }
    EXPECT_EQ(inbox.values, std::vector<uint8_t>(200)) << "nothing is written";
    EXPECT_FALSE(group[1]->Recv(0, inbox.tensor()).ok()) << "errors are final";
  }
}

TEST_P(TransportTest, AbortUnblocksRecv) {
  const Group group = Connect(2);
  std::thread aborter([&] {
    std::this_thread::sleep_for(milliseconds(20));  // usually Recv has begun; if not, it must fail too
    group[1]->Abort();
  });
  Inbox inbox(200);
  EXPECT_EQ(group[1]->Recv(0, inbox.tensor()).code(), absl::StatusCode::kUnavailable);
  aborter.join();
  EXPECT_EQ(group[1]->Recv(0, inbox.tensor()).code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(group[1]->Send(0, Message(200, 0).tensor()).code(), absl::StatusCode::kUnavailable);
  group[1]->Abort();  // as often as one likes
}

TEST_P(TransportTest, AbortBeforeAndAfterRecv) {
  const Group group = Connect(2);
  group[1]->Abort();
  Inbox inbox(200);
  EXPECT_EQ(group[1]->Recv(0, inbox.tensor()).code(), absl::StatusCode::kUnavailable);
  group[1]->Abort();
}

TEST_P(TransportTest, AbortUnblocksSend) {
  const Group group = Connect(2);
  std::thread aborter([&] {
    std::this_thread::sleep_for(milliseconds(20));
    group[0]->Abort();
  });
  absl::Status status;
  for (int i = 0; i <= Transport::kAheadSends && status.ok(); ++i) {
    status = group[0]->Send(1, Message(kBytesMax, i).tensor());
  }
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  aborter.join();
  EXPECT_FALSE(group[0]->Send(1, Message(200, 0).tensor()).ok());
}

// Once one end has failed, its peers fail too, without a time-out.
TEST_P(TransportTest, AbortReachesThePeer) {
  const Group group = Connect(2);
  group[0]->Abort();
  EXPECT_FALSE(group[0]->Send(1, Message(200, 0).tensor()).ok());
  Inbox inbox(200);
  EXPECT_EQ(group[1]->Recv(0, inbox.tensor()).code(), absl::StatusCode::kUnavailable);
}

TEST_P(TransportTest, ALostPeerIsAnError) {
  for (const bool waiting : {true, false}) {
    Group group = Connect(3);
    std::thread receiver([&] {
      if (!waiting) return;
      Inbox inbox(200);
      EXPECT_EQ(group[1]->Recv(0, inbox.tensor()).code(), absl::StatusCode::kUnavailable);
    });
    if (waiting) std::this_thread::sleep_for(milliseconds(20));
    group[0].reset();
    receiver.join();
    absl::Status status;  // one or more sends may be taken before the loss is seen
    for (int i = 0; i < 2 * Transport::kAheadSends && status.ok(); ++i) {
      status = group[1]->Send(0, Message(200, i).tensor());
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

// Each stage goes as soon as it has connected, while others may still be at it: they connect or fail, and live.
TEST_P(TransportTest, PeersThatGoWhileOthersConnect) {
  for (int round = 0; round < 30; ++round) {
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

int Threads() {
  const std::filesystem::directory_iterator tasks("/proc/self/task");
  return static_cast<int>(std::distance(begin(tasks), end(tasks)));
}

TEST_P(TransportTest, GroupsFormAgainAndLeaveNoThreads) {
  const int before = Threads();
  for (int generation = 0; generation < 10; ++generation) {
    Group group = Connect(3);
    EXPECT_EQ(group[0]->Send(2, Message(200, generation).tensor()), absl::OkStatus());
    EXPECT_EQ(RecvAndCompare(*group[2], 0, Message(200, generation)), absl::OkStatus());
    EXPECT_EQ(group[0]->Send(2, Message(200, 1).tensor()), absl::OkStatus()) << "never received";
    group[generation % 3]->Abort();
  }
  factories.clear();
  EXPECT_EQ(Threads(), before);
}

INSTANTIATE_TEST_SUITE_P(Local, TransportTest,
                         testing::Values(Kind{"local", [](double) { return MakeLocalTransportFactory(); }, true}),
                         [](const auto& info) { return info.param.name; });
INSTANTIATE_TEST_SUITE_P(Gloo, TransportTest,
                         testing::Values(Kind{"ipv4", [](double timeout) { return Gloo("127.0.0.1", timeout); }, false},
                                         Kind{"name", [](double timeout) { return Gloo("localhost", timeout); },
                                              false}),
                         [](const auto& info) { return info.param.name; });

TEST(GlooTransport, Ipv6) {
  const auto factory = MakeGlooTransportFactory("::1", 10);
  if (!factory.ok()) GTEST_SKIP() << "this machine has no IPv6: " << factory.status();
  const auto a = *(*factory)->Setup(1, 0, {false, true}, 1000), b = *(*factory)->Setup(1, 1, {true, false}, 1000);
  std::unique_ptr<Transport> other;
  std::thread connect([&] { other = *b->Connect({a->addresses()[1], ""}, kConnectSeconds); });
  const std::unique_ptr<Transport> transport = *a->Connect({"", b->addresses()[0]}, kConnectSeconds);
  connect.join();
  EXPECT_EQ(transport->Send(1, Message(200, 1).tensor()), absl::OkStatus());
  EXPECT_EQ(RecvAndCompare(*other, 0, Message(200, 1)), absl::OkStatus());
}

TEST(GlooTransport, AnotherGenerationIsNoPeer) {
  const auto factory = Gloo("127.0.0.1", 10);
  const auto a = *factory->Setup(1, 0, {false, true}, 1000), b = *factory->Setup(2, 1, {true, false}, 1000);
  absl::Status other;
  std::thread connect([&] { other = b->Connect({a->addresses()[1], ""}, kConnectSeconds).status(); });
  const absl::Status status = a->Connect({"", b->addresses()[0]}, kConnectSeconds).status();
  connect.join();
  EXPECT_THAT(std::string(status.message()), HasSubstr("generation 2, not of 1"));
  EXPECT_THAT(std::string(other.message()), HasSubstr("generation 1, not of 2"));
}

TEST(GlooTransport, SilentPeerTimesOut) {
  const auto factory = Gloo("127.0.0.1", 0.1);
  auto a = *factory->Setup(1, 0, {false, true}, 1000);
  auto b = *factory->Setup(1, 1, {true, false}, 1000);
  std::unique_ptr<Transport> other;
  std::thread connect([&] { other = *b->Connect({a->addresses()[1], ""}, kConnectSeconds); });
  const std::unique_ptr<Transport> transport = *a->Connect({"", b->addresses()[0]}, kConnectSeconds);
  connect.join();
  Inbox inbox(100);
  const absl::Status status = transport->Recv(1, inbox.tensor());
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(status.message()), HasSubstr("stage 1"));
}

TEST(GlooTransport, AddressesAreChecked) {
  for (const std::string bad : {"no.such.host.invalid", "192.0.2.1", "300.1.1.1", "2001:db8::1", "0.0.0.0", "::"}) {
    const auto factory = MakeGlooTransportFactory(bad, 1);
    EXPECT_EQ(factory.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(factory.status().message()), HasSubstr("\"" + bad + "\""));
  }
}

}  // namespace
}  // namespace goldfinch
