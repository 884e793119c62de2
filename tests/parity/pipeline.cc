#include "tests/parity/pipeline.h"

#include <algorithm>
#include <ostream>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/check.h"
#include "worker/model/model.h"
#include "worker/model/weight_loader.h"

namespace goldfinch {
namespace {

int64_t RowsOf(const ConstTensor& tensor) { return tensor ? tensor.dim(0) : 0; }

}  // namespace

void PrintTo(const Flow& flow, std::ostream* out) {
  *out << flow.hidden_rows << " hidden and " << flow.compressed_rows << " compressed rows";
}

Pipeline::Pipeline(Backend& backend, const std::shared_ptr<const Checkpoint>& checkpoint, const ModelConfig& config,
                   const StageOptions& options, const std::vector<int>& cuts, int64_t kept_bytes)
    : backend_(backend) {
  for (size_t i = 0; i <= cuts.size(); ++i) {
    const int first = i == 0 ? 0 : cuts[i - 1];
    const int last = i == cuts.size() ? -1 : cuts[i];
    auto model = LoadModel(backend, checkpoint, config, first, last);
    GF_CHECK(model.ok()) << model.status();
    auto stage = Stage::Create(backend, *std::move(model), options);
    GF_CHECK(stage.ok()) << stage.status();
    stages_.push_back(*std::move(stage));
    const absl::Status reserved = stages_.back()->ReserveKept(kept_bytes);
    GF_CHECK(reserved.ok()) << reserved;
  }
}

int Pipeline::Open() {
  int slot = -1;
  for (const auto& stage : stages_) {
    const absl::StatusOr<int> opened = stage->Open();
    GF_CHECK(opened.ok()) << opened.status();
    GF_CHECK(slot == -1 || slot == *opened);
    slot = *opened;
  }
  return slot;
}

int Pipeline::Fork(int slot) {
  int copy = -1;
  for (const auto& stage : stages_) {
    const absl::StatusOr<int> forked = stage->Fork(slot);
    GF_CHECK(forked.ok()) << forked.status();
    GF_CHECK(copy == -1 || copy == *forked);
    copy = *forked;
  }
  return copy;
}

void Pipeline::Close(int slot) {
  for (const auto& stage : stages_) stage->Close(slot);
}

std::string Pipeline::Bytes(const ConstTensor& tensor) {
  std::string bytes(tensor.bytes(), '\0');
  backend_.CopyToHost(tensor, bytes.data());
  return bytes;
}

std::vector<float> Pipeline::Values(const ConstTensor& tensor) {
  if (!tensor) return {};
  const std::string bytes = Bytes(tensor);
  if (tensor.dtype == DType::kInt8) {  // of the compressed cache
    const int64_t row_width = tensor.dim(1), width = row_width - CompressedRowWidth(DType::kInt8, 0);
    std::vector<float> values;
    for (const char* row = bytes.data(); row != bytes.data() + bytes.size(); row += row_width) {
      const float scale = ToFloats({row + width, DType::kBf16, {1}})[0];
      for (int64_t i = 0; i < width; ++i) values.push_back(static_cast<float>(static_cast<int8_t>(row[i])) * scale);
    }
    return values;
  }
  return ToFloats({bytes.data(), tensor.dtype, tensor.shape});
}

Tensor Pipeline::Carry(const ConstTensor& tensor, std::shared_ptr<void>* memory) {
  if (!tensor) return {};
  const std::string bytes = Bytes(tensor);  // `memory` may be the tensor's
  absl::StatusOr<std::shared_ptr<void>> taken = backend_.Allocate(tensor.bytes(), "rows");
  GF_CHECK(taken.ok()) << taken.status();
  *memory = *std::move(taken);
  const Tensor copy{memory->get(), tensor.dtype, tensor.shape};
  backend_.CopyFromHost(bytes.data(), copy);
  return copy;
}

std::vector<float> Pipeline::Forward(absl::Span<const Chunk> chunks) {
  flows_.clear();
  compressed_.clear();
  StageInput input;
  StageOutput output;
  // What a transport would carry: copies, so that no stage sees another's memory.
  std::shared_ptr<void> hidden, compressed;
  for (const auto& stage : stages_) {
    const absl::Status status = stage->Forward(chunks, input, &output);
    GF_CHECK(status.ok()) << status;
    if (output.compressed) compressed_ = Values(output.compressed);
    if (stage == stages_.back()) break;
    if (output.compressed) {
      GF_CHECK(output.compressed.dtype == stage->options().cache_dtype);
      input.compressed = Carry(output.compressed, &compressed);
    }
    GF_CHECK(!output.hidden || output.hidden.dtype == DType::kF32);
    input.hidden = Carry(output.hidden, &hidden);
    flows_.push_back({RowsOf(input.hidden), RowsOf(input.compressed)});
  }
  GF_CHECK(!output.hidden);
  return Values(output.logits);
}

std::vector<float> Pipeline::AllLogits(absl::Span<const int32_t> tokens, int64_t chunk_tokens) {
  const int slot = Open();
  std::vector<float> all;
  for (size_t begin = 0; begin < tokens.size(); begin += chunk_tokens) {
    const absl::Span<const int32_t> ids = tokens.subspan(begin, chunk_tokens);
    const std::vector<float> logits = Forward({slot, ids, static_cast<int64_t>(ids.size())});
    all.insert(all.end(), logits.begin(), logits.end());
  }
  Close(slot);
  return all;
}

}  // namespace goldfinch
