#include "clients/cli/machine/numa.h"

#include <sched.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace goldfinch {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

// The files of /sys that tell of nodes.
class NumaNodesTest : public testing::Test {
 public:
  void Write(const std::string& name, const std::string& text) {
    const std::filesystem::path path = folder_ / "sys/devices/system/node" / name;
    std::filesystem::create_directories(path.parent_path());
    std::ofstream(path) << text << "\n";
  }
  std::vector<NumaNode> Read(const std::vector<int>& allowed) { return ReadNumaNodes(allowed, folder_.string()); }

 private:
  const std::filesystem::path folder_ =
      std::filesystem::path(testing::TempDir()) / testing::UnitTest::GetInstance()->current_test_info()->name();
};

TEST_F(NumaNodesTest, TwoSockets) {
  Write("online", "0-1");
  Write("node0/cpulist", "0-1,4-5");
  Write("node1/cpulist", "2-3,6-7");
  EXPECT_THAT(Read({0, 1, 2, 3, 4, 5, 6, 7}), ElementsAre(NumaNode{0, {0, 1, 4, 5}}, NumaNode{1, {2, 3, 6, 7}}));
  EXPECT_THAT(Read({1, 2, 3}), ElementsAre(NumaNode{0, {1}}, NumaNode{1, {2, 3}})) << "a container has some of them";
  EXPECT_THAT(Read({4, 5}), ElementsAre(NumaNode{0, {4, 5}}));
}

TEST_F(NumaNodesTest, NodesOfMemoryAloneDoNotCount) {
  Write("online", "0,2-3");
  Write("node0/cpulist", "0-1");
  Write("node2/cpulist", "");
  Write("node3/cpulist", "2");
  EXPECT_THAT(Read({0, 1, 2}), ElementsAre(NumaNode{0, {0, 1}}, NumaNode{3, {2}}));
}

TEST_F(NumaNodesTest, WhatIsNotKnownIsNotUsed) {
  EXPECT_THAT(Read({0, 1}), IsEmpty()) << "no files";
  Write("online", "0-1");
  Write("node0/cpulist", "0");
  EXPECT_THAT(Read({0, 1}), IsEmpty()) << "CPU 1 is nowhere";
  Write("node1/cpulist", "1-x");
  EXPECT_THAT(Read({0, 1}), IsEmpty());
  Write("online", "0-99999999");
  EXPECT_THAT(Read({0, 1}), IsEmpty());
}

TEST(ParseCpuListTest, AsLinuxWritesIt) {
  EXPECT_THAT(ParseCpuList("0-2,8\n"), ElementsAre(0, 1, 2, 8));
  EXPECT_THAT(ParseCpuList("3,1"), ElementsAre(1, 3));
  for (const std::string text : {"", "a", "2-1", "-1", "0-999999999", "1024"}) {
    EXPECT_THAT(ParseCpuList(text), IsEmpty()) << text;
  }
}

std::vector<int> CpusOfThread() {
  cpu_set_t set;
  std::vector<int> cpus;
  EXPECT_EQ(sched_getaffinity(0, sizeof(set), &set), 0);
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (CPU_ISSET(cpu, &set)) cpus.push_back(cpu);
  }
  return cpus;
}

TEST(RunsOnTest, ThreadsThatStartMeanwhileStayThere) {
  const std::vector<int> all = CpusOfThread();
  const std::vector<int> last = {all.back()};
  std::vector<int> of_thread;
  std::thread thread;
  {
    const RunsOn there(last);
    EXPECT_EQ(CpusOfThread(), last);
    thread = std::thread([&] { of_thread = CpusOfThread(); });
    const RunsOn anywhere({});
    EXPECT_EQ(CpusOfThread(), last);
  }
  thread.join();
  EXPECT_EQ(of_thread, last);
  EXPECT_EQ(CpusOfThread(), all);
}

}  // namespace
}  // namespace goldfinch
