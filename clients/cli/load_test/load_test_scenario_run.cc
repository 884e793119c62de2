#include "clients/cli/load_test/load_test_scenario_run.h"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <functional>
#include <iostream>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "clients/cli/load_test/load_test_arrivals.h"
#include "clients/cli/load_test/load_test_call.h"
#include "clients/cli/load_test/load_test_report.h"
#include "clients/cli/load_test/load_test_scenario.pb.h"
#include "clients/cli/load_test/load_test_scenario_file.h"
#include "clients/cli/load_test/load_test_schedule.h"
#include "clients/cli/load_test/load_test_stats.h"
#include "clients/cli/remote/remote.h"
#include "clients/cli/terminal/printable.h"
#include "clients/cli/terminal/terminal.h"
#include "grpcpp/client_context.h"
#include "grpcpp/support/sync_stream.h"
#include "nlohmann/json.hpp"
#include "protos/generate.grpc.pb.h"

namespace goldfinch {
namespace {

using Clock = std::chrono::steady_clock;
using scenario::ClientGroup;
using scenario::Scenario;

constexpr double kLookSeconds = 0.2;  // between two looks at the server
constexpr double kLookDeadlineSeconds = 5;
constexpr double kIdleWaitSeconds = 10;  // for the end of what a run has left behind
constexpr double kProgressSeconds = 0.1;
constexpr int64_t kWarmUpPromptTokens = 64;
constexpr int64_t kWarmUpTokens = 4;

std::chrono::nanoseconds Duration(double seconds) {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::duration<double>(seconds));
}

// A server as the clients with one API key see it.
struct Connection {
  std::unique_ptr<Remote> remote;
  std::unique_ptr<v1::Goldfinch::Stub> stub;
};

absl::StatusOr<std::shared_ptr<Connection>> Connect(const RemoteOptions& options) {
  auto connection = std::make_shared<Connection>();
  GF_ASSIGN_OR_RETURN(connection->remote, Remote::Open(options));
  connection->stub = v1::Goldfinch::NewStub(connection->remote->channel());
  return connection;
}

// A group with the server that its clients call.
struct ConnectedGroup {
  ClientGroup settings;
  std::shared_ptr<Connection> connection;
  uint64_t shared_seed = 0;  // of the beginning that its prompts share
  uint64_t seed = 0;         // of everything else
};

// Looks at the server's memory on a thread of its own until it is destroyed.
class Watch {
 public:
  explicit Watch(const Remote& remote) : remote_(remote), thread_([this] { Run(); }) {}
  ~Watch() {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      stopped_ = true;
    }
    stop_.notify_all();
    thread_.join();
  }
  Watch(const Watch&) = delete;
  Watch& operator=(const Watch&) = delete;

  MemoryUse memory() const {
    std::lock_guard<std::mutex> lock(mutex_);
    return memory_;
  }
  absl::Status status() const {
    std::lock_guard<std::mutex> lock(mutex_);
    return status_;
  }
  // Tokens that the server has read and generated since the first look; 0 if it does not tell.
  int64_t tokens() const {
    std::lock_guard<std::mutex> lock(mutex_);
    return tokens_;
  }

 private:
  void Run() {
    std::optional<uint64_t> first_tokens;
    std::unique_lock<std::mutex> lock(mutex_);
    do {  // once at least, however short the run is
      lock.unlock();
      const absl::StatusOr<v1::GetClusterInfoResponse> cluster = remote_.GetClusterInfo();
      lock.lock();
      status_ = cluster.status();
      if (cluster.ok()) {
        memory_.Add(*cluster);
        const uint64_t tokens = cluster->prompt_tokens() + cluster->completion_tokens();
        if (!first_tokens) first_tokens = tokens;
        tokens_ = static_cast<int64_t>(tokens - *first_tokens);
      }
      if (absl::IsPermissionDenied(status_)) return;  // the server shows it to operators only
      stop_.wait_for(lock, Duration(kLookSeconds), [&] { return stopped_; });
    } while (!stopped_);
  }

  const Remote& remote_;
  mutable std::mutex mutex_;
  std::condition_variable stop_;
  bool stopped_ = false;
  MemoryUse memory_;
  absl::Status status_;
  int64_t tokens_ = 0;
  std::thread thread_;  // the last, as it uses the others
};

// One run: groups of clients that are there at once.
class Run final : public CallObserver {
 public:
  Run(std::vector<ConnectedGroup> groups, int64_t vocab_size, int64_t max_concurrency, uint64_t seed)
      : groups_(std::move(groups)),
        vocab_size_(vocab_size),
        max_concurrency_(max_concurrency),
        arrivals_(Settings(groups_), seed),
        stats_(groups_.size()) {}

