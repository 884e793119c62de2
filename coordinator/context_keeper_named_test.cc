// Contexts by name: requests over them and to be kept as them, with a scheduler and workers that check every Step.
#include <algorithm>
#include <functional>
#include <map>
#include <memory>
#include <numeric>
#include <optional>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "coordinator/client.h"
#include "coordinator/context_directory.h"
#include "coordinator/context_keeper.h"
#include "coordinator/scheduler_test_util.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace goldfinch {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using Ids = std::vector<int32_t>;

constexpr int64_t kTokensMax = 5000;
constexpr double kUnixOffset = 1e9;

// What a client of contexts gets, too.
struct ContextClient : FakeClient {
  void OnContext(int64_t tokens) override { context_tokens = tokens; }
  void OnKept(const NamedContext& context) override { kept = context; }

  int64_t context_tokens = 0;
  std::optional<NamedContext> kept;
};

Ids operator+(Ids text, const Ids& more) {
  text.insert(text.end(), more.begin(), more.end());
  return text;
}

// A group with a shelf of so many bytes; a token has 10, a snapshot 100.
class ContextKeeperNamedTest : public testing::Test {
 protected:
  explicit ContextKeeperNamedTest(int64_t cost_tokens = 1)
      : keeper_({.cost_tokens = cost_tokens}, kUnixOffset, /*first_etag=*/1000), cluster_(100, 1) {
    keeper_.SetModel({"f", "bytes", "bf16", "cpu-f32"},
                     {.per_token = 20, .snapshot = 200, .transformer_per_token = 3000});
    keeper_.SetNameListener([this](const std::string& space, const std::string& name, const ContextInfo* context) {
      if (context == nullptr) {
        EXPECT_EQ(heard_.erase({space, name}), 1u) << name;
      } else {
        heard_[{space, name}] = context->tokens;
      }
    });
    cluster_.scheduler.SetKeeper(&keeper_);
    cluster_.planned = [this](int replica, const StepPlan& plan) { Planned(replica, plan.id); };
    cluster_.answered = [this](int replica, uint64_t step) { keeper_.StepAnswered(replica, step, {}, cluster_.now); };
  }

  void Up(int64_t shelf_bytes = 1 << 30) {
    GroupCapacity capacity = Roomy();
    capacity.max_step_tokens = 1024;
    capacity.row_seconds = 0.01;
    keeper_.GroupReady(0, {shelf_bytes, /*bytes_per_token=*/10, /*snapshot_bytes=*/100});
    cluster_.Up(0, capacity);
  }
  void Lose() {
    keeper_.GroupEnded(0);
    cluster_.Lose(0);
  }

  void Planned(int replica, uint64_t step) {
    const ShelfDrops drops = keeper_.TakeDrops(replica);
    for (const uint64_t segment : drops.snapshots) cluster_.groups.at(replica)->DropSnapshot(segment);
    for (const uint64_t segment : drops.segments) cluster_.groups.at(replica)->DropSegment(segment);
    keeper_.StepPlanned(replica, step);
  }

  static std::shared_ptr<const Client> Key(const std::string& name_space) {
    return std::make_shared<Client>(Client{name_space, {}, name_space});
  }

  // Resolves and submits as the coordinator does.
  std::shared_ptr<ContextClient> Ask(Request request) {
    auto client = std::make_shared<ContextClient>();
    auto sink = keeper_.Resolve(&request, client, kTokensMax, cluster_.now);
    if (!sink.ok()) {
      client->OnDone(sink.status(), {});
      return client;
    }
    prompt_ = request.prompt;
    breakpoints_ = request.breakpoints;
    max_tokens_ = request.generate ? request.generate->max_tokens : 0;
    cluster_.scheduler.Submit(++cluster_.last_number, std::move(request), *std::move(sink), cluster_.now);
    return client;
  }
  std::shared_ptr<ContextClient> Generate(const std::string& context, const Ids& prompt, int64_t max_tokens,
                                          const std::function<void(Request*)>& edit = {}) {
    Request request;
    request.context = context;
    request.prompt = prompt;
    request.generate.emplace().max_tokens = max_tokens;
    if (edit) edit(&request);
    auto client = Ask(std::move(request));
    cluster_.RunAll();
    return client;
  }

