// Segments go from the shelves of real workers' parts to a store, and from there to shelves of other splits.
#include "coordinator/segment_mover.h"

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstdint>
#include <functional>
#include <future>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "base/crc32c.h"
#include "clients/cli/embedded_shelf.h"
#include "coordinator/shelf_group.h"
#include "coordinator/shelf_link.h"
#include "coordinator/store/fault_files.h"
#include "coordinator/store/files.h"
#include "coordinator/store/segment.h"
#include "coordinator/store/store.h"
#include "coordinator/store/store_test_util.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/cpu/cpu_backend.h"
#include "protos/cluster.pb.h"
#include "worker/context_shelf.h"

namespace goldfinch {
namespace {

using cluster::v1::FromShelf;
using cluster::v1::Piece;
using ::testing::HasSubstr;
using Code = absl::StatusCode;
using Kind = ContextPartKind;

constexpr int kLayers = 6, kFinchLayers = 4;
constexpr int64_t kShelfBytes = 24 << 20, kPositionsMax = 1 << 20, kVocab = 1000;

// Four layers with states, of which the second has keys and values in place of a state, and two GOLD layers. Some parts
// are of several pieces.
ContextModel Model() {
  ContextModel model{{"0123456789abcdef", "world-1", "f16", "cpu-f32"}, kVocab, {}};
  for (int layer = 0; layer < kLayers; ++layer) {
    const auto add = [&](Kind kind, ElementType type, std::vector<int64_t> shape) {
      model.parts.push_back({layer, kind, type, std::move(shape)});
    };
    add(Kind::kTimeShift, ElementType::kF32, {16});
    if (layer < kFinchLayers && layer != 1) add(Kind::kWkv, ElementType::kF32, {layer == 0 ? 96 : 2, 64, 64});
    if (layer == kFinchLayers - 1) add(Kind::kTailRows, ElementType::kF32, {4, 16});
    if (layer == 1) add(Kind::kKeys, ElementType::kF16, {16});
    if (layer == 1) add(Kind::kValues, ElementType::kF16, {16});
    if (layer == kFinchLayers - 1) add(Kind::kRows, ElementType::kF16, {64});
  }
  return model;
}

StatePart AsStatePart(const ContextPart& part) {
  StatePart made{part.layer, *ParseKindName(Name(part.kind)), DType::kF32, {}};
  if (part.type == ElementType::kF16) made.dtype = DType::kF16;
  if (part.shape.size() == 1) made.shape = {part.shape[0]};
  if (part.shape.size() == 2) made.shape = {part.shape[0], part.shape[1]};
  if (part.shape.size() == 3) made.shape = {part.shape[0], part.shape[1], part.shape[2]};
  return made;
}

// Stands between shelves and the mover, and may change or keep what the shelves say.
class Tampering : public ShelfListener {
 public:
  // False: the message is kept.
  using Edit = std::function<bool(FromShelf& message)>;

  explicit Tampering(ShelfListener* mover) : mover_(mover) {}
  void Set(Edit edit) {
    const std::lock_guard<std::mutex> lock(mutex_);
    edit_ = std::move(edit);
  }

  std::optional<uint64_t> WorkerOf(const std::string& token) const override { return mover_->WorkerOf(token); }
  bool Opened(uint64_t worker, std::shared_ptr<ShelfLink> link) override { return mover_->Opened(worker, link); }
  void Received(const ShelfLink* link, FromShelf message) override {
    Edit edit;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      edit = edit_;
    }
    if (edit == nullptr || edit(message)) mover_->Received(link, std::move(message));
  }
  void Written(const ShelfLink* link, int64_t bytes) override { mover_->Written(link, bytes); }
  void Closed(const ShelfLink* link) override { mover_->Closed(link); }

 private:
  ShelfListener* const mover_;
  std::mutex mutex_;
  Edit edit_;
};

struct TestStage {
  std::unique_ptr<ContextShelf> shelf;
  std::unique_ptr<EmbeddedShelf> stream;
};

class SegmentMoverTest : public testing::Test {
 public:
  static MoverOptions Options() {
    MoverOptions options;
    options.save_bytes_per_second = 0;
    options.stall_timeout_seconds = 60;
    return options;
  }
  explicit SegmentMoverTest(const MoverOptions& options = Options()) : mover(options), tampering(&mover) {}