  // Returns when all requests have ended. `progress` is called every so often, with nothing locked.
  std::vector<LoadTestStats> Go(const std::function<void()>& progress) {
    std::unique_lock<std::mutex> lock(mutex_);
    while (!arrivals_.over() || running_ > 0) {
      if (arrivals_.over()) CutAll();
      if (running_ < max_concurrency_) {
        if (const std::optional<Arrival> arrival = arrivals_.Next(Seconds())) {
          ++running_;
          lock.unlock();
          Send(*arrival);
          lock.lock();
          continue;
        }
      }
      changed_.wait_for(lock, Duration(WaitSeconds()));
      lock.unlock();
      progress();
      lock.lock();
    }
    return stats_;
  }

  // Requests that were sent late because too many ran.
  int64_t held() {
    std::lock_guard<std::mutex> lock(mutex_);
    return held_;
  }

  double Seconds() const override { return std::chrono::duration<double>(Clock::now() - start_).count(); }

  void AddGap(int group, double seconds, int64_t tokens) override {
    std::lock_guard<std::mutex> lock(mutex_);
    stats_[group].AddGap(seconds, tokens);
  }

  void EndCall(RequestRecord record, const grpc::Status& status) override {
    record.status = groups_[record.group].connection->remote->ToStatus(status);
    std::lock_guard<std::mutex> lock(mutex_);
    contexts_.erase(record.number);
    record.cut = cut_ && absl::IsCancelled(record.status);
    stats_[record.group].Add(record);
    arrivals_.Ended(record.group, record.client, !record.status.ok(), Seconds());
    --running_;
    changed_.notify_all();  // under the lock: the thread in Go may destroy this object right after
  }

 private:
  static std::vector<ClientGroup> Settings(const std::vector<ConnectedGroup>& groups) {
    std::vector<ClientGroup> settings;
    settings.reserve(groups.size());
    for (const ConnectedGroup& group : groups) settings.push_back(group.settings);
    return settings;
  }

  // Until something is to be done, if no call ends before.
  double WaitSeconds() {
    if (const std::optional<double> next = arrivals_.next_seconds()) {
      const double seconds = *next - Seconds();
      if (running_ < max_concurrency_) return std::clamp(seconds, 0.0, kProgressSeconds);
      if (seconds <= 0 && !next_is_held_) {
        next_is_held_ = true;  // counts each request once
        ++held_;
      }
    }
    return kProgressSeconds;
  }

  void CutAll() {
    if (cut_) return;
    cut_ = true;
    for (const auto& [number, context] : contexts_) context->TryCancel();
  }

  void Send(const Arrival& arrival) {
    const ConnectedGroup& group = groups_[arrival.group];
    RequestRecord record;
    record.number = arrival.number;
    record.group = arrival.group;
    record.client = arrival.client;
    record.scheduled_seconds = arrival.seconds;
    record.prompt_tokens = group.settings.prompt_tokens();
    v1::GenerateRequest request = RequestOf(group, arrival.number);
    auto context = std::make_shared<grpc::ClientContext>();
    group.connection->remote->Prepare(context.get());
    {
      std::lock_guard<std::mutex> lock(mutex_);
      next_is_held_ = false;
      contexts_[arrival.number] = context;
    }
    StartCall(*group.connection->stub, std::move(context), std::move(request), std::move(record), *this);
  }

  v1::GenerateRequest RequestOf(const ConnectedGroup& group, int64_t number) const {
    const int64_t shared = group.settings.shared_prompt_tokens();
    const uint64_t seed = MixSeed(group.seed, number);
    v1::GenerateRequest request;
    google::protobuf::RepeatedField<uint32_t>& ids = *request.mutable_ids()->mutable_ids();
    for (const auto& [tokens, part_seed] :
         {std::pair{shared, group.shared_seed}, {group.settings.prompt_tokens() - shared, seed}}) {
      ScheduledRequest part;
      part.prompt_tokens = tokens;
      part.seed = part_seed;
      const std::vector<uint32_t> drawn = PromptIds(part, vocab_size_);
      ids.Add(drawn.begin(), drawn.end());
    }
    request.set_max_tokens(group.settings.max_tokens());
    request.set_n(group.settings.n());
    request.set_priority(static_cast<int32_t>(group.settings.priority()));
    request.set_ignore_eos(true);  // so that answers have the length that the scenario says
    request.set_seed(seed);
    return request;
  }

