// The version of the protocol between coordinator and workers. Raise it with every change of cluster.proto that makes
// an older program misunderstand a newer one; the coordinator refuses workers of another version.
#ifndef GOLDFINCH_PROTOS_CLUSTER_PROTOCOL_H_
#define GOLDFINCH_PROTOS_CLUSTER_PROTOCOL_H_

#include <cstddef>
#include <cstdint>

namespace goldfinch {

inline constexpr uint32_t kClusterProtocol = 5;

// How a worker proves that it has the cluster's key, and the coordinator that it has it too. All of it is metadata of
// the call Work, so that the coordinator reads no message of anyone who has not proved it:
//   1. The worker calls with its protocol and a nonce.
//   2. The coordinator ends the call with UNAUTHENTICATED and a challenge in the trailing metadata.
//   3. The worker calls again, with the challenge and Prove(kWorkerRole, {protocol, nonce, challenge}) besides. A
//      challenge is good for one call, on the connection that it came by, and for a few seconds.
//   4. The coordinator's initial metadata has Prove(kCoordinatorRole, {protocol, nonce, challenge}). Only then does the
//      worker register. (Prove is that of base/shared_key.h; the protocol is written in decimal.)
// A coordinator without a key takes the first call.
inline constexpr char kProtocolMetadata[] = "goldfinch-cluster-protocol";
inline constexpr char kNonceMetadata[] = "goldfinch-cluster-nonce-bin";
inline constexpr char kChallengeMetadata[] = "goldfinch-cluster-challenge-bin";
inline constexpr char kProofMetadata[] = "goldfinch-cluster-proof-bin";
inline constexpr char kWorkerRole[] = "goldfinch cluster worker";
inline constexpr char kCoordinatorRole[] = "goldfinch cluster coordinator";

// Limits of cluster.proto that both sides keep.
inline constexpr size_t kClusterTextBytesMax = 4096;  // why something failed
inline constexpr size_t kWorkerNameBytesMax = 256;    // of a worker
inline constexpr size_t kWorkerDeviceBytesMax = 512;
inline constexpr int64_t kCacheTokensMax = int64_t{1} << 36;  // positions in the caches of one group
inline constexpr size_t kPieceBytesMax = size_t{1} << 20;     // of a part of a segment
inline constexpr size_t kPartKindBytesMax = 64;

}  // namespace goldfinch

#endif  // GOLDFINCH_PROTOS_CLUSTER_PROTOCOL_H_
