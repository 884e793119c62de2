#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "coordinator/grpc/service_test_util.h"
#include "gmock/gmock.h"
#include "grpcpp/client_context.h"
#include "gtest/gtest.h"

namespace goldfinch {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using Verdict = RequestSink::Verdict;

TEST(Generate, StreamsTokensAndTextToTheEnd) {
  ServiceHarness harness;
  v1::GenerateRequest message = Simple();
  message.set_request_id("mine");
  message.set_seed(42);
  Stream stream(harness, message);
  const uint64_t number = harness.dispatcher().Next();
  EXPECT_EQ(harness.dispatcher().RequestOf(number).id, "mine");
  EXPECT_EQ(harness.dispatcher().RequestOf(number).generate->sampling.seed, 42u);
  EXPECT_FALSE(harness.dispatcher().RequestOf(number).deadline_seconds.has_value());

  EXPECT_EQ(harness.dispatcher().Token(number, 0, {.id = 'A' + 1, .logprob = -0.5f, .top = {{7, -0.25f}}}),
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

  harness.dispatcher().Tokens(number, 0, {257, 0});
  harness.dispatcher().SampleDone(number, 0, Finish::kEndOfText);
  harness.dispatcher().Done(number, absl::OkStatus(),
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
  ServiceHarness harness;
  std::vector<uint64_t> seeds;
  std::vector<std::string> ids;
  for (int i = 0; i < 2; ++i) {
    Stream stream(harness, Simple());
    const uint64_t number = harness.dispatcher().Next();
    harness.dispatcher().SampleDone(number, 0, Finish::kLength);
    harness.dispatcher().Done(number, absl::OkStatus());
    const Answer answer = ReadAll(stream.reader.get());
    ASSERT_EQ(answer.responses.size(), 1u);
    EXPECT_EQ(answer.responses[0].seed(), harness.dispatcher().RequestOf(number).generate->sampling.seed);
    EXPECT_EQ(answer.responses[0].request_id(), harness.dispatcher().RequestOf(number).id);
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
  ServiceHarness harness;
  Stream stream(harness, Simple());
  const uint64_t number = harness.dispatcher().Next();
  harness.dispatcher().Token(number, 0, {.id = 260});
  v1::GenerateResponse response;
  ASSERT_TRUE(stream.reader->Read(&response));
  EXPECT_EQ(response.text(), "caf");
  harness.dispatcher().Token(number, 0, {.id = 0xa9 + 1});
  ASSERT_TRUE(stream.reader->Read(&response));
  EXPECT_EQ(response.text(), "\xc3\xa9");
  // Broken at the end.
  harness.dispatcher().Token(number, 0, {.id = 0xc3 + 1});
  harness.dispatcher().SampleDone(number, 0, Finish::kLength);
  harness.dispatcher().Done(number, absl::OkStatus());
  EXPECT_EQ(ReadAll(stream.reader.get()).text(), "\xef\xbf\xbd");
}

TEST(Generate, AStopTextAcrossTokensEndsTheSampleAndIsNotSent) {
  ServiceHarness harness;
  v1::GenerateRequest message = Simple();
  message.add_stop("xyz");
  message.add_stop("bcd");
  Stream stream(harness, message);
  const uint64_t number = harness.dispatcher().Next();
  EXPECT_EQ(harness.dispatcher().Token(number, 0, {.id = 258}), Verdict::kContinue);  // "ab"
  v1::GenerateResponse response;
  ASSERT_TRUE(stream.reader->Read(&response));
  EXPECT_EQ(response.text(), "a");  // "b" may begin a stop
  EXPECT_EQ(harness.dispatcher().Token(number, 0, {.id = 'c' + 1}), Verdict::kContinue);
  EXPECT_EQ(harness.dispatcher().Token(number, 0, {.id = 'd' + 1}), Verdict::kStop);
  harness.dispatcher().SampleDone(number, 0, Finish::kStop);
  harness.dispatcher().Done(number, absl::OkStatus());
  const Answer rest = ReadAll(stream.reader.get());
  EXPECT_EQ(rest.text(), "");
  EXPECT_THAT(rest.ids(), ElementsAre('c' + 1, 'd' + 1));
  EXPECT_EQ(rest.finish(), v1::STOP);
}

TEST(Generate, WhatLookedLikeAStopComesAtTheEnd) {
  ServiceHarness harness;
  v1::GenerateRequest message = Simple();
  message.add_stop("bcd");
  message.add_stop_ids('!' + 1);
  Stream stream(harness, message);
  const uint64_t number = harness.dispatcher().Next();
  EXPECT_THAT(harness.dispatcher().RequestOf(number).generate->stop_ids, ElementsAre('!' + 1));
  harness.dispatcher().Tokens(number, 0, {258, 'c' + 1, '!' + 1});
  harness.dispatcher().SampleDone(number, 0, Finish::kStop);
  harness.dispatcher().Done(number, absl::OkStatus());
  const Answer answer = ReadAll(stream.reader.get());
  EXPECT_EQ(answer.text(), "abc");  // without the stop token's "!"
  EXPECT_THAT(answer.ids(), ElementsAre(258, 'c' + 1, '!' + 1));
  EXPECT_EQ(answer.finish(), v1::STOP);
}

TEST(Generate, SamplesKeepTheirTextsApart) {
  ServiceHarness harness;
  v1::GenerateRequest message = Simple();
  message.set_n(3);
  message.add_stop("bc");
  Stream stream(harness, message);
  const uint64_t number = harness.dispatcher().Next();
  EXPECT_EQ(harness.dispatcher().RequestOf(number).generate->samples, 3);
  harness.dispatcher().Token(number, 0, {.id = 'b' + 1});
  harness.dispatcher().Token(number, 1, {.id = 'c' + 1});
  EXPECT_EQ(harness.dispatcher().Token(number, 2, {.id = 259}), Verdict::kStop);
  harness.dispatcher().SampleDone(number, 2, Finish::kStop);
  harness.dispatcher().Token(number, 0, {.id = 'd' + 1});
  harness.dispatcher().SampleDone(number, 0, Finish::kLength);
  harness.dispatcher().Token(number, 1, {.id = 0});
  harness.dispatcher().SampleDone(number, 1, Finish::kEndOfText);
  harness.dispatcher().Done(number, absl::OkStatus());
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
  ServiceHarness harness;
  v1::GenerateRequest message = Simple();
  message.set_progress(true);
  Stream stream(harness, message);
  const uint64_t number = harness.dispatcher().Next();
  EXPECT_TRUE(harness.dispatcher().RequestOf(number).progress);
  harness.dispatcher().Progress(number, 3);
  v1::GenerateResponse response;
  ASSERT_TRUE(stream.reader->Read(&response));
  EXPECT_FALSE(response.request_id().empty());
  EXPECT_FALSE(response.has_progress());
  ASSERT_TRUE(stream.reader->Read(&response));
  EXPECT_EQ(response.progress().prompt_tokens_done(), 3u);
  EXPECT_EQ(response.progress().prompt_tokens(), 5u);
  harness.dispatcher().Tokens(number, 0, Ids("x"));
  harness.dispatcher().SampleDone(number, 0, Finish::kLength);
  harness.dispatcher().Done(number, absl::OkStatus());
  EXPECT_EQ(ReadAll(stream.reader.get()).text(), "x");
}

TEST(Generate, ErrorsComeAfterWhatWasMade) {
  ServiceHarness harness;
  Stream stream(harness, Simple());
  const uint64_t number = harness.dispatcher().Next();
  harness.dispatcher().Tokens(number, 0, Ids("ab"));
  harness.dispatcher().Done(number, absl::UnavailableError("no group could form"));
  const Answer answer = ReadAll(stream.reader.get());
  EXPECT_EQ(answer.text(), "ab");
  EXPECT_EQ(answer.status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(answer.status.error_message(), "no group could form");
  EXPECT_FALSE(answer.responses.back().has_usage());
}

TEST(Generate, RefusalsAreToldAndCounted) {
  ServiceHarness harness;
  v1::GenerateRequest message = Simple();
  message.set_n(65);
  grpc::Status status = ErrorOf(harness, message);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(status.error_message(), "n is 65, the limit is 64");
  EXPECT_EQ(harness.Counted("request_failure_total", "INVALID_ARGUMENT"), 1);

  harness.dispatcher().Refuse(absl::ResourceExhaustedError("the queue is full"));
  status = ErrorOf(harness, Simple());
  EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(status.error_message(), "the queue is full");
  EXPECT_EQ(harness.Counted("request_failure_total", "RESOURCE_EXHAUSTED"), 1);

  harness.dispatcher().SetModel(nullptr);
  status = ErrorOf(harness, Simple());
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(status.error_message(), "no worker has described the model yet");
}

TEST(Generate, ALongPromptIsTokenizedElsewhere) {
  ServiceHarness harness;
  const std::shared_ptr<const ServedModel> model = MakeTestModel();
  auto info = std::make_shared<v1::GetModelInfoResponse>(*model->info);
  info->set_max_model_len(10'000'000);
  harness.dispatcher().SetModel(
      std::make_shared<ServedModel>(ServedModel{std::move(info), model->tokenizer, model->vocabulary}));
  v1::GenerateRequest message;
  message.set_text(std::string(3'000'000, 'x'));
  Stream stream(harness, message);
  const uint64_t number = harness.dispatcher().Next();
  EXPECT_EQ(harness.dispatcher().RequestOf(number).prompt.size(), 3'000'000u);
  harness.dispatcher().SampleDone(number, 0, Finish::kLength);
  harness.dispatcher().Done(number, absl::OkStatus());
  EXPECT_TRUE(ReadAll(stream.reader.get()).status.ok());
}

TEST(Generate, AClientThatGoesAwayEndsTheRequest) {
  ServiceHarness harness;
  Stream stream(harness, Simple());
  const uint64_t number = harness.dispatcher().Next();
  harness.dispatcher().Tokens(number, 0, Ids("a"));
  stream.context.TryCancel();
  EXPECT_EQ(harness.dispatcher().WaitCancelled(number).code(), absl::StatusCode::kCancelled);
  EXPECT_EQ(ReadAll(stream.reader.get()).status.error_code(), grpc::StatusCode::CANCELLED);
}

TEST(Generate, TheDeadlineIsToldAndKept) {
  ServiceHarness harness;
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::milliseconds(300));
  // A client that leaves it to the server to keep the deadline.
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_ENABLE_DEADLINE_CHECKS, 0);
  const auto stub = harness.Connect(arguments);
  const auto reader = stub->Generate(&context, Simple());
  const uint64_t number = harness.dispatcher().Next();
  const std::optional<double> seconds = harness.dispatcher().RequestOf(number).deadline_seconds;
  ASSERT_TRUE(seconds.has_value());
  EXPECT_LE(*seconds, 0.4);
  EXPECT_GT(*seconds, -10);
  EXPECT_EQ(harness.dispatcher().WaitCancelled(number).code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_FALSE(ReadAll(reader.get()).status.ok());
}

}  // namespace
}  // namespace goldfinch
