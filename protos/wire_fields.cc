#include "protos/wire_fields.h"

#include <cstdint>

#include "google/protobuf/descriptor.h"
#include "google/protobuf/io/coded_stream.h"
#include "google/protobuf/io/zero_copy_stream.h"
#include "google/protobuf/wire_format_lite.h"

namespace goldfinch {
namespace {

using google::protobuf::Descriptor;
using google::protobuf::FieldDescriptor;
using google::protobuf::internal::WireFormatLite;
using google::protobuf::io::CodedInputStream;

constexpr int kDepthMax = 16;  // the messages of the protocols are at most four deep

bool HasTypeOf(const FieldDescriptor& field, WireFormatLite::WireType type) {
  return type == WireFormatLite::WireTypeForFieldType(static_cast<WireFormatLite::FieldType>(field.type())) ||
         (field.is_packable() && type == WireFormatLite::WIRETYPE_LENGTH_DELIMITED);
}

// Reads to the end of the input or of the limit that is pushed.
bool ForEachField(const Descriptor& type, int depth, CodedInputStream& input,
                  absl::FunctionRef<bool(const WireField& field)> see) {
  while (const uint32_t tag = input.ReadTag()) {
    const WireFormatLite::WireType wire_type = WireFormatLite::GetTagWireType(tag);
    const FieldDescriptor* field = type.FindFieldByNumber(WireFormatLite::GetTagFieldNumber(tag));
    if (field != nullptr && !HasTypeOf(*field, wire_type)) field = nullptr;
    const bool sized = wire_type == WireFormatLite::WIRETYPE_LENGTH_DELIMITED;
    int length = 0;
    if (sized && !input.ReadVarintSizeAsInt(&length)) return false;
    if (!see({field, sized, length})) return false;
    if (!sized) {
      // A group may hold any number of fields.
      if (wire_type == WireFormatLite::WIRETYPE_START_GROUP || !WireFormatLite::SkipField(&input, tag)) return false;
      continue;
    }
    if (field == nullptr || field->message_type() == nullptr) {
      if (!input.Skip(length)) return false;
      continue;
    }
    if (depth >= kDepthMax) return false;
    const CodedInputStream::Limit limit = input.PushLimit(length);
    if (!ForEachField(*field->message_type(), depth + 1, input, see)) return false;
    input.PopLimit(limit);
  }
  return input.ConsumedEntireMessage();
}

}  // namespace

bool ForEachWireField(const Descriptor& type, google::protobuf::io::ZeroCopyInputStream* bytes,
                      absl::FunctionRef<bool(const WireField& field)> see) {
  CodedInputStream input(bytes);
  return ForEachField(type, 0, input, see);
}

}  // namespace goldfinch
