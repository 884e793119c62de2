#include "clients/cli/serve/supervisor.h"

#include <sched.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <mutex>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "clients/cli/serve/stop_signal.h"
#include "clients/cli/terminal/terminal.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace goldfinch {
namespace {

using ::testing::AllOf;
using ::testing::Contains;
using ::testing::HasSubstr;
using ::testing::UnorderedElementsAre;

// Children are shell scripts, in which $FOLDER is a folder of the test's own.
class SupervisorTest : public testing::Test {
 public:
  SupervisorTest() {
    std::filesystem::remove_all(folder_);
    std::filesystem::create_directories(folder_);
    options_.restart_seconds = 0.05;
    options_.log = [this](const std::string& line) {
      const std::lock_guard<std::mutex> lock(mutex_);
      log_.push_back(line);
    };
  }

  void Add(const std::string& name, const std::string& script) {
    children_.push_back({name, "/bin/sh", {"-c", absl::StrCat("FOLDER='", folder_.string(), "'\n", script), name}});
  }
  absl::Status Run() {
    testing::internal::CaptureStderr();
    const absl::Status status = Supervise(children_, options_, stop_);
    printed_ = testing::internal::GetCapturedStderr();
    return status;
  }
  // Runs `act` beside the children, as another process would.
  template <typename Act>
  absl::Status RunWhile(Act act) {
    std::thread other(act);
    const absl::Status status = Run();
    other.join();
    return status;
  }

