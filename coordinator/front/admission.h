// How many connections there are, and where from.
#ifndef GOLDFINCH_COORDINATOR_FRONT_ADMISSION_H_
#define GOLDFINCH_COORDINATOR_FRONT_ADMISSION_H_

#include <map>
#include <mutex>
#include <string>

#include "absl/status/status.h"
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

 private:
  const int connections_max_;
  const int per_network_max_;  // but for loopback

  std::mutex mutex_;
  // Guarded by mutex_.
  int connections_ = 0;
  std::map<std::string, int> by_network_;
};

// Raises the soft limit of descriptors to the hard one, and returns what it is then.
int RaiseDescriptorLimit();

}  // namespace goldfinch

#endif  // GOLDFINCH_COORDINATOR_FRONT_ADMISSION_H_
