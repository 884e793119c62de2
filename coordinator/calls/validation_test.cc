#include "coordinator/calls/validation.h"

#include <cmath>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "coordinator/calls/test_model.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace goldfinch {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

const ServedModel& Model() {
  static const std::shared_ptr<const ServedModel> model = MakeTestModel();
  return *model;
}

v1::GenerateRequest Simple() {
  v1::GenerateRequest message;
  message.set_text("hello");
  return message;
}

v1::ScoreRequest SimpleScore() {
  v1::ScoreRequest message;
  message.set_text("hello");
  message.add_continuations()->set_text(" the");
  return message;
}

// The error of a request that is right but for what `change` does.
std::string Error(const std::function<void(v1::GenerateRequest*)>& change) {
  v1::GenerateRequest message = Simple();
  change(&message);
  const absl::Status status = ValidateGenerate(message, Model()).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
  return std::string(status.message());
}

std::string ScoreError(const std::function<void(v1::ScoreRequest*)>& change) {
  v1::ScoreRequest message = SimpleScore();
  change(&message);
  const absl::Status status = ValidateScore(message, Model()).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
  return std::string(status.message());
}

TEST(ValidateGenerate, DefaultsAreThoseOfTheProto) {
  const auto valid = ValidateGenerate(Simple(), Model());
  ASSERT_TRUE(valid.ok()) << valid.status();
  EXPECT_FALSE(valid->has_seed);
  const Request& request = valid->request;
  EXPECT_THAT(request.prompt, ElementsAre('h' + 1, 'e' + 1, 'l' + 1, 'l' + 1, 'o' + 1));
  EXPECT_EQ(request.priority, 0);
  EXPECT_FALSE(request.progress);
  EXPECT_FALSE(request.deadline_seconds.has_value());
  EXPECT_FALSE(request.score.has_value());
  ASSERT_TRUE(request.generate.has_value());
  EXPECT_EQ(request.generate->max_tokens, 256);
  EXPECT_EQ(request.generate->samples, 1);
  EXPECT_TRUE(request.generate->stop_ids.empty());
  const SamplingOptions& sampling = request.generate->sampling;
  EXPECT_EQ(sampling.temperature, 1);
  EXPECT_EQ(sampling.top_p, 0.85);
  EXPECT_EQ(sampling.top_k, 0);
  EXPECT_EQ(sampling.min_p, 0);
  EXPECT_EQ(sampling.presence_penalty, 0.2);
  EXPECT_EQ(sampling.frequency_penalty, 0.2);
  EXPECT_EQ(sampling.penalty_decay, 0.996);
  EXPECT_TRUE(sampling.banned_tokens.empty());
  EXPECT_FALSE(sampling.logprobs.has_value());
}

TEST(ValidateGenerate, EveryFieldArrives) {
  v1::GenerateRequest message;
  for (const uint32_t id : {257, 1, 269}) message.mutable_ids()->add_ids(id);
  message.set_max_tokens(0);
  message.set_n(64);
  message.set_seed(7);
  message.add_stop("\n\n");
  message.add_stop_ids(33);
  message.set_ignore_eos(true);
  message.set_logprobs(20);
  message.set_priority(-100);
  message.set_request_id("my request");
  message.set_progress(true);
  v1::SamplingOptions* options = message.mutable_sampling();
  options->set_temperature(0);
  options->set_top_p(1);
  options->set_top_k(4294967295u);
  options->set_min_p(0.5);
  options->set_presence_penalty(-100);
  options->set_frequency_penalty(100);
  options->set_penalty_decay(0);
  (*options->mutable_logit_bias())[9] = -1;
  (*options->mutable_logit_bias())[3] = 2;
  options->add_banned_tokens(5);

  const auto valid = ValidateGenerate(message, Model());
  ASSERT_TRUE(valid.ok()) << valid.status();
  EXPECT_TRUE(valid->has_seed);
  const Request& request = valid->request;
  EXPECT_EQ(request.id, "my request");
  EXPECT_THAT(request.prompt, ElementsAre(257, 1, 269));
  EXPECT_EQ(request.priority, -100);
  EXPECT_TRUE(request.progress);
  EXPECT_EQ(request.generate->max_tokens, 0);
  EXPECT_EQ(request.generate->samples, 64);
  EXPECT_THAT(request.generate->stop_ids, ElementsAre(33));
  const SamplingOptions& sampling = request.generate->sampling;
  EXPECT_EQ(sampling.seed, 7u);
  EXPECT_EQ(sampling.temperature, 0);
  EXPECT_EQ(sampling.top_p, 1);
  EXPECT_EQ(sampling.top_k, 4294967295);
  EXPECT_EQ(sampling.min_p, 0.5);
  EXPECT_EQ(sampling.presence_penalty, -100);
  EXPECT_EQ(sampling.frequency_penalty, 100);
  EXPECT_EQ(sampling.penalty_decay, 0);
  ASSERT_EQ(sampling.logit_bias.size(), 2u);
  EXPECT_EQ(sampling.logit_bias[0].id, 3);
  EXPECT_EQ(sampling.logit_bias[0].bias, 2);
  EXPECT_EQ(sampling.logit_bias[1].id, 9);
  EXPECT_THAT(sampling.banned_tokens, ElementsAre(5, 0));
  EXPECT_EQ(sampling.logprobs, 20);
  TextStream text(valid->stops);
  std::string out;
  text.Append("a\n\nb", &out);
  EXPECT_EQ(out, "a");
}

