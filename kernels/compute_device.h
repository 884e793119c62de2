// A device that computes, apart from what it computes: its memory, its queues, and the submission of work to it.
// Backend (kernels/backend.h) adds the ops of the models.
#ifndef GOLDFINCH_KERNELS_COMPUTE_DEVICE_H_
#define GOLDFINCH_KERNELS_COMPUTE_DEVICE_H_

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/queue.h"
#include "kernels/tensor.h"

namespace goldfinch {

enum class DeviceKind : uint8_t { kCpu, kCuda };

// Work runs in call order on the main queue. One thread at a time may call, except where a method says otherwise.
// Misuse is a CHECK: the public methods check their arguments and the private virtual ones, which each kind of device
// implements, are called with valid arguments only. Faults of the device surface in status() and Synchronize() and are
// final.
class ComputeDevice {
 public:
  virtual ~ComputeDevice() = default;

  // Three different questions about a device. What a device is decides which libraries can use it; the other two say
  // how its memory can be used, and code that only moves data should ask those.
  virtual DeviceKind kind() const = 0;
  // Whether ops can read weights where the host has mapped them from a file, so that they need no copy.
  virtual bool reads_weights_in_place() const = 0;
  // Whether the host can read and write the memory of Allocate through its address, once Synchronize has returned.
  virtual bool host_accessible() const = 0;

  // A line for logs and error messages: "cpu, 2 threads, AVX3".
  virtual std::string Describe() const = 0;
  // Tells a GPU from all others: "GPU-8a2c...". Empty if the device has no such name.
  virtual std::string Uuid() const { return ""; }

  // --- Memory -------------------------------------------------------------------------------------------------------
  // Zeroed memory, aligned to 256 bytes, released when the last reference goes. The CPU commits it as it is touched.
  // RESOURCE_EXHAUSTED names `purpose` and the size.
  absl::StatusOr<std::shared_ptr<void>> Allocate(int64_t bytes, std::string_view purpose);
  // Host memory that queues copy from and to without making the host wait; not zeroed. Errors are those of Allocate.
  absl::StatusOr<std::shared_ptr<void>> AllocateStaging(int64_t bytes, std::string_view purpose);
  // The bytes that allocations can take now, as far as the device knows; the CPU returns the machine's memory.
  virtual int64_t FreeBytes() const = 0;
  // The bytes of the whole device, whoever uses them.
  virtual int64_t TotalBytes() const = 0;

  // `host` is read before the call returns.
  void CopyFromHost(const void* host, Tensor to);
  // Waits for the work that was queued before it.
  void CopyToHost(ConstTensor from, void* host);
  void Zero(Tensor tensor);
  // Both tensors have the same type and shape.
  void Copy(ConstTensor from, Tensor to);

  // --- Submissions and queues ---------------------------------------------------------------------------------------
  // Calls `ops` and sends the work that it queues to the device at once. `ops` may call Zero, Copy and the ops of
  // Backend that return nothing to the host; it must have no other lasting effect and do the same each time, because it
  // may be called more than once. Page tables must not change until Submit returns. `repeats` says that more
  // submissions with tensors of these shapes at these addresses will follow, as in decoding; the device may then
  // prepare the launch once for all of them.
  virtual void Submit(bool repeats, absl::FunctionRef<void()> ops) = 0;
  // Waits for all work on the main queue.
  virtual absl::Status Synchronize() = 0;
  // The fault that Synchronize would return, if one is known already. Does not wait; any thread may call it.
  virtual absl::Status status() const = 0;
  // A number that changes while the device gets on with its work: two readings that are equal, some time apart, mean
  // that it is idle, or hangs, or is busy with a single submission. Any thread may call it.
  virtual uint64_t progress() const = 0;

  // The main queue, on which ops run.
  virtual Queue& queue() = 0;
  // A queue beside the main one. Another thread than the one that calls ops may use it; the device must outlive it.
  virtual std::unique_ptr<Queue> MakeQueue() = 0;

 private:
  virtual absl::StatusOr<std::shared_ptr<void>> DoAllocate(int64_t bytes, std::string_view purpose) = 0;
  virtual absl::StatusOr<std::shared_ptr<void>> DoAllocateStaging(int64_t bytes, std::string_view purpose) = 0;
  // These are not called for empty tensors.
  virtual void DoCopyFromHost(const void* host, const Tensor& to) = 0;
  virtual void DoCopyToHost(const ConstTensor& from, void* host) = 0;
  virtual void DoZero(const Tensor& tensor) = 0;
  virtual void DoCopy(const ConstTensor& from, const Tensor& to) = 0;
};

}  // namespace goldfinch

#endif  // GOLDFINCH_KERNELS_COMPUTE_DEVICE_H_
