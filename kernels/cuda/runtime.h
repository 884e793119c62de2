// One device and one queue of work on it: the part of CUDA's runtime that the host side of the kernels needs.
// runtime_cuda.cu implements it with CUDA, emulation/runtime_emulated.cc with the emulation.
#ifndef GOLDFINCH_KERNELS_CUDA_RUNTIME_H_
#define GOLDFINCH_KERNELS_CUDA_RUNTIME_H_

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/queue.h"

namespace goldfinch::cuda {

struct DeviceFacts {
  std::string name;  // "NVIDIA H100 80GB HBM3"
  int major = 0;     // compute capability
  int minor = 0;
  int multiprocessors = 0;
  int64_t shared_bytes = 0;  // that one block can have
  int64_t memory_bytes = 0;
  std::string uuid = {};  // as nvidia-smi -L writes it
};

// For one thread at a time. The first failed call is remembered, and Synchronize returns it; results of later calls
// mean nothing.
class Runtime {
 public:
  virtual ~Runtime() = default;

  virtual const DeviceFacts& facts() const = 0;
  // Makes this device the one that the calling thread's calls go to. Needed before the first call of a thread, and
  // after calls to another device.
  virtual void Use() = 0;
  // Device memory that no process uses.
  virtual int64_t FreeBytes() const = 0;
  // The main queue as Launch (device.h) takes it.
  virtual void* stream() const = 0;

  // Device memory, zeroed, aligned to 256 bytes. The message of RESOURCE_EXHAUSTED names `purpose`, the size and what
  // is free.
  virtual absl::StatusOr<std::shared_ptr<void>> Allocate(int64_t bytes, std::string_view purpose) = 0;
  // `host` may be reused when the call returns.
  virtual void CopyToDevice(const void* host, void* device, int64_t bytes) = 0;
  // Waits for everything queued before.
  virtual void CopyToHost(const void* device, void* host, int64_t bytes) = 0;
  virtual void CopyOnDevice(const void* from, void* to, int64_t bytes) = 0;
  virtual void Zero(void* device, int64_t bytes) = 0;
  virtual absl::Status Synchronize() = 0;

  // As the methods of Backend.
  virtual Queue& queue() = 0;
  virtual std::unique_ptr<Queue> MakeQueue() = 0;
  virtual absl::StatusOr<std::shared_ptr<void>> AllocateStaging(int64_t bytes, std::string_view purpose) = 0;
  virtual absl::Status status() const = 0;

  // --- Graphs: see Context ------------------------------------------------------------------------------------------

  // Work that was recorded between BeginCapture and EndCapture.
  class Graph {
   public:
    virtual ~Graph() = default;
    // Queues the recorded work, on the same addresses.
    virtual void Launch() = 0;
  };
  // Work that is queued between the two calls is recorded instead of done. Nothing may be allocated meanwhile.
  virtual void BeginCapture() = 0;
  // Null if the work cannot be recorded.
  virtual std::unique_ptr<Graph> EndCapture() = 0;
};

// The UUIDs of all devices, by ordinal; empty texts for those that cannot be asked.
std::vector<std::string> DeviceUuids();

// UNAVAILABLE if there is no driver or no such device; the message says which.
absl::StatusOr<std::unique_ptr<Runtime>> OpenRuntime(int device);

}  // namespace goldfinch::cuda

#endif  // GOLDFINCH_KERNELS_CUDA_RUNTIME_H_
