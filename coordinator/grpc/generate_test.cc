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

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using Verdict = RequestSink::Verdict;

// Ids of single bytes.
std::vector<int32_t> Ids(const std::string& text) {
  std::vector<int32_t> ids;
  for (const char c : text) ids.push_back(static_cast<unsigned char>(c) + 1);
  return ids;
}

v1::GenerateRequest Simple() {
  v1::GenerateRequest message;
  message.set_text("hello");
  return message;
}

// One call, its reader, and the dispatcher's number of it.
struct Stream {
  Stream(EdgeHarness& edge, const v1::GenerateRequest& message) : reader(edge.stub().Generate(&context, message)) {}

  grpc::ClientContext context;
  std::unique_ptr<grpc::ClientReader<v1::GenerateResponse>> reader;
};

grpc::Status ErrorOf(EdgeHarness& edge, const v1::GenerateRequest& message) {
  grpc::ClientContext context;
  return ReadAll(edge.stub().Generate(&context, message).get()).status;
}

TEST(Generate, StreamsTokensAndTextToTheEnd) {
  EdgeHarness edge;
  v1::GenerateRequest message = Simple();
  message.set_request_id("mine");
  message.set_seed(42);
  Stream stream(edge, message);
  const uint64_t number = edge.dispatcher().Next();
  EXPECT_EQ(edge.dispatcher().RequestOf(number).id, "mine");
  EXPECT_EQ(edge.dispatcher().RequestOf(number).generate->sampling.seed, 42u);
  EXPECT_FALSE(edge.dispatcher().RequestOf(number).deadline_seconds.has_value());

  EXPECT_EQ(edge.dispatcher().Token(number, 0, {.id = 'A' + 1, .logprob = -0.5f, .top = {{7, -0.25f}}}),
            Verdict::kContinue);
  v1::GenerateResponse first;
  ASSERT_TRUE(stream.reader->Read(&first));
  EXPECT_EQ(first.request_id(), "mine");
  EXPECT_EQ(first.seed(), 42u);
  EXPECT_EQ(first.text(), "A");
  ASSERT_EQ(first.tokens_size(), 1);
  EXPECT_EQ(first.tokens(0).logprob(), -0.5f);
  ASSERT_EQ(first.tokens(0).top_size(), 1);
  EXPECT_EQ(first.tokens(0).top(0).id(), 7u);
  EXPECT_EQ(first.tokens(0).top(0).logprob(), -0.25f);
  EXPECT_FALSE(first.has_usage());

  edge.dispatcher().Tokens(number, 0, {257, 0});
  edge.dispatcher().SampleDone(number, 0, Finish::kEndOfText);
  edge.dispatcher().Done(number, absl::OkStatus(),
                         {.prompt_tokens = 5,
                          .completion_tokens = 3,
                          .queue_seconds = 1,
                          .prefill_seconds = 2,
                          .decode_seconds = 3,
                          .cache_bytes = 6,
                          .transformer_cache_bytes = 7,
                          .recoveries = 8});
  const Answer rest = ReadAll(stream.reader.get());
  EXPECT_TRUE(rest.status.ok()) << rest.status.error_message();
  EXPECT_EQ(rest.text(), " the");
  EXPECT_THAT(rest.ids(), ElementsAre(257, 0));
  EXPECT_EQ(rest.finish(), v1::END_OF_TEXT);
  ASSERT_FALSE(rest.responses.empty());
  EXPECT_EQ(rest.responses[0].request_id(), "");
  const v1::Usage& usage = rest.responses.back().usage();
  EXPECT_EQ(usage.prompt_tokens(), 5u);
  EXPECT_EQ(usage.completion_tokens(), 3u);
  EXPECT_EQ(usage.queue_seconds(), 1);
  EXPECT_EQ(usage.prefill_seconds(), 2);
  EXPECT_EQ(usage.decode_seconds(), 3);
  EXPECT_EQ(usage.cache_bytes(), 6u);
  EXPECT_EQ(usage.transformer_cache_bytes(), 7u);
  EXPECT_EQ(usage.recoveries(), 8u);
}

