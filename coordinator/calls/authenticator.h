// Who makes a call: the holder of an API key, or, without keys, an address.
#ifndef GOLDFINCH_COORDINATOR_CALLS_AUTHENTICATOR_H_
#define GOLDFINCH_COORDINATOR_CALLS_AUTHENTICATOR_H_

#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/token_bucket.h"
#include "coordinator/calls/key_ring.h"
#include "coordinator/scheduler/client.h"

namespace goldfinch {

struct Caller {
  std::shared_ptr<const Client> client;
  std::string peer;          // the address that the call comes from
  bool may_operate = false;  // may call what is for operators
};

// What one user can have at will counts as one address: 2001:db8:1:2::/64 for 2001:db8:1:2::7. Other texts than IPv6
// addresses stay as they are; an IPv4 address that is written as IPv6 (::ffff:192.0.2.7) becomes 192.0.2.7.
std::string NetworkOf(const std::string& address);

// Remembers from which addresses wrong keys have come. Not thread-safe; `now` is in seconds of a steady clock.
class WrongKeys {
 public:
  static constexpr int kPerMinute = 20;
  static constexpr size_t kAddressesMax = 4096;

  // How long wrong keys from that address get no other answer; 0 if there have been few.
  double SecondsRefused(const std::string& network, double now) const;
  void Count(const std::string& network, double now);
  size_t addresses() const { return buckets_.size(); }

 private:
  std::map<std::string, TokenBucket, std::less<>> buckets_;
};

// Thread-safe.
class Authenticator {
 public:
  explicit Authenticator(std::shared_ptr<const KeyRing> keys) : keys_(std::move(keys)) {}  // null: everybody may call

  // `peer` is a numeric address, and `authorization` the value of that header or metadata: `Bearer KEY`. A good key is
  // good wherever it comes from, whatever others at that address do. UNAUTHENTICATED says what is wrong with any other;
  // after kPerMinute wrong keys in a minute, those from an address get RESOURCE_EXHAUSTED until they have been fewer. A
  // wrong key costs one hash and a comparison with each key, also then.
  absl::StatusOr<Caller> Identify(const std::string& peer, std::optional<std::string_view> authorization);

 private:
  std::shared_ptr<const Client> ClientAt(const std::string& network);

  const std::shared_ptr<const KeyRing> keys_;
  std::mutex mutex_;
  WrongKeys wrong_keys_;                                          // guarded by mutex_
  std::map<std::string, std::weak_ptr<const Client>> anonymous_;  // guarded by mutex_; by network
  size_t anonymous_swept_ = 0;                                    // guarded by mutex_; how many the last sweep left
};

}  // namespace goldfinch

#endif  // GOLDFINCH_COORDINATOR_CALLS_AUTHENTICATOR_H_
