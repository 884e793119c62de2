#include "tests/bench/model_costs.h"

#include <cstdio>

namespace goldfinch {

ModelCosts CostsOf(const Checkpoint& checkpoint, const ModelShape& shape) {
  ModelCosts costs;
  for (const CheckpointTensor& tensor : checkpoint.tensors()) {
    if (tensor.name == "emb.weight") continue;  // a row a token
    const auto bytes = static_cast<double>(tensor.bytes());
    // A Finch-C2 layer multiplies by W_v twice, reading it twice as far as caches are concerned.
    const bool twice = tensor.name.ends_with("att.value.weight");
    costs.decode_bytes += bytes;
    int layer = -1;
    if (tensor.data.shape.rank() < 2 || std::sscanf(tensor.name.c_str(), "blocks.%d.", &layer) != 1) continue;
    if (layer >= shape.finch_layers() || tensor.data.dim(0) == 1) continue;
    costs.prefill_flops += (twice ? 4.0 : 2.0) * static_cast<double>(tensor.data.shape.elements());
  }
  return costs;
}

}  // namespace goldfinch
