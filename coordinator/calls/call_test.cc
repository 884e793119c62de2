// How fast a client must read. Streams whose writes the test ends take the place of a door.
#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "coordinator/calls/generate_call.h"
#include "coordinator/calls/test_model.h"
#include "coordinator/metrics/metrics.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "spdlog/sinks/base_sink.h"
#include "spdlog/spdlog.h"

namespace goldfinch {
namespace {

using ::testing::HasSubstr;

// Takes requests, and does what the test says with them.
class OneRequest : public Dispatcher {
 public:
  std::shared_ptr<const ServedModel> model() const override { return model_; }
  bool ready() const override { return true; }
  void FillClusterInfo(v1::GetClusterInfoResponse*) const override {}
  absl::StatusOr<uint64_t> Submit(Request request, std::shared_ptr<RequestSink> sink) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    request_ = std::move(request);
    sink_ = std::move(sink);
    return 1;
  }
  void Cancel(uint64_t, absl::Status status) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    cancelled_ = std::move(status);
    changed_.notify_all();
  }
  void Resume(uint64_t) override {}

  const Request& request() const { return request_; }
  RequestSink& sink() { return *sink_; }
  bool cancelled() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return cancelled_.has_value();
  }
  absl::Status AwaitCancel() {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [&] { return cancelled_.has_value(); });
    return *cancelled_;
  }

 private:
  std::shared_ptr<const ServedModel> model_ = MakeTestModel();
  std::mutex mutex_;
  std::condition_variable changed_;
  Request request_;
  std::shared_ptr<RequestSink> sink_;
  std::optional<absl::Status> cancelled_;
};

// A client that takes every message after `seconds`.
class SlowClient : public CallStream {
 public:
  explicit SlowClient(double seconds) : seconds_(seconds) {}

  void Attach(std::shared_ptr<Call> call) { call_ = std::move(call); }
  void Write(const google::protobuf::MessageLite&) override {
    if (seconds_ > 1000) return;  // never
    thread_.PostAfter(seconds_, [this] { call_->WriteDone(true); });
  }
  void End(const absl::Status& status) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    ended_ = status;
    changed_.notify_all();
  }
  void Abort() override {}
  absl::Status AwaitEnd() {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [&] { return ended_.has_value(); });
    return *ended_;
  }

 private:
  const double seconds_;
  std::shared_ptr<Call> call_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::optional<absl::Status> ended_;
  WorkQueue thread_{1};
};

struct Served {
  Served(double stall_timeout_seconds, double least_bytes_per_second, double client_seconds) : client(client_seconds) {
    environment.dispatcher = &dispatcher;
    environment.metrics = &metrics;
    environment.stall_timeout_seconds = stall_timeout_seconds;
    environment.least_bytes_per_second = least_bytes_per_second;
    const auto read = [](v1::GenerateRequest* message) {
      message->set_text("hello");
      message->set_n(8);
      message->add_stop("never");
      return absl::OkStatus();
    };
    call = std::make_shared<GenerateCall>(
        &environment, Caller{.client = std::make_shared<Client>(), .peer = "127.0.0.1"}, std::nullopt, read, &client);
    client.Attach(call);
    call->Begin();
  }
  ~Served() { call->Closed(); }

  Metrics metrics{"test"};
  OneRequest dispatcher;
  SlowClient client;
  CallEnvironment environment;
  std::shared_ptr<GenerateCall> call;
};

TEST(Call, AClientThatTakesABitNowAndThenIsGivenUp) {
  // Every message is taken long before the timeout, but there is always one that waits.
  Served served(/*stall_timeout_seconds=*/0.4, /*least_bytes_per_second=*/1e6, /*client_seconds=*/0.05);
  while (!served.dispatcher.cancelled()) {
    for (int sample = 0; sample < 8; ++sample) served.dispatcher.sink().OnToken(sample, {.id = 'a' + 1});
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  const absl::Status status = served.dispatcher.AwaitCancel();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()), HasSubstr("the client reads too slowly: it has taken "));
  EXPECT_THAT(std::string(status.message()), HasSubstr("in 0.4 s (stall timeout) in which messages waited for it"));
  served.dispatcher.sink().OnDone(status, {});
  EXPECT_EQ(served.client.AwaitEnd().code(), absl::StatusCode::kResourceExhausted);
}

