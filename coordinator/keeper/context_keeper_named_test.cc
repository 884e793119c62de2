// Requests over contexts, and what is kept of requests under names.
#include <cstdint>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "coordinator/keeper/context_keeper_test_util.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace goldfinch {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

TEST_F(ContextKeeperNamedTest, ARequestGoesOnFromAContext) {
  Up();
  const Ids document = FakePrompt(500);
  ASSERT_TRUE(Keep(document, {.name = "doc"}).ok());
  const auto client = Generate("doc", {7, 8, 9}, 5, [](Request* request) {
    request->breakpoints = {2, 1};
    request->progress = true;
  });
  ASSERT_TRUE(client->status->ok()) << *client->status;
  EXPECT_EQ(client->context_tokens, 500);
  EXPECT_EQ(client->tokens[0], FakeAnswer(document + Ids{7, 8, 9}, 0, 5));
  EXPECT_EQ(client->usage.prompt_tokens, 503);
  EXPECT_EQ(client->usage.cached_tokens, 500);
  EXPECT_EQ(client->progress.back(), 503);
  EXPECT_THAT(breakpoints_, ElementsAre(502, 501));
  EXPECT_FALSE(client->kept.has_value());

  // Only a part of it.
  const auto part = Generate("doc", {9}, 3, [](Request* request) { request->context_tokens = 200; });
  EXPECT_EQ(part->tokens[0], FakeAnswer(FakePrompt(200) + Ids{9}, 0, 3));
  // None of one's own.
  EXPECT_EQ(Generate("doc", {}, 3)->tokens[0], FakeAnswer(document, 0, 3));
  ExpectNothingLeft(cluster_);
}

struct ContextKeeperCostTest : ContextKeeperNamedTest {
  ContextKeeperCostTest() : ContextKeeperNamedTest(SnapshotOptions().cost_tokens) {}
};

TEST_F(ContextKeeperCostTest, ABreakpointIsWhereOthersBegin) {
  Up();
  Generate("", FakePrompt(500), 0, [](Request* request) { request->breakpoints = {300}; });
  const auto other = Generate("", FakePrompt(300) + Ids{199, 198}, 1);
  EXPECT_EQ(other->usage.cached_tokens, 300);
  // Where little is read, only the breakpoint is saved.
  const int64_t before = keeper_.bytes();
  Generate("", FakePrompt(300) + Ids{150, 151, 152, 153}, 0, [](Request* request) { request->breakpoints = {302}; });
  EXPECT_EQ(keeper_.bytes(), before + 2 * 10 + 100);
  ExpectNothingLeft(cluster_);
}

TEST_F(ContextKeeperNamedTest, WithoutTheCacheAContextIsUsedAllTheSame) {
  Up();
  ASSERT_TRUE(Keep(FakePrompt(500), {.name = "doc"}).ok());
  Generate("doc", FakePrompt(300, 7), 0);
  const int64_t before = keeper_.bytes();
  const auto client = Generate("doc", FakePrompt(300, 7), 1, [](Request* request) { request->cache = false; });
  EXPECT_EQ(client->usage.cached_tokens, 500) << "not what another request has left";
  EXPECT_EQ(keeper_.bytes(), before);
  ExpectNothingLeft(cluster_);
}

TEST_F(ContextKeeperNamedTest, WhatIsLostIsReadAgainAndKeptAgain) {
  Up();
  ASSERT_TRUE(Keep(FakePrompt(500), {.name = "doc"}).ok());
  EXPECT_TRUE(Get("doc").in_memory);
  EXPECT_EQ(Get("doc").bytes, 500 * 20 + 200);
  Lose();
  EXPECT_FALSE(Get("doc").in_memory);
  EXPECT_EQ(Get("doc").bytes, 0);
  EXPECT_EQ(Get("doc").tokens, 500);
  Up();
  const auto first = Generate("doc", {7}, 1), second = Generate("doc", {8}, 1);
  EXPECT_EQ(first->tokens[0], FakeAnswer(FakePrompt(500) + Ids{7}, 0, 1));
  EXPECT_EQ(first->usage.cached_tokens, 0);
  EXPECT_EQ(second->usage.cached_tokens, 500);
  EXPECT_TRUE(Get("doc").in_memory);
  ExpectNothingLeft(cluster_);
}

