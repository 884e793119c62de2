// Gathers small arrays of the host in pinned memory and sends them to the device together.
#ifndef GOLDFINCH_KERNELS_CUDA_UPLOAD_ARENA_H_
#define GOLDFINCH_KERNELS_CUDA_UPLOAD_ARENA_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "kernels/cuda/runtime.h"

namespace goldfinch::cuda {

// Works in rounds. An array that is put in a round has its address on the device at once; its contents are there for
// work that is queued after Flush, and stay until the next round's Flush. If a round's arrays have the same sizes, in
// the same order, as those of the round before, they get the same addresses, whatever its tables are. Memory grows to
// what the largest round needs; CHECKs that it can be allocated.
class UploadArena {
 public:
  explicit UploadArena(Runtime& runtime) : runtime_(runtime) {}
  UploadArena(const UploadArena&) = delete;
  UploadArena& operator=(const UploadArena&) = delete;

  // Starts a round. Waits if the host is kRounds ahead of the device's copies.
  void Begin();
  // Return the address in device memory, aligned to 64 bytes.
  const void* PutArray(const void* host, int64_t bytes);
  const void* PutTable(const void* host, int64_t bytes);
  // Queues the copy of everything put since the last Flush.
  void Flush();

  // How many copies have been queued so far.
  int64_t copies() const { return copies_; }

 private:
  // A Forward takes up to three rounds: new rows of tables, layers, sampling.
  static constexpr int kRounds = 4;

  // Arrays are placed from the middle upwards and tables from the middle downwards, so that one copy sends both.
  struct Block {
    std::shared_ptr<void> host[kRounds];  // [2 * half_bytes_], staging memory
    std::shared_ptr<void> device;         // the same size; released first, and that waits for copies
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
  std::vector<Block> outgrown_;                // this round's work may still use them
  std::shared_ptr<const Mark> read_[kRounds];  // the device has read the last of these rounds
  int round_ = 0;
  Range put_;
  Range sent_;
  int64_t copies_ = 0;
};

}  // namespace goldfinch::cuda

#endif  // GOLDFINCH_KERNELS_CUDA_UPLOAD_ARENA_H_
