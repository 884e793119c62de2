#include <algorithm>
#include <atomic>
#include <cstring>
#include <map>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/runtime.h"

namespace goldfinch::cuda {
namespace {

// The device that the thread's calls go to; CUDA has one for each thread.
thread_local int device_of_thread = -1;

// The first failure, whichever call reported it, and the device that the call was for: after a fault the process can no
// longer use CUDA.
struct Failure {
  cudaError_t error = cudaSuccess;
  int device = -1;
};
std::atomic<Failure> first_failure;

void Note(cudaError_t error, int device = device_of_thread) {
  Failure none;
  if (error != cudaSuccess) first_failure.compare_exchange_strong(none, {error, device});
}

std::string Text(cudaError_t error) { return absl::StrCat(cudaGetErrorName(error), ": ", cudaGetErrorString(error)); }

void UseDevice(int device) {
  if (device_of_thread == device) return;
  Note(cudaSetDevice(device));
  device_of_thread = device;
}

// --- Queues ----------------------------------------------------------------------------------------------------------

class CudaMark : public Mark {
 public:
  // The calling thread uses this device.
  explicit CudaMark(int device) : device_(device) { Note(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming)); }
  ~CudaMark() override { cudaEventDestroy(event_); }

  bool reached() const override {
    const cudaError_t error = cudaEventQuery(event_);
    if (error == cudaErrorNotReady) {
      cudaGetLastError();  // clears it: this is not an error
      return false;
    }
    Note(error, device_);
    return true;
  }
  void Wait() const override { Note(cudaEventSynchronize(event_), device_); }

  cudaEvent_t event() const { return event_; }

 private:
  const int device_;  // any thread may ask for the mark
  cudaEvent_t event_ = nullptr;
};

class CudaQueue : public Queue {
 public:
  // Owns the stream if it is not given.
  explicit CudaQueue(int device, cudaStream_t stream = nullptr) : device_(device), stream_(stream) {
    if (stream != nullptr) return;
    UseDevice(device);
    Note(cudaStreamCreateWithFlags(&own_, cudaStreamNonBlocking));
    stream_ = own_;
  }
  ~CudaQueue() override {
    if (own_ != nullptr) cudaStreamDestroy(own_);  // what is queued is still executed
  }

  std::shared_ptr<const Mark> Record() override {
    UseDevice(device_);
    std::shared_ptr<CudaMark> mark = FreeMark();
    Note(cudaEventRecord(mark->event(), stream_));
    return mark;
  }
  void WaitFor(const Mark& mark) override {
    UseDevice(device_);
    Note(cudaStreamWaitEvent(stream_, static_cast<const CudaMark&>(mark).event()));
  }
  // Between two devices this is a peer copy: the driver sees by the addresses whose memory it is, and goes through the
  // host where the devices cannot reach each other.
  void Copy(const void* from, void* to, int64_t bytes) override {
    UseDevice(device_);
    if (bytes > 0) Note(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream_));
  }
  void* stream() override {
    UseDevice(device_);
    return stream_;
  }

 private:
  // Events are reused once nobody else holds them, so there are as many as were ever held at the same time.
  std::shared_ptr<CudaMark> FreeMark() {
    for (std::shared_ptr<CudaMark>& mark : marks_) {
      if (mark.use_count() > 1) continue;
      std::atomic_thread_fence(std::memory_order_acquire);
      return mark;
    }
    return marks_.emplace_back(std::make_shared<CudaMark>(device_));
  }

  const int device_;
  cudaStream_t stream_;
  cudaStream_t own_ = nullptr;
  std::vector<std::shared_ptr<CudaMark>> marks_;
};

