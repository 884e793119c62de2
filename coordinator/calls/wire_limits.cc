#include "coordinator/calls/wire_limits.h"

#include <map>
#include <string>
#include <string_view>

#include "absl/strings/str_cat.h"
#include "coordinator/calls/request_limits.h"
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

constexpr int kDepthMax = 16;  // the API's messages are three deep

struct EntriesMax {
  std::string_view field;
  int64_t entries;
};

constexpr EntriesMax kEntriesMax[] = {
    {"goldfinch.v1.GenerateRequest.stop", kStopsMax},
    {"goldfinch.v1.SamplingOptions.logit_bias", kBiasesMax},
    {"goldfinch.v1.ScoreRequest.continuations", kContinuationsMax},
};

bool TakesMoreThanANumber(const FieldDescriptor& field) {
  return field.is_repeated() &&
         (field.cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE || field.cpp_type() == FieldDescriptor::CPPTYPE_STRING);
}

// Protobuf keeps a field whose wire type is not its own among the unknown ones.
bool Fits(const FieldDescriptor& field, WireFormatLite::WireType type) {
  return type == WireFormatLite::WireTypeForFieldType(static_cast<WireFormatLite::FieldType>(field.type())) ||
         (field.is_packable() && type == WireFormatLite::WIRETYPE_LENGTH_DELIMITED);
}

class Counter {
 public:
  explicit Counter(CodedInputStream* input) : input_(*input) {}

  // Reads a message to the end of the input or of the limit that is pushed. False if it is none.
  bool Count(const Descriptor& type, int depth) {
    while (const uint32_t tag = input_.ReadTag()) {
      const FieldDescriptor* field = type.FindFieldByNumber(WireFormatLite::GetTagFieldNumber(tag));
      if (field == nullptr || !Fits(*field, WireFormatLite::GetTagWireType(tag))) {
        ++unknown_;
      } else if (TakesMoreThanANumber(*field)) {
        ++entries_[field];
      }
      const bool is_message = field != nullptr && field->cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE &&
                              WireFormatLite::GetTagWireType(tag) == WireFormatLite::WIRETYPE_LENGTH_DELIMITED;
      if (is_message ? !CountNested(*field->message_type(), depth) : !Skip(tag)) return false;
    }
    return input_.ConsumedEntireMessage();
  }

  absl::Status Check() const {
    for (const auto& [field, entries] : entries_) {
      const int64_t limit = WireEntriesMax(*field);
      if (entries > limit) return Excess(std::string(field->name()), entries, limit);
    }
    if (unknown_ > kUnknownFieldsMax) return Excess("the set of unknown fields", unknown_, kUnknownFieldsMax);
    return absl::OkStatus();
  }

 private:
  static absl::Status Excess(const std::string& name, int64_t entries, int64_t limit) {
    return absl::InvalidArgumentError(absl::StrCat(name, " has ", entries, " entries, the limit is ", limit));
  }

  bool CountNested(const Descriptor& type, int depth) {
    int length = 0;
    if (depth >= kDepthMax || !input_.ReadVarintSizeAsInt(&length)) return false;
    const CodedInputStream::Limit limit = input_.PushLimit(length);
    const bool good = Count(type, depth + 1);
    input_.PopLimit(limit);
    return good;
  }

  // A group is unknown, for the API has none, and may hold any number of fields.
  bool Skip(uint32_t tag) {
    if (WireFormatLite::GetTagWireType(tag) == WireFormatLite::WIRETYPE_START_GROUP) return false;
    return WireFormatLite::SkipField(&input_, tag);
  }

  CodedInputStream& input_;
  std::map<const FieldDescriptor*, int64_t> entries_;
  int64_t unknown_ = 0;
};

}  // namespace

int64_t WireEntriesMax(const FieldDescriptor& field) {
  for (const EntriesMax& one : kEntriesMax) {
    if (one.field == field.full_name()) return one.entries;
  }
  return 0;
}

absl::Status CheckWire(const Descriptor& type, google::protobuf::io::ZeroCopyInputStream* bytes) {
  CodedInputStream input(bytes);
  Counter counter(&input);
  const bool whole = counter.Count(type, 0);
  if (absl::Status status = counter.Check(); !status.ok()) return status;
  if (whole) return absl::OkStatus();
  return absl::DataLossError(absl::StrCat("the bytes are no ", type.full_name()));
}

}  // namespace goldfinch
