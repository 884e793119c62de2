// goldfinch inspect: what a checkpoint holds.
#include <cstdio>
#include <iostream>
#include <map>
#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/safe_text.h"
#include "base/status.h"
#include "clients/cli/local/local_commands.h"
#include "clients/cli/terminal/printable.h"
#include "clients/cli/terminal/terminal.h"
#include "kernels/backend.h"
#include "nlohmann/json.hpp"
#include "worker/checkpoint/checkpoint.h"
#include "worker/checkpoint/fingerprint.h"
#include "worker/model/model.h"
#include "worker/model/model_config.h"

namespace goldfinch {
namespace {

struct LayerSize {
  int64_t parameters = 0;
  int64_t bytes = 0;
};

// Sizes by layer, from tensor names that begin with "blocks.N."; -1 is everything outside the layers.
std::map<int, LayerSize> LayerSizes(const Checkpoint& checkpoint) {
  std::map<int, LayerSize> sizes;
  for (const CheckpointTensor& tensor : checkpoint.tensors()) {
    int layer = -1;
    if (std::sscanf(tensor.name.c_str(), "blocks.%d.", &layer) != 1) layer = -1;
    sizes[layer].parameters += tensor.data.shape.elements();
    sizes[layer].bytes += tensor.bytes();
  }
  return sizes;
}

std::string WeightTypes(const Checkpoint& checkpoint) {
  std::map<std::string, int64_t> bytes;
  for (const CheckpointTensor& tensor : checkpoint.tensors()) bytes[Name(tensor.data.dtype)] += tensor.bytes();
  std::string names;
  for (const auto& [name, unused] : bytes) absl::StrAppend(&names, names.empty() ? "" : ", ", name);
  return names;
}

}  // namespace

absl::Status RunInspect(const InspectOptions& options) {
  GF_ASSIGN_OR_RETURN(const std::shared_ptr<const Checkpoint> checkpoint, Checkpoint::Open(options.model.model));
  GF_ASSIGN_OR_RETURN(const ModelConfig config, FindModelConfig(options.model.config, options.model.model));
  // Loading checks every tensor's name and shape.
  const std::unique_ptr<Backend> backend = MakeCpuBackend(1);
  GF_ASSIGN_OR_RETURN(const std::shared_ptr<const Model> model, LoadModel(*backend, checkpoint, config));
  const ModelShape& shape = model->shape;
  std::map<int, LayerSize> sizes = LayerSizes(*checkpoint);
  const DType cache_dtype = *ParseCacheDType(options.model.cache_dtype);
  GF_RETURN_IF_ERROR(CheckCacheDType(*checkpoint, shape, cache_dtype));
  int64_t parameters = 0;
  for (const auto& [unused, size] : sizes) parameters += size.parameters;
  const int64_t cache_bytes = shape.CacheBytesPerToken(cache_dtype);
  const int64_t transformer_bytes = shape.TransformerBytesPerToken();

  const std::string source(checkpoint->Metadata(kQuantizedSourceKey));  // the file claims it; nothing checks it

  if (options.json) {
    nlohmann::json json = {{"model", options.model.model},
                           {"fingerprint", Fingerprint(*checkpoint)},
                           {"file_bytes", checkpoint->file_bytes()},
                           {"parameters", parameters},
                           {"weight_types", WeightTypes(*checkpoint)},
                           {"n_layer", shape.layers()},
                           {"n_embd", shape.width},
                           {"heads", shape.heads()},
                           {"head_size", shape.head_size},
                           {"vocab_size", shape.vocab_size},
                           {"cache_dtype", options.model.cache_dtype},
                           {"cache_bytes_per_token", cache_bytes},
                           {"transformer_cache_bytes_per_token", transformer_bytes},
                           {"state_bytes", shape.StateBytes()}};
    if (!source.empty()) json["quantized_from"] = source;
    for (int layer = 0; layer < shape.layers(); ++layer) {
      json["layers"].push_back(
          {{"kind", shape.kinds[layer]->name}, {"parameters", sizes[layer].parameters}, {"bytes", sizes[layer].bytes}});
    }
    std::cout << JsonText(json, 2) << "\n";
    return absl::OkStatus();
  }

  const auto line = [](const char* label, const std::string& value) { absl::PrintF("%-18s%s\n", label, value); };
  line("file", absl::StrCat(SafeText(options.model.model), ", ", HumanBytes(checkpoint->file_bytes())));
  line("parameters", absl::StrCat(WithCommas(parameters), " in ", WeightTypes(*checkpoint)));
  if (!source.empty()) line("quantized from", SafeText(source));
  line("width", absl::StrCat(shape.width, ": ", shape.heads(), " heads of ", shape.head_size));
  line("vocabulary", WithCommas(shape.vocab_size));
  line("state", absl::StrCat(HumanBytes(shape.StateBytes()), " a sequence"));
  std::string cache = absl::StrCat(WithCommas(cache_bytes), " bytes a token (", options.model.cache_dtype, ")");
  if (cache_bytes > 0) {
    absl::StrAppend(&cache, "; a transformer of this shape keeps ", WithCommas(transformer_bytes), ", ",
                    absl::StrFormat("%.3g", static_cast<double>(transformer_bytes) / static_cast<double>(cache_bytes)),
                    " times as many");
  }
  line("cache", cache);
  absl::PrintF("\n%5s  %-10s%15s%12s\n", "layer", "kind", "parameters", "size");
  for (int layer = 0; layer < shape.layers(); ++layer) {
    absl::PrintF("%5d  %-10s%15s%12s\n", layer, shape.kinds[layer]->name, WithCommas(sizes[layer].parameters),
                 HumanBytes(sizes[layer].bytes));
  }
  absl::PrintF("%5s  %-10s%15s%12s\n", "", "outside", WithCommas(sizes[-1].parameters), HumanBytes(sizes[-1].bytes));
  return absl::OkStatus();
}

}  // namespace goldfinch
