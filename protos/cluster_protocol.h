// The version of the protocol between coordinator and workers. Raise it with every change of cluster.proto that makes
// an older program misunderstand a newer one; the coordinator refuses workers of another version.
#ifndef GOLDFINCH_PROTOS_CLUSTER_PROTOCOL_H_
#define GOLDFINCH_PROTOS_CLUSTER_PROTOCOL_H_

#include <cstdint>

namespace goldfinch {

inline constexpr uint32_t kClusterProtocol = 2;

}  // namespace goldfinch

#endif  // GOLDFINCH_PROTOS_CLUSTER_PROTOCOL_H_
