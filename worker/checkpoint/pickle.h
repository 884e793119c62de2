// Reads the pickle of a torch state dict ("data.pkl") without executing anything.
//
// Pickle is a program for a stack machine. This machine knows the opcodes that torch.save emits for a dict of tensors
// and may import only what kImports in pickle.cc lists; anything else is refused by its name. It has no recursion, and
// its memory is at most a small multiple of the pickle, which may have kPickleBytesMax bytes.
#ifndef GOLDFINCH_WORKER_CHECKPOINT_PICKLE_H_
#define GOLDFINCH_WORKER_CHECKPOINT_PICKLE_H_

#include <cstdint>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/tensor.h"
#include "worker/checkpoint/layout.h"

namespace goldfinch {

// Ten times the pickle of a model with 61 layers.
constexpr int64_t kPickleBytesMax = 4 << 20;

// The strings point into the pickle.
struct PickledTensor {
  std::string_view name;
  std::string_view storage;  // the key of the storage: its file in the archive is "<archive>/data/<key>"
  DType dtype = DType::kF32;
  int64_t storage_elements = 0;
  StoredView view;
};

// The tensors of the dict, in its order. Other values in the dict (numbers, strings, lists, nested dicts) are passed
// over; it is an error if there is no tensor at all. Nothing is checked but the pickle itself: sizes and offsets are as
// the file says. All errors are INVALID_ARGUMENT.
absl::StatusOr<std::vector<PickledTensor>> ReadStateDict(std::string_view pickle);

}  // namespace goldfinch

#endif  // GOLDFINCH_WORKER_CHECKPOINT_PICKLE_H_
