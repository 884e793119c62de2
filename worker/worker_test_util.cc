#include "worker/worker_test_util.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/status/statusor.h"
#include "worker/checkpoint/checkpoint.h"
#include "worker/stage/sampler.h"

namespace goldfinch {

using cluster::v1::ChunkResult;
using cluster::v1::FromWorker;
using cluster::v1::Step;
using cluster::v1::StepDone;
using cluster::v1::ToWorker;

namespace {

class WatchedTransport : public Transport {
 public:
  WatchedTransport(std::unique_ptr<Transport> inner, std::shared_ptr<TransportWatch> watch)
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
  const std::shared_ptr<TransportWatch> watch_;
};

class WatchedSetup : public TransportSetup {
 public:
  WatchedSetup(std::unique_ptr<TransportSetup> inner, std::shared_ptr<TransportWatch> watch)
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
  const std::shared_ptr<TransportWatch> watch_;
};

class WatchedFactory : public TransportFactory {
 public:
  WatchedFactory(std::unique_ptr<TransportFactory> inner, std::shared_ptr<TransportWatch> watch)
      : inner_(std::move(inner)), watch_(std::move(watch)) {}
  const char* kind() const override { return inner_->kind(); }
  absl::StatusOr<std::unique_ptr<TransportSetup>> Setup(const std::string& key, int stage,
                                                        const std::vector<StageTraffic>& traffic,
                                                        Backend& backend) override {
    auto setup = inner_->Setup(key, stage, traffic, backend);
    if (!setup.ok()) return setup.status();
    return std::make_unique<WatchedSetup>(*std::move(setup), watch_);
  }

