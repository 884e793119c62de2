// Nodes driven by a coordinator that the tests play, over small random models in a file.
#include "worker/worker.h"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <deque>
#include <functional>
#include <limits>
#include <memory>
#include <mutex>
#include <ostream>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "protos/cluster.pb.h"
#include "worker/model/fake_device.h"
#include "worker/model/random_model.h"
#include "worker/stage/sampler.h"
#include "worker/stage/stage.h"

namespace goldfinch {
namespace {

using cluster::v1::ChunkResult;
using cluster::v1::FromWorker;
using cluster::v1::Step;
using cluster::v1::StepDone;
using cluster::v1::ToWorker;
using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr int64_t kVocab = 40;
constexpr auto kPatience = std::chrono::seconds(60);

// What one node has sent. Outlives the node and the test's interest.
class Mailbox {
 public:
  void Put(const FromWorker& message) {
    const std::lock_guard<std::mutex> lock(mutex_);
    messages_.push_back(message);
    arrived_.notify_all();
  }
  bool empty() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return messages_.empty();
  }
  // The first message of that kind; those before it are dropped.
  FromWorker Await(FromWorker::MessageCase kind) {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      if (!arrived_.wait_for(lock, kPatience, [this] { return !messages_.empty(); })) {
        ADD_FAILURE() << "no message of kind " << kind;
        return {};
      }
      FromWorker message = std::move(messages_.front());
      messages_.pop_front();
      if (message.message_case() == kind) return message;
      // One that has ended for others may have failed here before the news came.
      const bool failed = message.has_end_generation() && message.end_generation().generation() == generation_;
      EXPECT_FALSE(failed) << message.end_generation().reason();
    }
  }
  void BeginGeneration(uint64_t generation) {
    const std::lock_guard<std::mutex> lock(mutex_);
    generation_ = generation;
  }
  void Clear() {
    const std::lock_guard<std::mutex> lock(mutex_);
    messages_.clear();
  }

 private:
  std::mutex mutex_;
  std::condition_variable arrived_;
  std::deque<FromWorker> messages_;
  uint64_t generation_ = 0;
};

// Tells when a node has begun to connect, or to receive, and tells its transport what has failed.
class Watch {
 public:
  void Enter() {
    const std::lock_guard<std::mutex> lock(mutex_);
    ++entered_;
    changed_.notify_all();
  }
  void Await(int count) {
    std::unique_lock<std::mutex> lock(mutex_);
    EXPECT_TRUE(changed_.wait_for(lock, kPatience, [&] { return entered_ >= count; }));
  }
  int entered() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return entered_;
  }
  void Fail(absl::Status failure) {
    const std::lock_guard<std::mutex> lock(mutex_);
    failure_ = std::move(failure);
  }
  absl::Status failure() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return failure_;
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  int entered_ = 0;
  absl::Status failure_;
};

class WatchedTransport : public Transport {
 public:
  WatchedTransport(std::unique_ptr<Transport> inner, std::shared_ptr<Watch> watch)
      : inner_(std::move(inner)), watch_(std::move(watch)) {}
  absl::Status Send(int stage, ConstTensor rows) override { return inner_->Send(stage, rows); }
  absl::Status Recv(int stage, Tensor rows) override {
    watch_->Enter();
    return inner_->Recv(stage, rows);
  }
  absl::Status status() const override {
    const absl::Status failed = watch_->failure();
    return failed.ok() ? inner_->status() : failed;
  }
  void Abort() override { inner_->Abort(); }

 private:
  const std::unique_ptr<Transport> inner_;
  const std::shared_ptr<Watch> watch_;
};

class WatchedSetup : public TransportSetup {
 public:
  WatchedSetup(std::unique_ptr<TransportSetup> inner, std::shared_ptr<Watch> watch)
      : inner_(std::move(inner)), watch_(std::move(watch)) {}
  const std::vector<std::string>& addresses() const override { return inner_->addresses(); }
  absl::StatusOr<std::unique_ptr<Transport>> Connect(const std::vector<std::string>& addresses,
                                                     double timeout_seconds) override {
    watch_->Enter();
    auto transport = inner_->Connect(addresses, timeout_seconds);
    if (!transport.ok()) return transport.status();
    return std::make_unique<WatchedTransport>(*std::move(transport), watch_);
  }
  void Abort() override { inner_->Abort(); }

 private:
  const std::unique_ptr<TransportSetup> inner_;
  const std::shared_ptr<Watch> watch_;
};

class WatchedFactory : public TransportFactory {
 public:
  WatchedFactory(std::unique_ptr<TransportFactory> inner, std::shared_ptr<Watch> watch)
      : inner_(std::move(inner)), watch_(std::move(watch)) {}
  const char* kind() const override { return inner_->kind(); }
  absl::StatusOr<std::unique_ptr<TransportSetup>> Setup(uint64_t generation, int stage,
                                                        const std::vector<StageTraffic>& edges,
                                                        Backend& backend) override {
    auto setup = inner_->Setup(generation, stage, edges, backend);
    if (!setup.ok()) return setup.status();
    return std::make_unique<WatchedSetup>(*std::move(setup), watch_);
  }

 private:
  const std::unique_ptr<TransportFactory> inner_;
  const std::shared_ptr<Watch> watch_;
};

struct Worker {
  std::shared_ptr<Watch> watch = std::make_shared<Watch>();
  std::shared_ptr<Mailbox> mailbox = std::make_shared<Mailbox>();
  FakeDevice* device = nullptr;  // the node's, if it is one
  std::unique_ptr<Worker> node;
};

std::string Ids(const std::vector<int32_t>& ids) {
  std::string bytes;
  for (const int32_t id : ids) bytes += {static_cast<char>(id & 0xFF), static_cast<char>(id >> 8)};
  return bytes;
}

std::vector<int32_t> Part(const std::vector<int32_t>& all, size_t begin, size_t count) {
  return {all.data() + begin, all.data() + begin + count};
}

cluster::v1::Chunk* AddChunk(Step& step, uint64_t sequence, uint64_t position, const std::vector<int32_t>& ids,
                             uint32_t logit_rows) {
  cluster::v1::Chunk* chunk = step.add_chunks();
  chunk->set_sequence(sequence);
  chunk->set_position(position);
  chunk->set_tokens(ids.size());
  chunk->set_ids(Ids(ids));
  chunk->set_logit_rows(logit_rows);
  return chunk;
}

// To score: any target, and the logits.
void WantLogits(cluster::v1::Chunk* chunk) {
  for (uint32_t i = 0; i < chunk->logit_rows(); ++i) chunk->add_targets(i);
  chunk->set_top_logprobs(3);
  chunk->set_logits(true);
}

std::vector<float> LogitsOf(const ChunkResult& result) {
  std::vector<float> logits(result.logits().size() / sizeof(float));
  std::memcpy(logits.data(), result.logits().data(), result.logits().size());
  return logits;
}

