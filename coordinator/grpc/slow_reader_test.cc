// Generate with clients that read slowly, not at all, or go away, and many of them at once.
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <future>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "coordinator/grpc/service_test_util.h"
#include "gmock/gmock.h"
#include "grpcpp/client_context.h"
#include "gtest/gtest.h"
#include "spdlog/sinks/base_sink.h"
#include "spdlog/spdlog.h"

namespace goldfinch {
namespace {

using testing::HasSubstr;
using Verdict = RequestSink::Verdict;

// Sends tokens with many log-probabilities, and waits whenever the sink says so, until nothing moves any more: the
// transport is full, and the bound reached. How many that took.
int FillUntilFull(ServiceHarness& harness, uint64_t number) {
  OutputToken token = {.id = 'x' + 1, .logprob = -1.0f};
  for (int i = 0; i < 20; ++i) token.top.push_back({.id = 1 + i, .logprob = -2.0f});
  int resumed = 0;
  for (int count = 1; count < 100'000; ++count) {
    const Verdict verdict = harness.dispatcher().Token(number, 0, token);
    if (verdict == Verdict::kStop) return count - 1;  // it has been ended
    if (verdict == Verdict::kPause && !harness.dispatcher().WaitResumed(number, ++resumed, 0.3)) return count;
  }
  return -1;
}

TEST(Generate, ASlowReaderIsPausedAndLosesNothing) {
  ServiceHarness harness;
  Stream stream(harness, Simple());
  const uint64_t number = harness.dispatcher().Next();
  // The transport's own windows take some; then the bound does.
  int sent = FillUntilFull(harness, number);
  ASSERT_GT(sent, 64);
  EXPECT_EQ(harness.dispatcher().Token(number, 0, {.id = 'y' + 1}), Verdict::kPause) << "what was under way comes yet";
  ++sent;

  // Reading all of it lets the request go on.
  const int resumed = harness.dispatcher().Resumed(number);
  std::vector<uint32_t> ids;
  for (v1::GenerateResponse response; static_cast<int>(ids.size()) < sent;) {
    ASSERT_TRUE(stream.reader->Read(&response));
    for (const v1::Token& token : response.tokens()) ids.push_back(token.id());
  }
  EXPECT_TRUE(harness.dispatcher().WaitResumed(number, resumed + 1, 60));
  harness.dispatcher().Tokens(number, 0, Ids("z"));
  harness.dispatcher().SampleDone(number, 0, Finish::kLength);
  harness.dispatcher().Done(number, absl::OkStatus());
  for (const uint32_t id : ReadAll(stream.reader.get()).ids()) ids.push_back(id);
  ASSERT_EQ(static_cast<int>(ids.size()), sent + 1);
  EXPECT_EQ(ids[sent - 1], 'y' + 1u);
  EXPECT_EQ(ids[sent], 'z' + 1u);
}

TEST(Generate, WhatAReaderLeavesComesInFewMessages) {
  ServiceHarness harness;
  Stream stream(harness, Simple());
  const uint64_t number = harness.dispatcher().Next();
  const int sent = FillUntilFull(harness, number);
  ASSERT_GT(sent, 64);
  harness.dispatcher().SampleDone(number, 0, Finish::kLength);
  harness.dispatcher().Done(number, absl::OkStatus());
  const Answer answer = ReadAll(stream.reader.get());
  EXPECT_EQ(static_cast<int>(answer.ids().size()), sent);
  // The 64 at the bound were in the write under way and in one message after it; the end may have one of its own.
  int last_tokens = 0;
  for (size_t i = answer.responses.size() - 3; i < answer.responses.size(); ++i) {
    last_tokens += answer.responses[i].tokens_size();
  }
  EXPECT_GE(last_tokens, 64) << "the last ones were not merged";
}

// Keeps the lines that are logged while it lives.
class LogWatch : public spdlog::sinks::base_sink<std::mutex> {
 public:
  static std::shared_ptr<LogWatch> Start() {
    auto watch = std::make_shared<LogWatch>();
    spdlog::set_default_logger(std::make_shared<spdlog::logger>("test", watch));
    return watch;
  }
  // The first line with `part`; waits for it.
  std::string Wait(const std::string& part) {
    std::unique_lock<std::mutex> lock(mutex_);
    while (true) {
      for (const std::string& line : lines_) {
        if (line.find(part) != std::string::npos) return line;
      }
      changed_.wait(lock);
    }
  }

