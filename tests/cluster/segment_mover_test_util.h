// Shelves of real workers' parts without the workers, and a mover that has their streams.
#ifndef GOLDFINCH_TESTS_CLUSTER_SEGMENT_MOVER_TEST_UTIL_H_
#define GOLDFINCH_TESTS_CLUSTER_SEGMENT_MOVER_TEST_UTIL_H_

#include <algorithm>
#include <cstdint>
#include <functional>
#include <future>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "clients/cli/serve/embedded_shelf.h"
#include "coordinator/shelves/segment_mover.h"
#include "coordinator/shelves/shelf_group.h"
#include "coordinator/shelves/shelf_link.h"
#include "coordinator/store/segment.h"
#include "coordinator/store/store.h"
#include "coordinator/store/store_test_util.h"
#include "gtest/gtest.h"
#include "kernels/cpu/cpu_backend.h"
#include "protos/cluster.pb.h"
#include "worker/context_shelf.h"

namespace goldfinch {

inline constexpr int kLayers = 6, kFinchLayers = 4;
inline constexpr int64_t kShelfBytes = 24 << 20, kPositionsMax = 1 << 20, kVocab = 1000;

// Four layers with states, of which the second has keys and values in place of a state, and two GOLD layers. Some parts
// are of several pieces.
inline ContextModel Model() {
  using Kind = StatePartKind;
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

inline StatePart AsStatePart(const ContextPart& part) {
  StatePart made{part.layer, part.kind, DType::kF32, {}};
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
  using Edit = std::function<bool(cluster::v1::FromShelf& message)>;

  explicit Tampering(ShelfListener* mover) : mover_(mover) {}
  void Set(Edit edit) {
    const std::lock_guard<std::mutex> lock(mutex_);
    edit_ = std::move(edit);
  }

  std::optional<uint64_t> WorkerOf(const std::string& token) const override { return mover_->WorkerOf(token); }
  bool Opened(uint64_t worker, std::shared_ptr<ShelfLink> link) override { return mover_->Opened(worker, link); }
  void Received(const ShelfLink* link, cluster::v1::FromShelf message) override {
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

struct StageShelf {
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
    std::vector<StageShelf>& made = groups[replica];
    for (size_t i = 0; i < first_layers.size(); ++i) {
      const int last = i + 1 < first_layers.size() ? first_layers[i + 1] : kLayers;
      ShelfStage& stage = stages.emplace_back();
      stage.worker = ++workers;
      stage.name = absl::StrCat("w", stage.worker);
      stage.has_logits = last == kLayers;
      ShelfParts parts{{}, kVocab, kPositionsMax};
      for (const ContextPart& part : model.parts) {
        const bool own = part.layer >= first_layers[i] && part.layer < last;
        if (part.kind == StatePartKind::kRows ? last <= kFinchLayers : !own) continue;
        stage.parts.push_back(part);
        parts.parts.push_back(AsStatePart(part));
        if (part.kind == StatePartKind::kRows)
          parts.parts.push_back({part.layer, StatePartKind::kIds, DType::kU16, {}});
      }
      if (stage.has_logits) parts.parts.push_back({kLayers - 1, StatePartKind::kLogits, DType::kF32, {kVocab}});
      StageShelf& test_stage = made.emplace_back();
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
    for (const StageShelf& stage : groups[replica]) {
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
      for (const StageShelf& stage : groups[replica]) {
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
  std::map<int, std::vector<StageShelf>> groups;
};

inline int64_t BytesOf(const TestSegment& segment) {
  int64_t bytes = 0;
  for (const std::string& section : segment.sections) bytes += static_cast<int64_t>(section.size());
  return bytes;
}

}  // namespace goldfinch

#endif  // GOLDFINCH_TESTS_CLUSTER_SEGMENT_MOVER_TEST_UTIL_H_