SamplingOptions SomeSampling(uint64_t seed) {
  SamplingOptions options;
  options.temperature = 1.3;
  options.top_p = 0.95;
  options.seed = seed;
  options.logit_bias = {{3, 1.5}};
  options.banned_tokens = {0};
  options.logprobs = 2;
  return options;
}

void FillSampling(const SamplingOptions& options, cluster::v1::Sampling* message) {
  message->set_temperature(options.temperature);
  message->set_top_p(options.top_p);
  message->set_top_k(options.top_k);
  message->set_min_p(options.min_p);
  message->set_presence_penalty(options.presence_penalty);
  message->set_frequency_penalty(options.frequency_penalty);
  message->set_penalty_decay(options.penalty_decay);
  for (const LogitBias& entry : options.logit_bias) {
    message->add_logit_bias()->set_id(entry.id);
    message->mutable_logit_bias()->rbegin()->set_bias(entry.bias);
  }
  for (const int32_t id : options.banned_tokens) message->add_banned_tokens(id);
  message->set_seed(options.seed);
  if (options.logprobs) message->set_logprobs(*options.logprobs);
}

std::shared_ptr<const SamplerVocabulary> Vocabulary() {
  std::vector<bool> sampleable(kVocab, true), repeats(kVocab, false);
  sampleable[38] = false;
  repeats[5] = true;
  return std::make_shared<const SamplerVocabulary>(sampleable, repeats);
}

// The whole model in one stage: what every cluster must give.
class Reference {
 public:
  explicit Reference(const std::string& path, const StageOptions& options) : backend_(MakeCpuBackend(1)) {
    const std::shared_ptr<const Checkpoint> checkpoint = *Checkpoint::Open(path);
    stage_ = *Stage::Create(*backend_, *LoadModel(*backend_, checkpoint, {}), options);
  }
  Stage& stage() { return *stage_; }
  // Logits of the chunks, chunk after chunk.
  std::vector<float> Forward(const std::vector<Chunk>& chunks) {
    StageOutput output;
    EXPECT_TRUE(stage_->Forward(chunks, {}, &output).ok());
    if (!output.logits) return {};
    return {output.logits.f32(), output.logits.f32() + output.logits.shape.elements()};
  }
  // A prompt in chunks of `chunk_tokens`, then `count` tokens by the sampler, each with its log-probability.
  std::vector<int32_t> Generate(const std::vector<int32_t>& prompt, int64_t chunk_tokens, int count,
                                const SamplingOptions& options) {
    const int slot = *stage_->Open();
    Sampler sampler(options, Vocabulary());
    SamplerScratch scratch;
    std::vector<int32_t> answer;
    std::vector<float> logits;
    for (size_t at = 0; at < prompt.size(); at += chunk_tokens) {
      const std::vector<int32_t> ids = Part(prompt, at, std::min<size_t>(chunk_tokens, prompt.size() - at));
      logits = Forward({{slot, ids, at + ids.size() == prompt.size() ? 1 : 0}});
    }
    while (static_cast<int>(answer.size()) < count) {
      const Token token = *sampler.Sample(logits, static_cast<int64_t>(prompt.size() + answer.size()), scratch);
      sampler.Observe(token.id);
      answer.push_back(token.id);
      logits = Forward({{slot, {&token.id, 1}, 1}});
    }
    stage_->Close(slot);
    return answer;
  }

 private:
  const std::unique_ptr<Backend> backend_;
  std::unique_ptr<Stage> stage_;
};

// What rows go over, and whether they are in memory that the host cannot touch.
struct Setup {
  std::string transport;
  bool fake_device;
};
void PrintTo(const Setup& setup, std::ostream* out) {
  *out << setup.transport << (setup.fake_device ? "_fake_device" : "");
}

class WorkerTest : public testing::TestWithParam<Setup> {
 public:
  void SetUp() override { UseModel({.layers = {"finch_c2", "finch_c2", "gold", "gold"}}); }

  static StageOptions Options() {
    return {.max_sequences = 6,
            .max_sequence_tokens = 500,
            .cache_tokens = 1000,
            .max_step_tokens = 100,
            .max_logit_rows = 50,
            .cache_dtype = DType::kBf16};
  }

  void UseModel(const RandomModelSpec& spec) { UseTensors(RandomModel(spec)); }
  void UseTensors(const std::vector<TestTensor>& tensors) {
    path = testing::TempDir() + "/" + testing::UnitTest::GetInstance()->current_test_info()->name() + ".safetensors";
    std::replace(path.begin() + static_cast<int64_t>(testing::TempDir().size()) + 1, path.end(), '/', '_');
    ASSERT_TRUE(WriteSafetensors(path, tensors).ok());
  }

  static std::unique_ptr<TransportFactory> MakeTransport() {
    if (GetParam().transport == "gloo") return *MakeGlooTransportFactory("127.0.0.1", 60);
    return MakeLocalTransportFactory();
  }

  static std::unique_ptr<Backend> MakeBackend() {
    if (GetParam().fake_device) return std::make_unique<FakeDevice>(MakeCpuBackend(1));
    return MakeCpuBackend(1);
  }

  Worker Start(WorkerOptions options = {}) {
    Worker worker;
    options.name = "worker";
    std::unique_ptr<Backend> backend = MakeBackend();
    worker.device = dynamic_cast<FakeDevice*>(backend.get());
    worker.node = std::make_unique<Worker>(std::move(options), std::move(backend),
                                           std::make_unique<WatchedFactory>(MakeTransport(), worker.watch));
    worker.node->Connected([mailbox = worker.mailbox](const FromWorker& message) { mailbox->Put(message); });
    EXPECT_EQ(worker.mailbox->Await(FromWorker::kRegister).register_().transport(), GetParam().transport);
    return worker;
  }
  cluster::v1::Described Welcome(Worker& worker) {
    worker.node->Received(WelcomeMessage());
    return worker.mailbox->Await(FromWorker::kDescribed).described();
  }
  ToWorker WelcomeMessage() const {
    ToWorker message;
    message.mutable_welcome()->set_model(path);
    message.mutable_welcome()->set_verify("all");
    message.mutable_welcome()->set_cache_dtype("bf16");
    return message;
  }
  void StartAll(int count) {
    workers.clear();
    for (int i = 0; i < count; ++i) {
      workers.push_back(Start());
      EXPECT_EQ(Welcome(workers.back()).error(), "");
    }
  }

