// Checks what workers say, before anything is done with it. Pure.
//
// The limits are those that the comments of protos/cluster.proto name. They are far above what an honest worker sends,
// and they bound every sum, product and list that the coordinator makes of the values, so that no message can make a
// CHECK fail, a number overflow or memory run out. What depends on the state of a group (how many addresses, which
// steps, how many results) is checked where that state is.
#ifndef GOLDFINCH_COORDINATOR_MEMBERSHIP_WORKER_MESSAGES_H_
#define GOLDFINCH_COORDINATOR_MEMBERSHIP_WORKER_MESSAGES_H_

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"

namespace google::protobuf::io {
class ZeroCopyInputStream;
}

namespace goldfinch {

namespace cluster::v1 {
class FromShelf;
class FromWorker;
class StepDone;
}  // namespace cluster::v1

// The most texts, messages and unknown fields of one message, at all depths: an entry of 2 bytes takes up to 80 in
// memory.
inline constexpr int64_t kWorkerEntriesMax = int64_t{1} << 18;

// The most bytes of a hash, of an IP address and of the name of a GPU.
inline constexpr size_t kHashBytesMax = 64;

// To be called before the bytes of a FromWorker are parsed: INVALID_ARGUMENT if they have more than kWorkerEntriesMax
// entries or are no message at all. Keeps nothing.
absl::Status CheckWorkerBytes(google::protobuf::io::ZeroCopyInputStream* bytes);

// INVALID_ARGUMENT names the first field that is not within its limit, its value and the limit. A StepDone is refused
// here: it goes to CheckStepDone.
absl::Status CheckWorkerMessage(const cluster::v1::FromWorker& message);

// The same for the answer to a Step of a model of `vocab_size` ids, which is at least 1.
absl::Status CheckStepDone(const cluster::v1::StepDone& done, int64_t vocab_size);

// The same two checks for a message of a worker's Contexts stream. What the part must be is for whoever asked for it to
// compare.
absl::Status CheckShelfBytes(google::protobuf::io::ZeroCopyInputStream* bytes);
absl::Status CheckShelfMessage(const cluster::v1::FromShelf& message);

}  // namespace goldfinch

#endif  // GOLDFINCH_COORDINATOR_MEMBERSHIP_WORKER_MESSAGES_H_
