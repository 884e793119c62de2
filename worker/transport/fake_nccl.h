// NCCL for tests: in one process, between emulated devices (kernels/cuda/emulation). It does what the real one may do
// at its worst: every call is under way for a while, what it queues gets into the stream only when it has been asked
// after, transfers run as late as they may and never end once the peer is gone. Calls that the real one does not allow
// end the test: two threads inside a communicator, one that has been ended, one that has not finished with a call.
#ifndef GOLDFINCH_WORKER_TRANSPORT_FAKE_NCCL_H_
#define GOLDFINCH_WORKER_TRANSPORT_FAKE_NCCL_H_

#include "worker/transport/nccl_transport.h"

namespace goldfinch {

struct FakeNcclFaults {
  bool never_connects = false;   // communicators are made for ever
  bool loses_transfers = false;  // no transfer begins any more
  int async_error = 0;           // that communicators tell of when they are asked
  int init_error = 0;            // that CommInitRankConfig returns
};

NcclApi FakeNccl();
// From now on, for all communicators of the process.
void SetFakeNcclFaults(const FakeNcclFaults& faults);
// Communicators that have not been ended.
int LiveFakeNcclComms();

}  // namespace goldfinch

#endif  // GOLDFINCH_WORKER_TRANSPORT_FAKE_NCCL_H_