  ToWorker FormMessage(int rank, const std::vector<int>& first_layers) const {
    const StageOptions options = Options();
    ToWorker message;
    cluster::v1::Form& form = *message.mutable_form();
    form.set_generation(generation);
    form.set_stage(rank);
    for (const int first : first_layers) form.add_first_layers(first);
    form.set_max_sequences(options.max_sequences);
    form.set_max_sequence_tokens(options.max_sequence_tokens);
    form.set_cache_tokens(options.cache_tokens);
    form.set_max_step_tokens(options.max_step_tokens);
    form.set_max_logit_rows(options.max_logit_rows);
    const auto vocabulary = Vocabulary();
    std::string sampleable(kVocab / 8, '\0'), repeats(kVocab / 8, '\0');
    for (int32_t id = 0; id < kVocab; ++id) {
      if (vocabulary->sampleable(id)) sampleable[id / 8] |= static_cast<char>(1 << id % 8);
      if (vocabulary->repeats_freely(id)) repeats[id / 8] |= static_cast<char>(1 << id % 8);
    }
    form.set_sampleable(sampleable);
    form.set_repeats_freely(repeats);
    return message;
  }

  // A worker may have been joining a generation that ended meanwhile; as the coordinator, take no notice of that.
  cluster::v1::Joined AwaitJoined(Worker& worker) const {
    cluster::v1::Joined joined;
    do {
      joined = worker.mailbox->Await(FromWorker::kJoined).joined();
    } while (joined.generation() != 0 && joined.generation() < generation);
    EXPECT_EQ(joined.generation(), generation);
    return joined;
  }

  // A group of the first workers; the next generation.
  void Form(const std::vector<int>& first_layers) {
    ++generation;
    step_id = 0;
    stages = static_cast<int>(first_layers.size());
    for (int rank = 0; rank < stages; ++rank) {
      workers[rank].mailbox->BeginGeneration(generation);
      workers[rank].node->Received(FormMessage(rank, first_layers));
    }
    std::vector<cluster::v1::Joined> joined;
    for (int rank = 0; rank < stages; ++rank) {
      joined.push_back(AwaitJoined(workers[rank]));
      EXPECT_GT(joined.back().weight_bytes(), 0u);
      EXPECT_GT(joined.back().reserved_bytes(), 0u);
      EXPECT_EQ(joined.back().addresses_size(), stages);
    }
    for (int rank = 0; rank < stages; ++rank) {
      ToWorker message;
      message.mutable_connect()->set_generation(generation);
      for (const auto& peer : joined) message.mutable_connect()->add_addresses(peer.addresses(rank));
      workers[rank].node->Received(message);
    }
    for (int rank = 0; rank < stages; ++rank) {
      EXPECT_EQ(workers[rank].mailbox->Await(FromWorker::kReady).ready().generation(), generation);
      EXPECT_TRUE(workers[rank].node->in_group());
    }
  }
  void Disband() {
    for (Worker& worker : workers) {
      if (worker.node == nullptr) continue;
      ToWorker message;
      message.mutable_end_generation()->set_generation(generation);
      worker.node->Received(message);
      worker.mailbox->Clear();
    }
  }

  void SendStep(Step step) {
    step.set_generation(generation);
    step.set_id(++step_id);
    ToWorker message;
    *message.mutable_step() = std::move(step);
    for (int rank = 0; rank < stages; ++rank) {
      if (workers[rank].node != nullptr) workers[rank].node->Received(message);
    }
  }
  // Of the last stage; the others' are in `dones`.
  StepDone AwaitStep() {
    dones.clear();
    for (int rank = 0; rank < stages; ++rank) {
      dones.push_back(workers[rank].mailbox->Await(FromWorker::kStepDone).step_done());
      EXPECT_EQ(dones.back().generation(), generation);
      EXPECT_EQ(dones.back().id(), dones.front().id());
      EXPECT_GE(dones.back().busy_seconds(), 0);
      EXPECT_TRUE(rank == stages - 1 || dones.back().results().empty());
    }
    return dones.back();
  }
  StepDone RunStep(const Step& step) {
    SendStep(step);
    return AwaitStep();
  }

  // As Reference::Generate; the prompt's steps are all sent at once. `answer` has tokens of a generation that ended.
  std::vector<int32_t> Generate(uint64_t sequence, const std::vector<int32_t>& prompt, size_t chunk_tokens,
                                size_t count, const SamplingOptions& options, std::vector<int32_t> answer = {}) {
    std::vector<int32_t> ids = prompt;
    ids.insert(ids.end(), answer.begin(), answer.end());
    int steps = 0;
    for (size_t at = 0; at < ids.size(); at += chunk_tokens, ++steps) {
      Step step;
      if (at == 0) {
        cluster::v1::NewSequence* opened = step.add_open();
        opened->set_sequence(sequence);
        FillSampling(options, opened->mutable_sampling());
        for (const int32_t id : answer) opened->add_observed(id);
      }
      const std::vector<int32_t> part = Part(ids, at, std::min(chunk_tokens, ids.size() - at));
      const bool last = at + part.size() == ids.size();
      AddChunk(step, sequence, at, part, last ? 1 : 0)->set_sample(last);
      SendStep(step);
    }
    StepDone done;
    for (; steps > 0; --steps) done = AwaitStep();
    for (;;) {
      EXPECT_EQ(done.results_size(), 1);
      if (done.results_size() != 1) return answer;
      EXPECT_EQ(done.results(0).error(), "");
      EXPECT_EQ(done.results(0).logprobs_size(), 1);
      EXPECT_EQ(done.results(0).top(0).ids_size(), 2);
      const auto token = static_cast<int32_t>(done.results(0).token());
      answer.push_back(token);
      Step step;
      if (answer.size() >= count) {
        step.add_close(sequence);
        RunStep(step);
        return answer;
      }
      AddChunk(step, sequence, prompt.size() + answer.size() - 1, {token}, 1)->set_sample(true);
      done = RunStep(step);
    }
  }

  std::string path;
  std::vector<Worker> workers;
  uint64_t generation = 0;
  uint64_t step_id = 0;
  int stages = 0;
  std::vector<StepDone> dones;
};

Step OpenStep(uint64_t sequence) {
  Step step;
  step.add_open()->set_sequence(sequence);
  return step;
}

TEST_P(WorkerTest, DescribesTheModel) {
  Worker worker = Start();
  const cluster::v1::Described described = Welcome(worker);
  EXPECT_EQ(described.error(), "");
  EXPECT_EQ(described.layers_size(), 4);
  EXPECT_EQ(described.fingerprint().size(), 16u);

  ToWorker message = WelcomeMessage();
  const auto error = [&] {
    worker.node->Received(message);
    return worker.mailbox->Await(FromWorker::kDescribed).described().error();
  };
  message.mutable_welcome()->set_model(path + ".missing");
  EXPECT_THAT(error(), HasSubstr(path + ".missing"));
  message = WelcomeMessage();
  message.mutable_welcome()->set_verify("some");
  EXPECT_THAT(error(), HasSubstr("\"some\""));
  message = WelcomeMessage();
  message.mutable_welcome()->set_cache_dtype("f64");
  EXPECT_THAT(error(), HasSubstr("\"f64\""));
  message = WelcomeMessage();
  message.mutable_welcome()->set_cache_dtype("int8");
  EXPECT_EQ(error(), "");
  message = WelcomeMessage();
  EXPECT_EQ(error(), "");

  Worker own = Start({.model = path});
  message.mutable_welcome()->set_model("elsewhere");
  own.node->Received(message);
  EXPECT_EQ(own.mailbox->Await(FromWorker::kDescribed).described().fingerprint(), described.fingerprint());
}

