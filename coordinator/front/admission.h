// How many connections there are, where from, and which of these addresses have broken the rules.
#ifndef GOLDFINCH_COORDINATOR_FRONT_ADMISSION_H_
#define GOLDFINCH_COORDINATOR_FRONT_ADMISSION_H_

#include <map>
#include <mutex>
#include <string>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "base/token_bucket.h"
#include "coordinator/front/listener.h"

namespace goldfinch {

// Thread-safe.
class Admission {
 public:
  Admission(int connections_max, int per_network_max)
      : connections_max_(connections_max), per_network_max_(per_network_max) {}

  // RESOURCE_EXHAUSTED names the limit. After OK, Leave must follow when the connection has ended.
  absl::Status Enter(const PeerAddress& peer);
  void Leave(const PeerAddress& peer);

  // A connection from this address broke the rules and was closed. `now` is in seconds and never goes back.
  void Fault(const PeerAddress& peer, double now);
  // How long a new connection from this address is not read, in seconds. A client that breaks the rules costs most by
  // connecting again at once. Beyond kFaultsAtOnce faults of an address, which are made up for by kFaultsASecond, its
  // next connections wait until the excess is, but at most kHoldSecondsMax: so it has at most as many faults in that
  // time as it may have connections. Open connections go on, and loopback addresses, each by itself, are treated alike.
  double HoldSeconds(const PeerAddress& peer, double now);
  static constexpr double kFaultsAtOnce = 16, kFaultsASecond = 1, kHoldSecondsMax = 5;

 private:
  // Addresses whose faults are remembered. If there are more, the others are not held back.
  static constexpr size_t kFaultyMax = 16384;
  static constexpr double kSweepSeconds = 1;  // between looks at all of them for those that are made up for

  const int connections_max_;
  const int per_network_max_;  // but for loopback

  std::mutex mutex_;
  // Guarded by mutex_.
  int connections_ = 0;
  std::map<std::string, int> by_network_;
  absl::flat_hash_map<std::string, TokenBucket> faulty_;  // by network
  double sweep_at_ = 0;
};

// Raises the soft limit of descriptors to the hard one, and returns what it is then.
int RaiseDescriptorLimit();

}  // namespace goldfinch

#endif  // GOLDFINCH_COORDINATOR_FRONT_ADMISSION_H_
