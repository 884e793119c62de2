// Devices of the emulation: memory and streams. Each call of OpenRuntime makes memory and streams of its own; those of
// one ordinal say that they are one device.
#include <algorithm>
#include <cstring>
#include <functional>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/emulation/emulation.h"
#include "kernels/cuda/emulation/stream.h"
#include "kernels/cuda/runtime.h"

namespace goldfinch::cuda {
namespace {

void Move(const void* from, void* to, int64_t bytes) {
  const emulation::Access access;
  if (bytes > 0) std::memcpy(to, from, static_cast<size_t>(bytes));
}

class EmulatedMark : public Mark {
 public:
  EmulatedMark(std::shared_ptr<emulation::Stream> stream, int64_t place) : stream_(std::move(stream)), place_(place) {}
  bool reached() const override { return stream_->RunTo(place_); }
  void Wait() const override { stream_->WaitFor(place_); }

 private:
  friend class EmulatedQueue;
  const std::shared_ptr<emulation::Stream> stream_;
  const int64_t place_;
};

class EmulatedQueue : public Queue {
 public:
  explicit EmulatedQueue(std::shared_ptr<emulation::Stream> stream) : stream_(std::move(stream)) {}

  std::shared_ptr<const Mark> Record() override { return std::make_shared<EmulatedMark>(stream_, stream_->end()); }
  void WaitFor(const Mark& mark) override {
    const auto& other = static_cast<const EmulatedMark&>(mark);
    if (other.stream_ == stream_) return;
    stream_->Push([stream = other.stream_, place = other.place_] { return stream->RunTo(place); });
  }
  void Copy(const void* from, void* to, int64_t bytes) override {
    emulation::Queue(stream(), [from, to, bytes] { Move(from, to, bytes); });
  }
  void* stream() override { return stream_.get(); }

 private:
  const std::shared_ptr<emulation::Stream> stream_;
};

// The streams of one device. Freeing its memory waits for them, not for those of other devices.
class Device {
 public:
  std::shared_ptr<emulation::Stream> MakeStream() {
    const std::lock_guard<std::mutex> lock(mutex_);
    std::erase_if(streams_, [](const auto& stream) { return stream.use_count() == 1 && stream->RunTo(stream->end()); });
    return streams_.emplace_back(std::make_shared<emulation::Stream>());
  }
  void Settle() {
    std::vector<std::shared_ptr<emulation::Stream>> streams;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      streams = streams_;
    }
    // Work that waits for a peer that never comes does not end. Use of freed memory after that is for the test to find.
    for (const auto& stream : streams) stream->RunTo(stream->end());
  }

 private:
  std::mutex mutex_;
  std::vector<std::shared_ptr<emulation::Stream>> streams_;
};

class EmulatedRuntime : public Runtime {
 public:
  explicit EmulatedRuntime(int ordinal)
      : facts_{.name = "emulated",
               .major = 8,
               .minor = 0,
               // Few, so that small tests divide work in the way that large ones do on a device.
               .multiprocessors = 4,
               .shared_bytes = 227 << 10,
               .memory_bytes = int64_t{1} << 40,
               .uuid = absl::StrCat("GPU-emulated-", ordinal)},
        device_(std::make_shared<Device>()),
        stream_(device_->MakeStream()),
        queue_(stream_) {}
  ~EmulatedRuntime() override { stream_->WaitFor(stream_->end()); }

  const DeviceFacts& facts() const override { return facts_; }
  void Use() override {}
  int64_t FreeBytes() const override { return facts_.memory_bytes; }
  void* stream() const override { return stream_.get(); }

  absl::StatusOr<std::shared_ptr<void>> Allocate(int64_t bytes, std::string_view purpose) override {
    void* memory = emulation::Allocate(static_cast<size_t>(bytes));
    if (memory == nullptr) {
      return absl::ResourceExhaustedError(absl::StrCat("cannot allocate ", bytes, " bytes for ", std::string(purpose)));
    }
    return std::shared_ptr<void>(memory, [device = device_](void* released) {
      device->Settle();
      emulation::Free(released);
    });
  }
  void CopyToDevice(const void* host, void* device, int64_t bytes) override {
    const char* const begin = static_cast<const char*>(host);
    emulation::Queue(stream(), [values = std::vector<char>(begin, begin + bytes), device] {
      Move(values.data(), device, static_cast<int64_t>(values.size()));
    });
  }
  void CopyToHost(const void* device, void* host, int64_t bytes) override {
    stream_->WaitFor(stream_->end());
    Move(device, host, bytes);
  }
  void CopyOnDevice(const void* from, void* to, int64_t bytes) override { queue_.Copy(from, to, bytes); }
  void Zero(void* device, int64_t bytes) override {
    emulation::Queue(stream(), [device, bytes] {
      const emulation::Access access;
      if (bytes > 0) std::memset(device, 0, static_cast<size_t>(bytes));
    });
  }
  absl::Status Synchronize() override {
    stream_->WaitFor(stream_->end());
    return status();
  }

  Queue& queue() override { return queue_; }
  std::unique_ptr<Queue> MakeQueue() override { return std::make_unique<EmulatedQueue>(device_->MakeStream()); }
  absl::StatusOr<std::shared_ptr<void>> AllocateStaging(int64_t bytes, std::string_view /*purpose*/) override {
    return std::shared_ptr<void>(new char[std::max<int64_t>(bytes, 1)],
                                 [](void* memory) { delete[] static_cast<char*>(memory); });
  }
  absl::Status status() const override { return absl::OkStatus(); }

  void BeginCapture() override { emulation::BeginRecording(); }
  std::unique_ptr<Graph> EndCapture() override {
    return std::make_unique<EmulatedGraph>(stream_, emulation::EndRecording());
  }

 private:
  class EmulatedGraph : public Graph {
   public:
    EmulatedGraph(std::shared_ptr<emulation::Stream> stream, std::vector<std::function<void()>> work)
        : stream_(std::move(stream)),
          work_(std::make_shared<const std::vector<std::function<void()>>>(std::move(work))) {}
    void Launch() override {
      emulation::Queue(stream_.get(), [work = work_] {
        for (const std::function<void()>& part : *work) part();
      });
    }

   private:
    const std::shared_ptr<emulation::Stream> stream_;
    const std::shared_ptr<const std::vector<std::function<void()>>> work_;
  };

  const DeviceFacts facts_;
  const std::shared_ptr<Device> device_;
  const std::shared_ptr<emulation::Stream> stream_;
  EmulatedQueue queue_;
};

}  // namespace

std::vector<std::string> DeviceUuids() { return {}; }  // there are as many as one opens

absl::StatusOr<std::unique_ptr<Runtime>> OpenRuntime(int device) { return std::make_unique<EmulatedRuntime>(device); }

}  // namespace goldfinch::cuda