  // The group of a replica; its stages begin at these layers.
  void SetGroup(int replica, const std::vector<int>& first_layers, int64_t shelf_bytes = kShelfBytes) {
    const ContextModel model = Model();
    std::vector<ShelfStage> stages;
    std::vector<TestStage>& made = groups[replica];
    for (size_t i = 0; i < first_layers.size(); ++i) {
      const int last = i + 1 < first_layers.size() ? first_layers[i + 1] : kLayers;
      ShelfStage& stage = stages.emplace_back();
      stage.worker = ++workers;
      stage.name = absl::StrCat("w", stage.worker);
      stage.has_logits = last == kLayers;
      ShelfParts parts{{}, kVocab, kPositionsMax};
      for (const ContextPart& part : model.parts) {
        const bool own = part.layer >= first_layers[i] && part.layer < last;
        if (part.kind == Kind::kRows ? last <= kFinchLayers : !own) continue;
        stage.parts.push_back(part);
        parts.parts.push_back(AsStatePart(part));
        if (part.kind == Kind::kRows) parts.parts.push_back({part.layer, StatePartKind::kIds, DType::kU16, {}});
      }
      if (stage.has_logits) parts.parts.push_back({kLayers - 1, StatePartKind::kLogits, DType::kF32, {kVocab}});
      TestStage& test_stage = made.emplace_back();
      test_stage.shelf = *ContextShelf::Create(*device, shelf_bytes);
      test_stage.shelf->SetParts(parts);
      const std::string token = absl::StrCat("token ", stage.worker);
      mover.AddWorker(stage.worker, token);
      test_stage.stream = std::make_unique<EmbeddedShelf>(*test_stage.shelf, tampering, token);
    }
    absl::StatusOr<ShelfGroup> group = MakeShelfGroup(model.identity, kVocab, kLayers, std::move(stages));
    ASSERT_TRUE(group.ok()) << group.status();
    EXPECT_EQ(group->model, model);
    mover.SetGroup(replica, *std::move(group));
  }

  static TestSegment Segment(int64_t begin, int64_t end, const TestSegment* parent, bool snapshot = true) {
    SegmentSpec spec;
    spec.model = Model();
    spec.name_space = "somebody";
    if (parent != nullptr) spec.parent = parent->key;
    spec.begin = begin;
    spec.end = end;
    spec.has_snapshot = snapshot;
    spec.gold_position = snapshot ? begin + 1 : 0;
    spec.has_logits = snapshot;
    return MakeTestSegment(spec, static_cast<int>(end % 97));
  }

  // Calls `use` with each part that a shelf takes of the segment.
  void ForEachPart(const TestSegment& segment, uint64_t number,
                   const std::function<void(const PartPiece& part, const std::string& bytes)>& use) {
    const SegmentLayout layout = *LayOut(segment.segment);
    for (size_t i = 0; i < layout.sections.size(); ++i) {
      const SegmentSection& section = layout.sections[i];
      PartPiece part;
      part.segment = number;
      part.part = {kFinchLayers - 1, StatePartKind::kIds, DType::kU16, {}};
      if (section.what == SegmentSection::What::kPart)
        part.part = AsStatePart(segment.segment.model.parts[section.part]);
      if (section.what == SegmentSection::What::kLogits) {
        part.part = {kLayers - 1, StatePartKind::kLogits, DType::kF32, {kVocab}};
      }
      part.begin = segment.segment.begin;
      part.end = segment.segment.end;
      part.gold_position = section.in_snapshot ? segment.segment.gold_position : 0;
      use(part, segment.sections[i]);
    }
  }

