// Streams of the emulation. Work in a stream runs as late as it may: when the host waits for a place in it, asks
// whether that is reached, or does so of another stream that waits for it. What does not wait for what it needs, or
// frees it too soon, finds old bytes or none.
#ifndef GOLDFINCH_KERNELS_CUDA_EMULATION_STREAM_H_
#define GOLDFINCH_KERNELS_CUDA_EMULATION_STREAM_H_

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <vector>

namespace goldfinch::emulation {

// Thread-safe.
class Stream {
 public:
  // Does its work and returns true, or returns false as long as it cannot go on; then it is called again later.
  using Work = std::function<bool()>;

  // The place after it.
  int64_t Push(Work work);
  // After all that was pushed.
  int64_t end() const;
  // Runs what lies before the place, as far as it goes. Whether all of that is done.
  bool RunTo(int64_t place);
  // The same until it is done.
  void WaitFor(int64_t place);

 private:
  std::deque<Work> work_;
  int64_t done_ = 0;
  bool running_ = false;  // work that runs may lead back here
};

// In the stream of a launch; at once if it is null. While the thread records, it is kept instead, and what it refers to
// must live until it is done.
void Queue(void* stream, std::function<void()> work);
void BeginRecording();
std::vector<std::function<void()>> EndRecording();

}  // namespace goldfinch::emulation

#endif  // GOLDFINCH_KERNELS_CUDA_EMULATION_STREAM_H_
