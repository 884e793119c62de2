// Libraries of CUDA that are looked for when the program runs, so that one program starts on machines with and without
// them.
#ifndef GOLDFINCH_KERNELS_CUDA_CUDA_LIBRARY_H_
#define GOLDFINCH_KERNELS_CUDA_CUDA_LIBRARY_H_

#include <string>

#include "absl/status/statusor.h"

namespace goldfinch::cuda {

// The handle that dlsym takes of "libcublasLt.so.13", say; it stays open. Looked for in this order: the folders of
// GOLDFINCH_CUDA_LIBRARIES (separated by colons), the system's own places, CUDA_HOME and /usr/local/cuda, and where
// Python's nvidia packages put them: below VIRTUAL_ENV, the user's and the system's site-packages, and /opt.
// UNAVAILABLE, with these places, if it is in none.
absl::StatusOr<void*> OpenCudaLibrary(const std::string& name);

}  // namespace goldfinch::cuda

#endif  // GOLDFINCH_KERNELS_CUDA_CUDA_LIBRARY_H_