TEST(ValidateGenerate, TheDefaultOfMaxTokensIsCutToWhatFits) {
  const auto max_tokens = [](size_t prompt_tokens) {
    v1::GenerateRequest message;
    message.set_text(std::string(prompt_tokens, 'x'));
    const auto valid = ValidateGenerate(message, Model());
    EXPECT_TRUE(valid.ok()) << valid.status();
    return valid.ok() ? valid->request.generate->max_tokens : -1;
  };
  EXPECT_EQ(max_tokens(1), 256);
  EXPECT_EQ(max_tokens(744), 256);
  EXPECT_EQ(max_tokens(745), 255);
  EXPECT_EQ(max_tokens(999), 1);
  EXPECT_EQ(max_tokens(1000), 0) << "the prompt alone fills the sequence";
}

TEST(CheckPriority, NamesTheClientAndItsLimit) {
  Request request;
  request.priority = 100;
  EXPECT_TRUE(CheckPriority(request).ok()) << "no client, no limit";
  request.client = std::make_shared<Client>(Client{"mobile", {.max_priority = 3}});
  const absl::Status status = CheckPriority(request);
  EXPECT_EQ(status.code(), absl::StatusCode::kPermissionDenied);
  EXPECT_EQ(status.message(), "priority is 100, the limit of client mobile is 3");
  request.priority = 3;
  EXPECT_TRUE(CheckPriority(request).ok());
}

TEST(ValidateGenerate, ErrorsOfThePrompt) {
  EXPECT_EQ(Error([](auto* m) { m->clear_text(); }), "prompt is not set, one of text and ids must be");
  EXPECT_EQ(Error([](auto* m) { m->set_text(""); }), "text is empty, it must have at least one token");
  EXPECT_EQ(Error([](auto* m) { m->mutable_ids(); }), "ids is empty, it must have at least one token");
  EXPECT_EQ(Error([](auto* m) {
              m->mutable_ids()->add_ids(1);
              m->mutable_ids()->add_ids(270);
            }),
            "ids[1] is 270, the vocabulary has ids 0 to 269");
  EXPECT_EQ(Error([](auto* m) { m->mutable_ids()->add_ids(4294967295u); }),
            "ids[0] is 4294967295, the vocabulary has ids 0 to 269");
  EXPECT_EQ(Error([](auto* m) { m->set_text(std::string(128 * 1001, 'x')); }),
            "text has 128128 bytes, more than any 1000 tokens, which is max_model_len");
  EXPECT_EQ(Error([](auto* m) { m->set_text(std::string(1001, 'x')); }),
            "the prompt has 1001 tokens, max_model_len is 1000");
  EXPECT_EQ(Error([](auto* m) {
              m->set_text(std::string(1001, 'x'));
              m->set_max_tokens(1);
            }),
            "the prompt has 1001 tokens, max_model_len is 1000");
  EXPECT_EQ(Error([](auto* m) {
              m->set_text(std::string(900, 'x'));
              m->set_max_tokens(256);  // the default, but asked for
            }),
            "the prompt has 900 tokens and max_tokens is 256, together 1156, max_model_len is 1000");
  EXPECT_EQ(Error([](auto* m) { m->set_max_tokens(996); }),
            "the prompt has 5 tokens and max_tokens is 996, together 1001, max_model_len is 1000");
  EXPECT_EQ(Error([](auto* m) { m->set_max_tokens(4294967295u); }),
            "the prompt has 5 tokens and max_tokens is 4294967295, together 4294967300, max_model_len is 1000");
}

