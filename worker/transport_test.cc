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
#include "kernels/backend.h"
#include "kernels/cuda/cuda_backend.h"
#include "worker/fake_device.h"
#include "worker/fake_nccl.h"
#include "worker/nccl_transport.h"

namespace goldfinch {
namespace {

using std::chrono::milliseconds;
using ::testing::HasSubstr;

constexpr int64_t kBytesMax = 1 << 20;
constexpr double kConnectSeconds = 20;

struct Kind {
  std::string name;
  std::function<std::unique_ptr<TransportFactory>(double timeout_seconds)> make;
  std::function<std::unique_ptr<Backend>()> open_device;
  bool tells_sizes = false;  // a message of another size is an error at once
  bool tells_losses = true;  // a lost peer is an error at once; else when the time is out
  bool late = false;         // errors of Recv may come by status, when something has been written
};
void PrintTo(const Kind& kind, std::ostream* out) { *out << kind.name; }

std::unique_ptr<TransportFactory> Gloo(const std::string& address, double timeout_seconds) {
  auto factory = MakeGlooTransportFactory(address, timeout_seconds);
  EXPECT_TRUE(factory.ok()) << factory.status();
  return *std::move(factory);
}

std::unique_ptr<Backend> Cpu() { return MakeCpuBackend(1); }
std::unique_ptr<Backend> Fake() { return std::make_unique<FakeDevice>(MakeCpuBackend(1)); }
// Does what it is asked as late as it may.
std::unique_ptr<Backend> Emulated() { return *MakeCudaBackend({}); }

// A message: bytes that its number and size tell.
struct Message {
  Message(int64_t bytes, int number) : values(bytes) {
    for (int64_t i = 0; i < bytes; ++i) values[i] = static_cast<uint8_t>(i * 7 + number * 13 + bytes);
  }
  std::vector<uint8_t> values;
};

// A stage of the tests: its transport, and rows in the memory of its back end. One thread at a time.
class End {
 public:
  explicit End(Backend& backend)
      : backend_(backend),
        to_send_(*backend.Allocate(kBytesMax, "rows to send")),
        received_(*backend.Allocate(kBytesMax, "rows received")) {}

  // The rows are written before it and overwritten after it, by ops.
  absl::Status Send(int stage, const Message& message) {
    const Tensor rows = Rows(to_send_, static_cast<int64_t>(message.values.size()));
    backend_.CopyFromHost(message.values.data(), rows);
    absl::Status status = transport->Send(stage, rows);
    const std::vector<uint8_t> others(message.values.size(), 0xEE);
    backend_.CopyFromHost(others.data(), rows);
    return status;
  }
  // What is here once the ops are done, and whether it is good.
  absl::Status Recv(int stage, int64_t bytes, std::vector<uint8_t>* values) {
    values->assign(bytes, 0);
    const Tensor rows = Rows(received_, bytes);
    backend_.CopyFromHost(values->data(), rows);
    absl::Status status = transport->Recv(stage, rows);
    backend_.CopyToHost(rows, values->data());
    return status.ok() ? transport->status() : status;
  }
  absl::Status Recv(int stage, const Message& expected) {
    std::vector<uint8_t> values;
    absl::Status status = Recv(stage, static_cast<int64_t>(expected.values.size()), &values);
    if (status.ok() && values != expected.values) return absl::DataLossError("another message");
    return status;
  }
  // Without waiting for what it has.
  absl::Status Queue(int stage, int64_t bytes, int64_t offset) {
    Tensor rows = Rows(received_, bytes);
    rows.data = static_cast<char*>(received_.get()) + offset;
    return transport->Recv(stage, rows);
  }
  std::vector<uint8_t> Queued(int64_t bytes, int64_t offset) {
    std::vector<uint8_t> values(bytes);
    Tensor rows = Rows(received_, bytes);
    rows.data = static_cast<char*>(received_.get()) + offset;
    backend_.CopyToHost(rows, values.data());
    return values;
  }

  std::unique_ptr<Transport> transport;

 private:
  static Tensor Rows(const std::shared_ptr<void>& memory, int64_t bytes) {
    return {memory.get(), DType::kU16, {bytes / 2}};
  }

