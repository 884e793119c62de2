#include "clients/cli/machine/machine_limits.h"

#include <sys/resource.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <string>

#include "gtest/gtest.h"

namespace goldfinch {
namespace {

constexpr int64_t kGiB = int64_t{1} << 30;

class MachineLimitsTest : public testing::Test {
 protected:
  // The limits of a process that sees these files, on a machine with 8 CPUs and 64 GiB.
  MachineLimits Read(const std::map<std::string, std::string>& files) {
    const std::string root = testing::TempDir() + "/machine_limits";
    std::filesystem::remove_all(root);
    std::filesystem::create_directories(root);
    for (const auto& [path, text] : files) {
      std::filesystem::create_directories(std::filesystem::path(root + path).parent_path());
      std::ofstream(root + path) << text;
    }
    return ReadMachineLimits({{64 * kGiB, "the machine"}}, {8, "the machine"}, root);
  }
};

TEST_F(MachineLimitsTest, WithoutLimitsTheMachineCounts) {
  for (const std::map<std::string, std::string>& files : {
           std::map<std::string, std::string>{},
           {{"/proc/self/cgroup", "0::/\n"},
            {"/sys/fs/cgroup/memory.max", "max\n"},
            {"/sys/fs/cgroup/memory.high", "max\n"},
            {"/sys/fs/cgroup/cpu.max", "max 100000\n"}},
           {{"/sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"},
            {"/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n"},
            {"/sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n"}},
           {{"/proc/self/cgroup", "nonsense\n::\n0::x"},
            {"/proc/self/mountinfo", "a b c - cgroup2\n - \n1 2 3 4 5 - cgroup\n"},
            {"/sys/fs/cgroup/memory.max", "-5\n"},
            {"/sys/fs/cgroup/cpu.max", "1 0\n"},
            {"/sys/fs/cgroup/cpuset.cpus.effective", "3-1,x\n"}},
       }) {
    const MachineLimits limits = Read(files);
    EXPECT_EQ(limits.memory.bytes, 64 * kGiB);
    EXPECT_EQ(limits.memory.reason, "the machine");
    EXPECT_EQ(limits.cpus.threads(), 8);
    EXPECT_EQ(limits.cpus.reason, "the machine");
  }
}

TEST_F(MachineLimitsTest, Version2InAContainer) {
  const MachineLimits limits = Read({{"/proc/self/cgroup", "0::/\n"},
                                     {"/proc/self/mountinfo", "31 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup rw\n"},
                                     {"/sys/fs/cgroup/memory.max", "1073741824\n"},
                                     {"/sys/fs/cgroup/cpu.max", "250000 100000\n"}});
  EXPECT_EQ(limits.memory.bytes, kGiB);
  EXPECT_EQ(limits.memory.reason, "/sys/fs/cgroup/memory.max");
  EXPECT_DOUBLE_EQ(limits.cpus.count, 2.5);
  EXPECT_EQ(limits.cpus.threads(), 3);
  EXPECT_EQ(limits.cpus.reason, "/sys/fs/cgroup/cpu.max");
  EXPECT_EQ(limits.Describe(), "CPUs 2.5 (/sys/fs/cgroup/cpu.max), memory 1.07 GB (/sys/fs/cgroup/memory.max)");
}

TEST_F(MachineLimitsTest, TheGroupsAboveCountToo) {
  const MachineLimits limits = Read({
      {"/proc/self/cgroup", "0::/system.slice/goldfinch.service\n"},
      {"/proc/self/mountinfo", "31 23 0:26 / /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"},
      {"/sys/fs/cgroup/system.slice/cpu.max", "120000 100000\n"},
      {"/sys/fs/cgroup/system.slice/memory.max", "8589934592\n"},
      {"/sys/fs/cgroup/system.slice/goldfinch.service/memory.max", "17179869184\n"},
      {"/sys/fs/cgroup/system.slice/goldfinch.service/memory.high", "4294967296\n"},
      {"/sys/fs/cgroup/system.slice/goldfinch.service/cpu.max", "400000 100000\n"},
      {"/sys/fs/cgroup/other.slice/memory.max", "4096\n"},
  });
  EXPECT_EQ(limits.memory.bytes, 4 * kGiB);
  EXPECT_EQ(limits.memory.reason, "/sys/fs/cgroup/system.slice/goldfinch.service/memory.high");
  EXPECT_EQ(limits.cpus.threads(), 1);
  EXPECT_EQ(limits.cpus.reason, "/sys/fs/cgroup/system.slice/cpu.max");
}

TEST_F(MachineLimitsTest, Version1WhoseMountsShowTheContainersGroup) {
  const MachineLimits limits = Read({
      {"/proc/self/cgroup", "9:memory:/docker/ab12/inner\n4:cpu,cpuacct:/docker/ab12\n2:cpuset:/\n"},
      {"/proc/self/mountinfo",
       "40 39 0:35 /docker/ab12 /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n"
       "41 39 0:36 /docker/ab12 /cgroups/cpu\\040time ro - cgroup cgroup rw,cpu,cpuacct\n"},
      {"/sys/fs/cgroup/memory/inner/memory.limit_in_bytes", "9223372036854771712\n"},
      {"/sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"},
      {"/sys/fs/cgroup/memory/memory.stat", "cache 5\nhierarchical_memory_limit 2147483648\nrss 1\n"},
      {"/cgroups/cpu time/cpu.cfs_quota_us", "50000\n"},
      {"/cgroups/cpu time/cpu.cfs_period_us", "100000\n"},
  });
  EXPECT_EQ(limits.memory.bytes, 2 * kGiB);
  EXPECT_EQ(limits.memory.reason, "/sys/fs/cgroup/memory/memory.stat");
  EXPECT_DOUBLE_EQ(limits.cpus.count, 0.5);
  EXPECT_EQ(limits.cpus.threads(), 1);
  EXPECT_EQ(limits.cpus.reason, "/cgroups/cpu time/cpu.cfs_quota_us");
}

TEST_F(MachineLimitsTest, HybridAndCpuSets) {
  const MachineLimits limits = Read({
      {"/proc/self/cgroup", "5:cpuset:/a\n3:memory:/a/b\n0::/a/b\n"},
      {"/proc/self/mountinfo",
       "40 39 0:35 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
       "41 39 0:36 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
       "42 39 0:37 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\n"},
      {"/sys/fs/cgroup/unified/a/cpu.max", "700000 100000\n"},
      {"/sys/fs/cgroup/memory/a/memory.limit_in_bytes", "3221225472\n"},
      {"/sys/fs/cgroup/cpuset/a/cpuset.cpus", "0-1,4\n"},
      {"/sys/fs/cgroup/cpuset/cpuset.cpus", "0-7\n"},
  });
  EXPECT_EQ(limits.memory.bytes, 3 * kGiB);
  EXPECT_EQ(limits.cpus.threads(), 3);
  EXPECT_EQ(limits.cpus.reason, "/sys/fs/cgroup/cpuset/a/cpuset.cpus");
}

TEST_F(MachineLimitsTest, APathOutsideOfTheMountIsNotFollowed) {
  const MachineLimits limits = Read({{"/proc/self/cgroup", "0::/../../other\n"},
                                     {"/sys/fs/cgroup/memory.max", "1073741824\n"},
                                     {"/sys/other/memory.max", "4096\n"}});
  EXPECT_EQ(limits.memory.bytes, kGiB);
}

TEST(ThisMachineTest, HasAThreadAndMemory) {
  const MachineLimits limits = ThisMachine();
  EXPECT_GE(limits.cpus.threads(), 1);
  EXPECT_GT(limits.memory.bytes, 0);
  EXPECT_FALSE(limits.memory.reason.empty());
}

TEST(ThisMachineTest, ObeysResourceLimits) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "sanitizers map more memory than the limit allows";
#endif
  const MachineLimits before = ThisMachine();
  rlimit limit{};
  ASSERT_EQ(getrlimit(RLIMIT_DATA, &limit), 0);
  const rlimit less = {static_cast<rlim_t>(before.memory.bytes / 2), limit.rlim_max};
  ASSERT_EQ(setrlimit(RLIMIT_DATA, &less), 0);
  EXPECT_EQ(ThisMachine().memory.bytes, before.memory.bytes / 2);
  EXPECT_EQ(setrlimit(RLIMIT_DATA, &limit), 0);
}

}  // namespace
}  // namespace goldfinch
