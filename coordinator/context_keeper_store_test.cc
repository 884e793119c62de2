// Histories of a scheduler whose requests begin with what was kept of others, on shelves that are lost and in a store
// whose moves take a while and fail.
#include <algorithm>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "coordinator/context_keeper.h"
#include "coordinator/scheduler_test_util.h"
#include "gtest/gtest.h"

namespace goldfinch {
namespace {

const ContextIdentity& Identity() {
  static const ContextIdentity* const identity = new ContextIdentity{"f", "bytes", "bf16", "cpu-f32"};
  return *identity;
}

std::shared_ptr<FakeClient> Client() { return std::make_shared<FakeClient>(1); }

std::vector<int32_t> Prompt(int64_t count, const std::vector<int32_t>& more = {}) {
  std::vector<int32_t> ids = FakePrompt(count);
  ids.insert(ids.end(), more.begin(), more.end());
  return ids;
}

// A store that outlives keepers.
struct FakeStore {
  struct File {
    FakeGroup::Segment segment;
    std::string name_space;
    std::optional<SegmentKey> parent;
    int64_t used = 0;
  };

  static SegmentContents ContentsOf(const File* file) {
    return file == nullptr ? 0 : file->segment.snapshot ? kRowsAndSnapshot : kRows;
  }
  const File* Find(const SegmentKey& key) const {
    const auto found = files.find(key);
    return found == files.end() ? nullptr : &found->second;
  }
  static int64_t BytesOf(const File& file) {
    return 10 * (static_cast<int64_t>(file.segment.ids.size()) - file.segment.begin) +
           (file.segment.snapshot ? 100 : 0);
  }
  int64_t bytes() const {
    int64_t sum = 0;
    for (const auto& [key, file] : files) sum += BytesOf(file);
    return sum;
  }
  StoreContents Read() const {
    StoreContents contents;
    const auto identity = std::make_shared<const ContextIdentity>(Identity());
    for (const auto& [key, file] : files) {
      StoreContents::Found& found = contents.segments.emplace_back();
      found.ids.assign(file.segment.ids.begin() + file.segment.begin, file.segment.ids.end());
      found.segment.key = key;
      found.segment.identity = identity;
      found.segment.name_space = file.name_space;
      found.segment.parent = file.parent;
      found.segment.begin = file.segment.begin;
      found.segment.end = static_cast<int64_t>(file.segment.ids.size());
      found.segment.has_snapshot = file.segment.snapshot;
      found.segment.has_logits = file.segment.snapshot && file.segment.logits;
      found.segment.bytes = BytesOf(file);
      found.segment.bytes_without_snapshot = found.segment.bytes - (file.segment.snapshot ? 100 : 0);
      found.segment.used_unix_seconds = file.used;
    }
    return contents;
  }

  std::map<SegmentKey, File> files;
  int64_t clock = 0;
};

// Groups with shelves, and a store. A token has 10 bytes and a snapshot 100.
struct Keeping {
  struct Move {
    StoreAction action;
    double done_at = 0;
    FakeGroup* group = nullptr;  // when it began
  };

  explicit Keeping(FakeStore* store, int replicas = 1, int64_t shelf_bytes = 1 << 30, StoreTierOptions options = {},
                   SnapshotOptions snapshots = {})
      : keeper(snapshots), cluster(100, replicas), store(store), shelf_bytes(shelf_bytes) {
    if (options.bytes_max == 0) options.bytes_max = 1 << 30;
    keeper.SetModel(Identity());
    keeper.SetStore(options, store->Read(), Capacity(), 0.01, 0);
    cluster.scheduler.SetKeeper(&keeper);
    cluster.planned = [this](int replica, const StepPlan& plan) {
      TakeDrops(replica);
      keeper.StepPlanned(replica, plan.id);
    };
    cluster.answered = [this](int replica, uint64_t step) { keeper.StepAnswered(replica, step, {}, cluster.now); };
    cluster.in_round = [this] { Service(); };
  }