TEST(Generate, IdAndSeedAreMadeIfAbsentAndTold) {
  EdgeHarness edge;
  std::vector<uint64_t> seeds;
  std::vector<std::string> ids;
  for (int i = 0; i < 2; ++i) {
    Stream stream(edge, Simple());
    const uint64_t number = edge.dispatcher().Next();
    edge.dispatcher().SampleDone(number, 0, Finish::kLength);
    edge.dispatcher().Done(number, absl::OkStatus());
    const Answer answer = ReadAll(stream.reader.get());
    ASSERT_EQ(answer.responses.size(), 1u);
    EXPECT_EQ(answer.responses[0].seed(), edge.dispatcher().RequestOf(number).generate->sampling.seed);
    EXPECT_EQ(answer.responses[0].request_id(), edge.dispatcher().RequestOf(number).id);
    EXPECT_EQ(answer.responses[0].finish_reason(), v1::LENGTH);
    EXPECT_TRUE(answer.responses[0].has_usage());
    seeds.push_back(answer.responses[0].seed());
    ids.push_back(answer.responses[0].request_id());
  }
  EXPECT_NE(seeds[0], seeds[1]);
  EXPECT_NE(ids[0], ids[1]);
  EXPECT_FALSE(ids[0].empty());
}

TEST(Generate, CharactersThatTokensCutComeWhole) {
  EdgeHarness edge;
  Stream stream(edge, Simple());
  const uint64_t number = edge.dispatcher().Next();
  edge.dispatcher().Token(number, 0, {.id = 260});
  v1::GenerateResponse response;
  ASSERT_TRUE(stream.reader->Read(&response));
  EXPECT_EQ(response.text(), "caf");
  edge.dispatcher().Token(number, 0, {.id = 0xa9 + 1});
  ASSERT_TRUE(stream.reader->Read(&response));
  EXPECT_EQ(response.text(), "\xc3\xa9");
  // Broken at the end.
  edge.dispatcher().Token(number, 0, {.id = 0xc3 + 1});
  edge.dispatcher().SampleDone(number, 0, Finish::kLength);
  edge.dispatcher().Done(number, absl::OkStatus());
  EXPECT_EQ(ReadAll(stream.reader.get()).text(), "\xef\xbf\xbd");
}

TEST(Generate, AStopTextAcrossTokensEndsTheSampleAndIsNotSent) {
  EdgeHarness edge;
  v1::GenerateRequest message = Simple();
  message.add_stop("xyz");
  message.add_stop("bcd");
  Stream stream(edge, message);
  const uint64_t number = edge.dispatcher().Next();
  EXPECT_EQ(edge.dispatcher().Token(number, 0, {.id = 258}), Verdict::kContinue);  // "ab"
  v1::GenerateResponse response;
  ASSERT_TRUE(stream.reader->Read(&response));
  EXPECT_EQ(response.text(), "a");  // "b" may begin a stop
  EXPECT_EQ(edge.dispatcher().Token(number, 0, {.id = 'c' + 1}), Verdict::kContinue);
  EXPECT_EQ(edge.dispatcher().Token(number, 0, {.id = 'd' + 1}), Verdict::kStop);
  edge.dispatcher().SampleDone(number, 0, Finish::kStop);
  edge.dispatcher().Done(number, absl::OkStatus());
  const Answer rest = ReadAll(stream.reader.get());
  EXPECT_EQ(rest.text(), "");
  EXPECT_THAT(rest.ids(), ElementsAre('c' + 1, 'd' + 1));
  EXPECT_EQ(rest.finish(), v1::STOP);
}

TEST(Generate, WhatLookedLikeAStopComesAtTheEnd) {
  EdgeHarness edge;
  v1::GenerateRequest message = Simple();
  message.add_stop("bcd");
  message.add_stop_ids('!' + 1);
  Stream stream(edge, message);
  const uint64_t number = edge.dispatcher().Next();
  EXPECT_THAT(edge.dispatcher().RequestOf(number).generate->stop_ids, ElementsAre('!' + 1));
  edge.dispatcher().Tokens(number, 0, {258, 'c' + 1, '!' + 1});
  edge.dispatcher().SampleDone(number, 0, Finish::kStop);
  edge.dispatcher().Done(number, absl::OkStatus());
  const Answer answer = ReadAll(stream.reader.get());
  EXPECT_EQ(answer.text(), "abc");  // without the stop token's "!"
  EXPECT_THAT(answer.ids(), ElementsAre(258, 'c' + 1, '!' + 1));
  EXPECT_EQ(answer.finish(), v1::STOP);
}

