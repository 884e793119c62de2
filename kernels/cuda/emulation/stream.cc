#include "kernels/cuda/emulation/stream.h"

#include <chrono>
#include <mutex>
#include <thread>
#include <utility>

#include "base/check.h"
#include "kernels/cuda/emulation/emulation.h"

namespace goldfinch::emulation {
namespace {

// One lock for all streams, because the work of one runs others.
std::recursive_mutex& Mutex() {
  static auto& mutex = *new std::recursive_mutex;
  return mutex;
}

thread_local bool recording = false;
thread_local std::vector<std::function<void()>> recorded;

}  // namespace

int64_t Stream::Push(Work work) {
  const std::lock_guard<std::recursive_mutex> lock(Mutex());
  work_.push_back(std::move(work));
  return done_ + static_cast<int64_t>(work_.size());
}

int64_t Stream::end() const {
  const std::lock_guard<std::recursive_mutex> lock(Mutex());
  return done_ + static_cast<int64_t>(work_.size());
}

bool Stream::RunTo(int64_t place) {
  const std::lock_guard<std::recursive_mutex> lock(Mutex());
  if (done_ >= place) return true;
  const Access access;  // one for all of the work, because opening and closing the device's memory is slow
  while (done_ < place) {
    if (running_) return false;
    running_ = true;
    const bool finished = work_.front()();
    running_ = false;
    if (!finished) return false;
    work_.pop_front();
    ++done_;
  }
  return true;
}

void Stream::WaitFor(int64_t place) {
  while (!RunTo(place)) std::this_thread::sleep_for(std::chrono::microseconds(100));
}

void Queue(void* stream, std::function<void()> work) {
  if (recording) {
    recorded.push_back(std::move(work));
    return;
  }
  if (stream == nullptr) return work();
  static_cast<Stream*>(stream)->Push([work = std::move(work)] {
    work();
    return true;
  });
}

void BeginRecording() {
  GF_CHECK(!recording);
  recording = true;
}

std::vector<std::function<void()>> EndRecording() {
  GF_CHECK(recording);
  recording = false;
  return std::exchange(recorded, {});
}

}  // namespace goldfinch::emulation
