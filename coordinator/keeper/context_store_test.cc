// The order in which a store's actions are carried out.
#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>

#include "coordinator/keeper/store_threads.h"
#include "coordinator/store/memory_files.h"
#include "coordinator/store/store_test_util.h"
#include "gtest/gtest.h"

namespace goldfinch {
namespace {

constexpr auto kPatience = std::chrono::seconds(60);

// A disk on which a removal takes until it is let go.
class SlowFiles : public MemoryFiles {
 public:
  absl::Status Remove(const std::string& path) override {
    {
      std::unique_lock<std::mutex> lock(mutex_);
      ++begun_;
      changed_.notify_all();
      EXPECT_TRUE(changed_.wait_for(lock, kPatience, [this] { return let_go_; }));
    }
    return MemoryFiles::Remove(path);
  }
  void AwaitRemoval() {
    std::unique_lock<std::mutex> lock(mutex_);
    EXPECT_TRUE(changed_.wait_for(lock, kPatience, [this] { return begun_ > 0; }));
  }
  void LetGo() {
    const std::lock_guard<std::mutex> lock(mutex_);
    let_go_ = true;
    changed_.notify_all();
  }
  int begun() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return begun_;
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  int begun_ = 0;  // removals
  bool let_go_ = false;
};

TEST(ContextStoreTest, NamesComeBeforeWhatHasNotBegun) {
  SlowFiles files;
  const std::shared_ptr<SegmentStore> store = OpenTestStore("memory", 1 << 30, &files);
  const TestSegment segments[] = {MakeTestSegment(20, 1), MakeTestSegment(20, 2), MakeTestSegment(20, 3)};
  for (const TestSegment& segment : segments) ASSERT_TRUE(SaveTestSegment(store.get(), segment).ok());
  SegmentMover mover;
  std::optional<int> removals;  // that had begun when the name was there
  absl::Status put;
  StoreEvents events;
  events.moved = [](uint64_t, const SegmentKey&, StoreMoved) {};
  events.name_put = [&](const ContextName&, absl::StatusOr<ContextName> kept) {
    removals = files.begun();
    put = kept.status();
  };
  {
    StoreThreads contexts(store, &mover, std::move(events));
    StoreAction action;
    action.kind = StoreAction::Kind::kDelete;
    for (int i = 0; i < 2; ++i) {
      action.key = segments[i].key;
      contexts.Do(action);
    }
    files.AwaitRemoval();
    action.kind = StoreAction::Kind::kPutName;
    action.name.name = "doc";
    action.name.segment = segments[2].key;
    action.name.position = 20;
    contexts.Do(std::move(action));
    EXPECT_EQ(contexts.Stored(segments[2].key), kRowsAndSnapshot);
    files.LetGo();
  }
  EXPECT_TRUE(put.ok()) << put;
  EXPECT_EQ(removals, 1);
  EXPECT_EQ(files.begun(), 2);
  EXPECT_EQ(store->Names().size(), 1U);
}

}  // namespace
}  // namespace goldfinch
