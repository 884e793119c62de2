// Streams of the emulation. Work in a stream runs as late as possible: when the host waits for a place in it, asks
// whether the place is reached, or does either for another stream that waits for this one. So code that does not wait
// for what it needs, or frees memory too soon, finds old bytes or none.
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
  // Does its work and returns true. Returns false if it cannot go on yet; then it is called again later.
  using Work = std::function<bool()>;

  // Returns the place after the work.
  int64_t Push(Work work);
  // The place after everything that was pushed.
  int64_t end() const;
  // Runs the work before the place, as far as it can. Returns whether all of it is done.
  bool RunTo(int64_t place);
  // Runs until the work before the place is done.
  void WaitFor(int64_t place);

 private:
  std::deque<Work> work_;
  int64_t done_ = 0;
  bool running_ = false;  // running work may call the stream again
};

// Puts work in the stream of a launch; runs it at once if the stream is null. While the thread records, the work is
// only recorded, and what it refers to must live until the recorded work has been done.
void Queue(void* stream, std::function<void()> work);
void BeginRecording();
std::vector<std::function<void()>> EndRecording();

}  // namespace goldfinch::emulation

#endif  // GOLDFINCH_KERNELS_CUDA_EMULATION_STREAM_H_
