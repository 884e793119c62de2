// Keeps a message of a client from becoming much larger in memory than it was on the wire.
#ifndef GOLDFINCH_COORDINATOR_CALLS_WIRE_LIMITS_H_
#define GOLDFINCH_COORDINATOR_CALLS_WIRE_LIMITS_H_

#include <cstdint>

#include "absl/status/status.h"

namespace google::protobuf {
class Descriptor;
class FieldDescriptor;
namespace io {
class ZeroCopyInputStream;
}
}  // namespace google::protobuf

namespace goldfinch {

// What a repeated field of texts, messages, map entries or numbers of 64 bits may have in all of a message. An entry of
// 2 bytes on the wire takes up to 80 in memory. Repeated numbers of 32 bits take at most four bytes for each of theirs,
// and have no limit here. 0 for a field that must not be used: a field that is added to the API needs a line in the
// table.
int64_t WireEntriesMax(const google::protobuf::FieldDescriptor& field);

// Fields that this server does not know, which protobuf keeps: a newer client may send a few.
inline constexpr int64_t kUnknownFieldsMax = 256;

// Counts entries without keeping anything, before the message is parsed. INVALID_ARGUMENT names the field, how many
// entries it has and the limit. DATA_LOSS if the bytes are not a valid message of this type.
absl::Status CheckWire(const google::protobuf::Descriptor& type, google::protobuf::io::ZeroCopyInputStream* bytes);

}  // namespace goldfinch

#endif  // GOLDFINCH_COORDINATOR_CALLS_WIRE_LIMITS_H_
