// Activations of one forward pass: a stack of tensors in a back end's memory.
#ifndef GOLDFINCH_WORKER_MODEL_WORKSPACE_H_
#define GOLDFINCH_WORKER_MODEL_WORKSPACE_H_

#include <cstdint>
#include <memory>
#include <utility>

#include "base/check.h"
#include "kernels/tensor.h"

namespace goldfinch {

// Not thread-safe. Nothing is allocated after construction; taking more than the capacity is a CHECK.
class Workspace {
 public:
  Workspace(std::shared_ptr<void> memory, int64_t bytes) : memory_(std::move(memory)), bytes_(bytes) {}

  // Uninitialized, aligned to 64 bytes; valid until the enclosing Frame ends.
  Tensor Take(const Shape& shape, DType dtype = DType::kF32) {
    const Tensor tensor{static_cast<char*>(memory_.get()) + used_, dtype, shape};
    used_ += Bytes(shape.elements(), dtype);
    GF_CHECK_LE(used_, bytes_) << "workspace is too small";
    return tensor;
  }

  // Bytes that Take of `elements` elements uses up.
  static int64_t Bytes(int64_t elements, DType dtype = DType::kF32) {
    return (elements * SizeOf(dtype) + 63) / 64 * 64;
  }

  class Frame {
   public:
    explicit Frame(Workspace& workspace) : workspace_(workspace), used_(workspace.used_) {}
    ~Frame() { workspace_.used_ = used_; }
    Frame(const Frame&) = delete;
    Frame& operator=(const Frame&) = delete;

   private:
    Workspace& workspace_;
    int64_t used_;
  };

 private:
  std::shared_ptr<void> memory_;
  int64_t bytes_;
  int64_t used_ = 0;
};

}  // namespace goldfinch

#endif  // GOLDFINCH_WORKER_MODEL_WORKSPACE_H_
