#include "kernels/cuda/upload_arena.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/check.h"

namespace goldfinch::cuda {
namespace {

constexpr int64_t kAlignment = 64;
constexpr int64_t kHalfBytesMin = int64_t{512} << 10;

int64_t RoundUp(int64_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

std::shared_ptr<void> Memory(absl::StatusOr<std::shared_ptr<void>> memory) {
  GF_CHECK(memory.ok()) << memory.status().ToString();
  return *std::move(memory);
}

}  // namespace

void UploadArena::Begin() {
  outgrown_.clear();
  round_ = (round_ + 1) % kRounds;
  if (read_[round_] != nullptr) read_[round_]->Wait();
  put_ = {};
  sent_ = {};
}

const void* UploadArena::PutArray(const void* host, int64_t bytes) {
  const int64_t size = RoundUp(bytes);
  if (put_.end + size > half_bytes_) Grow(size);
  put_.end += size;
  return Put(host, bytes, put_.end - size);
}

const void* UploadArena::PutTable(const void* host, int64_t bytes) {
  const int64_t size = RoundUp(bytes);
  if (size - put_.begin > half_bytes_) Grow(size);
  put_.begin -= size;
  return Put(host, bytes, put_.begin);
}

const void* UploadArena::Put(const void* host, int64_t bytes, int64_t offset) {
  if (bytes > 0) std::memcpy(static_cast<char*>(block_.host[round_].get()) + half_bytes_ + offset, host, bytes);
  return static_cast<char*>(block_.device.get()) + half_bytes_ + offset;
}

void UploadArena::Flush() {
  if (put_.begin == sent_.begin && put_.end == sent_.end) return;
  if (sent_.begin == sent_.end) {
    Copy(put_.begin, put_.end);
  } else {
    Copy(put_.begin, sent_.begin);
    Copy(sent_.end, put_.end);
  }
  sent_ = put_;
  read_[round_] = runtime_.queue().Record();
}

void UploadArena::Copy(int64_t begin, int64_t end) {
  if (begin == end) return;
  runtime_.queue().Copy(static_cast<char*>(block_.host[round_].get()) + half_bytes_ + begin,
                        static_cast<char*>(block_.device.get()) + half_bytes_ + begin, end - begin);
  ++copies_;
}

// What was put already stays in the old block; the next array starts a larger one.
void UploadArena::Grow(int64_t bytes) {
  Flush();
  if (block_.device != nullptr) outgrown_.push_back(std::exchange(block_, {}));
  half_bytes_ = std::max({kHalfBytesMin, 2 * half_bytes_, 2 * bytes});
  block_.device = Memory(runtime_.Allocate(2 * half_bytes_, "arrays of the host"));
  for (std::shared_ptr<void>& host : block_.host) {
    host = Memory(runtime_.AllocateStaging(2 * half_bytes_, "arrays for the device"));
  }
  put_ = {};
  sent_ = {};
}

}  // namespace goldfinch::cuda
