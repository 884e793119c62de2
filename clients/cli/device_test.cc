#include "clients/cli/device.h"

#include <cstdint>
#include <memory>
#include <string>

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

TEST(UsableMemoryBytesTest, TheCpuUsesAShareOfTheMachinesMemory) {
  const std::unique_ptr<Backend> backend = MakeCpuBackend(1);
  const absl::StatusOr<int64_t> usable = UsableMemoryBytes(*backend, /*gpu_memory_utilization=*/0.1);
  ASSERT_TRUE(usable.ok()) << usable.status();
  EXPECT_LT(*usable, ThisMachine().memory.bytes);
  EXPECT_GT(*usable, ThisMachine().memory.bytes / 2) << "the GPU's share does not matter";
}

}  // namespace
}  // namespace goldfinch