TEST(Generate, SamplesKeepTheirTextsApart) {
  EdgeHarness edge;
  v1::GenerateRequest message = Simple();
  message.set_n(3);
  message.add_stop("bc");
  Stream stream(edge, message);
  const uint64_t number = edge.dispatcher().Next();
  EXPECT_EQ(edge.dispatcher().RequestOf(number).generate->samples, 3);
  edge.dispatcher().Token(number, 0, {.id = 'b' + 1});
  edge.dispatcher().Token(number, 1, {.id = 'c' + 1});
  EXPECT_EQ(edge.dispatcher().Token(number, 2, {.id = 259}), Verdict::kStop);
  edge.dispatcher().SampleDone(number, 2, Finish::kStop);
  edge.dispatcher().Token(number, 0, {.id = 'd' + 1});
  edge.dispatcher().SampleDone(number, 0, Finish::kLength);
  edge.dispatcher().Token(number, 1, {.id = 0});
  edge.dispatcher().SampleDone(number, 1, Finish::kEndOfText);
  edge.dispatcher().Done(number, absl::OkStatus());
  const Answer answer = ReadAll(stream.reader.get());
  EXPECT_EQ(answer.text(0), "bd");
  EXPECT_EQ(answer.text(1), "c");
  EXPECT_EQ(answer.text(2), "");
  EXPECT_EQ(answer.finish(0), v1::LENGTH);
  EXPECT_EQ(answer.finish(1), v1::END_OF_TEXT);
  EXPECT_EQ(answer.finish(2), v1::STOP);
  int firsts = 0, usages = 0;
  for (const v1::GenerateResponse& response : answer.responses) {
    firsts += !response.request_id().empty();
    usages += response.has_usage();
  }
  EXPECT_EQ(firsts, 1);
  EXPECT_FALSE(answer.responses.front().request_id().empty());
  EXPECT_EQ(usages, 1);
  EXPECT_TRUE(answer.responses.back().has_usage());
}

TEST(Generate, ProgressStandsAlone) {
  EdgeHarness edge;
  v1::GenerateRequest message = Simple();
  message.set_progress(true);
  Stream stream(edge, message);
  const uint64_t number = edge.dispatcher().Next();
  EXPECT_TRUE(edge.dispatcher().RequestOf(number).progress);
  edge.dispatcher().Progress(number, 3);
  v1::GenerateResponse response;
  ASSERT_TRUE(stream.reader->Read(&response));
  EXPECT_FALSE(response.request_id().empty());
  EXPECT_FALSE(response.has_progress());
  ASSERT_TRUE(stream.reader->Read(&response));
  EXPECT_EQ(response.progress().prompt_tokens_done(), 3u);
  EXPECT_EQ(response.progress().prompt_tokens(), 5u);
  edge.dispatcher().Tokens(number, 0, Ids("x"));
  edge.dispatcher().SampleDone(number, 0, Finish::kLength);
  edge.dispatcher().Done(number, absl::OkStatus());
  EXPECT_EQ(ReadAll(stream.reader.get()).text(), "x");
}