 private:
  const std::unique_ptr<TransportFactory> inner_;
  const std::shared_ptr<TransportWatch> watch_;
};

std::unique_ptr<TransportFactory> MakeTransport(const WorkerTestCase& test_case) {
  if (test_case.transport == "tcp") return *MakeTcpTransportFactory("127.0.0.1", 60);
  return MakeLocalTransportFactory();
}

std::unique_ptr<Backend> MakeBackend(const WorkerTestCase& test_case) {
  if (test_case.fake_device) return std::make_unique<FakeDevice>(MakeCpuBackend(1));
  return MakeCpuBackend(1);
}

}  // namespace

// ---- Mailbox and TransportWatch ----

void Mailbox::Put(const FromWorker& message) {
  const std::lock_guard<std::mutex> lock(mutex_);
  messages_.push_back(message);
  arrived_.notify_all();
}

bool Mailbox::empty() {
  const std::lock_guard<std::mutex> lock(mutex_);
  return messages_.empty();
}

FromWorker Mailbox::Await(FromWorker::MessageCase kind) {
  std::unique_lock<std::mutex> lock(mutex_);
  for (;;) {
    if (!arrived_.wait_for(lock, kPatience, [this] { return !messages_.empty(); })) {
      ADD_FAILURE() << "no message of kind " << kind;
      return {};
    }
    FromWorker message = std::move(messages_.front());
    messages_.pop_front();
    if (message.message_case() == kind) return message;
    // An earlier generation may have failed here before the news came that it had ended for others.
    const bool failed = message.has_end_generation() && message.end_generation().generation() == generation_;
    EXPECT_FALSE(failed) << message.end_generation().reason();
  }
}

void Mailbox::BeginGeneration(uint64_t generation) {
  const std::lock_guard<std::mutex> lock(mutex_);
  generation_ = generation;
}

void Mailbox::Clear() {
  const std::lock_guard<std::mutex> lock(mutex_);
  messages_.clear();
}

void TransportWatch::Enter() {
  const std::lock_guard<std::mutex> lock(mutex_);
  ++entered_;
  changed_.notify_all();
}

void TransportWatch::Await(int count) {
  std::unique_lock<std::mutex> lock(mutex_);
  EXPECT_TRUE(changed_.wait_for(lock, kPatience, [&] { return entered_ >= count; }));
}

int TransportWatch::entered() {
  const std::lock_guard<std::mutex> lock(mutex_);
  return entered_;
}

void TransportWatch::Fail(absl::Status failure) {
  const std::lock_guard<std::mutex> lock(mutex_);
  failure_ = std::move(failure);
}

absl::Status TransportWatch::failure() {
  const std::lock_guard<std::mutex> lock(mutex_);
  return failure_;
}

// ---- Pieces of messages ----

std::string Ids(const std::vector<int32_t>& ids) {
  std::string bytes;
  for (const int32_t id : ids) bytes += {static_cast<char>(id & 0xFF), static_cast<char>(id >> 8)};
  return bytes;
}

std::vector<int32_t> Part(const std::vector<int32_t>& all, size_t begin, size_t count) {
  return {all.data() + begin, all.data() + begin + count};
}

Step OpenStep(uint64_t sequence) {
  Step step;
  step.add_open()->set_sequence(sequence);
  return step;
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

std::shared_ptr<const SamplerVocabulary> TestVocabulary() {
  std::vector<bool> sampleable(kVocab, true), repeats(kVocab, false);
  sampleable[38] = false;
  repeats[5] = true;
  return std::make_shared<const SamplerVocabulary>(sampleable, repeats);
}

// ---- ReferenceStage ----

ReferenceStage::ReferenceStage(const std::string& path, const StageOptions& options) : backend_(MakeCpuBackend(1)) {
  const std::shared_ptr<const Checkpoint> checkpoint = *Checkpoint::Open(path);
  stage_ = *Stage::Create(*backend_, *LoadModel(*backend_, checkpoint, {}), options);
}

std::vector<float> ReferenceStage::Forward(const std::vector<Chunk>& chunks) {
  StageOutput output;
  EXPECT_TRUE(stage_->Forward(chunks, {}, &output).ok());
  if (!output.logits) return {};
  return {output.logits.f32(), output.logits.f32() + output.logits.shape.elements()};
}

std::vector<int32_t> ReferenceStage::Generate(const std::vector<int32_t>& prompt, int64_t chunk_tokens, int count,
                                              const SamplingOptions& options) {
  const int slot = *stage_->Open();
  Sampler sampler(options, TestVocabulary());
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

// ---- WorkerTest ----

void PrintTo(const WorkerTestCase& test_case, std::ostream* out) {
  *out << test_case.transport << (test_case.fake_device ? "_fake_device" : "");
}

std::vector<WorkerTestCase> AllWorkerTestCases() {
  return {{"local", false}, {"tcp", false}, {"local", true}, {"tcp", true}};
}

StageOptions WorkerTest::Options() {
  return {.max_sequences = 6,
          .max_sequence_tokens = 500,
          .cache_tokens = 1000,
          .max_step_tokens = 100,
          .max_logit_rows = 50,
          .cache_dtype = DType::kBf16};
}

void WorkerTest::UseTensors(const std::vector<TestTensor>& tensors) {
  path = testing::TempDir() + "/" + testing::UnitTest::GetInstance()->current_test_info()->name() + ".safetensors";
  std::replace(path.begin() + static_cast<int64_t>(testing::TempDir().size()) + 1, path.end(), '/', '_');
  ASSERT_TRUE(WriteSafetensors(path, tensors).ok());
}

TestWorker WorkerTest::Start(WorkerOptions options) {
  TestWorker worker;
  options.name = "worker";
  options.shelf_bytes = 4 << 20;
  std::unique_ptr<Backend> backend = MakeBackend(GetParam());
  worker.device = dynamic_cast<FakeDevice*>(backend.get());
  worker.worker = std::make_unique<Worker>(std::move(options), std::move(backend),
                                           std::make_unique<WatchedFactory>(MakeTransport(GetParam()), worker.watch));
  worker->Connected([mailbox = worker.mailbox](const FromWorker& message) { mailbox->Put(message); });
  EXPECT_EQ(worker.mailbox->Await(FromWorker::kRegister).register_().transport(), GetParam().transport);
  return worker;
}

ToWorker WorkerTest::WelcomeMessage() const {
  ToWorker message;
  message.mutable_welcome()->set_model(path);
  message.mutable_welcome()->set_verify("all");
  message.mutable_welcome()->set_cache_dtype("bf16");
  message.mutable_welcome()->set_heartbeat_timeout_seconds(1000);
  return message;
}

cluster::v1::Described WorkerTest::Welcome(TestWorker& worker) const {
  worker->Received(WelcomeMessage());
  return worker.mailbox->Await(FromWorker::kDescribed).described();
}

void WorkerTest::StartAll(int count) {
  workers.clear();
  for (int i = 0; i < count; ++i) {
    workers.push_back(Start());
    EXPECT_EQ(Welcome(workers.back()).error(), "");
  }
}

ToWorker WorkerTest::FormMessage(int stage, const std::vector<int>& first_layers) const {
  const StageOptions options = Options();
  ToWorker message;
  cluster::v1::Form& form = *message.mutable_form();
  form.set_generation(generation);
  form.set_stage(stage);
  for (const int first : first_layers) form.add_first_layers(first);
  form.set_max_sequences(options.max_sequences);
  form.set_max_sequence_tokens(options.max_sequence_tokens);
  form.set_cache_tokens(options.cache_tokens);
  form.set_max_step_tokens(options.max_step_tokens);
  form.set_max_logit_rows(options.max_logit_rows);
  form.set_transport_key(std::string(32, 'k'));
  const auto vocabulary = TestVocabulary();
  std::string sampleable(kVocab / 8, '\0'), repeats(kVocab / 8, '\0');
  for (int32_t id = 0; id < kVocab; ++id) {
    if (vocabulary->sampleable(id)) sampleable[id / 8] |= static_cast<char>(1 << id % 8);
    if (vocabulary->repeats_freely(id)) repeats[id / 8] |= static_cast<char>(1 << id % 8);
  }
  form.set_sampleable(sampleable);
  form.set_repeats_freely(repeats);
  return message;
}

cluster::v1::Joined WorkerTest::AwaitJoined(TestWorker& worker) const {
  cluster::v1::Joined joined;
  do {
    joined = worker.mailbox->Await(FromWorker::kJoined).joined();
  } while (joined.generation() != 0 && joined.generation() < generation);
  EXPECT_EQ(joined.generation(), generation);
  return joined;
}

void WorkerTest::Form(const std::vector<int>& first_layers) {
  ++generation;
  step_id = 0;
  stages = static_cast<int>(first_layers.size());
  for (int stage = 0; stage < stages; ++stage) {
    workers[stage].mailbox->BeginGeneration(generation);
    workers[stage]->Received(FormMessage(stage, first_layers));
  }
  std::vector<cluster::v1::Joined> joined;
  for (int stage = 0; stage < stages; ++stage) {
    joined.push_back(AwaitJoined(workers[stage]));
    EXPECT_GT(joined.back().weight_bytes(), 0u);
    EXPECT_GT(joined.back().reserved_bytes(), 0u);
    EXPECT_EQ(joined.back().addresses_size(), stages);
  }
  for (int stage = 0; stage < stages; ++stage) {
    ToWorker message;
    message.mutable_connect()->set_generation(generation);
    for (const auto& peer : joined) message.mutable_connect()->add_addresses(peer.addresses(stage));
    workers[stage]->Received(message);
  }
  for (int stage = 0; stage < stages; ++stage) {
    EXPECT_EQ(workers[stage].mailbox->Await(FromWorker::kReady).ready().generation(), generation);
    EXPECT_TRUE(workers[stage]->in_group());
  }
}

void WorkerTest::EndGeneration() {
  for (TestWorker& worker : workers) {
    if (worker.worker == nullptr) continue;
    ToWorker message;
    message.mutable_end_generation()->set_generation(generation);
    worker->Received(message);
    worker.mailbox->Clear();
  }
}

void WorkerTest::SendStep(Step step) {
  step.set_generation(generation);
  step.set_id(++step_id);
  ToWorker message;
  *message.mutable_step() = std::move(step);
  for (int stage = 0; stage < stages; ++stage) {
    if (workers[stage].worker != nullptr) workers[stage]->Received(message);
  }
}

StepDone WorkerTest::AwaitStep() {
  dones.clear();
  for (int stage = 0; stage < stages; ++stage) {
    dones.push_back(workers[stage].mailbox->Await(FromWorker::kStepDone).step_done());
    EXPECT_EQ(dones.back().generation(), generation);
    EXPECT_EQ(dones.back().id(), dones.front().id());
    EXPECT_GE(dones.back().busy_seconds(), 0);
    EXPECT_TRUE(stage == stages - 1 || dones.back().results().empty());
  }
  return dones.back();
}

StepDone WorkerTest::RunStep(const Step& step) {
  SendStep(step);
  return AwaitStep();
}

std::vector<int32_t> WorkerTest::Generate(uint64_t sequence, const std::vector<int32_t>& prompt, size_t chunk_tokens,
                                          size_t count, const SamplingOptions& options, std::vector<int32_t> answer) {
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

void DeviceWorkerTest::QueueSteps(int steps) {
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

}  // namespace goldfinch
