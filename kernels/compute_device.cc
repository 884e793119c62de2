#include "kernels/compute_device.h"

#include "base/check.h"

namespace goldfinch {

absl::StatusOr<std::shared_ptr<void>> ComputeDevice::Allocate(int64_t bytes, std::string_view purpose) {
  GF_CHECK_GE(bytes, 0);
  return DoAllocate(bytes, purpose);
}

absl::StatusOr<std::shared_ptr<void>> ComputeDevice::AllocateStaging(int64_t bytes, std::string_view purpose) {
  GF_CHECK_GE(bytes, 0);
  return DoAllocateStaging(bytes, purpose);
}

void ComputeDevice::CopyFromHost(const void* host, Tensor to) {
  if (to.bytes() > 0) DoCopyFromHost(host, to);
}

void ComputeDevice::CopyToHost(ConstTensor from, void* host) {
  if (from.bytes() > 0) DoCopyToHost(from, host);
}

void ComputeDevice::Zero(Tensor tensor) {
  if (tensor.bytes() > 0) DoZero(tensor);
}

void ComputeDevice::Copy(ConstTensor from, Tensor to) {
  GF_CHECK(from.shape == to.shape) << "copy is " << from.shape.ToString() << ", expected " << to.shape.ToString();
  GF_CHECK(from.dtype == to.dtype) << "copy is " << Name(from.dtype) << ", expected " << Name(to.dtype);
  if (from.bytes() > 0) DoCopy(from, to);
}

}  // namespace goldfinch