TEST(Call, AClientThatTakesEnoughIsNotGivenUp) {
  // It is as slow, but what it takes is enough.
  Served served(/*stall_timeout_seconds=*/0.4, /*least_bytes_per_second=*/1e-6, /*client_seconds=*/0.05);
  const auto end = std::chrono::steady_clock::now() + std::chrono::milliseconds(1500);
  while (std::chrono::steady_clock::now() < end) {
    for (int sample = 0; sample < 8; ++sample) served.dispatcher.sink().OnToken(sample, {.id = 'a' + 1});
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  for (int sample = 0; sample < 8; ++sample) served.dispatcher.sink().OnSampleDone(sample, Finish::kLength);
  served.dispatcher.sink().OnDone(absl::OkStatus(), {});
  EXPECT_TRUE(served.client.AwaitEnd().ok());
  EXPECT_FALSE(served.dispatcher.cancelled());
}

// Keeps the lines that are logged while it lives.
class Lines : public spdlog::sinks::base_sink<std::mutex> {
 public:
  int64_t Count(const std::string& part) {
    const std::lock_guard<std::mutex> lock(mutex_);
    return std::count_if(lines_.begin(), lines_.end(),
                         [&](const std::string& line) { return line.find(part) != std::string::npos; });
  }

 private:
  // Under mutex_, which is the base's.
  void sink_it_(const spdlog::details::log_msg& message) override {
    lines_.emplace_back(message.payload.data(), message.payload.size());
  }
  void flush_() override {}

  std::vector<std::string> lines_;
};

TEST(Call, ALoggedRequestHasAllOfItsLinesAndAFloodHasFew) {
  const auto lines = std::make_shared<Lines>();
  const auto before = spdlog::default_logger();
  spdlog::set_default_logger(std::make_shared<spdlog::logger>("test", lines));
  OneRequest dispatcher;
  Metrics metrics{"test"};
  CallEnvironment environment{.dispatcher = &dispatcher,
                              .metrics = &metrics,
                              .stall_timeout_seconds = 60,
                              .request_log = {/*per_second=*/0, /*burst=*/3},
                              .failure_log = {/*per_second=*/0, /*burst=*/1}};
  const auto read = [](v1::GenerateRequest* message) {
    message->set_text("hello");
    return absl::OkStatus();
  };
  for (int i = 0; i < 8; ++i) {
    SlowClient client(0);
    const auto call = std::make_shared<GenerateCall>(
        &environment, Caller{.client = std::make_shared<Client>(), .peer = "127.0.0.1"}, std::nullopt, read, &client);
    client.Attach(call);
    call->Begin();
    dispatcher.sink().OnToken(0, {.id = 'a' + 1});
    dispatcher.sink().OnToken(0, {.id = 'b' + 1});
    dispatcher.sink().OnSampleDone(0, Finish::kLength);
    dispatcher.sink().OnDone(i < 6 ? absl::OkStatus() : absl::InternalError("nothing works"), {});
    EXPECT_EQ(client.AwaitEnd().ok(), i < 6);
    call->Closed();
  }
  EXPECT_EQ(lines->Count("event=start"), 3);
  EXPECT_EQ(lines->Count("event=first_token"), 3);
  EXPECT_EQ(lines->Count("event=end code=OK"), 3);
  EXPECT_EQ(lines->Count("event=end code=INTERNAL"), 1) << "failures have a limit of their own";
  spdlog::set_default_logger(before);
}

TEST(Call, SamplesShareTheirStopStringsAndTheirBytesAreCounted) {
  Served served(60, 128, 0);
  EXPECT_GT(served.dispatcher.request().held_bytes, 0);
  EXPECT_LT(served.dispatcher.request().held_bytes, 8 * 2048);
  served.dispatcher.sink().OnDone(absl::CancelledError(""), {});
  EXPECT_FALSE(served.client.AwaitEnd().ok());
}

}  // namespace
}  // namespace goldfinch
