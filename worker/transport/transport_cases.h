// The tests that all transports must pass (transport_cases.cc). A test program links them and names its transports with
// INSTANTIATE_TEST_SUITE_P(..., TransportTest, ...).
#ifndef GOLDFINCH_WORKER_TRANSPORT_TRANSPORT_CASES_H_
#define GOLDFINCH_WORKER_TRANSPORT_TRANSPORT_CASES_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <ostream>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "kernels/backend.h"
#include "worker/transport/transport.h"

namespace goldfinch {

constexpr int64_t kBytesMax = 1 << 20;
constexpr double kConnectSeconds = 20;

struct TransportKind {
  std::string name;
  std::function<std::unique_ptr<TransportFactory>(double timeout_seconds)> make;
  std::function<std::unique_ptr<Backend>(int stage)> open_device;
  int stages_max = 4;           // tests that need more stages are skipped
  int rounds = 30;              // of tests that depend on timing
  bool tells_sizes = false;     // whether a message of another size is an error at once; else it is after the timeout
  bool minds_sizes = true;      // whether it is an error at all
  bool tells_losses = true;     // whether a lost peer is an error at once; else it is after the timeout
  bool late = false;            // whether errors of Recv may come by status only, after something has been written
  bool leaves_threads = false;  // whether the device's libraries may keep threads
};
inline void PrintTo(const TransportKind& kind, std::ostream* out) { *out << kind.name; }

// A message whose bytes depend on its number and size.
struct TestMessage {
  TestMessage(int64_t bytes, int number) : values(bytes) {
    for (int64_t i = 0; i < bytes; ++i) values[i] = static_cast<uint8_t>(i * 7 + number * 13 + bytes);
  }
  std::vector<uint8_t> values;
};

// A stage with its transport, and rows in the memory of its back end. For one thread at a time.
class TestStage {
 public:
  explicit TestStage(Backend& backend)
      : backend_(backend),
        to_send_(*backend.Allocate(kBytesMax, "rows to send")),
        received_(*backend.Allocate(kBytesMax, "rows received")) {}

  // Sends rows that ops write before the Send and overwrite after it.
  absl::Status Send(int stage, const TestMessage& message) {
    const Tensor rows = Rows(to_send_, static_cast<int64_t>(message.values.size()));
    backend_.CopyFromHost(message.values.data(), rows);
    absl::Status status = transport->Send(stage, rows);
    const std::vector<uint8_t> others(message.values.size(), 0xEE);
    backend_.CopyFromHost(others.data(), rows);
    return status;
  }
  // Receives rows and reads them once the ops are done. Returns whether they are good.
  absl::Status Recv(int stage, int64_t bytes, std::vector<uint8_t>* values) {
    values->assign(bytes, 0);
    const Tensor rows = Rows(received_, bytes);
    backend_.CopyFromHost(values->data(), rows);
    absl::Status status = transport->Recv(stage, rows);
    backend_.CopyToHost(rows, values->data());
    return status.ok() ? transport->status() : status;
  }
  absl::Status Recv(int stage, const TestMessage& expected) {
    std::vector<uint8_t> values;
    absl::Status status = Recv(stage, static_cast<int64_t>(expected.values.size()), &values);
    if (status.ok() && values != expected.values) return absl::DataLossError("another message");
    return status;
  }
  // Receives rows to `offset` without waiting for them; Queued reads them.
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

class TransportTest : public testing::TestWithParam<TransportKind> {
 public:
  using Group = std::vector<std::unique_ptr<TestStage>>;

  // Sets up a group in which every stage sends to and receives from every other.
  std::vector<std::unique_ptr<TransportSetup>> Setups(int stages) {
    std::vector<std::unique_ptr<TransportSetup>> setups;
    ++generation;
    for (int stage = 0; stage < stages; ++stage) {
      std::vector<StageTraffic> traffic(stages, StageTraffic{kBytesMax, kBytesMax});
      traffic[stage] = {};
      auto setup = Factory(stage).Setup(absl::StrCat("generation ", generation), stage, traffic, Device(stage));
      EXPECT_TRUE(setup.ok()) << setup.status();
      setups.push_back(*std::move(setup));
    }
    return setups;
  }
  // The addresses at which `stage` connects to each other stage.
  static std::vector<std::string> AddressesFor(const std::vector<std::unique_ptr<TransportSetup>>& setups,
                                               size_t stage) {
    std::vector<std::string> addresses;
    for (const auto& setup : setups) addresses.push_back(setup->addresses()[stage]);
    return addresses;
  }
  Group Connect(int stages) {
    const auto setups = Setups(stages);
    Group group;
    for (int stage = 0; stage < stages; ++stage) group.push_back(std::make_unique<TestStage>(Device(stage)));
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
    while (static_cast<int>(devices.size()) <= stage)
      devices.push_back(GetParam().open_device(static_cast<int>(devices.size())));
    return *devices[stage];
  }

  uint64_t generation = 0;
  double timeout_seconds = 60;
  std::vector<std::unique_ptr<Backend>> devices;             // [stages]
  std::vector<std::unique_ptr<TransportFactory>> factories;  // [stages], as in separate processes
};

// Two stages, of which the first sends to the second.
struct StagePair {
  StagePair(TransportFactory& factory, const std::function<std::unique_ptr<Backend>(int stage)>& open_device)
      : devices{open_device(0), open_device(1)}, stages{TestStage(*devices[0]), TestStage(*devices[1])} {
    setups[0] = *factory.Setup("a key", 0, {{}, {kBytesMax, 0}}, *devices[0]);
    setups[1] = *factory.Setup("a key", 1, {{0, kBytesMax}, {}}, *devices[1]);
  }
  // Returns how Connect went for the sender and for the receiver.
  std::pair<absl::Status, absl::Status> Connect(double seconds = kConnectSeconds) {
    absl::Status statuses[2];
    const auto connect = [&](int self) {
      const int other = 1 - self;
      std::vector<std::string> addresses(2);
      addresses[other] = setups[other]->addresses()[self];
      auto transport = setups[self]->Connect(addresses, seconds);
      statuses[self] = transport.status();
      if (transport.ok()) stages[self].transport = *std::move(transport);
    };
    std::thread other([&] { connect(1); });
    connect(0);
    other.join();
    return {statuses[0], statuses[1]};
  }

  std::unique_ptr<Backend> devices[2];
  TestStage stages[2];
  std::unique_ptr<TransportSetup> setups[2];
};

}  // namespace goldfinch

#endif  // GOLDFINCH_WORKER_TRANSPORT_TRANSPORT_CASES_H_
