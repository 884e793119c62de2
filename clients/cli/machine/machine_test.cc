#include "clients/cli/machine/machine.h"

#include <optional>
#include <string>
#include <utility>

#include "clients/cli/machine/machine_limits.h"
#include "clients/cli/machine/machine_lock.h"
#include "gtest/gtest.h"

namespace goldfinch {
namespace {

MachineLimits WithReasons(const std::string& memory, const std::string& cpus) {
  MachineLimits limits;
  limits.memory = {1 << 20, memory};
  limits.cpus = {2, cpus};
  return limits;
}

TEST(PoolTest, ALimitOfTheMachineIsSharedByAllOnIt) {
  const MachineLimits machine = WithReasons(kTheMachine, kTheMachine);
  EXPECT_EQ(MemoryPool(machine), MemoryPool(machine));
  EXPECT_EQ(CpuPool(machine), CpuPool(machine));
  if (MemoryPool(machine).empty()) GTEST_SKIP() << "the machine has no boot id";
  EXPECT_EQ(MemoryPool(machine).size(), 64U);
  EXPECT_NE(MemoryPool(machine), CpuPool(machine));
}

TEST(PoolTest, ALimitOfAGroupIsSharedWithinTheGroup) {
  const MachineLimits group = WithReasons("/proc/self/status", "/proc/self/status");  // any file of any folder
  const MachineLimits same = WithReasons("/proc/self/cgroup", "/proc/self/cgroup");
  const MachineLimits other = WithReasons("/usr/x", "/usr/x");
  EXPECT_EQ(MemoryPool(group), MemoryPool(same));
  EXPECT_EQ(CpuPool(group), CpuPool(same));
  if (MemoryPool(group).empty()) GTEST_SKIP() << "the machine has no boot id";
  EXPECT_NE(MemoryPool(group), MemoryPool(other));
  EXPECT_NE(MemoryPool(group), MemoryPool(WithReasons(kTheMachine, kTheMachine)));
}

TEST(PoolTest, ALimitOfTheProcessIsItsOwn) {
  EXPECT_EQ(MemoryPool(WithReasons("the limit of data (RLIMIT_DATA)", "")), "");
}

TEST(MachineTest, TheNetworkIsThatOfTheRoute) {
  EXPECT_EQ(OwnNetwork(), OwnNetwork());
  EXPECT_EQ(AddressTowards("127.0.0.1:1").value(), "127.0.0.1");
  EXPECT_EQ(AddressTowards("localhost").status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(MachineLockTest, OneHoldsIt) {
  std::optional<MachineLock> first = MachineLock::Try("test 1");
  ASSERT_TRUE(first);
  EXPECT_FALSE(MachineLock::Try("test 1"));
  EXPECT_TRUE(MachineLock::Try("test 2"));
  std::optional<MachineLock> moved = std::move(first);
  first.reset();
  EXPECT_FALSE(MachineLock::Await("test 1", 0.03)) << "it lives on";
  moved.reset();
  EXPECT_TRUE(MachineLock::Await("test 1", 1));
}

}  // namespace
}  // namespace goldfinch