  const std::vector<ConnectedGroup> groups_;
  const int64_t vocab_size_;
  const int64_t max_concurrency_;
  const Clock::time_point start_ = Clock::now();
  std::mutex mutex_;
  std::condition_variable changed_;
  Arrivals arrivals_;
  std::vector<LoadTestStats> stats_;                                  // [groups]
  std::map<int64_t, std::shared_ptr<grpc::ClientContext>> contexts_;  // of calls that run, by number
  int64_t running_ = 0;
  bool cut_ = false;           // what runs is being ended
  bool next_is_held_ = false;  // the next request is late because of max_concurrency
  int64_t held_ = 0;           // requests that were
};

// The groups of a scenario, connected.
absl::StatusOr<std::vector<ConnectedGroup>> ConnectGroups(const LoadTestOptions& options, const Scenario& scenario) {
  const std::filesystem::path folder = std::filesystem::path(options.scenario).parent_path();
  std::map<std::string, std::shared_ptr<Connection>> connections;  // by key file
  std::vector<ConnectedGroup> groups;
  for (const ClientGroup& settings : scenario.groups()) {
    RemoteOptions remote = options.remote;
    if (settings.has_api_key_file()) remote.api_key_file = folder / settings.api_key_file();
    std::shared_ptr<Connection>& connection = connections[remote.api_key_file];
    if (connection == nullptr) {
      GF_ASSIGN_OR_RETURN(connection, Connect(remote));
    }
    const uint64_t seed = MixSeed(options.seed, groups.size());
    groups.push_back({settings, connection, MixSeed(seed, 0), MixSeed(seed, 1)});
  }
  return groups;
}

// The group as its quiet run has it: one client, which sends one request after the other.
ConnectedGroup Quiet(const ConnectedGroup& group) {
  ConnectedGroup quiet = group;
  quiet.seed = MixSeed(group.seed, 1);  // other texts than in the run together
  ClientGroup& settings = quiet.settings;
  settings.clear_start_seconds();
  settings.set_clients(1);
  settings.set_requests(settings.quiet_requests());
  settings.set_think_seconds(0);
  return quiet;
}

absl::Status CheckLengths(const Scenario& scenario, const v1::GetModelInfoResponse& model) {
  for (const ClientGroup& group : scenario.groups()) {
    const int64_t tokens = group.prompt_tokens() + group.max_tokens();
    if (tokens <= static_cast<int64_t>(model.max_model_len())) continue;
    return absl::InvalidArgumentError(absl::StrCat("group \"", group.name(), "\": prompt_tokens and max_tokens are ",
                                                   WithCommas(tokens), " together, the server's max_model_len is ",
                                                   WithCommas(static_cast<int64_t>(model.max_model_len()))));
  }
  return absl::OkStatus();
}

// One request that is not measured: weights that are read for the first time are slow.
absl::Status WarmUp(const Connection& connection, const v1::GetModelInfoResponse& model) {
  ScheduledRequest prompt;
  prompt.prompt_tokens =
      std::clamp<int64_t>(static_cast<int64_t>(model.max_model_len()) - kWarmUpTokens, 1, kWarmUpPromptTokens);
  v1::GenerateRequest request;
  const std::vector<uint32_t> ids = PromptIds(prompt, model.vocab_size());
  request.mutable_ids()->mutable_ids()->Add(ids.begin(), ids.end());
  request.set_max_tokens(kWarmUpTokens);
  request.set_ignore_eos(true);
  grpc::ClientContext context;
  connection.remote->Prepare(&context);
  const std::unique_ptr<grpc::ClientReader<v1::GenerateResponse>> reader = connection.stub->Generate(&context, request);
  v1::GenerateResponse response;
  while (reader->Read(&response)) {
  }
  return connection.remote->ToStatus(reader->Finish());
}

// Waits, but not for long, until the server has forgotten the run before.
void WaitIdle(const Remote& remote) {
  const Clock::time_point end = Clock::now() + Duration(kIdleWaitSeconds);
  while (Clock::now() < end) {
    const absl::StatusOr<v1::GetClusterInfoResponse> cluster = remote.GetClusterInfo();
    if (!cluster.ok() || (cluster->requests_running() == 0 && cluster->requests_waiting() == 0)) return;
    std::this_thread::sleep_for(Duration(kLookSeconds));
  }
}

// Tokens that the groups ask for, as far as that is known before.
int64_t ExpectedTokens(const std::vector<ConnectedGroup>& groups) {
  double tokens = 0;
  for (const ConnectedGroup& group : groups) {
    const ClientGroup& settings = group.settings;
    if (settings.until_others_end() || settings.has_seconds()) continue;
    tokens += static_cast<double>(settings.clients() * settings.requests()) *
              static_cast<double>(settings.prompt_tokens() + settings.n() * settings.max_tokens());
  }
  return static_cast<int64_t>(std::min(tokens, 1e15));
}

