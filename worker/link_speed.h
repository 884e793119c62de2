// How fast rows go from one stage of a group to another, measured over the group's transport.
#ifndef GOLDFINCH_WORKER_LINK_SPEED_H_
#define GOLDFINCH_WORKER_LINK_SPEED_H_

#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/backend.h"
#include "worker/transport/transport.h"

namespace goldfinch {

struct LinkSpeed {
  int stage = 0;                  // where the link leads
  double bytes_per_second = 0;    // 0: the largest message takes hardly longer than a small one, so nobody can tell
  double round_trip_seconds = 0;  // of a small message, and of the answer that makes room for another one
};

// Measures the links from this stage to the stages that it sends rows to, and answers those that send rows to it. All
// stages of the group call it after the same step; none may have rows on their way. `traffic` [stages] is that of
// TransportFactory::Setup. For the thread that runs the back end's ops. Takes about a millisecond for each link, 17 ms
// at 1 Gbit/s, one link after the other. Errors are those of the transport and of Backend::Allocate.
absl::StatusOr<std::vector<LinkSpeed>> MeasureLinks(absl::Span<const StageTraffic> traffic, Transport& transport,
                                                    Backend& backend);

}  // namespace goldfinch

#endif  // GOLDFINCH_WORKER_LINK_SPEED_H_