  // Saves a segment on the shelves of its stages.
  void Fill(int replica, const TestSegment& segment, uint64_t number) {
    const SegmentSpec& spec = segment.segment;
    for (const TestStage& stage : groups[replica]) {
      const absl::Status saved = stage.shelf->Save(
          number, spec.begin, spec.end, spec.gold_position, spec.has_logits, [&](const SavedSegment& to) {
            ForEachPart(segment, number, [&](const PartPiece& part, const std::string& bytes) {
              const SavedPart* const saved = to.Find(part.part.layer, part.part.kind);
              if (saved == nullptr) return;
              const char* from = bytes.data();
              saved->ForEachRange(0, saved->bytes(), [&](char* data, int64_t size) {
                std::copy(from, from + size, data);
                from += size;
              });
            });
            return device->queue().Record();
          });
      EXPECT_TRUE(saved.ok()) << saved;
      if (!spec.has_snapshot) stage.shelf->DropSnapshot(number);
    }
  }

  // How many parts of a segment the shelves have, all of which must be right.
  int Count(int replica, const TestSegment& segment, uint64_t number) {
    int count = 0;
    ForEachPart(segment, number, [&](const PartPiece& part, const std::string& bytes) {
      for (const TestStage& stage : groups[replica]) {
        const absl::StatusOr<SavedSegment> there = stage.shelf->Find(number);
        const SavedPart* const saved = there.ok() ? there->Find(part.part.layer, part.part.kind) : nullptr;
        if (saved == nullptr) continue;
        ++count;
        std::string found;
        saved->ForEachRange(0, saved->bytes(), [&](const char* data, int64_t size) { found.append(data, size); });
        EXPECT_TRUE(found == bytes) << KindName(part.part.kind) << " of layer " << part.part.layer;
        if (!part.part.per_token()) {
          EXPECT_EQ(there->gold_position, segment.segment.gold_position);
        }
      }
    });
    return count;
  }

  std::future<MoveResult> Save(int replica, const TestSegment& segment, uint64_t number, SegmentStore* store) {
    const SegmentSpec& spec = segment.segment;
    auto done = std::make_shared<std::promise<MoveResult>>();
    mover.Save({replica, number, spec.name_space, segment.key, spec.parent, spec.begin, spec.end, segment.ids,
                spec.has_snapshot, spec.has_logits},
               store, [done](MoveResult result) { done->set_value(std::move(result)); });
    return done->get_future();
  }
  std::future<MoveResult> Bring(int replica, const TestSegment& segment, uint64_t number, SegmentStore* store,
                                SegmentContents contents = kRowsAndSnapshot) {
    auto done = std::make_shared<std::promise<MoveResult>>();
    mover.Bring({replica, number, segment.key, contents}, store,
                [done](MoveResult result) { done->set_value(std::move(result)); });
    return done->get_future();
  }

  const std::unique_ptr<Backend> device = MakeCpuBackend(/*threads=*/1);
  uint64_t workers = 0;
  SegmentMover mover;
  Tampering tampering;
  std::map<int, std::vector<TestStage>> groups;
};

int64_t BytesOf(const TestSegment& segment) {
  int64_t bytes = 0;
  for (const std::string& section : segment.sections) bytes += static_cast<int64_t>(section.size());
  return bytes;
}

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
  std::atomic<int> rows = 0;
  tampering.Set([&](FromShelf& message) {
    for (const char* kind : {"rows", "ids", "keys", "values"}) rows += message.piece().part().kind() == kind ? 1 : 0;
    return true;
  });
  segment.segment.has_snapshot = segment.segment.has_logits = false;
  ASSERT_TRUE(Save(0, segment, 7, store.get()).get().status.ok());
  EXPECT_EQ(rows, 3) << "not the ids, and the compressed rows once";
  segment.segment.has_snapshot = segment.segment.has_logits = true;
  const MoveResult result = Save(0, segment, 7, store.get()).get();
  ASSERT_TRUE(result.status.ok()) << result.status;
  EXPECT_EQ(rows, 3);
  EXPECT_EQ(*LoadSections(store.get(), segment.key), segment.sections);
}