TEST(Generate, ErrorsComeAfterWhatWasMade) {
  EdgeHarness edge;
  Stream stream(edge, Simple());
  const uint64_t number = edge.dispatcher().Next();
  edge.dispatcher().Tokens(number, 0, Ids("ab"));
  edge.dispatcher().Done(number, absl::UnavailableError("no group could form"));
  const Answer answer = ReadAll(stream.reader.get());
  EXPECT_EQ(answer.text(), "ab");
  EXPECT_EQ(answer.status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(answer.status.error_message(), "no group could form");
  EXPECT_FALSE(answer.responses.back().has_usage());
}

TEST(Generate, RefusalsAreToldAndCounted) {
  EdgeHarness edge;
  v1::GenerateRequest message = Simple();
  message.set_n(65);
  grpc::Status status = ErrorOf(edge, message);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(status.error_message(), "n is 65, the limit is 64");
  EXPECT_EQ(edge.Counted("request_failure_total", "INVALID_ARGUMENT"), 1);

  edge.dispatcher().Refuse(absl::ResourceExhaustedError("the queue is full"));
  status = ErrorOf(edge, Simple());
  EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(status.error_message(), "the queue is full");
  EXPECT_EQ(edge.Counted("request_failure_total", "RESOURCE_EXHAUSTED"), 1);

  edge.dispatcher().SetModel(nullptr);
  status = ErrorOf(edge, Simple());
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(status.error_message(), "no worker has described the model yet");
}

TEST(Generate, ALongPromptIsTokenizedElsewhere) {
  EdgeHarness edge;
  const std::shared_ptr<const ServedModel> model = MakeTestModel();
  auto info = std::make_shared<v1::GetModelInfoResponse>(*model->info);
  info->set_max_model_len(10'000'000);
  edge.dispatcher().SetModel(
      std::make_shared<ServedModel>(ServedModel{std::move(info), model->tokenizer, model->vocabulary}));
  v1::GenerateRequest message;
  message.set_text(std::string(3'000'000, 'x'));
  Stream stream(edge, message);
  const uint64_t number = edge.dispatcher().Next();
  EXPECT_EQ(edge.dispatcher().RequestOf(number).prompt.size(), 3'000'000u);
  edge.dispatcher().SampleDone(number, 0, Finish::kLength);
  edge.dispatcher().Done(number, absl::OkStatus());
  EXPECT_TRUE(ReadAll(stream.reader.get()).status.ok());
}

TEST(Generate, AClientThatGoesAwayEndsTheRequest) {
  EdgeHarness edge;
  Stream stream(edge, Simple());
  const uint64_t number = edge.dispatcher().Next();
  edge.dispatcher().Tokens(number, 0, Ids("a"));
  stream.context.TryCancel();
  EXPECT_EQ(edge.dispatcher().WaitCancelled(number).code(), absl::StatusCode::kCancelled);
  EXPECT_EQ(ReadAll(stream.reader.get()).status.error_code(), grpc::StatusCode::CANCELLED);
}

TEST(Generate, TheDeadlineIsToldAndKept) {
  EdgeHarness edge;
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::milliseconds(300));
  // A client that leaves it to the server to keep the deadline.
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_ENABLE_DEADLINE_CHECKS, 0);
  const auto stub = edge.Connect(arguments);
  const auto reader = stub->Generate(&context, Simple());
  const uint64_t number = edge.dispatcher().Next();
  const std::optional<double> seconds = edge.dispatcher().RequestOf(number).deadline_seconds;
  ASSERT_TRUE(seconds.has_value());
  EXPECT_LE(*seconds, 0.4);
  EXPECT_GT(*seconds, -10);
  EXPECT_EQ(edge.dispatcher().WaitCancelled(number).code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_FALSE(ReadAll(reader.get()).status.ok());
}

// Sends tokens with many log-probabilities, and waits whenever the sink says so, until nothing moves any more: the
// transport is full, and the bound reached. How many that took.
int FillUntilFull(EdgeHarness& edge, uint64_t number) {
  OutputToken token = {.id = 'x' + 1, .logprob = -1.0f};
  for (int i = 0; i < 20; ++i) token.top.push_back({.id = 1 + i, .logprob = -2.0f});
  int resumed = 0;
  for (int count = 1; count < 100'000; ++count) {
    const Verdict verdict = edge.dispatcher().Token(number, 0, token);
    if (verdict == Verdict::kStop) return count - 1;  // it has been ended
    if (verdict == Verdict::kPause && !edge.dispatcher().WaitResumed(number, ++resumed, 0.3)) return count;
  }
  return -1;
}

