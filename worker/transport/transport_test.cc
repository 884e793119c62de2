// The tests of all transports on the CPU and on emulated devices, and what is special to each.
#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/backend.h"
#include "kernels/cuda/cuda_backend.h"
#include "worker/model/fake_device.h"
#include "worker/transport/fake_nccl.h"
#include "worker/transport/nccl_api.h"
#include "worker/transport/transport_cases.h"

namespace goldfinch {
namespace {

using std::chrono::milliseconds;
using ::testing::HasSubstr;

std::unique_ptr<TransportFactory> Tcp(const std::string& address, double timeout_seconds) {
  auto factory = MakeTcpTransportFactory(address, timeout_seconds);
  EXPECT_TRUE(factory.ok()) << factory.status();
  return *std::move(factory);
}

std::unique_ptr<Backend> Cpu(int /*stage*/) { return MakeCpuBackend(1); }
std::unique_ptr<Backend> Fake(int /*stage*/) { return std::make_unique<FakeDevice>(MakeCpuBackend(1)); }
// Does its work as late as possible.
std::unique_ptr<Backend> Emulated(int /*stage*/) { return *MakeCudaBackend({}); }
std::unique_ptr<Backend> EmulatedApart(int stage) { return *MakeCudaBackend({.device = stage}); }

std::unique_ptr<TransportFactory> Local(double /*timeout_seconds*/) { return MakeLocalTransportFactory(); }
std::unique_ptr<TransportFactory> TcpByNumber(double timeout_seconds) { return Tcp("127.0.0.1", timeout_seconds); }
std::unique_ptr<TransportFactory> TcpByName(double timeout_seconds) { return Tcp("localhost", timeout_seconds); }
std::unique_ptr<TransportFactory> Nccl(double timeout_seconds) {
  return MakeNcclTransportFactory(FakeNccl(), timeout_seconds);
}

const TransportKind kKinds[] = {
    {.name = "local_cpu", .make = Local, .open_device = Cpu, .tells_sizes = true},
    {.name = "local_fake", .make = Local, .open_device = Fake, .tells_sizes = true},
    {.name = "local_emulated", .make = Local, .open_device = Emulated, .tells_sizes = true},
    {.name = "local_emulated_apart", .make = Local, .open_device = EmulatedApart, .tells_sizes = true},
    {.name = "tcp_number", .make = TcpByNumber, .open_device = Cpu, .tells_sizes = true},
    {.name = "tcp_name", .make = TcpByName, .open_device = Cpu, .tells_sizes = true},
    {.name = "tcp_emulated", .make = TcpByNumber, .open_device = Emulated, .tells_sizes = true},
    {.name = "nccl_emulated", .make = Nccl, .open_device = Emulated, .tells_losses = false, .late = true},
};
INSTANTIATE_TEST_SUITE_P(All, TransportTest, testing::ValuesIn(kKinds),
                         [](const auto& info) { return info.param.name; });

TEST(TcpTransportTest, ListensOnTheRouteToItsPeers) {
  const std::unique_ptr<Backend> backend = MakeCpuBackend(1);
  const std::unique_ptr<TransportFactory> factory = Tcp("127.0.0.2", 1);
  const auto address = [&] {
    const std::vector<StageTraffic> traffic = {{}, {.send_bytes_max = 1, .receive_bytes_max = 1}};
    auto setup = factory->Setup(std::string(32, 'k'), 0, traffic, *backend);
    return setup.ok() ? (*setup)->addresses()[1] : std::string(setup.status().message());
  };
  EXPECT_THAT(address(), HasSubstr("127.0.0.2:"));
  ASSERT_TRUE(factory->Reach("127.0.0.1").ok());
  EXPECT_THAT(address(), HasSubstr("127.0.0.1:"));
  ASSERT_TRUE(factory->Reach("").ok());
  EXPECT_THAT(address(), HasSubstr("127.0.0.2:"));
  EXPECT_EQ(factory->Reach("a.name").code(), absl::StatusCode::kUnavailable) << "nobody is asked for it";
}

class NcclTransportTest : public testing::Test {
 public:
  ~NcclTransportTest() override { SetFakeNcclFaults({}); }
};

TEST_F(NcclTransportTest, OneCommunicatorADirection) {
  const auto factory = Nccl(60);
  StagePair pair(*factory, Emulated);
  EXPECT_EQ(pair.setups[0]->addresses(), std::vector<std::string>(2)) << "only the receiver has an address";
  EXPECT_EQ(pair.setups[1]->addresses()[0].size(), 128u);
  EXPECT_EQ(pair.Connect(), std::pair(absl::OkStatus(), absl::OkStatus()));
  EXPECT_EQ(LiveFakeNcclComms(), 2) << "one for each rank";
  EXPECT_EQ(pair.stages[0].Send(1, TestMessage(200, 1)), absl::OkStatus());
  EXPECT_EQ(pair.stages[1].Recv(0, TestMessage(200, 1)), absl::OkStatus());
  pair.stages[0].transport.reset();
  EXPECT_EQ(LiveFakeNcclComms(), 1);
  pair.stages[1].transport.reset();
  EXPECT_EQ(LiveFakeNcclComms(), 0);
}

TEST_F(NcclTransportTest, TransfersThatHangTimeOut) {
  const auto factory = Nccl(0.1);
  StagePair pair(*factory, Emulated);
  ASSERT_EQ(pair.Connect(), std::pair(absl::OkStatus(), absl::OkStatus()));
  SetFakeNcclFaults({.loses_transfers = true});
  EXPECT_EQ(pair.stages[0].Send(1, TestMessage(200, 1)), absl::OkStatus());
  const absl::Status received = pair.stages[1].Recv(0, TestMessage(200, 1));
  EXPECT_EQ(received.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(received.message()), HasSubstr("from stage 0 has made no progress for 0.1 s"));
  absl::Status sent;
  for (int i = 0; i <= Transport::kAheadSends && sent.ok(); ++i) sent = pair.stages[0].Send(1, TestMessage(200, i));
  EXPECT_THAT(std::string(sent.message()), HasSubstr("to stage 1 has made no progress for 0.1 s"));
  EXPECT_EQ(pair.stages[0].transport->status(), sent) << "the first error stays";
}

TEST_F(NcclTransportTest, ErrorsOfTheLibraryAreFound) {
  const auto factory = Nccl(60);
  StagePair pair(*factory, Emulated);
  ASSERT_EQ(pair.Connect(), std::pair(absl::OkStatus(), absl::OkStatus()));
  SetFakeNcclFaults({.async_error = 6});
  const absl::Status received = pair.stages[1].Recv(0, TestMessage(200, 1));
  EXPECT_EQ(received.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(received.message()), HasSubstr("some error (what went wrong)"));
  while (pair.stages[0].transport->status().ok()) std::this_thread::sleep_for(milliseconds(1));  // without any call
  EXPECT_THAT(std::string(pair.stages[0].transport->status().message()), HasSubstr("to stage 1: some error"));
}

TEST_F(NcclTransportTest, StagesThatShareAGpuAreToldWhatToDo) {
  SetFakeNcclFaults({.init_error = kNcclInvalidUsage});
  const auto factory = Nccl(60);
  StagePair pair(*factory, Emulated);
  const auto [sender, receiver] = pair.Connect();
  for (const absl::Status& status : {sender, receiver}) {
    EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
    EXPECT_THAT(std::string(status.message()), HasSubstr("one stage a GPU"));
  }
}

TEST_F(NcclTransportTest, CommunicatorsThatAreNeverMadeTimeOut) {
  SetFakeNcclFaults({.never_connects = true});
  const auto factory = Nccl(60);
  StagePair pair(*factory, Emulated);
  const auto [sender, receiver] = pair.Connect(0.1);
  EXPECT_THAT(std::string(sender.message()), HasSubstr("did not connect to stage 1 within 0.1 s"));
  EXPECT_THAT(std::string(receiver.message()), HasSubstr("did not connect from stage 0 within 0.1 s"));
}

// Connect makes a transfer on every channel, so that the first step finds them connected: if it does not get through,
// Connect fails.
TEST_F(NcclTransportTest, ChannelsAreWarmedWhenTheGroupForms) {
  SetFakeNcclFaults({.loses_transfers = true});
  const auto factory = Nccl(60);
  StagePair pair(*factory, Emulated);
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

// One transport ends, and then the other, before the device has read what was received.
TEST(LocalTransport, RingsStayUntilTheyAreRead) {
  for (const auto& open_device : {Emulated, EmulatedApart}) {
    for (const int first : {0, 1}) {
      const auto factory = MakeLocalTransportFactory();
      StagePair pair(*factory, open_device);
      ASSERT_EQ(pair.Connect(), std::pair(absl::OkStatus(), absl::OkStatus()));
      for (std::unique_ptr<TransportSetup>& setup : pair.setups) setup.reset();
      EXPECT_EQ(pair.stages[0].Send(1, TestMessage(200, 1)), absl::OkStatus());
      EXPECT_EQ(pair.stages[1].Queue(0, 200, 0), absl::OkStatus());
      pair.stages[first].transport.reset();
      pair.stages[1 - first].transport.reset();
      EXPECT_EQ(pair.stages[1].Queued(200, 0), TestMessage(200, 1).values);
    }
  }
}

// Rings are allocated by Setup, before any stage waits for the group.
TEST(LocalTransport, NoMemoryIsAnErrorOfSetup) {
  for (const StageTraffic& traffic : {StageTraffic{kBytesMax, 0}, StageTraffic{0, kBytesMax}}) {
    FakeDevice device(MakeCpuBackend(1));
    device.set_allocations_left(0);
    const auto factory = MakeLocalTransportFactory();
    EXPECT_EQ(factory->Setup("a key", 0, {{}, traffic}, device).status().code(), absl::StatusCode::kResourceExhausted);
  }
}

struct QueuedCopy {
  const void* from;
  const void* to;
};

// Tells what it was asked to copy.
class TellingQueue : public Queue {
 public:
  TellingQueue(Queue& inner, std::vector<QueuedCopy>& copies) : inner_(inner), copies_(copies) {}
  TellingQueue(std::unique_ptr<Queue> inner, std::vector<QueuedCopy>& copies)
      : owned_(std::move(inner)), inner_(*owned_), copies_(copies) {}
  std::shared_ptr<const Mark> Record() override { return inner_.Record(); }
  void WaitFor(const Mark& mark) override { inner_.WaitFor(mark); }
  void Copy(const void* from, void* to, int64_t bytes) override {
    copies_.push_back({from, to});
    inner_.Copy(from, to, bytes);
  }
  void* stream() override { return inner_.stream(); }

 private:
  const std::unique_ptr<Queue> owned_;
  Queue& inner_;
  std::vector<QueuedCopy>& copies_;
};

class TellingDevice : public FakeDevice {
 public:
  explicit TellingDevice(std::string uuid)
      : FakeDevice(MakeCpuBackend(1)), uuid_(std::move(uuid)), queue_(FakeDevice::queue(), of_ops) {}
  std::string Uuid() const override { return uuid_; }
  Queue& queue() override { return queue_; }
  std::unique_ptr<Queue> MakeQueue() override {
    return std::make_unique<TellingQueue>(FakeDevice::MakeQueue(), beside_ops);
  }

  std::vector<QueuedCopy> of_ops, beside_ops;  // on the main queue, and on others

 private:
  const std::string uuid_;
  TellingQueue queue_;
};

TEST(LocalTransport, RowsOfAnotherDeviceComeBesideTheOps) {
  for (const std::string receiver : {"GPU-1", "GPU-2"}) {
    TellingDevice* devices[2];
    const auto open_device = [&](int stage) {
      auto device = std::make_unique<TellingDevice>(stage == 0 ? "GPU-1" : receiver);
      devices[stage] = device.get();
      return device;
    };
    const auto factory = MakeLocalTransportFactory();
    StagePair pair(*factory, open_device);
    ASSERT_EQ(pair.Connect(), std::pair(absl::OkStatus(), absl::OkStatus()));
    EXPECT_EQ(pair.stages[0].Send(1, TestMessage(200, 1)), absl::OkStatus());
    const std::vector<QueuedCopy>& pushed = devices[0]->beside_ops;
    EXPECT_EQ(pushed.size(), receiver == "GPU-1" ? 0U : 1U) << "before the receiver asks for them";
    EXPECT_EQ(pair.stages[1].Recv(0, TestMessage(200, 1)), absl::OkStatus());
    ASSERT_EQ(devices[0]->of_ops.size(), 1U);
    ASSERT_EQ(devices[1]->of_ops.size(), 1U);
    EXPECT_TRUE(devices[1]->beside_ops.empty());
    EXPECT_EQ(devices[1]->of_ops[0].from, pushed.empty() ? devices[0]->of_ops[0].to : pushed[0].to);
  }
}

TEST(TcpTransport, Ipv6) {
  const auto factory = MakeTcpTransportFactory("::1", 10);
  if (!factory.ok()) GTEST_SKIP() << "this machine has no IPv6: " << factory.status();
  StagePair pair(**factory, Cpu);
  ASSERT_EQ(pair.Connect(), std::pair(absl::OkStatus(), absl::OkStatus()));
  EXPECT_EQ(pair.stages[0].Send(1, TestMessage(200, 1)), absl::OkStatus());
  EXPECT_EQ(pair.stages[1].Recv(0, TestMessage(200, 1)), absl::OkStatus());
}

TEST(TcpTransport, AnotherGenerationIsNoPeer) {
  const auto factory = Tcp("127.0.0.1", 10);
  const std::unique_ptr<Backend> device = Cpu(0);
  const auto a = *factory->Setup("1", 0, {{}, {1000, 0}}, *device),
             b = *factory->Setup("2", 1, {{0, 1000}, {}}, *device);
  absl::Status other;
  std::thread connect([&] { other = b->Connect({"", ""}, 0.3).status(); });
  const absl::Status status = a->Connect({"", b->addresses()[0]}, kConnectSeconds).status();
  connect.join();
  EXPECT_THAT(std::string(status.message()), HasSubstr("does not have the key of this generation"));
  EXPECT_THAT(std::string(other.message()), HasSubstr("not connected to stage 0 within 0.3 s"));
}

TEST(TcpTransport, SilentPeerTimesOut) {
  const auto factory = Tcp("127.0.0.1", 0.1);
  StagePair pair(*factory, Cpu);
  ASSERT_EQ(pair.Connect(), std::pair(absl::OkStatus(), absl::OkStatus()));
  const absl::Status status = pair.stages[1].Recv(0, TestMessage(100, 0));
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(status.message()), HasSubstr("stage 0"));
}

TEST(TcpTransport, AddressesAreChecked) {
  for (const std::string bad : {"no.such.host.invalid", "192.0.2.1", "300.1.1.1", "2001:db8::1", "0.0.0.0", "::"}) {
    const auto factory = MakeTcpTransportFactory(bad, 1);
    EXPECT_EQ(factory.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(factory.status().message()), HasSubstr("\"" + bad + "\""));
  }
}

}  // namespace
}  // namespace goldfinch
