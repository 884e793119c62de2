// A scheduler with a keeper, groups with shelves, and a store whose moves take a while and fail: what tests of them
// share.
#ifndef GOLDFINCH_COORDINATOR_KEEPER_CONTEXT_KEEPER_STORE_TEST_UTIL_H_
#define GOLDFINCH_COORDINATOR_KEEPER_CONTEXT_KEEPER_STORE_TEST_UTIL_H_

#include <algorithm>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "coordinator/keeper/context_directory.h"
#include "coordinator/keeper/context_keeper.h"
#include "coordinator/keeper/store_tier.h"
#include "coordinator/scheduler/scheduler_test_util.h"
#include "gtest/gtest.h"

namespace goldfinch {

inline const ContextIdentity& StoreIdentity() {
  static const ContextIdentity* const identity = new ContextIdentity{"f", "bytes", "bf16", "cpu-f32"};
  return *identity;
}

// A store that outlives keepers. What it does not read at the next start, and what goes on from that, it leaves alone.
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
    const auto identity = std::make_shared<const ContextIdentity>(StoreIdentity());
    for (const auto& [id, name] : names) contents.names.push_back(name);
    contents.unread.assign(unread.begin(), unread.end());
    for (const auto& [key, file] : files) {
      if (unread.contains(key)) {
        contents.other_bytes += BytesOf(file);
        continue;
      }
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

  // With what goes on from it.
  std::set<SegmentKey> AllUnread() const {
    std::set<SegmentKey> all = unread;
    for (size_t before = 0; before != all.size();) {
      before = all.size();
      for (const auto& [key, file] : files) {
        if (file.parent && all.contains(*file.parent)) all.insert(key);
      }
    }
    return all;
  }

  std::map<SegmentKey, File> files;
  std::map<uint64_t, ContextName> names;  // by id
  std::set<SegmentKey> unread;            // keys of files that cannot be read for the moment
  uint64_t last_name = 0;
  int64_t clock = 0;
};

// Groups with shelves, and a store. A token has 10 bytes and a snapshot 100.
struct StoreKeeping {
  struct Move {
    StoreAction action;
    double done_at = 0;
    FakeGroup* group = nullptr;  // when it began
  };

