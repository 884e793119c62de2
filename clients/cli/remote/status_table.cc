#include "clients/cli/remote/status_table.h"

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "base/safe_text.h"
#include "clients/cli/terminal/columns.h"
#include "clients/cli/terminal/terminal.h"
#include "google/protobuf/descriptor.h"
#include "google/protobuf/message.h"
#include "nlohmann/json.hpp"
#include "protos/generate.pb.h"

namespace goldfinch {
namespace {

std::string Commas(uint64_t number) { return WithCommas(static_cast<int64_t>(number)); }
std::string Bytes(uint64_t bytes) { return HumanBytes(static_cast<int64_t>(bytes)); }

// A name or another short text of the server.
std::string Cell(const std::string& text) {
  constexpr size_t kCellBytesMax = 512;
  return SafeText(text, kCellBytesMax);
}

// By how much a counter has grown since the earlier look; all of it if it has started again since.
template <typename Number>
Number Growth(Number now, Number before) {
  return now >= before ? now - before : now;
}

std::string StateName(v1::GroupState state) {
  switch (state) {
    case v1::WAITING_FOR_WORKERS:
      return "waiting for workers";
    case v1::FORMING:
      return "forming";
    case v1::READY:
      return "ready";
    default:
      return "unknown";
  }
}

// "4,096 B (1.02 kB/s)".
std::string BytesAndRate(uint64_t now, uint64_t before, double seconds) {
  if (seconds <= 0) return Bytes(now);
  return absl::StrFormat("%s (%s/s)", Bytes(now),
                         Bytes(static_cast<uint64_t>(static_cast<double>(Growth(now, before)) / seconds)));
}

std::vector<std::string> StageRow(int number, const v1::StageInfo& stage, const v1::StageInfo& before, double seconds) {
  const double busy = Growth(stage.busy_seconds(), before.busy_seconds());
  const double bubble = Growth(stage.bubble_seconds(), before.bubble_seconds());
  const double idle = Growth(stage.idle_seconds(), before.idle_seconds());
  const double all = busy + bubble + idle;
  const auto share = [&](double part) { return all > 0 ? absl::StrFormat("%.1f%%", 100 * part / all) : "-"; };
  const v1::BoundaryBytes& now = stage.received();
  const v1::BoundaryBytes& then = before.received();
  return {absl::StrCat(number),
          Cell(stage.worker()),
          Cell(stage.address()),
          Cell(stage.device()),
          absl::StrCat(stage.first_layer(), "-", std::max(stage.last_layer(), 1u) - 1),
          Bytes(stage.weight_bytes()),
          absl::StrCat(Bytes(stage.reserved_bytes()), " of ", Bytes(stage.memory_bytes())),
          share(busy),
          share(bubble),
          share(idle),
          BytesAndRate(now.hidden(), then.hidden(), seconds),
          BytesAndRate(now.compressed(), then.compressed(), seconds),
          BytesAndRate(now.ids(), then.ids(), seconds),
          absl::StrFormat("%.1f s", stage.heartbeat_age_seconds())};
}

// Null unless the earlier look saw the same generation of the group: counters start again with each.
const v1::GroupInfo* SameGroup(const v1::GroupInfo& group, const v1::GetClusterInfoResponse* before) {
  if (before == nullptr) return nullptr;
  for (const v1::GroupInfo& other : before->groups()) {
    const bool same = other.replica() == group.replica() && other.generation() == group.generation() &&
                      other.stages_size() == group.stages_size();
    if (same) return &other;
  }
  return nullptr;
}

// What each stage has reserved its memory for. Rows are the uses that any stage has.
std::string MemoryTable(const v1::GroupInfo& group) {
  std::vector<std::string> names;
  const auto bytes_of = [](const v1::StageInfo& stage, const std::string& name) {
    for (const v1::MemoryPart& part : stage.memory()) {
      if (part.name() == name) return part.bytes();
    }
    return uint64_t{0};
  };
  for (const v1::StageInfo& stage : group.stages()) {
    for (const v1::MemoryPart& part : stage.memory()) {
      if (part.bytes() > 0 && std::find(names.begin(), names.end(), part.name()) == names.end()) {
        names.push_back(part.name());
      }
    }
  }
  if (names.empty()) return "";
  std::vector<std::vector<std::string>> rows = {{"memory"}};
  for (int i = 0; i < group.stages_size(); ++i) rows[0].push_back(absl::StrCat("stage ", i));
  for (const std::string& name : names) {
    rows.push_back({Cell(name)});
    for (const v1::StageInfo& stage : group.stages()) rows.back().push_back(Bytes(bytes_of(stage, name)));
  }
  rows.push_back({"left"});
  for (const v1::StageInfo& stage : group.stages()) {
    rows.back().push_back(HumanBytes(static_cast<int64_t>(stage.memory_bytes() - stage.reserved_bytes())));
  }
  return Columns(rows);
}

std::string Traffic(const v1::TrafficInfo& traffic) {
  return absl::StrCat("prompts of ", Commas(traffic.prompt_tokens()), " tokens, outputs of ",
                      Commas(traffic.output_tokens()), ", in contexts of ", Commas(traffic.context_tokens()), ", ",
                      Commas(traffic.sequences()), " sequences at a time");
}

// What its split was planned for, and whether another one would be better.
std::string SplitLines(const v1::GroupInfo& group) {
  std::string text;
  if (!group.plan().empty()) absl::StrAppend(&text, "split: ", SafeText(group.plan()), "\n");
  if (group.has_expected_traffic()) {
    absl::StrAppend(&text, "planned for: ", Traffic(group.expected_traffic()), "\n");
  }
  if (!group.has_split_gain()) return text;
  if (group.split_gain() <= 0) return absl::StrCat(text, "no other split would be better for the traffic\n");
  absl::StrAppendFormat(&text, "for the traffic, the split %s would take %.1f %% less time\n", Cell(group.best_split()),
                        100 * group.split_gain());
  return text;
}

// Links between stages, as far as they have been measured.
std::string LinkTable(const v1::GroupInfo& group) {
  std::vector<std::vector<std::string>> rows = {{"link", "speed", "round trip"}};
  for (int from = 0; from < group.stages_size(); ++from) {
    for (const v1::LinkInfo& link : group.stages(from).links()) {
      const double speed = std::min(link.bytes_per_second(), 1e18);
      rows.push_back({absl::StrCat("stage ", from, " to ", link.stage()),
                      speed > 0 ? absl::StrCat(Bytes(static_cast<uint64_t>(speed)), "/s") : "-",
                      absl::StrFormat("%.3g ms", 1e3 * link.round_trip_seconds())});
    }
  }
  return rows.size() == 1 ? "" : Columns(rows);
}

std::string GroupTable(const v1::GroupInfo& group, const v1::GroupInfo* before, double seconds) {
  std::string text =
      absl::StrFormat("\nreplica %d: %s, generation %d", group.replica(), StateName(group.state()), group.generation());
  if (!group.message().empty()) absl::StrAppend(&text, ": ", SafeText(group.message()));
  absl::StrAppendFormat(&text, "\n%s steps, %d in flight; %s of %s sequences; cache reserved for %s of %s tokens\n",
                        Commas(group.steps()), group.steps_in_flight(), Commas(group.sequences()),
                        Commas(group.sequences_max()), Commas(group.cache_tokens_reserved()),
                        Commas(group.cache_tokens_max()));
  if (group.stages().empty()) return text;
  text += SplitLines(group);
  std::vector<std::vector<std::string>> rows = {{"stage", "worker", "address", "device", "layers", "weights",
                                                 "reserved", "busy", "bubble", "idle", "hidden in", "compressed in",
                                                 "ids in", "heartbeat"}};
  for (int i = 0; i < group.stages_size(); ++i) {
    rows.push_back(StageRow(i, group.stages(i), before ? before->stages(i) : v1::StageInfo::default_instance(),
                            before ? seconds : 0));
  }
  return text + Columns(rows) + LinkTable(group) + MemoryTable(group);
}

std::string ModelLine(const v1::GetModelInfoResponse* model) {
  if (model == nullptr) return "not known yet: no worker has read it";
  return absl::StrFormat("%s, %d layers (%d GOLD), width %d, vocabulary %s of %s; at most %s tokens a sequence",
                         Cell(model->name()), model->layers(), model->gold_layers(), model->width(),
                         Cell(model->vocabulary()), Commas(model->vocab_size()), Commas(model->max_model_len()));
}

nlohmann::json ValueJson(const google::protobuf::Message& message, const google::protobuf::FieldDescriptor* field,
                         int index) {
  using Field = google::protobuf::FieldDescriptor;
  const google::protobuf::Reflection& reflection = *message.GetReflection();
  const auto get = [&](auto single, auto repeated) -> decltype(auto) {
    return index < 0 ? (reflection.*single)(message, field) : (reflection.*repeated)(message, field, index);
  };
  using R = google::protobuf::Reflection;
  switch (field->cpp_type()) {
    case Field::CPPTYPE_INT32:
      return get(&R::GetInt32, &R::GetRepeatedInt32);
    case Field::CPPTYPE_INT64:
      return get(&R::GetInt64, &R::GetRepeatedInt64);
    case Field::CPPTYPE_UINT32:
      return get(&R::GetUInt32, &R::GetRepeatedUInt32);
    case Field::CPPTYPE_UINT64:
      return get(&R::GetUInt64, &R::GetRepeatedUInt64);
    case Field::CPPTYPE_DOUBLE:
      return get(&R::GetDouble, &R::GetRepeatedDouble);
    case Field::CPPTYPE_FLOAT:
      return get(&R::GetFloat, &R::GetRepeatedFloat);
    case Field::CPPTYPE_BOOL:
      return get(&R::GetBool, &R::GetRepeatedBool);
    case Field::CPPTYPE_ENUM:
      return get(&R::GetEnum, &R::GetRepeatedEnum)->name();
    case Field::CPPTYPE_STRING:
      return get(&R::GetString, &R::GetRepeatedString);
    case Field::CPPTYPE_MESSAGE:
      return MessageJson(index < 0 ? reflection.GetMessage(message, field)
                                   : reflection.GetRepeatedMessage(message, field, index));
  }
  return nullptr;
}

}  // namespace

std::string StatusTable(const v1::GetModelInfoResponse* model, const v1::GetClusterInfoResponse& now,
                        const v1::GetClusterInfoResponse* before) {
  // The counters of a server that has restarted since are not comparable.
  if (before != nullptr && before->uptime_seconds() >= now.uptime_seconds()) before = nullptr;
  const v1::GetClusterInfoResponse& then = before ? *before : v1::GetClusterInfoResponse::default_instance();
  const double seconds = now.uptime_seconds() - then.uptime_seconds();
  const auto rate = [&](uint64_t count, uint64_t earlier) {
    return seconds > 0 ? static_cast<double>(Growth(count, earlier)) / seconds : 0;
  };
  std::string text = absl::StrCat("model     ", ModelLine(model), "\n");
  absl::StrAppend(&text, "server    up ", HumanAge(now.uptime_seconds()), ", group generation ", now.group_generation(),
                  now.draining() ? "; draining: it takes no new requests" : "", "\n");
  absl::StrAppend(&text, "requests  ", Commas(now.requests_running()), " running, ", Commas(now.requests_waiting()),
                  " waiting\n");
  absl::StrAppendFormat(&text, "tokens    read %s, %.4g/s; generated %s, %.4g/s\n", Commas(now.prompt_tokens()),
                        rate(now.prompt_tokens(), then.prompt_tokens()), Commas(now.completion_tokens()),
                        rate(now.completion_tokens(), then.completion_tokens()));
  if (now.has_traffic()) absl::StrAppend(&text, "traffic   ", Traffic(now.traffic()), "\n");
  absl::StrAppend(&text, "memory    caches ", Bytes(now.cache_bytes()));
  if (now.cache_bytes() > 0 && now.transformer_cache_bytes() > 0) {
    absl::StrAppendFormat(&text, " (%.4g times less than full keys and values)",
                          static_cast<double>(now.transformer_cache_bytes()) / static_cast<double>(now.cache_bytes()));
  }
  absl::StrAppend(&text, ", kept rows ", Bytes(now.gold_kept_bytes()), ", states ", Bytes(now.state_bytes()), "\n");
  if (!now.spare_workers().empty()) {
    const auto append = [](std::string* names, const std::string& name) { names->append(Cell(name)); };
    absl::StrAppend(&text, "spare     ", absl::StrJoin(now.spare_workers(), ", ", append), "\n");
  }
  for (const v1::GroupInfo& group : now.groups())
    absl::StrAppend(&text, GroupTable(group, SameGroup(group, before), seconds));
  return text;
}

nlohmann::json MessageJson(const google::protobuf::Message& message) {
  nlohmann::json json = nlohmann::json::object();
  const google::protobuf::Descriptor* descriptor = message.GetDescriptor();
  for (int i = 0; i < descriptor->field_count(); ++i) {
    const google::protobuf::FieldDescriptor* field = descriptor->field(i);
    if (!field->is_repeated()) {
      const bool unset = field->has_optional_keyword() && !message.GetReflection()->HasField(message, field);
      json[field->name()] = unset ? nlohmann::json() : ValueJson(message, field, -1);
      continue;
    }
    nlohmann::json& values = json[field->name()] = nlohmann::json::array();
    for (int j = 0; j < message.GetReflection()->FieldSize(message, field); ++j) {
      values.push_back(ValueJson(message, field, j));
    }
  }
  return json;
}

}  // namespace goldfinch
