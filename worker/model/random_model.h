// Random checkpoints of every model family, for tests: shapes and names as in the released files.
#ifndef GOLDFINCH_WORKER_MODEL_RANDOM_MODEL_H_
#define GOLDFINCH_WORKER_MODEL_RANDOM_MODEL_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "kernels/tensor.h"
#include "worker/checkpoint/checkpoint.h"
#include "worker/checkpoint/checkpoint_test_util.h"

namespace goldfinch {

struct RandomModelSpec {
  // Kinds of the layers, by their names in TimeMixKinds().
  std::vector<std::string> layers = {};
  int64_t width = 64;
  int64_t vocab_size = 40;
  int64_t hidden = 80;  // of the channel mix
  int head_size = 64;
  int64_t mix_rank = 8;    // LoRA of one shift target
  int64_t lora_rank = 16;  // LoRAs of decays, keys and values
  DType dtype = DType::kBf16;
  int eagle_minor = 2;  // RWKV-5.x: 0, 1 or 2
  bool value2 = true;   // whether Finch-C2 layers have the tensors of v2
  bool time_state = false;
  uint64_t seed = 1;
};

// Deterministic, whatever the compiler.
std::vector<TestTensor> RandomModel(const RandomModelSpec& spec);

// The same tensors under the names of the second naming scheme (worker/checkpoint/names.h).
std::vector<TestTensor> WithSecondNames(std::vector<TestTensor> tensors);

// A .pth file of them in memory, opened. Aborts if that fails.
std::shared_ptr<const Checkpoint> OpenTensors(const std::vector<TestTensor>& tensors);

// An opened file in memory. Aborts if that fails.
std::shared_ptr<const Checkpoint> OpenFileBytes(std::string bytes);

// Token ids below `vocab_size`, the highest among them.
std::vector<int32_t> RandomTokens(int64_t count, int64_t vocab_size, uint64_t seed);

}  // namespace goldfinch

#endif  // GOLDFINCH_WORKER_MODEL_RANDOM_MODEL_H_
