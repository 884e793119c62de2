// Histories of contexts that begin with a tuned state, which is in the store and is brought to every group that needs
// it.
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "coordinator/keeper/context_keeper.h"
#include "coordinator/keeper/context_keeper_store_test_util.h"
#include "coordinator/scheduler/scheduler_test_util.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace goldfinch {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

SegmentKey PoetKey() {
  SegmentKey key{};
  key.fill(7);
  return key;
}

struct KeepingTuned : StoreKeeping {
  explicit KeepingTuned(FakeStore* store, int replicas = 1, StoreTierOptions options = {},
                        SnapshotOptions snapshots = {.cost_tokens = 1})
      : StoreKeeping(store, replicas, 1 << 30, options, snapshots) {
    cluster.planned = [this](int replica, const StepPlan& plan) {
      for (const StepPlan::NewSequence& opened : plan.open) {
        opened_with.emplace_back(opened.restore.begin(), opened.restore.end());
      }
      TakeDrops(replica);
      keeper.StepPlanned(replica, plan.id);
    };
  }

  // Imports it under this name.
  absl::Status Name(const std::string& name) {
    std::optional<absl::Status> status;
    keeper.KeepTuned("", PoetKey(), nullptr, {.name = name}, cluster.now,
                     [&](const absl::StatusOr<NamedContext>& named) { status = named.status(); });
    Service();
    EXPECT_TRUE(status.has_value());
    if (status->ok()) poet = keeper.tree()->FindTuned(PoetKey());
    return *status;
  }
  // A request over a context, which runs to its end.
  std::shared_ptr<FakeClient> AskOver(const std::string& context, const std::vector<int32_t>& prompt,
                                      const std::string& keep_as = "", int64_t max_tokens = 2) {
    Request request;
    request.context = context;
    request.prompt = prompt;
    request.generate.emplace().max_tokens = max_tokens;
    if (!keep_as.empty()) request.keep_as = {.name = keep_as};
    auto client = NewClient();
    Ask(std::move(request), client);
    cluster.RunAll();
    return client;
  }

  uint64_t poet = 0;
  std::vector<std::vector<uint64_t>> opened_with;
};

TEST(ContextKeeperTunedTest, ARequestBeginsWithTheStateAndThenWithItsText) {
  FakeStore store;
  KeepingTuned keeping(&store);
  ASSERT_TRUE(keeping.Name("poet").ok());
  keeping.Up(0);
  const std::vector<int32_t> prompt = Prompt(50);
  auto client = keeping.AskOver("poet", prompt);
  ASSERT_TRUE(client->status->ok()) << *client->status;
  EXPECT_EQ(keeping.brings, 1);
  EXPECT_EQ(client->usage.cached_tokens, 0);
  EXPECT_EQ(client->usage.prompt_tokens, 50);
  EXPECT_THAT(keeping.opened_with, ElementsAre(ElementsAre(keeping.poet)));

  // The same prompt without the state is another text, and reads all of it.
  keeping.opened_with.clear();
  client = NewClient();
  keeping.cluster.Generate(prompt, 2, client);
  keeping.cluster.RunAll();
  EXPECT_EQ(client->usage.cached_tokens, 0);
  EXPECT_THAT(keeping.opened_with, ElementsAre(IsEmpty()));

  // With it, what was read the last time is there.
  keeping.opened_with.clear();
  client = keeping.AskOver("poet", prompt);
  EXPECT_EQ(client->usage.cached_tokens, 50);
  ASSERT_EQ(keeping.opened_with.size(), 1u);
  ASSERT_EQ(keeping.opened_with[0].size(), 1u) << "which is all that it takes";
  EXPECT_EQ(keeping.keeper.tree()->Find(keeping.opened_with[0][0])->parent, keeping.poet);
  EXPECT_EQ(keeping.brings, 1);
  keeping.ExpectNothingLeft();
}

