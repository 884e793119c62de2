// What a model keeps of one sequence, part by part. This is the one list that everything about a sequence's state is
// made from: what a stage allocates (worker/stage/sequence_state.h), what it copies and clears, and how many bytes the
// memory plan, `goldfinch inspect` and the coordinator count.
//
// The kept rows of GOLD tiers are no part of it: they are derived from ids and compressed rows, belong to
// worker/stage/gold_tiers.h, and may be dropped and derived again at any time.
#ifndef GOLDFINCH_WORKER_MODEL_STATE_PARTS_H_
#define GOLDFINCH_WORKER_MODEL_STATE_PARTS_H_

#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

#include "base/stage_extent.h"
#include "kernels/tensor.h"
#include "worker/model/model.h"

namespace goldfinch {

enum class StatePartKind : uint8_t {
  // One for a sequence, whatever its length.
  kTimeShift,     // the last input row of the time mix
  kChannelShift,  // the last input row of the channel mix
  kWkv,           // the recurrent state
  kTailRows,      // the newest Finch-side output rows; row p mod 2G is that of position p
  kLogits,        // those that follow the last token: part of a snapshot, but a stage keeps none
  // One for each of its tokens.
  kKeys,    // of ordinary attention
  kValues,  // of ordinary attention
  kIds,     // the compressed cache: token ids,
  kRows,    // and compressed rows c
};
// "shift states", "key cache", ...: for messages about memory.
const char* Name(StatePartKind kind);
// A name of its own for each kind, in messages and files that keep parts: "time_shift", "channel_shift", "wkv",
// "tail_rows", "logits", "keys", "values", "ids", "rows". These never change.
const char* KindName(StatePartKind kind);
std::optional<StatePartKind> ParseKindName(std::string_view name);

// A part is named in the whole model by its layer and kind. The compressed cache and the tail rows are parts of the
// last Finch-side layer, which makes them; every stage with GOLD layers has the same compressed cache.
struct StatePart {
  int layer = 0;  // of the model
  StatePartKind kind = StatePartKind::kTimeShift;
  DType dtype = DType::kF32;
  Shape shape = {};  // for one sequence or one token; rank 0 for a single number

  bool operator==(const StatePart&) const = default;
  bool per_token() const { return kind >= StatePartKind::kKeys; }
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
