// Contexts by name, with a scheduler and workers that check every Step: what its tests share.
#ifndef GOLDFINCH_COORDINATOR_KEEPER_CONTEXT_KEEPER_TEST_UTIL_H_
#define GOLDFINCH_COORDINATOR_KEEPER_CONTEXT_KEEPER_TEST_UTIL_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "coordinator/keeper/context_directory.h"
#include "coordinator/keeper/context_keeper.h"
#include "coordinator/scheduler/client.h"
#include "coordinator/scheduler/scheduler_test_util.h"
#include "gtest/gtest.h"

namespace goldfinch {

using Ids = std::vector<int32_t>;

inline constexpr int64_t kTokensMax = 5000;
inline constexpr double kUnixOffset = 1e9;

// What a client of contexts gets, too.
struct ContextClient : FakeClient {
  void OnContext(int64_t tokens) override { context_tokens = tokens; }
  void OnKept(const NamedContext& context) override { kept = context; }

  int64_t context_tokens = 0;
  std::optional<NamedContext> kept;
};

inline Ids operator+(Ids text, const Ids& more) {
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
    cluster_.scheduler.SetKeeper(&keeper_);
    cluster_.planned = [this](int replica, const StepPlan& plan) { Planned(replica, plan.id); };
    cluster_.answered = [this](int replica, uint64_t step) { keeper_.StepAnswered(replica, step, {}, cluster_.now); };
  }

  void Up(int64_t shelf_bytes = 1 << 30) {
    GroupCapacity capacity = Roomy();
    capacity.max_step_tokens = 1024;
    capacity.row_seconds = 0.01;
    keeper_.GenerationReady(0, {shelf_bytes, /*bytes_per_token=*/10, /*snapshot_bytes=*/100});
    cluster_.Up(0, capacity);
  }
  void Lose() {
    keeper_.GenerationEnded(0);
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
  uint64_t step_ = 1'000'000;  // of those that the test makes up
  // What became of the last request.
  Ids prompt_;
  std::vector<int64_t> breakpoints_;
  int64_t max_tokens_ = 0;
};

}  // namespace goldfinch

#endif  // GOLDFINCH_COORDINATOR_KEEPER_CONTEXT_KEEPER_TEST_UTIL_H_
