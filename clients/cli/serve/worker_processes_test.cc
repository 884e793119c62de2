#include "clients/cli/serve/worker_processes.h"

#include <string>
#include <vector>

#include "clients/cli/machine/device_list.h"
#include "clients/cli/terminal/terminal.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace goldfinch {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

DeviceList Devices(const std::string& text) { return ParseDeviceList(text).value(); }

TEST(WorkerProcessesTest, OneForEachGpu) {
  const WorkerMachine machine{.gpu_uuids = {"GPU-a", "", "GPU-c", "GPU-d"},
                              .gpu_taken = {false, false, true, false},
                              .nodes = {{0, {0}}, {1, {1}}}};
  EXPECT_THAT(WorkerProcesses(Devices("all"), machine).value(),
              ElementsAre(WorkerProcess{"gpu0", "cuda:0"}, WorkerProcess{"gpu3", "cuda:3"}));
  EXPECT_THAT(WorkerProcesses(Devices("2,0"), machine).value(),
              ElementsAre(WorkerProcess{"gpu2", "cuda:2"}, WorkerProcess{"gpu0", "cuda:0"}))
      << "whoever names a GPU that is taken knows it";
}

TEST(WorkerProcessesTest, OneForEachNodeOfTheCpu) {
  const WorkerMachine two{.nodes = {{0, {0, 1}}, {2, {2, 3}}}};
  for (const std::string devices : {"all", "cpu"}) {
    EXPECT_THAT(WorkerProcesses(Devices(devices), two).value(),
                ElementsAre(WorkerProcess{"node0", "cpu", {0, 1}}, WorkerProcess{"node2", "cpu", {2, 3}}));
    EXPECT_THAT(WorkerProcesses(Devices(devices), {.nodes = {{0, {0, 1}}}}).value(),
                ElementsAre(WorkerProcess{"cpu", "cpu"}));
    EXPECT_THAT(WorkerProcesses(Devices(devices), {}).value(), ElementsAre(WorkerProcess{"cpu", "cpu"}));
  }
}

TEST(WorkerProcessesTest, WhatIsNotThere) {
  const WorkerMachine machine{.gpu_uuids = {"GPU-a", "GPU-b"}, .gpu_taken = {true, true}};
  const absl::Status beyond = WorkerProcesses(Devices("0-2"), machine).status();
  EXPECT_EQ(beyond.message(), "--devices names GPU 2, this machine has 2, GPU 0 to 1");
  EXPECT_EQ(ExitCode(beyond), 2);
  const absl::Status taken = WorkerProcesses(Devices("all"), machine).status();
  EXPECT_THAT(std::string(taken.message()), HasSubstr("other workers compute on all 2 GPUs"));
  EXPECT_EQ(ExitCode(taken), 2);
}

TEST(WorkerProcessesTest, EachHasADeviceAndANameOfItsOwn) {
  const WorkerProcess process{"gpu1", "cuda:1"};
  const auto own = [&](const std::vector<std::string>& arguments) { return WorkerArguments(arguments, "n7", process); };
  EXPECT_THAT(own({"worker", "--devices", "all", "--coordinator", "c:1", "--name", "n7", "--memory=1GB"}),
              ElementsAre("worker", "--coordinator", "c:1", "--memory=1GB", "--device", "cuda:1", "--name", "n7/gpu1",
                          "--supervised"));
  EXPECT_THAT(own({"worker", "--devices=0-1", "--name=n7", "--coordinator=c:1"}),
              ElementsAre("worker", "--coordinator=c:1", "--device", "cuda:1", "--name", "n7/gpu1", "--supervised"));
}

}  // namespace
}  // namespace goldfinch
