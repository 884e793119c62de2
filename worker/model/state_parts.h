// What a model keeps of one sequence, part by part. This is the one list that everything about a sequence's state is
// made from: what a stage allocates (worker/stage/sequence_state.h), what it copies and clears, and how many bytes the
// memory plan, `goldfinch inspect` and the coordinator count.
//
// The kept rows of GOLD tiers are no part of it: they are derived from ids and compressed rows, belong to
// worker/stage/gold_tiers.h, and may be dropped and derived again at any time.
#ifndef GOLDFINCH_WORKER_MODEL_STATE_PARTS_H_
#define GOLDFINCH_WORKER_MODEL_STATE_PARTS_H_

#include <cstdint>
#include <vector>

#include "base/stage_extent.h"
#include "base/state_part_kind.h"
#include "kernels/tensor.h"
#include "worker/model/model.h"

namespace goldfinch {

// "shift states", "key cache", ...: for messages about memory.
const char* MemoryName(StatePartKind kind);

// A part is named in the whole model by its layer and kind. The compressed cache and the tail rows are parts of the
// last Finch-side layer, which makes them; every stage with GOLD layers has the same compressed cache.
struct StatePart {
  int layer = 0;  // of the model
  StatePartKind kind = StatePartKind::kTimeShift;
  DType dtype = DType::kF32;
  Shape shape = {};  // for one sequence or one token; rank 0 for a single number

  bool operator==(const StatePart&) const = default;
  bool per_token() const { return IsPerToken(kind); }
  bool in_compressed_cache() const { return kind == StatePartKind::kIds || kind == StatePartKind::kRows; }
  // Bytes for one sequence, or for one token.
  int64_t bytes() const { return BytesOf(dtype, shape.rank() == 0 ? 1 : shape.elements()); }
};

// The parts of one layer.
std::vector<StatePart> LayerStateParts(const ModelShape& shape, DType cache_dtype, int layer);
// The parts that a stage keeps, in the order of their layers.
std::vector<StatePart> StageStateParts(const ModelShape& shape, DType cache_dtype, const StageExtent& stage);
// The parts of segments and snapshots (docs/GLOSSARY.md) that a stage saves: what it keeps, and, in the last stage, the
// logits [vocab] under the number of the last layer. A snapshot need not have logits.
std::vector<StatePart> StageSavedParts(const ModelShape& shape, DType cache_dtype, const StageExtent& stage);

}  // namespace goldfinch

#endif  // GOLDFINCH_WORKER_MODEL_STATE_PARTS_H_