// The second time the model is open already.
TEST_P(WorkerTest, KeysAndValuesAreNotKeptIn8Bits) {
  UseModel({.layers = {"finch_c2", "gptalpha"}});
  Worker worker = Start();
  ToWorker message = WelcomeMessage();
  for (const std::string dtype : {"int8", "bf16", "int8"}) {
    message.mutable_welcome()->set_cache_dtype(dtype);
    worker.node->Received(message);
    const std::string error = worker.mailbox->Await(FromWorker::kDescribed).described().error();
    if (dtype == "bf16") {
      EXPECT_EQ(error, "");
    } else {
      EXPECT_THAT(error, HasSubstr("layer 1 (gptalpha) keeps keys and values"));
    }
  }
}

// Sequences in chunks, decoding and scoring mixed: the same logits, bit for bit, whatever the split, and over each
// boundary exactly the rows that the pre-fill rule asks for.
TEST_P(WorkerTest, LogitsOfEverySplitAreThoseOfOneStage) {
  const std::vector<int32_t> ids = RandomTokens(200, kVocab, 5);
  struct Turn {
    uint64_t sequence;
    size_t tokens;
    uint32_t logit_rows;
  };
  const std::vector<std::vector<Turn>> turns = {
      {{1, 40, 0}, {2, 30, 0}}, {{1, 1, 1}, {2, 2, 2}},  {{2, 1, 1}, {1, 1, 1}, {3, 64, 0}},
      {{1, 1, 1}, {2, 30, 5}},  {{3, 1, 1}, {1, 20, 0}}, {{1, 2, 1}, {3, 4, 4}},
  };
  for (const std::vector<std::string>& layers :
       {std::vector<std::string>{"finch_c2", "finch_c2", "gold", "gold"}, {"finch", "gptalpha", "finch", "llama"}}) {
    UseModel({.layers = layers});
    const bool gold = layers.back() == "gold";
    StartAll(4);
    for (const std::vector<int>& split : std::vector<std::vector<int>>{{0}, {0, 1}, {0, 3}, {0, 2, 3}, {0, 1, 2, 3}}) {
      SCOPED_TRACE(testing::PrintToString(split));
      Reference reference(path, Options());
      Form(split);
      std::vector<int> slots = {0, *reference.stage().Open(), *reference.stage().Open(), *reference.stage().Open()};
      std::vector<size_t> positions(4);
      for (size_t turn = 0; turn < turns.size(); ++turn) {
        Step step;
        for (uint64_t id = 1; turn == 0 && id <= 3; ++id) step.add_open()->set_sequence(id);
        std::vector<Chunk> chunks;
        std::vector<std::vector<int32_t>> parts;
        int64_t tokens = 0;
        for (const Turn& t : turns[turn]) {
          parts.push_back(Part(ids, positions[t.sequence] + t.sequence, t.tokens));
          WantLogits(AddChunk(step, t.sequence, positions[t.sequence], parts.back(), t.logit_rows));
          if (t.logit_rows == 0) {
            step.mutable_chunks()->rbegin()->set_top_logprobs(0);
            step.mutable_chunks()->rbegin()->set_logits(false);
          }
          positions[t.sequence] += t.tokens;
          tokens += static_cast<int64_t>(t.tokens);
        }
        for (size_t i = 0; i < parts.size(); ++i) {
          chunks.push_back({slots[turns[turn][i].sequence], parts[i], turns[turn][i].logit_rows});
        }
        std::vector<float> logits;
        const StepDone done = RunStep(step);
        for (const ChunkResult& result : done.results()) {
          const std::vector<float> part = LogitsOf(result);
          logits.insert(logits.end(), part.begin(), part.end());
          EXPECT_EQ(result.logprobs_size(), static_cast<int>(part.size()) / kVocab);
          EXPECT_EQ(result.top_size(), result.logprobs_size());
          EXPECT_EQ(result.top(0).ids_size(), 3);
        }
        EXPECT_EQ(logits, reference.Forward(chunks)) << "step " << turn;
        for (int rank = 0; rank < stages; ++rank) {
          const bool gets_compressed = gold && split[rank] >= 2;
          EXPECT_EQ(dones[rank].compressed_bytes(), gets_compressed ? tokens * 4 * 2 : 0u) << "stage " << rank;
          EXPECT_EQ(dones[rank].id_bytes(), gets_compressed ? tokens * 2 : 0u);
          uint64_t hidden_rows = rank == 0 ? 0 : tokens;
          if (gets_compressed && turn == 0) hidden_rows = 0;
          if (gets_compressed && turn == 4) hidden_rows = 5 - 2 * (split[rank] - 2);
          if (!gets_compressed || turn == 0 || turn == 4) {
            EXPECT_EQ(dones[rank].hidden_bytes(), hidden_rows * 64 * 4) << "stage " << rank;
          }
        }
      }
    }
  }
}

TEST_P(WorkerTest, SampledTokensAreThoseOfOneStage) {
  StartAll(3);
  Reference reference(path, Options());
  const std::vector<int32_t> prompt = RandomTokens(73, kVocab, 8);
  Form({0, 1, 3});
  uint64_t sequence = 100;
  for (const uint64_t seed : {1, 2, 3}) {
    for (const size_t chunk : {7, 73}) {
      EXPECT_EQ(Generate(++sequence, prompt, chunk, 25, SomeSampling(seed)),
                reference.Generate(prompt, 100, 25, SomeSampling(seed)));
    }
  }
}

