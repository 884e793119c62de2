// Contexts by name, with a whole coordinator and real workers: what goes on from a context has the logits and the
// tokens of a request that reads everything, bit for bit.
#include <cstdint>
#include <future>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "coordinator/keeper/context_directory.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/cluster/local_cluster.h"
#include "tests/parity/golden_case.h"

namespace goldfinch {
namespace {

using Ids = std::vector<int32_t>;

Ids operator+(Ids text, const Ids& more) {
  text.insert(text.end(), more.begin(), more.end());
  return text;
}

void WithoutCache(Request* request) { request->cache = false; }

// (golden case, stages)
class NamedContextsTest : public ::testing::TestWithParam<std::pair<std::string, int>> {
 protected:
  NamedContextsTest() : golden_(ReadGoldenCase(GetParam().first)), cluster_(golden_.checkpoint->path(), stages()) {
    cluster_.AwaitReady();
  }
  static int stages() { return GetParam().second; }

  // What the directory answers.
  template <typename Query>
  absl::StatusOr<NamedContext> Ask(void (ContextDirectory::*ask)(const std::string&, Query,
                                                                 ContextDirectory::Answer<NamedContext>),
                                   Query query) {
    std::promise<absl::StatusOr<NamedContext>> answer;
    (cluster_.coordinator().*ask)("", std::move(query),
                                  [&](absl::StatusOr<NamedContext> context) { answer.set_value(std::move(context)); });
    return answer.get_future().get();
  }
  NamedContext Get(const std::string& name) {
    const auto context =
        Ask<GetContextQuery>(&ContextDirectory::GetContext, {.name = name, .ids_begin = 0, .ids_max = 10'000});
    EXPECT_TRUE(context.ok()) << context.status();
    return context.value_or(NamedContext());
  }
  absl::Status Delete(const std::string& name) {
    std::promise<absl::Status> answer;
    cluster_.coordinator().DeleteContext(
        "", {.name = name}, [&](const absl::StatusOr<std::string>& deleted) { answer.set_value(deleted.status()); });
    return answer.get_future().get();
  }

  // A request over the context has the logits of one that reads `text` and its own tokens.
  void ExpectLogits(const std::string& context, const Ids& text, int64_t cached_tokens) {
    const Ids own = {9, 2, 5};
    const auto cold = cluster_.Score(text + own, {{7, 8, 9}}, /*score_prompt=*/true, WithoutCache);
    const auto warm =
        cluster_.Score(own, {{7, 8, 9}}, /*score_prompt=*/true, [&](Request* request) { request->context = context; });
    ASSERT_TRUE(cold->Wait().ok()) << cold->Wait();
    ASSERT_TRUE(warm->Wait().ok()) << warm->Wait();
    EXPECT_EQ(warm->usage().cached_tokens, cached_tokens);
    EXPECT_EQ(warm->usage().prompt_tokens, static_cast<int64_t>(text.size() + own.size()));
    EXPECT_EQ(warm->logits(0), cold->logits(0));
    ASSERT_EQ(warm->scores(-1).size(), 2u) << "of the prompt's own tokens, from the second one on";
    const auto& all = cold->scores(-1);
    for (size_t i = 0; i < 2; ++i) {
      EXPECT_EQ(warm->scores(-1)[i].logprob, all[all.size() - 2 + i].logprob);
    }
  }

  const GoldenCase golden_;
  LocalCluster cluster_;
};

TEST_P(NamedContextsTest, WhatGoesOnFromAContextIsExact) {
  const Ids& document = golden_.tokens;
  const auto create = cluster_.Generate(document, 0, [](Request* request) {
    request->keep_as = Request::KeepAs{.name = "doc"};
    request->breakpoints = {65};
  });
  ASSERT_TRUE(create->Wait().ok()) << create->Wait();
  const auto size = static_cast<int64_t>(document.size());
  const NamedContext context = Get("doc");
  EXPECT_EQ(context.tokens, size);
  EXPECT_EQ(context.ids, document);
  EXPECT_TRUE(context.in_memory);
  EXPECT_GT(context.bytes, 0);
  ExpectLogits("doc", document, size);

  // At a snapshot and between two.
  for (const int64_t at : {int64_t{65}, int64_t{100}}) {
    SCOPED_TRACE(at);
    const std::string name = absl::StrCat("part", at);
    ForkContextQuery fork;
    fork.context = "doc";
    fork.context_tokens = at;
    fork.keep_as.name = name;
    const auto forked = Ask<ForkContextQuery>(&ContextDirectory::ForkContext, std::move(fork));
    ASSERT_TRUE(forked.ok()) << forked.status();
    const Ids part(document.begin(), document.begin() + at);
    ExpectLogits(name, part, 65);
    ExpectLogits(name, part, at);
    EXPECT_EQ(Get(name).ids, part);
  }
  for (const std::string name : {"doc", "part65", "part100"}) EXPECT_TRUE(Delete(name).ok());
  cluster_.ExpectNothingHeld();
}

TEST_P(NamedContextsTest, AConversationGoesOnUnderOneName) {
  Ids text(golden_.tokens.begin(), golden_.tokens.begin() + 40);
  const auto turn = [&](Request* request) {
    request->keep_as = Request::KeepAs{.name = "chat"};
    request->generate->sampling.banned_tokens = {0};
    request->generate->sampling.seed = 7;
  };
  const auto first = cluster_.Generate(text, 6, turn);
  ASSERT_TRUE(first->Wait().ok()) << first->Wait();
  text = text + first->tokens();
  EXPECT_EQ(Get("chat").ids, text) << "with the token that ended it";
  const uint64_t etag = Get("chat").etag;
  for (int i = 0; i < 3; ++i) {
    const Ids question = {static_cast<int32_t>(20 + i), 3};
    const auto cold = cluster_.Generate(text + question, 6, [&](Request* request) {
      turn(request);
      request->keep_as.reset();
      request->cache = false;
    });
    const auto warm = cluster_.Generate(question, 6, [&](Request* request) {
      turn(request);
      request->context = "chat";
    });
    ASSERT_TRUE(cold->Wait().ok()) << cold->Wait();
    ASSERT_TRUE(warm->Wait().ok()) << warm->Wait();
    EXPECT_EQ(warm->tokens(), cold->tokens());
    EXPECT_EQ(warm->usage().cached_tokens, static_cast<int64_t>(text.size()));
    text = text + question + warm->tokens();
    EXPECT_EQ(Get("chat").ids, text);
    EXPECT_NE(Get("chat").etag, etag);
  }
  // The name is taken, and what it stood for at first is not there any more.
  const auto taken = cluster_.Generate({1, 2}, 1, turn);
  EXPECT_TRUE(absl::IsAlreadyExists(taken->Wait())) << taken->Wait();
  const auto late = cluster_.Generate({1, 2}, 1, [&](Request* request) {
    turn(request);
    request->keep_as->etag = etag;
  });
  EXPECT_TRUE(absl::IsAborted(late->Wait())) << late->Wait();
  EXPECT_TRUE(Delete("chat").ok());
  EXPECT_TRUE(absl::IsNotFound(Delete("chat")));
  cluster_.ExpectNothingHeld();
}

INSTANTIATE_TEST_SUITE_P(Models, NamedContextsTest,
                         testing::Values(std::pair<std::string, int>("goldfinch", 1),
                                         std::pair<std::string, int>("goldfinch", 3),
                                         std::pair<std::string, int>("finch", 2)),
                         [](const auto& info) { return absl::StrCat(info.param.first, "_", info.param.second); });

}  // namespace
}  // namespace goldfinch