TEST(Generate, ASlowReaderIsPausedAndLosesNothing) {
  EdgeHarness edge;
  Stream stream(edge, Simple());
  const uint64_t number = edge.dispatcher().Next();
  // The transport's own windows take some; then the bound does.
  int sent = FillUntilFull(edge, number);
  ASSERT_GT(sent, 64);
  EXPECT_EQ(edge.dispatcher().Token(number, 0, {.id = 'y' + 1}), Verdict::kPause) << "what was under way comes yet";
  ++sent;

  // Reading all of it lets the request go on.
  const int resumed = edge.dispatcher().Resumed(number);
  std::vector<uint32_t> ids;
  for (v1::GenerateResponse response; static_cast<int>(ids.size()) < sent;) {
    ASSERT_TRUE(stream.reader->Read(&response));
    for (const v1::Token& token : response.tokens()) ids.push_back(token.id());
  }
  EXPECT_TRUE(edge.dispatcher().WaitResumed(number, resumed + 1, 60));
  edge.dispatcher().Tokens(number, 0, Ids("z"));
  edge.dispatcher().SampleDone(number, 0, Finish::kLength);
  edge.dispatcher().Done(number, absl::OkStatus());
  for (const uint32_t id : ReadAll(stream.reader.get()).ids()) ids.push_back(id);
  ASSERT_EQ(static_cast<int>(ids.size()), sent + 1);
  EXPECT_EQ(ids[sent - 1], 'y' + 1u);
  EXPECT_EQ(ids[sent], 'z' + 1u);
}

