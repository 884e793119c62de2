#include "clients/cli/serve/embedded_workers.h"

#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "coordinator/membership/membership.h"
#include "coordinator/membership/worker_link.h"
#include "gtest/gtest.h"
#include "kernels/backend.h"
#include "protos/cluster.pb.h"
#include "worker/model/fake_device.h"
#include "worker/transport/transport.h"
#include "worker/worker.h"

namespace goldfinch {
namespace {

TEST(EmbeddedWorkersTest, SeveralMayShareAGpu) {
  constexpr int kWorkers = 3;
  constexpr int64_t kBytes = 300;
  Membership membership{MembershipOptions()};
  for (int i = 0; i < kWorkers; ++i) {
    Worker worker(EmbeddedWorkerOptions(i, kWorkers, kBytes), MakeCpuBackend(1), MakeLocalTransportFactory());
    cluster::v1::FromWorker registers;
    worker.Connected([&registers](const cluster::v1::FromWorker& message) { registers = message; });
    worker.Disconnected();
    ASSERT_TRUE(registers.has_register_());
    EXPECT_EQ(registers.register_().memory_bytes(), uint64_t{kBytes});
    // As one whose back end computes on a GPU.
    registers.mutable_register_()->set_gpu("GPU-1");
    registers.mutable_register_()->set_threads(0);
    registers.mutable_register_()->set_flops(1e12);
    registers.mutable_register_()->set_read_bytes_per_second(1e12);
    membership.Connected(i + 1, "in this process", /*now=*/0);
    membership.Received(i + 1, std::move(registers), /*now=*/0);
    for (const auto& [id, message] : membership.TakeEffects().sends) EXPECT_EQ(message.refused(), "");
  }
  EXPECT_EQ(membership.workers(), kWorkers);
}

TEST(EmbeddedWorkersTest, NamesAreInTheOrderOfTheStages) {
  constexpr int kWorkers = 101;
  for (int i = 1; i < kWorkers; ++i) {
    EXPECT_LT(EmbeddedWorkerOptions(i - 1, kWorkers, 0).name, EmbeddedWorkerOptions(i, kWorkers, 0).name);
  }
  EXPECT_EQ(EmbeddedWorkerOptions(2, 3, 0).name, "stage 2");
  EXPECT_EQ(EmbeddedWorkerOptions(7, 101, 0).name, "stage 007");
}

class NoCoordinator : public WorkerListener {
 public:
  uint64_t Connected(std::shared_ptr<WorkerLink> /*link*/, const std::string& /*address*/) override { return 1; }
  void Received(uint64_t /*id*/, cluster::v1::FromWorker /*message*/) override {}
  void Disconnected(uint64_t /*id*/) override {}
};

TEST(EmbeddedWorkersTest, AFaultOfAnyDeviceIsKnown) {
  NoCoordinator coordinator;
  EmbeddedWorkers workers(coordinator, nullptr);
  FakeDevice* last = nullptr;
  for (int i = 0; i < 3; ++i) {
    auto device = std::make_unique<FakeDevice>(MakeCpuBackend(1));
    last = device.get();
    const WorkerOptions options = EmbeddedWorkerOptions(i, 3, 0);
    workers.Add(std::make_unique<Worker>(options, std::move(device), MakeLocalTransportFactory()), options.name);
  }
  EXPECT_EQ(workers.device_status(), absl::OkStatus());
  last->Fail(absl::InternalError("the device is lost"));
  EXPECT_EQ(workers.device_status().message(), "the device is lost");
}

}  // namespace
}  // namespace goldfinch