TEST(ValidateGenerate, ErrorsOfOtherFields) {
  EXPECT_EQ(Error([](auto* m) { m->set_n(65); }), "n is 65, the limit is 64");
  EXPECT_EQ(Error([](auto* m) { m->set_n(4294967295u); }), "n is 4294967295, the limit is 64");
  EXPECT_EQ(Error([](auto* m) { m->set_logprobs(21); }), "logprobs is 21, the limit is 20");
  EXPECT_EQ(Error([](auto* m) { m->set_logprobs(4294967295u); }), "logprobs is 4294967295, the limit is 20");
  EXPECT_EQ(Error([](auto* m) { m->set_priority(101); }), "priority is 101, the limits are -100 and 100");
  EXPECT_EQ(Error([](auto* m) { m->set_priority(-101); }), "priority is -101, the limits are -100 and 100");
  EXPECT_EQ(Error([](auto* m) { m->set_request_id(std::string(129, 'x')); }),
            "request_id has 129 characters, the limit is 128");
  EXPECT_EQ(Error([](auto* m) { m->set_request_id("a\nb"); }),
            "request_id has byte 10 at 1, it must be printable ASCII");
  EXPECT_EQ(Error([](auto* m) { m->set_request_id("\xc3\xa9"); }),
            "request_id has byte 195 at 0, it must be printable ASCII");
  EXPECT_EQ(Error([](auto* m) { m->add_stop(""); }), "stop[0] is empty");
  EXPECT_EQ(Error([](auto* m) {
              m->add_stop("x");
              m->add_stop(std::string(1025, 'x'));
            }),
            "stop[1] has 1025 bytes, the limit is 1024");
  EXPECT_EQ(Error([](auto* m) {
              for (int i = 0; i < 65; ++i) m->add_stop("x");
            }),
            "stop has 65 entries, the limit is 64");
  EXPECT_EQ(Error([](auto* m) {
              for (int i = 0; i < 1025; ++i) m->add_stop_ids(1);
            }),
            "stop_ids has 1025 entries, the limit is 1024");
  EXPECT_EQ(Error([](auto* m) { m->add_stop_ids(270); }), "stop_ids[0] is 270, the vocabulary has ids 0 to 269");
}

TEST(ValidateGenerate, ErrorsOfSampling) {
  const auto error = [](const std::function<void(v1::SamplingOptions*)>& change) {
    return Error([&](auto* m) { change(m->mutable_sampling()); });
  };
  constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
  EXPECT_EQ(error([](auto* s) { s->set_temperature(-1); }), "sampling.temperature is -1, the limits are 0 and 100");
  EXPECT_EQ(error([](auto* s) { s->set_temperature(101); }), "sampling.temperature is 101, the limits are 0 and 100");
  EXPECT_EQ(error([](auto* s) { s->set_temperature(kNan); }), "sampling.temperature is nan, the limits are 0 and 100");
  EXPECT_EQ(error([](auto* s) { s->set_top_p(1.5); }), "sampling.top_p is 1.5, the limits are 0 and 1");
  EXPECT_EQ(error([](auto* s) { s->set_min_p(-0.5); }), "sampling.min_p is -0.5, the limits are 0 and 1");
  EXPECT_THAT(error([](auto* s) { s->set_presence_penalty(HUGE_VAL); }), HasSubstr("sampling.presence_penalty is inf"));
  EXPECT_THAT(error([](auto* s) { s->set_frequency_penalty(-101); }), HasSubstr("sampling.frequency_penalty is -101"));
  EXPECT_THAT(error([](auto* s) { s->set_penalty_decay(2); }), HasSubstr("sampling.penalty_decay is 2"));
  EXPECT_EQ(error([](auto* s) { (*s->mutable_logit_bias())[4294967295u] = 1; }),
            "sampling.logit_bias: the id is 4294967295, the vocabulary has ids 0 to 269");
  EXPECT_EQ(error([](auto* s) { (*s->mutable_logit_bias())[3] = kNan; }),
            "sampling.logit_bias[0].bias is nan, the limits are -100 and 100");
  EXPECT_EQ(error([](auto* s) {
              for (int i = 0; i < 1025; ++i) (*s->mutable_logit_bias())[i] = 1;
            }),
            "sampling.logit_bias has 1025 entries, the limit is 1024");
  EXPECT_EQ(error([](auto* s) { s->add_banned_tokens(270); }),
            "sampling.banned_tokens[0] is 270, the vocabulary has ids 0 to 269");
  EXPECT_EQ(error([](auto* s) {
              for (int i = 0; i < 65537; ++i) s->add_banned_tokens(0);
            }),
            "sampling.banned_tokens has 65537 entries, the limit is 65536");
  EXPECT_EQ(error([](auto* s) {
              for (int i = 0; i < 262; ++i) s->add_banned_tokens(i);
            }),
            "sampling.banned_tokens has all 262 tokens, one must be left");
}

