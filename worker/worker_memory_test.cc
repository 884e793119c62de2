// What a worker plans, reports and reserves of its memory.
#include <cstdint>
#include <limits>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/backend.h"
#include "protos/cluster.pb.h"
#include "worker/model/fake_device.h"
#include "worker/stage/gold_tiers.h"
#include "worker/stage/stage.h"
#include "worker/stage_assignment.h"
#include "worker/stage_loader.h"
#include "worker/worker_options.h"
#include "worker/worker_test_util.h"

namespace goldfinch {
namespace {

using cluster::v1::FromWorker;
using cluster::v1::Step;
using cluster::v1::StepDone;
using ::testing::AllOf;
using ::testing::HasSubstr;

TEST_P(WorkerTest, GoldLayersKeepWhatMemoryAllows) {
  struct Case {
    WorkerOptions options;
    GoldTier keeps;
  };
  constexpr int64_t kPlenty = int64_t{1} << 30;
  const std::vector<Case> cases = {
      {{}, GoldTier::kCompressed},
      {{.memory_bytes = kPlenty}, GoldTier::kFull},
      {{.memory_bytes = kPlenty, .gold_tier = GoldTier::kShared}, GoldTier::kShared},
      {{.memory_bytes = kPlenty, .gold_tier = GoldTier::kCompressed}, GoldTier::kCompressed},
      {{.memory_bytes = kPlenty, .kept_bytes = 0}, GoldTier::kCompressed},
      {{.kept_bytes = kPlenty}, GoldTier::kFull}};
  std::vector<float> first;
  for (const Case& test_case : cases) {
    workers.clear();
    workers.push_back(Start(test_case.options));
    EXPECT_EQ(Welcome(workers.back()).error(), "");
    for (int round = 0; round < 2; ++round) {  // the second generation finds the stage as it is
      Form({0});
      Step step;
      step.add_open()->set_sequence(1);
      WantLogits(AddChunk(step, 1, 0, RandomTokens(90, kVocab, 4), 2));
      const StepDone done = RunStep(step);
      ASSERT_EQ(done.results_size(), 1);
      EXPECT_EQ(done.gold_kept_bytes() > 0, test_case.keeps > GoldTier::kCompressed);
      EXPECT_EQ(done.gold_compressed_sequences(), test_case.keeps == GoldTier::kCompressed ? 1 : 0);
      EXPECT_EQ(done.gold_shared_sequences(), test_case.keeps == GoldTier::kShared ? 1 : 0);
      EXPECT_EQ(done.gold_full_sequences(), test_case.keeps == GoldTier::kFull ? 1 : 0);
      EXPECT_EQ(done.gold_tier_drops(), 0u);
      if (first.empty()) first = LogitsOf(done.results(0));
      EXPECT_EQ(LogitsOf(done.results(0)), first);
      Step close;
      close.add_close(1);
      const StepDone closed = RunStep(close);
      EXPECT_EQ(closed.gold_kept_bytes(), 0u);
      EXPECT_EQ(closed.gold_compressed_sequences() + closed.gold_shared_sequences() + closed.gold_full_sequences(), 0u);
      EndGeneration();
    }
  }
}

// The stage outlives a generation, but its drops are told of each for itself.
TEST_P(WorkerTest, DropsOfKeptRowsAreThoseOfTheGeneration) {
  const auto open = [&](uint64_t sequence) {
    Step step;
    step.add_open()->set_sequence(sequence);
    WantLogits(AddChunk(step, sequence, 0, RandomTokens(90, kVocab, 4), 2));
    return RunStep(step);
  };
  workers.push_back(Start({.kept_bytes = int64_t{1} << 30}));
  EXPECT_EQ(Welcome(workers.back()).error(), "");
  Form({0});
  const auto full_bytes = static_cast<int64_t>(open(1).gold_kept_bytes());
  EndGeneration();
  workers.clear();
  workers.push_back(Start({.kept_bytes = full_bytes}));
  EXPECT_EQ(Welcome(workers.back()).error(), "");
  for (int generation = 0; generation < 2; ++generation) {
    Form({0});
    EXPECT_EQ(open(1).gold_tier_drops(), 0u) << generation;
    const StepDone done = open(2);
    EXPECT_EQ(done.gold_tier_drops(), 1u) << "the first one makes room";
    EXPECT_EQ(done.gold_shared_sequences(), 2u);
    EndGeneration();
  }
}

// A worker reports each use of its memory, and takes nothing if it would need more than it may use.
TEST_P(WorkerTest, MemoryIsPlannedAndTold) {
  std::mutex mutex;
  std::string log;
  const auto start = [&](int64_t memory_bytes) {
    workers.push_back(Start({.memory_bytes = memory_bytes, .log = [&](const std::string& line) {
                               const std::lock_guard<std::mutex> lock(mutex);
                               log += line + "\n";
                             }}));
    Welcome(workers.back());
    ++generation;
    workers[0]->Received(FormMessage(0, {0}));
  };
  start(int64_t{1} << 40);
  const cluster::v1::Joined joined = workers[0].mailbox->Await(FromWorker::kJoined).joined();
  uint64_t sum = 0, kept = 0;  // kept rows are of what is left
  for (const cluster::v1::MemoryPart& part : joined.memory()) {
    sum += part.bytes();
    if (part.name() == "kept rows") kept = part.bytes();
  }
  EXPECT_EQ(joined.reserved_bytes(), sum);
  EXPECT_GT(kept, 0U);
  ASSERT_GT(joined.memory_size(), 0);
  EXPECT_EQ(joined.memory(0).name(), "weights");
  EXPECT_EQ(joined.memory(0).bytes(), joined.weight_bytes());
  workers.clear();
  EXPECT_THAT(log, AllOf(HasSubstr("memory of layers 0 to"), HasSubstr("\n  weights"), HasSubstr("\n  activations"),
                         HasSubstr("\n  in all"), HasSubstr("\n  left")));

  start(static_cast<int64_t>(sum - kept));
  EXPECT_EQ(workers[0].mailbox->Await(FromWorker::kJoined).joined().generation(), generation);
  workers.clear();
  start(static_cast<int64_t>(sum - kept) - 1);
  EXPECT_THAT(workers[0].mailbox->Await(FromWorker::kEndGeneration).end_generation().reason(),
              AllOf(HasSubstr("are needed (weights"), HasSubstr("may be used: lower max_model_len")));
  workers.clear();

  // The coordinator may allow a part only of what the worker has.
  const auto start_with_part = [&](int64_t part) {
    workers.push_back(Start({.memory_bytes = int64_t{1} << 40}));
    Welcome(workers.back());
    ++generation;
    cluster::v1::ToWorker form = FormMessage(0, {0});
    form.mutable_form()->set_memory_bytes(part);
    workers[0]->Received(form);
  };
  start_with_part(static_cast<int64_t>(sum - kept));
  EXPECT_LE(workers[0].mailbox->Await(FromWorker::kJoined).joined().reserved_bytes(), sum - kept);
  workers.clear();
  start_with_part(static_cast<int64_t>(sum - kept) - 1);
  EXPECT_THAT(workers[0].mailbox->Await(FromWorker::kEndGeneration).end_generation().reason(),
              HasSubstr("may be used: lower max_model_len"));
  workers.clear();
}

// A loader of the fixture's model, on a device whose memory the test sees.
class Loader {
 public:
  explicit Loader(const cluster::v1::ToWorker& welcome, int64_t shelf_bytes = 0)
      : options_{.memory_bytes = int64_t{1} << 30, .shelf_bytes = shelf_bytes},
        device_(MakeCpuBackend(1)),
        loader_(options_, device_) {
    const absl::Status status = loader_.OpenModel(welcome.welcome(), &described_);
    EXPECT_TRUE(status.ok()) << status;
  }

