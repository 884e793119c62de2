#include "clients/cli/serve/stage_devices.h"

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "clients/cli/machine/machine_lock.h"
#include "clients/cli/terminal/terminal.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/backend.h"
#include "kernels/open_backend.h"
#include "worker/model/fake_device.h"

namespace goldfinch {
namespace {

using ::testing::Contains;
using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

constexpr int64_t kGigabyte = 1'000'000'000;

// A GPU of a size, with what others have taken of it.
class SizedDevice : public FakeDevice {
 public:
  SizedDevice(int64_t bytes, int64_t taken) : FakeDevice(MakeCpuBackend(1)), bytes_(bytes), taken_(taken) {}
  int64_t TotalBytes() const override { return bytes_; }
  int64_t FreeBytes() const override { return bytes_ - taken_; }

 private:
  const int64_t bytes_, taken_;
};

// A machine whose GPUs have these sizes; those of size 0 cannot be opened.
class StageDevicesTest : public testing::Test {
 public:
  StageDevicesTest() {
    options_.gpu_memory_utilization = 1;
    options_.no_prefix_cache = true;
    machine_.threads = 8;
  }

  void AddGpu(int64_t bytes, int64_t taken = 0) {
    gpus_["cuda:" + std::to_string(machine_.gpu_uuids.size())] = {bytes, taken};
    machine_.gpu_uuids.push_back(std::string(testing::UnitTest::GetInstance()->current_test_info()->name()) +
                                 std::to_string(machine_.gpu_uuids.size()));
  }
  absl::StatusOr<StageDevices> Open(int stages, bool claims = true) {
    opened_.clear();
    return OpenStageDevices(
        options_, stages, machine_, claims,
        [this](const BackendOptions& one, std::string* description) { return OpenOne(one, description); });
  }
  // Which device each stage has.
  static std::vector<int> DevicesOf(const StageDevices& devices) {
    std::vector<int> numbers;
    for (const StageDevice& stage : devices.stages) numbers.push_back(stage.device);
    return numbers;
  }
  static std::vector<int64_t> MemoryOf(const StageDevices& devices) {
    std::vector<int64_t> bytes;
    for (const StageDevice& stage : devices.stages) bytes.push_back(stage.memory_bytes);
    return bytes;
  }

  ServeOptions options_;
  StageMachine machine_;
  std::vector<BackendOptions> opened_;  // in this order

 private:
  absl::StatusOr<std::unique_ptr<Backend>> OpenOne(const BackendOptions& one, std::string* description) {
    if (description != nullptr) *description = one.device;
    opened_.push_back(one);
    if (one.device == "cpu" || one.device == "auto") return MakeCpuBackend(one.threads);
    const auto gpu = gpus_.find(one.device == "cuda" ? "cuda:0" : one.device);
    if (gpu == gpus_.end() || gpu->second.first == 0) {
      return AsUsageError(absl::UnavailableError("device " + one.device + ": it is broken"));
    }
    return std::make_unique<SizedDevice>(gpu->second.first, gpu->second.second);
  }

