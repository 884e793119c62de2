#include "worker/transport/nccl_api.h"

#include <dlfcn.h>

#include <string>
#include <type_traits>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "kernels/cuda/cuda_library.h"

namespace goldfinch {
namespace {

constexpr int kVersionMin = 21800;

std::string VersionText(int version) {
  return absl::StrCat(version / 10000, ".", version / 100 % 100, ".", version % 100);
}

}  // namespace

absl::StatusOr<NcclApi> OpenNccl() {
  constexpr char kLibrary[] = "libnccl.so.2";
  GF_ASSIGN_OR_RETURN(void* const handle, cuda::OpenCudaLibrary(kLibrary));
  NcclApi api;
  std::string missing;
  const auto load = [&](const char* name, auto* function) {
    *function = reinterpret_cast<std::remove_pointer_t<decltype(function)>>(dlsym(handle, name));
    if (*function == nullptr) missing = name;
  };
  load("ncclGetVersion", &api.GetVersion);
  load("ncclGetUniqueId", &api.GetUniqueId);
  load("ncclCommInitRankConfig", &api.CommInitRankConfig);
  load("ncclCommGetAsyncError", &api.CommGetAsyncError);
  load("ncclCommAbort", &api.CommAbort);
  load("ncclSend", &api.Send);
  load("ncclRecv", &api.Recv);
  load("ncclGetErrorString", &api.GetErrorString);
  load("ncclGetLastError", &api.GetLastError);
  if (!missing.empty()) {
    return absl::UnavailableError(
        absl::StrCat(kLibrary, " has no ", missing, ": it is older than ", VersionText(kVersionMin)));
  }
  int version = 0;
  if (api.GetVersion(&version) != kNcclSuccess || version < kVersionMin) {
    return absl::UnavailableError(
        absl::StrCat(kLibrary, " is NCCL ", VersionText(version), ", the least is ", VersionText(kVersionMin)));
  }
  return api;
}

}  // namespace goldfinch
