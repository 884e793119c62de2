#include "clients/cli/machine/device.h"

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "clients/cli/machine/machine_limits.h"
#include "clients/cli/machine/machine_lock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/backend.h"
#include "kernels/open_backend.h"

namespace goldfinch {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr int64_t kGigabyte = 1'000'000'000;

TEST(LeftOfShareTest, MemoryInUseIsSubtracted) {
  EXPECT_EQ(LeftOfShare(0.9, 80 * kGigabyte, 80 * kGigabyte).value(), 72 * kGigabyte);
  EXPECT_EQ(LeftOfShare(0.9, 80 * kGigabyte, 50 * kGigabyte).value(), 42 * kGigabyte);
  EXPECT_EQ(LeftOfShare(1, 80 * kGigabyte, 50 * kGigabyte).value(), 50 * kGigabyte);
  const absl::Status none = LeftOfShare(0.5, 80 * kGigabyte, 40 * kGigabyte).status();
  EXPECT_EQ(none.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(none.message()),
              AllOf(HasSubstr("--gpu-memory-utilization is 0.5"), HasSubstr("the device's 80 GB that is 40 GB"),
                    HasSubstr("40 GB are in use already")));
}

// Opens devices of a machine on which these can be used.
absl::StatusOr<WorkerDevice> Open(const std::string& device, const std::vector<std::string>& gpus,
                                  const std::set<std::string>& usable) {
  const auto open = [&](const BackendOptions& one, std::string* description) {
    absl::StatusOr<std::unique_ptr<Backend>> none = absl::UnavailableError(one.device + " is broken");
    *description = one.device;
    return usable.contains(one.device) ? MakeCpuBackend(1) : std::move(none);
  };
  return OpenWorkerDevice({.device = device, .dtype = "auto", .threads = 1}, gpus, open);
}

TEST(OpenWorkerDeviceTest, AutoTakesTheFirstFreeOne) {
  const std::vector<std::string> gpus = {"GPU-test-a", "", "GPU-test-b"};
  const std::set<std::string> usable = {"cuda", "cuda:0", "cuda:2", "cpu"};
  const auto first = Open("auto", gpus, usable), second = Open("auto", gpus, usable);
  ASSERT_TRUE(first.ok()) << first.status();
  EXPECT_EQ(first->description, "cuda:0");
  ASSERT_TRUE(second.ok()) << second.status();
  EXPECT_EQ(second->description, "cuda:2") << "nobody can ask the second";
  EXPECT_THAT(std::string(Open("auto", gpus, usable).status().message()),
              HasSubstr("other workers compute on all 3 GPUs"));
  EXPECT_TRUE(Open("cuda:0", gpus, usable).ok()) << "it was asked for";
  EXPECT_TRUE(Open("cuda", gpus, usable).ok());
  EXPECT_EQ(Open("cpu", gpus, usable)->description, "cpu");
}

TEST(OpenWorkerDeviceTest, ANamedOneIsTakenForTheOthers) {
  const std::vector<std::string> gpus = {"GPU-test-c", "GPU-test-d"};
  const std::set<std::string> usable = {"cuda:0", "cuda:1"};
  const auto named = Open("cuda:0", gpus, usable);
  ASSERT_TRUE(named.ok() && named->lock);
  const auto next = Open("auto", gpus, usable);
  ASSERT_TRUE(next.ok()) << next.status();
  EXPECT_EQ(next->description, "cuda:1");
}

TEST(OpenWorkerDeviceTest, AutoGoesOnWhereOneCannotBeOpened) {
  const std::vector<std::string> gpus = {"GPU-test-e", "GPU-test-f", "GPU-test-g"};
  const std::optional<MachineLock> other = MachineLock::Try(gpus[0]);
  ASSERT_TRUE(other);
  const auto third = Open("auto", gpus, {"cuda:0", "cuda:2", "auto", "cpu"});
  ASSERT_TRUE(third.ok()) << third.status();
  EXPECT_EQ(third->description, "cuda:2");
  EXPECT_TRUE(third->lock);
  // Never the one that another worker has, nor one that this worker does not keep from others.
  const auto none = Open("auto", gpus, {"cuda:0", "auto", "cpu"});
  ASSERT_TRUE(none.ok()) << none.status();
  EXPECT_EQ(none->description, "cpu (cuda:1 is broken)");
  EXPECT_FALSE(none->lock);
  EXPECT_TRUE(MachineLock::Try(gpus[1])) << "it is left to others";
}

TEST(OpenWorkerDeviceTest, WithoutGpusAutoIsWhatItIsElsewhere) {
  EXPECT_EQ(Open("auto", {}, {"auto"})->description, "auto");
  EXPECT_THAT(std::string(Open("cuda:1", {"GPU-test-h"}, {"auto", "cpu"}).status().message()),
              HasSubstr("cuda:1 is broken"));
}

TEST(UsableMemoryBytesTest, TheCpuUsesAShareOfTheMachinesMemory) {
  const std::unique_ptr<Backend> backend = MakeCpuBackend(1);
  const absl::StatusOr<int64_t> usable = UsableMemoryBytes(*backend, /*gpu_memory_utilization=*/0.1);
  ASSERT_TRUE(usable.ok()) << usable.status();
  EXPECT_LT(*usable, ThisMachine().memory.bytes);
  EXPECT_GT(*usable, ThisMachine().memory.bytes / 2) << "the GPU's share does not matter";
}

TEST(HostGpusTest, ThoseOfTheDriverAreCounted) {
  const std::filesystem::path folder = std::filesystem::path(testing::TempDir()) / "host_gpus_test";
  std::filesystem::remove_all(folder);
  const auto visible = static_cast<int>(GpuUuids().size());
  EXPECT_EQ(HostGpus(folder.string()), visible) << "without the driver's folder";
  for (int gpu = 0; gpu < visible + 3; ++gpu) {
    std::filesystem::create_directories(folder / absl::StrCat("0000:0", gpu, ":00.0"));
  }
  EXPECT_EQ(HostGpus(folder.string()), visible + 3);
  std::filesystem::remove_all(folder);
}

TEST(ContextMemoryBytesTest, TheWorkersOfAllGpusShareOnePartOfTheHost) {
  const int64_t host = ThisMachine().memory.bytes;
  int64_t memory = 3200;
  EXPECT_EQ(ContextMemoryBytes(-1, /*on_cpu=*/false, /*host_gpus=*/1, &memory), host / kContextMemoryPart);
  EXPECT_EQ(ContextMemoryBytes(-1, /*on_cpu=*/false, /*host_gpus=*/8, &memory), host / 8 / kContextMemoryPart);
  EXPECT_EQ(ContextMemoryBytes(-1, /*on_cpu=*/false, /*host_gpus=*/0, &memory), host / kContextMemoryPart);
  EXPECT_EQ(ContextMemoryBytes(500, /*on_cpu=*/false, /*host_gpus=*/8, &memory), 500) << "what was asked for";
  EXPECT_EQ(memory, 3200) << "is not the GPU's";
  EXPECT_EQ(ContextMemoryBytes(-1, /*on_cpu=*/true, /*host_gpus=*/8, &memory), 3200 / kContextMemoryPart);
  EXPECT_EQ(memory, 3000);
}

}  // namespace
}  // namespace goldfinch