TEST_F(SegmentMoverTest, WhatAWorkerSaysIsChecked) {
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

TEST_F(SegmentMoverTest, NoRoom) {
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
    for (const TestStage& stage : groups[1]) stage.shelf->Drop(7);
    for (const TestStage& stage : groups[1]) EXPECT_EQ(stage.shelf->used_bytes(), 0);
  }
  // In the store, and on its disk, at each of its writes.
  const auto small = OpenTestStore(EmptyTestFolder("mover_small"), /*bytes_max=*/1 << 20);
  EXPECT_EQ(Save(0, segment, 7, small.get()).get().status.code(), Code::kResourceExhausted);
  for (int call = 0;; ++call) {
    FaultFiles files(Fault::kError, call, ENOSPC);
    const auto disk = OpenTestStore(EmptyTestFolder("mover_disk"), 1 << 30, &files);
    const MoveResult full = Save(0, segment, 7, disk.get()).get();
    if (full.status.ok()) break;
    EXPECT_EQ(full.status.code(), Code::kResourceExhausted) << full.status;
    ASSERT_LT(call, 100);
  }
  EXPECT_EQ(Save(0, segment, 8, store.get()).get().status.code(), Code::kOk) << "the store has it already";
}

TEST_F(SegmentMoverTest, DamageIsNeverBrought) {
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

TEST_F(SegmentMoverTest, GroupsEnd) {
  const auto store = OpenTestStore(EmptyTestFolder("mover_ends"));
  const TestSegment segment = Segment(0, 300, nullptr);
  EXPECT_EQ(Save(0, segment, 7, store.get()).get().status.code(), Code::kFailedPrecondition);
  SetGroup(0, {0, 2, 4});
  Fill(0, segment, 7);
  ASSERT_TRUE(Save(0, segment, 7, store.get()).get().status.ok());
  SetGroup(1, {0, 3});
  // Workers that say nothing more: what runs and what waits ends at once, or as soon as a part that was sent is
  // answered.
  std::promise<void> kept;
  std::atomic<bool> once = false, keep = true;
  tampering.Set([&](FromShelf&) {
    if (!once.exchange(true)) kept.set_value();
    while (keep) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    return true;
  });
  std::vector<std::future<MoveResult>> moves;
  for (int i = 0; i < 5; ++i) moves.push_back(Bring(1, segment, 30 + i, store.get()));
  kept.get_future().wait();
  mover.EndGroup(1);
  keep = false;
  for (auto& move : moves) EXPECT_EQ(move.get().status.code(), Code::kCancelled);
  for (const TestStage& stage : groups[1]) {
    for (int i = 0; i < 5; ++i) stage.shelf->Drop(30 + i);
    EXPECT_EQ(stage.shelf->used_bytes(), 0) << "nothing comes after the move is done";
  }
  const auto other = OpenTestStore(EmptyTestFolder("mover_ends_too"));
  std::atomic<bool> fetched = false;
  keep = true;
  tampering.Set([&](FromShelf&) {
    fetched = true;
    while (keep) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    return true;
  });
  auto save = Save(0, segment, 7, other.get());
  while (!fetched) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  mover.EndGroup(0);
  EXPECT_EQ(save.get().status.code(), Code::kCancelled);
  keep = false;
  EXPECT_EQ(other->totals().bytes, 0);
  EXPECT_EQ(Save(0, segment, 7, other.get()).get().status.code(), Code::kFailedPrecondition);
}

TEST_F(SegmentMoverTest, WorkersThatAreGone) {
  const auto store = OpenTestStore(EmptyTestFolder("mover_gone"));
  const TestSegment segment = Segment(0, 300, nullptr);
  SetGroup(0, {0, 2, 4});
  Fill(0, segment, 7);
  std::atomic<bool> once = false;
  tampering.Set([&](FromShelf& message) {
    if (message.piece().part().kind() == "rows" && !once.exchange(true)) mover.RemoveWorker(3);
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
  std::atomic<bool> saving = false;
  tampering.Set([&](FromShelf& message) {
    if (message.piece().part().kind() == "rows") saving = true;
    return true;
  });
  auto save = Save(0, large, 9, store.get());
  while (!saving) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  const MoveResult brought = Bring(0, segment, 11, store.get()).get();
  EXPECT_TRUE(brought.status.ok()) << brought.status;
  EXPECT_EQ(Count(0, segment, 11), static_cast<int>(segment.sections.size()));
  EXPECT_TRUE(save.get().status.ok());
}

TEST_F(SegmentMoverTest, EndsWithMovesUnderWay) {
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
