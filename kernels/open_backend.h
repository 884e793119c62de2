// Chooses the back end that computes, by the flags that say which.
#ifndef GOLDFINCH_KERNELS_OPEN_BACKEND_H_
#define GOLDFINCH_KERNELS_OPEN_BACKEND_H_

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "kernels/backend.h"

namespace goldfinch {

// As the flags give them.
struct BackendOptions {
  std::string device = "auto";  // --device: auto (CUDA if it can be had, else the CPU), cpu, cuda (cuda:0) or cuda:N
  std::string dtype = "auto";   // --dtype of activations: auto (bf16 on CUDA, f32 on the CPU), f32, f16 or bf16
  int threads = 0;              // --threads, of the CPU; 0: one per core
};

// Whether `text` is something that BackendOptions::device may be.
bool IsDeviceName(const std::string& text);

// INVALID_ARGUMENT names the flag, its value and what it may be. With a CUDA device that was asked for, the errors of
// MakeCudaBackend, with the flag. If auto takes the CPU, `no_cuda` gets the reason, for a log line; it may be null.
absl::StatusOr<std::unique_ptr<Backend>> OpenBackend(const BackendOptions& options, std::string* no_cuda = nullptr);

}  // namespace goldfinch

#endif  // GOLDFINCH_KERNELS_OPEN_BACKEND_H_
