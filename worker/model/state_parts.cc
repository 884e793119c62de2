#include "worker/model/state_parts.h"

#include "base/token_ids.h"
#include "worker/model/layers.h"

namespace goldfinch {

const char* MemoryName(StatePartKind kind) {
  switch (kind) {
    case StatePartKind::kTimeShift:
    case StatePartKind::kChannelShift:
      return "shift states";
    case StatePartKind::kWkv:
      return "WKV states";
    case StatePartKind::kTailRows:
      return "tail rows";
    case StatePartKind::kLogits:
      return "logits";
    case StatePartKind::kKeys:
      return "key cache";
    case StatePartKind::kValues:
      return "value cache";
    case StatePartKind::kIds:
    case StatePartKind::kRows:
      return "compressed cache";
  }
  return "";
}

std::vector<StatePart> LayerStateParts(const ModelShape& shape, DType cache_dtype, int layer) {
  const TimeMixKind& time_mix = *shape.kinds[layer];
  const int64_t n = shape.head_size;
  std::vector<StatePart> parts;
  const auto add = [&](StatePartKind kind, DType dtype, const Shape& part_shape) {
    parts.push_back({layer, kind, dtype, part_shape});
  };
  if (time_mix.has_shift) add(StatePartKind::kTimeShift, DType::kF32, {shape.width});
  if (shape.channel_kinds[layer]->has_shift) add(StatePartKind::kChannelShift, DType::kF32, {shape.width});
  if (time_mix.has_wkv) add(StatePartKind::kWkv, DType::kF32, {shape.heads(), n, n});
  if (time_mix.has_kv_cache) {
    add(StatePartKind::kKeys, cache_dtype, {shape.width});
    add(StatePartKind::kValues, cache_dtype, {shape.width});
  }
  if (shape.gold_layers() > 0 && layer == shape.finch_layers() - 1) {
    add(StatePartKind::kTailRows, DType::kF32, {TokenShiftReach(shape.gold_layers()), shape.width});
    add(StatePartKind::kIds, IdBytes(shape.vocab_size) == SizeOf(DType::kU16) ? DType::kU16 : DType::kI32, {});
    add(StatePartKind::kRows, cache_dtype, {CompressedRowWidth(cache_dtype, shape.compressed)});
  }
  return parts;
}

std::vector<StatePart> StageStateParts(const ModelShape& shape, DType cache_dtype, const StageExtent& stage) {
  std::vector<StatePart> parts;
  for (int layer = 0; layer < stage.last_layer; ++layer) {
    for (const StatePart& part : LayerStateParts(shape, cache_dtype, layer)) {
      if (part.in_compressed_cache() ? stage.has_gold() : stage.has_layer(layer)) parts.push_back(part);
    }
  }
  return parts;
}

std::vector<StatePart> StageSavedParts(const ModelShape& shape, DType cache_dtype, const StageExtent& stage) {
  std::vector<StatePart> parts = StageStateParts(shape, cache_dtype, stage);
  if (stage.has_head()) parts.push_back({shape.layers() - 1, StatePartKind::kLogits, DType::kF32, {shape.vocab_size}});
  return parts;
}

}  // namespace goldfinch
