#include "tests/cluster/local_cluster.h"

#include <chrono>
#include <cstring>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "prometheus/metric_family.h"
#include "prometheus/registry.h"
#include "worker/transport/transport.h"
#include "worker/worker.h"

namespace goldfinch {
namespace {

constexpr auto kPatience = std::chrono::seconds(60);

}  // namespace

// ---- WatchedRequest ----

void WatchedRequest::OnProgress(int64_t prompt_tokens_done) {
  const std::lock_guard<std::mutex> lock(mutex_);
  prompt_tokens_done_ = prompt_tokens_done;
  changed_.notify_all();
}

RequestSink::Verdict WatchedRequest::OnToken(int sample, const OutputToken& token) {
  const std::lock_guard<std::mutex> lock(mutex_);
  EXPECT_FALSE(status_.has_value());
  tokens_[sample].push_back(token.id);
  changed_.notify_all();
  return sample == 0 && tokens_[0].size() == pause_at_ ? Verdict::kPause : Verdict::kContinue;
}

RequestSink::Verdict WatchedRequest::OnScores(int continuation, int64_t first, absl::Span<const OutputToken> tokens,
                                              std::string logits) {
  const std::lock_guard<std::mutex> lock(mutex_);
  std::vector<OutputToken>& scores = scores_[continuation];
  EXPECT_EQ(first, static_cast<int64_t>(scores.size()) + (continuation < 0 ? 1 : 0));
  scores.insert(scores.end(), tokens.begin(), tokens.end());
  std::vector<float>& all = logits_[continuation];
  const size_t before = all.size();
  all.resize(before + logits.size() / sizeof(float));
  std::memcpy(all.data() + before, logits.data(), logits.size());
  return Verdict::kContinue;
}

void WatchedRequest::OnDone(const absl::Status& status, const RequestUsage& usage) {
  const std::lock_guard<std::mutex> lock(mutex_);
  EXPECT_FALSE(status_.has_value());
  status_ = status;
  usage_ = usage;
  changed_.notify_all();
}

absl::Status WatchedRequest::Wait() {
  std::unique_lock<std::mutex> lock(mutex_);
  if (!changed_.wait_for(lock, kPatience, [this] { return status_.has_value(); })) {
    ADD_FAILURE() << "the request does not end";
    return absl::InternalError("no end");
  }
  return *status_;
}

void WatchedRequest::AwaitTokens(size_t count) {
  std::unique_lock<std::mutex> lock(mutex_);
  EXPECT_TRUE(changed_.wait_for(lock, kPatience, [&] { return status_.has_value() || tokens_[0].size() >= count; }));
}

void WatchedRequest::AwaitProgress(int64_t prompt_tokens_done) {
  std::unique_lock<std::mutex> lock(mutex_);
  EXPECT_TRUE(changed_.wait_for(lock, kPatience,
                                [&] { return status_.has_value() || prompt_tokens_done_ >= prompt_tokens_done; }));
}

size_t WatchedRequest::token_count() {
  const std::lock_guard<std::mutex> lock(mutex_);
  return tokens_[0].size();
}

// ---- LocalCluster ----

LocalCluster::LocalCluster(const std::string& model, int workers, std::function<void(CoordinatorOptions*)> edit,
                           std::function<std::unique_ptr<Backend>()> make_backend)
    : metrics_("test") {
  CoordinatorOptions options;
  options.vocab = "bytes";
  options.membership.model = model;
  options.membership.verify = "none";
  options.membership.cache_dtype = "f32";
  options.membership.stages = workers;
  options.membership.partition.max_logit_rows = 64;
  options.membership.regroup_wait_seconds = 0.05;
  options.membership.partition.max_sequences = 16;
  options.membership.partition.max_sequence_tokens = 4096;
  options.membership.partition.cache_tokens = 16384;
  options.membership.partition.max_step_tokens = 48;
  if (edit) edit(&options);
  coordinator_ = std::make_unique<Coordinator>(options, &metrics_);
  workers_ =
      std::make_unique<EmbeddedWorkers>(*coordinator_, [](const absl::Status& status) { ADD_FAILURE() << status; });
  for (int i = 0; i < workers; ++i) {
    WorkerOptions worker_options;
    worker_options.name = absl::StrCat("worker ", i);
    worker_options.memory_bytes = int64_t{1} << 36;
    worker_options.shelf_bytes = int64_t{64} << 20;
    worker_options.speed = {1e9, 1e9};
    workers_->Add(
        std::make_unique<Worker>(worker_options, make_backend ? make_backend() : MakeCpuBackend(/*threads=*/1),
                                 MakeLocalTransportFactory()),
        worker_options.name);
  }
}

void LocalCluster::AwaitReady() {
  const auto deadline = std::chrono::steady_clock::now() + kPatience;
  while (!coordinator_->ready()) {
    ASSERT_LT(std::chrono::steady_clock::now(), deadline) << Info().ShortDebugString();
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
}

std::shared_ptr<WatchedRequest> LocalCluster::Submit(Request request, std::shared_ptr<WatchedRequest> watched,
                                                     uint64_t* number) {
  const absl::StatusOr<uint64_t> submitted = coordinator_->Submit(std::move(request), watched);
  if (!submitted.ok()) {
    watched->OnDone(submitted.status(), {});
  } else if (number != nullptr) {
    *number = *submitted;
  }
  return watched;
}

std::shared_ptr<WatchedRequest> LocalCluster::Generate(const std::vector<int32_t>& prompt, int64_t max_tokens,
                                                       std::function<void(Request*)> edit, uint64_t* number,
                                                       size_t pause_at) {
  Request request;
  request.prompt = prompt;
  request.generate.emplace();
  request.generate->max_tokens = max_tokens;
  request.generate->sampling.temperature = 0;
  if (edit) edit(&request);
  const int samples = request.generate->samples;
  return Submit(std::move(request), std::make_shared<WatchedRequest>(samples, pause_at), number);
}

std::shared_ptr<WatchedRequest> LocalCluster::Score(const std::vector<int32_t>& prompt,
                                                    const std::vector<std::vector<int32_t>>& continuations,
                                                    bool score_prompt, std::function<void(Request*)> edit) {
  Request request;
  request.prompt = prompt;
  request.score.emplace();
  request.score->continuations = continuations;
  request.score->score_prompt = score_prompt;
  request.score->top_logprobs = 3;
  request.score->logits = true;
  if (edit) edit(&request);
  return Submit(std::move(request), std::make_shared<WatchedRequest>(), nullptr);
}

double LocalCluster::Metric(const std::string& name) const {
  double sum = 0;
  for (const prometheus::MetricFamily& family : metrics_.registry()->Collect()) {
    if (family.name != "goldfinch_" + name) continue;
    for (const prometheus::ClientMetric& series : family.metric) {
      sum += series.counter.value + series.gauge.value + series.histogram.sample_sum;
    }
  }
  return sum;
}

void LocalCluster::AwaitMetric(const std::string& name, double value) const {
  const auto end = std::chrono::steady_clock::now() + kPatience;
  while (Metric(name) != value && std::chrono::steady_clock::now() < end) {
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  EXPECT_EQ(Metric(name), value) << name;
}

v1::GetClusterInfoResponse LocalCluster::Info() {
  v1::GetClusterInfoResponse info;
  coordinator_->FillClusterInfo(&info);
  return info;
}

void LocalCluster::ExpectNothingHeld() {
  AwaitReady();
  const auto held = [](const v1::GetClusterInfoResponse& info) {
    uint64_t sum = info.requests_running() + info.requests_waiting() + info.cache_bytes() + info.state_bytes();
    for (const v1::GroupInfo& group : info.groups()) {
      sum += group.steps_in_flight() + group.sequences() + group.cache_tokens_reserved();
    }
    return sum;
  };
  const auto deadline = std::chrono::steady_clock::now() + kPatience;
  while (held(Info()) > 0) {
    ASSERT_LT(std::chrono::steady_clock::now(), deadline) << Info().ShortDebugString();
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
}

}  // namespace goldfinch
