// What a reader finds in one checkpoint file: parts (runs of bytes) and tensors that lie in them.
#ifndef GOLDFINCH_WORKER_CHECKPOINT_LAYOUT_H_
#define GOLDFINCH_WORKER_CHECKPOINT_LAYOUT_H_

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <new>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/tensor.h"

namespace goldfinch {

// A run of the file's bytes with the same checksum and element type: a .pth storage, a safetensors tensor.
struct FilePart {
  std::string name;
  std::string_view bytes;         // in the mapped file
  std::optional<DType> dtype;     // none: no weights in it
  std::optional<uint32_t> crc32;  // none: the container has no checksum
};

struct StoredTensor {
  std::string name;  // as in the file
  int part = 0;      // where in CheckpointLayout::parts its elements are
  ConstTensor data;  // dense
};

// A tensor as files describe it; nothing in it has been checked.
struct StoredView {
  int64_t offset_elements = 0;  // from the start of the part
  int rank = 0;                 // 0: a single number
  std::array<int64_t, 4> sizes{};
  std::array<int64_t, 4> strides{};  // in elements
};

struct AlignedDelete {
  static constexpr std::align_val_t kAlignment{64};
  void operator()(char* memory) const { ::operator delete(memory, kAlignment); }
};

struct CheckpointLayout {
  std::vector<FilePart> parts;
  std::vector<StoredTensor> tensors;
  std::map<std::string, std::string> metadata;  // what the file says of itself
  // Tensors that could not be used where they lie: strided views, and those not aligned for their element type.
  std::vector<std::unique_ptr<char, AlignedDelete>> owned;
  int64_t owned_bytes = 0;

  // Checks `view` of the part (which has a dtype) and appends it to `tensors`: in place if it is dense and aligned,
  // else as a dense copy. All copies together may take `owned_bytes_max`. A single number becomes shape [1]. Errors
  // name the tensor.
  absl::Status AddTensor(std::string_view name, int part, const StoredView& view, int64_t owned_bytes_max);
};

// Row-major strides for `view`'s sizes; meaningless if those overflow.
void SetDenseStrides(StoredView* view);

// sizes[0] * sizes[1] * ...; none if a size is negative or the product overflows.
std::optional<int64_t> ElementsOf(const StoredView& view);

}  // namespace goldfinch

#endif  // GOLDFINCH_WORKER_CHECKPOINT_LAYOUT_H_
