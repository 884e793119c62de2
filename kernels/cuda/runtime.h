// One device and its queues: what the host side of the kernels needs from CUDA. runtime_cuda.cu implements it with
// CUDA's runtime, emulation/runtime_emulated.cc with the emulation.
#ifndef GOLDFINCH_KERNELS_CUDA_RUNTIME_H_
#define GOLDFINCH_KERNELS_CUDA_RUNTIME_H_

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/queue.h"

namespace goldfinch::cuda {

struct DeviceFacts {
  std::string name;  // "NVIDIA H100 80GB HBM3"
  int major = 0;     // compute capability
  int minor = 0;
  int multiprocessors = 0;
  int64_t shared_bytes = 0;  // the most that one block can have
  int64_t memory_bytes = 0;
};

// One thread at a time may call. A failed call is remembered and reported by Synchronize; results after it are
// meaningless.
class Runtime {
 public:
  virtual ~Runtime() = default;

  virtual const DeviceFacts& facts() const = 0;
  // Makes this device the current one of the calling thread. Needed before the first call of a thread, and after calls
  // to another device.
  virtual void Use() = 0;
  // Memory of the device that nobody uses.
  virtual int64_t FreeBytes() const = 0;
  // The main queue as Launch (device.h) takes it.
  virtual void* stream() const = 0;

  // Zeroed, aligned to 256 bytes. RESOURCE_EXHAUSTED names `purpose`, the size and what is free.
  virtual absl::StatusOr<std::shared_ptr<void>> Allocate(int64_t bytes, std::string_view purpose) = 0;
  // `host` is read before the call returns.
  virtual void CopyToDevice(const void* host, void* device, int64_t bytes) = 0;
  // Waits for the work that was queued before.
  virtual void CopyToHost(const void* device, void* host, int64_t bytes) = 0;
  virtual void CopyOnDevice(const void* from, void* to, int64_t bytes) = 0;
  virtual void Zero(void* device, int64_t bytes) = 0;
  virtual absl::Status Synchronize() = 0;

  // These are the methods of ComputeDevice.
  virtual Queue& queue() = 0;
  virtual std::unique_ptr<Queue> MakeQueue() = 0;
  virtual absl::StatusOr<std::shared_ptr<void>> AllocateStaging(int64_t bytes, std::string_view purpose) = 0;
  virtual absl::Status status() const = 0;

  // --- Graphs: see Context ------------------------------------------------------------------------------------------
  // Work that is queued between BeginCapture and EndCapture is recorded instead. Nothing may be allocated meanwhile.
  // EndCapture returns null if the work cannot be recorded.
  class Graph {
   public:
    virtual ~Graph() = default;
    // Queues the recorded work, with the same addresses.
    virtual void Launch() = 0;
  };
  virtual void BeginCapture() = 0;
  virtual std::unique_ptr<Graph> EndCapture() = 0;
};

// UNAVAILABLE if there is no driver or no such device; the message says which.
absl::StatusOr<std::unique_ptr<Runtime>> OpenRuntime(int device);

}  // namespace goldfinch::cuda

#endif  // GOLDFINCH_KERNELS_CUDA_RUNTIME_H_
