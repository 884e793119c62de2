// What a worker does when the file of its model is changed under it.
#include <chrono>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "protos/cluster.pb.h"
#include "worker/worker_test_util.h"

namespace goldfinch {
namespace {

using cluster::v1::FromWorker;
using cluster::v1::Step;
using ::testing::HasSubstr;

class WorkerModelFileTest : public WorkerTest {
 public:
  // A file that was changed longer ago than the clock of the file system is coarse, and one worker that serves it.
  void SetUp() override {
    WorkerTest::SetUp();
    std::filesystem::last_write_time(path, std::filesystem::last_write_time(path) - std::chrono::hours(1));
    StartAll(1);
    Form({0});
    Step step = OpenStep(1);
    WantLogits(AddChunk(step, 1, 0, RandomTokens(5, kVocab, 1), 1));
    EXPECT_EQ(RunStep(step).results_size(), 1);
  }

  // Sends a step, and returns why the worker has ended the generation.
  std::string ReasonAfterAStep() {
    Step step;
    WantLogits(AddChunk(step, 1, 5, {1}, 1));
    workers[0].mailbox->BeginGeneration(0);  // so that the end of this one is no failure of the test
    SendStep(step);
    return workers[0].mailbox->Await(FromWorker::kEndGeneration).end_generation().reason();
  }
};

TEST_P(WorkerModelFileTest, NoAnswerComesFromAFileThatWasWrittenTo) {
  std::fstream file(path, std::ios::binary | std::ios::in | std::ios::out);
  file.seekp(-8, std::ios::end);
  file << std::string(8, '\0') << std::flush;
  EXPECT_THAT(ReasonAfterAStep(), HasSubstr(path + ": was changed while it was in use: it was written to"));
  // Nor does the next group get it.
  ++generation;
  workers[0]->Received(FormMessage(0, {0}));
  EXPECT_THAT(workers[0].mailbox->Await(FromWorker::kEndGeneration).end_generation().reason(),
              HasSubstr("was changed while it was in use"));
}

TEST_P(WorkerModelFileTest, NoAnswerComesFromAFileOfAnotherSize) {
  const auto size = static_cast<int64_t>(std::filesystem::file_size(path));
  std::ofstream(path, std::ios::binary | std::ios::app) << "more";
  EXPECT_THAT(ReasonAfterAStep(), HasSubstr("bytes and had " + std::to_string(size)));
}

TEST_P(WorkerModelFileTest, AFileThatIsReplacedServesOn) {
  std::filesystem::copy_file(path, path + ".new", std::filesystem::copy_options::overwrite_existing);
  std::filesystem::rename(path + ".new", path);
  Step step;
  WantLogits(AddChunk(step, 1, 5, {1}, 1));
  EXPECT_EQ(RunStep(step).results_size(), 1);
}

INSTANTIATE_TEST_SUITE_P(, WorkerModelFileTest, testing::Values(WorkerTestCase{"local", false}));

}  // namespace
}  // namespace goldfinch
