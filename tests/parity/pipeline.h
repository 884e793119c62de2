// The stages of one model chained in this process, as a pipeline of machines would be.
#ifndef GOLDFINCH_TESTS_PARITY_PIPELINE_H_
#define GOLDFINCH_TESTS_PARITY_PIPELINE_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/types/span.h"
#include "kernels/backend.h"
#include "worker/checkpoint/checkpoint.h"
#include "worker/model/model_config.h"
#include "worker/stage/stage.h"

namespace goldfinch {

// Options that fit every golden case, with exact caches.
inline StageOptions ExactOptions() {
  return {.max_sequences = 8,
          .cache_tokens = 8 * 256,
          .max_step_tokens = 1024,
          .max_logit_rows = 1024,
          .cache_dtype = DType::kF32};
}

// Rows that went from one stage to the next.
struct Flow {
  int64_t hidden_rows = 0;
  int64_t compressed_rows = 0;
  bool operator==(const Flow&) const = default;
};
void PrintTo(const Flow& flow, std::ostream* out);

// Calls that fail abort: tests of errors use Stage itself.
class Pipeline {
 public:
  // Stages begin at layer 0 and at each of `cuts`, which ascend. `kept_bytes` of each are for kept rows.
  Pipeline(Backend& backend, const std::shared_ptr<const Checkpoint>& checkpoint, const ModelConfig& config,
           const StageOptions& options = ExactOptions(), const std::vector<int>& cuts = {}, int64_t kept_bytes = 0);

  const ModelShape& shape() const { return stages_.front()->model().shape; }
  int64_t vocab() const { return shape().vocab_size; }
  Stage& stage(int index) { return *stages_[index]; }

  // All stages give a sequence the same slot.
  int Open();
  int Fork(int slot);
  void Close(int slot);

  // Returns the logits, chunk after chunk: [rows, vocab].
  std::vector<float> Forward(absl::Span<const Chunk> chunks);
  std::vector<float> Forward(const Chunk& chunk) { return Forward({&chunk, 1}); }

  // Runs a new sequence of these tokens in chunks of `chunk_tokens`. Returns the logits of every position.
  std::vector<float> AllLogits(absl::Span<const int32_t> tokens, int64_t chunk_tokens);

  // The rows that went from each stage to the next in the last Forward, and the compressed rows of all its tokens.
  const std::vector<Flow>& flows() const { return flows_; }
  const std::vector<float>& compressed() const { return compressed_; }

 private:
  // The contents of tensors of the back end.
  std::string Bytes(const ConstTensor& tensor);
  std::vector<float> Values(const ConstTensor& tensor);
  // Copies a tensor to other memory of the back end, by way of the host.
  Tensor Carry(const ConstTensor& tensor, std::shared_ptr<void>* memory);

  Backend& backend_;
  std::vector<std::unique_ptr<Stage>> stages_;
  std::vector<Flow> flows_;
  std::vector<float> compressed_;
};

}  // namespace goldfinch

#endif  // GOLDFINCH_TESTS_PARITY_PIPELINE_H_
