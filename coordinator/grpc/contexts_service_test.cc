// Calls of goldfinch.v1.Contexts, and of Generate and Score over contexts.
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "coordinator/calls/key_ring.h"
#include "coordinator/grpc/service_test_util.h"
#include "coordinator/keeper/context_directory.h"
#include "gmock/gmock.h"
#include "grpcpp/client_context.h"
#include "gtest/gtest.h"

namespace goldfinch {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

struct Reading {
  std::vector<v1::CreateContextResponse> responses;
  grpc::Status status;
};

Reading ReadAll(grpc::ClientReader<v1::CreateContextResponse>* reader) {
  Reading reading;
  for (v1::CreateContextResponse response; reader->Read(&response);) reading.responses.push_back(response);
  reading.status = reader->Finish();
  return reading;
}

v1::CreateContextRequest SimpleCreate() {
  v1::CreateContextRequest message;
  message.set_text("hello");
  message.mutable_keep_as()->set_name("doc");
  return message;
}

TEST(Create, StreamsTheProgressAndEndsWithTheContext) {
  ServiceHarness harness;
  grpc::ClientContext context;
  v1::CreateContextRequest message = SimpleCreate();
  message.set_request_id("me");
  message.set_context("base");
  const auto reader = harness.contexts().Create(&context, message);
  FakeDispatcher& dispatcher = harness.dispatcher();
  const uint64_t number = dispatcher.Next();
  const Request request = dispatcher.RequestOf(number);
  EXPECT_EQ(request.id, "me");
  EXPECT_EQ(request.generate->max_tokens, 0);
  EXPECT_EQ(request.context, "base");
  EXPECT_EQ(request.keep_as->name, "doc");
  dispatcher.ContextOf(number, 100);
  dispatcher.Progress(number, 103);
  v1::CreateContextResponse first;
  ASSERT_TRUE(reader->Read(&first));
  EXPECT_EQ(first.request_id(), "me");
  EXPECT_EQ(first.progress().prompt_tokens_done(), 103u);
  EXPECT_EQ(first.progress().prompt_tokens(), 105u);
  dispatcher.SampleDone(number, 0, Finish::kLength);
  dispatcher.Kept(number, {.name = "doc", .tokens = 105, .etag = 7});
  dispatcher.Done(number, absl::OkStatus(), {.prompt_tokens = 105, .cached_tokens = 100});
  const Reading rest = ReadAll(reader.get());
  ASSERT_TRUE(rest.status.ok()) << rest.status.error_message();
  ASSERT_FALSE(rest.responses.empty());
  const v1::CreateContextResponse& last = rest.responses.back();
  EXPECT_EQ(last.context().name(), "doc");
  EXPECT_EQ(last.context().tokens(), 105u);
  EXPECT_EQ(last.context().etag(), "7");
  EXPECT_EQ(last.usage().cached_tokens(), 100u);
  EXPECT_TRUE(last.request_id().empty());
}

TEST(Create, WithoutProgressOneResponseHasAll) {
  ServiceHarness harness;
  grpc::ClientContext context;
  const auto reader = harness.contexts().Create(&context, SimpleCreate());
  const uint64_t number = harness.dispatcher().Next();
  harness.dispatcher().Kept(number, {.name = "doc"});
  harness.dispatcher().Done(number, absl::OkStatus());
  const Reading reading = ReadAll(reader.get());
  ASSERT_EQ(reading.responses.size(), 1u);
  EXPECT_FALSE(reading.responses[0].request_id().empty());
  EXPECT_EQ(reading.responses[0].context().name(), "doc");
}

TEST(Create, ErrorsEndTheStream) {
  ServiceHarness harness;
  {
    grpc::ClientContext context;
    const auto reader = harness.contexts().Create(&context, SimpleCreate());
    harness.dispatcher().Done(harness.dispatcher().Next(), absl::AlreadyExistsError("there is one"));
    const Reading reading = ReadAll(reader.get());
    EXPECT_EQ(reading.status.error_code(), grpc::StatusCode::ALREADY_EXISTS);
    EXPECT_TRUE(reading.responses.empty());
  }
  grpc::ClientContext context;
  v1::CreateContextRequest message = SimpleCreate();
  message.clear_keep_as();
  EXPECT_EQ(ReadAll(harness.contexts().Create(&context, message).get()).status.error_code(),
            grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(harness.Counted("request_failure_total", "CreateContext"), 2);
}

TEST(Create, AClientThatGoesCancelsIt) {
  ServiceHarness harness;
  grpc::ClientContext context;
  const auto reader = harness.contexts().Create(&context, SimpleCreate());
  const uint64_t number = harness.dispatcher().Next();
  context.TryCancel();
  EXPECT_EQ(harness.dispatcher().WaitCancelled(number).code(), absl::StatusCode::kCancelled);
  EXPECT_EQ(ReadAll(reader.get()).status.error_code(), grpc::StatusCode::CANCELLED);
}

TEST(Append, GoesOnFromTheContext) {
  ServiceHarness harness;
  grpc::ClientContext context;
  v1::AppendContextRequest message;
  message.set_name("doc");
  message.set_etag("7");
  message.set_text("more");
  const auto reader = harness.contexts().Append(&context, message);
  const uint64_t number = harness.dispatcher().Next();
  EXPECT_EQ(harness.dispatcher().RequestOf(number).context, "doc");
  EXPECT_EQ(harness.dispatcher().RequestOf(number).keep_as->etag, 7u);
  harness.dispatcher().Kept(number, {.name = "doc", .tokens = 109, .etag = 8});
  harness.dispatcher().Done(number, absl::OkStatus());
  EXPECT_EQ(ReadAll(reader.get()).responses.back().context().etag(), "8");
}

TEST(Generate, ProgressCountsTheContext) {
  ServiceHarness harness;
  v1::GenerateRequest message = Simple();
  message.set_context("doc");
  message.set_progress(true);
  Stream stream(harness, message);
  const uint64_t number = harness.dispatcher().Next();
  harness.dispatcher().ContextOf(number, 100);
  harness.dispatcher().Progress(number, 105);
  harness.dispatcher().Tokens(number, 0, Ids("x"));
  harness.dispatcher().SampleDone(number, 0, Finish::kLength);
  harness.dispatcher().Done(number, absl::OkStatus());
  const Answer answer = goldfinch::ReadAll(stream.reader.get());
  ASSERT_TRUE(answer.status.ok()) << answer.status.error_message();
  EXPECT_EQ(answer.text(), "x");
  uint64_t prompt_tokens = 0;
  for (const v1::GenerateResponse& response : answer.responses) {
    if (response.has_progress()) prompt_tokens = response.progress().prompt_tokens();
  }
  EXPECT_EQ(prompt_tokens, 105u);
}

TEST(Generate, WhatCannotBeKeptFailsAfterTheAnswer) {
  ServiceHarness harness;
  v1::GenerateRequest message = Simple();
  message.mutable_keep_as()->set_name("doc");
  Stream stream(harness, message);
  const uint64_t number = harness.dispatcher().Next();
  harness.dispatcher().Tokens(number, 0, Ids("on"));
  harness.dispatcher().SampleDone(number, 0, Finish::kLength);
  harness.dispatcher().Done(number, absl::ResourceExhaustedError("the shelves are full"));
  const Answer answer = goldfinch::ReadAll(stream.reader.get());
  EXPECT_EQ(answer.status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(answer.text(), "on");
  EXPECT_EQ(answer.finish(), v1::LENGTH);
}

class DirectoryTest : public testing::Test {
 protected:
  DirectoryTest() {
    NamedContextPage page;
    page.contexts = {{.name = "doc", .tokens = 5, .etag = 9}, {.name = "text", .tokens = 6}};
    page.next = "text";
    harness_.dispatcher().AnswerContexts(page);
  }
  std::string asked() const { return harness_.dispatcher().asked(); }

  mutable ServiceHarness harness_;
  grpc::ClientContext context_;
  v1::Context answer_;
};

TEST_F(DirectoryTest, Get) {
  v1::GetContextRequest message;
  message.set_name("doc");
  message.set_ids_begin(2);
  message.set_ids_max(3);
  const grpc::Status status = harness_.contexts().Get(&context_, message, &answer_);
  ASSERT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(asked(), " get doc 2 3");
  EXPECT_EQ(answer_.tokens(), 5u);
  EXPECT_EQ(answer_.etag(), "9");
}

TEST_F(DirectoryTest, List) {
  v1::ListContextsRequest message;
  v1::ListContextsResponse answer;
  message.set_page_token("a");
  ASSERT_TRUE(harness_.contexts().List(&context_, message, &answer).ok());
  EXPECT_EQ(asked(), " list a 100");
  ASSERT_EQ(answer.contexts_size(), 2);
  EXPECT_EQ(answer.contexts(1).name(), "text");
  EXPECT_EQ(answer.next_page_token(), "text");
}

TEST_F(DirectoryTest, Fork) {
  v1::ForkContextRequest message;
  message.set_context("doc");
  message.set_context_tokens(4);
  message.mutable_keep_as()->set_name("part");
  message.mutable_keep_as()->set_expire_after_seconds(60);
  ASSERT_TRUE(harness_.contexts().Fork(&context_, message, &answer_).ok());
  EXPECT_EQ(asked(), " fork doc 4 part 0 60");
}

TEST_F(DirectoryTest, Rename) {
  v1::RenameContextRequest message;
  message.set_name("doc");
  message.set_new_name("text");
  message.set_etag("9");
  ASSERT_TRUE(harness_.contexts().Rename(&context_, message, &answer_).ok());
  EXPECT_EQ(asked(), " rename doc text 9");
}

TEST_F(DirectoryTest, Pin) {
  v1::PinContextRequest message;
  message.set_name("doc");
  message.set_pinned(true);
  ASSERT_TRUE(harness_.contexts().Pin(&context_, message, &answer_).ok());
  EXPECT_EQ(asked(), " pin doc 1 0");
}

TEST_F(DirectoryTest, Delete) {
  v1::DeleteContextRequest message;
  v1::DeleteContextResponse answer;
  message.set_name("doc");
  ASSERT_TRUE(harness_.contexts().Delete(&context_, message, &answer).ok());
  EXPECT_EQ(asked(), " delete doc 0");
}

TEST_F(DirectoryTest, ErrorsComeThroughAndAreCounted) {
  v1::GetContextRequest message;
  EXPECT_EQ(harness_.contexts().Get(&context_, message, &answer_).error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(asked(), "") << "the directory is not asked";
  harness_.dispatcher().AnswerContexts(absl::NotFoundError("there is no context \"doc\""));
  message.set_name("doc");
  grpc::ClientContext second;
  const grpc::Status status = harness_.contexts().Get(&second, message, &answer_);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_EQ(status.error_message(), "there is no context \"doc\"");
  EXPECT_EQ(harness_.Counted("request_failure_total", "GetContext"), 2);
}

TEST(Contexts, AnAnswerThatIsTooLargeIsRefused) {
  ServiceHarness harness({.message_bytes_max = 1000});
  NamedContext large = {.name = "doc"};
  large.ids.assign(2000, 1);
  harness.dispatcher().AnswerContexts(NamedContextPage{.contexts = {large}, .next = ""});
  v1::GetContextRequest message;
  message.set_name("doc");
  v1::Context answer;
  grpc::ClientContext context;
  const grpc::Status status = harness.contexts().Get(&context, message, &answer);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_THAT(status.error_message(), HasSubstr("the limit is 1000"));
}

TEST(Contexts, EachKeyHasANamespaceOfItsOwn) {
  const std::string path = testing::TempDir() + "/context_keys.yaml";
  std::ofstream(path) << "keys:\n- name: alice\n  key: 0123456789abcdef\n- name: bob\n  key: another-key-of-mine\n";
  const auto keys = KeyRing::Open(path);
  ASSERT_TRUE(keys.ok()) << keys.status();
  ServiceHarness harness({.api_keys = *keys});
  NamedContextPage page;
  page.contexts = {{.name = "doc"}};
  harness.dispatcher().AnswerContexts(page);
  v1::GetContextRequest message;
  message.set_name("doc");
  const auto get = [&](const std::string& key) {
    grpc::ClientContext context;
    if (!key.empty()) context.AddMetadata("authorization", "Bearer " + key);
    v1::Context answer;
    return harness.contexts().Get(&context, message, &answer).error_code();
  };
  EXPECT_EQ(get("0123456789abcdef"), grpc::StatusCode::OK);
  EXPECT_EQ(harness.dispatcher().asked(), "alice get doc 0 0");
  EXPECT_EQ(get("another-key-of-mine"), grpc::StatusCode::OK);
  EXPECT_EQ(harness.dispatcher().asked(), "bob get doc 0 0");
  EXPECT_EQ(get(""), grpc::StatusCode::UNAUTHENTICATED);
  EXPECT_EQ(get("wrong"), grpc::StatusCode::UNAUTHENTICATED);
  EXPECT_EQ(harness.dispatcher().asked(), "bob get doc 0 0");
}

}  // namespace
}  // namespace goldfinch