  std::string Read(const std::string& file) const {
    std::ostringstream text;
    text << std::ifstream(folder_ / file).rdbuf();
    return text.str();
  }
  void Await(const std::string& file, const std::string& content) const {
    while (Read(file) != content) std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  void AwaitLog(const std::string& line) {
    for (;; std::this_thread::sleep_for(std::chrono::milliseconds(5))) {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (std::find(log_.begin(), log_.end(), line) != log_.end()) return;
    }
  }
  // The lines that were printed.
  std::vector<std::string> Printed() const {
    std::istringstream text(printed_);
    std::vector<std::string> lines;
    for (std::string line; std::getline(text, line);) lines.push_back(line);
    return lines;
  }

  const std::filesystem::path folder_ =
      std::filesystem::path(testing::TempDir()) / testing::UnitTest::GetInstance()->current_test_info()->name();
  StopSignal stop_;  // raised in place of a signal
  SupervisorOptions options_;
  std::vector<SupervisedChild> children_;
  std::mutex mutex_;
  std::vector<std::string> log_;  // guarded by mutex_ while children run
  std::string printed_;
};

// A script that runs until SIGTERM, and says that it does.
constexpr char kRuns[] = R"(trap 'echo ended >>$FOLDER/$0; exit 0' TERM
echo runs >>$FOLDER/$0
while :; do sleep 0.01; done)";

TEST_F(SupervisorTest, LinesHaveTheNamesOfTheirChildren) {
  Add("gpu0", "echo one >&2; printf 'two\\n\\nthree' >&2");
  Add("gpu1", "echo one >&2");
  EXPECT_EQ(Run(), absl::OkStatus());
  EXPECT_THAT(Printed(), UnorderedElementsAre("[gpu0] one", "[gpu0] two", "[gpu0] three", "[gpu1] one"));
  EXPECT_THAT(log_, UnorderedElementsAre("worker gpu0 has ended", "worker gpu1 has ended"));
}

TEST_F(SupervisorTest, LongLinesAreBrokenAndNoneIsLost) {
  Add("gpu0", "head -c 300000 /dev/zero | tr '\\0' x >&2");
  EXPECT_EQ(Run(), absl::OkStatus());
  EXPECT_EQ(std::count(printed_.begin(), printed_.end(), 'x'), 300'000);
  EXPECT_GT(Printed().size(), 10U);
}

TEST_F(SupervisorTest, OneThatDiesStartsAgainAndTheOthersGoOn) {
  Add("gpu0", "echo x >>$FOLDER/starts; [ $(wc -l <$FOLDER/starts) -ge 3 ] || kill -9 $$");
  Add("gpu1", absl::StrCat("echo $$ >>$FOLDER/pids\n", kRuns));
  EXPECT_EQ(RunWhile([this] {
              Await("starts", "x\nx\nx\n");
              Await("gpu1", "runs\n");
              stop_.Raise(absl::OkStatus());
            }),
            absl::OkStatus());
  EXPECT_THAT(log_, AllOf(Contains("worker gpu0 has died: signal 9 (Killed); it starts again in 0.05 s"),
                          Contains("worker gpu0 has died: signal 9 (Killed); it starts again in 0.1 s")));
  EXPECT_EQ(Read("gpu1"), "runs\nended\n") << "it ran all the while";
}

TEST_F(SupervisorTest, WhatDoesNotMendItselfIsNotTriedAgain) {
  Add("gpu0", "echo x >>$FOLDER/starts; exit 2");
  Add("gpu1", kRuns);
  const absl::Status status = RunWhile([this] {
    AwaitLog("worker gpu0 has died: exit code 2");
    Await("gpu1", "runs\n");
    stop_.Raise(absl::OkStatus());
  });
  EXPECT_EQ(Read("starts"), "x\n");
  EXPECT_EQ(Read("gpu1"), "runs\nended\n");
  EXPECT_EQ(status.message(), "died: worker gpu0 (exit code 2)");
  EXPECT_EQ(ExitCode(status), 2);
}

TEST_F(SupervisorTest, ItEndsWhenAllHaveEndedForGood) {
  Add("gpu0", "exit 2");
  Add("gpu1", "exit 0");
  EXPECT_EQ(Run().message(), "died: worker gpu0 (exit code 2)");
}

TEST_F(SupervisorTest, OneThatIsDeadAtTheEndIsNamed) {
  options_.restart_seconds = 1000;
  Add("gpu0", "exit 7");
  Add("gpu1", kRuns);
  const absl::Status status = RunWhile([this] {
    AwaitLog("worker gpu0 has died: exit code 7; it starts again in 1000 s");
    Await("gpu1", "runs\n");
    stop_.Raise(absl::OkStatus());
  });
  EXPECT_EQ(status.message(), "died: worker gpu0 (exit code 7)");
  EXPECT_EQ(ExitCode(status), 1);
}

TEST_F(SupervisorTest, ThoseThatDoNotEndAreKilled) {
  options_.shutdown_seconds = 0.2;
  Add("gpu0", "trap '' TERM\necho runs >>$FOLDER/$0\nwhile :; do sleep 0.01; done");
  const absl::Status status = RunWhile([this] {
    Await("gpu0", "runs\n");
    stop_.Raise(absl::OkStatus());
  });
  EXPECT_EQ(status.message(), "died: worker gpu0 (signal 9 (Killed))");
}

TEST_F(SupervisorTest, SignalsOfTheTerminalDoNotReachThem) {
  Add("gpu0", "cut -d' ' -f5 /proc/$$/stat >$FOLDER/group; echo $$ >$FOLDER/pid");
  EXPECT_EQ(Run(), absl::OkStatus());
  EXPECT_EQ(Read("group"), Read("pid"));
}

TEST_F(SupervisorTest, EachRunsWhereItWasPut) {
  cpu_set_t set;
  ASSERT_EQ(sched_getaffinity(0, sizeof(set), &set), 0);
  int last = 0;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (CPU_ISSET(cpu, &set)) last = cpu;
  }
  Add("node1", "grep Cpus_allowed_list /proc/self/status >$FOLDER/cpus");
  children_[0].cpus = {last};
  EXPECT_EQ(Run(), absl::OkStatus());
  EXPECT_EQ(Read("cpus"), absl::StrCat("Cpus_allowed_list:\t", last, "\n"));
}

TEST_F(SupervisorTest, AProgramThatIsNotThere) {
  options_.restart_seconds = 1000;
  children_.push_back({"gpu0", "/no/such/program", {}});
  const absl::Status status = RunWhile([this] {
    AwaitLog("worker gpu0 has died: exit code 127; it starts again in 1000 s");
    stop_.Raise(absl::OkStatus());
  });
  EXPECT_EQ(status.message(), "died: worker gpu0 (exit code 127)");
}

}  // namespace
}  // namespace goldfinch
