#include "clients/cli/device.h"

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "clients/cli/machine_limits.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/backend.h"

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

TEST(TakeGpuTest, AutoTakesTheFirstFreeOne) {
  const std::vector<std::string> gpus = {"GPU-test-a", "", "GPU-test-b"};
  std::string first = "auto", second = "auto", third = "auto", named = "cuda:0", other = "cuda";
  const auto a = TakeGpu(gpus, &first);
  ASSERT_TRUE(a.ok()) << a.status();
  EXPECT_EQ(first, "cuda:0");
  const auto b = TakeGpu(gpus, &second);
  ASSERT_TRUE(b.ok()) << b.status();
  EXPECT_EQ(second, "cuda:2") << "nobody can ask the second";
  EXPECT_THAT(std::string(TakeGpu(gpus, &third).status().message()), HasSubstr("other workers compute on all 3 GPUs"));
  EXPECT_TRUE(TakeGpu(gpus, &named).ok()) << "it was asked for";
  EXPECT_TRUE(TakeGpu(gpus, &other).ok());
  EXPECT_EQ(other, "cuda:0");
}

TEST(TakeGpuTest, ANamedOneIsTakenForTheOthers) {
  const std::vector<std::string> gpus = {"GPU-test-c", "GPU-test-d"};
  std::string named = "cuda:0", next = "auto", cpu = "cpu", none = "auto";
  const auto taken = TakeGpu(gpus, &named);
  ASSERT_TRUE(taken.ok() && *taken);
  const auto free = TakeGpu(gpus, &next);
  ASSERT_TRUE(free.ok()) << free.status();
  EXPECT_EQ(next, "cuda:1");
  EXPECT_TRUE(TakeGpu(gpus, &cpu).ok());
  EXPECT_EQ(cpu, "cpu");
  EXPECT_TRUE(TakeGpu({}, &none).ok());
  EXPECT_EQ(none, "auto");
}

TEST(UsableMemoryBytesTest, TheCpuUsesAShareOfTheMachinesMemory) {
  const std::unique_ptr<Backend> backend = MakeCpuBackend(1);
  const absl::StatusOr<int64_t> usable = UsableMemoryBytes(*backend, /*gpu_memory_utilization=*/0.1);
  ASSERT_TRUE(usable.ok()) << usable.status();
  EXPECT_LT(*usable, ThisMachine().memory.bytes);
  EXPECT_GT(*usable, ThisMachine().memory.bytes / 2) << "the GPU's share does not matter";
}

}  // namespace
}  // namespace goldfinch
