// A stand-in for NCCL in tests, for emulated devices (kernels/cuda/emulation) of one process. It behaves as badly as
// the real library may: every call is in progress for a while, a transfer gets into its stream only after the
// communicator has been polled, transfers run as late as possible, and they never end once the peer is gone. It aborts
// the test on calls that the real library does not allow: on a communicator that another thread is inside, that has
// been ended, or that has not finished with the call before.
#ifndef GOLDFINCH_WORKER_TRANSPORT_FAKE_NCCL_H_
#define GOLDFINCH_WORKER_TRANSPORT_FAKE_NCCL_H_

#include "worker/transport/nccl_api.h"

namespace goldfinch {

struct FakeNcclFaults {
  bool never_connects = false;   // communicators stay in progress for ever
  bool loses_transfers = false;  // no transfer begins any more
  int async_error = 0;           // if not 0, what CommGetAsyncError reports
  int init_error = 0;            // if not 0, what CommInitRankConfig returns
};

NcclApi FakeNccl();
// Applies to all communicators of the process from now on.
void SetFakeNcclFaults(const FakeNcclFaults& faults);
// How many communicators have not been ended yet.
int LiveFakeNcclComms();

}  // namespace goldfinch

#endif  // GOLDFINCH_WORKER_TRANSPORT_FAKE_NCCL_H_
