// The one body of tests for all transports (transport_cases.cc). A program that links it says which there are, with
// INSTANTIATE_TEST_SUITE_P of TransportTest.
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
  int stages_max = 4;           // tests of more are skipped
  int rounds = 30;              // of tests that hope to meet a moment
  bool tells_sizes = false;     // a message of another size is an error at once; else when the time is out
  bool minds_sizes = true;      // it is an error at all
  bool tells_losses = true;     // a lost peer is an error at once; else when the time is out
  bool late = false;            // errors of Recv may come by status, when something has been written
  bool leaves_threads = false;  // the device's libraries may keep theirs
};
inline void PrintTo(const TransportKind& kind, std::ostream* out) { *out << kind.name; }

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

class TransportTest : public testing::TestWithParam<TransportKind> {
 public:
  using Group = std::vector<std::unique_ptr<End>>;

  // All stages are peers of each other.
  std::vector<std::unique_ptr<TransportSetup>> Setups(int stages) {
    std::vector<std::unique_ptr<TransportSetup>> setups;
    ++generation;
    for (int stage = 0; stage < stages; ++stage) {
      std::vector<StageTraffic> edges(stages, StageTraffic{kBytesMax, kBytesMax});
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
    while (static_cast<int>(devices.size()) <= stage)
      devices.push_back(GetParam().open_device(static_cast<int>(devices.size())));
    return *devices[stage];
  }

  uint64_t generation = 0;
  double timeout_seconds = 60;
  std::vector<std::unique_ptr<Backend>> devices;             // one a stage
  std::vector<std::unique_ptr<TransportFactory>> factories;  // as in separate processes: one a stage
};

// A pair of stages, of which the first sends to the second.
struct StagePair {
  StagePair(TransportFactory& factory, const std::function<std::unique_ptr<Backend>(int stage)>& open_device)
      : devices{open_device(0), open_device(1)}, ends{End(*devices[0]), End(*devices[1])} {
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

}  // namespace goldfinch

#endif  // GOLDFINCH_WORKER_TRANSPORT_TRANSPORT_CASES_H_
