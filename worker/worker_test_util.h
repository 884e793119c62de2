// A fixture for tests of workers: they run small random models from a file, and the test plays the coordinator.
#ifndef GOLDFINCH_WORKER_WORKER_TEST_UTIL_H_
#define GOLDFINCH_WORKER_WORKER_TEST_UTIL_H_

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <ostream>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "base/sampling.h"
#include "gtest/gtest.h"
#include "kernels/backend.h"
#include "protos/cluster.pb.h"
#include "worker/model/fake_device.h"
#include "worker/model/random_model.h"
#include "worker/stage/stage.h"
#include "worker/transport/transport.h"
#include "worker/worker.h"

namespace goldfinch {

// How long a test waits for what must happen before it fails.
constexpr auto kPatience = std::chrono::seconds(60);
constexpr int64_t kVocab = 40;

// The messages that one worker has sent. Outlives the worker and the test's interest in it. Thread-safe.
class Mailbox {
 public:
  void Put(const cluster::v1::FromWorker& message);
  bool empty();
  // Returns the first message of that kind and drops those before it. Fails the test if the current generation ends
  // first, or if no such message comes.
  cluster::v1::FromWorker Await(cluster::v1::FromWorker::MessageCase kind);
  void BeginGeneration(uint64_t generation);
  void Clear();

 private:
  std::mutex mutex_;
  std::condition_variable arrived_;
  std::deque<cluster::v1::FromWorker> messages_;
  uint64_t generation_ = 0;
};

// Counts how often a worker has begun to connect or to receive, and makes its transport fail. Thread-safe.
class TransportWatch {
 public:
  void Enter();
  // Waits until a worker has begun so often.
  void Await(int count);
  int entered();
  // From now on the status of the worker's transport is `failure`.
  void Fail(absl::Status failure);
  absl::Status failure();

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  int entered_ = 0;
  absl::Status failure_;
};

// A worker of a test, with what it has sent.
struct TestWorker {
  Worker* operator->() const { return worker.get(); }

  std::shared_ptr<TransportWatch> watch = std::make_shared<TransportWatch>();
  std::shared_ptr<Mailbox> mailbox = std::make_shared<Mailbox>();
  FakeDevice* device = nullptr;  // the worker's device, if it is a fake one
  std::unique_ptr<Worker> worker;
};

// ---- Pieces of messages ----

// Token ids as a Chunk has them.
std::string Ids(const std::vector<int32_t>& ids);
// `count` ids from `begin` on.
std::vector<int32_t> Part(const std::vector<int32_t>& all, size_t begin, size_t count);
cluster::v1::Step OpenStep(uint64_t sequence);
cluster::v1::Chunk* AddChunk(cluster::v1::Step& step, uint64_t sequence, uint64_t position,
                             const std::vector<int32_t>& ids, uint32_t logit_rows);
// Asks for scores of any targets, and for the logits.
void WantLogits(cluster::v1::Chunk* chunk);
std::vector<float> LogitsOf(const cluster::v1::ChunkResult& result);
// Options that use several features of the sampler.
SamplingOptions SomeSampling(uint64_t seed);
void FillSampling(const SamplingOptions& options, cluster::v1::Sampling* message);
std::shared_ptr<const SamplerVocabulary> TestVocabulary();

// The whole model in one stage, which gives the results that every group must give.
class ReferenceStage {
 public:
  ReferenceStage(const std::string& path, const StageOptions& options);
  Stage& stage() { return *stage_; }
  // Returns the logits of the chunks, chunk after chunk.
  std::vector<float> Forward(const std::vector<Chunk>& chunks);
  // Reads a prompt in chunks of `chunk_tokens` and then draws `count` tokens.
  std::vector<int32_t> Generate(const std::vector<int32_t>& prompt, int64_t chunk_tokens, int count,
                                const SamplingOptions& options);

 private:
  const std::unique_ptr<Backend> backend_;
  std::unique_ptr<Stage> stage_;
};

// How rows are carried, and whether they are in memory that the host cannot touch.
struct WorkerTestCase {
  std::string transport;
  bool fake_device;
};
void PrintTo(const WorkerTestCase& test_case, std::ostream* out);
// For INSTANTIATE_TEST_SUITE_P of suites that run in every case.
std::vector<WorkerTestCase> AllWorkerTestCases();

class WorkerTest : public testing::TestWithParam<WorkerTestCase> {
 public:
  void SetUp() override { UseModel({.layers = {"finch_c2", "finch_c2", "gold", "gold"}}); }

  static StageOptions Options();
  void UseModel(const RandomModelSpec& spec) { UseTensors(RandomModel(spec)); }
  void UseTensors(const std::vector<TestTensor>& tensors);

  // Starts a worker, which registers.
  static TestWorker Start(WorkerOptions options = {});
  cluster::v1::ToWorker WelcomeMessage() const;
  cluster::v1::Described Welcome(TestWorker& worker) const;
  // Starts and welcomes `count` workers in place of `workers`.
  void StartAll(int count);

  cluster::v1::ToWorker FormMessage(int stage, const std::vector<int>& first_layers) const;
  // Returns the worker's answer to the newest Form. It may answer first to a generation that has ended meanwhile.
  cluster::v1::Joined AwaitJoined(TestWorker& worker) const;
  // Forms the next generation of the first workers, one for each stage, and waits until it is ready.
  void Form(const std::vector<int>& first_layers);
  // Tells all workers that the generation has ended, and forgets what they have sent.
  void EndGeneration();

  // Sends a step to all workers of the group.
  void SendStep(cluster::v1::Step step);
  // Waits until all stages have answered the next step, returns the last stage's answer, and leaves all in `dones`.
  cluster::v1::StepDone AwaitStep();
  cluster::v1::StepDone RunStep(const cluster::v1::Step& step);
  // As ReferenceStage::Generate; the prompt's steps are sent all at once. `answer` has the tokens that an earlier
  // generation has drawn.
  std::vector<int32_t> Generate(uint64_t sequence, const std::vector<int32_t>& prompt, size_t chunk_tokens,
                                size_t count, const SamplingOptions& options, std::vector<int32_t> answer = {});

  std::string path;  // of the model
  std::vector<TestWorker> workers;
  uint64_t generation = 0;
  uint64_t step_id = 0;
  int stages = 0;
  std::vector<cluster::v1::StepDone> dones;
};

// The first of two stages has a device that is behind the host: steps are queued on it, and answered once it has done
// them.
class DeviceWorkerTest : public WorkerTest {
 public:
  // Sends steps of one sequence and waits until the second stage has answered as many as the first may queue.
  void QueueSteps(int steps);
};

}  // namespace goldfinch

#endif  // GOLDFINCH_WORKER_WORKER_TEST_UTIL_H_
