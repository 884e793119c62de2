// goldfinch generate --server, against a fake server.
#include <mutex>
#include <string>

#include "absl/status/status.h"
#include "clients/cli/remote/remote_commands.h"
#include "clients/cli/remote/remote_test_util.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

namespace goldfinch {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

using RemoteGenerateTest = RemoteCommandsTest;

TEST_F(RemoteGenerateTest, GenerateSendsWhatTheFlagsSay) {
  v1::GenerateRequest seen;
  service_.generate = [&](grpc::ServerContext*, const v1::GenerateRequest& request, GenerateWriter*) {
    seen = request;
    return grpc::Status::OK;
  };
  GenerateOptions options = Generate();
  options.max_tokens = 9;
  options.has_max_tokens = true;
  options.samples = 3;
  options.priority = -5;
  options.temperature = 0.5;
  options.top_p = 0.25;
  options.top_k = 4;
  options.min_p = 0.125;
  options.presence_penalty = 1;
  options.frequency_penalty = 2;
  options.penalty_decay = 0.75;
  options.logit_bias = {"3=1.5", "4=-2"};
  options.ban = {5, 6};
  options.stop = {"x", "y"};
  options.ignore_eos = true;
  options.logprobs = 0;
  ASSERT_TRUE(RunCommand(RunRemoteGenerate, options).status.ok());
  EXPECT_EQ(seen.text(), "Once");
  EXPECT_EQ(seen.max_tokens(), 9u);
  EXPECT_EQ(seen.n(), 3u);
  EXPECT_EQ(seen.seed(), 7u);
  EXPECT_EQ(seen.priority(), -5);
  EXPECT_EQ(seen.sampling().temperature(), 0.5);
  EXPECT_EQ(seen.sampling().top_p(), 0.25);
  EXPECT_EQ(seen.sampling().top_k(), 4u);
  EXPECT_EQ(seen.sampling().min_p(), 0.125);
  EXPECT_EQ(seen.sampling().presence_penalty(), 1);
  EXPECT_EQ(seen.sampling().frequency_penalty(), 2);
  EXPECT_EQ(seen.sampling().penalty_decay(), 0.75);
  EXPECT_EQ(seen.sampling().logit_bias().at(3), 1.5);
  EXPECT_EQ(seen.sampling().logit_bias().at(4), -2);
  EXPECT_THAT(seen.sampling().banned_tokens(), ElementsAre(5, 6));
  EXPECT_THAT(seen.stop(), ElementsAre("x", "y"));
  EXPECT_TRUE(seen.ignore_eos());
  EXPECT_TRUE(seen.has_logprobs());
  EXPECT_EQ(seen.logprobs(), 0u);
  EXPECT_TRUE(seen.progress());
  options.logprobs = -1;
  options.chat = true;
  ASSERT_TRUE(RunCommand(RunRemoteGenerate, options).status.ok());
  EXPECT_FALSE(seen.has_logprobs());
  EXPECT_EQ(seen.text(), "User: Once\n\nAssistant:");
  EXPECT_THAT(seen.stop(), ElementsAre("x", "y", "\n\n"));
}

TEST_F(RemoteGenerateTest, GenerateGoesOnFromAContext) {
  v1::GenerateRequest seen;
  service_.generate = [&](grpc::ServerContext*, const v1::GenerateRequest& request, GenerateWriter* writer) {
    seen = request;
    v1::GenerateResponse response = End(0, v1::STOP);
    response.mutable_usage()->set_prompt_tokens(20'000);
    response.mutable_usage()->set_cached_tokens(19'990);
    response.mutable_usage()->set_prefill_seconds(0.5);
    writer->Write(response);
    return grpc::Status::OK;
  };
  GenerateOptions options = Generate();
  ASSERT_TRUE(RunCommand(RunRemoteGenerate, options).status.ok());
  EXPECT_FALSE(seen.has_keep_as() || seen.has_context_tokens());
  options.context = "book@20";
  options.keep = {.name = "talk", .expire_after_seconds = 60, .replace = "v1"};
  options.breakpoints = {2, 3};
  CommandOutput output = RunCommand(RunRemoteGenerate, options);
  ASSERT_TRUE(output.status.ok()) << output.status;
  EXPECT_EQ(seen.context(), "book");
  EXPECT_EQ(seen.context_tokens(), 20u);
  EXPECT_EQ(seen.keep_as().name(), "talk");
  EXPECT_EQ(seen.keep_as().expire_after_seconds(), 60);
  EXPECT_EQ(seen.keep_as().etag(), "v1");
  EXPECT_THAT(seen.breakpoints(), ElementsAre(2, 3));
  EXPECT_THAT(output.err, HasSubstr("prompt    20,000 tokens (19,990 of them kept) in 0.50 s, 20 tokens/s\n"));
  EXPECT_THAT(output.err, HasSubstr("kept      as talk\n"));
  options.prompt = "";
  EXPECT_TRUE(RunCommand(RunRemoteGenerate, options).status.ok()) << "the context alone is enough";
  options.context = "";
  EXPECT_EQ(ExitCode(RunCommand(RunRemoteGenerate, options).status), 2);
}

TEST_F(RemoteGenerateTest, GeneratePrintsTextAndASummary) {
  service_.generate = [](grpc::ServerContext*, const v1::GenerateRequest&, GenerateWriter* writer) {
    v1::GenerateResponse first;
    first.set_request_id("r1");
    first.set_seed(99);
    first.mutable_progress()->set_prompt_tokens(1234);
    writer->Write(first);
    writer->Write(Text(0, "upon a "));
    writer->Write(Text(0, "time"));
    writer->Write(End(0, v1::STOP));
    WriteUsage(writer);
    return grpc::Status::OK;
  };
  const CommandOutput output = RunCommand(RunRemoteGenerate, Generate());
  ASSERT_TRUE(output.status.ok()) << output.status;
  EXPECT_EQ(output.out, "upon a time\n");
  EXPECT_EQ(output.err,
            "prompt    1,234 tokens in 2.00 s, 617 tokens/s\n"
            "output    11 tokens in 0.50 s, 20 tokens/s; ended by stop; seed 99\n"
            "cache     20 kB; a transformer of this shape would have kept 4 MB\n");
}

TEST_F(RemoteGenerateTest, GeneratePrintsSamplesOneAfterAnother) {
  service_.generate = [](grpc::ServerContext*, const v1::GenerateRequest&, GenerateWriter* writer) {
    writer->Write(Text(2, "c"));
    writer->Write(Text(1, "b"));
    writer->Write(End(2, v1::LENGTH));
    writer->Write(Text(0, "a"));
    writer->Write(Text(1, "B"));
    writer->Write(End(0, v1::END_OF_TEXT));
    writer->Write(Text(1, "!"));
    writer->Write(End(1, v1::STOP));
    WriteUsage(writer);
    return grpc::Status::OK;
  };
  GenerateOptions options = Generate();
  options.samples = 3;
  const CommandOutput output = RunCommand(RunRemoteGenerate, options);
  ASSERT_TRUE(output.status.ok()) << output.status;
  EXPECT_EQ(output.out, "--- sample 1 of 3 ---\na\n--- sample 2 of 3 ---\nbB!\n--- sample 3 of 3 ---\nc\n");
  EXPECT_THAT(output.err, HasSubstr("ended by end of text, stop, length;"));
}

TEST_F(RemoteGenerateTest, GenerateJsonHasTokensWithTexts) {
  service_.generate = [](grpc::ServerContext*, const v1::GenerateRequest& request, GenerateWriter* writer) {
    EXPECT_FALSE(request.has_max_tokens()) << "not asked for: the server cuts its default to what fits";
    v1::GenerateResponse response = Text(0, "hi");
    response.set_request_id("r1");
    response.set_seed(99);
    response.mutable_tokens(1)->set_logprob(-0.5);
    v1::TokenLogprob* top = response.mutable_tokens(1)->add_top();
    top->set_id('o' + 1);
    top->set_logprob(-0.25);
    writer->Write(response);
    writer->Write(End(0, v1::END_OF_TEXT));
    WriteUsage(writer);
    return grpc::Status::OK;
  };
  GenerateOptions options = Generate();
  options.json = true;
  options.logprobs = 1;
  const CommandOutput output = RunCommand(RunRemoteGenerate, options);
  ASSERT_TRUE(output.status.ok()) << output.status;
  EXPECT_EQ(output.err, "");
  const nlohmann::json json = nlohmann::json::parse(output.out);
  EXPECT_EQ(json["text"], "hi");
  EXPECT_EQ(json["finish_reason"], "end of text");
  EXPECT_EQ(json["seed"], 99);
  EXPECT_EQ(json["prompt_tokens"], 1234);
  EXPECT_EQ(json["recoveries"], 3);
  EXPECT_EQ(json["request_id"], "r1");
  EXPECT_EQ(json["tokens"][0]["id"], 'h' + 1);
  EXPECT_EQ(json["tokens"][0]["text"], "h");
  EXPECT_EQ(json["tokens"][1]["logprob"], -0.5);
  EXPECT_EQ(json["tokens"][1]["top"][0]["text"], "o");
}

TEST_F(RemoteGenerateTest, ErrorsNameTheFlagOrTheServer) {
  grpc::Status answer;
  service_.generate = [&](grpc::ServerContext*, const v1::GenerateRequest&, GenerateWriter*) { return answer; };
  const struct {
    grpc::StatusCode code;
    const char* message;
    std::string says;
    int exit_code;
  } cases[] = {
      {grpc::StatusCode::INVALID_ARGUMENT, "sampling.top_p is 2, the limit is 1", "--top-p is 2, the limit is 1", 2},
      {grpc::StatusCode::INVALID_ARGUMENT, "banned_tokens[0] is 300", "--ban[0] is 300", 2},
      {grpc::StatusCode::INVALID_ARGUMENT, "stop_ids has 2", remote_.server + ": INVALID_ARGUMENT: stop_ids has 2", 2},
      {grpc::StatusCode::INVALID_ARGUMENT, "prompt is long", remote_.server + ": INVALID_ARGUMENT: prompt is long", 2},
      {grpc::StatusCode::UNAUTHENTICATED, "no key", remote_.server + ": UNAUTHENTICATED: no key", 1},
      {grpc::StatusCode::RESOURCE_EXHAUSTED, "full", remote_.server + ": RESOURCE_EXHAUSTED: full", 1},
  };
  for (const auto& wrong : cases) {
    answer = grpc::Status(wrong.code, wrong.message);
    const CommandOutput output = RunCommand(RunRemoteGenerate, Generate());
    EXPECT_EQ(output.status.message(), wrong.says);
    EXPECT_EQ(ExitCode(output.status), wrong.exit_code) << wrong.says;
    EXPECT_EQ(output.out, "");
  }
}

TEST_F(RemoteGenerateTest, GenerateFailsAfterSomeText) {
  service_.generate = [](grpc::ServerContext*, const v1::GenerateRequest&, GenerateWriter* writer) {
    writer->Write(Text(0, "upon"));
    return grpc::Status(grpc::StatusCode::UNAVAILABLE, "no group");
  };
  const CommandOutput output = RunCommand(RunRemoteGenerate, Generate());
  EXPECT_EQ(output.status.message(), remote_.server + ": UNAVAILABLE: no group");
  EXPECT_EQ(output.out, "upon");
}

TEST_F(RemoteGenerateTest, GenerateRefusesASampleThatWasNotAskedFor) {
  service_.generate = [](grpc::ServerContext*, const v1::GenerateRequest&, GenerateWriter* writer) {
    writer->Write(Text(4'000'000'000u, "a"));
    return grpc::Status::OK;
  };
  const CommandOutput output = RunCommand(RunRemoteGenerate, Generate());
  EXPECT_TRUE(absl::IsInternal(output.status)) << output.status;
  EXPECT_THAT(std::string(output.status.message()), HasSubstr("sample 4000000000 of 1"));
}

TEST_F(RemoteGenerateTest, DeadlineReachesTheServer) {
  std::mutex mutex;
  bool cancelled = false;
  service_.generate = [&](grpc::ServerContext* context, const v1::GenerateRequest&, GenerateWriter* writer) {
    // Writes until the call is over.
    while (writer->Write(Text(0, "a")) && !context->IsCancelled()) {
    }
    std::lock_guard<std::mutex> lock(mutex);
    cancelled = true;
    return grpc::Status::OK;
  };
  GenerateOptions options = Generate();
  options.remote.deadline_seconds = 0.05;
  const CommandOutput output = RunCommand(RunRemoteGenerate, options);
  EXPECT_TRUE(absl::IsDeadlineExceeded(output.status)) << output.status;
  server_->Shutdown();  // waits for the handler
  std::lock_guard<std::mutex> lock(mutex);
  EXPECT_TRUE(cancelled);
}

}  // namespace
}  // namespace goldfinch