  // Has a text read and kept.
  absl::Status Keep(const Ids& ids, const Request::KeepAs& keep_as, const std::string& name_space = "") {
    cluster_.now += 1;
    const auto client = Generate("", ids, 0, [&](Request* request) {
      request->client = Key(name_space);
      request->keep_as = keep_as;
    });
    EXPECT_EQ(client->kept.has_value(), client->status->ok());
    return *client->status;
  }
  // Saves a text in a Step that no worker gets.
  uint64_t Save(const Request& request, const Ids& ids) {
    cluster_.now += 1;
    keeper_.Save(0, request, ids, {.logits = true, .end = true}, cluster_.now);
    keeper_.TakeDrops(0);
    keeper_.StepPlanned(0, ++step_);
    return step_;
  }
  std::vector<std::string> Names(const std::string& name_space = "") {
    std::vector<std::string> names;
    const auto page = keeper_.ListContexts(name_space, {.count = 1000});
    for (const NamedContext& one : page->contexts) names.push_back(one.name);
    return names;
  }
  NamedContext Get(const std::string& name, const std::string& name_space = "") {
    const auto context = keeper_.GetContext(name_space, {.name = name});
    EXPECT_TRUE(context.ok()) << context.status();
    return context.value_or(NamedContext());
  }

  ContextKeeper keeper_;
  FakeCluster cluster_;
  uint64_t step_ = 1'000'000;                                     // of those that the test makes up
  std::map<std::pair<std::string, std::string>, int64_t> heard_;  // what the listener has been told: tokens
  // What became of the last request.
  Ids prompt_;
  std::vector<int64_t> breakpoints_;
  int64_t max_tokens_ = 0;
};

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
  EXPECT_TRUE(heard_.empty());
}

// ---- keep_as

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
  Save(mine, mine.prompt);
  ASSERT_TRUE(keeper_.Keep(0, mine, mine.prompt, cluster_.now).ok());
  (*resolved)->OnDone(absl::OkStatus(), {});
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

// ---- The directory

TEST_F(ContextKeeperNamedTest, ForksShareWhatIsKept) {
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
  EXPECT_TRUE(heard_.empty());
  ExpectNothingLeft(cluster_);
}

TEST_F(ContextKeeperNamedTest, GetBringsTheTokensThatAreAskedFor) {
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

TEST_F(ContextKeeperNamedTest, PagesEndEarlyWhereTheyWouldTakeLong) {
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

TEST_F(ContextKeeperNamedTest, KeysSeeOnlyTheirOwn) {
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

TEST_F(ContextKeeperNamedTest, WhatIsNotUsedExpires) {
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
  EXPECT_EQ(heard_.size(), 2u);
}

TEST_F(ContextKeeperNamedTest, AnotherModelHasNoneOfThem) {
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

TEST_F(ContextKeeperNamedTest, WithoutAModelThereIsNothing) {
  ContextKeeper keeper;
  EXPECT_TRUE(absl::IsUnavailable(keeper.GetContext("", {.name = "doc"}).status()));
  EXPECT_TRUE(absl::IsUnavailable(keeper.ListContexts("", {.count = 1}).status()));
  keeper.Expire(1);
}

// Whatever happens, the listener has heard of every change, and every name stands for the text that it was given.
TEST_F(ContextKeeperNamedTest, EveryChangeIsHeard) {
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
      for (auto text = texts.begin(); text != texts.end();) {
        text = heard_.contains({"", text->first}) ? std::next(text) : texts.erase(text);
      }
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
      ASSERT_EQ(heard_.size(), texts.size());
      for (const auto& [one, text] : texts) {
        EXPECT_EQ(keeper_.GetContext("", {.name = one, .ids_max = 1000})->ids, text);
        EXPECT_EQ((heard_.at({"", one})), static_cast<int64_t>(text.size()));
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