  std::map<std::string, std::pair<int64_t, int64_t>> gpus_;
};

TEST_F(StageDevicesTest, AllGpusByDefault) {
  for (int i = 0; i < 4; ++i) AddGpu(80 * kGigabyte);
  const auto devices = Open(4);
  ASSERT_TRUE(devices.ok()) << devices.status();
  EXPECT_THAT(DevicesOf(*devices), ElementsAre(0, 1, 2, 3));
  EXPECT_THAT(MemoryOf(*devices), Each(80 * kGigabyte));
  EXPECT_THAT(devices->lines, ElementsAre("stage 0 on GPU 0: cuda:0, 80 GB", "stage 1 on GPU 1: cuda:1, 80 GB",
                                          "stage 2 on GPU 2: cuda:2, 80 GB", "stage 3 on GPU 3: cuda:3, 80 GB"));
}

TEST_F(StageDevicesTest, StagesOfAGpuShareItsMemory) {
  AddGpu(40 * kGigabyte, /*taken=*/4 * kGigabyte);
  AddGpu(80 * kGigabyte);
  const auto devices = Open(6);
  ASSERT_TRUE(devices.ok()) << devices.status();
  EXPECT_THAT(DevicesOf(*devices), ElementsAre(0, 0, 1, 1, 1, 1));
  EXPECT_THAT(MemoryOf(*devices), ElementsAre(18 * kGigabyte, 18 * kGigabyte, 20 * kGigabyte, 20 * kGigabyte,
                                              20 * kGigabyte, 20 * kGigabyte));
  EXPECT_EQ(devices->stages[0].sharing, 2);
  EXPECT_EQ(devices->stages[5].sharing, 4);
  EXPECT_THAT(devices->lines,
              ElementsAre("stages 0 to 1 on GPU 0: cuda:0, 18 GB each", "stages 2 to 5 on GPU 1: cuda:1, 20 GB each"));
  options_.memory_bytes = 60 * kGigabyte;
  EXPECT_THAT(MemoryOf(Open(6, /*claims=*/false).value()), Each(10 * kGigabyte));
}

TEST_F(StageDevicesTest, GpusThatNoStageNeedsAreNotOpened) {
  for (int i = 0; i < 4; ++i) AddGpu(80 * kGigabyte);
  const auto devices = Open(2);
  ASSERT_TRUE(devices.ok()) << devices.status();
  EXPECT_THAT(DevicesOf(*devices), ElementsAre(0, 1));
  EXPECT_THAT(opened_, SizeIs(2));
  EXPECT_THAT(devices->lines, Contains(HasSubstr("GPU 2, 3 are idle")));
  EXPECT_TRUE(MachineLock::Try(machine_.gpu_uuids[2]));
}

TEST_F(StageDevicesTest, OthersKeepTheirs) {
  for (int i = 0; i < 3; ++i) AddGpu(80 * kGigabyte);
  const auto other = MachineLock::Try(machine_.gpu_uuids[1]);
  ASSERT_TRUE(other);
  {
    const auto devices = Open(3);
    ASSERT_TRUE(devices.ok()) << devices.status();
    EXPECT_THAT(DevicesOf(*devices), ElementsAre(0, 0, 2));
    EXPECT_THAT(devices->locks, SizeIs(2));
    const absl::Status none = Open(1).status();
    EXPECT_THAT(std::string(none.message()), HasSubstr("other workers compute on all 3 GPUs"));
    EXPECT_EQ(ExitCode(none), 2);
    options_.devices = "1";
    EXPECT_THAT(DevicesOf(Open(2).value()), ElementsAre(1, 1)) << "it was asked for";
  }
  options_.devices = "all";
  EXPECT_THAT(DevicesOf(Open(3, /*claims=*/false).value()), ElementsAre(0, 1, 2)) << "who only plans disturbs nobody";
}

TEST_F(StageDevicesTest, GpusThatCannotBeUsedAreLeftOut) {
  AddGpu(0);
  AddGpu(80 * kGigabyte, /*taken=*/80 * kGigabyte);
  AddGpu(80 * kGigabyte);
  {
    const auto devices = Open(2);
    ASSERT_TRUE(devices.ok()) << devices.status();
    EXPECT_THAT(DevicesOf(*devices), ElementsAre(2, 2));
    EXPECT_THAT(devices->lines, Contains("a GPU is left out: device cuda:0: it is broken"));
    EXPECT_THAT(devices->lines, Contains(HasSubstr("80 GB are in use already")));
    EXPECT_TRUE(MachineLock::Try(machine_.gpu_uuids[0])) << "it is left to others";
  }
  options_.devices = "0,2";
  const absl::Status named = Open(2).status();
  EXPECT_EQ(named.message(), "device cuda:0: it is broken");
  EXPECT_EQ(ExitCode(named), 2);
}

TEST_F(StageDevicesTest, NamedOnesInTheirOrder) {
  for (int i = 0; i < 4; ++i) AddGpu(80 * kGigabyte);
  options_.devices = "3,0-1";
  EXPECT_THAT(DevicesOf(Open(6).value()), ElementsAre(3, 3, 0, 0, 1, 1));
  options_.devices = "3-4";
  const absl::Status none = Open(2).status();
  EXPECT_EQ(none.message(), "--devices names GPU 4, this machine has 4, GPU 0 to 3");
  EXPECT_EQ(ExitCode(none), 2);
}

TEST_F(StageDevicesTest, DeviceNamesOne) {
  for (int i = 0; i < 2; ++i) AddGpu(80 * kGigabyte);
  options_.backend.device = "cuda:1";
  EXPECT_THAT(DevicesOf(Open(2).value()), ElementsAre(1, 1));
  options_.backend.device = "cuda";
  EXPECT_THAT(DevicesOf(Open(2).value()), ElementsAre(0, 0));
  options_.backend.device = "cuda:2";
  EXPECT_EQ(Open(2).status().message(), "device cuda:2: it is broken") << "as whoever opens it says";
  options_.backend.device = "cpu";
  EXPECT_EQ(Open(2).value().stages[0].backend->kind(), DeviceKind::kCpu);
}

TEST_F(StageDevicesTest, TheCpuWhereThereIsNoGpu) {
  options_.memory_bytes = 90 * kGigabyte;
  const auto devices = Open(3);
  ASSERT_TRUE(devices.ok()) << devices.status();
  for (const BackendOptions& one : opened_) {
    EXPECT_EQ(one.device, "auto") << "which tells why there is no CUDA";
    EXPECT_EQ(one.threads, 2);
  }
  EXPECT_THAT(MemoryOf(*devices), Each(30 * kGigabyte));
  EXPECT_THAT(devices->lines, ElementsAre("device: auto"));
  for (const StageDevice& stage : devices->stages) EXPECT_THAT(stage.cpus, IsEmpty());
  AddGpu(0);
  const auto instead = Open(1);
  ASSERT_TRUE(instead.ok()) << instead.status();
  EXPECT_EQ(opened_.back().device, "cpu");
  EXPECT_THAT(instead->lines, Contains("a GPU is left out: device cuda:0: it is broken"));
}

TEST_F(StageDevicesTest, StagesOnNumaNodes) {
  // CPUs that this machine need not have: threads go there if they can.
  machine_.nodes = {{0, {0, 1, 2, 3}}, {1, {4, 5, 6, 7}}};
  options_.devices = "cpu";
  options_.memory_bytes = 80 * kGigabyte;
  options_.no_prefix_cache = false;
  options_.context_memory = 20 * kGigabyte;
  const auto devices = Open(4);
  ASSERT_TRUE(devices.ok()) << devices.status();
  EXPECT_THAT(DevicesOf(*devices), ElementsAre(0, 0, 1, 1));
  EXPECT_THAT(devices->stages[3].cpus, ElementsAre(4, 5, 6, 7));
  EXPECT_EQ(opened_[3].threads, 2);
  EXPECT_THAT(devices->lines, ElementsAre("stages 0 to 1 on CPUs 0,1,2,3: cpu", "stages 2 to 3 on CPUs 4,5,6,7: cpu"));
  EXPECT_THAT(MemoryOf(*devices), Each(15 * kGigabyte)) << "less what the shelves take";
  EXPECT_EQ(devices->stages[0].shelf_bytes, 5 * kGigabyte);
}

TEST_F(StageDevicesTest, EachDeviceIsMeasured) {
  auto devices = Open(2);
  ASSERT_TRUE(devices.ok()) << devices.status();
  ASSERT_EQ(MeasureStages(&*devices), absl::OkStatus());
  EXPECT_GT(devices->stages[0].speed.flops, 1);
  EXPECT_EQ(devices->stages[1].speed.flops, devices->stages[0].speed.flops) << "measured once";
}

}  // namespace
}  // namespace goldfinch
