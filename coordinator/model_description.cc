#include "coordinator/model_description.h"

#include <cstdint>
#include <initializer_list>
#include <string>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "protos/cluster.pb.h"

namespace goldfinch {
namespace {

constexpr uint64_t kLayersMax = 1024;  // far above any model
constexpr uint64_t kWidthMax = uint64_t{1} << 24;
constexpr uint64_t kBytesMax = uint64_t{1} << 44;
constexpr uint64_t kBytesEachMax = kBytesMax >> 16;  // of a sequence, a token or a row

struct Field {
  const char* name;
  uint64_t value;
};

absl::Status CheckRange(const std::string& prefix, uint64_t least, uint64_t most, std::initializer_list<Field> fields) {
  for (const Field& field : fields) {
    if (field.value >= least && field.value <= most) continue;
    const std::string range = least == most ? absl::StrCat(most) : absl::StrCat(least, " to ", most);
    return absl::InvalidArgumentError(absl::StrCat(prefix, field.name, " is ", field.value, ", expected ", range));
  }
  return absl::OkStatus();
}

absl::Status CheckAtMost(const std::string& prefix, uint64_t most, std::initializer_list<Field> fields) {
  return CheckRange(prefix, 0, most, fields);
}

absl::Status CheckLayer(const std::string& prefix, const cluster::v1::LayerDescription& layer) {
  GF_RETURN_IF_ERROR(
      CheckAtMost(prefix, kBytesMax,
                  {{"weight_bytes", layer.weight_bytes()}, {"cache_bytes_per_token", layer.cache_bytes_per_token()}}));
  GF_RETURN_IF_ERROR(CheckAtMost(prefix, kBytesEachMax, {{"state_bytes", layer.state_bytes()}}));
  // Not `< 0`: NaN is refused, too.
  if (!(layer.prefill_flops() >= 0)) return absl::InvalidArgumentError(prefix + "prefill_flops is negative");
  if (!(layer.decode_bytes() >= 0)) return absl::InvalidArgumentError(prefix + "decode_bytes is negative");
  return absl::OkStatus();
}

absl::Status CheckLayerMemory(const std::string& prefix, const cluster::v1::LayerMemory& layer) {
  GF_RETURN_IF_ERROR(
      CheckAtMost(prefix, kBytesMax, {{"weight_bytes", layer.weight_bytes()}, {"table_bytes", layer.table_bytes()}}));
  return CheckAtMost(prefix, kBytesEachMax,
                     {{"shift_bytes", layer.shift_bytes()},
                      {"wkv_bytes", layer.wkv_bytes()},
                      {"cache_bytes_per_token", layer.cache_bytes_per_token()},
                      {"activation_bytes", layer.activation_bytes()}});
}

absl::Status CheckMemory(const cluster::v1::ModelMemory& memory) {
  GF_RETURN_IF_ERROR(CheckAtMost("memory.", kBytesMax,
                                 {{"embedding_bytes", memory.embedding_bytes()},
                                  {"gold_shared_bytes", memory.gold_shared_bytes()},
                                  {"key_table_bytes", memory.key_table_bytes()},
                                  {"head_bytes", memory.head_bytes()},
                                  {"back_end_bytes", memory.back_end_bytes()}}));
  GF_RETURN_IF_ERROR(CheckAtMost("memory.", kBytesEachMax,
                                 {{"compressed_row_bytes", memory.compressed_row_bytes()},
                                  {"back_end_bytes_per_row", memory.back_end_bytes_per_row()},
                                  {"back_end_bytes_per_logit_row", memory.back_end_bytes_per_logit_row()}}));
  for (int i = 0; i < memory.layers_size(); ++i) {
    GF_RETURN_IF_ERROR(CheckLayerMemory(absl::StrCat("memory.layers[", i, "]."), memory.layers(i)));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status CheckModelDescription(const cluster::v1::Described& model) {
  const auto layers = static_cast<uint64_t>(model.layers_size());
  const auto memory_layers = static_cast<uint64_t>(model.memory().layers_size());
  GF_RETURN_IF_ERROR(CheckRange("", 1, kLayersMax, {{"the number of layers", layers}}));
  GF_RETURN_IF_ERROR(CheckRange("", 1, kWidthMax, {{"vocab_size", model.vocab_size()}}));
  GF_RETURN_IF_ERROR(
      CheckAtMost("", kWidthMax, {{"width", model.width()}, {"compressed_width", model.compressed_width()}}));
  GF_RETURN_IF_ERROR(CheckAtMost("", layers, {{"gold_layers", model.gold_layers()}}));
  GF_RETURN_IF_ERROR(CheckRange("", layers, layers, {{"the number of memory.layers", memory_layers}}));
  GF_RETURN_IF_ERROR(CheckMemory(model.memory()));
  GF_RETURN_IF_ERROR(CheckAtMost("", kBytesMax,
                                 {{"embedding_bytes", model.embedding_bytes()},
                                  {"head_bytes", model.head_bytes()},
                                  {"gold_shared_bytes", model.gold_shared_bytes()},
                                  {"transformer_cache_bytes_per_token", model.transformer_cache_bytes_per_token()}}));
  GF_RETURN_IF_ERROR(
      CheckAtMost("", kBytesEachMax, {{"compressed_bytes_per_token", model.compressed_bytes_per_token()}}));
  for (int i = 0; i < model.layers_size(); ++i) {
    GF_RETURN_IF_ERROR(CheckLayer(absl::StrCat("layers[", i, "]."), model.layers(i)));
  }
  return absl::OkStatus();
}

ModelMemory ReadModelMemory(const cluster::v1::Described& model) {
  const cluster::v1::ModelMemory& from = model.memory();
  ModelMemory memory;
  for (const cluster::v1::LayerMemory& layer : from.layers()) {
    memory.layers.push_back({.weight_bytes = static_cast<int64_t>(layer.weight_bytes()),
                             .table_bytes = static_cast<int64_t>(layer.table_bytes()),
                             .shift_bytes = static_cast<int64_t>(layer.shift_bytes()),
                             .wkv_bytes = static_cast<int64_t>(layer.wkv_bytes()),
                             .cache_bytes_per_token = static_cast<int64_t>(layer.cache_bytes_per_token()),
                             .activation_bytes = static_cast<int64_t>(layer.activation_bytes())});
  }
  memory.gold_layers = static_cast<int>(model.gold_layers());
  memory.width = model.width();
  memory.vocab_size = model.vocab_size();
  memory.uses_side_rows = from.uses_side_rows();
  memory.compressed_width = model.compressed_width();
  memory.compressed_row_bytes = static_cast<int64_t>(from.compressed_row_bytes());
  memory.compressed_bytes_per_token = static_cast<int64_t>(model.compressed_bytes_per_token());
  memory.embedding_bytes = static_cast<int64_t>(from.embedding_bytes());
  memory.gold_shared_bytes = static_cast<int64_t>(from.gold_shared_bytes());
  memory.key_table_bytes = static_cast<int64_t>(from.key_table_bytes());
  memory.head_bytes = static_cast<int64_t>(from.head_bytes());
  memory.back_end_bytes = static_cast<int64_t>(from.back_end_bytes());
  memory.back_end_bytes_per_row = static_cast<int64_t>(from.back_end_bytes_per_row());
  memory.back_end_bytes_per_logit_row = static_cast<int64_t>(from.back_end_bytes_per_logit_row());
  return memory;
}

}  // namespace goldfinch
