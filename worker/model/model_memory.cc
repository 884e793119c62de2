#include "worker/model/model_memory.h"

#include <algorithm>
#include <any>

#include "worker/model/layers.h"

namespace goldfinch {
namespace {

LayerMemory MemoryOfLayer(const ModelShape& shape, int index, const Layer& layer, DType cache_dtype,
                          DType activation_dtype) {
  const TimeMixKind& kind = *shape.kinds[index];
  const ChannelMixKind& channel_kind = *shape.channel_kinds[index];
  const int64_t row_bytes = shape.width * SizeOf(DType::kF32);
  LayerMemory memory;
  if (kind.has_shift) memory.shift_bytes += row_bytes;
  if (channel_kind.has_shift) memory.shift_bytes += row_bytes;
  if (kind.has_wkv) memory.wkv_bytes = row_bytes * shape.head_size;
  if (kind.has_kv_cache) memory.cache_bytes_per_token = 2 * shape.width * SizeOf(cache_dtype);
  if (const auto* gold = std::any_cast<GoldWeights>(&layer.time_mix)) {
    memory.table_bytes = shape.vocab_size * 2 * gold->kv.mix_down.out() * SizeOf(DType::kF32);
  }
  const int64_t normed = 2 * shape.width;  // the normed rows, which are the input of the two mixes
  const int64_t mixed =
      std::max(kind.activations(layer.time_mix, shape.width), channel_kind.activations(layer.channel_mix, shape.width));
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