TEST_F(ContextKeeperNamedTest, TogetherTheyMustFit) {
  Up();
  ASSERT_TRUE(Keep(FakePrompt(4900), {.name = "doc"}).ok());
  EXPECT_EQ(Generate("doc", FakePrompt(101), 0)->status,
            absl::InvalidArgumentError("the context has 4900 tokens and the prompt 101, together 5001, max_model_len "
                                       "is 5000"));
  EXPECT_EQ(Generate("doc", FakePrompt(50), 51)->status,
            absl::InvalidArgumentError("the context has 4900 tokens and the prompt 50, max_tokens is 51, together "
                                       "5001, max_model_len is 5000"));
  Request score;
  score.context = "doc";
  score.prompt = FakePrompt(50);
  score.score.emplace().continuations = {{1}, FakePrompt(51)};
  EXPECT_THAT(Ask(score)->status->ToString(), HasSubstr("continuations[1] has 51, together 5001"));
  EXPECT_EQ(Generate("doc", {1}, 0, [](Request* request) { request->context_tokens = 4901; })->status,
            absl::InvalidArgumentError("context_tokens is 4901, context \"doc\" has 4900 tokens"));
  EXPECT_EQ(Generate("dock", {1}, 0)->status, absl::NotFoundError("there is no context \"dock\""));
  // None of these holds anything.
  ASSERT_TRUE(keeper_.DeleteContext("", {.name = "doc"}).ok());
  EXPECT_EQ(keeper_.bytes(), 0);

  ASSERT_TRUE(Keep(FakePrompt(4900), {.name = "doc"}).ok());
  EXPECT_TRUE(Generate("doc", FakePrompt(50), 50)->status->ok());
  const auto shortened =
      Generate("doc", FakePrompt(90), 256, [](Request* request) { request->generate->may_shorten = true; });
  EXPECT_TRUE(shortened->status->ok());
  EXPECT_EQ(max_tokens_, 10);
}

TEST_F(ContextKeeperNamedTest, ScoresAreThoseOfTheRequestsOwnTokens) {
  Up();
  ASSERT_TRUE(Keep(FakePrompt(500), {.name = "doc"}).ok());
  Request request;
  request.context = "doc";
  request.prompt = {7, 8, 9};
  request.score.emplace().continuations = {{4, 5}};
  request.score->score_prompt = true;
  const auto client = Ask(request);
  cluster_.RunAll();
  ASSERT_TRUE(client->status->ok()) << *client->status;
  EXPECT_EQ(client->usage.cached_tokens, 500);
  ExpectScores(*client, 0, FakePrompt(500) + Ids{7, 8, 9}, {4, 5});
  ExpectScores(*client, -1, FakePrompt(500) + Ids{7}, {8, 9});
  // Without a prompt of its own, there is nothing to score but the continuations.
  request.prompt.clear();
  const auto bare = Ask(request);
  cluster_.RunAll();
  ASSERT_TRUE(bare->status->ok()) << *bare->status;
  ExpectScores(*bare, 0, FakePrompt(500), {4, 5});
  EXPECT_EQ(bare->scores.count(-1), 0u);
  ExpectNothingLeft(cluster_);
}

