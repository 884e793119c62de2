// What is refused of contexts, and what arrives.
#include <cmath>
#include <functional>
#include <limits>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "coordinator/calls/test_model.h"
#include "coordinator/calls/validation.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "protos/contexts.pb.h"
#include "protos/generate.pb.h"

namespace goldfinch {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

const ServedModel& Model() {
  static const std::shared_ptr<const ServedModel> model = MakeTestModel();
  return *model;
}

template <typename T>
std::string ErrorOf(const absl::StatusOr<T>& result) {
  EXPECT_EQ(result.status().code(), absl::StatusCode::kInvalidArgument) << result.status();
  return std::string(result.status().message());
}

// A request that goes on from a context and is kept.
v1::GenerateRequest Simple() {
  v1::GenerateRequest message;
  message.set_text("hello");
  message.set_context("doc");
  message.mutable_keep_as()->set_name("chat");
  return message;
}

std::string GenerateError(const std::function<void(v1::GenerateRequest*)>& change) {
  v1::GenerateRequest message = Simple();
  change(&message);
  return ErrorOf(ValidateGenerate(message, Model()));
}

TEST(ValidateContexts, FieldsOfGenerateArrive) {
  v1::GenerateRequest message = Simple();
  message.set_context_tokens(7);
  for (const uint64_t at : {4, 1, 1}) message.add_breakpoints(at);
  message.mutable_keep_as()->set_expire_after_seconds(2.5);
  message.mutable_keep_as()->set_etag("18446744073709551615");
  const auto valid = ValidateGenerate(message, Model());
  ASSERT_TRUE(valid.ok()) << valid.status();
  const Request& request = valid->request;
  EXPECT_EQ(request.context, "doc");
  EXPECT_EQ(request.context_tokens, 7);
  EXPECT_THAT(request.breakpoints, ElementsAre(4, 1, 1));
  ASSERT_TRUE(request.keep_as.has_value());
  EXPECT_EQ(request.keep_as->name, "chat");
  EXPECT_EQ(request.keep_as->expire_after_seconds, 2.5);
  EXPECT_EQ(request.keep_as->etag, std::numeric_limits<uint64_t>::max());
  EXPECT_FALSE(request.keep_as->expire_as_before);
  EXPECT_TRUE(request.generate->may_shorten) << "nobody asked for 256";
  message.set_max_tokens(3);
  EXPECT_FALSE(ValidateGenerate(message, Model())->request.generate->may_shorten);
}

TEST(ValidateContexts, AfterAContextThePromptMayBeEmpty) {
  v1::GenerateRequest none;
  none.set_context("doc");
  v1::GenerateRequest text = none, ids = none;
  text.set_text("");
  ids.mutable_ids();
  for (const v1::GenerateRequest& message : {none, text, ids}) {
    const auto valid = ValidateGenerate(message, Model());
    ASSERT_TRUE(valid.ok()) << valid.status();
    EXPECT_THAT(valid->request.prompt, IsEmpty());
  }
  none.clear_context();
  EXPECT_THAT(ErrorOf(ValidateGenerate(none, Model())), HasSubstr("prompt is not set"));
  v1::ScoreRequest score;
  score.set_context("doc");
  score.add_continuations()->set_text("x");
  EXPECT_TRUE(ValidateScore(score, Model()).ok());
  score.clear_continuations();
  score.set_score_prompt(true);
  EXPECT_THAT(ErrorOf(ValidateScore(score, Model())), HasSubstr("the prompt has 0: there is nothing to score"));
}

TEST(ValidateContexts, WhatGenerateRefuses) {
  EXPECT_EQ(GenerateError([](auto* m) { m->set_n(2); }), "n is 2, with keep_as it must be 1");
  EXPECT_EQ(GenerateError([](auto* m) { m->set_context(std::string(257, 'x')); }),
            "context has 257 bytes, the limit is 256");
  EXPECT_EQ(GenerateError([](auto* m) { m->set_context_tokens(0); }), "context_tokens is 0, it must be at least 1");
  EXPECT_EQ(GenerateError([](auto* m) {
              m->clear_context();
              m->set_context_tokens(5);
            }),
            "context_tokens is 5 and context is not set");
  EXPECT_EQ(GenerateError([](auto* m) { m->mutable_keep_as()->clear_name(); }),
            "keep_as.name is empty, it must be the name of a context");
  for (const std::string name : {"a\n", "a\x7f", "a\x1b[0m", "a\xc2\x85"}) {
    EXPECT_EQ(GenerateError([&](auto* m) { m->mutable_keep_as()->set_name(name); }),
              "keep_as.name has a control character at byte 1");
  }
  for (const double seconds : {0.0, -1.0, 1.1e9, std::nan(""), std::numeric_limits<double>::infinity()}) {
    EXPECT_THAT(GenerateError([&](auto* m) { m->mutable_keep_as()->set_expire_after_seconds(seconds); }),
                HasSubstr("it must be above 0 and at most 1e+09"));
  }
  for (const std::string etag : {"x", "-1", "+1", " 1", "1 ", "0", "01", "1e3", "18446744073709551616"}) {
    EXPECT_EQ(GenerateError([&](auto* m) { m->mutable_keep_as()->set_etag(etag); }),
              "keep_as.etag is not one that a server has given");
  }
  EXPECT_EQ(GenerateError([](auto* m) { m->mutable_keep_as()->set_etag(std::string(65, '1')); }),
            "keep_as.etag has 65 bytes, the limit is 64");
  EXPECT_EQ(GenerateError([](auto* m) { m->add_breakpoints(5); }),
            "breakpoints[0] is 5, it must be above 0 and below the prompt's 5 tokens");
  EXPECT_THAT(GenerateError([](auto* m) { m->add_breakpoints(0); }), HasSubstr("breakpoints[0] is 0"));
  EXPECT_EQ(GenerateError([](auto* m) {
              for (int i = 0; i < 17; ++i) m->add_breakpoints(1);
            }),
            "breakpoints has 17 entries, the limit is 16");
}

TEST(ValidateContexts, NamesMayHaveAnyOtherCharacters) {
  v1::GenerateRequest message = Simple();
  const std::string longest(256, 'x');
  for (const std::string name : {" ", "a/b", "caf\xc3\xa9", "\xe6\x96\x87", "a\xc2\xa0", "..", longest.c_str()}) {
    message.mutable_keep_as()->set_name(name);
    EXPECT_TRUE(ValidateGenerate(message, Model()).ok()) << name;
  }
}

TEST(ValidateContexts, Create) {
  v1::CreateContextRequest message;
  message.set_text("hello");
  EXPECT_EQ(ErrorOf(ValidateCreateContext(message, Model())), "keep_as is not set, it must name the context");
  message.mutable_keep_as()->set_name("doc");
  message.set_context("base");
  message.set_context_tokens(9);
  message.add_breakpoints(2);
  message.set_priority(3);
  message.set_request_id("me");
  const auto request = ValidateCreateContext(message, Model());
  ASSERT_TRUE(request.ok()) << request.status();
  EXPECT_EQ(request->prompt.size(), 5u);
  EXPECT_EQ(request->generate->max_tokens, 0);
  EXPECT_EQ(request->generate->samples, 1);
  EXPECT_TRUE(request->progress);
  EXPECT_EQ(request->keep_as->name, "doc");
  EXPECT_EQ(request->context, "base");
  EXPECT_EQ(request->context_tokens, 9);
  EXPECT_THAT(request->breakpoints, ElementsAre(2));
  EXPECT_EQ(request->priority, 3);
  EXPECT_EQ(request->id, "me");
  message.set_text("");
  EXPECT_THAT(ErrorOf(ValidateCreateContext(message, Model())), HasSubstr("text is empty"));
  message.set_text(std::string(1001, 'x'));
  EXPECT_THAT(ErrorOf(ValidateCreateContext(message, Model())), HasSubstr("max_model_len is 1000"));
  message.set_text("hello");
  message.set_priority(101);
  EXPECT_THAT(ErrorOf(ValidateCreateContext(message, Model())), HasSubstr("priority is 101"));
}

TEST(ValidateContexts, AppendGoesOnUnderTheSameName) {
  v1::AppendContextRequest message;
  message.set_name("doc");
  message.mutable_ids()->add_ids(5);
  message.set_etag("77");
  const auto request = ValidateAppendContext(message, Model());
  ASSERT_TRUE(request.ok()) << request.status();
  EXPECT_EQ(request->context, "doc");
  EXPECT_FALSE(request->context_tokens.has_value());
  EXPECT_EQ(request->keep_as->name, "doc");
  EXPECT_EQ(request->keep_as->etag, 77u);
  EXPECT_TRUE(request->keep_as->expire_as_before);
  EXPECT_EQ(request->generate->max_tokens, 0);
  message.clear_name();
  EXPECT_THAT(ErrorOf(ValidateAppendContext(message, Model())), HasSubstr("name is empty"));
  message.set_name("doc");
  message.mutable_ids()->add_ids(270);
  EXPECT_THAT(ErrorOf(ValidateAppendContext(message, Model())), HasSubstr("ids[1] is 270"));
  message.clear_prompt();
  EXPECT_THAT(ErrorOf(ValidateAppendContext(message, Model())), HasSubstr("prompt is not set"));
}

TEST(ValidateContexts, Questions) {
  v1::GetContextRequest get;
  EXPECT_THAT(ErrorOf(ValidateGetContext(get)), HasSubstr("name is empty"));
  get.set_name("doc");
  get.set_ids_begin(~uint64_t{0});
  get.set_ids_max(1'048'576);
  EXPECT_EQ(ValidateGetContext(get)->ids_begin, std::numeric_limits<int64_t>::max());
  get.set_ids_max(1'048'577);
  EXPECT_EQ(ErrorOf(ValidateGetContext(get)), "ids_max is 1048577, the limit is 1048576");

  v1::ListContextsRequest list;
  EXPECT_EQ(ValidateListContexts(list)->count, 100);
  list.set_page_size(1000);
  list.set_page_token("doc");
  EXPECT_EQ(ValidateListContexts(list)->count, 1000);
  EXPECT_EQ(ValidateListContexts(list)->after, "doc");
  list.set_page_size(1001);
  EXPECT_EQ(ErrorOf(ValidateListContexts(list)), "page_size is 1001, the limit is 1000");
  list.set_page_size(1);
  list.set_page_token(std::string(257, 'x'));
  EXPECT_EQ(ErrorOf(ValidateListContexts(list)), "page_token is not one that a server has given");

  v1::ForkContextRequest fork;
  fork.set_context("doc");
  EXPECT_THAT(ErrorOf(ValidateForkContext(fork)), HasSubstr("keep_as is not set"));
  fork.mutable_keep_as()->set_name("part");
  fork.set_context_tokens(0);
  EXPECT_THAT(ErrorOf(ValidateForkContext(fork)), HasSubstr("context_tokens is 0"));
  fork.set_context_tokens(~uint64_t{0});
  EXPECT_EQ(ValidateForkContext(fork)->context_tokens, std::numeric_limits<int64_t>::max());

  v1::RenameContextRequest rename;
  rename.set_name("doc");
  EXPECT_THAT(ErrorOf(ValidateRenameContext(rename)), HasSubstr("new_name is empty"));
  rename.set_new_name("text");
  rename.set_etag("x");
  EXPECT_THAT(ErrorOf(ValidateRenameContext(rename)), HasSubstr("etag is not"));
  rename.set_etag("5");
  EXPECT_EQ(ValidateRenameContext(rename)->etag, 5u);

  v1::PinContextRequest pin;
  pin.set_name("doc");
  pin.set_pinned(true);
  EXPECT_TRUE(ValidatePinContext(pin)->pinned);
  v1::DeleteContextRequest remove;
  EXPECT_THAT(ErrorOf(ValidateDeleteContext(remove)), HasSubstr("name is empty"));
  remove.set_name("doc");
  EXPECT_EQ(ValidateDeleteContext(remove)->name, "doc");
}

TEST(ValidateContexts, AContextAsAMessage) {
  NamedContext context = {.name = "doc", .tokens = 9, .etag = 7, .pinned = true, .created = 1.5, .last_use = 2.5};
  context.bytes = 100;
  context.shared_bytes = 40;
  context.snapshots = {4, 9};
  context.transformer_bytes = 5000;
  context.ids = {5, 6};
  v1::Context message = ToMessage(context);
  EXPECT_EQ(message.name(), "doc");
  EXPECT_EQ(message.tokens(), 9u);
  EXPECT_EQ(message.etag(), "7");
  EXPECT_TRUE(message.pinned());
  EXPECT_EQ(message.created_unix_seconds(), 1.5);
  EXPECT_EQ(message.last_use_unix_seconds(), 2.5);
  EXPECT_FALSE(message.has_expires_unix_seconds());
  EXPECT_EQ(message.bytes(), 100u);
  EXPECT_EQ(message.shared_bytes(), 40u);
  EXPECT_THAT(message.snapshots(), ElementsAre(4, 9));
  EXPECT_EQ(message.place(), v1::NOWHERE);
  EXPECT_EQ(message.transformer_bytes(), 5000u);
  EXPECT_THAT(message.ids(), ElementsAre(5, 6));
  context.expires = 3.5;
  context.in_memory = true;
  EXPECT_EQ(ToMessage(context).expires_unix_seconds(), 3.5);
  EXPECT_EQ(ToMessage(context).place(), v1::MEMORY);
  context.on_disk = true;
  EXPECT_EQ(ToMessage(context).place(), v1::MEMORY_AND_DISK);
  context.in_memory = false;
  EXPECT_EQ(ToMessage(context).place(), v1::DISK);
}

}  // namespace
}  // namespace goldfinch
