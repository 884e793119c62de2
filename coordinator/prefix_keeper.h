// What the scheduler asks of the segments that are kept of texts (contexts): where a sequence may begin, and where it
// is to be saved on its way. coordinator/contexts knows the segments; the scheduler only knows their numbers.
#ifndef GOLDFINCH_COORDINATOR_PREFIX_KEEPER_H_
#define GOLDFINCH_COORDINATOR_PREFIX_KEEPER_H_

#include <cstdint>
#include <vector>

#include "absl/types/span.h"

namespace goldfinch {

struct Request;

// Not thread-safe. Workers carry out Steps, and what else they are told, in the order in which it was sent. So what a
// planned Step saves may be restored by the next one, and what a planned Step restores may be dropped right after it.
class PrefixKeeper {
 public:
  // How a sequence begins.
  struct Beginning {
    std::vector<uint64_t> segments;  // the chain that it begins with, from position 0 on; empty: there is none
    int64_t tokens = 0;              // the end of the chain; 0 without one
    // Ascending positions above `tokens` at which it should be saved: Save is called for each that it comes to.
    std::vector<int64_t> save_at;
  };
  // A segment that a Step saves: positions [begin, the sequence's position).
  struct Saved {
    uint64_t segment = 0;  // 0: nothing is to be saved
    int64_t begin = 0;
  };

  virtual ~PrefixKeeper() = default;

  // Whether a sequence of the request that is to read `ids` may begin now in this replica's group. False: what it
  // should begin with is on its way to the group's shelves; the caller of the keeper calls
  // Scheduler::Prepared(request_number) once that has come or failed, after which the scheduler does not ask again for
  // this run.
  virtual bool Prepare(int /*replica*/, uint64_t /*request_number*/, const Request& /*request*/,
                       absl::Span<const int32_t> /*ids*/, double /*token_seconds*/, double /*now*/) {
    return true;
  }
  // A sequence of the request is about to read `ids` in the replica's group, each of which takes `token_seconds`. It
  // may begin at `tokens_max` at most. The chain stays usable until Release.
  virtual Beginning Begin(int replica, const Request& request, absl::Span<const int32_t> ids, int64_t tokens_max,
                          double token_seconds, double now) = 0;
  // The chain that Begin gave is not needed any more: the Step that restores it has been planned, or none will be.
  // Called once for each Beginning that has segments.
  virtual void Release(int replica, const Beginning& beginning) = 0;
  // The Step that is being planned takes a sequence of the request to the end of `ids`.
  virtual Saved Save(int replica, const Request& request, absl::Span<const int32_t> ids, double now) = 0;
};

}  // namespace goldfinch

#endif  // GOLDFINCH_COORDINATOR_PREFIX_KEEPER_H_