TEST_F(ContextKeeperNamedTest, AContextThatIsDeletedLastsUntilItsRequestEnds) {
  Up();
  ASSERT_TRUE(Keep(FakePrompt(500), {.name = "doc"}).ok());
  Request request;
  request.context = "doc";
  request.prompt = {7};
  request.cache = false;  // leaves nothing
  request.generate.emplace().max_tokens = 2;
  const auto client = Ask(std::move(request));
  ASSERT_TRUE(keeper_.DeleteContext("", {.name = "doc"}).ok());
  EXPECT_EQ(keeper_.bytes(), 500 * 10 + 100);
  cluster_.RunAll();
  EXPECT_EQ(client->tokens[0], FakeAnswer(FakePrompt(500) + Ids{7}, 0, 2));
  EXPECT_EQ(client->usage.cached_tokens, 500);
  EXPECT_EQ(keeper_.bytes(), 0);
  EXPECT_TRUE(Names().empty());
}

// ---- keep_as

TEST_F(ContextKeeperNamedTest, WhatAShelfHadNoRoomForGetsNoName) {
  Up();
  Request request;
  request.prompt = FakePrompt(100);
  request.generate.emplace().max_tokens = 0;
  request.keep_as = Request::KeepAs{.name = "doc"};
  const auto sink = std::make_shared<ContextClient>();
  const auto resolved = keeper_.Resolve(&request, sink, kTokensMax, cluster_.now);
  ASSERT_TRUE(resolved.ok());
  const uint64_t step = Save(request, request.prompt);
  ASSERT_TRUE(keeper_.Keep(0, request, request.prompt, cluster_.now).ok());
  (*resolved)->OnDone(absl::OkStatus(), {});
  EXPECT_EQ(keeper_.finishing(), 1);
  std::vector<uint64_t> all(1000);
  std::iota(all.begin(), all.end(), 1);
  const std::vector<uint64_t> unsaved = keeper_.Unsaved(0, all);
  EXPECT_EQ(unsaved.size(), 1U) << "of all that a worker says, what the Step saves";
  keeper_.StepAnswered(0, step, unsaved, cluster_.now);
  EXPECT_EQ(keeper_.finishing(), 0);
  EXPECT_FALSE(sink->kept.has_value());
  ASSERT_TRUE(sink->status.has_value());
  EXPECT_TRUE(absl::IsResourceExhausted(*sink->status)) << *sink->status;
  EXPECT_TRUE(Names().empty());
}

TEST_F(ContextKeeperNamedTest, ASequenceTakesThePlaceOfWhatItBeganWith) {
  Up();
  ASSERT_TRUE(Keep(FakePrompt(100), {.name = "chat", .expire_after_seconds = 60}).ok());
  const NamedContext first = Get("chat");
  EXPECT_GE(first.etag, 1000u);
  EXPECT_GT(first.created, kUnixOffset);
  EXPECT_LE(first.created, cluster_.now + kUnixOffset);
  EXPECT_EQ(first.expires, first.created + 60);

  Request request;
  request.context = "chat";
  request.prompt = {7, 8};
  request.generate.emplace().max_tokens = 0;
  request.keep_as = Request::KeepAs{.name = "chat", .expire_as_before = true};
  Request mine = request, yours = request, part = request;
  const auto sink = std::make_shared<ContextClient>();
  const auto resolved = keeper_.Resolve(&mine, sink, kTokensMax, cluster_.now);
  ASSERT_TRUE(resolved.ok());
  EXPECT_EQ(mine.keep_as->etag, first.etag);
  const auto other = keeper_.Resolve(&yours, std::make_shared<ContextClient>(), kTokensMax, cluster_.now);
  ASSERT_TRUE(other.ok());
  const uint64_t step = Save(mine, mine.prompt);
  ASSERT_TRUE(keeper_.Keep(0, mine, mine.prompt, cluster_.now).ok());
  (*resolved)->OnDone(absl::OkStatus(), {});
  EXPECT_FALSE(sink->kept.has_value()) << "not before all stages have saved it";
  keeper_.StepAnswered(0, step, {}, cluster_.now);
  ASSERT_TRUE(sink->kept.has_value());
  EXPECT_EQ(sink->kept->tokens, 102);
  EXPECT_NE(sink->kept->etag, first.etag);
  EXPECT_EQ(sink->kept->expires, cluster_.now + kUnixOffset + 60);
  EXPECT_EQ(sink->kept->created, first.created);
  // The other one has begun with what is not there any more.
  Save(yours, yours.prompt + Ids{9});
  EXPECT_TRUE(absl::IsAborted(keeper_.Keep(0, yours, yours.prompt + Ids{9}, cluster_.now)));
  (*other)->OnDone(absl::AbortedError(""), {});
  EXPECT_EQ(Get("chat").tokens, 102);

  // It does not go on from the whole of it, so the name is taken, unless it says by which etag.
  part.context_tokens = 50;
  Request with_etag = part;
  EXPECT_TRUE(absl::IsAlreadyExists(keeper_.Resolve(&part, sink, kTokensMax, cluster_.now).status()));
  with_etag.keep_as->etag = first.etag;
  Request again = with_etag;
  EXPECT_TRUE(absl::IsAborted(keeper_.Resolve(&with_etag, sink, kTokensMax, cluster_.now).status()));
  again.keep_as->etag = Get("chat").etag;
  again.keep_as->expire_as_before = false;
  EXPECT_TRUE(keeper_.Resolve(&again, sink, kTokensMax, cluster_.now).ok());
  Save(again, again.prompt);
  ASSERT_TRUE(keeper_.Keep(0, again, again.prompt, cluster_.now).ok());
  EXPECT_EQ(Get("chat").tokens, 52);
  EXPECT_FALSE(Get("chat").expires.has_value()) << "it was not asked for";
}

