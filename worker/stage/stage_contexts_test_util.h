// What tests of saved sequences share: pipelines of stages on one back end, and segments in the host's memory.
#ifndef GOLDFINCH_WORKER_STAGE_STAGE_CONTEXTS_TEST_UTIL_H_
#define GOLDFINCH_WORKER_STAGE_STAGE_CONTEXTS_TEST_UTIL_H_

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/backend.h"
#include "worker/model/model.h"
#include "worker/model/random_model.h"
#include "worker/stage/saved_segment.h"
#include "worker/stage/stage.h"

namespace goldfinch {

// All stages of a model, run one after the other. Slots are the same in all of them.
class TestPipeline {
 public:
  TestPipeline(Backend& backend, const RandomModelSpec& spec, const std::vector<int>& first_layers,
               const StageOptions& options, int64_t kept_bytes = 0)
      : backend_(backend), vocab_(spec.vocab_size) {
    const auto checkpoint = OpenTensors(RandomModel(spec));
    for (size_t i = 0; i < first_layers.size(); ++i) {
      const int last = i + 1 < first_layers.size() ? first_layers[i + 1] : -1;
      auto model = LoadModel(backend, checkpoint, {}, first_layers[i], last);
      EXPECT_TRUE(model.ok()) << model.status();
      auto stage = Stage::Create(backend, *std::move(model), options);
      EXPECT_TRUE(stage.ok()) << stage.status();
      (*stage)->ReserveSaving();
      EXPECT_TRUE((*stage)->ReserveKept(kept_bytes).ok());
      stages_.push_back(*std::move(stage));
    }
  }

  int Open() {
    int slot = -1;
    for (auto& stage : stages_) slot = stage->Open().value_or(-1);
    return slot;
  }
  int Fork(int from) {
    int slot = -1;
    for (auto& stage : stages_) slot = stage->Fork(from).value_or(-1);
    return slot;
  }
  void Close(int slot) {
    for (auto& stage : stages_) stage->Close(slot);
  }

  // Returns the logits on the host.
  std::vector<float> Run(const std::vector<Chunk>& chunks) {
    Tensor hidden, compressed;
    for (auto& stage : stages_) {
      StageInput input;
      if (stage->InputRows(chunks).hidden > 0) input.hidden = hidden;
      if (stage->extent().receives_compressed()) input.compressed = compressed;
      const absl::Status status = stage->Forward(chunks, input, &output_);
      EXPECT_TRUE(status.ok()) << status;
      hidden = output_.hidden;
      if (output_.compressed) compressed = output_.compressed;
    }
    std::vector<float> logits;
    if (!output_.logits) return logits;
    logits.resize(output_.logits.shape.elements());
    backend_.CopyToHost(output_.logits, logits.data());
    return logits;
  }
  std::vector<float> Run(int slot, const std::vector<int32_t>& ids, int64_t logit_rows) {
    return Run({{slot, ids, logit_rows}});
  }

  // Appends a segment that ends where the sequence is. `logits`: the last chunk was one of this sequence alone, and its
  // last token has logits. Parts that several stages have must be the same in all of them.
  void Save(int slot, std::vector<SavedSegment>* chain, bool logits) {
    const int64_t begin = chain->empty() ? 0 : chain->back().end;
    SavedSegment all{.begin = begin, .end = stages_[0]->position(slot)};
    for (auto& stage : stages_) {
      SavedSegment segment{all.begin, all.end, stage->gold_position(slot)};
      all.gold_position = segment.gold_position;
      std::vector<std::shared_ptr<SavedPart>> parts;
      for (const StatePart& part : stage->saved_parts()) {
        if (part.kind == StatePartKind::kLogits && !logits) continue;
        parts.push_back(MakePart(part, all.end - all.begin));
        segment.parts.push_back(parts.back());
      }
      ConstTensor row;
      if (logits && stage->extent().has_head()) row = Rows(ConstTensor(output_.logits), output_.logits.dim(0) - 1, 1);
      const auto written = std::make_shared<const CopyEnd>(stage->Save(slot, row, segment));
      for (auto& part : parts) part->written = written;
      all.parts.insert(all.parts.end(), segment.parts.begin(), segment.parts.end());
    }
    chain->push_back(std::move(all));
  }

  int Restore(const std::vector<SavedSegment>& chain, size_t segments) {
    std::vector<const SavedSegment*> pointers;
    for (size_t i = 0; i < segments; ++i) pointers.push_back(&chain[i]);
    int slot = -1;
    for (auto& stage : stages_) {
      const absl::StatusOr<int> restored = stage->Restore(pointers);
      EXPECT_TRUE(restored.ok()) << restored.status();
      slot = restored.value_or(-1);
    }
    return slot;
  }

  // Memory of the back end for a part, in ranges of odd sizes that lie in any order, or of the size given.
  std::shared_ptr<SavedPart> MakePart(const StatePart& part, int64_t rows, int64_t range_bytes = 0) {
    auto saved = std::make_shared<SavedPart>(SavedPart{.part = part, .rows = part.per_token() ? rows : 1});
    const int64_t bytes = saved->bytes();
    const int64_t piece = range_bytes > 0 ? range_bytes : 64 * (1 + static_cast<int64_t>(memory_.size() % 7));
    memory_.push_back(*backend_.AllocateStaging(bytes, "a saved part"));
    char* const memory = static_cast<char*>(memory_.back().get());
    for (int64_t begin = 0; begin < bytes; begin += piece) {
      saved->ranges.push_back({memory + begin, std::min(piece, bytes - begin)});
    }
    // Two full ranges may change places.
    if (saved->ranges.size() > 2) std::swap(saved->ranges[0].data, saved->ranges[1].data);
    return saved;
  }

  static std::string Bytes(const SavedPart& part) {
    if (const std::shared_ptr<const Mark> mark = part.Pending(); mark != nullptr) mark->Wait();
    std::string bytes;
    part.ForEachRange(0, part.bytes(), [&](const char* data, int64_t count) { bytes.append(data, count); });
    return bytes;
  }

  Stage& stage(size_t index) { return *stages_[index]; }
  size_t stages() const { return stages_.size(); }
  int64_t vocab() const { return vocab_; }
  int64_t used_pages() const { return stages_.back()->sequences().used_pages(); }

 private:
  Backend& backend_;
  const int64_t vocab_;
  std::vector<std::shared_ptr<void>> memory_;
  std::vector<std::unique_ptr<Stage>> stages_;
  StageOutput output_;
};

}  // namespace goldfinch

#endif  // GOLDFINCH_WORKER_STAGE_STAGE_CONTEXTS_TEST_UTIL_H_
