#include "worker/model/model_memory.h"

#include <algorithm>
#include <any>

#include "worker/model/layers.h"
#include "worker/model/state_parts.h"

namespace goldfinch {
namespace {

// Adds the part to the field of the plan that counts it. Tail rows and the compressed cache have none: they are planned
// from the model's sizes.
void AddStatePart(const StatePart& part, LayerMemory* memory) {
  switch (part.kind) {
    case StatePartKind::kTimeShift:
    case StatePartKind::kChannelShift:
      memory->shift_bytes += part.bytes();
      break;
    case StatePartKind::kWkv:
      memory->wkv_bytes += part.bytes();
      break;
    case StatePartKind::kKeys:
    case StatePartKind::kValues:
      memory->cache_bytes_per_token += part.bytes();
      break;
    case StatePartKind::kTailRows:
    case StatePartKind::kLogits:
    case StatePartKind::kIds:
    case StatePartKind::kRows:
      break;
  }
}

LayerMemory MemoryOfLayer(const ModelShape& shape, int index, const Layer& layer, DType cache_dtype,
                          DType activation_dtype) {
  LayerMemory memory;
  for (const StatePart& part : LayerStateParts(shape, cache_dtype, index)) AddStatePart(part, &memory);
  if (const auto* gold = std::any_cast<GoldWeights>(&layer.time_mix)) {
    memory.table_bytes = shape.vocab_size * 2 * gold->kv.mix_down.out() * SizeOf(DType::kF32);
  }
  const int64_t normed = 2 * shape.width;  // the normed rows, which are the input of the two mixes
  const int64_t mixed = std::max(shape.kinds[index]->activations(layer.time_mix, shape.width),
                                 shape.channel_kinds[index]->activations(layer.channel_mix, shape.width));
  memory.activation_bytes = (mixed + normed) * SizeOf(activation_dtype);
  return memory;
}

}  // namespace

ModelMemory MemoryOf(const Model& model, DType cache_dtype, const Backend& backend) {
  const ModelShape& shape = model.shape;
  ModelMemory memory;
  memory.layers.resize(shape.layers());
  for (int i = model.first_layer; i < model.last_layer; ++i) {
    memory.layers[i] =
        MemoryOfLayer(shape, i, model.layers[i - model.first_layer], cache_dtype, backend.activation_dtype());
    memory.layers[i].weight_bytes = model.bytes.layers[i];
  }
  memory.gold_layers = shape.gold_layers();
  memory.width = shape.width;
  memory.uses_side_rows = shape.uses_side_rows();
  memory.vocab_size = shape.vocab_size;
  memory.compressed_width = shape.compressed;
  memory.compressed_row_bytes = shape.CompressedRowBytes(cache_dtype);
  memory.embedding_bytes = model.bytes.embedding;
  memory.gold_shared_bytes = model.bytes.gold_shared;
  memory.head_bytes = model.bytes.head;
  memory.compressed_bytes_per_token = shape.CompressedBytesPerToken(cache_dtype);
  if (shape.gold_layers() > 0) {
    memory.key_table_bytes = shape.vocab_size * shape.width * SizeOf(backend.activation_dtype());
  }
  const OpMemory ops = backend.PlanOps(shape.width, shape.vocab_size);
  memory.back_end_bytes = ops.fixed_bytes;
  memory.back_end_bytes_per_row = ops.bytes_per_row;
  memory.back_end_bytes_per_logit_row = ops.bytes_per_logit_row;
  return memory;
}

}  // namespace goldfinch