TEST(ValidateGenerate, IgnoringTheEndOfTextMustLeaveAToken) {
  EXPECT_EQ(Error([](auto* m) {
              m->set_ignore_eos(true);
              for (int i = 1; i < 262; ++i) m->mutable_sampling()->add_banned_tokens(i);
            }),
            "sampling.banned_tokens has all 262 tokens, one must be left");
}

TEST(ValidateScore, EveryFieldArrives) {
  v1::ScoreRequest message = SimpleScore();
  message.add_continuations()->mutable_ids()->add_ids(269);
  message.set_score_prompt(true);
  message.set_logprobs(3);
  message.set_logits(true);
  message.set_priority(5);
  message.set_request_id("r");
  const auto request = ValidateScore(message, Model());
  ASSERT_TRUE(request.ok()) << request.status();
  EXPECT_EQ(request->id, "r");
  EXPECT_EQ(request->priority, 5);
  EXPECT_EQ(request->prompt.size(), 5u);
  EXPECT_FALSE(request->generate.has_value());
  ASSERT_TRUE(request->score.has_value());
  EXPECT_TRUE(request->score->score_prompt);
  EXPECT_TRUE(request->score->logits);
  EXPECT_EQ(request->score->top_logprobs, 3);
  EXPECT_THAT(request->score->continuations, ElementsAre(ElementsAre(257), ElementsAre(269)));
}

TEST(ValidateScore, Errors) {
  EXPECT_EQ(ScoreError([](auto* m) { m->clear_text(); }), "prompt is not set, one of text and ids must be");
  EXPECT_EQ(ScoreError([](auto* m) { m->clear_continuations(); }),
            "continuations is empty and score_prompt is not set: there is nothing to score");
  EXPECT_EQ(ScoreError([](auto* m) {
              m->clear_continuations();
              m->set_text("x");
              m->set_score_prompt(true);
            }),
            "score_prompt scores from the second token on, the prompt has 1: there is nothing to score");
  EXPECT_EQ(ScoreError([](auto* m) { m->add_continuations(); }),
            "continuations[1] is not set, one of text and ids must be");
  EXPECT_EQ(ScoreError([](auto* m) { m->add_continuations()->set_text(""); }),
            "continuations[1].text is empty, it must have at least one token");
  EXPECT_EQ(ScoreError([](auto* m) { m->add_continuations()->mutable_ids(); }),
            "continuations[1].ids is empty, it must have at least one token");
  EXPECT_EQ(ScoreError([](auto* m) { m->add_continuations()->mutable_ids()->add_ids(270); }),
            "continuations[1].ids[0] is 270, the vocabulary has ids 0 to 269");
  EXPECT_EQ(ScoreError([](auto* m) { m->add_continuations()->set_text(std::string(996, 'x')); }),
            "the prompt has 5 tokens and continuations[1] 996, together 1001, max_model_len is 1000");
  EXPECT_EQ(ScoreError([](auto* m) {
              for (int i = 0; i < 64; ++i) m->add_continuations()->set_text("x");
            }),
            "continuations has 65 entries, the limit is 64");
  EXPECT_EQ(ScoreError([](auto* m) { m->set_logprobs(21); }), "logprobs is 21, the limit is 20");
  EXPECT_EQ(ScoreError([](auto* m) { m->set_priority(200); }), "priority is 200, the limits are -100 and 100");
  EXPECT_EQ(ScoreError([](auto* m) {
              m->clear_continuations();
              m->set_score_prompt(true);
              m->set_text(std::string(1001, 'x'));
            }),
            "the prompt has 1001 tokens, max_model_len is 1000");
}

TEST(Detokenize, TextAndRawBytes) {
  v1::DetokenizeRequest message;
  for (const uint32_t id : {258, 0, 260}) message.add_ids(id);
  const auto response = Detokenize(message, Model(), 1000);
  ASSERT_TRUE(response.ok()) << response.status();
  EXPECT_EQ(response->raw(), "abcaf\xc3");
  EXPECT_EQ(response->text(), "abcaf\xef\xbf\xbd");
}

TEST(Detokenize, Errors) {
  v1::DetokenizeRequest message;
  message.add_ids(1);
  message.add_ids(270);
  EXPECT_EQ(std::string(Detokenize(message, Model(), 1000).status().message()),
            "ids[1] is 270, the vocabulary has ids 0 to 269");
  message.set_ids(1, 269);
  EXPECT_THAT(std::string(Detokenize(message, Model(), 1000).status().message()), HasSubstr("269"));
  message.set_ids(1, 257);
  EXPECT_TRUE(Detokenize(message, Model(), 20).ok());
  EXPECT_EQ(std::string(Detokenize(message, Model(), 19).status().message()),
            "ids are tokens of 5 bytes, the limit is 4");
}

}  // namespace
}  // namespace goldfinch
