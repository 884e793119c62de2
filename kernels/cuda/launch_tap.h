// Who looks at what is queued before the device gets it. That is how a step is told from others (context.h).
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

  // Of work that is about to be queued, told from all other work by the values. False: it must not be queued.
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

  bool dry_ = false;       // work is noted and not queued
  std::vector<char> log_;  // what was noted: equal logs are equal work

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

// Of the launches of this thread (device.h); null: nobody looks.
inline thread_local LaunchTap* launch_tap = nullptr;

}  // namespace goldfinch::cuda

#endif  // GOLDFINCH_KERNELS_CUDA_LAUNCH_TAP_H_
