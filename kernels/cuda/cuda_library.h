// Finds CUDA's libraries when the program runs, so that the same program starts on machines with and without them.
#ifndef GOLDFINCH_KERNELS_CUDA_CUDA_LIBRARY_H_
#define GOLDFINCH_KERNELS_CUDA_CUDA_LIBRARY_H_

#include <string>

#include "absl/status/statusor.h"

namespace goldfinch::cuda {

// Opens a library such as "libcublasLt.so.13" and returns the handle for dlsym; it stays open. Looks in this order: the
// folders of GOLDFINCH_CUDA_LIBRARIES (separated by colons), the system's own places, CUDA_HOME and /usr/local/cuda,
// and where Python's nvidia packages put libraries: below VIRTUAL_ENV, the user's and the system's site-packages, and
// /opt. UNAVAILABLE if it is in none of them; the message lists them.
absl::StatusOr<void*> OpenCudaLibrary(const std::string& name);

}  // namespace goldfinch::cuda

#endif  // GOLDFINCH_KERNELS_CUDA_CUDA_LIBRARY_H_