  Backend& backend_;
  const std::shared_ptr<void> to_send_, received_;
};

class TransportTest : public testing::TestWithParam<Kind> {
 public:
  using Group = std::vector<std::unique_ptr<End>>;

  ~TransportTest() override { SetFakeNcclFaults({}); }

  // All stages are peers of each other.
  std::vector<std::unique_ptr<TransportSetup>> Setups(int stages) {
    std::vector<std::unique_ptr<TransportSetup>> setups;
    ++generation;
    for (int stage = 0; stage < stages; ++stage) {
      std::vector<Edge> edges(stages, Edge{kBytesMax, kBytesMax});
      edges[stage] = {};
      auto setup = Factory(stage).Setup(generation, stage, edges, Device(stage));
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
    Group group;
    for (int stage = 0; stage < stages; ++stage) group.push_back(std::make_unique<End>(Device(stage)));
    std::vector<std::thread> threads;
    for (int stage = 0; stage < stages; ++stage) {
      EXPECT_TRUE(setups[stage]->addresses()[stage].empty());
      threads.emplace_back([&, stage] {
        auto connected = setups[stage]->Connect(AddressesFor(setups, stage), kConnectSeconds);
        EXPECT_TRUE(connected.ok()) << connected.status();
        if (connected.ok()) group[stage]->transport = *std::move(connected);
      });
    }
    for (std::thread& thread : threads) thread.join();
    return group;
  }

  TransportFactory& Factory(int stage) {
    while (static_cast<int>(factories.size()) <= stage) factories.push_back(GetParam().make(timeout_seconds));
    return *factories[stage];
  }
  Backend& Device(int stage) {
    while (static_cast<int>(devices.size()) <= stage) devices.push_back(GetParam().open_device());
    return *devices[stage];
  }

  uint64_t generation = 0;
  double timeout_seconds = 60;
  std::vector<std::unique_ptr<Backend>> devices;             // one a stage
  std::vector<std::unique_ptr<TransportFactory>> factories;  // as in separate processes: one a stage
};

TEST_P(TransportTest, MessagesOfManySizesArriveInOrder) {
  const Group group = Connect(2);
  std::vector<int64_t> sizes = {2, 4, 62, 64, 66, 4096, 8192, 100000, kBytesMax - 2, kBytesMax};
  for (int i = 0; i < 300; ++i) sizes.push_back(2 + (i * 7919) % 3000 * 2);
  std::thread sender([&] {
    for (size_t i = 0; i < sizes.size(); ++i) {
      ASSERT_EQ(group[0]->Send(1, Message(sizes[i], static_cast<int>(i))), absl::OkStatus());
    }
  });
  for (size_t i = 0; i < sizes.size(); ++i) {
    EXPECT_EQ(group[1]->Recv(0, Message(sizes[i], static_cast<int>(i))), absl::OkStatus()) << i;
  }
  sender.join();
}

TEST_P(TransportTest, BothDirectionsAtOnce) {
  const Group group = Connect(2);
  const auto run = [&](int self) {
    for (int i = 0; i < 200; ++i) {
      EXPECT_EQ(group[self]->Send(1 - self, Message(2000, 2 * i + self)), absl::OkStatus());
      EXPECT_EQ(group[self]->Recv(1 - self, Message(2000, 2 * i + 1 - self)), absl::OkStatus());
    }
  };
  std::thread other([&] { run(1); });
  run(0);
  other.join();
}

// What one thread queues without waiting is there in the end, in order.
TEST_P(TransportTest, MessagesMayBeQueuedAhead) {
  const Group group = Connect(2);
  for (int i = 0; i < Transport::kAheadSends; ++i) EXPECT_EQ(group[0]->Send(1, Message(20000, i)), absl::OkStatus());
  for (int i = 0; i < Transport::kAheadSends; ++i) EXPECT_EQ(group[1]->Queue(0, 20000, i * 32768), absl::OkStatus());
  for (int i = 0; i < Transport::kAheadSends; ++i) {
    EXPECT_EQ(group[1]->Queued(20000, i * 32768), Message(20000, i).values) << i;
  }
  EXPECT_EQ(group[1]->transport->status(), absl::OkStatus());
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
    EXPECT_EQ(group[0]->Send(1, Message(100000, i)), absl::OkStatus()) << "nobody receives yet";
  }
  std::promise<void> sent;
  std::thread sender([&] {
    EXPECT_EQ(group[0]->Send(1, Message(100000, Transport::kAheadSends)), absl::OkStatus());
    sent.set_value();
  });
  std::future<void> done = sent.get_future();
  EXPECT_EQ(done.wait_for(milliseconds(50)), std::future_status::timeout) << "no buffer is free";
  for (int i = 0; i <= Transport::kAheadSends; ++i) {
    EXPECT_EQ(group[1]->Recv(0, Message(100000, i)), absl::OkStatus());
  }
  done.get();
  sender.join();
}

TEST_P(TransportTest, AnotherSizeIsAnError) {
  if (!GetParam().tells_sizes) timeout_seconds = 0.2;
  for (const int64_t sent : {100, 300}) {
    const Group group = Connect(2);
    EXPECT_EQ(group[0]->Send(1, Message(sent, 0)), absl::OkStatus());
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
    std::this_thread::sleep_for(milliseconds(20));  // usually Recv has begun; if not, it must fail too
    group[1]->transport->Abort();
  });
  std::vector<uint8_t> inbox;
  EXPECT_EQ(group[1]->Recv(0, 200, &inbox).code(), absl::StatusCode::kUnavailable);
  aborter.join();
  EXPECT_EQ(group[1]->Recv(0, 200, &inbox).code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(group[1]->Send(0, Message(200, 0)).code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(group[1]->transport->status().code(), absl::StatusCode::kUnavailable);
  group[1]->transport->Abort();  // as often as one likes
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
    status = group[0]->Send(1, Message(kBytesMax, i));
  }
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  aborter.join();
  EXPECT_FALSE(group[0]->Send(1, Message(200, 0)).ok());
}

// Once one end has failed, its peers fail too; most without a time-out.
TEST_P(TransportTest, AbortReachesThePeer) {
  if (!GetParam().tells_losses) timeout_seconds = 0.2;
  const Group group = Connect(2);
  group[0]->transport->Abort();
  EXPECT_FALSE(group[0]->Send(1, Message(200, 0)).ok());
  std::vector<uint8_t> inbox;
  EXPECT_EQ(group[1]->Recv(0, 200, &inbox).code(), absl::StatusCode::kUnavailable);
}

TEST_P(TransportTest, ALostPeerIsAnError) {
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
      status = group[1]->Send(0, Message(200, i));
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
    EXPECT_EQ(group[0]->Send(2, Message(200, generation)), absl::OkStatus());
    EXPECT_EQ(group[2]->Recv(0, Message(200, generation)), absl::OkStatus());
    EXPECT_EQ(group[0]->Send(2, Message(200, 1)), absl::OkStatus()) << "never received";
    group[generation % 3]->transport->Abort();
  }
  EXPECT_EQ(LiveFakeNcclComms(), 0);
  factories.clear();
  EXPECT_EQ(Threads(), before);
}

std::unique_ptr<TransportFactory> Local(double /*timeout_seconds*/) { return MakeLocalTransportFactory(); }
std::unique_ptr<TransportFactory> GlooByNumber(double timeout_seconds) { return Gloo("127.0.0.1", timeout_seconds); }
std::unique_ptr<TransportFactory> GlooByName(double timeout_seconds) { return Gloo("localhost", timeout_seconds); }
std::unique_ptr<TransportFactory> Nccl(double timeout_seconds) {
  return MakeNcclTransportFactory(FakeNccl(), timeout_seconds);
}

const Kind kKinds[] = {
    {.name = "local_cpu", .make = Local, .open_device = Cpu, .tells_sizes = true},
    {.name = "local_fake", .make = Local, .open_device = Fake, .tells_sizes = true},
    {.name = "local_emulated", .make = Local, .open_device = Emulated, .tells_sizes = true},
    {.name = "gloo_number", .make = GlooByNumber, .open_device = Cpu},
    {.name = "gloo_name", .make = GlooByName, .open_device = Cpu},
    {.name = "gloo_emulated", .make = GlooByNumber, .open_device = Emulated},
    {.name = "nccl_emulated", .make = Nccl, .open_device = Emulated, .tells_losses = false, .late = true},
};
INSTANTIATE_TEST_SUITE_P(All, TransportTest, testing::ValuesIn(kKinds),
                         [](const auto& info) { return info.param.name; });

// A pair of stages, of which the first sends to the second.
struct Pair {
  explicit Pair(TransportFactory& factory, std::unique_ptr<Backend> (*open_device)() = Cpu)
      : devices{open_device(), open_device()}, ends{End(*devices[0]), End(*devices[1])} {
    setups[0] = *factory.Setup(1, 0, {{}, {kBytesMax, 0}}, *devices[0]);
    setups[1] = *factory.Setup(1, 1, {{0, kBytesMax}, {}}, *devices[1]);
  }
  // Of the sender, and of the receiver.
  std::pair<absl::Status, absl::Status> Connect(double seconds = kConnectSeconds) {
    absl::Status statuses[2];
    const auto connect = [&](int self) {
      const int other = 1 - self;
      std::vector<std::string> addresses(2);
      addresses[other] = setups[other]->addresses()[self];
      auto transport = setups[self]->Connect(addresses, seconds);
      statuses[self] = transport.status();
      if (transport.ok()) ends[self].transport = *std::move(transport);
    };
    std::thread other([&] { connect(1); });
    connect(0);
    other.join();
    return {statuses[0], statuses[1]};
  }