// Lets the device and the others that this process uses read and write each other's memory, where the hardware can; if
// it cannot, copies between them go through the host.
void LinkDevices(int device) {
  static auto& mutex = *new std::mutex;
  static auto& opened = *new std::vector<int>;
  const std::lock_guard<std::mutex> lock(mutex);
  for (const int other : opened) {
    if (other == device) return;
  }
  for (const int other : opened) {
    for (const auto& [from, to] : {std::pair(device, other), std::pair(other, device)}) {
      int can = 0;
      Note(cudaDeviceCanAccessPeer(&can, from, to));
      if (can == 0) continue;
      UseDevice(from);
      const cudaError_t error = cudaDeviceEnablePeerAccess(to, 0);
      if (error != cudaSuccess) cudaGetLastError();  // copies are slower then, but still correct
    }
  }
  UseDevice(device);
  opened.push_back(device);
}

// The host's arrays go through pinned memory in two halves: one is filled while the device reads the other.
constexpr int64_t kHalfBytes = int64_t{4} << 20;

std::string UuidText(const cudaUUID_t& uuid) {
  std::string text = "GPU";
  for (int i = 0; i < 16; ++i) {
    if (i == 0 || i == 4 || i == 6 || i == 8 || i == 10) text += '-';
    absl::StrAppend(&text, absl::Hex(static_cast<uint8_t>(uuid.bytes[i]), absl::kZeroPad2));
  }
  return text;
}

class CudaGraph : public Runtime::Graph {
 public:
  CudaGraph(cudaStream_t stream, cudaGraphExec_t graph) : stream_(stream), graph_(graph) {}
  // A graph that is still running is freed when it is done (CUDA driver API, cuGraphExecDestroy).
  ~CudaGraph() override { cudaGraphExecDestroy(graph_); }
  void Launch() override { Note(cudaGraphLaunch(graph_, stream_)); }

 private:
  const cudaStream_t stream_;
  const cudaGraphExec_t graph_;
};

class CudaRuntime : public Runtime {
 public:
  explicit CudaRuntime(int device) : device_(device) {}
  ~CudaRuntime() override {
    if (stream_ != nullptr) cudaStreamSynchronize(stream_);
    for (cudaEvent_t event : {left_[0], left_[1], landed_[0], landed_[1]}) {
      if (event != nullptr) cudaEventDestroy(event);
    }
    if (pinned_ != nullptr) cudaFreeHost(pinned_);
    if (landing_ != nullptr) cudaFreeHost(landing_);
    if (stream_ != nullptr) cudaStreamDestroy(stream_);
  }