 private:
  // Under mutex_, which is the base's.
  void sink_it_(const spdlog::details::log_msg& message) override {
    lines_.emplace_back(message.payload.data(), message.payload.size());
    changed_.notify_all();
  }
  void flush_() override {}

  std::condition_variable changed_;
  std::vector<std::string> lines_;
};

TEST(Generate, LinesAreLoggedAtTheStartTheFirstTokenAndTheEnd) {
  const auto log = LogWatch::Start();
  ServiceHarness harness;
  v1::GenerateRequest message = Simple();
  message.set_request_id("a b=\"c\"");
  Stream stream(harness, message);
  const uint64_t number = harness.dispatcher().Next();
  // An id cannot pass for other words of the line.
  const std::string beginning = "request=\"a b=\\\"c\\\"\" method=Generate event=";
  EXPECT_THAT(log->Wait("event=start"), HasSubstr(beginning + "start prompt_tokens=5 max_tokens=256 n=1 "));
  harness.dispatcher().Token(number, 0, {.id = 'a' + 1});
  EXPECT_THAT(log->Wait("event=first_token"), HasSubstr(beginning + "first_token seconds="));
  harness.dispatcher().SampleDone(number, 0, Finish::kLength);
  harness.dispatcher().Done(
      number, absl::OkStatus(),
      {.prompt_tokens = 5, .completion_tokens = 21, .queue_seconds = 1.5, .prefill_seconds = 0.5, .decode_seconds = 2});
  EXPECT_TRUE(ReadAll(stream.reader.get()).status.ok());
  EXPECT_THAT(log->Wait("event=end"),
              HasSubstr(beginning + "end code=OK prompt_tokens=5 cached_tokens=0 completion_tokens=21 recoveries=0 "
                                    "parkings=0 queue_seconds=1.500 "
                                    "prefill_seconds=0.500 prefill_tokens_per_second=10.0 decode_seconds=2.000 "
                                    "decode_tokens_per_second=10.0 seconds="));
  message.set_n(65);
  EXPECT_FALSE(ErrorOf(harness, message).ok());
  EXPECT_THAT(log->Wait("code=INVALID_ARGUMENT"), HasSubstr("message=\"n is 65, the limit is 64\""));
}

TEST(Generate, AClientThatTakesNothingIsCutOff) {
  const auto log = LogWatch::Start();
  ServiceHarness harness({.stall_timeout_seconds = 1});
  Stream stream(harness, Simple());
  const uint64_t number = harness.dispatcher().Next();
  ASSERT_GT(FillUntilFull(harness, number), 0);
  const absl::Status status = harness.dispatcher().WaitCancelled(number);
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(std::string(status.message()), "the client does not read: it has taken nothing for 1 s (stall timeout)");
  log->Wait("code=RESOURCE_EXHAUSTED");
  // If it reads now, it gets what was on its way and the reason.
  EXPECT_EQ(ReadAll(stream.reader.get()).status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
}

TEST(Generate, AnAnswerThatWasCutOffIsNotOk) {
  const auto log = LogWatch::Start();
  ServiceHarness harness({.stall_timeout_seconds = 1});
  Stream stream(harness, Simple());
  const uint64_t number = harness.dispatcher().Next();
  ASSERT_GT(FillUntilFull(harness, number), 0);
  harness.dispatcher().SampleDone(number, 0, Finish::kLength);
  harness.dispatcher().Done(number, absl::OkStatus());
  log->Wait("code=RESOURCE_EXHAUSTED");
  EXPECT_EQ(ReadAll(stream.reader.get()).status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
}

TEST(Generate, AClientThatTakesNothingAtAllIsCancelled) {
  ServiceHarness harness({.stall_timeout_seconds = 0.2});
  Stream stream(harness, Simple());
  const uint64_t number = harness.dispatcher().Next();
  ASSERT_GT(FillUntilFull(harness, number), 0);
  harness.dispatcher().SampleDone(number, 0, Finish::kLength);
  harness.dispatcher().Done(number, absl::OkStatus());
  // The server can end only if the call does.
  harness.server().Shutdown(60);
  EXPECT_FALSE(ReadAll(stream.reader.get()).status.ok());
}

TEST(Generate, AClientThatIsSlowButReadsIsNotCutOff) {
  ServiceHarness harness({.stall_timeout_seconds = 1});
  Stream stream(harness, Simple());
  const uint64_t number = harness.dispatcher().Next();
  // No write waits for the client here, however long it takes to say more.
  harness.dispatcher().Tokens(number, 0, Ids("a"));
  std::this_thread::sleep_for(std::chrono::milliseconds(1300));
  harness.dispatcher().Tokens(number, 0, Ids("b"));
  harness.dispatcher().SampleDone(number, 0, Finish::kLength);
  harness.dispatcher().Done(number, absl::OkStatus());
  const Answer answer = ReadAll(stream.reader.get());
  EXPECT_TRUE(answer.status.ok()) << answer.status.error_message();
  EXPECT_EQ(answer.text(), "ab");
}

TEST(Generate, OneSlowReaderHoldsNobodyUp) {
  ServiceHarness harness;
  Stream slow(harness, Simple());
  const uint64_t slow_number = harness.dispatcher().Next();
  ASSERT_GT(FillUntilFull(harness, slow_number), 0);
  Stream fast(harness, Simple());
  const uint64_t number = harness.dispatcher().Next();
  harness.dispatcher().Tokens(number, 0, Ids("quick"));
  harness.dispatcher().SampleDone(number, 0, Finish::kLength);
  harness.dispatcher().Done(number, absl::OkStatus());
  EXPECT_EQ(ReadAll(fast.reader.get()).text(), "quick");
  slow.context.TryCancel();
  EXPECT_EQ(harness.dispatcher().WaitCancelled(slow_number).code(), absl::StatusCode::kCancelled);
}

TEST(Generate, ManyCallsWithCancelsLeaveNothingBehind) {
  ServiceHarness harness;
  std::vector<std::future<void>> clients;
  for (int client = 0; client < 8; ++client) {
    clients.push_back(std::async(std::launch::async, [&harness, client] {
      for (int i = 0; i < 20; ++i) {
        Stream stream(harness, Simple());
        if ((client + i) % 3 == 0) stream.context.TryCancel();
        v1::GenerateResponse response;
        if ((client + i) % 3 == 1 && stream.reader->Read(&response)) stream.context.TryCancel();
        const grpc::Status status = ReadAll(stream.reader.get()).status;
        if ((client + i) % 3 == 2) {
          EXPECT_TRUE(status.ok()) << status.error_message();
        }
      }
    }));
  }
  std::atomic<bool> stop = false;
  std::thread pump([&] {
    // Serves every request that comes, whether it still lives or not.
    for (uint64_t number = harness.dispatcher().Next(); !stop; number = harness.dispatcher().Next()) {
      harness.dispatcher().Tokens(number, 0, Ids("some text"));
      harness.dispatcher().SampleDone(number, 0, Finish::kLength);
      harness.dispatcher().Done(number, absl::OkStatus());
    }
  });
  for (std::future<void>& client : clients) client.get();
  stop = true;
  grpc::ClientContext context;
  const auto last = harness.stub().Generate(&context, Simple());
  pump.join();
  context.TryCancel();
  ReadAll(last.get());
  harness.server().Shutdown(60);
  EXPECT_EQ(harness.dispatcher().live(), 0);
}

TEST(Generate, ShutdownEndsWhatRuns) {
  ServiceHarness harness;
  Stream stream(harness, Simple());
  const uint64_t number = harness.dispatcher().Next();
  harness.server().Shutdown(0.1);
  EXPECT_EQ(harness.dispatcher().WaitCancelled(number).code(), absl::StatusCode::kCancelled);
  EXPECT_FALSE(ReadAll(stream.reader.get()).status.ok());
  EXPECT_EQ(harness.dispatcher().live(), 0);
}

}  // namespace
}  // namespace goldfinch
