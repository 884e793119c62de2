// What workers, disks and ends of groups do to moves of segments.
#include <atomic>
#include <cerrno>
#include <chrono>
#include <functional>
#include <future>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "coordinator/shelves/segment_mover.h"
#include "coordinator/shelves/shelf_group.h"
#include "coordinator/store/fault_files.h"
#include "coordinator/store/store_test_util.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "protos/cluster.pb.h"
#include "tests/cluster/segment_mover_test_util.h"

namespace goldfinch {
namespace {

using cluster::v1::FromShelf;
using cluster::v1::Piece;
using ::testing::HasSubstr;
using Code = absl::StatusCode;

class SegmentMoverFaultsTest : public SegmentMoverTest {};

TEST_F(SegmentMoverFaultsTest, WhatAWorkerSaysIsChecked) {
  const auto store = OpenTestStore(EmptyTestFolder("mover_lies"));
  const TestSegment segment = Segment(0, 300, nullptr);
  SetGroup(0, {0, 2, 4});
  Fill(0, segment, 7);
  using Edit = std::function<void(FromShelf & message)>;
  const auto edit_piece = [](std::function<void(Piece&)> edit) {
    return [edit = std::move(edit)](FromShelf& message) {
      if (message.piece().part().kind() == "wkv" && message.piece().part().layer() == 0) edit(*message.mutable_piece());
    };
  };
  const std::vector<std::pair<std::string, Edit>> cases = {
      {"of segment 8, asked for was", edit_piece([](Piece& p) { p.set_segment(8); })},
      {"asked for was", edit_piece([](Piece& p) { p.mutable_part()->set_layer(3); })},
      {"asked for was", edit_piece([](Piece& p) { p.mutable_part()->set_kind("\x1b[2J"); })},
      {"with the type f16", edit_piece([](Piece& p) { p.set_dtype("f16"); })},
      {"another shape", edit_piece([](Piece& p) { p.set_shape(0, 95); })},
      {"another shape", edit_piece([](Piece& p) { p.clear_shape(); })},
      {"the positions [1, 300)", edit_piece([](Piece& p) { p.set_begin(1); })},
      {"gold_position 2, expected 1", edit_piece([](Piece& p) { p.set_gold_position(2); })},
      {"a piece at", edit_piece([](Piece& p) { p.set_offset(p.offset() + 1); })},
      {"a piece of 1048575 bytes", edit_piece([](Piece& p) {
         if (p.offset() == 0) p.mutable_data()->pop_back();
       })},
      {"bytes, it has 1572864", edit_piece([](Piece& p) {
         if (p.has_crc32c()) p.mutable_data()->push_back('x');
       })},
      {"no crc32c in the last piece", edit_piece([](Piece& p) { p.clear_crc32c(); })},
      {"a crc32c before its end", edit_piece([](Piece& p) { p.set_crc32c(1); })},
      {"a wrong crc32c", edit_piece([](Piece& p) { p.mutable_data()->front() ^= 1; })},
      {"what nobody has asked for", [](FromShelf& m) { m.mutable_put_done(); }},
      {"what nobody has asked for", [](FromShelf& m) { m.set_token("t"); }},
      {"a FetchDone",
       [](FromShelf& m) {
         if (m.has_fetch_done()) m.mutable_fetch_done()->set_number(77);
       }},
      {"a FetchDone",
       [](FromShelf& m) {
         if (m.has_fetch_done()) m.mutable_fetch_done()->set_parts(0);
       }},
      {"a FetchDone",
       [](FromShelf& m) {
         if (m.has_fetch_done()) m.mutable_fetch_done()->set_error("no");
       }},
      {"a FetchDone", [](FromShelf& m) { m.mutable_fetch_done()->set_number(1); }},
  };
  for (const auto& [named, edit] : cases) {
    tampering.Set([edit = edit](FromShelf& message) {
      edit(message);
      return true;
    });
    const MoveResult result = Save(0, segment, 7, store.get()).get();
    EXPECT_EQ(result.status.code(), Code::kDataLoss) << result.status;
    EXPECT_THAT(std::string(result.status.message()), HasSubstr(named));
    EXPECT_THAT(std::string(result.status.message()), HasSubstr("worker w"));
    EXPECT_EQ(result.status.message().find('\x1b'), std::string::npos);
    EXPECT_EQ(store->totals().bytes, 0) << named;
  }
  // What an honest worker lacks.
  tampering.Set(nullptr);
  const MoveResult missing = Save(0, segment, 9, store.get()).get();
  EXPECT_EQ(missing.status.code(), Code::kNotFound) << missing.status;
  EXPECT_THAT(std::string(missing.status.message()), HasSubstr("segment 9 is not on the shelf"));
  const MoveResult result = Save(0, segment, 7, store.get()).get();
  EXPECT_TRUE(result.status.ok()) << result.status << ": the streams were opened anew";
  // The same of answers to Put.
  for (const auto& [named, edit] : std::vector<std::pair<std::string, Edit>>{
           {"out of turn", [](FromShelf& m) { m.mutable_put_done()->set_segment(9); }},
           {"out of turn", [](FromShelf& m) { m.mutable_put_done()->mutable_part()->set_kind("\x1b[2J"); }},
           {"what nobody has asked for", [](FromShelf& m) { m.mutable_piece(); }}}) {
    tampering.Set([edit = edit](FromShelf& message) {
      edit(message);
      return true;
    });
    const MoveResult brought = Bring(0, segment, 20, store.get()).get();
    EXPECT_EQ(brought.status.code(), Code::kDataLoss) << brought.status;
    EXPECT_THAT(std::string(brought.status.message()), HasSubstr(named));
  }
  tampering.Set(nullptr);
  EXPECT_TRUE(Bring(0, segment, 21, store.get()).get().status.ok());
}

TEST_F(SegmentMoverFaultsTest, NoRoom) {
  const auto store = OpenTestStore(EmptyTestFolder("mover_full"));
  const TestSegment segment = Segment(0, 300, nullptr);
  SetGroup(0, {0, 2, 4});
  Fill(0, segment, 7);
  ASSERT_TRUE(Save(0, segment, 7, store.get()).get().status.ok());
  // On the shelf of the first stage; that of the second has some.
  SetGroup(1, {0, 1, 4}, /*shelf_bytes=*/1 << 20);
  for (int i = 0; i < 2; ++i) {
    const MoveResult full = Bring(1, segment, 7, store.get()).get();
    EXPECT_EQ(full.status.code(), Code::kResourceExhausted) << full.status;
    EXPECT_THAT(std::string(full.status.message()), HasSubstr("worker w4 does not take wkv of layer 0"));
    for (const StageShelf& stage : groups[1]) stage.shelf->Drop(7);
    for (const StageShelf& stage : groups[1]) EXPECT_EQ(stage.shelf->used_bytes(), 0);
  }
  // In the store, and on its disk, at some of its writes.
  const auto small = OpenTestStore(EmptyTestFolder("mover_small"), /*bytes_max=*/1 << 20);
  EXPECT_EQ(Save(0, segment, 7, small.get()).get().status.code(), Code::kResourceExhausted);
  for (int call = 0;; call += call < 3 ? 1 : 7) {
    FaultFiles files(Fault::kError, call, ENOSPC);
    const auto disk = OpenTestStore(EmptyTestFolder("mover_disk"), 1 << 30, &files);
    const MoveResult full = Save(0, segment, 7, disk.get()).get();
    if (full.status.ok()) break;
    EXPECT_EQ(full.status.code(), Code::kResourceExhausted) << full.status;
    ASSERT_LT(call, 100);
  }
  EXPECT_EQ(Save(0, segment, 8, store.get()).get().status.code(), Code::kOk) << "the store has it already";
}

TEST_F(SegmentMoverFaultsTest, DamageIsNeverBrought) {
  const std::string folder = EmptyTestFolder("mover_damage");
  const auto store = OpenTestStore(folder);
  const TestSegment segment = Segment(0, 300, nullptr);
  SetGroup(0, {0, 2, 4});
  Fill(0, segment, 7);
  ASSERT_TRUE(Save(0, segment, 7, store.get()).get().status.ok());
  const std::string path = absl::StrCat(folder, "/", NamesIn(folder)[0]);
  std::string bytes = ReadTestFile(path);
  bytes[bytes.size() - 5000] ^= 4;
  WriteTestFile(path, bytes);
  SetGroup(1, {0, 3});
  const MoveResult result = Bring(1, segment, 7, store.get()).get();
  EXPECT_EQ(result.status.code(), Code::kDataLoss) << result.status;
  EXPECT_LT(Count(1, segment, 7), static_cast<int>(segment.sections.size()));
  EXPECT_EQ(store->totals().quarantined_total, 1);
  EXPECT_EQ(Bring(1, segment, 7, store.get()).get().status.code(), Code::kNotFound);
  EXPECT_TRUE(Save(0, segment, 7, store.get()).get().status.ok());
  const MoveResult whole = Bring(1, segment, 7, store.get()).get();
  EXPECT_TRUE(whole.status.ok()) << whole.status;
  EXPECT_EQ(Count(1, segment, 7), static_cast<int>(segment.sections.size()));
}

TEST_F(SegmentMoverFaultsTest, GroupsEnd) {
  const auto store = OpenTestStore(EmptyTestFolder("mover_ends"));
  const TestSegment segment = Segment(0, 300, nullptr);
  EXPECT_EQ(Save(0, segment, 7, store.get()).get().status.code(), Code::kFailedPrecondition);
  SetGroup(0, {0, 2, 4});
  Fill(0, segment, 7);
  ASSERT_TRUE(Save(0, segment, 7, store.get()).get().status.ok());
  SetGroup(1, {0, 3});
  // Workers that say nothing more: what runs and what waits ends at once, or as soon as a part that was sent is
  // answered.
  // The shelves' threads outlive this function.
  struct Gate {
    std::atomic<bool> reached = false, closed = true;
    void Pass() {
      reached = true;
      while (closed) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    void Await() const {
      while (!reached) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
  };
  const auto put_gate = std::make_shared<Gate>(), fetch_gate = std::make_shared<Gate>();
  const auto stop_at = [this](const std::shared_ptr<Gate>& gate) {
    tampering.Set([gate](FromShelf&) {
      gate->Pass();
      return true;
    });
  };
  stop_at(put_gate);
  std::vector<std::future<MoveResult>> moves;
  for (int i = 0; i < 5; ++i) moves.push_back(Bring(1, segment, 30 + i, store.get()));
  put_gate->Await();
  mover.GenerationEnded(1);
  put_gate->closed = false;
  for (auto& move : moves) EXPECT_EQ(move.get().status.code(), Code::kCancelled);
  for (const StageShelf& stage : groups[1]) {
    for (int i = 0; i < 5; ++i) stage.shelf->Drop(30 + i);
  }
  // A part that had begun goes with its stream; nothing else comes after the move is done.
  for (const StageShelf& stage : groups[1]) {
    while (stage.shelf->used_bytes() > 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  for (int i = 0; i < 5; ++i) EXPECT_EQ(Count(1, segment, 30 + i), 0);
  const auto other = OpenTestStore(EmptyTestFolder("mover_ends_too"));
  stop_at(fetch_gate);
  auto save = Save(0, segment, 7, other.get());
  fetch_gate->Await();
  mover.GenerationEnded(0);
  EXPECT_EQ(save.get().status.code(), Code::kCancelled);
  fetch_gate->closed = false;
  EXPECT_EQ(other->totals().bytes, 0);
  EXPECT_EQ(Save(0, segment, 7, other.get()).get().status.code(), Code::kFailedPrecondition);
}

TEST_F(SegmentMoverFaultsTest, WorkersThatAreGone) {
  const auto store = OpenTestStore(EmptyTestFolder("mover_gone"));
  const TestSegment segment = Segment(0, 300, nullptr);
  SetGroup(0, {0, 2, 4});
  Fill(0, segment, 7);
  tampering.Set([this, once = std::make_shared<std::atomic<bool>>()](FromShelf& message) {
    if (message.piece().part().kind() == "rows" && !once->exchange(true)) mover.RemoveWorker(3);
    return true;
  });
  const MoveResult result = Save(0, segment, 7, store.get()).get();
  EXPECT_EQ(result.status.code(), Code::kUnavailable) << result.status;
  EXPECT_THAT(std::string(result.status.message()), HasSubstr("w3"));
  EXPECT_EQ(store->totals().bytes, 0);
  EXPECT_EQ(mover.WorkerOf("token 3"), std::nullopt);
  EXPECT_EQ(mover.WorkerOf("token 2"), 2u);
  EXPECT_EQ(Save(0, segment, 7, store.get()).get().status.code(), Code::kUnavailable);
}

class ImpatientMoverTest : public SegmentMoverTest {
 public:
  static MoverOptions Short() {
    MoverOptions options = Options();
    options.stall_timeout_seconds = 0.3;
    options.waiting_max = 3;
    options.threads = 1;
    return options;
  }
  ImpatientMoverTest() : SegmentMoverTest(Short()) {}
};

TEST_F(ImpatientMoverTest, Silence) {
  const auto store = OpenTestStore(EmptyTestFolder("mover_silent"));
  const TestSegment segment = Segment(0, 300, nullptr);
  SetGroup(0, {0, 2, 4});
  Fill(0, segment, 7);
  ASSERT_TRUE(SaveTestSegment(store.get(), segment, 1 << 20).ok());
  const auto other = OpenTestStore(EmptyTestFolder("mover_silent_too"));
  tampering.Set([](FromShelf&) { return false; });
  std::vector<std::future<MoveResult>> moves;
  moves.push_back(Save(0, segment, 7, other.get()));
  for (int i = 0; i < 10; ++i) moves.push_back(Bring(0, segment, 40 + i, store.get()));
  int silent = 0, too_many = 0;
  for (auto& move : moves) {
    const absl::Status status = move.get().status;
    if (status.code() == Code::kDeadlineExceeded) ++silent;
    if (status.code() == Code::kResourceExhausted) ++too_many;
    if (status.code() == Code::kDeadlineExceeded) {
      EXPECT_THAT(std::string(status.message()), HasSubstr("for 0.3 s (stall timeout)"));
    }
  }
  EXPECT_GE(silent, 3);
  EXPECT_GE(too_many, 7);
  EXPECT_EQ(silent + too_many, 11);
  tampering.Set(nullptr);
  EXPECT_EQ(other->totals().bytes, 0);
}

TEST_F(SegmentMoverFaultsTest, EndsWithMovesUnderWay) {
  const auto store = OpenTestStore(EmptyTestFolder("mover_stops"));
  const TestSegment segment = Segment(0, 300, nullptr);
  std::atomic<int> done = 0;
  {
    SegmentMover ends(Options());
    ShelfGroup group = *MakeShelfGroup(Model().identity, kVocab, kLayers, {{1, "w1", Model().parts, true}});
    ends.AddWorker(1, "t");
    ends.SetGroup(0, std::move(group));
    for (int i = 0; i < 5; ++i) {
      ends.Save({0, 7, "", segment.key, std::nullopt, 0, 300, segment.ids, true, true}, store.get(), [&](MoveResult r) {
        EXPECT_FALSE(r.status.ok());
        ++done;
      });
    }
  }
  EXPECT_EQ(done, 5);
}

}  // namespace
}  // namespace goldfinch
