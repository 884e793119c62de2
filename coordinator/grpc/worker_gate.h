// Lets in only workers that have proved that they have the cluster's key, as protos/cluster_protocol.h describes.
#ifndef GOLDFINCH_COORDINATOR_GRPC_WORKER_GATE_H_
#define GOLDFINCH_COORDINATOR_GRPC_WORKER_GATE_H_

#include <cstddef>
#include <cstdint>
#include <mutex>
#include <set>
#include <string>
#include <string_view>
#include <utility>

#include "absl/status/statusor.h"
#include "base/shared_key.h"

namespace goldfinch {

// What a worker's call has in its metadata; a view is empty if it is missing.
struct WorkerCredentials {
  std::string_view protocol;
  std::string_view nonce;
  std::string_view challenge;
  std::string_view proof;
};

// Keeps nothing of anyone who has not proved to have the key: a challenge carries its own end and a seal, so that the
// gate knows it again. The seal covers the number of the connection (PeerConnection), so that what is seen on one is
// worth nothing on another. Thread-safe. `now` is in seconds and never goes back.
class WorkerGate {
 public:
  // How long a challenge is good for.
  static constexpr double kChallengeSeconds = 10;

  explicit WorkerGate(SharedKey key);

  std::string MakeChallenge(uint64_t connection, double now) const;

  // The coordinator's proof for this worker. Errors: FAILED_PRECONDITION if it speaks another version of the protocol,
  // UNAUTHENTICATED if it needs a (new) challenge, PERMISSION_DENIED if its key is another one.
  absl::StatusOr<std::string> Admit(const WorkerCredentials& worker, uint64_t connection, double now);

 private:
  bool IsOurs(std::string_view challenge, uint64_t connection, double now) const;

  const SharedKey key_;
  const SharedKey seal_;  // of this object alone

  std::mutex mutex_;
  // Challenges that have let a worker in, by their ends, until they are over. Guarded by mutex_.
  std::set<std::pair<double, std::string>> used_;
  double latest_ = 0;  // the latest time at which a worker came this far. Guarded by mutex_.
};

}  // namespace goldfinch

#endif  // GOLDFINCH_COORDINATOR_GRPC_WORKER_GATE_H_