  ShelfCapacity Capacity() const { return {shelf_bytes, /*bytes_per_token=*/10, /*snapshot_bytes=*/100}; }
  void Up(int replica, GroupCapacity capacity = Roomy()) {
    capacity.max_step_tokens = std::max<int64_t>(capacity.max_step_tokens, 1024);
    capacity.row_seconds = 0.01;
    keeper.GenerationReady(replica, Capacity());
    cluster.Up(replica, capacity);
  }
  void Lose(int replica) {
    FakeGroup* const group = cluster.groups.at(replica).get();
    for (Move& move : moves) {
      if (move.group == group) move.group = nullptr;
    }
    keeper.GenerationEnded(replica);
    cluster.Lose(replica);
  }
  void TakeDrops(int replica) {
    const ShelfDrops drops = keeper.TakeDrops(replica);
    const auto group = cluster.groups.find(replica);
    if (group == cluster.groups.end()) return;
    auto& segments = group->second->segments();
    for (const uint64_t segment : drops.segments) segments.erase(segment);
    for (const uint64_t segment : drops.snapshots) {
      if (segments.contains(segment)) segments.at(segment).snapshot = false;
    }
  }

  // What the coordinator's thread does in each round.
  void Service() {
    for (const uint64_t request : keeper.TakePrepared(cluster.now)) cluster.scheduler.Prepared(request, cluster.now);
    std::vector<StoreAction> actions = keeper.TakeStoreActions(cluster.now);
    for (const auto& [replica, group] : cluster.groups) TakeDrops(replica);
    for (StoreAction& action : actions) Do(std::move(action));
    for (size_t i = 0; i < moves.size();) {
      if (moves[i].done_at > cluster.now) {
        ++i;
        continue;
      }
      const Move move = std::move(moves[i]);
      moves.erase(moves.begin() + static_cast<int64_t>(i));
      End(move);
    }
    EXPECT_LE(store->bytes(), bytes_max_seen) << "the store is fuller than it may be";
  }
  void Do(StoreAction action) {
    const auto file = store->files.find(action.key);
    switch (action.kind) {
      case StoreAction::Kind::kDelete:
        EXPECT_NE(file, store->files.end());
        if (file != store->files.end()) store->files.erase(file);
        return;
      case StoreAction::Kind::kDropSnapshot:
        ASSERT_NE(file, store->files.end());
        EXPECT_TRUE(file->second.segment.snapshot);
        file->second.segment.snapshot = file->second.segment.logits = false;
        return;
      case StoreAction::Kind::kTouch:
        if (file != store->files.end()) file->second.used = ++store->clock;
        return;
      case StoreAction::Kind::kPutName:
      case StoreAction::Kind::kDeleteName:
        return;
      case StoreAction::Kind::kSave:
      case StoreAction::Kind::kBring:
        break;
    }
    const bool save = action.kind == StoreAction::Kind::kSave;
    ++(save ? saves : brings);
    const int replica = save ? action.save.replica : action.bring.replica;
    const auto group = cluster.groups.find(replica);
    moves.push_back({std::move(action), cluster.now + move_seconds(),
                     group == cluster.groups.end() ? nullptr : group->second.get()});
  }
  void End(const Move& move) {
    const bool save = move.action.kind == StoreAction::Kind::kSave;
    const SegmentKey key = save ? move.action.save.key : move.action.bring.key;
    StoreMoved moved;
    moved.status = move.group == nullptr ? absl::CancelledError("the group has ended") : fails(save);
    if (absl::IsDataLoss(moved.status) && !save) {
      store->files.erase(key);
      damaged.insert(key);
    }
    if (moved.status.ok()) {
      moved.status = save ? Save(move) : Bring(move);
      moved.bytes = 1000;
      moved.seconds = 0.001;
    }
    moved.stored = FakeStore::ContentsOf(store->Find(key));
    keeper.Moved(move.action.move, moved, cluster.now);
  }
  absl::Status Save(const Move& move) {
    const SegmentToSave& save = move.action.save;
    const auto& segments = move.group->segments();
    const auto found = segments.find(save.segment);
    EXPECT_NE(found, segments.end()) << "a segment that is held is not on the shelf";
    if (found == segments.end()) return absl::NotFoundError("");
    const FakeGroup::Segment& segment = found->second;
    EXPECT_EQ(static_cast<int64_t>(segment.ids.size()), save.end);
    EXPECT_EQ(segment.begin, save.begin);
    EXPECT_TRUE(segment.snapshot || !save.snapshot);
    EXPECT_EQ(std::vector<int32_t>(segment.ids.begin() + segment.begin, segment.ids.end()), save.ids);
    FakeStore::File& file = store->files[save.key];
    const bool had = file.segment.snapshot && !file.segment.ids.empty();
    file = {segment, save.name_space, save.parent, ++store->clock};
    file.segment.snapshot = save.snapshot || had;
    return absl::OkStatus();
  }
  absl::Status Bring(const Move& move) {
    const SegmentToBring& bring = move.action.bring;
    const FakeStore::File* const file = store->Find(bring.key);
    EXPECT_TRUE(file != nullptr || damaged.contains(bring.key)) << "a segment that is held was deleted";
    if (file == nullptr) return absl::NotFoundError("");
    auto& segments = move.group->segments();
    const auto [there, is_new] = segments.try_emplace(bring.segment, file->segment);
    if (is_new) there->second.snapshot = false;
    if ((bring.contents & kSnapshot) != 0) {
      there->second.snapshot = true;
      there->second.logits = file->segment.logits;
    }
    return absl::OkStatus();
  }