  absl::Status Open() {
    int count = 0;
    cudaError_t error = cudaGetDeviceCount(&count);
    if (error != cudaSuccess) return absl::UnavailableError(absl::StrCat("no CUDA device: ", Text(error)));
    if (device_ < 0 || device_ >= count) {
      return absl::UnavailableError(absl::StrCat("no CUDA device ", device_, ": there are ", count));
    }
    cudaDeviceProp properties = {};
    device_of_thread = -1;  // until all of this has worked: then the next call sets its own device
    for (const cudaError_t result : {cudaSetDevice(device_), cudaGetDeviceProperties(&properties, device_),
                                     cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking),
                                     cudaMallocHost(reinterpret_cast<void**>(&pinned_), 2 * kHalfBytes),
                                     cudaMallocHost(reinterpret_cast<void**>(&landing_), 2 * kHalfBytes),
                                     cudaEventCreateWithFlags(&landed_[0], cudaEventDisableTiming),
                                     cudaEventCreateWithFlags(&landed_[1], cudaEventDisableTiming),
                                     cudaEventCreateWithFlags(&left_[0], cudaEventDisableTiming),
                                     cudaEventCreateWithFlags(&left_[1], cudaEventDisableTiming)}) {
      if (result != cudaSuccess) {
        return absl::UnavailableError(absl::StrCat("CUDA device ", device_, " cannot be used: ", Text(result)));
      }
    }
    device_of_thread = device_;
    LinkDevices(device_);
    queue_ = std::make_unique<CudaQueue>(device_, stream_);
    facts_ = {.name = properties.name,
              .major = properties.major,
              .minor = properties.minor,
              .multiprocessors = properties.multiProcessorCount,
              .shared_bytes = static_cast<int64_t>(properties.sharedMemPerBlockOptin),
              .memory_bytes = static_cast<int64_t>(properties.totalGlobalMem),
              .uuid = UuidText(properties.uuid)};
    return absl::OkStatus();
  }

  const DeviceFacts& facts() const override { return facts_; }
  void Use() override { UseDevice(device_); }
  int64_t FreeBytes() const override {
    size_t free = 0, total = 0;
    Note(cudaMemGetInfo(&free, &total));
    return static_cast<int64_t>(free);
  }
  void* stream() const override { return stream_; }

  absl::StatusOr<std::shared_ptr<void>> Allocate(int64_t bytes, std::string_view purpose) override {
    Use();
    void* memory = nullptr;
    const cudaError_t error = cudaMalloc(&memory, std::max<int64_t>(bytes, 1));
    if (error != cudaSuccess) {
      if (error != cudaErrorMemoryAllocation) {
        Note(error);
        return absl::InternalError(absl::StrCat("CUDA device ", device_, " failed: ", Text(error)));
      }
      cudaGetLastError();  // clears it: running out of memory does not mean that the device failed
      return absl::ResourceExhaustedError(absl::StrCat("cannot allocate ", bytes, " bytes for ", std::string(purpose),
                                                       " on CUDA device ", device_, ": ", Text(error), ", ",
                                                       FreeBytes(), " of ", facts_.memory_bytes, " bytes are free"));
    }
    Note(cudaMemsetAsync(memory, 0, std::max<int64_t>(bytes, 1), stream_));
    // Freeing waits for the device, so queued work may still use the memory.
    return std::shared_ptr<void>(memory, [device = device_](void* p) {
      int current = 0;
      cudaGetDevice(&current);
      if (current != device) cudaSetDevice(device);
      cudaFree(p);
      if (current != device) cudaSetDevice(current);
    });
  }

  void CopyToDevice(const void* host, void* device, int64_t bytes) override {
    const auto* from = static_cast<const char*>(host);
    auto* to = static_cast<char*>(device);
    while (bytes > 0) {
      const int64_t part = std::min(bytes, kHalfBytes - pinned_used_);
      if (part == 0) {
        Note(cudaEventRecord(left_[half_], stream_));
        half_ = 1 - half_;
        pinned_used_ = 0;
        Note(cudaEventSynchronize(left_[half_]));
        continue;
      }
      char* const pinned = pinned_ + half_ * kHalfBytes + pinned_used_;
      std::memcpy(pinned, from, part);
      Note(cudaMemcpyAsync(to, pinned, part, cudaMemcpyHostToDevice, stream_));
      pinned_used_ += part;
      from += part;
      to += part;
      bytes -= part;
    }
  }

  // Through pinned memory: one half is filled by the device while the other is copied out.
  void CopyToHost(const void* device, void* host, int64_t bytes) override {
    const auto start = [&](int64_t part) {
      const int64_t begin = part * kHalfBytes, size = std::min(kHalfBytes, bytes - begin);
      if (size <= 0) return;
      Note(cudaMemcpyAsync(landing_ + part % 2 * kHalfBytes, static_cast<const char*>(device) + begin, size,
                           cudaMemcpyDeviceToHost, stream_));
      Note(cudaEventRecord(landed_[part % 2], stream_));
    };
    start(0);
    for (int64_t part = 0; part * kHalfBytes < bytes; ++part) {
      start(part + 1);
      Note(cudaEventSynchronize(landed_[part % 2]));
      const int64_t begin = part * kHalfBytes;
      std::memcpy(static_cast<char*>(host) + begin, landing_ + part % 2 * kHalfBytes,
                  std::min(kHalfBytes, bytes - begin));
    }
  }
  void CopyOnDevice(const void* from, void* to, int64_t bytes) override {
    Note(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, stream_));
  }
  void Zero(void* device, int64_t bytes) override { Note(cudaMemsetAsync(device, 0, bytes, stream_)); }

  absl::Status Synchronize() override {
    Note(cudaStreamSynchronize(stream_));
    return status();
  }

  Queue& queue() override { return *queue_; }
  std::unique_ptr<Queue> MakeQueue() override { return std::make_unique<CudaQueue>(device_); }
  absl::StatusOr<std::shared_ptr<void>> AllocateStaging(int64_t bytes, std::string_view purpose) override {
    Use();
    void* memory = nullptr;
    const cudaError_t error = cudaHostAlloc(&memory, std::max<int64_t>(bytes, 1), cudaHostAllocPortable);
    if (error == cudaSuccess) return std::shared_ptr<void>(memory, [](void* p) { cudaFreeHost(p); });
    cudaGetLastError();
    return absl::ResourceExhaustedError(absl::StrCat("cannot allocate ", bytes, " bytes of the host's memory for ",
                                                     std::string(purpose), ": ", Text(error)));
  }
  absl::Status status() const override {
    const Failure failure = first_failure;
    if (failure.error == cudaSuccess) return absl::OkStatus();
    return absl::InternalError(absl::StrCat("CUDA device ", failure.device, " failed: ", Text(failure.error)));
  }

  void BeginCapture() override { Note(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeRelaxed)); }
  std::unique_ptr<Graph> EndCapture() override {
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t launched = nullptr;
    cudaError_t error = cudaStreamEndCapture(stream_, &graph);
    if (error == cudaSuccess) error = cudaGraphInstantiate(&launched, graph, 0);
    if (graph != nullptr) cudaGraphDestroy(graph);
    if (error == cudaSuccess) return std::make_unique<CudaGraph>(stream_, launched);
    cudaGetLastError();  // clears it: the work itself can still be done
    return nullptr;
  }

 private:
  const int device_;
  DeviceFacts facts_;
  cudaStream_t stream_ = nullptr;
  std::unique_ptr<CudaQueue> queue_;
  char* pinned_ = nullptr;
  char* landing_ = nullptr;  // as pinned_, for copies from the device
  cudaEvent_t landed_[2] = {};
  cudaEvent_t left_[2] = {};  // when the half was last left
  int half_ = 0;
  int64_t pinned_used_ = 0;
};

}  // namespace

