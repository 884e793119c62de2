// The functions and types of NCCL that the NCCL transport uses: the part of its C interface that has not changed since
// version 2.18. They are declared here because the library is opened when the program runs; tests pass a fake one.
#ifndef GOLDFINCH_WORKER_TRANSPORT_NCCL_API_H_
#define GOLDFINCH_WORKER_TRANSPORT_NCCL_API_H_

#include <climits>
#include <cstddef>

#include "absl/status/statusor.h"

namespace goldfinch {

struct NcclUniqueId {
  char bytes[128];
};

using NcclComm = void*;

// The results that the transport tells apart; all others are errors.
constexpr int kNcclSuccess = 0;
constexpr int kNcclInvalidUsage = 5;
constexpr int kNcclInProgress = 7;

constexpr int kNcclBytes = 0;  // the data type ncclInt8

// The configuration as of version 2.18. Later libraries recognize it by its size and version, and use their defaults
// for the fields that it lacks. `traffic_class` was padding in 2.18; later libraries read it, so it is marked as unset.
struct NcclConfig {
  size_t size = sizeof(NcclConfig);
  unsigned magic = 0xcafebeef;
  unsigned version = 21800;
  int blocking = 0;
  int cga_cluster_size = INT_MIN;
  int min_ctas = INT_MIN;
  int max_ctas = INT_MIN;
  const char* net_name = nullptr;
  int split_share = INT_MIN;
  int traffic_class = INT_MIN;
};
static_assert(sizeof(NcclConfig) == 48);

// Each member is the function of the library that has its name after "nccl".
struct NcclApi {
  int (*GetVersion)(int* version);
  int (*GetUniqueId)(NcclUniqueId* id);
  int (*CommInitRankConfig)(NcclComm* comm, int ranks, NcclUniqueId id, int rank, NcclConfig* config);
  int (*CommGetAsyncError)(NcclComm comm, int* error);
  int (*CommAbort)(NcclComm comm);
  int (*Send)(const void* from, size_t count, int type, int peer, NcclComm comm, void* stream);
  int (*Recv)(void* to, size_t count, int type, int peer, NcclComm comm, void* stream);
  const char* (*GetErrorString)(int result);
  const char* (*GetLastError)(NcclComm comm);
};

// Opens libnccl.so.2, which stays open. UNAVAILABLE names what is missing: the library, or a newer version of it.
absl::StatusOr<NcclApi> OpenNccl();

}  // namespace goldfinch

#endif  // GOLDFINCH_WORKER_TRANSPORT_NCCL_API_H_
