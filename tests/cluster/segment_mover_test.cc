// Segments go from shelves to a store, and from there to shelves of other splits.
#include "coordinator/shelves/segment_mover.h"

#include <atomic>
#include <chrono>
#include <memory>
#include <string>
#include <thread>
#include <utility>

#include "coordinator/store/store_test_util.h"
#include "gtest/gtest.h"
#include "protos/cluster.pb.h"
#include "tests/cluster/segment_mover_test_util.h"

namespace goldfinch {
namespace {

using cluster::v1::FromShelf;

TEST_F(SegmentMoverTest, SavedOnThreeStagesAndBroughtToTwoAndToSix) {
  const auto store = OpenTestStore(EmptyTestFolder("mover"));
  const TestSegment first = Segment(0, 20000, nullptr, /*snapshot=*/false), second = Segment(20000, 20070, &first);
  SetGroup(0, {0, 1, 5});
  Fill(0, first, 7);
  Fill(0, second, 8);
  auto saved_first = Save(0, first, 7, store.get()), saved_second = Save(0, second, 8, store.get());
  for (const auto& [saved, segment] : {std::pair(&saved_first, &first), {&saved_second, &second}}) {
    const MoveResult result = saved->get();
    ASSERT_TRUE(result.status.ok()) << result.status;
    EXPECT_EQ(result.bytes, BytesOf(*segment));
    EXPECT_GT(result.seconds, 0);
    EXPECT_EQ(*LoadSections(store.get(), segment->key), segment->sections);
  }
  EXPECT_EQ(store->Find(second.key)->gold_position, 20001);
  EXPECT_TRUE(Save(0, first, 7, store.get()).get().status.ok()) << "the store has it";

  SetGroup(1, {0, 3});
  SetGroup(2, {0, 1, 2, 3, 4, 5});
  const auto other = OpenTestStore(EmptyTestFolder("mover_again"));
  for (const auto& [replica, gold_stages] : {std::pair(1, 1), {2, 2}}) {
    auto brought_first = Bring(replica, first, 17, store.get(), kRows);
    auto brought_second = Bring(replica, second, 18, store.get());
    for (const auto& [brought, segment] : {std::pair(&brought_first, &first), {&brought_second, &second}}) {
      const MoveResult result = brought->get();
      ASSERT_TRUE(result.status.ok()) << result.status;
      EXPECT_EQ(result.bytes, BytesOf(*segment));
      EXPECT_GT(result.seconds, 0);
    }
    EXPECT_EQ(Count(replica, first, 17), 2 + 2 * gold_stages);
    EXPECT_EQ(Count(replica, second, 18), static_cast<int>(second.sections.size()) + 2 * (gold_stages - 1));
    EXPECT_TRUE(Bring(replica, second, 18, store.get()).get().status.ok()) << "what is there stays";
  }
  EXPECT_TRUE(Save(2, second, 18, other.get()).get().status.ok());
  EXPECT_EQ(*LoadSections(other.get(), second.key), second.sections);
}

// A snapshot that comes later takes the rows from the file, not from the shelves.
TEST_F(SegmentMoverTest, RowsThatTheStoreHasAreNotFetched) {
  const auto store = OpenTestStore(EmptyTestFolder("mover_rows"));
  TestSegment segment = Segment(0, 300, nullptr);
  SetGroup(0, {0, 2, 4});
  Fill(0, segment, 7);
  const auto rows = std::make_shared<std::atomic<int>>(0);
  tampering.Set([rows](FromShelf& message) {
    for (const char* kind : {"rows", "ids", "keys", "values"}) *rows += message.piece().part().kind() == kind ? 1 : 0;
    return true;
  });
  segment.segment.has_snapshot = segment.segment.has_logits = false;
  ASSERT_TRUE(Save(0, segment, 7, store.get()).get().status.ok());
  EXPECT_EQ(*rows, 3) << "not the ids, and the compressed rows once";
  segment.segment.has_snapshot = segment.segment.has_logits = true;
  const MoveResult result = Save(0, segment, 7, store.get()).get();
  ASSERT_TRUE(result.status.ok()) << result.status;
  EXPECT_EQ(*rows, 3);
  EXPECT_EQ(*LoadSections(store.get(), segment.key), segment.sections);
}

class SlowMoverTest : public SegmentMoverTest {
 public:
  static MoverOptions Slow() {
    MoverOptions options = Options();
    options.save_bytes_per_second = 8e6;
    return options;
  }
  SlowMoverTest() : SegmentMoverTest(Slow()) {}
};

TEST_F(SlowMoverTest, SavesKeepToTheirRateAndMakeWay) {
  const auto store = OpenTestStore(EmptyTestFolder("mover_rate"));
  const TestSegment segment = Segment(0, 300, nullptr);
  SetGroup(0, {0});
  Fill(0, segment, 7);
  const MoveResult result = Save(0, segment, 7, store.get()).get();
  ASSERT_TRUE(result.status.ok()) << result.status;
  EXPECT_GE(result.seconds, (static_cast<double>(result.bytes) - 0.5e6 - (1 << 20)) / 8e6);
  // What somebody waits for comes before what is to be saved, which waits for it in the middle.
  const TestSegment large = Segment(0, 60000, nullptr);
  Fill(0, large, 9);
  const auto saving = std::make_shared<std::atomic<bool>>(false);
  tampering.Set([saving](FromShelf& message) {
    if (message.piece().part().kind() == "rows") *saving = true;
    return true;
  });
  auto save = Save(0, large, 9, store.get());
  while (!*saving) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  const MoveResult brought = Bring(0, segment, 11, store.get()).get();
  EXPECT_TRUE(brought.status.ok()) << brought.status;
  EXPECT_EQ(Count(0, segment, 11), static_cast<int>(segment.sections.size()));
  EXPECT_TRUE(save.get().status.ok());
}

}  // namespace
}  // namespace goldfinch
