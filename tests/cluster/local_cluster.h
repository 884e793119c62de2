// A coordinator and its workers in this process, linked without sockets, and requests that tests can watch.
#ifndef GOLDFINCH_TESTS_CLUSTER_LOCAL_CLUSTER_H_
#define GOLDFINCH_TESTS_CLUSTER_LOCAL_CLUSTER_H_

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "clients/cli/serve/embedded_workers.h"
#include "coordinator/coordinator.h"
#include "coordinator/metrics/metrics.h"
#include "kernels/backend.h"
#include "protos/generate.pb.h"

namespace goldfinch {

// Collects the results of one request. Thread-safe.
class WatchedRequest : public RequestSink {
 public:
  // With `pause_at`, it does not read on when its first sample has so many tokens, until Coordinator::Resume.
  explicit WatchedRequest(int samples = 1, size_t pause_at = 0) : pause_at_(pause_at), tokens_(samples) {}

  void OnProgress(int64_t prompt_tokens_done) override;
  Verdict OnToken(int sample, const OutputToken& token) override;
  void OnSampleDone(int, Finish) override {}
  Verdict OnScores(int continuation, int64_t first, absl::Span<const OutputToken> tokens, std::string logits) override;
  void OnDone(const absl::Status& status, const RequestUsage& usage) override;

  // Blocks until the request has ended and returns how. Fails the test after a minute.
  absl::Status Wait();
  // Blocks until so many tokens of the prompt have been read; the request must ask for progress.
  void AwaitProgress(int64_t prompt_tokens_done);
  // Blocks until the first sample has `count` tokens or the request has ended.
  void AwaitTokens(size_t count);
  // How many tokens the first sample has.
  size_t token_count();

  // The results, which are complete after Wait.
  const std::vector<int32_t>& tokens(int sample = 0) const { return tokens_[sample]; }
  const std::vector<float>& logits(int continuation) const { return logits_.at(continuation); }
  const std::vector<OutputToken>& scores(int continuation) const { return scores_.at(continuation); }
  const RequestUsage& usage() const { return usage_; }

 private:
  const size_t pause_at_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<std::vector<int32_t>> tokens_;        // [samples]
  std::map<int, std::vector<OutputToken>> scores_;  // by continuation
  std::map<int, std::vector<float>> logits_;        // by continuation
  int64_t prompt_tokens_done_ = 0;
  std::optional<absl::Status> status_;
  RequestUsage usage_;
};

class LocalCluster {
 public:
  // `model` is the path of a model whose vocabulary is bytes. `edit` may change the options, which have f32 caches and
  // one stage for each worker. Each worker has 64 MiB for segments of texts. `make_backend` makes each worker's back
  // end; without it, that is one thread of the CPU.
  LocalCluster(const std::string& model, int workers, std::function<void(CoordinatorOptions*)> edit = {},
               std::function<std::unique_ptr<Backend>()> make_backend = {});

  // Blocks until a group is ready. Fails the test after a minute.
  void AwaitReady();
  std::shared_ptr<WatchedRequest> Generate(const std::vector<int32_t>& prompt, int64_t max_tokens,
                                           std::function<void(Request*)> edit = {}, uint64_t* number = nullptr,
                                           size_t pause_at = 0);
  std::shared_ptr<WatchedRequest> Score(const std::vector<int32_t>& prompt,
                                        const std::vector<std::vector<int32_t>>& continuations, bool score_prompt,
                                        std::function<void(Request*)> edit = {});
  v1::GetClusterInfoResponse Info();
  // The sum over the series of a metric, whose name is given without "goldfinch_"; of a histogram that of its values.
  double Metric(const std::string& name) const;
  // Blocks until the metric has this value. Fails the test after a minute.
  void AwaitMetric(const std::string& name, double value) const;
  // Fails the test unless all slots, pages and buffers of requests are free once the last step is done.
  void ExpectNothingHeld();

  Coordinator& coordinator() { return *coordinator_; }
  EmbeddedWorkers& workers() { return *workers_; }

 private:
  std::shared_ptr<WatchedRequest> Submit(Request request, std::shared_ptr<WatchedRequest> watched, uint64_t* number);

  Metrics metrics_;
  std::unique_ptr<Coordinator> coordinator_;
  std::unique_ptr<EmbeddedWorkers> workers_;
};

}  // namespace goldfinch

#endif  // GOLDFINCH_TESTS_CLUSTER_LOCAL_CLUSTER_H_