// Sequences that share a prompt's work, and go their own ways.
TEST_P(WorkerTest, ForksDrawAsSequencesOfTheirOwn) {
  StartAll(2);
  Reference reference(path, Options());
  const std::vector<int32_t> prompt = RandomTokens(70, kVocab, 9);
  for (const std::vector<int>& split : std::vector<std::vector<int>>{{0, 1}, {0, 3}}) {
    Form(split);
    Step step = OpenStep(1);
    FillSampling(SomeSampling(1), step.mutable_open(0)->mutable_sampling());
    cluster::v1::Chunk* chunk = AddChunk(step, 1, 0, Part(prompt, 0, 69), 0);
    for (const uint64_t fork : {2, 3}) {
      cluster::v1::NewSequence* forked = chunk->add_forks();
      forked->set_sequence(fork);
      FillSampling(SomeSampling(fork), forked->mutable_sampling());
    }
    EXPECT_TRUE(RunStep(step).results().empty());
    std::vector<std::vector<int32_t>> answers(4);
    std::vector<int32_t> next(4, prompt.back());
    for (int i = 0; i < 20; ++i) {
      Step decode;
      for (uint64_t id = 1; id <= 3; ++id) AddChunk(decode, id, 69 + i, {next[id]}, 1)->set_sample(true);
      const StepDone done = RunStep(decode);
      ASSERT_EQ(done.results_size(), 3);
      for (const ChunkResult& result : done.results()) {
        next[result.sequence()] = static_cast<int32_t>(result.token());
        answers[result.sequence()].push_back(next[result.sequence()]);
      }
    }
    for (uint64_t id = 1; id <= 3; ++id) {
      EXPECT_EQ(answers[id], reference.Generate(prompt, 100, 20, SomeSampling(id))) << "sequence " << id;
    }
  }
}

TEST_P(WorkerTest, ClosedSequencesMakeRoom) {
  StartAll(2);
  Form({0, 2});
  const std::vector<int32_t> ids = RandomTokens(60, kVocab, 4);
  std::vector<float> first;
  for (uint64_t round = 0; round < 5; ++round) {
    Step step;
    for (uint64_t i = 0; i < 6; ++i) {
      if (round > 0) step.add_close(round * 10 + i - 10);
      step.add_open()->set_sequence(round * 10 + i);
    }
    WantLogits(AddChunk(step, round * 10 + round, 0, ids, 2));
    const StepDone done = RunStep(step);
    ASSERT_EQ(done.results_size(), 1);
    if (round == 0) first = LogitsOf(done.results(0));
    EXPECT_EQ(LogitsOf(done.results(0)), first);
    EXPECT_EQ(done.cache_bytes(), 64u * (2 + 4 * 2)) << "one page";
  }
}

// At any moment of a stream of steps the group ends and forms again, with another split and fewer workers: the answer
// goes on as if nothing had been.
TEST_P(WorkerTest, GoldLayersKeepWhatMemoryAllows) {
  struct Case {
    WorkerOptions options;
    bool keeps;
  };
  constexpr int64_t kPlenty = int64_t{1} << 30;
  const std::vector<Case> cases = {{{}, false},
                                   {{.memory_bytes = kPlenty}, true},
                                   {{.memory_bytes = kPlenty, .gold_tier = GoldTier::kShared}, true},
                                   {{.memory_bytes = kPlenty, .gold_tier = GoldTier::kCompressed}, false},
                                   {{.memory_bytes = kPlenty, .kept_bytes = 0}, false},
                                   {{.kept_bytes = kPlenty}, true}};
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
      EXPECT_EQ(done.gold_kept_bytes() > 0, test_case.keeps);
      EXPECT_EQ(done.gold_tier_drops(), 0u);
      if (first.empty()) first = LogitsOf(done.results(0));
      EXPECT_EQ(LogitsOf(done.results(0)), first);
      Step close;
      close.add_close(1);
      EXPECT_EQ(RunStep(close).gold_kept_bytes(), 0u);
      Disband();
    }
  }
}

TEST_P(WorkerTest, GroupsFormAgainWhileStepsAreUnderWay) {
  StartAll(3);
  Reference reference(path, Options());
  const std::vector<int32_t> prompt = RandomTokens(50, kVocab, 3);
  const std::vector<int32_t> expected = reference.Generate(prompt, 100, 30, SomeSampling(7));
  const std::vector<std::vector<int>> splits = {{0, 1, 2}, {0, 2}, {0, 1, 3}, {0, 3}, {0, 1, 2}, {0, 1, 2}, {0}};
  std::vector<int32_t> answer;
  for (size_t round = 0; round < splits.size(); ++round) {
    Form(splits[round]);
    answer = Generate(1000, prompt, 9, answer.size() + 4, SomeSampling(7), answer);
    EXPECT_EQ(answer, Part(expected, 0, answer.size()));
    // Steps that will not all end.
    for (uint64_t i = 0; i < 20; ++i) {
      Step step;
      if (i == 0) step = OpenStep(5);
      AddChunk(step, 5, 5 * i, Part(prompt, 0, 5), 1);
      SendStep(step);
    }
    if (round % 2 == 0) Disband();
    for (Worker& worker : workers) worker.mailbox->Clear();
  }
}

// One worker goes in the middle of the work.
TEST_P(WorkerTest, ALostWorkerIsReplacedByTheRest) {
  Reference reference(path, Options());
  const std::vector<int32_t> prompt = RandomTokens(50, kVocab, 3);
  const std::vector<int32_t> expected = reference.Generate(prompt, 100, 12, SomeSampling(7));
  for (const int lost : {0, 1, 2}) {
    StartAll(3);
    Form({0, 1, 3});
    const std::vector<int32_t> begun = Generate(1, prompt, 50, 5, SomeSampling(7));
    for (uint64_t i = 0; i < 20; ++i) {
      Step step;
      if (i == 0) step = OpenStep(5);
      AddChunk(step, 5, 5 * i, Part(prompt, 0, 5), 1);
      SendStep(step);
    }
    workers.erase(workers.begin() + lost);
    Disband();
    const auto start = std::chrono::steady_clock::now();
    Form({0, 2});
    EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(20));
    EXPECT_EQ(Generate(2, prompt, 50, 12, SomeSampling(7), begun), expected);
  }
}

// A peer's loss is told, if the coordinator does not know yet.
TEST_P(WorkerTest, ALostPeerEndsTheGeneration) {
  StartAll(2);
  Form({0, 2});
  workers[0].node.reset();
  Step step = OpenStep(1);
  AddChunk(step, 1, 0, {1, 2, 3}, 1);
  SendStep(step);
  const FromWorker failed = workers[1].mailbox->Await(FromWorker::kEndGeneration);
  EXPECT_EQ(failed.end_generation().generation(), generation);
  EXPECT_FALSE(workers[1].node->in_group());
}

