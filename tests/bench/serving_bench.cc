// The service around the engine, with all stages in this process: how full a pipeline is, what the coordinator adds to
// a token, how many short requests a second go through, and how long a loss of a worker is felt.
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/strings/str_format.h"
#include "base/check.h"
#include "tests/cluster/local_cluster.h"

namespace goldfinch {
namespace {

using Clock = std::chrono::steady_clock;

double SecondsSince(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

void Sized(CoordinatorOptions* options) {
  PartitionOptions& partition = options->membership.partition;
  partition.max_sequences = 64;
  partition.max_sequence_tokens = 1 << 16;
  partition.cache_tokens = 1 << 20;
  partition.max_step_tokens = 512;
  options->queue.requests = 1 << 20;
}

void Run(const std::shared_ptr<WatchedRequest>& request) {
  const absl::Status status = request->Wait();
  GF_CHECK(status.ok()) << status.ToString();
}

// One prompt of `tokens`, in chunks of 512, on S stages of a thread each.
void PipelineFill(const std::string& model, int stages, int64_t tokens) {
  LocalCluster cluster(model, stages, Sized);
  cluster.AwaitReady();
  Run(cluster.Generate(std::vector<int32_t>(tokens, 33), 0));  // touches all memory
  const v1::GetClusterInfoResponse before = cluster.Info();
  const auto start = Clock::now();
  Run(cluster.Generate(std::vector<int32_t>(tokens, 33), 0));
  const double wall = SecondsSince(start);
  const v1::GetClusterInfoResponse after = cluster.Info();
  const auto chunks = static_cast<double>(tokens / 512);
  double busy_sum = 0, busy_max = 0;
  std::string table;
  for (int s = 0; s < stages; ++s) {
    const v1::StageInfo &from = before.groups(0).stages(s), &to = after.groups(0).stages(s);
    const double busy = to.busy_seconds() - from.busy_seconds();
    busy_sum += busy;
    busy_max = std::max(busy_max, busy);
    absl::StrAppendFormat(&table, "    stage %d, layers %d-%d: busy %.3f s, bubble %.3f s\n", s, to.first_layer(),
                          to.last_layer() - 1, busy, to.bubble_seconds() - from.bubble_seconds());
  }
  // Chunks follow each other at the pace of the slowest stage, once the first has gone through all.
  const double span = busy_sum / chunks + (chunks - 1) * busy_max / chunks;
  const double fill = busy_sum / (stages * span), ideal = chunks / (chunks + stages - 1);
  std::printf("  %d stages, %.0f chunks: %.1f %% full by busy time, n/(n+S-1) is %.1f %%, ratio %.2f; wall %.3f s\n%s",
              stages, chunks, 100 * fill, 100 * ideal, fill / ideal, wall, table.c_str());
}

void TokenOverhead(const std::string& model, int stages) {
  LocalCluster cluster(model, stages, Sized);
  cluster.AwaitReady();
  constexpr int kTokens = 2000;
  const auto busy_seconds = [&] {
    double sum = 0;
    const v1::GetClusterInfoResponse info = cluster.Info();
    for (const v1::StageInfo& stage : info.groups(0).stages()) sum += stage.busy_seconds();
    return sum;
  };
  const double busy_before = busy_seconds();
  const auto start = Clock::now();
  Run(cluster.Generate({33}, kTokens, [](Request* request) { request->generate->sampling.banned_tokens = {0}; }));
  const double wall = SecondsSince(start), busy = busy_seconds() - busy_before;
  std::printf("  %d stages: %.1f us a token, of which the stages are busy for %.1f us; the rest is %.1f us\n", stages,
              1e6 * wall / kTokens, 1e6 * busy / kTokens, 1e6 * (wall - busy) / kTokens);
}

void ShortRequests(const std::string& model) {
  LocalCluster cluster(model, 1, Sized);
  cluster.AwaitReady();
  constexpr int kRequests = 4000;
  std::vector<std::shared_ptr<WatchedRequest>> requests;
  const auto start = Clock::now();
  for (int i = 0; i < kRequests; ++i) requests.push_back(cluster.Generate(std::vector<int32_t>(8, 33), 1));
  for (const auto& request : requests) Run(request);
  const double wall = SecondsSince(start);
  std::printf("  %.0f requests/s of 8 tokens in and 1 out\n", kRequests / wall);
}

void Recovery(const std::string& model) {
  LocalCluster cluster(model, 3, Sized);
  cluster.AwaitReady();
  std::vector<double> seconds;
  for (int round = 0; round < 11; ++round) {
    const auto request = cluster.Generate(std::vector<int32_t>(4096, 33), 400,
                                          [](Request* request) { request->generate->sampling.banned_tokens = {0}; });
    request->AwaitTokens(20);
    const size_t seen = request->token_count();
    const auto start = Clock::now();
    cluster.workers().Kill(round % 3);
    request->AwaitTokens(seen + 5);
    seconds.push_back(SecondsSince(start));
    Run(request);
  }
  std::sort(seconds.begin(), seconds.end());
  std::printf(
      "  a worker lost and back at once, 4,116 tokens to read again: %.0f ms to the next tokens (median of %d, "
      "longest %.0f ms)\n",
      1e3 * seconds[seconds.size() / 2], static_cast<int>(seconds.size()), 1e3 * seconds.back());
}

int Main(int argc, char** argv) {
  CLI::App app("Measures the service around the engine.");
  std::string model = "tests/demo_model/model.pth";
  int64_t tokens = 32768;
  app.add_option("--model", model, "a model of bytes")->capture_default_str();
  app.add_option("--tokens", tokens, "of the long prompt")->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  std::printf("pipeline, one prompt of %d tokens\n", static_cast<int>(tokens));
  for (const int stages : {1, 2, 4}) PipelineFill(model, stages, tokens);
  std::printf("decoding, one sequence\n");
  for (const int stages : {1, 3}) TokenOverhead(model, stages);
  std::printf("short requests, 64 at a time\n");
  ShortRequests(model);
  std::printf("recovery\n");
  Recovery(model);
  return 0;
}

}  // namespace
}  // namespace goldfinch

int main(int argc, char** argv) { return goldfinch::Main(argc, argv); }
