#include "coordinator/planner/model_description.h"

#include <cstdint>
#include <string>

#include "absl/strings/str_cat.h"
#include "google/protobuf/descriptor.h"
#include "google/protobuf/message.h"
#include "google/protobuf/text_format.h"
#include "protos/cluster.pb.h"

namespace goldfinch {
namespace {

using google::protobuf::FieldDescriptor;
using google::protobuf::Message;

std::string ValueOf(const Message& message, const FieldDescriptor* field, int index) {
  std::string text;
  google::protobuf::TextFormat::PrintFieldValueToString(message, field, index, &text);
  return text;
}

// The first field that differs, with both values; empty if none does.
std::string Difference(const std::string& prefix, const Message& ours, const Message& theirs) {
  const auto differs = [](const std::string& name, const auto& our_value, const auto& their_value) {
    return absl::StrCat(name, " is ", their_value, ", the cluster's model has ", our_value);
  };
  const google::protobuf::Reflection& reflection = *ours.GetReflection();
  for (int i = 0; i < ours.GetDescriptor()->field_count(); ++i) {
    const FieldDescriptor* const field = ours.GetDescriptor()->field(i);
    // What a worker's own device takes, and why it could not read the model.
    if (field->containing_type() == cluster::v1::Described::descriptor() &&
        (field->number() == cluster::v1::Described::kMemoryFieldNumber ||
         field->number() == cluster::v1::Described::kErrorFieldNumber)) {
      continue;
    }
    const std::string name = absl::StrCat(prefix, field->name());
    if (!field->is_repeated()) {
      const std::string our_value = ValueOf(ours, field, -1), their_value = ValueOf(theirs, field, -1);
      if (our_value != their_value) return differs(name, our_value, their_value);
      continue;
    }
    const int size = reflection.FieldSize(ours, field);
    if (reflection.FieldSize(theirs, field) != size) {
      return differs(absl::StrCat("the number of ", name), size, reflection.FieldSize(theirs, field));
    }
    for (int entry = 0; entry < size; ++entry) {  // the lists of a Described are of messages
      std::string difference =
          Difference(absl::StrCat(name, "[", entry, "]."), reflection.GetRepeatedMessage(ours, field, entry),
                     reflection.GetRepeatedMessage(theirs, field, entry));
      if (!difference.empty()) return difference;
    }
  }
  return "";
}

}  // namespace

absl::Status CheckSameModel(const cluster::v1::Described& ours, const cluster::v1::Described& theirs) {
  const std::string difference = Difference("", ours, theirs);
  return difference.empty() ? absl::OkStatus() : absl::InvalidArgumentError(difference);
}

ModelMemory ReadModelMemory(const cluster::v1::Described& model) {
  const cluster::v1::ModelMemory& from = model.memory();
  ModelMemory memory;
  for (const cluster::v1::LayerMemory& layer : from.layers()) {
    memory.layers.push_back({.weight_bytes = static_cast<int64_t>(layer.weight_bytes()),
                             .table_bytes = static_cast<int64_t>(layer.table_bytes()),
                             .shift_bytes = static_cast<int64_t>(layer.shift_bytes()),
                             .wkv_bytes = static_cast<int64_t>(layer.wkv_bytes()),
                             .cache_bytes_per_token = static_cast<int64_t>(layer.cache_bytes_per_token()),
                             .activation_bytes = static_cast<int64_t>(layer.activation_bytes())});
  }
  memory.gold_layers = static_cast<int>(model.gold_layers());
  memory.width = model.width();
  memory.vocab_size = model.vocab_size();
  memory.uses_side_rows = from.uses_side_rows();
  memory.compressed_width = model.compressed_width();
  memory.compressed_row_bytes = static_cast<int64_t>(from.compressed_row_bytes());
  memory.compressed_bytes_per_token = static_cast<int64_t>(model.compressed_bytes_per_token());
  memory.embedding_bytes = static_cast<int64_t>(from.embedding_bytes());
  memory.gold_shared_bytes = static_cast<int64_t>(from.gold_shared_bytes());
  memory.key_table_bytes = static_cast<int64_t>(from.key_table_bytes());
  memory.head_bytes = static_cast<int64_t>(from.head_bytes());
  memory.back_end_bytes = static_cast<int64_t>(from.back_end_bytes());
  memory.back_end_bytes_per_row = static_cast<int64_t>(from.back_end_bytes_per_row());
  memory.back_end_bytes_per_logit_row = static_cast<int64_t>(from.back_end_bytes_per_logit_row());
  memory.snapshot_copies = from.snapshot_copies();
  return memory;
}

}  // namespace goldfinch