// One worker waits for its peer, which goes on living and does nothing: to connect, or for rows of a step.
TEST_P(WorkerTest, PingIsAnsweredAndTheEndHeardWhileTheWorkingThreadWaits) {
  StartAll(2);
  Worker& waiting = workers[1];
  for (const bool connected : {false, true, false, true}) {
    for (const bool disband : {false, true}) {
      if (connected) {
        Form({0, 2});
        Step step = OpenStep(1);
        AddChunk(step, 1, 0, {1, 2, 3}, 1);
        step.set_generation(generation);
        step.set_id(1);
        ToWorker message;
        *message.mutable_step() = step;
        const int before = waiting.watch->entered();
        waiting.node->Received(message);
        waiting.watch->Await(before + 1);
      } else {
        ++generation;
        for (int rank = 0; rank < 2; ++rank) workers[rank].node->Received(FormMessage(rank, {0, 2}));
        ToWorker connect;
        connect.mutable_connect()->set_generation(generation);
        connect.mutable_connect()->add_addresses(workers[0].mailbox->Await(FromWorker::kJoined).joined().addresses(1));
        connect.mutable_connect()->add_addresses("");
        waiting.mailbox->Await(FromWorker::kJoined);
        const int before = waiting.watch->entered();
        waiting.node->Received(connect);
        waiting.watch->Await(before + 1);
      }
      ToWorker message;
      message.mutable_ping()->set_number(17);
      waiting.node->Received(message);
      EXPECT_EQ(waiting.mailbox->Await(FromWorker::kPong).pong().number(), 17u);
      if (disband) {
        message.mutable_end_generation()->set_generation(generation);
        waiting.node->Received(message);
        EXPECT_FALSE(waiting.node->in_group());
      }
      // The next generation, alone.
      ++generation;
      const auto start = std::chrono::steady_clock::now();
      waiting.node->Received(FormMessage(0, {0}));
      EXPECT_EQ(waiting.mailbox->Await(FromWorker::kJoined).joined().generation(), generation);
      EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(15)) << "no time-out was waited for";
    }
  }
}

TEST_P(WorkerTest, MessagesOfOtherGenerationsAreIgnored) {
  StartAll(1);
  Form({0});
  for (const uint64_t other : {generation - 1, generation + 1}) {
    ToWorker message;
    message.mutable_step()->set_generation(other);
    workers[0].node->Received(message);
    message.mutable_connect()->set_generation(other);
    workers[0].node->Received(message);
    message.mutable_end_generation()->set_generation(other);
    workers[0].node->Received(message);
  }
  EXPECT_EQ(RunStep(OpenStep(1)).id(), 1u);
}

TEST_P(WorkerTest, BadFormsAreRefused) {
  StartAll(1);
  struct Case {
    std::string named;
    std::function<void(cluster::v1::Form&)> spoil;
  };
  const std::vector<Case> cases = {
      {"first_layers.size is 0", [](auto& form) { form.clear_first_layers(); }},
      {"stage is 2", [](auto& form) { form.set_stage(2); }},
      {"first_layers[0] is 1", [](auto& form) { form.set_first_layers(0, 1); }},
      {"first_layers[1] is 0", [](auto& form) { form.set_first_layers(1, 0); }},
      {"first_layers[1] is 4", [](auto& form) { form.set_first_layers(1, 4); }},
      {"first_layers.size is 5",
       [](auto& form) {
         for (const int layer : {3, 3, 3}) form.add_first_layers(layer);
       }},
      {"max_sequences is 0", [](auto& form) { form.set_max_sequences(0); }},
      {"max_step_tokens is 0", [](auto& form) { form.set_max_step_tokens(0); }},
      {"max_step_tokens is 4294967295", [](auto& form) { form.set_max_step_tokens(0xFFFFFFFF); }},
      {"max_logit_rows is 0", [](auto& form) { form.set_max_logit_rows(0); }},
      {"cache_tokens is 0", [](auto& form) { form.set_cache_tokens(0); }},
      {"cache_tokens is 18446744073709551615", [](auto& form) { form.set_cache_tokens(~uint64_t{0}); }},
      {"max_sequence_tokens is 0", [](auto& form) { form.set_max_sequence_tokens(0); }},
      {"sampleable.size is 4", [](auto& form) { form.mutable_sampleable()->pop_back(); }},
      {"repeats_freely.size is 6", [](auto& form) { form.mutable_repeats_freely()->push_back(0); }},
      {"sampleable has no id", [](auto& form) { form.set_sampleable(std::string(kVocab / 8, '\0')); }},
  };
  for (const Case& test_case : cases) {
    SCOPED_TRACE(test_case.named);
    ++generation;
    ToWorker message = FormMessage(1, {0, 2});
    test_case.spoil(*message.mutable_form());
    workers[0].node->Received(message);
    const FromWorker reply = workers[0].mailbox->Await(FromWorker::kEndGeneration);
    EXPECT_EQ(reply.end_generation().generation(), generation);
    EXPECT_THAT(reply.end_generation().reason(), HasSubstr(test_case.named));
    EXPECT_FALSE(workers[0].node->in_group());
  }
  Form({0});
}

TEST_P(WorkerTest, BadConnectsAreRefused) {
  StartAll(1);
  for (const std::vector<std::string>& addresses : {std::vector<std::string>{}, {"", "", ""}, {"", "nowhere"}}) {
    ++generation;
    workers[0].node->Received(FormMessage(0, {0, 2}));
    workers[0].mailbox->Await(FromWorker::kJoined);
    ToWorker message;
    message.mutable_connect()->set_generation(generation);
    for (const std::string& address : addresses) message.mutable_connect()->add_addresses(address);
    workers[0].node->Received(message);
    EXPECT_EQ(workers[0].mailbox->Await(FromWorker::kEndGeneration).end_generation().generation(), generation);
  }
  Worker early = Start();
  early.node->Received(FormMessage(0, {0}));
  EXPECT_THAT(early.mailbox->Await(FromWorker::kEndGeneration).end_generation().reason(),
              HasSubstr("before the model"));
}

