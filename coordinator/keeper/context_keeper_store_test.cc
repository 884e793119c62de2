// What was kept comes back from a store, and goes there.
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "coordinator/keeper/context_keeper_store_test_util.h"
#include "gtest/gtest.h"

namespace goldfinch {
namespace {

TEST(ContextKeeperStoreTest, WhatWasKeptIsThereAfterARestart) {
  FakeStore store;
  {
    StoreKeeping keeping(&store);
    keeping.Up(0);
    keeping.cluster.Generate(Prompt(3000), 1, NewClient());
    keeping.cluster.RunAll();
    keeping.ExpectNothingLeft();
    EXPECT_EQ(store.files.size(), 1U);
  }
  StoreKeeping keeping(&store);
  keeping.Up(0);
  const auto client = NewClient();
  keeping.cluster.Generate(Prompt(3000, {7, 8}), 3, client);
  keeping.cluster.RunAll();
  EXPECT_EQ(client->tokens[0], FakeAnswer(Prompt(3000, {7, 8}), 0, 3));
  EXPECT_EQ(client->usage.cached_tokens, 3000);
  EXPECT_EQ(keeping.brings, 1);
  keeping.ExpectNothingLeft();
}

TEST(ContextKeeperStoreTest, ALostGroupCostsAReload) {
  FakeStore store;
  StoreKeeping keeping(&store, 1, 1 << 30, {}, {.first_tokens = 1000, .cost_tokens = 20});
  keeping.Up(0);
  keeping.cluster.step_seconds = 1;
  const auto client = NewClient();
  const std::vector<int32_t> prompt = Prompt(20'000);
  keeping.cluster.Generate(prompt, 40, client);
  while (client->tokens[0].size() < 10) keeping.cluster.RunUntil(keeping.cluster.now + 1);
  EXPECT_GE(store.files.size(), 6U) << "growing distances and the end";
  keeping.Lose(0);
  keeping.Up(0);
  keeping.cluster.RunAll();
  EXPECT_EQ(client->tokens[0], FakeAnswer(prompt, 0, 40));
  EXPECT_EQ(client->usage.recoveries, 1);
  EXPECT_GT(client->usage.reread_tokens, 0);
  EXPECT_LT(client->usage.reread_tokens, 60);
  EXPECT_LT(keeping.cluster.groups.at(0)->tokens_run(), 60) << "what it had generated, and the rest";
  keeping.ExpectNothingLeft();
}

TEST(ContextKeeperStoreTest, ALongAnswerIsNotGeneratedAgain) {
  FakeStore store;
  StoreKeeping keeping(&store, 1, 1 << 30, {}, {.first_tokens = 500, .cost_tokens = 20});
  keeping.Up(0);
  const auto client = NewClient();
  const std::vector<int32_t> prompt = Prompt(100);
  keeping.cluster.Generate(prompt, 1200, client);
  while (client->tokens[0].size() < 1000) keeping.cluster.RunUntil(keeping.cluster.now + 1);
  keeping.Lose(0);
  keeping.Up(0);
  keeping.cluster.RunAll();
  EXPECT_EQ(client->tokens[0], FakeAnswer(prompt, 0, 1200));
  EXPECT_EQ(client->usage.recoveries, 1);
  EXPECT_LT(client->usage.reread_tokens, 110) << "it was saved at 1,000, and lost at 1,100";
  keeping.ExpectNothingLeft();
}

TEST(ContextKeeperStoreTest, ThoseWhoWaitForTheSameShareItsMoves) {
  FakeStore store;
  {
    StoreKeeping keeping(&store);
    keeping.Up(0);
    keeping.cluster.Generate(Prompt(3000), 1, NewClient());
    keeping.cluster.RunAll();
  }
  StoreKeeping keeping(&store);
  keeping.move_seconds = [] { return 3.0; };
  keeping.Up(0);
  std::vector<std::shared_ptr<FakeClient>> clients;
  for (int32_t i = 0; i < 5; ++i) {
    clients.push_back(NewClient());
    keeping.cluster.Generate(Prompt(3000, {i + 1}), 1, clients.back());
  }
  keeping.cluster.RunAll();
  for (const auto& client : clients) EXPECT_EQ(client->usage.cached_tokens, 3000);
  EXPECT_EQ(keeping.brings, 1);
  keeping.ExpectNothingLeft();
}

TEST(ContextKeeperStoreTest, NoFailureOfTheStoreFailsARequest) {
  FakeStore store;
  {
    StoreKeeping keeping(&store);
    keeping.Up(0);
    keeping.cluster.Generate(Prompt(3000), 1, NewClient());
    keeping.cluster.RunAll();
  }
  const FakeStore before = store;
  for (const absl::Status& status :
       {absl::DataLossError("damaged"), absl::NotFoundError("gone"), absl::ResourceExhaustedError("a shelf is full"),
        absl::PermissionDeniedError("not yours"), absl::DeadlineExceededError("stuck")}) {
    SCOPED_TRACE(status.ToString());
    store = before;
    StoreKeeping keeping(&store);
    keeping.fails = [&](bool) { return status; };
    keeping.Up(0);
    const auto client = NewClient();
    keeping.cluster.Generate(Prompt(3000, {7}), 5, client);
    keeping.cluster.RunAll();
    EXPECT_EQ(*client->status, absl::OkStatus());
    EXPECT_EQ(client->tokens[0], FakeAnswer(Prompt(3000, {7}), 0, 5));
    EXPECT_EQ(client->usage.cached_tokens, 0);
    keeping.fails = [](bool) { return absl::OkStatus(); };
    keeping.ExpectNothingLeft();
  }
}

TEST(ContextKeeperStoreTest, NobodyWaitsForEver) {
  FakeStore store;
  {
    StoreKeeping keeping(&store);
    keeping.Up(0);
    keeping.cluster.Generate(Prompt(3000), 1, NewClient());
    keeping.cluster.RunAll();
  }
  StoreKeeping keeping(&store, 1, 1 << 30, {.wait_seconds_max = 4});
  keeping.move_seconds = [] { return 1000.0; };
  keeping.Up(0);
  const auto client = NewClient();
  keeping.cluster.Generate(Prompt(3000, {7}), 1, client);
  keeping.cluster.RunAll();
  EXPECT_EQ(*client->status, absl::OkStatus());
  EXPECT_EQ(client->usage.cached_tokens, 0);
  EXPECT_GE(client->usage.queue_seconds, 3);
}

TEST(ContextKeeperStoreTest, AStoreInMemoryIsForLongTexts) {
  FakeStore store;
  StoreKeeping keeping(&store, 1, 1 << 30, {.durable = false, .protect_tokens = 2000});
  keeping.Up(0);
  keeping.cluster.Generate(Prompt(1500), 1, NewClient());
  keeping.cluster.RunAll();
  EXPECT_EQ(keeping.saves, 0);
  keeping.cluster.Generate(FakePrompt(2500, 3), 1, NewClient());
  keeping.cluster.RunAll();
  EXPECT_EQ(keeping.saves, 1);
  EXPECT_EQ(keeping.keeper.store()->protected_bytes(), store.bytes());
}

TEST(ContextKeeperStoreTest, AfterAnErrorNothingIsSavedForAWhile) {
  FakeStore store;
  StoreKeeping keeping(&store, 1, 1 << 30, {.pause_seconds = 100});
  keeping.fails = [](bool) { return absl::ResourceExhaustedError("the disk is full"); };
  keeping.Up(0);
  for (int32_t i = 0; i < 5; ++i) {
    keeping.cluster.Generate(FakePrompt(1000, 10 * i), 1, NewClient());
    keeping.cluster.RunAll();
  }
  EXPECT_EQ(keeping.saves, 1);
  keeping.cluster.now += 101;
  keeping.fails = [](bool) { return absl::OkStatus(); };
  keeping.ExpectNothingLeft();
  EXPECT_EQ(keeping.saves, 5) << "but for the one that failed";
}

TEST(ContextKeeperStoreTest, ANameIsWrittenDownWhenItsTextIsInTheStore) {
  FakeStore store;
  {
    StoreKeeping keeping(&store);
    keeping.move_seconds = [] { return 5.0; };
    keeping.Up(0);
    Request request;
    request.prompt = Prompt(1000);
    request.keep_as = Request::KeepAs{.name = "old"};
    request.generate.emplace().max_tokens = 0;
    keeping.Ask(std::move(request), NewClient());
    keeping.cluster.RunUntil(3);
    ASSERT_TRUE(keeping.keeper.RenameContext("", {.name = "old", .new_name = "new"}).ok());  // while it is saved
    keeping.cluster.RunUntil(8);
    EXPECT_TRUE(store.names.empty());
    ASSERT_TRUE(keeping.keeper.RenameContext("", {.name = "new", .new_name = "last"}).ok());  // while it is written
    keeping.ExpectNothingLeft();
    ASSERT_EQ(store.names.size(), 1U);
    EXPECT_EQ(store.names.begin()->second.name, "last");
  }
  // Who wants nothing but the context begins with it all the same.
  StoreKeeping keeping(&store);
  keeping.Up(0);
  Request request;
  request.context = "last";
  request.prompt = {7};
  request.cache = false;
  request.generate.emplace().max_tokens = 3;
  const auto client = NewClient();
  keeping.Ask(std::move(request), client);
  keeping.cluster.RunAll();
  EXPECT_EQ(client->tokens[0], FakeAnswer(Prompt(1000, {7}), 0, 3));
  EXPECT_EQ(client->usage.cached_tokens, 1000);
  EXPECT_EQ(keeping.brings, 1);
  ASSERT_TRUE(keeping.keeper.DeleteContext("", {.name = "last"}).ok());
  keeping.ExpectNothingLeft();
  EXPECT_TRUE(store.names.empty());
  EXPECT_TRUE(store.files.empty());
}

TEST(ContextKeeperStoreTest, ANameThatCannotBeWrittenDownIsTriedAgain) {
  FakeStore store;
  StoreKeeping keeping(&store, 1, 1 << 30, {.pause_seconds = 10});
  int failures = 0;
  keeping.name_fails = [&] { return ++failures < 3 ? absl::ResourceExhaustedError("full") : absl::OkStatus(); };
  keeping.Up(0);
  Request request;
  request.prompt = Prompt(1000);
  request.keep_as = Request::KeepAs{.name = "doc"};
  request.generate.emplace().max_tokens = 0;
  keeping.Ask(std::move(request), NewClient());
  keeping.cluster.RunUntil(8);
  EXPECT_EQ(failures, 1) << "not at every event";
  keeping.ExpectNothingLeft();
  EXPECT_EQ(failures, 3);
  EXPECT_EQ(store.names.size(), 1U);
}

TEST(ContextKeeperStoreTest, WhatCannotBeReadForTheMomentIsLeftAlone) {
  FakeStore store;
  const auto keep = [](StoreKeeping& keeping, const std::vector<int32_t>& ids, const std::string& name) {
    Request request;
    request.prompt = ids;
    request.keep_as = Request::KeepAs{.name = name};
    request.generate.emplace().max_tokens = 0;
    keeping.Ask(std::move(request), NewClient());
    keeping.cluster.RunAll();
  };
  {
    StoreKeeping keeping(&store);
    keeping.Up(0);
    keep(keeping, Prompt(1000), "document");
    keep(keeping, Prompt(1000, {7, 8, 9}), "chat");
    keep(keeping, FakePrompt(500, 90), "other");
    keeping.ExpectNothingLeft();
    ASSERT_EQ(store.files.size(), 3U);
    ASSERT_EQ(store.names.size(), 3U);
  }
  for (const auto& [key, file] : store.files) {
    if (file.segment.ids == Prompt(1000)) store.unread = {key};
  }
  {
    StoreKeeping keeping(&store);
    keeping.Up(0);
    EXPECT_EQ(keeping.Contexts().size(), 1U);
    keeping.ExpectNothingLeft();
    EXPECT_EQ(store.files.size(), 3U);
    EXPECT_EQ(store.names.size(), 3U);
    keep(keeping, FakePrompt(300, 120), "chat");  // takes the place of the one that nobody can see
    keeping.ExpectNothingLeft();
    EXPECT_EQ(store.names.size(), 3U);
  }
  store.unread.clear();
  StoreKeeping keeping(&store);
  std::map<std::string, NamedContext> contexts = keeping.Contexts();
  EXPECT_EQ(contexts.size(), 3U);
  EXPECT_EQ(contexts["document"].tokens, 1000);
  EXPECT_EQ(contexts["chat"].tokens, 300);
}

}  // namespace
}  // namespace goldfinch