void PrepareLaunch(const void* function, const LaunchShape& shape) {
  constexpr size_t kAlwaysAllowed = 48 << 10;
  if (shape.shared_bytes < kAlwaysAllowed) return;
  // The limit is set for each function and device.
  static thread_local auto& allowed = *new std::map<std::pair<const void*, int>, size_t>;
  size_t& bytes = allowed[{function, device_of_thread}];
  if (shape.shared_bytes <= bytes) return;
  Note(cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize,
                            static_cast<int>(shape.shared_bytes)));
  bytes = shape.shared_bytes;
}

void FinishLaunch(cudaError_t error) {
  GF_CHECK(error != cudaErrorInvalidConfiguration && error != cudaErrorInvalidValue) << Text(error);
  Note(error);
}

std::vector<std::string> DeviceUuids() {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess) count = 0;
  std::vector<std::string> uuids(count);
  for (int device = 0; device < count; ++device) {
    cudaDeviceProp properties = {};
    if (cudaGetDeviceProperties(&properties, device) == cudaSuccess) uuids[device] = UuidText(properties.uuid);
  }
  cudaGetLastError();  // clears what failed: OpenRuntime says it
  return uuids;
}

absl::StatusOr<std::unique_ptr<Runtime>> OpenRuntime(int device) {
  auto runtime = std::make_unique<CudaRuntime>(device);
  absl::Status status = runtime->Open();
  if (!status.ok()) return status;
  return runtime;
}

}  // namespace goldfinch::cuda