TEST_P(WorkerTest, BadStepsEndTheGeneration) {
  StartAll(1);
  struct Case {
    std::vector<std::string> named;
    std::function<void(Step&, cluster::v1::Chunk&)> spoil;
  };
  const auto sampling = [](auto spoil) {
    return [spoil](Step& step, cluster::v1::Chunk&) { spoil(*step.mutable_open(1)->mutable_sampling()); };
  };
  // The step opens 1 (scores) and 2 (samples), with a chunk of 4 tokens and 2 logit rows for 1.
  const std::vector<Case> cases = {
      {{"close", "77"}, [](Step& step, auto&) { step.add_close(77); }},
      {{"open", "sequence 1"}, [](Step& step, auto&) { step.add_open()->set_sequence(1); }},
      {{"max_sequences"},
       [](Step& step, auto&) {
         for (int i = 10; i < 20; ++i) step.add_open()->set_sequence(i);
       }},
      {{"chunk", "77"}, [](Step&, auto& chunk) { chunk.set_sequence(77); }},
      {{"two chunks of sequence 1"}, [](Step& step, auto& chunk) { *step.add_chunks() = cluster::v1::Chunk(chunk); }},
      {{"position", "is 1,", "taken 0"}, [](Step&, auto& chunk) { chunk.set_position(1); }},
      {{"tokens", "are 0"}, [](Step&, auto& chunk) { chunk.set_tokens(0); }},
      {{"tokens", "are 101", "limit is 100"}, [](Step&, auto& chunk) { chunk.set_tokens(101); }},
      {{"tokens", "4294967295"}, [](Step&, auto& chunk) { chunk.set_tokens(0xFFFFFFFF); }},
      {{"limit is 96"}, [](Step& step, auto&) { AddChunk(step, 2, 0, RandomTokens(97, kVocab, 1), 0); }},
      {{"logit_rows", "5"}, [](Step&, auto& chunk) { chunk.set_logit_rows(5); }},
      {{"ids", "7 bytes"}, [](Step&, auto& chunk) { chunk.mutable_ids()->pop_back(); }},
      {{"ids", "0 bytes"}, [](Step&, auto& chunk) { chunk.clear_ids(); }},
      {{"token id 40", "of 40"},
       [](Step&, auto& chunk) {
         chunk.set_ids(Ids({1, 2, 40, 3}));
       }},
      {{"token id 65535"}, [](Step&, auto& chunk) { chunk.set_ids(std::string(8, '\xFF')); }},
      {{"targets", "are 1", "are 2"}, [](Step&, auto& chunk) { chunk.mutable_targets()->RemoveLast(); }},
      {{"target 40"}, [](Step&, auto& chunk) { chunk.set_targets(1, 40); }},
      {{"top_logprobs", "21", "20"}, [](Step&, auto& chunk) { chunk.set_top_logprobs(21); }},
      {{"without targets"}, [](Step&, auto& chunk) { chunk.clear_targets(); }},
      {{"sample of sequence 1", "2 targets"}, [](Step&, auto& chunk) { chunk.set_sample(true); }},
      {{"opened without sampling"},
       [](Step&, auto& chunk) {
         chunk.clear_targets();
         chunk.clear_logits();
         chunk.clear_top_logprobs();
         chunk.set_logit_rows(1);
         chunk.set_sample(true);
       }},
      {{"forks", "sequence 2"}, [](Step&, auto& chunk) { chunk.add_forks()->set_sequence(2); }},
      {{"observed token 40"}, [](Step& step, auto&) { step.mutable_open(1)->add_observed(40); }},
      {{"temperature"}, sampling([](auto& s) { s.set_temperature(std::numeric_limits<double>::quiet_NaN()); })},
      {{"top_p"}, sampling([](auto& s) { s.set_top_p(1.5); })},
      {{"logprobs"}, sampling([](auto& s) { s.set_logprobs(0xFFFFFFFF); })},
      {{"logit_bias[0]"}, sampling([](auto& s) { s.add_logit_bias()->set_id(0xFFFFFFFF); })},
      {{"banned_tokens[0]", "40"}, sampling([](auto& s) { s.add_banned_tokens(40); })},
      {{"banned_tokens has all"}, sampling([](auto& s) {
         for (int id = 0; id < kVocab; ++id) s.add_banned_tokens(id);
       })},
  };
  for (const Case& test_case : cases) {
    SCOPED_TRACE(testing::PrintToString(test_case.named));
    Form({0});
    Step step = OpenStep(1);
    step.add_open()->set_sequence(2);
    SamplingOptions options;
    FillSampling(options, step.mutable_open(1)->mutable_sampling());
    cluster::v1::Chunk* chunk = AddChunk(step, 1, 0, {1, 2, 3, 4}, 2);
    WantLogits(chunk);
    test_case.spoil(step, *chunk);
    SendStep(step);
    const FromWorker reply = workers[0].mailbox->Await(FromWorker::kEndGeneration);
    EXPECT_EQ(reply.end_generation().generation(), generation);
    for (const std::string& name : test_case.named) EXPECT_THAT(reply.end_generation().reason(), HasSubstr(name));
    SendStep(OpenStep(3));  // not answered
  }
  Form({0});
  step_id = 4;
  RunStep(OpenStep(1));
  ++step_id;
  SendStep(OpenStep(2));
  EXPECT_THAT(workers[0].mailbox->Await(FromWorker::kEndGeneration).end_generation().reason(),
              HasSubstr("Step.id is 7 after 5"));
}

// Only what depends on the bad number suffers.
TEST_P(WorkerTest, LogitsThatAreNotFiniteEndOneSequence) {
  std::vector<TestTensor> tensors = RandomModel({.layers = {"finch_c2", "gold"}});
  ASSERT_EQ(tensors.front().name, "emb.weight");
  for (int64_t i = 0; i < 64; ++i) tensors.front().values[7 * 64 + i] = std::numeric_limits<float>::quiet_NaN();
  UseTensors(tensors);
  std::mutex mutex;
  std::vector<std::string> lines;
  for (int i = 0; i < 2; ++i) {
    workers.push_back(Start({.log = [&](const std::string& line) {
      if (line.find("NaN") == std::string::npos) return;
      const std::lock_guard<std::mutex> lock(mutex);
      lines.push_back(line);
    }}));
    Welcome(workers.back());
  }
  Form({0, 1});
  Step step;
  for (uint64_t id = 1; id <= 4; ++id) {
    step.add_open()->set_sequence(id);
    FillSampling(SomeSampling(id), step.mutable_open()->rbegin()->mutable_sampling());
  }
  AddChunk(step, 1, 0, {1, 7, 2}, 1)->set_sample(true);
  AddChunk(step, 2, 0, {1, 6, 2}, 1)->set_sample(true);
  WantLogits(AddChunk(step, 3, 0, {1, 7, 2}, 2));
  WantLogits(AddChunk(step, 4, 0, {1, 6, 2}, 2));
  const StepDone done = RunStep(step);
  ASSERT_EQ(done.results_size(), 4);
  EXPECT_THAT(done.results(0).error(), AllOf(HasSubstr("position 3"), HasSubstr("nan")));
  EXPECT_EQ(done.results(1).error(), "");
  EXPECT_THAT(done.results(2).error(), AllOf(HasSubstr("position 2"), HasSubstr("nan")));
  EXPECT_EQ(done.results(2).logprobs_size(), 0);
  EXPECT_EQ(done.results(3).error(), "");
  EXPECT_EQ(done.results(3).logprobs_size(), 2);
  workers.clear();
  ASSERT_EQ(lines.size(), 2u);
  EXPECT_THAT(lines[0], AllOf(HasSubstr("emb.weight"), HasSubstr("NaN")));
}