TEST(ContextKeeperTunedTest, AConversationAndItsForksGoOnFromIt) {
  FakeStore store;
  KeepingTuned keeping(&store);
  ASSERT_TRUE(keeping.Name("poet").ok());
  keeping.Up(0);
  auto client = keeping.AskOver("poet", Prompt(40), "poem", 3);
  ASSERT_TRUE(client->status->ok()) << *client->status;
  const std::vector<int32_t> answer = client->tokens[0];
  keeping.opened_with.clear();
  client = keeping.AskOver("poem", {1, 2, 3}, "poem", 3);
  ASSERT_TRUE(client->status->ok()) << *client->status;
  EXPECT_EQ(client->usage.prompt_tokens, 46);
  EXPECT_EQ(client->usage.cached_tokens, 43);
  const auto poem = keeping.keeper.GetContext("", {.name = "poem"});
  ASSERT_TRUE(poem.ok());
  EXPECT_EQ(poem->tokens, 49);
  EXPECT_EQ(keeping.keeper.tree()->TunedOf(keeping.keeper.tree()->Get("", "poem")->segment), keeping.poet);
  // A fork in the middle begins with the state, too.
  ASSERT_TRUE(
      keeping.keeper
          .ForkContext("", {.context = "poem", .context_tokens = 20, .keep_as = {.name = "half"}}, keeping.cluster.now)
          .ok());
  EXPECT_EQ(keeping.keeper.tree()->TunedOf(keeping.keeper.tree()->Get("", "half")->segment), keeping.poet);
  // The name may go; what began with it still does.
  ASSERT_TRUE(keeping.keeper.DeleteContext("", {.name = "poet"}).ok());
  client = keeping.AskOver("half", {9});
  ASSERT_TRUE(client->status->ok()) << *client->status;
  EXPECT_THAT(std::string(keeping.AskOver("poet", {9})->status->message()), HasSubstr("there is no context"));
  for (const char* name : {"poem", "half"}) ASSERT_TRUE(keeping.keeper.DeleteContext("", {.name = name}).ok());
  keeping.ExpectNothingLeft();
}

TEST(ContextKeeperTunedTest, NoRequestIsAnsweredWithoutIt) {
  FakeStore store;
  KeepingTuned keeping(&store);
  ASSERT_TRUE(keeping.Name("poet").ok());
  keeping.Up(0);
  EXPECT_TRUE(absl::IsInvalidArgument(*keeping.AskOver("poet", {})->status)) << "there is nothing to read";

  keeping.fails = [](bool) { return absl::UnavailableError("the worker is silent"); };
  auto client = keeping.AskOver("poet", Prompt(50));
  EXPECT_TRUE(absl::IsUnavailable(*client->status)) << *client->status;
  EXPECT_THAT(std::string(client->status->message()),
              HasSubstr("the tuned state that context \"poet\" begins with could not be brought"));
  EXPECT_THAT(keeping.opened_with, IsEmpty());
  keeping.fails = [](bool) { return absl::OkStatus(); };
  EXPECT_TRUE(keeping.AskOver("poet", Prompt(50))->status->ok());

  keeping.Lose(0);
  keeping.Up(0);
  keeping.fails = [](bool) { return absl::DataLossError("a block is damaged"); };
  EXPECT_TRUE(absl::IsUnavailable(*keeping.AskOver("poet", Prompt(70, {5}))->status))
      << "the text that was to be gone on from";
  client = keeping.AskOver("poet", Prompt(70, {5}));
  EXPECT_TRUE(absl::IsDataLoss(*client->status)) << *client->status;
  EXPECT_THAT(std::string(client->status->message()), HasSubstr("is lost: import it again"));
  keeping.fails = [](bool) { return absl::OkStatus(); };
  ASSERT_TRUE(keeping.Name("again").ok());
  for (const char* name : {"poet", "again"}) EXPECT_TRUE(keeping.AskOver(name, Prompt(70, {6}))->status->ok()) << name;
  keeping.ExpectNothingLeft();
}

TEST(ContextKeeperTunedTest, AnImportThatFailsLeavesNothing) {
  FakeStore store;
  KeepingTuned keeping(&store);
  keeping.Up(0);
  keeping.fails = [](bool) { return absl::ResourceExhaustedError("no space"); };
  EXPECT_TRUE(absl::IsResourceExhausted(keeping.Name("poet")));
  EXPECT_TRUE(keeping.Contexts().empty());
  EXPECT_EQ(keeping.keeper.tree()->FindTuned(PoetKey()), 0U);
  keeping.ExpectNothingLeft();
}

TEST(ContextKeeperTunedTest, WhatBeginsWithItIsNotExportedAsIfItDidNot) {
  FakeStore store;
  KeepingTuned keeping(&store);
  ASSERT_TRUE(keeping.Name("poet").ok());
  keeping.Up(0);
  ASSERT_TRUE(keeping.AskOver("poet", Prompt(50), "poem")->status->ok());
  keeping.ExpectNothingLeft();
  const auto open = [&](const std::string& name) {
    absl::StatusOr<ContextKeeper::Exported> opened = absl::UnknownError("no answer");
    keeping.keeper.OpenExport("", {.name = name}, keeping.cluster.now,
                              [&](absl::StatusOr<ContextKeeper::Exported> exported) { opened = std::move(exported); });
    return opened;
  };
  EXPECT_TRUE(absl::IsFailedPrecondition(open("poem").status())) << open("poem").status();
  const auto poet = open("poet");
  ASSERT_TRUE(poet.ok()) << poet.status();
  EXPECT_THAT(poet->chain, ElementsAre(PoetKey()));
  keeping.keeper.EndExport(poet->hold);
  keeping.ExpectNothingLeft();
}

