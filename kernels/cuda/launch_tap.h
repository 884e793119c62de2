// Sees work before it is queued on the device. That is how a submission is recognized (context.h).
#ifndef GOLDFINCH_KERNELS_CUDA_LAUNCH_TAP_H_
#define GOLDFINCH_KERNELS_CUDA_LAUNCH_TAP_H_

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

namespace goldfinch::cuda {

class LaunchTap {
 public:
  enum class Work : int64_t { kKernel, kProduct, kCopy, kZero };

  // Announces work that is about to be queued; the values distinguish it from all other work. If it returns false, the
  // work must not be queued.
  template <typename... Values>
  bool Pass(Work work, const Values&... values) {
    if (!dry_) {
      BeforeWork();
      return true;
    }
    size_t at = log_.size();
    log_.resize(at + (sizeof(work) + ... + sizeof(values)));
    Note(work, at);
    (Note(values, at), ...);
    return false;
  }

 protected:
  ~LaunchTap() = default;
  virtual void BeforeWork() = 0;

  bool dry_ = false;       // work is noted in the log and not queued
  std::vector<char> log_;  // equal logs mean equal work

 private:
  template <typename Value>
  void Note(Value value, size_t& at) {
    static_assert(std::is_trivially_copyable_v<Value>);
#if defined(__has_builtin)
#if __has_builtin(__builtin_clear_padding)
    __builtin_clear_padding(&value);
#endif
#endif
    std::memcpy(log_.data() + at, &value, sizeof(value));
    at += sizeof(value);
  }
};

// The tap that launches of this thread go through (device.h), or null.
inline thread_local LaunchTap* launch_tap = nullptr;

}  // namespace goldfinch::cuda

#endif  // GOLDFINCH_KERNELS_CUDA_LAUNCH_TAP_H_
