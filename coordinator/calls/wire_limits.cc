#include "coordinator/calls/wire_limits.h"

#include <map>
#include <string>
#include <string_view>

#include "absl/strings/str_cat.h"
#include "coordinator/calls/request_limits.h"
#include "google/protobuf/descriptor.h"
#include "protos/wire_fields.h"

namespace goldfinch {
namespace {

using google::protobuf::Descriptor;
using google::protobuf::FieldDescriptor;

struct EntriesMax {
  std::string_view field;
  int64_t entries;
};

constexpr EntriesMax kEntriesMax[] = {
    {"goldfinch.v1.GenerateRequest.stop", kStopsMax},
    {"goldfinch.v1.SamplingOptions.logit_bias", kBiasesMax},
    {"goldfinch.v1.ScoreRequest.continuations", kContinuationsMax},
    {"goldfinch.v1.GenerateRequest.breakpoints", kBreakpointsMax},
    {"goldfinch.v1.CreateContextRequest.breakpoints", kBreakpointsMax},
};

constexpr int kVarintBytesMax = 10;

// How many entries of a limited field this is, at least; 0 if the field has no limit.
int64_t Entries(const WireField& one) {
  if (!one.field->is_repeated()) return 0;
  switch (one.field->cpp_type()) {
    case FieldDescriptor::CPPTYPE_MESSAGE:
    case FieldDescriptor::CPPTYPE_STRING:
      return 1;
    case FieldDescriptor::CPPTYPE_INT64:
    case FieldDescriptor::CPPTYPE_UINT64:
      return one.sized ? (one.bytes + kVarintBytesMax - 1) / kVarintBytesMax : 1;
    default:
      return 0;
  }
}

absl::Status Excess(const std::string& name, int64_t entries, int64_t limit) {
  return absl::InvalidArgumentError(absl::StrCat(name, " has ", entries, " entries, the limit is ", limit));
}

}  // namespace

int64_t WireEntriesMax(const FieldDescriptor& field) {
  for (const EntriesMax& one : kEntriesMax) {
    if (one.field == field.full_name()) return one.entries;
  }
  return 0;
}

absl::Status CheckWire(const Descriptor& type, google::protobuf::io::ZeroCopyInputStream* bytes) {
  std::map<const FieldDescriptor*, int64_t> entries;
  int64_t unknown = 0;
  const bool whole = ForEachWireField(type, bytes, [&](const WireField& one) {
    if (one.field == nullptr) {
      ++unknown;
    } else if (const int64_t more = Entries(one); more > 0) {
      entries[one.field] += more;
    }
    return true;
  });
  for (const auto& [field, count] : entries) {
    const int64_t limit = WireEntriesMax(*field);
    if (count > limit) return Excess(std::string(field->name()), count, limit);
  }
  if (unknown > kUnknownFieldsMax) return Excess("the set of unknown fields", unknown, kUnknownFieldsMax);
  if (whole) return absl::OkStatus();
  return absl::DataLossError(absl::StrCat("the request is not a valid ", type.full_name(), " message"));
}

}  // namespace goldfinch
