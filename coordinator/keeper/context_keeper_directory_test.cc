// What contexts are under their names: forks, pages, owners, expiry.
#include <algorithm>
#include <cstdint>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "coordinator/keeper/context_keeper_test_util.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace goldfinch {
namespace {

using testing::ElementsAre;

using ContextKeeperDirectoryTest = ContextKeeperNamedTest;

TEST_F(ContextKeeperDirectoryTest, ForksShareWhatIsKept) {
  Up();
  Generate("", FakePrompt(500), 0, [](Request* request) { request->breakpoints = {300}; });
  ASSERT_TRUE(Keep(FakePrompt(500), {.name = "doc"}).ok());
  const int64_t bytes = keeper_.bytes();
  const auto whole = keeper_.ForkContext("", {.context = "doc", .keep_as = {.name = "copy"}}, cluster_.now);
  ASSERT_TRUE(whole.ok()) << whole.status();
  EXPECT_EQ(whole->tokens, 500);
  EXPECT_EQ(whole->shared_bytes, whole->bytes);
  EXPECT_THAT(whole->snapshots, ElementsAre(300, 500));
  EXPECT_EQ(whole->transformer_bytes, 500 * 3000);
  const auto at_snapshot =
      keeper_.ForkContext("", {.context = "doc", .context_tokens = 300, .keep_as = {.name = "part"}}, cluster_.now);
  ASSERT_TRUE(at_snapshot.ok());
  EXPECT_EQ(at_snapshot->bytes, 300 * 20 + 200);
  const auto anywhere =
      keeper_.ForkContext("", {.context = "doc", .context_tokens = 421, .keep_as = {.name = "cut"}}, cluster_.now);
  ASSERT_TRUE(anywhere.ok());
  EXPECT_EQ(anywhere->tokens, 421);
  EXPECT_TRUE(anywhere->in_memory);
  EXPECT_EQ(anywhere->bytes, 300 * 20 + 200) << "the rest is read by the first request over it";
  EXPECT_EQ(keeper_.bytes(), bytes);
  const auto first = Generate("cut", {7}, 1), second = Generate("cut", {8}, 1);
  EXPECT_EQ(first->tokens[0], FakeAnswer(FakePrompt(421) + Ids{7}, 0, 1));
  EXPECT_EQ(first->usage.cached_tokens, 300);
  EXPECT_EQ(second->usage.cached_tokens, 421);
  EXPECT_EQ(Get("cut").bytes, 421 * 20 + 2 * 200);

  EXPECT_TRUE(absl::IsAlreadyExists(
      keeper_.ForkContext("", {.context = "doc", .keep_as = {.name = "cut"}}, cluster_.now).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(
      keeper_.ForkContext("", {.context = "doc", .context_tokens = 0, .keep_as = {.name = "x"}}, cluster_.now)
          .status()));
  EXPECT_TRUE(absl::IsAborted(
      keeper_.ForkContext("", {.context = "doc", .keep_as = {.name = "cut", .etag = 1}}, cluster_.now).status()));
  for (const std::string name : {"doc", "copy", "part", "cut"}) {
    EXPECT_TRUE(keeper_.DeleteContext("", {.name = name}).ok());
  }
  EXPECT_TRUE(Names().empty());
  ExpectNothingLeft(cluster_);
}

TEST_F(ContextKeeperDirectoryTest, GetBringsTheTokensThatAreAskedFor) {
  Up();
  ASSERT_TRUE(Keep({5, 6, 7, 8, 9}, {.name = "doc"}).ok());
  const auto ids = [&](int64_t begin, int64_t max) {
    return keeper_.GetContext("", {.name = "doc", .ids_begin = begin, .ids_max = max})->ids;
  };
  EXPECT_TRUE(ids(0, 0).empty());
  EXPECT_THAT(ids(1, 2), ElementsAre(6, 7));
  EXPECT_THAT(ids(3, 100), ElementsAre(8, 9));
  EXPECT_TRUE(ids(5, 1).empty());
  EXPECT_TRUE(ids(INT64_MAX, 1).empty());
}

TEST_F(ContextKeeperDirectoryTest, PagesEndEarlyWhereTheyWouldTakeLong) {
  Up();
  // One text in many segments, and many names for it.
  std::vector<int32_t> text;
  Request request;
  request.keep_as = Request::KeepAs{.name = "n0000"};
  for (int i = 0; i < 2000; ++i) {
    text.push_back(i % 100);
    keeper_.StepAnswered(0, Save(request, text), {}, cluster_.now);
  }
  ASSERT_TRUE(keeper_.Keep(0, request, text, cluster_.now).ok());
  for (int i = 1; i < 40; ++i) {
    const std::string name = "n" + std::string(i < 10 ? "000" : "00") + std::to_string(i);
    ASSERT_TRUE(keeper_.ForkContext("", {.context = "n0000", .keep_as = {.name = name}}, cluster_.now).ok());
  }
  std::vector<std::string> names;
  int pages = 0;
  for (std::string after; pages == 0 || !after.empty(); ++pages) {
    const auto page = keeper_.ListContexts("", {.after = after, .count = 1000});
    EXPECT_LE(page->contexts.size(), 17u);
    ASSERT_FALSE(page->contexts.empty());
    for (const NamedContext& one : page->contexts) names.push_back(one.name);
    after = page->next;
  }
  EXPECT_GT(pages, 1);
  EXPECT_EQ(names.size(), 40u);
  EXPECT_TRUE(std::is_sorted(names.begin(), names.end()));
  EXPECT_EQ(keeper_.ListContexts("", {.count = 3})->contexts.size(), 3u);
}

TEST_F(ContextKeeperDirectoryTest, KeysSeeOnlyTheirOwn) {
  Up();
  Request request;
  ASSERT_TRUE(Keep(FakePrompt(100), {.name = "doc"}, "alice").ok());
  ASSERT_TRUE(Keep(FakePrompt(50), {.name = "doc"}, "bob").ok());
  EXPECT_EQ(Get("doc", "alice").tokens, 100);
  EXPECT_EQ(Get("doc", "bob").tokens, 50);
  EXPECT_EQ(Get("doc", "alice").shared_bytes, 0);
  // To others it is as if there was nothing: the same answers as for a name that nobody has.
  const auto as = [](const std::string& key) { return [key](Request* request) { request->client = Key(key); }; };
  for (const std::string name : {"doc", "none"}) {
    const absl::Status none = absl::NotFoundError("there is no context \"" + name + "\"");
    EXPECT_EQ(keeper_.GetContext("eve", {.name = name}).status(), none);
    EXPECT_EQ(keeper_.ForkContext("eve", {.context = name, .keep_as = {.name = "x"}}, 0).status(), none);
    EXPECT_EQ(keeper_.RenameContext("eve", {.name = name, .new_name = "x"}).status(), none);
    EXPECT_EQ(keeper_.PinContext("eve", {.name = name, .pinned = true}).status(), none);
    EXPECT_EQ(keeper_.DeleteContext("eve", {.name = name}).status(), none);
    EXPECT_EQ(*Generate(name, {1}, 1, as("eve"))->status, none);
  }
  EXPECT_TRUE(Names("eve").empty());
  EXPECT_TRUE(Keep(FakePrompt(10), {.name = "doc"}, "eve").ok());
  EXPECT_THAT(Names("eve"), ElementsAre("doc"));
}

TEST_F(ContextKeeperDirectoryTest, WhatIsNotUsedExpires) {
  Up();
  ASSERT_TRUE(Keep(FakePrompt(100), {.name = "left", .expire_after_seconds = 10}).ok());
  ASSERT_TRUE(Keep(FakePrompt(100, 50), {.name = "used", .expire_after_seconds = 10}).ok());
  ASSERT_TRUE(Keep(FakePrompt(100, 90), {.name = "pinned", .expire_after_seconds = 10}).ok());
  ASSERT_TRUE(keeper_.PinContext("", {.name = "pinned", .pinned = true}).ok());
  cluster_.now += 8;
  Generate("used", {1}, 1);
  cluster_.now += 3;
  keeper_.Expire(cluster_.now);
  EXPECT_THAT(Names(), ElementsAre("pinned", "used"));
}

TEST_F(ContextKeeperDirectoryTest, AnotherModelHasNoneOfThem) {
  Up();
  ASSERT_TRUE(Keep(FakePrompt(100), {.name = "doc"}).ok());
  const uint64_t etag = Get("doc").etag;
  Request request;
  request.context = "doc";
  request.generate.emplace().max_tokens = 0;
  const auto client = std::make_shared<ContextClient>();
  const auto sink = keeper_.Resolve(&request, client, kTokensMax, cluster_.now);
  ASSERT_TRUE(sink.ok());
  Lose();
  keeper_.SetModel({"g", "bytes", "bf16", "cpu-f32"});
  (*sink)->OnDone(absl::CancelledError(""), {});  // releases nothing of the new one
  EXPECT_TRUE(Names().empty());
  Up();
  ASSERT_TRUE(Keep(FakePrompt(100), {.name = "doc"}).ok());
  EXPECT_GT(Get("doc").etag, etag);
}

TEST_F(ContextKeeperDirectoryTest, WithoutAModelThereIsNothing) {
  ContextKeeper keeper;
  EXPECT_TRUE(absl::IsUnavailable(keeper.GetContext("", {.name = "doc"}).status()));
  EXPECT_TRUE(absl::IsUnavailable(keeper.ListContexts("", {.count = 1}).status()));
  keeper.Expire(1);
}

TEST_F(ContextKeeperDirectoryTest, WhateverHappensEveryNameStandsForItsText) {
  for (uint32_t seed = 0; seed < 20; ++seed) {
    SCOPED_TRACE(seed);
    Up(20'000);
    std::mt19937 random(seed);
    const auto below = [&](int limit) { return static_cast<int>(random() % limit); };
    const auto name = [&] { return std::string(1, static_cast<char>('a' + below(6))); };
    std::map<std::string, Ids> texts;
    for (int i = 0; i < 200; ++i) {
      cluster_.now += 0.5 * below(4);
      keeper_.Expire(cluster_.now);
      const std::vector<std::string> names = Names();
      std::erase_if(texts, [&](const auto& text) {  // it has expired
        return std::find(names.begin(), names.end(), text.first) == names.end();
      });
      const std::string from = name(), to = name();
      switch (below(6)) {
        case 0: {
          const Ids ids = FakePrompt(1 + below(200), 1 + below(3));
          Request::KeepAs keep_as = {.name = to};
          if (below(2) == 0) keep_as.expire_after_seconds = 1 + below(20);
          if (Keep(ids, keep_as).ok()) texts[to] = ids;
          break;
        }
        case 1: {
          const auto forked = keeper_.ForkContext(
              "", {.context = from, .context_tokens = 1 + below(200), .keep_as = {.name = to}}, cluster_.now);
          if (forked.ok()) texts[to] = Ids(texts[from].begin(), texts[from].begin() + forked->tokens);
          break;
        }
        case 2:
          if (keeper_.RenameContext("", {.name = from, .new_name = to}).ok()) {
            texts[to] = texts[from];
            texts.erase(from);
          }
          break;
        case 3:
          if (keeper_.DeleteContext("", {.name = from}).ok()) texts.erase(from);
          break;
        case 4:
          (void)keeper_.PinContext("", {.name = from, .pinned = below(2) == 0});
          break;
        case 5: {
          const auto client = Generate(from, {1 + below(5)}, 2);
          EXPECT_EQ(client->status->ok(), texts.contains(from)) << *client->status;
          if (client->status->ok()) {
            EXPECT_EQ(client->tokens[0], FakeAnswer(prompt_, 0, 2));
          }
          break;
        }
      }
      ASSERT_EQ(Names().size(), texts.size());
      for (const auto& [one, text] : texts) {
        EXPECT_EQ(keeper_.GetContext("", {.name = one, .ids_max = 1000})->ids, text);
      }
      EXPECT_LE(keeper_.bytes(), 20'000);
    }
    for (const auto& [one, text] : texts) ASSERT_TRUE(keeper_.DeleteContext("", {.name = one}).ok());
    ExpectNothingLeft(cluster_);
    Lose();
    EXPECT_EQ(keeper_.bytes(), 0);
  }
}

}  // namespace
}  // namespace goldfinch
