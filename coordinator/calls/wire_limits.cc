#include "coordinator/calls/wire_limits.h"

#include <map>
#include <string>
#include <string_view>

#include "absl/strings/str_cat.h"
#include "coordinator/calls/request_limits.h"
#include "coordinator/wire_fields.h"
#include "google/protobuf/descriptor.h"

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
};

bool TakesMoreThanANumber(const FieldDescriptor& field) {
  return field.is_repeated() &&
         (field.cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE || field.cpp_type() == FieldDescriptor::CPPTYPE_STRING);
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
    } else if (TakesMoreThanANumber(*one.field)) {
      ++entries[one.field];
    }
    return true;
  });
  for (const auto& [field, count] : entries) {
    const int64_t limit = WireEntriesMax(*field);
    if (count > limit) return Excess(std::string(field->name()), count, limit);
  }
  if (unknown > kUnknownFieldsMax) return Excess("the set of unknown fields", unknown, kUnknownFieldsMax);
  if (whole) return absl::OkStatus();
  return absl::DataLossError(absl::StrCat("the bytes are no ", type.full_name()));
}

}  // namespace goldfinch
