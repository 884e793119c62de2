// Writes a checkpoint again with its large matrices quantized (kernels/quantize.h, docs/decisions/0015).
#ifndef GOLDFINCH_WORKER_MODEL_QUANTIZE_MODEL_H_
#define GOLDFINCH_WORKER_MODEL_QUANTIZE_MODEL_H_

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "worker/checkpoint/checkpoint.h"

namespace goldfinch {

struct QuantizeOptions {
  DType dtype = DType::kInt8;          // or kInt4
  std::vector<std::string> keep = {};  // matrices to leave as they are: names, * and ? as in file names
  bool overwrite = false;              // else it is an error if the file exists
  int threads = 1;
  std::function<void(int64_t done_bytes, int64_t all_bytes)> progress = nullptr;  // of the source; may be null
};

struct QuantizeReport {
  int64_t matrices = 0;            // quantized
  int64_t bytes = 0;               // of the file
  std::vector<std::string> kept;   // by the options
  std::vector<std::string> unfit;  // as their sizes are not multiples of 16 outputs and 32 inputs
};

// Whether it is a matrix of the mixers or the head, which are what is quantized: LoRA factors, embeddings and what GOLD
// layers share keep their type.
bool IsLargeMatrix(const CheckpointTensor& tensor);

// Writes `path`, a safetensors file, under another name until it is whole. Errors: ALREADY_EXISTS, INVALID_ARGUMENT (a
// pattern that no large matrix has, weights that are quantized already, NaN or infinite ones), those of the file
// system.
absl::StatusOr<QuantizeReport> QuantizeModel(const Checkpoint& checkpoint, const std::string& path,
                                             const QuantizeOptions& options);

}  // namespace goldfinch

#endif  // GOLDFINCH_WORKER_MODEL_QUANTIZE_MODEL_H_
