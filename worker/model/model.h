// A model, or the layers of it that one stage runs: its sizes and its weights.
#ifndef GOLDFINCH_WORKER_MODEL_MODEL_H_
#define GOLDFINCH_WORKER_MODEL_MODEL_H_

#include <any>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/stage_extent.h"
#include "kernels/backend.h"
#include "worker/checkpoint/checkpoint.h"
#include "worker/model/layers.h"
#include "worker/model/model_config.h"

namespace goldfinch {

// What the tensors of a whole checkpoint say about its model.
struct ModelShape {
  int64_t width = 0;  // D
  int64_t vocab_size = 0;
  int head_size = 0;                                 // N
  int64_t compressed = 0;                            // numbers a token in the compressed cache; 0 without GOLD layers
  std::vector<const TimeMixKind*> kinds;             // one a layer, entries of TimeMixKinds()
  std::vector<const ChannelMixKind*> channel_kinds;  // one a layer, entries of ChannelMixKinds()

  int layers() const { return static_cast<int>(kinds.size()); }
  int heads() const { return static_cast<int>(width / head_size); }
  // Layers before the first GOLD layer; all of them without GOLD.
  int finch_layers() const;
  int gold_layers() const { return layers() - finch_layers(); }
  // Whether layers hand side rows on (LayerContext::side).
  bool uses_side_rows() const;

  // The layers [first_layer, last_layer) as a stage of this model.
  StageExtent Extent(int first_layer, int last_layer) const {
    return {layers(), finch_layers(), first_layer, last_layer};
  }

  // Bytes of one sequence's state (worker/model/state_parts.h), but for what grows with its tokens.
  int64_t StateBytes() const;
  // Bytes of a row of the compressed cache, in its pages and from stage to stage; 0 without GOLD layers.
  int64_t CompressedRowBytes(DType cache_dtype) const {
    return compressed == 0 ? 0 : BytesOf(cache_dtype, CompressedRowWidth(cache_dtype, compressed));
  }
  // Bytes of one token in the compressed cache, id and row; 0 without GOLD layers.
  int64_t CompressedBytesPerToken(DType cache_dtype) const;
  // Bytes of one token in all caches.
  int64_t CacheBytesPerToken(DType cache_dtype) const;
  // Bytes of one token in a transformer of this shape: keys and values of every layer, 2 bytes a number.
  int64_t TransformerBytesPerToken() const { return int64_t{2} * layers() * width * 2; }
};

// The type of the caches that a setting names: "f32", "f16", "bf16", or "int8" for kInt8.
std::optional<DType> ParseCacheDType(std::string_view name);
// INVALID_ARGUMENT, naming file, layer and what is possible, if the model keeps keys and values: they have no 8-bit
// form.
absl::Status CheckCacheDType(const Checkpoint& checkpoint, const ModelShape& shape, DType cache_dtype);

// Errors name the tensor or the config key.
absl::StatusOr<ModelShape> ReadModelShape(const Checkpoint& checkpoint, const ModelConfig& config);

// Which part of a model a tensor is of.
struct TensorHome {
  enum class Part {
    kLayer,
    kEmbedding,   // in the first stage and in every stage with GOLD layers
    kGoldShared,  // in every stage with GOLD layers
    kHead,        // in the last stage
  };
  Part part = Part::kLayer;
  int layer = 0;  // of kLayer
};

// nullopt if the name belongs to no known part.
std::optional<TensorHome> FindTensorHome(const ModelShape& shape, std::string_view name);
// Whether the stage has that part.
bool StageHas(const StageExtent& stage, const TensorHome& home);

// What weights take: of a back end's memory, and of the mapped file where they are read in place.
struct WeightBytes {
  std::vector<int64_t> layers;  // one a layer of the model, 0 for other stages'; W_a is the last Finch-side layer's
  int64_t embedding = 0;        // with its norm
  int64_t gold_shared = 0;      // W_b
  int64_t head = 0;             // with its norm

  int64_t total() const;
};

struct Layer {
  NormWeights ln1, ln2;
  std::any time_mix;        // of the type that the layer's TimeMixKind loads
  std::any channel_mix;     // of the type that its ChannelMixKind loads
  ConstTensor initial_wkv;  // [H, N, N], of state-tuned models; else empty
};

// The weights of layers [first_layer, last_layer) and what goes with them. Immutable.
struct Model {
  ModelShape shape;
  int first_layer = 0;
  int last_layer = 0;
  std::vector<Layer> layers;  // layers[i] is layer first_layer + i

  ConstTensor embedding;  // [vocab, D]; in the first stage and every stage with GOLD layers
  NormWeights ln0;        // with the embedding
  Matrix compress;        // W_a [D/16, D]; in the stage of the last Finch-side layer
  Matrix key_x0;          // [D, D]: the columns of W_b that are multiplied by x0; in stages with GOLD layers
  Matrix key_compressed;  // [D, D/16]: the columns of W_b that are multiplied by c
  NormWeights ln_out;     // in the last stage
  Matrix head;            // [vocab, D]; in the last stage

  StageExtent extent() const { return shape.Extent(first_layer, last_layer); }

  WeightBytes bytes;
  std::shared_ptr<const Checkpoint> checkpoint;  // weights may point into it
  std::shared_ptr<void> memory;                  // or into this
};

// INVALID_ARGUMENT, naming file and tensor, if the checkpoint has quantized matrices and the back end multiplies none.
absl::Status CheckMultiplies(const Backend& backend, const Checkpoint& checkpoint);

// Loads layers [first_layer, last_layer); last_layer -1: to the end. Every tensor of the checkpoint must belong to some
// layer of the model. Errors name the file and the tensor. The back end's memory is taken at once, before any value is
// read, and holds all that is not read in place; the host keeps no copy of it.
absl::StatusOr<std::shared_ptr<const Model>> LoadModel(Backend& backend, std::shared_ptr<const Checkpoint> checkpoint,
                                                       const ModelConfig& config, int first_layer = 0,
                                                       int last_layer = -1);

// The same without any value, to plan with: tensors have their types and shapes and addresses that mean nothing, and
// `bytes` is what loading would take. `in_place`: for a back end that reads host memory. Reads nothing but names and
// shapes. Errors are those of LoadModel, except those about memory.
absl::StatusOr<std::shared_ptr<const Model>> MeasureModel(const Checkpoint& checkpoint, const ModelConfig& config,
                                                          bool in_place, int first_layer = 0, int last_layer = -1);

}  // namespace goldfinch

#endif  // GOLDFINCH_WORKER_MODEL_MODEL_H_
