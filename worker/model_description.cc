#include "worker/model_description.h"

#include <cstdint>
#include <optional>

#include "protos/cluster.pb.h"
#include "worker/checkpoint/fingerprint.h"

namespace goldfinch {
namespace {

// Elements of a matrix, which are all read for one token; 0 for vectors and norms, which weigh nothing beside it.
int64_t MatrixElements(const Shape& shape) {
  int dims = 0;
  for (int axis = 0; axis < shape.rank(); ++axis) dims += shape[axis] > 1 ? 1 : 0;
  return dims >= 2 ? shape.elements() : 0;
}

void DescribeLayer(const ModelShape& shape, int index, DType cache_dtype, cluster::v1::LayerDescription* layer) {
  layer->set_kind(shape.kinds[index]->name);
  int64_t state_bytes = 0, cache_bytes_per_token = 0;
  for (const StatePart& part : LayerStateParts(shape, cache_dtype, index)) {
    if (part.in_compressed_cache()) continue;  // described once for the model
    (part.per_token() ? cache_bytes_per_token : state_bytes) += part.bytes();
  }
  layer->set_state_bytes(state_bytes);
  layer->set_cache_bytes_per_token(cache_bytes_per_token);
}

void DescribeMemory(const ModelMemory& memory, cluster::v1::ModelMemory* message) {
  for (const LayerMemory& layer : memory.layers) {
    cluster::v1::LayerMemory& to = *message->add_layers();
    to.set_weight_bytes(layer.weight_bytes);
    to.set_table_bytes(layer.table_bytes);
    to.set_shift_bytes(layer.shift_bytes);
    to.set_wkv_bytes(layer.wkv_bytes);
    to.set_cache_bytes_per_token(layer.cache_bytes_per_token);
    to.set_activation_bytes(layer.activation_bytes);
  }
  message->set_embedding_bytes(memory.embedding_bytes);
  message->set_gold_shared_bytes(memory.gold_shared_bytes);
  message->set_key_table_bytes(memory.key_table_bytes);
  message->set_head_bytes(memory.head_bytes);
  message->set_compressed_row_bytes(memory.compressed_row_bytes);
  message->set_back_end_bytes(memory.back_end_bytes);
  message->set_back_end_bytes_per_row(memory.back_end_bytes_per_row);
  message->set_back_end_bytes_per_logit_row(memory.back_end_bytes_per_logit_row);
  message->set_uses_side_rows(memory.uses_side_rows);
  message->set_snapshot_copies(static_cast<uint32_t>(memory.snapshot_copies));
}

}  // namespace

void DescribeModel(const Checkpoint& checkpoint, const ModelShape& shape, const ModelConfig& config, DType cache_dtype,
                   const ModelMemory& memory, cluster::v1::Described* described) {
  using Part = TensorHome::Part;
  described->set_fingerprint(Fingerprint(checkpoint));
  for (int layer = 0; layer < shape.layers(); ++layer) {
    DescribeLayer(shape, layer, cache_dtype, described->add_layers());
  }
  int64_t embedding_bytes = 0, head_bytes = 0, gold_shared_bytes = 0;
  for (const CheckpointTensor& tensor : checkpoint.tensors()) {
    const std::optional<TensorHome> home = FindTensorHome(shape, tensor.name);
    if (!home) continue;
    const int64_t bytes = tensor.bytes();
    if (home->part == Part::kEmbedding) embedding_bytes += bytes;
    if (home->part == Part::kHead) head_bytes += bytes;
    if (home->part == Part::kGoldShared) gold_shared_bytes += bytes;
    if (home->part != Part::kLayer) continue;
    cluster::v1::LayerDescription& layer = *described->mutable_layers(home->layer);
    layer.set_weight_bytes(layer.weight_bytes() + bytes);
    if (shape.kinds[home->layer]->reads_gold_cache) continue;
    layer.set_prefill_flops(layer.prefill_flops() + 2.0 * static_cast<double>(MatrixElements(tensor.data.shape)));
  }
  for (int index = 0; index < shape.layers(); ++index) {
    cluster::v1::LayerDescription& layer = *described->mutable_layers(index);
    // For each element of the state S: a multiply-add each for the decay, for adding k v, and for the sum of r S.
    if (shape.kinds[index]->has_wkv) {
      layer.set_prefill_flops(layer.prefill_flops() + 6.0 * static_cast<double>(shape.width * shape.head_size));
    }
    layer.set_decode_bytes(static_cast<double>(layer.weight_bytes() + layer.state_bytes()));
  }
  described->set_gold_layers(shape.gold_layers());
  described->set_width(shape.width);
  described->set_vocab_size(shape.vocab_size);
  described->set_vocabulary(config.vocabulary);
  described->set_embedding_bytes(embedding_bytes);
  described->set_head_bytes(head_bytes);
  described->set_gold_shared_bytes(gold_shared_bytes);
  described->set_compressed_width(shape.compressed);
  described->set_compressed_bytes_per_token(shape.CompressedBytesPerToken(cache_dtype));
  described->set_transformer_cache_bytes_per_token(shape.TransformerBytesPerToken());
  DescribeMemory(memory, described->mutable_memory());
}

void DescribeParts(absl::Span<const StatePart> parts, cluster::v1::Joined* joined) {
  for (const StatePart& part : parts) {
    cluster::v1::PartDescription& to = *joined->add_parts();
    to.mutable_part()->set_layer(part.layer);
    to.mutable_part()->set_kind(KindName(part.kind));
    to.set_dtype(Name(part.dtype));
    for (int axis = 0; axis < part.shape.rank(); ++axis) to.add_shape(part.shape[axis]);
  }
}

}  // namespace goldfinch
