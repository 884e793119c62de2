// What the NCCL transport needs of NCCL: the part of its C interface that has been the same since 2.18. Declared here,
// as the library is looked for when the program runs; tests give another one.
#ifndef GOLDFINCH_WORKER_TRANSPORT_NCCL_TRANSPORT_H_
#define GOLDFINCH_WORKER_TRANSPORT_NCCL_TRANSPORT_H_

#include <climits>
#include <cstddef>
#include <memory>

#include "absl/status/statusor.h"
#include "worker/transport/transport.h"

namespace goldfinch {

struct NcclUniqueId {
  char bytes[128];
};

using NcclComm = void*;

// Results that mean something here; others are errors.
constexpr int kNcclSuccess = 0;
constexpr int kNcclInvalidUsage = 5;
constexpr int kNcclInProgress = 7;

constexpr int kNcclBytes = 0;  // the data type ncclInt8

// The configuration as of 2.18. Later libraries take what it has, by its size and version, and their defaults for the
// rest; what was padding then is a number that later ones read, and so is set as unset.
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

// Each is nccl... of the same name.
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

// Of libnccl.so.2; it stays open. UNAVAILABLE as MakeNcclTransportFactory.
absl::StatusOr<NcclApi> OpenNccl();

std::unique_ptr<TransportFactory> MakeNcclTransportFactory(const NcclApi& api, double timeout_seconds);

}  // namespace goldfinch

#endif  // GOLDFINCH_WORKER_TRANSPORT_NCCL_TRANSPORT_H_
