// goldfinch load-test: sends requests at a steady rate, whether or not they are answered, and measures latencies; or
// runs a scenario.
#include "clients/cli/load_test/load_test.h"

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <fstream>
#include <iostream>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "base/status.h"
#include "clients/cli/load_test/load_test_call.h"
#include "clients/cli/load_test/load_test_scenario_run.h"
#include "clients/cli/load_test/load_test_schedule.h"
#include "clients/cli/load_test/load_test_stats.h"
#include "clients/cli/local/model.h"
#include "clients/cli/remote/remote.h"
#include "clients/cli/terminal/printable.h"
#include "clients/cli/terminal/terminal.h"
#include "grpcpp/client_context.h"
#include "nlohmann/json.hpp"
#include "protos/generate.grpc.pb.h"

namespace goldfinch {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int64_t kPromptFileBytesMax = int64_t{1} << 30;

// Collects the results of calls, which end on gRPC's threads, for the thread that sends them. Thread-safe.
class Results final : public CallObserver {
 public:
  Results(const Remote& remote, std::ofstream csv) : remote_(remote), csv_(std::move(csv)) {
    if (csv_.is_open()) csv_ << CsvHeader() << "\n";
  }

  double Seconds() const override { return std::chrono::duration<double>(Clock::now() - start_).count(); }
  Clock::time_point TimeOf(double seconds) const {
    return start_ + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
  }

  // Waits until fewer than `max` calls run, and counts one more.
  void BeginCall(int64_t max) {
    std::unique_lock<std::mutex> lock(mutex_);
    if (running_ >= max) stats_.AddHeld();
    ended_.wait(lock, [&] { return running_ < max; });
    ++running_;
  }

  void AddGap(int /*group*/, double seconds, int64_t tokens) override {
    std::lock_guard<std::mutex> lock(mutex_);
    stats_.AddGap(seconds, tokens);
  }

  void EndCall(RequestRecord record, const grpc::Status& status) override {
    record.status = remote_.ToStatus(status);
    std::lock_guard<std::mutex> lock(mutex_);
    stats_.Add(record);
    if (csv_.is_open()) csv_ << CsvRow(record) << "\n";
    --running_;
    ended_.notify_all();  // under the lock: the thread in Finish may destroy this object right after
  }

  int64_t finished() {
    std::lock_guard<std::mutex> lock(mutex_);
    return stats_.finished();
  }

  // Waits for all calls to end. RESOURCE_EXHAUSTED if the CSV file could not be written.
  absl::StatusOr<LoadTestStats> Finish() {
    std::unique_lock<std::mutex> lock(mutex_);
    ended_.wait(lock, [&] { return running_ == 0; });
    if (csv_.is_open() && !csv_.flush()) return absl::ResourceExhaustedError("--csv: the file cannot be written");
    return stats_;
  }

 private:
  const Remote& remote_;
  const Clock::time_point start_ = Clock::now();
  std::mutex mutex_;
  std::condition_variable ended_;
  LoadTestStats stats_;
  std::ofstream csv_;
  int64_t running_ = 0;
};

absl::StatusOr<std::vector<std::string>> ReadPrompts(const std::string& file) {
  std::vector<std::string> prompts;
  if (file.empty()) return prompts;
  GF_ASSIGN_OR_RETURN(const std::string text, ReadText("--prompt-file", "", false, file, kPromptFileBytesMax));
  for (std::string& line : std::vector<std::string>(absl::StrSplit(text, '\n'))) {
    if (!absl::StripAsciiWhitespace(line).empty()) prompts.push_back(std::move(line));
  }
  if (prompts.empty()) return absl::InvalidArgumentError(absl::StrCat(file, ": there is no prompt in it"));
  return prompts;
}

absl::StatusOr<std::ofstream> OpenCsv(const std::string& path) {
  std::ofstream csv;
  if (path.empty()) return csv;
  csv.open(path);
  if (!csv) return absl::PermissionDeniedError(absl::StrCat(path, ": cannot be written"));
  return csv;
}

v1::GenerateRequest RequestOf(const ScheduledRequest& scheduled, const std::vector<std::string>& prompts,
                              int64_t vocab_size) {
  v1::GenerateRequest request;
  if (prompts.empty()) {
    const std::vector<uint32_t> ids = PromptIds(scheduled, vocab_size);
    request.mutable_ids()->mutable_ids()->Add(ids.begin(), ids.end());
  } else {
    request.set_text(prompts[scheduled.seed % prompts.size()]);
  }
  request.set_max_tokens(scheduled.output_tokens);
  request.set_ignore_eos(true);  // so that answers have the scheduled lengths
  request.set_seed(scheduled.seed);
  return request;
}

}  // namespace

absl::Status RunLoadTest(const LoadTestOptions& options) {
  if (!options.scenario.empty()) return RunScenario(options);
  const auto prompt_lengths = LengthDistribution::Parse("--prompt-tokens", options.prompt_tokens);
  if (!prompt_lengths.ok()) return AsUsageError(prompt_lengths.status());
  const auto output_lengths = LengthDistribution::Parse("--output-tokens", options.output_tokens);
  if (!output_lengths.ok()) return AsUsageError(output_lengths.status());
  GF_ASSIGN_OR_RETURN(const std::vector<std::string> prompts, ReadPrompts(options.prompt_file));
  GF_ASSIGN_OR_RETURN(const std::unique_ptr<Remote> remote, Remote::Open(options.remote));
  GF_ASSIGN_OR_RETURN(const v1::GetModelInfoResponse model, remote->GetModelInfo());
  if (model.vocab_size() < 2) {
    return absl::InternalError(absl::StrCat(options.remote.server, ": reports a vocabulary of ", model.vocab_size()));
  }
  GF_ASSIGN_OR_RETURN(std::ofstream csv, OpenCsv(options.csv));

  const std::unique_ptr<v1::Goldfinch::Stub> stub = v1::Goldfinch::NewStub(remote->channel());
  LoadSchedule schedule(options.rate, *prompt_lengths, *output_lengths, options.seed);
  const auto expected = options.requests.value_or(static_cast<int64_t>(options.rate * *options.duration_seconds));
  ProgressBar bar("answered", "requests");
  Results results(*remote, std::move(csv));
  while (true) {
    const ScheduledRequest scheduled = schedule.Next();
    if (options.requests && scheduled.number >= *options.requests) break;
    if (options.duration_seconds && scheduled.start_seconds > *options.duration_seconds) break;
    v1::GenerateRequest request = RequestOf(scheduled, prompts, model.vocab_size());
    std::this_thread::sleep_until(results.TimeOf(scheduled.start_seconds));
    results.BeginCall(options.max_concurrency);
    auto context = std::make_shared<grpc::ClientContext>();
    remote->Prepare(context.get());
    RequestRecord record;
    record.number = scheduled.number;
    record.scheduled_seconds = scheduled.start_seconds;
    record.prompt_tokens = scheduled.prompt_tokens;
    StartCall(*stub, std::move(context), std::move(request), std::move(record), results);
    bar.Update(results.finished(), expected);
  }
  GF_ASSIGN_OR_RETURN(const LoadTestStats stats, results.Finish());
  bar.Done();
  if (options.json) {
    std::cout << JsonText(stats.Json(options.rate), 2) << "\n";
  } else {
    std::cout << stats.Table(options.rate, options.max_concurrency);
  }
  GF_RETURN_IF_ERROR(FlushOutput());
  return stats.completed() > 0 ? absl::OkStatus() : stats.first_error();
}

}  // namespace goldfinch
