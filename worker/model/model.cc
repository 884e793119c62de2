#include "worker/model/model.h"

#include <algorithm>
#include <numeric>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/types/span.h"
#include "base/check.h"
#include "base/status.h"
#include "worker/model/foreign_models.h"
#include "worker/model/state_parts.h"
#include "worker/model/time_state.h"
#include "worker/model/weight_loader.h"

namespace goldfinch {
namespace {

constexpr int kMaxLayers = 1000;
constexpr int kDefaultHeadSize = 64;

absl::Status Invalid(const Checkpoint& checkpoint, const std::string& what) {
  return absl::InvalidArgumentError(absl::StrCat(checkpoint.path(), ": ", what));
}

std::string BlockPrefix(int layer) { return absl::StrCat("blocks.", layer, "."); }

// One more than the highest block index.
absl::StatusOr<int> CountLayers(const Checkpoint& checkpoint) {
  int layers = 0;
  for (const CheckpointTensor& tensor : checkpoint.tensors()) {
    if (!tensor.name.starts_with("blocks.")) continue;
    const std::vector<std::string> parts = absl::StrSplit(tensor.name, absl::MaxSplits('.', 2));
    int index = 0;
    if (parts.size() < 3 || !absl::SimpleAtoi(parts[1], &index) || index < 0 || index >= kMaxLayers) {
      return Invalid(checkpoint, absl::StrCat("tensor ", tensor.name, " names no layer from 0 to ", kMaxLayers - 1));
    }
    layers = std::max(layers, index + 1);
  }
  if (layers == 0) return Invalid(checkpoint, "no tensor named blocks.0.*: not a model of a known family");
  return layers;
}

absl::Status CheckEqual(const Checkpoint& checkpoint, const char* key, const std::optional<int64_t>& given,
                        int64_t found) {
  if (!given.has_value() || *given == found) return absl::OkStatus();
  return Invalid(checkpoint, absl::StrCat("the config says ", key, " is ", *given, ", the tensors say ", found));
}

// Names that this program does not know say nothing about the tensors.
absl::Status CheckKind(const Checkpoint& checkpoint, const char* key, const std::string& given,
                       const TimeMixKind& found) {
  for (const TimeMixKind& kind : TimeMixKinds()) {
    if (given == kind.tmix && &kind != &found) {
      return Invalid(checkpoint,
                     absl::StrCat("the config says ", key, " is ", given, ", the tensors are of ", found.tmix));
    }
  }
  return absl::OkStatus();
}

// Head size as tensors show it: [H, N] bonuses, or Eagle's one decay a head. 0: not shown.
absl::StatusOr<int64_t> HeadSizeFromTensors(const Checkpoint& checkpoint, int layers, int64_t width) {
  int64_t head_size = 0;
  for (int layer = 0; layer < layers; ++layer) {
    const std::string att = BlockPrefix(layer) + "att.";
    const CheckpointTensor* bonus = checkpoint.Find(att + "time_faaaa");
    const CheckpointTensor* decay = checkpoint.Find(att + "time_decay");
    if (bonus != nullptr && bonus->data.shape.rank() == 2 && bonus->data.dim(1) > 1) {
      if (head_size == 0) head_size = bonus->data.dim(1);
      if (bonus->data.dim(1) != head_size) {
        return Invalid(checkpoint,
                       absl::StrCat("tensor ", bonus->name, " is ", bonus->data.shape.ToString(), ", expected [",
                                    width / head_size, ", ", head_size, "] as in the layers before"));
      }
    } else if (head_size == 0 && decay != nullptr && checkpoint.Find(att + "time_maa_x") == nullptr) {
      const int64_t heads = decay->data.dim(0);
      if (heads > 0 && width % heads == 0) head_size = width / heads;
    }
  }
  return head_size;
}

// Bytes of the parts that `counts` is true of.
int64_t SumStateParts(const ModelShape& shape, DType cache_dtype, bool (*counts)(const StatePart& part)) {
  int64_t bytes = 0;
  for (int layer = 0; layer < shape.layers(); ++layer) {
    for (const StatePart& part : LayerStateParts(shape, cache_dtype, layer)) bytes += counts(part) ? part.bytes() : 0;
  }
  return bytes;
}

}  // namespace

int ModelShape::finch_layers() const {
  for (int layer = 0; layer < layers(); ++layer) {
    if (kinds[layer]->reads_gold_cache) return layer;
  }
  return layers();
}

bool ModelShape::uses_side_rows() const {
  return std::any_of(kinds.begin(), kinds.end(), [](const TimeMixKind* kind) { return kind->uses_side_rows; });
}

int64_t ModelShape::StateBytes() const {
  // Parts that are one a sequence are not of the cache's type.
  return SumStateParts(*this, DType::kF32, [](const StatePart& part) { return !part.per_token(); });
}

int64_t ModelShape::CacheBytesPerToken(DType cache_dtype) const {
  return SumStateParts(*this, cache_dtype, [](const StatePart& part) { return part.per_token(); });
}

int64_t ModelShape::CompressedBytesPerToken(DType cache_dtype) const {
  return SumStateParts(*this, cache_dtype, [](const StatePart& part) { return part.in_compressed_cache(); });
}

std::optional<DType> ParseCacheDType(std::string_view name) {
  if (name == "int8") return DType::kInt8;
  return ParseFloatDType(name);
}

absl::Status CheckCacheDType(const Checkpoint& checkpoint, const ModelShape& shape, DType cache_dtype) {
  if (cache_dtype != DType::kInt8) return absl::OkStatus();
  for (int layer = 0; layer < shape.layers(); ++layer) {
    if (!shape.kinds[layer]->has_kv_cache) continue;
    return Invalid(
        checkpoint,
        absl::StrCat("cache_dtype is int8, which is for the compressed cache of GOLD layers: layer ", layer, " (",
                     shape.kinds[layer]->name, ") keeps keys and values, which can be f32, f16 or bf16"));
  }
  return absl::OkStatus();
}

absl::StatusOr<ModelShape> ReadModelShape(const Checkpoint& checkpoint, const ModelConfig& config) {
  if (const std::string_view foreign = ForeignModel(checkpoint); !foreign.empty()) {
    return Invalid(checkpoint, std::string(foreign));
  }
  ModelShape shape;
  const CheckpointTensor* embedding = checkpoint.Find("emb.weight");
  if (embedding == nullptr) return Invalid(checkpoint, "tensor emb.weight is missing");
  if (embedding->data.shape.rank() != 2 || embedding->data.shape.elements() == 0) {
    return Invalid(checkpoint, absl::StrCat("tensor emb.weight is ", embedding->data.shape.ToString(),
                                            ", expected [vocab, width]"));
  }
  shape.vocab_size = embedding->data.dim(0);
  shape.width = embedding->data.dim(1);
  GF_ASSIGN_OR_RETURN(const int layers, CountLayers(checkpoint));

  GF_ASSIGN_OR_RETURN(int64_t head_size, HeadSizeFromTensors(checkpoint, layers, shape.width));
  if (head_size == 0) head_size = config.head_size.value_or(kDefaultHeadSize);
  if (config.head_size.has_value()) {
    GF_RETURN_IF_ERROR(CheckEqual(checkpoint, "head_size", *config.head_size, head_size));
  }
  if (head_size % 16 != 0 || head_size > 1024 || shape.width % head_size != 0) {
    return Invalid(checkpoint, absl::StrCat("heads of ", head_size, " channels do not fit a width of ", shape.width,
                                            ": expected a multiple of 16, at most 1024, that divides the width"));
  }
  shape.head_size = static_cast<int>(head_size);

  for (int layer = 0; layer < layers; ++layer) {
    const TimeMixKind* found = nullptr;
    const std::string prefix = BlockPrefix(layer) + "att.";
    for (const TimeMixKind& kind : TimeMixKinds()) {
      if (found == nullptr && kind.matches(checkpoint, prefix)) found = &kind;
    }
    if (found == nullptr) {
      return Invalid(checkpoint, absl::StrCat("layer ", layer, " (tensors ", prefix, "*) is of no known kind"));
    }
    shape.kinds.push_back(found);
    const std::string ffn = BlockPrefix(layer) + "ffn.";
    const absl::Span<const ChannelMixKind> channel_kinds = ChannelMixKinds();
    const auto channel = std::find_if(channel_kinds.begin(), channel_kinds.end(),
                                      [&](const ChannelMixKind& kind) { return kind.matches(checkpoint, ffn); });
    GF_CHECK(channel != channel_kinds.end()) << "the last channel mix matches everything";
    shape.channel_kinds.push_back(&*channel);
  }
  for (int layer = shape.finch_layers(); layer < layers; ++layer) {
    if (!shape.kinds[layer]->reads_gold_cache) {
      return Invalid(checkpoint,
                     absl::StrCat("layer ", layer, " is ", shape.kinds[layer]->name, " after the gold layer ",
                                  shape.finch_layers(), ": gold layers must be the last ones"));
    }
  }
  if (shape.gold_layers() > 0) {
    const CheckpointTensor* compress = checkpoint.Find("w_kv_cache_a.weight");
    if (compress == nullptr) return Invalid(checkpoint, "tensor w_kv_cache_a.weight is missing");
    shape.compressed = compress->data.dim(0);
    if (shape.finch_layers() == 0) return Invalid(checkpoint, "the first layer is gold: nothing fills its cache");
  }
  GF_RETURN_IF_ERROR(CheckKind(checkpoint, "tmix", config.tmix, *shape.kinds.front()));
  GF_RETURN_IF_ERROR(CheckKind(checkpoint, "tmix2", config.tmix2, *shape.kinds.back()));
  GF_RETURN_IF_ERROR(CheckEqual(checkpoint, "n_layer", config.layers, layers));
  GF_RETURN_IF_ERROR(CheckEqual(checkpoint, "n_embd", config.width, shape.width));
  GF_RETURN_IF_ERROR(CheckEqual(checkpoint, "vocab_size", config.vocab_size, shape.vocab_size));
  return shape;
}

std::optional<TensorHome> FindTensorHome(const ModelShape& shape, std::string_view name) {
  using Part = TensorHome::Part;
  if (name == "emb.weight" || name.starts_with("blocks.0.ln0.")) return TensorHome{Part::kEmbedding};
  if (name == "head.weight" || name.starts_with("ln_out.")) return TensorHome{Part::kHead};
  if (name == "w_kv_cache_a.weight") return TensorHome{Part::kLayer, shape.finch_layers() - 1};
  if (name == "w_kv_cache_b.weight") return TensorHome{Part::kGoldShared};
  const std::vector<std::string> parts = absl::StrSplit(std::string(name), absl::MaxSplits('.', 2));
  int layer = 0;
  if (parts.size() < 3 || parts[0] != "blocks" || !absl::SimpleAtoi(parts[1], &layer)) return std::nullopt;
  if (layer < 0 || layer >= shape.layers()) return std::nullopt;
  return TensorHome{Part::kLayer, layer};
}

bool StageHas(const StageExtent& stage, const TensorHome& home) {
  switch (home.part) {
    case TensorHome::Part::kLayer:
      return stage.has_layer(home.layer);
    case TensorHome::Part::kEmbedding:
      return stage.has_embedding();
    case TensorHome::Part::kGoldShared:
      return stage.has_gold();
    case TensorHome::Part::kHead:
      return stage.has_head();
  }
  return false;
}

namespace {

// The tensors of the model's layers and what goes with them, in a fixed order.
absl::Status ReadTensors(WeightLoader& loader, const ModelConfig& config, Model& model) {
  const ModelShape& shape = model.shape;
  const StageExtent extent = model.extent();
  const int64_t width = shape.width;
  model.layers.clear();
  model.bytes = {};
  model.bytes.layers.resize(shape.layers());
  // What was taken since the last look.
  int64_t seen = 0;
  const auto taken = [&loader, &seen] { return loader.weight_bytes() - std::exchange(seen, loader.weight_bytes()); };
  for (int index = 0; index < shape.layers(); ++index) {
    const std::string block = BlockPrefix(index);
    if (!extent.has_layer(index)) {
      loader.IgnorePrefix(block);
      continue;
    }
    Layer layer;
    loader.SetPrefix(block);
    layer.ln1 = loader.Norm("ln1", width);
    layer.ln2 = loader.Norm("ln2", width);
    loader.SetPrefix(block + "att.");
    layer.time_mix = shape.kinds[index]->load(loader, width, shape.head_size, config);
    if (shape.kinds[index]->has_wkv && loader.Has("time_state")) {
      const int64_t heads = shape.heads(), n = shape.head_size;
      const std::vector<float> values = loader.Values("time_state", heads * n * n);
      if (!values.empty()) layer.initial_wkv = loader.Floats(WkvOfTimeState(values, heads, n), {heads, n, n});
    }
    loader.SetPrefix(block + "ffn.");
    layer.channel_mix = shape.channel_kinds[index]->load(loader, width);
    model.layers.push_back(std::move(layer));
    model.bytes.layers[index] = taken();
  }

  // Tensors outside the layers: read by the stages that need them, known to all.
  loader.SetPrefix("");
  if (extent.has_embedding()) {
    model.embedding = loader.Raw("emb.weight", {shape.vocab_size, width});
    model.ln0 = loader.Norm("blocks.0.ln0", width);
    model.bytes.embedding = taken();
  }
  if (extent.has_boundary()) {
    model.compress = loader.Linear("w_kv_cache_a.weight", shape.compressed, width);
    model.bytes.layers[shape.finch_layers() - 1] += taken();
  }
  if (extent.has_gold()) {
    const int64_t in = width + shape.compressed;
    model.key_x0 = loader.LinearColumns("w_kv_cache_b.weight", width, in, 0, width);
    model.key_compressed = loader.LinearColumns("w_kv_cache_b.weight", width, in, width, in);
    model.bytes.gold_shared = taken();
  }
  if (extent.has_head()) {
    model.ln_out = loader.Norm("ln_out", width);
    model.head = loader.Linear("head.weight", shape.vocab_size, width);
    model.bytes.head = taken();
  }
  for (const char* name : {"emb.weight", "ln_out.weight", "ln_out.bias", "head.weight"}) loader.Ignore(name);
  if (shape.gold_layers() > 0) {
    for (const char* name : {"w_kv_cache_a.weight", "w_kv_cache_b.weight"}) loader.Ignore(name);
  }
  loader.CheckAllTaken();
  return loader.status();
}

// A model with its shape and its range of layers; no tensor is loaded yet.
absl::StatusOr<std::shared_ptr<Model>> EmptyModel(const Checkpoint& checkpoint, const ModelConfig& config,
                                                  int first_layer, int last_layer) {
  auto model = std::make_shared<Model>();
  GF_ASSIGN_OR_RETURN(model->shape, ReadModelShape(checkpoint, config));
  const int layers = model->shape.layers();
  model->first_layer = first_layer;
  model->last_layer = last_layer < 0 ? layers : last_layer;
  if (first_layer < 0 || first_layer >= model->last_layer || model->last_layer > layers) {
    return absl::InvalidArgumentError(absl::StrCat("layers ", first_layer, " to ", model->last_layer,
                                                   " are not a range within the ", layers, " layers of ",
                                                   checkpoint.path()));
  }
  return model;
}

}  // namespace

int64_t WeightBytes::total() const {
  return std::accumulate(layers.begin(), layers.end(), embedding + gold_shared + head);
}

absl::Status CheckMultiplies(const Backend& backend, const Checkpoint& checkpoint) {
  if (backend.multiplies_quantized()) return absl::OkStatus();
  for (const CheckpointTensor& tensor : checkpoint.tensors()) {
    if (!tensor.scales) continue;
    return absl::InvalidArgumentError(absl::StrCat(checkpoint.path(), ": tensor ", tensor.name, " is quantized to ",
                                                   Name(tensor.data.dtype), ", which ", backend.Describe(),
                                                   " does not multiply: use device cpu, or a model in bf16"));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::shared_ptr<const Model>> LoadModel(Backend& backend, std::shared_ptr<const Checkpoint> checkpoint,
                                                       const ModelConfig& config, int first_layer, int last_layer) {
  GF_RETURN_IF_ERROR(CheckMultiplies(backend, *checkpoint));
  GF_ASSIGN_OR_RETURN(const std::shared_ptr<Model> model, EmptyModel(*checkpoint, config, first_layer, last_layer));
  WeightLoader measure(*checkpoint, backend.reads_weights_in_place());
  GF_RETURN_IF_ERROR(ReadTensors(measure, config, *model));
  GF_ASSIGN_OR_RETURN(model->memory, backend.Allocate(measure.copied_bytes(), "weights"));
  WeightLoader loader(backend, *checkpoint, model->memory.get());
  GF_RETURN_IF_ERROR(ReadTensors(loader, config, *model));
  GF_CHECK_EQ(loader.copied_bytes(), measure.copied_bytes());
  model->checkpoint = std::move(checkpoint);
  return std::shared_ptr<const Model>(model);
}

absl::StatusOr<std::shared_ptr<const Model>> MeasureModel(const Checkpoint& checkpoint, const ModelConfig& config,
                                                          bool in_place, int first_layer, int last_layer) {
  GF_ASSIGN_OR_RETURN(const std::shared_ptr<Model> model, EmptyModel(checkpoint, config, first_layer, last_layer));
  WeightLoader measure(checkpoint, in_place);
  GF_RETURN_IF_ERROR(ReadTensors(measure, config, *model));
  return std::shared_ptr<const Model>(model);
}

}  // namespace goldfinch
