#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "coordinator/calls/key_ring.h"
#include "coordinator/grpc/service_test_util.h"
#include "gmock/gmock.h"
#include "grpcpp/client_context.h"
#include "gtest/gtest.h"

namespace goldfinch {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using Verdict = RequestSink::Verdict;

v1::ScoreRequest SimpleScore() {
  v1::ScoreRequest message;
  message.set_text("hello");
  message.add_continuations()->set_text(" the");
  message.add_continuations()->set_text("abc");
  return message;
}

struct Scores {
  std::vector<v1::ScoreResponse> responses;
  grpc::Status status;
};

Scores ReadAll(grpc::ClientReader<v1::ScoreResponse>* reader) {
  Scores scores;
  for (v1::ScoreResponse response; reader->Read(&response);) scores.responses.push_back(response);
  scores.status = reader->Finish();
  return scores;
}

TEST(Score, StreamsThePartsInOrder) {
  ServiceHarness harness;
  grpc::ClientContext context;
  v1::ScoreRequest message = SimpleScore();
  message.set_score_prompt(true);
  message.set_request_id("s");
  const auto reader = harness.stub().Score(&context, message);
  const uint64_t number = harness.dispatcher().Next();
  EXPECT_TRUE(harness.dispatcher().RequestOf(number).score->score_prompt);
  harness.dispatcher().Scores(number, -1, 1, {{.id = 1, .logprob = -1.0f}, {.id = 2, .logprob = -2.0f}}, "aaaabbbb");
  harness.dispatcher().Scores(number, -1, 3, {{.id = 3, .logprob = -3.0f, .top = {{9, -0.5f}}}}, "cccc");
  harness.dispatcher().Scores(number, 0, 0, {{.id = 4, .logprob = -4.0f}}, "dddd");
  harness.dispatcher().Scores(number, 1, 0, {{.id = 5, .logprob = -5.0f}}, "eeee");
  harness.dispatcher().Done(number, absl::OkStatus(), {.prompt_tokens = 5});
  const Scores scores = ReadAll(reader.get());
  ASSERT_TRUE(scores.status.ok()) << scores.status.error_message();

  // Joined again, whatever messages they came in.
  std::vector<v1::ScoreResponse> parts;
  for (const v1::ScoreResponse& response : scores.responses) {
    if (response.tokens().empty()) continue;
    const bool same = !parts.empty() && parts.back().part_case() == response.part_case() &&
                      parts.back().continuation() == response.continuation();
    if (!same) {
      parts.push_back(response);
      continue;
    }
    EXPECT_EQ(response.first(), parts.back().first() + parts.back().tokens_size());
    parts.back().mutable_tokens()->MergeFrom(response.tokens());
    parts.back().mutable_logits()->append(response.logits());
  }
  ASSERT_EQ(parts.size(), 3u);
  EXPECT_TRUE(parts[0].prompt());
  EXPECT_EQ(parts[0].first(), 1u);
  ASSERT_EQ(parts[0].tokens_size(), 3);
  EXPECT_EQ(parts[0].logits(), "aaaabbbbcccc");
  EXPECT_EQ(parts[0].tokens(1).logprob(), -2.0f);
  EXPECT_EQ(parts[0].tokens(2).top(0).id(), 9u);
  EXPECT_EQ(parts[1].part_case(), v1::ScoreResponse::kContinuation);
  EXPECT_EQ(parts[1].continuation(), 0u);
  EXPECT_EQ(parts[1].tokens(0).id(), 4u);
  EXPECT_EQ(parts[2].continuation(), 1u);
  EXPECT_EQ(parts[2].logits(), "eeee");
  EXPECT_EQ(scores.responses.front().request_id(), "s");
  EXPECT_EQ(scores.responses.back().usage().prompt_tokens(), 5u);
}

TEST(Score, MuchAtATimeIsCutIntoMessagesThatAnyClientTakes) {
  ServiceHarness harness;
  grpc::ClientContext context;
  const auto reader = harness.stub().Score(&context, SimpleScore());
  const uint64_t number = harness.dispatcher().Next();
  constexpr int kTokens = 40;
  const std::string row(262'144, 'x');
  std::string logits;
  for (int i = 0; i < kTokens; ++i) logits += row;
  EXPECT_EQ(
      harness.dispatcher().Scores(number, 0, 0, std::vector<OutputToken>(kTokens, {.id = 1, .logprob = 0.0f}), logits),
      Verdict::kPause);
  int tokens = 0;
  v1::ScoreResponse response;
  while (tokens < kTokens && reader->Read(&response)) {
    EXPECT_LE(response.ByteSizeLong(), size_t{2} << 20);
    EXPECT_EQ(response.first(), static_cast<uint64_t>(tokens));
    EXPECT_EQ(response.logits().size(), row.size() * response.tokens_size());
    tokens += response.tokens_size();
  }
  EXPECT_EQ(tokens, kTokens);
  EXPECT_TRUE(harness.dispatcher().WaitResumed(number, 1, 60));
  harness.dispatcher().Done(number, absl::OkStatus());
  EXPECT_TRUE(ReadAll(reader.get()).status.ok());
}

TEST(Score, Refusals) {
  ServiceHarness harness;
  grpc::ClientContext context;
  v1::ScoreRequest message = SimpleScore();
  message.clear_continuations();
  const grpc::Status status = ReadAll(harness.stub().Score(&context, message).get()).status;
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(status.error_message(), "continuations is empty and score_prompt is not set: there is nothing to score");
}

TEST(Unary, Tokenize) {
  ServiceHarness harness;
  for (const int copies : {1, 200'000}) {  // at once, and elsewhere
    grpc::ClientContext context;
    v1::TokenizeRequest request;
    for (int i = 0; i < copies; ++i) request.mutable_text()->append(" the");
    v1::TokenizeResponse response;
    const grpc::Status status = harness.stub().Tokenize(&context, request, &response);
    ASSERT_TRUE(status.ok()) << status.error_message();
    ASSERT_EQ(response.ids_size(), copies);
    EXPECT_EQ(response.ids(copies - 1), 257u);
  }
}

TEST(Unary, Detokenize) {
  ServiceHarness harness;
  v1::DetokenizeRequest request;
  v1::DetokenizeResponse response;
  request.add_ids(260);
  grpc::ClientContext context;
  ASSERT_TRUE(harness.stub().Detokenize(&context, request, &response).ok());
  EXPECT_EQ(response.raw(), "caf\xc3");
  EXPECT_EQ(response.text(), "caf\xef\xbf\xbd");
  request.add_ids(270);
  grpc::ClientContext other;
  const grpc::Status status = harness.stub().Detokenize(&other, request, &response);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(status.error_message(), "ids[1] is 270, the vocabulary has ids 0 to 269");
}

TEST(Unary, ModelAndClusterInfo) {
  ServiceHarness harness;
  v1::GetModelInfoResponse model;
  grpc::ClientContext first;
  ASSERT_TRUE(harness.stub().GetModelInfo(&first, {}, &model).ok());
  EXPECT_EQ(model.name(), "test");
  EXPECT_EQ(model.max_model_len(), 1000u);
  v1::GetClusterInfoResponse cluster;
  grpc::ClientContext second;
  ASSERT_TRUE(harness.stub().GetClusterInfo(&second, {}, &cluster).ok());
  EXPECT_EQ(cluster.requests_running(), 0u);

  harness.dispatcher().SetModel(nullptr);
  grpc::ClientContext third, fourth, fifth, sixth;
  EXPECT_EQ(harness.stub().GetModelInfo(&third, {}, &model).error_code(), grpc::StatusCode::UNAVAILABLE);
  v1::TokenizeResponse ids;
  EXPECT_EQ(harness.stub().Tokenize(&fourth, {}, &ids).error_code(), grpc::StatusCode::UNAVAILABLE);
  v1::DetokenizeResponse text;
  EXPECT_EQ(harness.stub().Detokenize(&fifth, {}, &text).error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_TRUE(harness.stub().GetClusterInfo(&sixth, {}, &cluster).ok());
}

TEST(Limits, AnOversizedMessageIsRefused) {
  ServiceHarness harness({}, {.front = {.limits = {.message_bytes_max = 10'000}}});
  v1::TokenizeRequest request;
  v1::TokenizeResponse response;
  request.set_text(std::string(20'000, 'x'));
  grpc::ClientContext context;
  const grpc::Status status = harness.stub().Tokenize(&context, request, &response);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_THAT(status.error_message(), HasSubstr("10000"));
}

class KeysTest : public testing::Test {
 protected:
  static std::shared_ptr<const KeyRing> Keys() {
    const std::string path = testing::TempDir() + "/keys.txt";
    std::ofstream(path) << "0123456789abcdef\nanother-key-of-mine\n";
    return *KeyRing::Open(path);
  }
  // The status of a call with that authorization, which is the same for every method.
  grpc::Status Call(const std::vector<std::string>& authorization) {
    grpc::Status first;
    for (int method = 0; method < 6; ++method) {
      grpc::ClientContext context;
      for (const std::string& value : authorization) context.AddMetadata("authorization", value);
      const grpc::Status status = Call(method, &context);
      if (method == 0) first = status;
      EXPECT_EQ(status.error_code(), first.error_code()) << method;
      EXPECT_EQ(status.error_message(), first.error_message()) << method;
    }
    return first;
  }

  ServiceHarness environment_{{.api_keys = Keys()}};
  bool allowed_ = false;  // the requests will reach the dispatcher

 private:
  grpc::Status Call(int method, grpc::ClientContext* context) {
    switch (method) {
      case 0: {
        v1::GetModelInfoResponse response;
        return environment_.stub().GetModelInfo(context, {}, &response);
      }
      case 1: {
        v1::GetClusterInfoResponse response;
        return environment_.stub().GetClusterInfo(context, {}, &response);
      }
      case 2: {
        v1::TokenizeResponse response;
        return environment_.stub().Tokenize(context, {}, &response);
      }
      case 3: {
        v1::DetokenizeResponse response;
        return environment_.stub().Detokenize(context, {}, &response);
      }
      case 4: {
        const auto reader = environment_.stub().Score(context, SimpleScore());
        if (allowed_) environment_.dispatcher().Done(environment_.dispatcher().Next(), absl::OkStatus());
        return ReadAll(reader.get()).status;
      }
      default: {
        v1::GenerateRequest message;
        message.set_text("x");
        const auto reader = environment_.stub().Generate(context, message);
        if (allowed_) {
          const uint64_t number = environment_.dispatcher().Next();
          environment_.dispatcher().SampleDone(number, 0, Finish::kLength);
          environment_.dispatcher().Done(number, absl::OkStatus());
        }
        return goldfinch::ReadAll(reader.get()).status;
      }
    }
  }
};

TEST_F(KeysTest, EveryMethodWantsAKey) {
  const grpc::Status status = Call({});
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAUTHENTICATED);
  EXPECT_EQ(status.error_message(), "no API key: the metadata `authorization: Bearer KEY` is missing");
  EXPECT_EQ(environment_.Counted("request_failure_total", "UNAUTHENTICATED"), 6);
  EXPECT_EQ(environment_.dispatcher().live(), 0);
}

TEST_F(KeysTest, AWrongKeyIsNoKey) {
  EXPECT_EQ(Call({"Bearer 0123456789abcdeX"}).error_message(), "the API key is not known");
  EXPECT_EQ(Call({"Bearer "}).error_message(), "the API key is not known");
  EXPECT_EQ(Call({"Basic 0123456789abcdef"}).error_message(),
            "the metadata `authorization` is not of the form `Bearer KEY`");
  EXPECT_EQ(Call({"0123456789abcdef"}).error_code(), grpc::StatusCode::UNAUTHENTICATED);
}

TEST_F(KeysTest, AKeyThatIsTakenAwayEndsNoStream) {
  const std::string path = testing::TempDir() + "/changing_keys.txt";
  std::ofstream(path) << "0123456789abcdef\n";
  const std::shared_ptr<KeyRing> keys = *KeyRing::Open(path);
  ServiceHarness harness({.api_keys = keys});
  const auto begin = [&](grpc::ClientContext* context) {
    context->AddMetadata("authorization", "Bearer 0123456789abcdef");
    return harness.stub().Generate(context, Simple());
  };
  grpc::ClientContext first, second;
  const auto reader = begin(&first);
  const uint64_t number = harness.dispatcher().Next();
  std::ofstream(path) << "another-key-of-mine\n";
  ASSERT_TRUE(keys->Reload().ok());
  EXPECT_EQ(goldfinch::ReadAll(begin(&second).get()).status.error_code(), grpc::StatusCode::UNAUTHENTICATED);
  harness.dispatcher().Tokens(number, 0, Ids("on"));
  harness.dispatcher().SampleDone(number, 0, Finish::kLength);
  harness.dispatcher().Done(number, absl::OkStatus());
  EXPECT_EQ(goldfinch::ReadAll(reader.get()).text(), "on");
}

TEST_F(KeysTest, AnyOfTheKeysWillDo) {
  allowed_ = true;
  EXPECT_EQ(Call({"Bearer 0123456789abcdef"}).error_message(), "");
  EXPECT_TRUE(Call({"bearer another-key-of-mine"}).ok());
}

}  // namespace
}  // namespace goldfinch