  // Nothing holds anything, and the store has what the keeper thinks that it has.
  void ExpectNothingLeft() {
    for (int i = 0; i < 200; ++i) {
      cluster.now += 1;
      Service();
    }
    EXPECT_TRUE(moves.empty());
    goldfinch::ExpectNothingLeft(cluster);
    EXPECT_EQ(keeper.store()->saving() + keeper.store()->bringing(), 0);
    EXPECT_EQ(keeper.store()->bytes(), store->bytes());
    for (const auto& [replica, group] : cluster.groups) {
      for (const auto& [number, segment] : group->segments()) {
        const std::optional<SegmentInfo> info = keeper.tree()->Find(number);
        ASSERT_TRUE(info.has_value()) << "segment " << number << " is forgotten, but on a shelf";
        EXPECT_EQ(info->holds, 0) << "segment " << number;
      }
    }
  }

  ContextKeeper keeper;
  FakeCluster cluster;
  FakeStore* const store;
  const int64_t shelf_bytes;
  std::deque<Move> moves;
  std::set<SegmentKey> damaged;
  int saves = 0, brings = 0;
  int64_t bytes_max_seen = int64_t{1} << 40;
  std::function<double()> move_seconds = [] { return 0.5; };
  std::function<absl::Status(bool save)> fails = [](bool) { return absl::OkStatus(); };
};

TEST(ContextKeeperStoreTest, WhatWasKeptIsThereAfterARestart) {
  FakeStore store;
  {
    Keeping keeping(&store);
    keeping.Up(0);
    keeping.cluster.Generate(Prompt(3000), 1, Client());
    keeping.cluster.RunAll();
    keeping.ExpectNothingLeft();
    EXPECT_EQ(store.files.size(), 1U);
  }
  Keeping keeping(&store);
  keeping.Up(0);
  const auto client = Client();
  keeping.cluster.Generate(Prompt(3000, {7, 8}), 3, client);
  keeping.cluster.RunAll();
  EXPECT_EQ(client->tokens[0], FakeAnswer(Prompt(3000, {7, 8}), 0, 3));
  EXPECT_EQ(client->usage.cached_tokens, 3000);
  EXPECT_EQ(keeping.brings, 1);
  keeping.ExpectNothingLeft();
}

TEST(ContextKeeperStoreTest, ALostGroupCostsAReload) {
  FakeStore store;
  Keeping keeping(&store, 1, 1 << 30, {}, {.first_tokens = 1000, .cost_tokens = 20});
  keeping.Up(0);
  keeping.cluster.step_seconds = 1;
  const auto client = Client();
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

TEST(ContextKeeperStoreTest, ThoseWhoWaitForTheSameShareItsMoves) {
  FakeStore store;
  {
    Keeping keeping(&store);
    keeping.Up(0);
    keeping.cluster.Generate(Prompt(3000), 1, Client());
    keeping.cluster.RunAll();
  }
  Keeping keeping(&store);
  keeping.move_seconds = [] { return 3.0; };
  keeping.Up(0);
  std::vector<std::shared_ptr<FakeClient>> clients;
  for (int32_t i = 0; i < 5; ++i) {
    clients.push_back(Client());
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
    Keeping keeping(&store);
    keeping.Up(0);
    keeping.cluster.Generate(Prompt(3000), 1, Client());
    keeping.cluster.RunAll();
  }
  const FakeStore before = store;
  for (const absl::Status& status :
       {absl::DataLossError("damaged"), absl::NotFoundError("gone"), absl::ResourceExhaustedError("a shelf is full"),
        absl::PermissionDeniedError("not yours"), absl::DeadlineExceededError("stuck")}) {
    SCOPED_TRACE(status.ToString());
    store = before;
    Keeping keeping(&store);
    keeping.fails = [&](bool) { return status; };
    keeping.Up(0);
    const auto client = Client();
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
    Keeping keeping(&store);
    keeping.Up(0);
    keeping.cluster.Generate(Prompt(3000), 1, Client());
    keeping.cluster.RunAll();
  }
  Keeping keeping(&store, 1, 1 << 30, {.wait_seconds_max = 4});
  keeping.move_seconds = [] { return 1000.0; };
  keeping.Up(0);
  const auto client = Client();
  keeping.cluster.Generate(Prompt(3000, {7}), 1, client);
  keeping.cluster.RunAll();
  EXPECT_EQ(*client->status, absl::OkStatus());
  EXPECT_EQ(client->usage.cached_tokens, 0);
  EXPECT_GE(client->usage.queue_seconds, 3);
}

TEST(ContextKeeperStoreTest, AStoreInMemoryIsForLongTexts) {
  FakeStore store;
  Keeping keeping(&store, 1, 1 << 30, {.durable = false, .protect_tokens = 2000});
  keeping.Up(0);
  keeping.cluster.Generate(Prompt(1500), 1, Client());
  keeping.cluster.RunAll();
  EXPECT_EQ(keeping.saves, 0);
  keeping.cluster.Generate(FakePrompt(2500, 3), 1, Client());
  keeping.cluster.RunAll();
  EXPECT_EQ(keeping.saves, 1);
  EXPECT_EQ(keeping.keeper.store()->protected_bytes(), store.bytes());
}

TEST(ContextKeeperStoreTest, AfterAnErrorNothingIsSavedForAWhile) {
  FakeStore store;
  Keeping keeping(&store, 1, 1 << 30, {.pause_seconds = 100});
  keeping.fails = [](bool) { return absl::ResourceExhaustedError("the disk is full"); };
  keeping.Up(0);
  for (int32_t i = 0; i < 5; ++i) {
    keeping.cluster.Generate(FakePrompt(1000, 10 * i), 1, Client());
    keeping.cluster.RunAll();
  }
  EXPECT_EQ(keeping.saves, 1);
  keeping.cluster.now += 101;
  keeping.fails = [](bool) { return absl::OkStatus(); };
  keeping.ExpectNothingLeft();
  EXPECT_EQ(keeping.saves, 5) << "but for the one that failed";
}

// Texts with common beginnings, shelves and a store that are too small, groups that end, restarts, moves that fail, and
// requests that are cancelled.
TEST(ContextKeeperStoreTest, EveryAnswerIsExactAndNothingIsLeft) {
  int64_t loaded = 0, saved = 0, failures = 0, tokens_saved = 0;
  for (uint32_t seed = 0; seed < 40; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937 random(seed);
    const auto below = [&](int limit) { return static_cast<int>(random() % limit); };
    FakeStore store;
    for (int life = 0; life < 3; ++life) {
      StoreTierOptions options = {.bytes_max = 20'000 + below(200'000),
                                  .durable = below(4) > 0,
                                  .protect_tokens = 300,
                                  .wait_seconds_max = 5,
                                  .pause_seconds = 1};
      const int64_t shelf_bytes = 5'000 + below(60'000);
      Keeping keeping(&store, /*replicas=*/2, shelf_bytes, options, {.first_tokens = 200, .cost_tokens = 20});
      keeping.bytes_max_seen = std::max(options.bytes_max, store.bytes());
      FakeCluster& cluster = keeping.cluster;
      cluster.step_seconds = 0.1;
      keeping.move_seconds = [&] { return below(30) * 0.1; };
      const int worst = below(3);
      keeping.fails = [&](bool) -> absl::Status {
        if (worst == 0 || below(6) > 0) return absl::OkStatus();
        const absl::StatusCode codes[] = {absl::StatusCode::kDataLoss, absl::StatusCode::kNotFound,
                                          absl::StatusCode::kResourceExhausted, absl::StatusCode::kUnavailable};
        return absl::Status(codes[below(4)], "fails");
      };
      GroupCapacity capacity = Roomy(1 + below(2));
      capacity.max_sequences = 2 + below(6);
      for (const int replica : {0, 1}) keeping.Up(replica, capacity);
      struct Asked {
        std::vector<int32_t> prompt;
        int64_t tokens = 0;
        std::shared_ptr<FakeClient> client;
        bool cancelled = false;
      };
      std::vector<Asked> all;
      for (int i = 0; i < 50; ++i) {
        Asked asked = {FakePrompt(1 + below(900), below(3)), 1 + below(40), Client()};
        if (below(2) == 0) asked.prompt[below(static_cast<int>(asked.prompt.size()))] = 1 + below(3);
        const uint64_t number = cluster.Generate(asked.prompt, asked.tokens, asked.client);
        cluster.RunUntil(cluster.now + below(20) * 0.1);
        if (below(10) == 0) {
          asked.cancelled = true;
          cluster.scheduler.Cancel(number, absl::CancelledError(""), cluster.now);
        }
        if (below(12) == 0) {
          const int replica = below(2);
          keeping.Lose(replica);
          if (below(2) == 0) cluster.RunUntil(cluster.now + 1);
          keeping.Up(replica, capacity);
        }
        all.push_back(std::move(asked));
      }
      cluster.RunAll();
      for (const Asked& asked : all) {
        ASSERT_TRUE(asked.client->status.has_value());
        if (asked.cancelled) continue;
        ASSERT_TRUE(asked.client->status->ok()) << *asked.client->status;
        EXPECT_EQ(asked.client->tokens[0], FakeAnswer(asked.prompt, 0, asked.tokens));
      }
      keeping.ExpectNothingLeft();
      loaded += keeping.keeper.store()->brought();
      saved += keeping.keeper.store()->saved();
      failures += keeping.keeper.store()->moves_failed();
      tokens_saved += keeping.keeper.counters().tokens_saved;
      for (const int replica : {0, 1}) keeping.Lose(replica);
      EXPECT_EQ(keeping.keeper.bytes(), 0);
    }
  }
  EXPECT_GT(loaded, 500);
  EXPECT_GT(saved, 1000);
  EXPECT_GT(failures, 100);
  EXPECT_GT(tokens_saved, 100'000);
}

}  // namespace
}  // namespace goldfinch
