// What the scheduler asks of the segments that are kept of texts (contexts): where a sequence may begin, and where it
// is to be saved on its way. coordinator/contexts knows the segments; the scheduler only knows their numbers.
#ifndef GOLDFINCH_COORDINATOR_SCHEDULER_PREFIX_KEEPER_H_
#define GOLDFINCH_COORDINATOR_SCHEDULER_PREFIX_KEEPER_H_

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"

namespace goldfinch {

struct Request;

// Not thread-safe. Workers carry out Steps, and what else they are told, in the order in which it was sent. So what a
// planned Step saves may be restored by the next one, and what a planned Step restores may be dropped right after it.
class PrefixKeeper {
 public:
  // How a sequence begins.
  struct Beginning {
    std::vector<uint64_t> segments = {};  // the chain that it begins with, from position 0 on; empty: there is none
    std::vector<int64_t> ends = {};       // of these segments
    int64_t tokens = 0;                   // the end of the chain; 0 without one, and for that of a tuned state
    // Not OK: what the sequence should begin with is not there, and cannot be computed. The request ends with this.
    absl::Status status = {};
    // Ascending positions above `tokens` at which it should be saved, also in an answer that is still to come: Save is
    // called for each that it comes to.
    std::vector<int64_t> save_at = {};
  };
  // A segment that a Step saves: positions [begin, the sequence's position).
  struct Saved {
    uint64_t segment = 0;  // 0: nothing is to be saved
    int64_t begin = 0;
  };

  // The Step that is being planned takes a sequence to the end of `ids`.
  struct SavePoint {
    bool logits = false;  // the Step computes the logits of the last token, and they are saved, too
    bool end = false;     // the sequence ends here, and Keep will be called
  };

  virtual ~PrefixKeeper() = default;

  // How many of `ids` a sequence could begin with in the replica's group, perhaps after Prepare.
  virtual int64_t Kept(int replica, const Request& request, absl::Span<const int32_t> ids) const = 0;
  // A sequence of the request is to read `ids` in the replica's group. False: it should wait, because its kept prefix
  // is being loaded. Scheduler::Prepared is called once that has come or has failed, and the keeper is not asked again
  // before.
  virtual bool Prepare(int replica, uint64_t request_number, const Request& request, absl::Span<const int32_t> ids,
                       double token_seconds, double now) = 0;
  // A sequence of the request is about to read `ids` in the replica's group, each of which takes `token_seconds`. It
  // may begin at `tokens_max` at most, and at the end of `ids` only with a snapshot that has logits. The chain stays
  // usable until Release.
  virtual Beginning Begin(int replica, const Request& request, absl::Span<const int32_t> ids, int64_t tokens_max,
                          double token_seconds, double now) = 0;
  // The chain that Begin would give now, without `save_at`. Nothing is held, and nothing counted.
  virtual Beginning Peek(int replica, const Request& request, absl::Span<const int32_t> ids, int64_t tokens_max,
                         double token_seconds) const = 0;
  // The chain that Begin gave is not needed any more: the Step that restores it has been planned, or none will be.
  // Called once for each Beginning that has segments.
  virtual void Release(int replica, const Beginning& beginning) = 0;
  // The Step that is being planned takes a sequence of the request to the end of `ids`.
  virtual Saved Save(int replica, const Request& request, absl::Span<const int32_t> ids, const SavePoint& point,
                     double now) = 0;
  // The request, which has `keep_as`, has come to its end with these tokens. The error is why it cannot be kept.
  virtual absl::Status Keep(int replica, const Request& request, absl::Span<const int32_t> ids, double now) = 0;
};

}  // namespace goldfinch

#endif  // GOLDFINCH_COORDINATOR_SCHEDULER_PREFIX_KEEPER_H_