TEST_F(ContextKeeperNamedTest, WhatCannotBeKeptIsRefusedAtOnce) {
  Up(0);
  const auto keep = [](Request* request) { request->keep_as = Request::KeepAs{.name = "doc"}; };
  EXPECT_EQ(Generate("", {1}, 0, keep)->status,
            absl::FailedPreconditionError("contexts cannot be kept: context_memory of the workers is 0"));
  Lose();
  Up();
  ASSERT_TRUE(Keep(FakePrompt(100), {.name = "doc"}).ok());
  EXPECT_TRUE(absl::IsAlreadyExists(*Generate("", {1}, 0, keep)->status));
  EXPECT_TRUE(absl::IsNotFound(*Generate("", {1}, 0, [](Request* request) {
                                  request->keep_as = Request::KeepAs{.name = "other", .etag = 5};
                                })->status));
}

TEST_F(ContextKeeperNamedTest, WhatFindsNoRoomGetsNoName) {
  Up(2000);
  ASSERT_TRUE(Keep(FakePrompt(100), {.name = "first"}).ok());
  const absl::Status full = Keep(FakePrompt(100, 50), {.name = "second"});
  EXPECT_TRUE(absl::IsResourceExhausted(full)) << full;
  EXPECT_THAT(full.ToString(), HasSubstr("the shelves of replica 0"));
  EXPECT_THAT(full.ToString(), HasSubstr("2,000"));
  EXPECT_THAT(Names(), ElementsAre("first"));
  ASSERT_TRUE(keeper_.DeleteContext("", {.name = "first"}).ok());
  EXPECT_TRUE(Keep(FakePrompt(100, 50), {.name = "second"}).ok());
  // A worker had no room after all: the tokens are still there.
  Request request;
  request.keep_as = Request::KeepAs{.name = "third"};
  const uint64_t number = Save(request, FakePrompt(20, 90));
  ASSERT_TRUE(keeper_.Keep(0, request, FakePrompt(20, 90), cluster_.now).ok());
  EXPECT_FALSE(Get("third").in_memory) << "not yet";
  std::vector<uint64_t> all(100);
  std::iota(all.begin(), all.end(), 1);
  keeper_.StepAnswered(0, number, all, cluster_.now);
  EXPECT_FALSE(Get("third").in_memory);
  EXPECT_EQ(Get("third").tokens, 20);
}

}  // namespace
}  // namespace goldfinch
