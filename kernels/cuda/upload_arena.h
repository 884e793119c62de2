// Arrays of the host on their way to the device: gathered in pinned memory, sent together.
#ifndef GOLDFINCH_KERNELS_CUDA_UPLOAD_ARENA_H_
#define GOLDFINCH_KERNELS_CUDA_UPLOAD_ARENA_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "kernels/cuda/runtime.h"

namespace goldfinch::cuda {

// Works in rounds. What a round puts has its address on the device at once, is there for work that is queued after
// Flush, and stays until the next round's Flush. A round whose arrays have the sizes of the last one's, in the same
// order, gives them the same addresses, whatever tables it has. Memory grows to what the largest round needs; CHECKs
// that it can be had.
class UploadArena {
 public:
  explicit UploadArena(Runtime& runtime) : runtime_(runtime) {}
  UploadArena(const UploadArena&) = delete;
  UploadArena& operator=(const UploadArena&) = delete;

  // Starts a round. Where the host is kRounds ahead of the device's copies it waits.
  void Begin();
  // Addresses in device memory, aligned to 64 bytes.
  const void* PutArray(const void* host, int64_t bytes);
  const void* PutTable(const void* host, int64_t bytes);
  // Queues the copy of what was put since the last Flush.
  void Flush();

  // Queued so far.
  int64_t copies() const { return copies_; }

 private:
  // A Forward is up to three: new rows of tables, layers, sampling.
  static constexpr int kRounds = 4;

  // Arrays lie from the middle of it on, tables before the middle, the newest first: one copy sends both.
  struct Block {
    std::shared_ptr<void> host[kRounds];  // [2 * half_bytes_], staging memory
    std::shared_ptr<void> device;         // the same; released first, which waits for copies
  };
  // Offsets from the middle.
  struct Range {
    int64_t begin = 0;
    int64_t end = 0;
  };

  const void* Put(const void* host, int64_t bytes, int64_t offset);
  void Copy(int64_t begin, int64_t end);
  void Grow(int64_t bytes);

  Runtime& runtime_;
  int64_t half_bytes_ = 0;
  Block block_;
  std::vector<Block> outgrown_;                // this round's work may use them
  std::shared_ptr<const Mark> read_[kRounds];  // the device has read the last of these rounds
  int round_ = 0;
  Range put_;
  Range sent_;
  int64_t copies_ = 0;
};

}  // namespace goldfinch::cuda

#endif  // GOLDFINCH_KERNELS_CUDA_UPLOAD_ARENA_H_
