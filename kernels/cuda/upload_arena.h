// Gathers arrays of the host in pinned memory and copies them to the device together.
#ifndef GOLDFINCH_KERNELS_CUDA_UPLOAD_ARENA_H_
#define GOLDFINCH_KERNELS_CUDA_UPLOAD_ARENA_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "kernels/cuda/runtime.h"

namespace goldfinch::cuda {

// Works in rounds. An array or table that is put has its device address at once; its contents are there for work that
// is queued after Flush, and stay until the next round's Flush. If the arrays of a round have the same sizes as those
// of the last one, in the same order, they get the same addresses, whatever the tables are. Memory grows to the need of
// the largest round; a CHECK fails if there is not enough.
class UploadArena {
 public:
  explicit UploadArena(Runtime& runtime) : runtime_(runtime) {}
  UploadArena(const UploadArena&) = delete;
  UploadArena& operator=(const UploadArena&) = delete;

  // Starts a round. Waits if the host is kRounds ahead of the device's copies.
  void Begin();
  // Both return addresses in device memory, aligned to 64 bytes.
  const void* PutArray(const void* host, int64_t bytes);
  const void* PutTable(const void* host, int64_t bytes);
  // Queues the copy of everything that was put since the last Flush.
  void Flush();

  // Copies that were queued so far.
  int64_t copies() const { return copies_; }

 private:
  // A forward pass has up to three rounds: new rows of tables, layers, sampling.
  static constexpr int kRounds = 4;

  // Arrays are stored from the middle on, and tables before the middle, the newest first, so that one copy sends both.
  struct Block {
    std::shared_ptr<void> host[kRounds];  // [2 * half_bytes_], staging memory
    std::shared_ptr<void> device;         // of the same size; released first, because that waits for copies
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
  std::vector<Block> outgrown_;                // kept because work of this round may use them
  std::shared_ptr<const Mark> read_[kRounds];  // reached when the device has read the last round in this slot
  int round_ = 0;
  Range put_;
  Range sent_;
  int64_t copies_ = 0;
};

}  // namespace goldfinch::cuda

#endif  // GOLDFINCH_KERNELS_CUDA_UPLOAD_ARENA_H_
