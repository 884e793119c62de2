// Streams of the emulation. Work in a stream runs as late as possible: when the host waits for a place in the stream,
// or asks whether it is reached, or does so for another stream that waits for this one. Code that does not wait for its
// inputs, or frees them too soon, therefore finds old bytes or none.
#ifndef GOLDFINCH_KERNELS_CUDA_EMULATION_STREAM_H_
#define GOLDFINCH_KERNELS_CUDA_EMULATION_STREAM_H_

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <vector>

namespace goldfinch::emulation {

// Any thread may call.
class Stream {
 public:
  // Does its work and returns true, or returns false if it cannot proceed yet; then it is called again later.
  using Work = std::function<bool()>;

  // Returns the place after the work.
  int64_t Push(Work work);
  // The place after everything that was pushed.
  int64_t end() const;
  // Runs the work before the place, as far as it can proceed. Returns whether all of it is done.
  bool RunTo(int64_t place);
  // The same, until all of it is done.
  void WaitFor(int64_t place);

 private:
  std::deque<Work> work_;
  int64_t done_ = 0;
  bool running_ = false;  // work that runs may call this stream again
};

// Queues work in the stream of a launch; without a stream it is done at once. While the thread records, the work is
// kept instead, and whatever it refers to must live until it is done.
void Queue(void* stream, std::function<void()> work);
void BeginRecording();
std::vector<std::function<void()>> EndRecording();

}  // namespace goldfinch::emulation

#endif  // GOLDFINCH_KERNELS_CUDA_EMULATION_STREAM_H_
