// Looks at a message on the wire before it is parsed, so that what it would take in memory can be refused.
#ifndef GOLDFINCH_PROTOS_WIRE_FIELDS_H_
#define GOLDFINCH_PROTOS_WIRE_FIELDS_H_

#include "absl/functional/function_ref.h"

namespace google::protobuf {
class Descriptor;
class FieldDescriptor;
namespace io {
class ZeroCopyInputStream;
}
}  // namespace google::protobuf

namespace goldfinch {

// One occurrence of a field, at any depth.
struct WireField {
  // Null if protobuf would keep it among the unknown fields: the message has no such field, or it has another wire
  // type.
  const google::protobuf::FieldDescriptor* field = nullptr;
  bool sized = false;  // a text, a message or packed numbers
  int bytes = 0;       // of what is sized
};

// Calls `see` with every field of a message of this type, in their order, until it returns false. Keeps nothing.
// Returns false if `see` did, or if the bytes are no such message; a group, which the protocols do not have, and
// messages that are nested deeper than any of theirs make them none.
bool ForEachWireField(const google::protobuf::Descriptor& type, google::protobuf::io::ZeroCopyInputStream* bytes,
                      absl::FunctionRef<bool(const WireField& field)> see);

}  // namespace goldfinch

#endif  // GOLDFINCH_PROTOS_WIRE_FIELDS_H_