TEST(Generate, WhatAReaderLeavesComesInFewMessages) {
  EdgeHarness edge;
  Stream stream(edge, Simple());
  const uint64_t number = edge.dispatcher().Next();
  const int sent = FillUntilFull(edge, number);
  ASSERT_GT(sent, 64);
  edge.dispatcher().SampleDone(number, 0, Finish::kLength);
  edge.dispatcher().Done(number, absl::OkStatus());
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

TEST(Generate, ALineIsLoggedAtTheEnd) {
  const auto log = LogWatch::Start();
  EdgeHarness edge;
  v1::GenerateRequest message = Simple();
  message.set_request_id("a b=\"c\"");
  Stream stream(edge, message);
  const uint64_t number = edge.dispatcher().Next();
  edge.dispatcher().SampleDone(number, 0, Finish::kLength);
  edge.dispatcher().Done(number, absl::OkStatus(), {.prompt_tokens = 5, .completion_tokens = 2});
  EXPECT_TRUE(ReadAll(stream.reader.get()).status.ok());
  // An id cannot pass for other words of the line.
  EXPECT_THAT(log->Wait("method=Generate"),
              HasSubstr("request=\"a b=\\\"c\\\"\" method=Generate code=OK prompt_tokens=5 completion_tokens=2 "));
  message.set_n(65);
  EXPECT_FALSE(ErrorOf(edge, message).ok());
  EXPECT_THAT(log->Wait("code=INVALID_ARGUMENT"), HasSubstr("message=\"n is 65, the limit is 64\""));
}

TEST(Generate, AClientThatTakesNothingIsCutOff) {
  const auto log = LogWatch::Start();
  EdgeHarness edge({.stall_timeout_seconds = 1});
  Stream stream(edge, Simple());
  const uint64_t number = edge.dispatcher().Next();
  ASSERT_GT(FillUntilFull(edge, number), 0);
  const absl::Status status = edge.dispatcher().WaitCancelled(number);
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(std::string(status.message()), "the client does not read: it has taken nothing for 1 s");
  log->Wait("code=RESOURCE_EXHAUSTED");
  // If it reads now, it gets what was on its way and the reason.
  EXPECT_EQ(ReadAll(stream.reader.get()).status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
}

TEST(Generate, AnAnswerThatWasCutOffIsNotOk) {
  const auto log = LogWatch::Start();
  EdgeHarness edge({.stall_timeout_seconds = 1});
  Stream stream(edge, Simple());
  const uint64_t number = edge.dispatcher().Next();
  ASSERT_GT(FillUntilFull(edge, number), 0);
  edge.dispatcher().SampleDone(number, 0, Finish::kLength);
  edge.dispatcher().Done(number, absl::OkStatus());
  log->Wait("code=RESOURCE_EXHAUSTED");
  EXPECT_EQ(ReadAll(stream.reader.get()).status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
}

TEST(Generate, AClientThatTakesNothingAtAllIsCancelled) {
  EdgeHarness edge({.stall_timeout_seconds = 0.2});
  Stream stream(edge, Simple());
  const uint64_t number = edge.dispatcher().Next();
  ASSERT_GT(FillUntilFull(edge, number), 0);
  edge.dispatcher().SampleDone(number, 0, Finish::kLength);
  edge.dispatcher().Done(number, absl::OkStatus());
  // The server can end only if the call does.
  edge.server().Shutdown(60);
  EXPECT_FALSE(ReadAll(stream.reader.get()).status.ok());
}

TEST(Generate, AClientThatIsSlowButReadsIsNotCutOff) {
  EdgeHarness edge({.stall_timeout_seconds = 1});
  Stream stream(edge, Simple());
  const uint64_t number = edge.dispatcher().Next();
  // No write waits for the client here, however long it takes to say more.
  edge.dispatcher().Tokens(number, 0, Ids("a"));
  std::this_thread::sleep_for(std::chrono::milliseconds(1300));
  edge.dispatcher().Tokens(number, 0, Ids("b"));
  edge.dispatcher().SampleDone(number, 0, Finish::kLength);
  edge.dispatcher().Done(number, absl::OkStatus());
  const Answer answer = ReadAll(stream.reader.get());
  EXPECT_TRUE(answer.status.ok()) << answer.status.error_message();
  EXPECT_EQ(answer.text(), "ab");
}

TEST(Generate, OneSlowReaderHoldsNobodyUp) {
  EdgeHarness edge;
  Stream slow(edge, Simple());
  const uint64_t slow_number = edge.dispatcher().Next();
  ASSERT_GT(FillUntilFull(edge, slow_number), 0);
  Stream fast(edge, Simple());
  const uint64_t number = edge.dispatcher().Next();
  edge.dispatcher().Tokens(number, 0, Ids("quick"));
  edge.dispatcher().SampleDone(number, 0, Finish::kLength);
  edge.dispatcher().Done(number, absl::OkStatus());
  EXPECT_EQ(ReadAll(fast.reader.get()).text(), "quick");
  slow.context.TryCancel();
  EXPECT_EQ(edge.dispatcher().WaitCancelled(slow_number).code(), absl::StatusCode::kCancelled);
}

TEST(Generate, ManyCallsWithCancelsLeaveNothingBehind) {
  EdgeHarness edge;
  std::vector<std::future<void>> clients;
  for (int client = 0; client < 8; ++client) {
    clients.push_back(std::async(std::launch::async, [&edge, client] {
      for (int i = 0; i < 20; ++i) {
        Stream stream(edge, Simple());
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
    for (uint64_t number = edge.dispatcher().Next(); !stop; number = edge.dispatcher().Next()) {
      edge.dispatcher().Tokens(number, 0, Ids("some text"));
      edge.dispatcher().SampleDone(number, 0, Finish::kLength);
      edge.dispatcher().Done(number, absl::OkStatus());
    }
  });
  for (std::future<void>& client : clients) client.get();
  stop = true;
  grpc::ClientContext context;
  const auto last = edge.stub().Generate(&context, Simple());
  pump.join();
  context.TryCancel();
  ReadAll(last.get());
  edge.server().Shutdown(60);
  EXPECT_EQ(edge.dispatcher().live(), 0);
}

TEST(Generate, ShutdownEndsWhatRuns) {
  EdgeHarness edge;
  Stream stream(edge, Simple());
  const uint64_t number = edge.dispatcher().Next();
  edge.server().Shutdown(0.1);
  EXPECT_EQ(edge.dispatcher().WaitCancelled(number).code(), absl::StatusCode::kCancelled);
  EXPECT_FALSE(ReadAll(stream.reader.get()).status.ok());
  EXPECT_EQ(edge.dispatcher().live(), 0);
}

}  // namespace
}  // namespace goldfinch
