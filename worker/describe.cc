#include "worker/describe.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <memory>
#include <string_view>
#include <vector>

#include "absl/strings/str_format.h"
#include "base/status.h"
#include "protos/cluster.pb.h"

namespace goldfinch {
namespace {

constexpr int64_t kSampleBytes = 4096;  // at each of three places of a tensor

class Hash {
 public:
  void Add(std::string_view bytes) {
    Mix(bytes.size());
    for (; bytes.size() >= 8; bytes.remove_prefix(8)) Mix(Word(bytes.substr(0, 8)));
    Mix(Word(bytes));
  }
  void Mix(uint64_t word) {  // the finalizer of splitmix64
    uint64_t z = state_ ^ word;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB;
    state_ = (z ^ (z >> 31)) + 0x9E3779B97F4A7C15;
  }
  uint64_t value() const { return state_; }

 private:
  static uint64_t Word(std::string_view bytes) {
    uint64_t word = 0;
    std::memcpy(&word, bytes.data(), bytes.size());
    return word;
  }

  uint64_t state_ = 0;
};

// Of a whole matrix read for one token; vectors and norms are nothing beside it.
int64_t MatrixElements(const Shape& shape) {
  int dims = 0;
  for (int axis = 0; axis < shape.rank(); ++axis) dims += shape[axis] > 1 ? 1 : 0;
  return dims >= 2 ? shape.elements() : 0;
}

void DescribeLayer(const ModelShape& shape, int index, DType cache_dtype, cluster::v1::LayerDescription* layer) {
  const TimeMixKind& kind = *shape.kinds[index];
  layer->set_kind(kind.name);
  int64_t state_floats = 0;
  if (kind.has_wkv) state_floats += shape.width * shape.head_size;
  if (kind.has_shift) state_floats += shape.width;
  if (shape.channel_kinds[index]->has_shift) state_floats += shape.width;
  // The newest rows that the first GOLD layer may need.
  if (index == shape.finch_layers() - 1) state_floats += int64_t{2} * shape.gold_layers() * shape.width;
  layer->set_state_bytes(state_floats * 4);
  if (kind.has_kv_cache) layer->set_cache_bytes_per_token(2 * shape.width * SizeOf(cache_dtype));
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
}

double Seconds(std::chrono::steady_clock::time_point since) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - since).count();
}

// Seconds of one product of `rows` rows with the weight, the best of as many as fit the time.
absl::StatusOr<double> TimeProduct(Backend& backend, int64_t rows, Matrix weight, double seconds) {
  const auto start = std::chrono::steady_clock::now();
  const Tensor x{nullptr, DType::kF32, {rows, weight.in()}}, out{nullptr, DType::kF32, {rows, weight.out()}};
  GF_ASSIGN_OR_RETURN(const std::shared_ptr<void> x_memory, backend.Allocate(x.bytes(), "measuring"));
  GF_ASSIGN_OR_RETURN(const std::shared_ptr<void> out_memory, backend.Allocate(out.bytes(), "measuring"));
  double best = 1e9;
  do {
    const auto begin = std::chrono::steady_clock::now();
    backend.MatMul({x_memory.get(), x.dtype, x.shape}, weight, {}, {out_memory.get(), out.dtype, out.shape});
    GF_RETURN_IF_ERROR(backend.Synchronize());
    best = std::min(best, Seconds(begin));
  } while (Seconds(start) < seconds);
  return std::max(best, 1e-9);
}

}  // namespace

std::string Fingerprint(const Checkpoint& checkpoint) {
  Hash hash;
  for (const CheckpointTensor& tensor : checkpoint.tensors()) {
    hash.Add(tensor.name);
    hash.Add(Name(tensor.data.dtype));
    hash.Mix(tensor.data.shape.rank());
    for (int axis = 0; axis < tensor.data.shape.rank(); ++axis) hash.Mix(tensor.data.shape[axis]);
    for (const ConstTensor& data : {tensor.data, tensor.scales}) {
      if (!data) continue;
      const std::string_view bytes(static_cast<const char*>(data.data), data.bytes());
      const size_t size = std::min<size_t>(bytes.size(), kSampleBytes);
      for (const size_t begin : {size_t{0}, (bytes.size() - size) / 2, bytes.size() - size}) {
        hash.Add(bytes.substr(begin, size));
      }
    }
  }
  return absl::StrFormat("%016x", hash.value());
}

void Describe(const Checkpoint& checkpoint, const ModelShape& shape, const ModelConfig& config, DType cache_dtype,
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
    // Per element of the state: decay, add k v, and the sum of r S.
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

absl::StatusOr<DeviceSpeed> MeasureDevice(Backend& backend) {
  constexpr double kSeconds = 0.04;  // for each of the two
  // More than caches hold, for reading; a part of it that fits them, for arithmetic.
  constexpr int64_t kIn = 4096, kOut = 8192, kSmall = 1024, kRows = 128;
  Tensor large{nullptr, DType::kBf16, {kOut, kIn}};
  GF_ASSIGN_OR_RETURN(const std::shared_ptr<void> memory, backend.Allocate(large.bytes(), "measuring"));
  large.data = memory.get();
  {
    // Written once: memory that never was may be one page of zeros.
    const std::vector<uint16_t> ones(kOut * kIn, 0x3F80);
    backend.CopyFromHost(ones.data(), large);
  }
  const ConstTensor small{large.data, DType::kBf16, {kSmall, kSmall}};
  GF_ASSIGN_OR_RETURN(const double many, TimeProduct(backend, kRows, {small}, kSeconds));
  GF_ASSIGN_OR_RETURN(const double one, TimeProduct(backend, 1, {large}, kSeconds));
  return DeviceSpeed{2.0 * kRows * kSmall * kSmall / many, static_cast<double>(large.bytes()) / one};
}

}  // namespace goldfinch
