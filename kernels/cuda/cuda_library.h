// Opens libraries of CUDA at run time, so that the same program starts on machines with and without them.
#ifndef GOLDFINCH_KERNELS_CUDA_CUDA_LIBRARY_H_
#define GOLDFINCH_KERNELS_CUDA_CUDA_LIBRARY_H_

#include <string>

#include "absl/status/statusor.h"

namespace goldfinch::cuda {

// Opens a library such as "libcublasLt.so.13" and returns its handle for dlsym; it stays open. It is looked for in this
// order: the folders of GOLDFINCH_CUDA_LIBRARIES (separated by colons), the system's own folders, CUDA_HOME and
// /usr/local/cuda, and the folders of Python's nvidia packages below VIRTUAL_ENV, the user's and the system's
// site-packages, and /opt. UNAVAILABLE, with these places, if it is in none of them.
absl::StatusOr<void*> OpenCudaLibrary(const std::string& name);

}  // namespace goldfinch::cuda

#endif  // GOLDFINCH_KERNELS_CUDA_CUDA_LIBRARY_H_
