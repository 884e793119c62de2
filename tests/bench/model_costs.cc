#include "tests/bench/model_costs.h"

#include <algorithm>
#include <cstdio>
#include <initializer_list>
#include <string_view>

#include "absl/strings/str_cat.h"

namespace goldfinch {
namespace {

bool IsAnyOf(std::string_view name, std::initializer_list<std::string_view> endings) {
  return std::any_of(endings.begin(), endings.end(), [&](std::string_view ending) { return name.ends_with(ending); });
}

}  // namespace

ModelCosts CostsOf(const Checkpoint& checkpoint, const ModelShape& shape) {
  ModelCosts costs;
  for (const CheckpointTensor& tensor : checkpoint.tensors()) {
    if (tensor.name == "emb.weight") continue;  // a row a token
    const auto bytes = static_cast<double>(tensor.bytes());
    costs.decode_bytes += bytes;
    if (tensor.by_input) costs.by_input_bytes += static_cast<double>(tensor.data.bytes());
    const double flops = 2.0 * static_cast<double>(tensor.data.shape.elements());
    if (tensor.name == "w_kv_cache_b.weight") {  // the columns that meet c
      const auto columns = static_cast<double>(tensor.data.dim(1));
      costs.gold_rebuild_flops += flops * static_cast<double>(shape.compressed) / columns * shape.gold_layers();
    }
    int layer = -1;
    if (tensor.data.shape.rank() < 2 || std::sscanf(tensor.name.c_str(), "blocks.%d.", &layer) != 1) continue;
    if (layer >= shape.finch_layers()) {
      const bool up = IsAnyOf(tensor.name, {"att.time_maa_kv_w2", "att.time_key_w2", "att.time_value_w2"});
      const bool down = IsAnyOf(tensor.name, {"att.time_key_w1", "att.time_value_w1"});
      if (up) costs.gold_spread_flops += flops;
      if (up || down) costs.gold_rebuild_flops += flops;
    }
    if (layer >= shape.finch_layers() || tensor.data.dim(0) == 1) continue;
    // A Finch-C2 layer with v2 multiplies by W_v twice.
    const bool twice = tensor.name.ends_with("att.value.weight") &&
                       checkpoint.Find(absl::StrCat("blocks.", layer, ".att.time_value2_w1")) != nullptr;
    costs.prefill_flops += (twice ? 2 : 1) * flops;
  }
  return costs;
}

}  // namespace goldfinch