  explicit StoreKeeping(FakeStore* store, int replicas = 1, int64_t shelf_bytes = 1 << 30,
                        StoreTierOptions options = {}, SnapshotOptions snapshots = {})
      : keeper(snapshots),
        cluster(100, replicas),
        store(store),
        shelf_bytes(shelf_bytes),
        left_alone(store->AllUnread()) {
    if (options.bytes_max == 0) options.bytes_max = 1 << 30;
    durable = options.durable;
    for (const auto& [id, name] : store->names) {
      if (left_alone.contains(name.segment)) unread_names.insert(name.name);
    }
    keeper.SetModel(StoreIdentity());
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

  // As the coordinator submits it. `asked`, if it is not null, gets the whole prompt.
  uint64_t Ask(Request request, const std::shared_ptr<FakeClient>& client, std::vector<int32_t>* asked = nullptr) {
    auto sink = keeper.Resolve(&request, client, 1 << 16, cluster.now);
    if (asked != nullptr) *asked = request.prompt;
    if (!sink.ok()) {
      client->OnDone(sink.status(), {});
      return 0;
    }
    cluster.scheduler.Submit(++cluster.last_number, std::move(request), *std::move(sink), cluster.now);
    return cluster.last_number;
  }
  std::map<std::string, NamedContext> Contexts() {
    std::map<std::string, NamedContext> contexts;
    const auto page = keeper.ListContexts("", {.count = 1000});
    for (const NamedContext& one : page->contexts) contexts[one.name] = one;
    return contexts;
  }

  // What the coordinator's thread does in each round.
  void Service() {
    keeper.Expire(cluster.now);
    for (const uint64_t request : keeper.TakePrepared(cluster.now)) cluster.scheduler.Prepared(request, cluster.now);
    std::vector<StoreAction> actions = keeper.TakeStoreActions(cluster.now);
    for (const auto& [replica, group] : cluster.groups) TakeDrops(replica);
    for (StoreAction& action : actions) Do(std::move(action));
    while (!name_actions.empty() && name_actions.front().second <= cluster.now) {
      const StoreAction action = std::move(name_actions.front().first);
      name_actions.pop_front();
      DoName(action);
    }
    for (const StoreAction& action : std::exchange(publishes, {})) Publish(action);
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
        name_actions.emplace_back(std::move(action), cluster.now + move_seconds());
        if (name_actions.size() > 1) {
          double& at = name_actions.back().second;
          at = std::max(at, name_actions[name_actions.size() - 2].second);
        }
        return;
      case StoreAction::Kind::kPublish:
        publishes.push_back(std::move(action));
        return;
      case StoreAction::Kind::kDiscard:
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
  // What is published here is a tuned state.
  void Publish(const StoreAction& action) {
    StoreMoved moved;
    moved.status = fails(/*save=*/true);
    if (moved.status.ok()) store->files[action.key].segment.snapshot = true;
    moved.stored = FakeStore::ContentsOf(store->Find(action.key));
    keeper.Moved(action.move, moved, cluster.now);
  }
  void DoName(const StoreAction& action) {
    ContextName name = action.name;
    if (action.kind == StoreAction::Kind::kDeleteName) {
      EXPECT_EQ(store->names.erase(name.id), 1U) << name.name;
      return;
    }
    if (const absl::Status failed = name_fails(); !failed.ok()) return keeper.NamePut(name, failed, cluster.now);
    for (const auto& [id, other] : store->names) {
      if (id != name.id) {
        EXPECT_NE(other.name, name.name) << "left behind";
      }
    }
    if (name.id == 0) {
      name.id = ++store->last_name;
    } else {
      EXPECT_EQ(store->names.at(name.id).revision, name.revision);
    }
    ++name.revision;
    store->names[name.id] = name;
    keeper.NamePut(action.name, name, cluster.now);
  }
  void End(const Move& move) {
    const bool save = move.action.kind == StoreAction::Kind::kSave;
    const SegmentKey key = save ? move.action.save.key : move.action.bring.key;
    StoreMoved moved;
    moved.status = move.group == nullptr ? absl::CancelledError("the group has ended") : fails(save);
    if (absl::IsDataLoss(moved.status)) {
      store->files.erase(key);
      damaged.insert(key);
    }
    if (moved.status.ok()) {
      moved.status = save ? Save(move) : Bring(move);
      moved.bytes = 1000;
      moved.seconds = 0.001;
    }
    moved.stored = FakeStore::ContentsOf(store->Find(key));
    if (save && moved.stored != 0) left_alone.erase(key);  // it was there, whatever became of the move
    keeper.Moved(move.action.move, moved, cluster.now);
  }
  absl::Status Save(const Move& move) {
    const SegmentToSave& save = move.action.save;
    const auto& segments = move.group->segments();
    const auto found = segments.find(save.segment);
    if (found == segments.end()) {
      // It may have been lost, though not evicted.
      const std::optional<SegmentInfo> info = keeper.tree()->Find(save.segment);
      for (const SegmentInfo::Copy& copy : info->copies) {
        EXPECT_TRUE(copy.tier == keeper.store()->tier() || copy.present == 0) << "it should be on the shelf";
      }
      return absl::NotFoundError("");
    }
    const FakeGroup::Segment& segment = found->second;
    EXPECT_EQ(static_cast<int64_t>(segment.ids.size()), save.end);
    EXPECT_EQ(segment.begin, save.begin);
    EXPECT_TRUE(segment.snapshot || !save.snapshot);
    EXPECT_EQ(std::vector<int32_t>(segment.ids.begin() + segment.begin, segment.ids.end()), save.ids);
    FakeStore::File& file = store->files[save.key];
    const bool had = file.segment.snapshot && !file.segment.ids.empty();
    file = {segment, save.name_space, save.parent, ++store->clock};
    file.segment.snapshot = save.snapshot || had;
    left_alone.erase(save.key);
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
    int64_t alone = 0;
    for (const SegmentKey& key : left_alone) {
      ASSERT_NE(store->Find(key), nullptr) << "a file that was not read is gone";
      alone += FakeStore::BytesOf(*store->Find(key));
    }
    EXPECT_EQ(keeper.store()->bytes(), store->bytes() - alone);
    ExpectNames();
    for (const auto& [replica, group] : cluster.groups) {
      for (const auto& [number, segment] : group->segments()) {
        const std::optional<SegmentInfo> info = keeper.tree()->Find(number);
        ASSERT_TRUE(info.has_value()) << "segment " << number << " is forgotten, but on a shelf";
        EXPECT_EQ(info->holds, 0) << "segment " << number;
      }
    }
  }

  // The store has the names that it should have, and no others. While a text is not in the store, its name stands for
  // the one before it there.
  void ExpectNames() {
    const std::map<std::string, NamedContext> contexts = Contexts();
    std::map<std::string, ContextName> stored;
    for (const auto& [id, name] : store->names) stored[name.name] = name;
    EXPECT_EQ(stored.size(), store->names.size());
    for (const auto& [name, file] : stored) {
      EXPECT_TRUE(contexts.contains(name) || unread_names.contains(name)) << name << " is left behind";
    }
    for (const auto& [name, context] : contexts) {
      const std::optional<SegmentInfo> info = keeper.tree()->Find(keeper.tree()->Get("", name)->segment);
      const bool is_stored = std::any_of(info->copies.begin(), info->copies.end(), [&](const auto& copy) {
        return copy.tier == keeper.store()->tier() && copy.present == kRowsAndSnapshot;
      });
      if (!is_stored || !durable) continue;
      ASSERT_TRUE(stored.contains(name)) << name;
      EXPECT_EQ(stored.at(name).position, context.tokens) << name;
      EXPECT_TRUE(store->files.contains(stored.at(name).segment)) << name;
    }
  }

  ContextKeeper keeper;
  FakeCluster cluster;
  FakeStore* const store;
  const int64_t shelf_bytes;
  bool durable = true;
  std::set<SegmentKey> left_alone;     // files that were not read, and have not been saved again
  std::set<std::string> unread_names;  // of these
  std::deque<Move> moves;
  std::vector<StoreAction> publishes;
  std::deque<std::pair<StoreAction, double>> name_actions;  // and when they are done
  std::set<SegmentKey> damaged;
  int saves = 0, brings = 0;
  int64_t bytes_max_seen = int64_t{1} << 40;
  std::function<double()> move_seconds = [] { return 0.5; };
  std::function<absl::Status(bool save)> fails = [](bool) { return absl::OkStatus(); };
  std::function<absl::Status()> name_fails = [] { return absl::OkStatus(); };
};

}  // namespace goldfinch

#endif  // GOLDFINCH_COORDINATOR_KEEPER_CONTEXT_KEEPER_STORE_TEST_UTIL_H_
