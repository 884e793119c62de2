// Scratch memory of one thread, which grows to the largest need and is kept.
#ifndef GOLDFINCH_KERNELS_CPU_SCRATCH_H_
#define GOLDFINCH_KERNELS_CPU_SCRATCH_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "base/check.h"
#include "hwy/aligned_allocator.h"

namespace goldfinch::cpu {

// A stack of float arrays. A Scratch::Frame frees the arrays that were taken during its lifetime. Blocks of memory are
// kept for the next use, so a steady workload allocates nothing.
class Scratch {
 public:
  // An uninitialized array, aligned for vectors and padded by one vector, so that whole-vector loads at its end stay
  // inside.
  float* Floats(int64_t count) {
    GF_CHECK_GE(count, 0);
    const int64_t padded = (count + 2 * kAlign - 1) / kAlign * kAlign;
    if (block_ < blocks_.size() && used_ > 0 && used_ + padded > blocks_[block_].floats) {
      ++block_;
      used_ = 0;
    }
    if (block_ == blocks_.size()) blocks_.push_back({nullptr, 0});
    // No array is in an unused block, so a block that is too small is replaced, not skipped.
    if (padded > blocks_[block_].floats) {
      const int64_t floats = padded > kMinBlock ? padded : kMinBlock;
      blocks_[block_] = {nullptr, 0};  // freed first, so that there are never two at once
      blocks_[block_] = {hwy::AllocateAligned<float>(floats), floats};
      GF_CHECK(blocks_[block_].data != nullptr) << "out of memory for " << floats * 4 << " bytes of scratch";
    }
    float* result = blocks_[block_].data.get() + used_;
    used_ += padded;
    return result;
  }

  class Frame {
   public:
    explicit Frame(Scratch& scratch) : scratch_(scratch), block_(scratch.block_), used_(scratch.used_) {}
    ~Frame() {
      scratch_.block_ = block_;
      scratch_.used_ = used_;
    }
    Frame(const Frame&) = delete;
    Frame& operator=(const Frame&) = delete;

   private:
    Scratch& scratch_;
    size_t block_;
    int64_t used_;
  };

 private:
  static constexpr int64_t kAlign = 16;
  static constexpr int64_t kMinBlock = int64_t{1} << 18;

  struct Block {
    hwy::AlignedFreeUniquePtr<float[]> data;
    int64_t floats;
  };
  std::vector<Block> blocks_;
  size_t block_ = 0;
  int64_t used_ = 0;
};

}  // namespace goldfinch::cpu

#endif  // GOLDFINCH_KERNELS_CPU_SCRATCH_H_