// The runs of one scenario, one after another.
class Runs {
 public:
  Runs(const LoadTestOptions& options, const Connection& looking, ScenarioResult* result)
      : options_(options), looking_(looking), result_(result) {}

  void Go(const std::vector<ConnectedGroup>& groups) {
    for (size_t i = 0; i < groups.size(); ++i) {
      result_->groups.push_back({groups[i].settings, std::nullopt, {}});
      if (groups[i].settings.background()) continue;
      Tell("quiet run of " + groups[i].settings.name());
      double seconds = 0;
      result_->groups.back().quiet = RunOne({Quiet(groups[i])}, &seconds).front();
      result_->quiet_seconds += seconds;
    }
    Tell("all groups together");
    const std::vector<LoadTestStats> stats = RunOne(groups, &result_->together_seconds);
    for (size_t i = 0; i < groups.size(); ++i) result_->groups[i].together = stats[i];
  }

 private:
  void Tell(const std::string& what) const {
    std::fprintf(stderr, "%s: %s\n", result_->scenario.name().c_str(), what.c_str());
  }

  // Leaves what the server did in result_->memory.
  std::vector<LoadTestStats> RunOne(const std::vector<ConnectedGroup>& groups, double* seconds) {
    WaitIdle(*looking_.remote);
    const int64_t expected = ExpectedTokens(groups);
    ProgressBar bar(result_->scenario.name(), "tokens");
    const Watch watch(*looking_.remote);
    Run run(groups, result_->model.vocab_size(), options_.max_concurrency, options_.seed);
    std::vector<LoadTestStats> stats =
        run.Go([&] { bar.Update(std::clamp<int64_t>(watch.tokens(), 0, expected), expected); });
    *seconds = run.Seconds();
    result_->held += run.held();
    result_->memory = watch.memory();
    result_->memory_status = watch.status();
    return stats;
  }

  const LoadTestOptions& options_;
  const Connection& looking_;
  ScenarioResult* const result_;
};

absl::Status Verdict(const ScenarioResult& result, bool strict) {
  if (result.failed() > 0) {
    const absl::Status first = result.first_error();
    return absl::Status(first.code(), absl::StrCat(WithCommas(result.failed()), " of ", WithCommas(result.finished()),
                                                   " requests failed, the first: ", first.message()));
  }
  const std::vector<AimResult> aims = CheckAims(result);
  const auto missed = std::count_if(aims.begin(), aims.end(), [](const AimResult& aim) { return !aim.met; });
  if (missed == 0 || !strict) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat(result.scenario.name(), ": ", missed, " of ", aims.size(), " aims were missed"));
}

}  // namespace

absl::Status RunScenario(const LoadTestOptions& options) {
  ScenarioResult result;
  GF_ASSIGN_OR_RETURN(result.scenario, ReadScenario(options.scenario, options.variant));
  result.variant = options.variant;
  result.seed = options.seed;
  result.max_concurrency = options.max_concurrency;
  GF_ASSIGN_OR_RETURN(const std::vector<ConnectedGroup> groups, ConnectGroups(options, result.scenario));
  RemoteOptions look_options = options.remote;
  look_options.deadline_seconds = kLookDeadlineSeconds;
  GF_ASSIGN_OR_RETURN(const std::shared_ptr<Connection> looking, Connect(look_options));
  GF_ASSIGN_OR_RETURN(const std::shared_ptr<Connection> own, Connect(options.remote));
  GF_ASSIGN_OR_RETURN(result.model, own->remote->GetModelInfo());
  if (result.model.vocab_size() < 2) {
    return absl::InternalError(
        absl::StrCat(options.remote.server, ": reports a vocabulary of ", result.model.vocab_size()));
  }
  GF_RETURN_IF_ERROR(CheckLengths(result.scenario, result.model));
  GF_RETURN_IF_ERROR(WarmUp(*own, result.model));
  const absl::StatusOr<v1::GetClusterInfoResponse> cluster = looking->remote->GetClusterInfo();
  if (cluster.ok()) {
    for (const v1::GroupInfo& group : cluster->groups()) result.stages += group.stages_size();
  }
  Runs(options, *looking, &result).Go(groups);
  std::cout << (options.json ? JsonText(ScenarioJson(result), 2) + "\n" : ScenarioTable(result));
  GF_RETURN_IF_ERROR(FlushOutput());
  return Verdict(result, options.strict);
}

}  // namespace goldfinch