TEST_P(WorkerTest, ADamagedFileIsToldWhenItsLayersAreLoaded) {
  const std::vector<TestTensor> tensors = RandomModel({.layers = {"finch_c2", "finch_c2"}});
  path = testing::TempDir() + "/damaged.pth";
  std::string bytes = PthBytes(tensors);
  // The last tensor of the file is the head's.
  const std::string head = EncodeElements(DType::kBf16, tensors.back().values);
  const size_t at = bytes.find(head);
  ASSERT_NE(at, std::string::npos);
  bytes[at + 5] ^= 1;
  ASSERT_TRUE(WriteFile(path, bytes).ok());
  StartAll(2);
  ++generation;
  for (int rank = 0; rank < 2; ++rank) workers[rank].node->Received(FormMessage(rank, {0, 1}));
  EXPECT_EQ(workers[0].mailbox->Await(FromWorker::kJoined).joined().generation(), generation);
  EXPECT_THAT(workers[1].mailbox->Await(FromWorker::kEndGeneration).end_generation().reason(), HasSubstr("CRC-32"));
}

// Each use of the memory is told before it is taken; a worker that would need more than it may use takes nothing.
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
    workers[0].node->Received(FormMessage(0, {0}));
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
}

TEST_P(WorkerTest, StreamsBreakAndComeBack) {
  StartAll(2);
  Form({0, 1});
  workers[0].node->Disconnected();
  EXPECT_FALSE(workers[0].node->in_group());
  EXPECT_FALSE(workers[0].node->silent());
  const auto mailbox = std::make_shared<Mailbox>();
  workers[0].mailbox = mailbox;
  workers[0].node->Connected([mailbox](const FromWorker& message) { mailbox->Put(message); });
  EXPECT_EQ(mailbox->Await(FromWorker::kRegister).register_().protocol(), 2u);
  Disband();
  Welcome(workers[0]);
  Form({0, 1});
  EXPECT_EQ(RunStep(OpenStep(1)).id(), 1u);
  workers[0].node->Leave();
  EXPECT_TRUE(mailbox->Await(FromWorker::kLeaving).leaving());
}

TEST_P(WorkerTest, SilenceAndRefusal) {
  Worker worker = Start();
  EXPECT_FALSE(worker.node->silent()) << "nothing has been agreed on";
  ToWorker message = WelcomeMessage();
  message.mutable_welcome()->set_heartbeat_timeout_seconds(1000);
  worker.node->Received(message);
  EXPECT_FALSE(worker.node->silent());
  message.mutable_welcome()->set_heartbeat_timeout_seconds(1e-9);
  worker.node->Received(message);
  EXPECT_TRUE(worker.node->silent());
  EXPECT_TRUE(worker.node->refused().ok());
  message.set_refused("another model");
  worker.node->Received(message);
  EXPECT_EQ(worker.node->refused().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(worker.node->refused().message()), HasSubstr("another model"));
}

TEST_P(WorkerTest, AFloodOfMessagesEndsTheGeneration) {
  StartAll(1);
  ++generation;
  workers[0].node->Received(FormMessage(0, {0}));
  ToWorker message;
  message.mutable_step()->set_generation(generation + 1);
  for (int i = 0; i < 200000 && workers[0].node->in_group(); ++i) workers[0].node->Received(message);
  EXPECT_THAT(workers[0].mailbox->Await(FromWorker::kEndGeneration).end_generation().reason(),
              HasSubstr("messages wait"));
  Form({0});
}

INSTANTIATE_TEST_SUITE_P(Transports, WorkerTest,
                         testing::Values(Setup{"local", false}, Setup{"gloo", false}, Setup{"local", true},
                                         Setup{"gloo", true}),
                         [](const auto& info) { return testing::PrintToString(info.param); });

// A first stage whose device is behind the host: steps are queued ahead of it, and answered when they are done.
class DeviceNodeTest : public WorkerTest {
 public:
  // Sends steps of a sequence, and the second stage has answered as many as the first may queue.
  void QueueSteps(int steps) {
    StartAll(2);
    Form({0, 2});
    workers[0].device->HoldMarks(true);
    for (int i = 0; i < steps; ++i) {
      Step step;
      if (i == 0) step = OpenStep(1);
      AddChunk(step, 1, 5 * i, {1, 2, 3, 4, 5}, 0);
      SendStep(step);
    }
    for (int i = 0; i < std::min(steps, 2); ++i) workers[1].mailbox->Await(FromWorker::kStepDone);
  }
};

TEST_P(DeviceNodeTest, StepsAreQueuedAheadAndAnsweredWhenTheyAreDone) {
  QueueSteps(4);
  std::this_thread::sleep_for(std::chrono::milliseconds(30));
  EXPECT_TRUE(workers[0].mailbox->empty()) << "nothing is done";
  EXPECT_TRUE(workers[1].mailbox->empty()) << "no more than two are queued";
  workers[0].device->HoldMarks(false);
  for (uint64_t id = 1; id <= 4; ++id) {
    const StepDone done = workers[0].mailbox->Await(FromWorker::kStepDone).step_done();
    EXPECT_EQ(done.id(), id);
    if (id == 1) {
      EXPECT_GT(done.busy_seconds(), 0.03) << "the device's time, not the host's";
    }
    if (id == 2) {
      EXPECT_LT(done.busy_seconds(), 0.03) << "the time before is the first one's";
      EXPECT_EQ(done.idle_seconds(), 0);
    }
  }
  for (uint64_t id = 3; id <= 4; ++id) {
    EXPECT_EQ(workers[1].mailbox->Await(FromWorker::kStepDone).step_done().id(), id);
  }
}

TEST_P(DeviceNodeTest, AFaultOfTheDeviceEndsTheGeneration) {
  for (const int steps : {1, 4}) {
    QueueSteps(steps);
    workers[0].device->Fail(absl::InternalError("the device is lost"));
    EXPECT_EQ(workers[0].mailbox->Await(FromWorker::kEndGeneration).end_generation().reason(), "the device is lost");
    workers[0].device->HoldMarks(false);
  }
}

// A transfer that failed after it was queued: what comes of it later is no answer.
TEST_P(DeviceNodeTest, AFailureOfTheTransportEndsTheGeneration) {
  for (const bool late : {false, true}) {
    QueueSteps(1);
    workers[0].watch->Fail(absl::UnavailableError("a transfer has made no progress"));
    if (late) workers[0].device->HoldMarks(false);
    EXPECT_EQ(workers[0].mailbox->Await(FromWorker::kEndGeneration).end_generation().reason(),
              "a transfer has made no progress");
    workers[0].device->HoldMarks(false);
  }
}

TEST_P(DeviceNodeTest, TheNextGenerationForgetsWhatWasUnderWay) {
  QueueSteps(4);
  Disband();
  workers[0].device->HoldMarks(false);
  Form({0, 2});
  Step step = OpenStep(7);
  AddChunk(step, 7, 0, {1, 2, 3}, 1);
  EXPECT_EQ(RunStep(step).id(), 1u);
}

INSTANTIATE_TEST_SUITE_P(Devices, DeviceNodeTest, testing::Values(Setup{"local", true}),
                         [](const auto& info) { return testing::PrintToString(info.param); });

}  // namespace
}  // namespace goldfinch
