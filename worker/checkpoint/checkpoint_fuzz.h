// What the fuzzers of the checkpoint readers share.
#ifndef GOLDFINCH_WORKER_CHECKPOINT_CHECKPOINT_FUZZ_H_
#define GOLDFINCH_WORKER_CHECKPOINT_CHECKPOINT_FUZZ_H_

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "worker/checkpoint/checkpoint.h"
#include "worker/checkpoint/checkpoint_test_util.h"

extern "C" size_t LLVMFuzzerMutate(uint8_t* data, size_t size, size_t max_size);

namespace goldfinch {

// Tensors of every type, and one that is copied.
inline std::vector<TestView> FuzzViews() {
  return {{"emb.weight", DType::kF32, "0", 6, 0, {2, 3}, {3, 1}},
          {"blocks.0.att.time_state", DType::kF16, "1", 6, 0, {3, 2}, {1, 3}},
          {"rwkv.ln_out.weight", DType::kBf16, "2", 6, 2, {4}, {1}}};
}

inline std::vector<TestTensor> FuzzTensors() {
  std::vector<TestTensor> tensors;
  for (const TestView& view : FuzzViews()) tensors.push_back({view.name, view.dtype, {3, 2}, {1, 2, 3, 4, 5, 6}});
  return tensors;
}

// Opens, verifies and reads every tensor.
inline void ReadEverything(const std::string& file) {
  const auto checkpoint = Checkpoint::OpenBytes(file, "fuzz");
  if (!checkpoint.ok()) return;
  (*checkpoint)->Verify({}).status().IgnoreError();
  int sum = 0;
  for (const CheckpointTensor& tensor : (*checkpoint)->tensors()) {
    for (const ConstTensor& data : {tensor.data, tensor.scales}) {
      const auto* bytes = static_cast<const volatile char*>(data.data);
      for (int64_t i = 0; i < data.bytes(); ++i) sum += bytes[i];
    }
    if ((*checkpoint)->Find(tensor.name) != &tensor) __builtin_trap();
  }
  (void)sum;
}

// Begins from a good file whenever there is nothing yet: the fuzzers need no corpus.
inline size_t MutateFrom(const std::string& good, uint8_t* data, size_t size, size_t max_size) {
  if (size < 32 && good.size() <= max_size) {
    std::memcpy(data, good.data(), good.size());
    size = good.size();
  }
  return LLVMFuzzerMutate(data, size, max_size);
}

}  // namespace goldfinch

#endif  // GOLDFINCH_WORKER_CHECKPOINT_CHECKPOINT_FUZZ_H_