  std::unique_ptr<Backend> devices[2];
  End ends[2];
  std::unique_ptr<TransportSetup> setups[2];
};

class NcclTransportTest : public testing::Test {
 public:
  ~NcclTransportTest() override { SetFakeNcclFaults({}); }
};

TEST_F(NcclTransportTest, OneCommunicatorADirection) {
  const auto factory = Nccl(60);
  Pair pair(*factory, Emulated);
  EXPECT_EQ(pair.setups[0]->addresses(), std::vector<std::string>(2)) << "the receiver names it";
  EXPECT_EQ(pair.setups[1]->addresses()[0].size(), 128u);
  EXPECT_EQ(pair.Connect(), std::pair(absl::OkStatus(), absl::OkStatus()));
  EXPECT_EQ(LiveFakeNcclComms(), 2) << "of two ranks";
  EXPECT_EQ(pair.ends[0].Send(1, Message(200, 1)), absl::OkStatus());
  EXPECT_EQ(pair.ends[1].Recv(0, Message(200, 1)), absl::OkStatus());
  pair.ends[0].transport.reset();
  EXPECT_EQ(LiveFakeNcclComms(), 1);
}

TEST_F(NcclTransportTest, TransfersThatHangTimeOut) {
  const auto factory = Nccl(0.1);
  Pair pair(*factory, Emulated);
  ASSERT_EQ(pair.Connect(), std::pair(absl::OkStatus(), absl::OkStatus()));
  SetFakeNcclFaults({.loses_transfers = true});
  EXPECT_EQ(pair.ends[0].Send(1, Message(200, 1)), absl::OkStatus());
  const absl::Status received = pair.ends[1].Recv(0, Message(200, 1));
  EXPECT_EQ(received.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(received.message()), HasSubstr("from stage 0 has made no progress for 0.1 s"));
  absl::Status sent;
  for (int i = 0; i <= Transport::kAheadSends && sent.ok(); ++i) sent = pair.ends[0].Send(1, Message(200, i));
  EXPECT_THAT(std::string(sent.message()), HasSubstr("to stage 1 has made no progress for 0.1 s"));
  EXPECT_EQ(pair.ends[0].transport->status(), sent) << "the first error stays";
}

TEST_F(NcclTransportTest, ErrorsOfTheLibraryAreFound) {
  const auto factory = Nccl(60);
  Pair pair(*factory, Emulated);
  ASSERT_EQ(pair.Connect(), std::pair(absl::OkStatus(), absl::OkStatus()));
  SetFakeNcclFaults({.async_error = 6});
  const absl::Status received = pair.ends[1].Recv(0, Message(200, 1));
  EXPECT_EQ(received.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(received.message()), HasSubstr("some error (what went wrong)"));
  while (pair.ends[0].transport->status().ok()) std::this_thread::sleep_for(milliseconds(1));  // nobody calls
  EXPECT_THAT(std::string(pair.ends[0].transport->status().message()), HasSubstr("to stage 1: some error"));
}

TEST_F(NcclTransportTest, StagesThatShareAGpuAreToldWhatToDo) {
  SetFakeNcclFaults({.init_error = kNcclInvalidUsage});
  const auto factory = Nccl(60);
  Pair pair(*factory, Emulated);
  const auto [sender, receiver] = pair.Connect();
  for (const absl::Status& status : {sender, receiver}) {
    EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
    EXPECT_THAT(std::string(status.message()), HasSubstr("one stage a GPU"));
  }
}

TEST_F(NcclTransportTest, CommunicatorsThatAreNeverMadeTimeOut) {
  SetFakeNcclFaults({.never_connects = true});
  const auto factory = Nccl(60);
  Pair pair(*factory, Emulated);
  const auto [sender, receiver] = pair.Connect(0.1);
  EXPECT_THAT(std::string(sender.message()), HasSubstr("did not connect to stage 1 within 0.1 s"));
  EXPECT_THAT(std::string(receiver.message()), HasSubstr("did not connect from stage 0 within 0.1 s"));
}

// The ways are warm before the first Step: a transfer that does not come through is an error of Connect.
TEST_F(NcclTransportTest, EdgesAreWarmedWhenTheGroupForms) {
  SetFakeNcclFaults({.loses_transfers = true});
  const auto factory = Nccl(60);
  Pair pair(*factory, Emulated);
  const auto [sender, receiver] = pair.Connect(0.2);
  EXPECT_THAT(std::string(sender.message()), HasSubstr("nothing came through to stage 1 within 0.2 s"));
  EXPECT_THAT(std::string(receiver.message()), HasSubstr("nothing came through from stage 0 within 0.2 s"));
}

TEST_F(NcclTransportTest, AMissingLibraryIsNamed) {
  const auto factory = MakeNcclTransportFactory(10);
  if (factory.ok()) GTEST_SKIP() << "this machine has NCCL";
  EXPECT_EQ(factory.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(factory.status().message()), HasSubstr("libnccl.so.2"));
}

// Rings are taken before anybody waits for the group.
TEST(LocalTransport, NoMemoryIsAnErrorOfSetup) {
  FakeDevice device(MakeCpuBackend(1));
  device.set_allocations_left(0);
  const auto factory = MakeLocalTransportFactory();
  EXPECT_EQ(factory->Setup(1, 0, {{}, {kBytesMax, 0}}, device).status().code(),
            absl::StatusCode::kResourceExhausted);
}

TEST(GlooTransport, Ipv6) {
  const auto factory = MakeGlooTransportFactory("::1", 10);
  if (!factory.ok()) GTEST_SKIP() << "this machine has no IPv6: " << factory.status();
  Pair pair(**factory);
  ASSERT_EQ(pair.Connect(), std::pair(absl::OkStatus(), absl::OkStatus()));
  EXPECT_EQ(pair.ends[0].Send(1, Message(200, 1)), absl::OkStatus());
  EXPECT_EQ(pair.ends[1].Recv(0, Message(200, 1)), absl::OkStatus());
}

TEST(GlooTransport, AnotherGenerationIsNoPeer) {
  const auto factory = Gloo("127.0.0.1", 10);
  const std::unique_ptr<Backend> device = Cpu();
  const auto a = *factory->Setup(1, 0, {{}, {1000, 0}}, *device), b = *factory->Setup(2, 1, {{0, 1000}, {}}, *device);
  absl::Status other;
  std::thread connect([&] { other = b->Connect({a->addresses()[1], ""}, kConnectSeconds).status(); });
  const absl::Status status = a->Connect({"", b->addresses()[0]}, kConnectSeconds).status();
  connect.join();
  EXPECT_THAT(std::string(status.message()), HasSubstr("generation 2, not of 1"));
  EXPECT_THAT(std::string(other.message()), HasSubstr("generation 1, not of 2"));
}

TEST(GlooTransport, SilentPeerTimesOut) {
  const auto factory = Gloo("127.0.0.1", 0.1);
  Pair pair(*factory);
  ASSERT_EQ(pair.Connect(), std::pair(absl::OkStatus(), absl::OkStatus()));
  const absl::Status status = pair.ends[1].Recv(0, Message(100, 0));
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(status.message()), HasSubstr("stage 0"));
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