TEST(ContextKeeperTunedTest, EachGroupIsGivenIt) {
  FakeStore store;
  KeepingTuned keeping(&store, /*replicas=*/2);
  ASSERT_TRUE(keeping.Name("poet").ok());
  keeping.Up(0);
  keeping.Up(1);
  std::vector<std::shared_ptr<FakeClient>> clients;
  for (int32_t i = 0; i < 40; ++i) {
    Request request;
    request.context = "poet";
    request.prompt = Prompt(100, {i});
    const int samples = 1 + i % 3;
    request.generate.emplace().max_tokens = 3;
    request.generate->samples = samples;
    clients.push_back(std::make_shared<FakeClient>(samples));
    ASSERT_NE(keeping.Ask(std::move(request), clients.back()), 0U);
  }
  // One of them is lost while they run, and comes back.
  keeping.cluster.RunUntil(keeping.cluster.now + 3);
  keeping.Lose(1);
  keeping.cluster.RunUntil(keeping.cluster.now + 3);
  keeping.Up(1);
  keeping.cluster.RunAll();
  for (const auto& client : clients) {
    ASSERT_TRUE(client->status.has_value());
    EXPECT_TRUE(client->status->ok()) << *client->status;
  }
  for (const std::vector<uint64_t>& chain : keeping.opened_with) EXPECT_FALSE(chain.empty());
  keeping.ExpectNothingLeft();
}

TEST(ContextKeeperTunedTest, ItIsThereAfterARestart) {
  FakeStore store;
  uint64_t saved = 0;
  {
    KeepingTuned keeping(&store);
    ASSERT_TRUE(keeping.Name("poet").ok());
    keeping.Up(0);
    ASSERT_TRUE(keeping.AskOver("poet", Prompt(50), "poem")->status->ok());
    keeping.ExpectNothingLeft();
    saved = store.files.size();
    EXPECT_GE(saved, 2u) << "a named context is saved, and the state stays";
  }
  {
    KeepingTuned keeping(&store);
    keeping.Up(0);
    const uint64_t poet = keeping.keeper.tree()->FindTuned(PoetKey());
    ASSERT_NE(poet, 0u) << "the poem begins with it";
    EXPECT_EQ(store.files.size(), saved);
    auto client = NewClient();
    keeping.cluster.Generate(Prompt(60), 1, client);
    keeping.cluster.RunAll();
    EXPECT_EQ(client->usage.cached_tokens, 0) << "the text of the poem, but not from its state";
  }
  // Without a text or a name, nobody can find it.
  FakeStore lonely;
  lonely.files[PoetKey()].segment.snapshot = true;
  KeepingTuned keeping(&lonely);
  keeping.Up(0);
  keeping.ExpectNothingLeft();
  EXPECT_TRUE(lonely.files.empty());
}

TEST(ContextKeeperTunedTest, WhatCannotBeNamedIsNotKept) {
  FakeStore store;
  {
    KeepingTuned keeping(&store);
    ASSERT_TRUE(keeping.Name("poet").ok());
    EXPECT_TRUE(absl::IsAlreadyExists(keeping.Name("poet")));
    ASSERT_TRUE(keeping.Name("bard").ok()) << "the same state under two names";
    EXPECT_EQ(store.files.size(), 1u);
    ASSERT_TRUE(keeping.keeper.DeleteContext("", {.name = "poet"}).ok());
    ASSERT_TRUE(keeping.keeper.DeleteContext("", {.name = "bard"}).ok());
    keeping.ExpectNothingLeft();
    EXPECT_TRUE(store.files.empty());
  }
  KeepingTuned keeping(&store);
  EXPECT_TRUE(absl::IsInvalidArgument(keeping.Name("")));
  keeping.ExpectNothingLeft();
  EXPECT_TRUE(store.files.empty());

  ContextKeeper without;
  without.SetModel(StoreIdentity());
  absl::Status refused;
  without.KeepTuned("", PoetKey(), nullptr, {.name = "poet"}, 0,
                    [&](const absl::StatusOr<NamedContext>& named) { refused = named.status(); });
  EXPECT_TRUE(absl::IsFailedPrecondition(refused)) << refused;
}

}  // namespace
}  // namespace goldfinch