  FakeDevice& device() { return device_; }
  StageLoader& loader() { return loader_; }
  const cluster::v1::Described& described() const { return described_; }
  // Loads the stage of a Form that allows so much memory; 0: all. Returns what is planned without kept rows.
  int64_t Load(cluster::v1::ToWorker form, int64_t memory_bytes) {
    form.mutable_form()->set_memory_bytes(memory_bytes);
    auto assignment = loader_.LoadStage(form.form());
    EXPECT_TRUE(assignment.ok()) << assignment.status();
    assignment_ = *std::move(assignment);
    return loader_.memory().total();
  }
  absl::Status Reserve() { return loader_.ReserveKept(assignment_); }
  int64_t kept_bytes() { return loader_.stage().gold_tiers()->reserved_bytes(); }

 private:
  const WorkerOptions options_;
  FakeDevice device_;
  StageLoader loader_;
  cluster::v1::Described described_;
  StageAssignment assignment_;
};

// What a stage copies snapshots to on a device, if there is a shelf for them.
TEST_P(WorkerTest, CopiesOfSnapshotsArePlannedAndTold) {
  const cluster::v1::ToWorker form = FormMessage(0, {0});
  Loader without(WelcomeMessage()), with(WelcomeMessage(), /*shelf_bytes=*/1 << 20);
  const int64_t planned_without = without.Load(form, 0), planned = with.Load(form, 0);
  const int64_t snapshots = with.loader().memory().snapshots;
  EXPECT_GT(snapshots, 0);
  EXPECT_EQ(planned, planned_without + snapshots);
  EXPECT_EQ(without.described().memory().snapshot_copies(), 0u);
  EXPECT_EQ(with.described().memory().snapshot_copies(), 2u);
  const int64_t before = with.device().allocated_bytes();
  with.loader().stage().ReserveSaving();
  EXPECT_EQ(with.device().allocated_bytes(), before + snapshots);
}

// Kept rows are reserved in place of the compressed rows, which are lost if that fails.
TEST_P(WorkerTest, AStageThatHasLostItsMemoryIsMadeAnew) {
  const cluster::v1::ToWorker form = FormMessage(0, {0});
  Loader fresh(WelcomeMessage()), loader(WelcomeMessage());
  const int64_t least = fresh.Load(form, 0);
  fresh.Load(form, least);
  EXPECT_TRUE(fresh.Reserve().ok());

  loader.Load(form, 0);
  loader.device().set_allocations_left(0);
  EXPECT_EQ(loader.Reserve().code(), absl::StatusCode::kResourceExhausted);
  loader.device().set_allocations_left(std::numeric_limits<int64_t>::max());
  loader.Load(form, least);
  EXPECT_TRUE(loader.Reserve().ok());
  EXPECT_EQ(loader.kept_bytes(), 0);
  EXPECT_EQ(loader.device().allocated_bytes(), fresh.device().allocated_bytes());
}

// The memory that a generation may use is shared with other groups, which come and go.
TEST_P(WorkerTest, KeptRowsShrinkAndGrowWithWhatEachFormAllows) {
  const cluster::v1::ToWorker form = FormMessage(0, {0});
  Loader loader(WelcomeMessage());
  const auto kept_bytes = [&](int64_t memory_bytes) {
    loader.Load(form, memory_bytes);
    EXPECT_TRUE(loader.Reserve().ok());
    return loader.kept_bytes();
  };
  const int64_t least = loader.Load(form, 0), all = kept_bytes(0);
  EXPECT_GT(all, 0);
  EXPECT_EQ(kept_bytes(least), 0);
  const int64_t half = kept_bytes(least + all / 2);
  EXPECT_GE(half, all / 3);
  EXPECT_LE(half, all / 2);
  EXPECT_EQ(kept_bytes(0), all);
  loader.device().set_allocations_left(0);
  EXPECT_EQ(kept_bytes(0), all) << "the stage stays";
}

INSTANTIATE_TEST_SUITE_P(Transports, WorkerTest, testing::ValuesIn(AllWorkerTestCases()),
                         [](const auto& info) { return testing::PrintToString(info.param); });

}  // namespace
}  // namespace goldfinch
