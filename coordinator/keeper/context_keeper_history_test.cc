// Histories of a scheduler whose requests begin with what was kept of others, on shelves that are lost and in a store
// whose moves take a while and fail.
#include <algorithm>
#include <cstdint>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "coordinator/keeper/context_keeper_store_test_util.h"
#include "gtest/gtest.h"

namespace goldfinch {
namespace {

// Texts with common beginnings, contexts by name, shelves and a store that are too small, groups that end, restarts,
// crashes, moves that fail, files that cannot be read for the moment, and requests that are cancelled.
class KeptHistory {
 public:
  explicit KeptHistory(uint32_t seed) : random_(seed) {}

  void Run() {
    for (int life = 0; life < 3; ++life) {
      Live();
      if (testing::Test::HasFatalFailure()) return;
    }
  }

  int64_t loaded = 0, saved = 0, failures = 0, tokens_saved = 0, names = 0, unread = 0;

 private:
  struct Asked {
    std::vector<int32_t> prompt;
    int64_t tokens = 0;
    std::shared_ptr<FakeClient> client;
    bool named = false;  // it may end with an error
    bool cancelled = false;
  };

  int Below(int limit) { return static_cast<int>(random_() % limit); }
  std::string Name() { return std::string(1, static_cast<char>('a' + Below(6))); }

  void Live() {
    store_.unread.clear();
    for (const auto& [key, file] : store_.files) {
      if (Below(12) == 0) store_.unread.insert(key);
    }
    unread += static_cast<int64_t>(store_.unread.size());
    StoreTierOptions options = {.bytes_max = 20'000 + Below(200'000),
                                .durable = Below(4) > 0,
                                .protect_tokens = 300,
                                .wait_seconds_max = 5,
                                .pause_seconds = 1};
    if (!options.durable) store_.names.clear();  // as no other store of its kind has any
    const int64_t shelf_bytes = 5'000 + Below(60'000);
    StoreKeeping keeping(&store_, /*replicas=*/2, shelf_bytes, options, {.first_tokens = 200, .cost_tokens = 20});
    keeping.bytes_max_seen = std::max(options.bytes_max, store_.bytes());
    FakeCluster& cluster = keeping.cluster;
    cluster.step_seconds = 0.1;
    keeping.move_seconds = [&] { return Below(30) * 0.1; };
    const int worst = Below(3);
    const auto fails = [this, worst]() -> absl::Status {
      if (worst == 0 || Below(6) > 0) return absl::OkStatus();
      const absl::StatusCode codes[] = {absl::StatusCode::kDataLoss, absl::StatusCode::kNotFound,
                                        absl::StatusCode::kResourceExhausted, absl::StatusCode::kUnavailable};
      return absl::Status(codes[Below(4)], "fails");
    };
    keeping.fails = [fails](bool) { return fails(); };
    keeping.name_fails = fails;
    GroupCapacity capacity = Roomy(1 + Below(2));
    capacity.max_sequences = 2 + Below(6);
    for (const int replica : {0, 1}) keeping.Up(replica, capacity);
    std::vector<Asked> all;
    for (int i = 0; i < 50; ++i) {
      Asked& asked = all.emplace_back();
      const uint64_t number = Ask(keeping, &asked);
      if (Below(4) == 0) ChangeName(keeping);
      cluster.RunUntil(cluster.now + Below(20) * 0.1);
      if (Below(10) == 0) {
        asked.cancelled = true;
        cluster.scheduler.Cancel(number, absl::CancelledError(""), cluster.now);
      }
      if (Below(12) == 0) {
        const int replica = Below(2);
        keeping.Lose(replica);
        if (Below(2) == 0) cluster.RunUntil(cluster.now + 1);
        keeping.Up(replica, capacity);
      }
    }
    cluster.RunAll();
    for (const Asked& asked : all) Check(asked);
    if (Below(3) > 0) {  // or it ends in the middle of what it does
      keeping.name_fails = [] { return absl::OkStatus(); };
      keeping.ExpectNothingLeft();
    }
    names += static_cast<int64_t>(store_.names.size());
    loaded += keeping.keeper.store()->brought();
    saved += keeping.keeper.store()->saved();
    failures += keeping.keeper.store()->moves_failed();
    tokens_saved += keeping.keeper.counters().tokens_saved;
    for (const int replica : {0, 1}) keeping.Lose(replica);
    EXPECT_EQ(keeping.keeper.bytes(), 0);
  }

  uint64_t Ask(StoreKeeping& keeping, Asked* asked) {
    Request request;
    request.prompt = FakePrompt(1 + Below(900), Below(3));
    if (Below(2) == 0) request.prompt[Below(static_cast<int>(request.prompt.size()))] = 1 + Below(3);
    asked->tokens = 1 + Below(Below(8) == 0 ? 300 : 40);
    asked->client = NewClient();
    request.generate.emplace().max_tokens = asked->tokens;
    if (Below(4) == 0) {
      request.context = Name();
      request.cache = Below(4) > 0;
      asked->named = true;
    }
    if (Below(4) == 0) {
      request.keep_as = Request::KeepAs{.name = Name()};
      if (Below(3) == 0) request.keep_as->expire_after_seconds = 1 + Below(20);
      asked->named = true;
    }
    if (asked->named) return keeping.Ask(std::move(request), asked->client, &asked->prompt);
    asked->prompt = request.prompt;
    return keeping.cluster.Generate(asked->prompt, asked->tokens, asked->client);
  }

  void ChangeName(StoreKeeping& keeping) {
    ContextKeeper& keeper = keeping.keeper;
    switch (Below(4)) {
      case 0:
        keeper.RenameContext("", {.name = Name(), .new_name = Name()}).status().IgnoreError();
        break;
      case 1:
        keeper.DeleteContext("", {.name = Name()}).status().IgnoreError();
        break;
      case 2:
        keeper.PinContext("", {.name = Name(), .pinned = Below(2) == 0}).status().IgnoreError();
        break;
      case 3: {
        ForkContextQuery query = {.context = Name(), .keep_as = {.name = Name()}};
        if (Below(2) == 0) query.context_tokens = 1 + Below(500);
        keeper.ForkContext("", query, keeping.cluster.now).status().IgnoreError();
        break;
      }
    }
  }

  static void Check(const Asked& asked) {
    ASSERT_TRUE(asked.client->status.has_value());
    if (asked.cancelled) return;
    if (asked.named && !asked.client->status->ok()) return;
    ASSERT_TRUE(asked.client->status->ok()) << *asked.client->status;
    EXPECT_EQ(asked.client->tokens[0], FakeAnswer(asked.prompt, 0, asked.tokens));
  }

  std::mt19937 random_;
  FakeStore store_;
};

TEST(ContextKeeperHistoryTest, EveryAnswerIsExactAndNothingIsLeft) {
  int64_t loaded = 0, saved = 0, failures = 0, tokens_saved = 0, names = 0, unread = 0;
  for (uint32_t seed = 0; seed < 60; ++seed) {
    SCOPED_TRACE(seed);
    KeptHistory history(seed);
    history.Run();
    if (testing::Test::HasFatalFailure()) return;
    loaded += history.loaded;
    saved += history.saved;
    failures += history.failures;
    tokens_saved += history.tokens_saved;
    names += history.names;
    unread += history.unread;
  }
  EXPECT_GT(loaded, 500);
  EXPECT_GT(saved, 1000);
  EXPECT_GT(failures, 100);
  EXPECT_GT(tokens_saved, 100'000);
  EXPECT_GT(names, 100);
  EXPECT_GT(unread, 50);
}

}  // namespace
}  // namespace goldfinch
