#include "clients/cli/load_test/load_test_scenario_file.h"

#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <set>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "base/small_file.h"
#include "base/status.h"
#include "clients/cli/load_test/load_test_schedule.h"
#include "clients/cli/terminal/terminal.h"
#include "google/protobuf/descriptor.h"
#include "google/protobuf/io/tokenizer.h"
#include "google/protobuf/message.h"
#include "google/protobuf/text_format.h"

namespace goldfinch {
namespace {

using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using google::protobuf::TextFormat;
using scenario::Aim;
using scenario::ClientGroup;
using scenario::Scenario;
using scenario::Variant;
using Locations = TextFormat::ParseInfoTree;

constexpr size_t kFileBytesMax = size_t{64} << 10;
constexpr int kNestingMax = 8;
constexpr size_t kNameBytesMax = 64;
constexpr int kGroupsMax = 32;
constexpr int kAimsMax = 64;
constexpr int kVariantsMax = 16;
// Bounds the memory of requests whose answers are awaited: a token takes 4 bytes and up to 4 in the message.
constexpr int64_t kRunningPromptTokensMax = int64_t{1} << 27;

// What a number of a group or an aim may be.
struct Range {
  std::string_view field;
  double least;
  double most;
};

constexpr Range kRanges[] = {
    {"clients", 1, 4096},
    {"start_seconds", 0, 1e5},
    {"requests", 1, 1e6},
    {"seconds", std::numeric_limits<double>::min(), 1e6},
    {"think_seconds", 0, 1e5},
    {"rate", 1e-3, 1e6},
    {"burst_every_seconds", 1e-3, 1e5},
    {"prompt_tokens", 1, kLengthTokensMax},
    {"shared_prompt_tokens", 0, kLengthTokensMax - 1},
    {"max_tokens", 1, kLengthTokensMax},
    {"n", 1, 64},
    {"priority", -100, 100},
    {"quiet_requests", 1, 1000},
    {"at_most_ms", 1e-3, 1e9},
    {"at_most_times_quiet", 1, 1e6},
};

class FirstError final : public google::protobuf::io::ErrorCollector {
 public:
  explicit FirstError(const std::string& path) : path_(path) {}

  void AddError(int line, int column, const std::string& message) override {
    if (status_.ok()) {
      status_ = absl::InvalidArgumentError(absl::StrCat(path_, ":", line + 1, ":", column + 1, ": ", message));
    }
  }

  const absl::Status& status() const { return status_; }

 private:
  const std::string& path_;
  absl::Status status_;
};

// One message of the file, and where its fields are in it.
struct Place {
  const std::string& path;
  const Message& message;
  const Locations* locations;  // null if they are not known
  int line;                    // of the message, from 0; -1 for the whole file
  std::string name;            // of the message for people, such as `group "users": `; empty for the whole file
};

const FieldDescriptor* FieldOf(const Message& message, const std::string& field) {
  return message.GetDescriptor()->FindFieldByName(field);
}

// "FILE:LINE: group "users": field MESSAGE".
absl::Status Refuse(const Place& place, const std::string& field, const std::string& message) {
  int line = place.line;
  const FieldDescriptor* descriptor = FieldOf(place.message, field);
  if (place.locations != nullptr && descriptor != nullptr && !descriptor->is_repeated()) {
    const int found = place.locations->GetLocation(descriptor, -1).line;
    if (found >= 0) line = found;
  }
  const std::string where = line >= 0 ? absl::StrCat(place.path, ":", line + 1) : place.path;
  return absl::InvalidArgumentError(absl::StrCat(where, ": ", place.name, field, " ", message));
}

// The place of message `index` of a repeated field.
Place Within(const Place& whole, const std::string& field, const Message& message, int index, std::string name) {
  const FieldDescriptor* descriptor = FieldOf(whole.message, field);
  const Locations* locations =
      whole.locations == nullptr ? nullptr : whole.locations->GetTreeForNested(descriptor, index);
  const int line = whole.locations == nullptr ? -1 : whole.locations->GetLocation(descriptor, index).line;
  return {whole.path, message, locations, line, std::move(name)};
}

std::optional<Range> RangeOf(const std::string& field) {
  for (const Range& range : kRanges) {
    if (range.field == field) return range;
  }
  return std::nullopt;
}

// Without an exponent for what a file may hold.
std::string Number(double number) { return absl::StrFormat("%.10g", number); }

// Checks each number that is set.
absl::Status CheckRanges(const Place& place) {
  std::vector<const FieldDescriptor*> fields;
  const google::protobuf::Reflection& reflection = *place.message.GetReflection();
  reflection.ListFields(place.message, &fields);
  for (const FieldDescriptor* field : fields) {
    const std::optional<Range> range = RangeOf(field->name());
    if (!range) continue;
    const double value = field->cpp_type() == FieldDescriptor::CPPTYPE_INT64
                             ? static_cast<double>(reflection.GetInt64(place.message, field))
                             : reflection.GetDouble(place.message, field);
    if (value >= range->least && value <= range->most) continue;
    const std::string limits = range->least == std::numeric_limits<double>::min()
                                   ? absl::StrCat("above 0 and at most ", Number(range->most))
                                   : absl::StrCat("from ", Number(range->least), " to ", Number(range->most));
    return Refuse(place, field->name(), absl::StrCat("is ", Number(value), ", it may be ", limits));
  }
  return absl::OkStatus();
}

absl::Status CheckName(const Place& place, const std::string& name) {
  bool good = !name.empty() && name.size() <= kNameBytesMax;
  for (const char c : name) good &= absl::ascii_isalnum(static_cast<unsigned char>(c)) || c == '-' || c == '_';
  if (good) return absl::OkStatus();
  return Refuse(
      place, "name",
      absl::StrCat("is \"", name, "\", names have 1 to ", kNameBytesMax, " letters, digits, \"-\" and \"_\""));
}

// Checks the names and numbers of groups, of the scenario or of a variant.
template <typename Owner>
absl::Status CheckGroups(const Place& place, const Owner& owner) {
  if (owner.groups_size() > kGroupsMax) {
    return Refuse(place, "groups", absl::StrCat("has ", owner.groups_size(), " entries, the limit is ", kGroupsMax));
  }
  std::set<std::string> names;
  for (int i = 0; i < owner.groups_size(); ++i) {
    const ClientGroup& group = owner.groups(i);
    const Place here = Within(place, "groups", group, i, absl::StrCat(place.name, "group \"", group.name(), "\": "));
    GF_RETURN_IF_ERROR(CheckName(here, group.name()));
    if (!names.insert(group.name()).second) return Refuse(here, "name", "is that of another group, too");
    GF_RETURN_IF_ERROR(CheckRanges(here));
    if (group.has_until_others_end() && !group.until_others_end()) {
      return Refuse(here, "until_others_end", "can only be true");
    }
  }
  return absl::OkStatus();
}

// Checks what aims are by themselves.
template <typename Owner>
absl::Status CheckAims(const Place& place, const Owner& owner) {
  if (owner.aims_size() > kAimsMax) {
    return Refuse(place, "aims", absl::StrCat("has ", owner.aims_size(), " entries, the limit is ", kAimsMax));
  }
  for (int i = 0; i < owner.aims_size(); ++i) {
    const Aim& aim = owner.aims(i);
    const Place here = Within(place, "aims", aim, i, absl::StrCat(place.name, "aim for \"", aim.group(), "\": "));
    if (aim.measure() == scenario::MEASURE_UNSPECIFIED) return Refuse(here, "measure", "is missing");
    if (aim.limit_case() == Aim::LIMIT_NOT_SET) {
      return Refuse(here, "at_most_ms", "is missing, and so is at_most_times_quiet");
    }
    GF_RETURN_IF_ERROR(CheckRanges(here));
  }
  return absl::OkStatus();
}

const ClientGroup* GroupNamed(const Scenario& scenario, const std::string& name) {
  for (const ClientGroup& group : scenario.groups()) {
    if (group.name() == name) return &group;
  }
  return nullptr;
}

absl::Status CheckVariants(const Place& place, const Scenario& scenario) {
  if (scenario.variants_size() > kVariantsMax) {
    return Refuse(place, "variants",
                  absl::StrCat("has ", scenario.variants_size(), " entries, the limit is ", kVariantsMax));
  }
  std::set<std::string> names;
  for (int i = 0; i < scenario.variants_size(); ++i) {
    const Variant& variant = scenario.variants(i);
    const Place here = Within(place, "variants", variant, i, absl::StrCat("variant \"", variant.name(), "\": "));
    GF_RETURN_IF_ERROR(CheckName(here, variant.name()));
    if (!names.insert(variant.name()).second) return Refuse(here, "name", "is that of another variant, too");
    GF_RETURN_IF_ERROR(CheckGroups(here, variant));
    GF_RETURN_IF_ERROR(CheckAims(here, variant));
    for (const ClientGroup& group : variant.groups()) {
      if (GroupNamed(scenario, group.name()) == nullptr) {
        return Refuse(here, "groups", absl::StrCat("has \"", group.name(), "\", which the scenario has not"));
      }
    }
  }
  return absl::OkStatus();
}

// Puts the variant in place of what it says otherwise, and leaves no variants.
absl::Status Apply(const std::string& path, const std::string& name, Scenario* scenario) {
  std::vector<std::string> names;
  bool found = name.empty();
  for (const Variant& variant : scenario->variants()) {
    names.push_back(variant.name());
    if (variant.name() != name) continue;
    found = true;
    for (const ClientGroup& changed : variant.groups()) {
      for (ClientGroup& group : *scenario->mutable_groups()) {
        if (group.name() == changed.name()) group.MergeFrom(changed);
      }
    }
    if (variant.aims_size() > 0) *scenario->mutable_aims() = variant.aims();
  }
  if (!found) {
    return UsageError(absl::StrCat(path, ": has no variant \"", name,
                                   "\"; its variants: ", names.empty() ? "none" : absl::StrJoin(names, ", ")));
  }
  scenario->clear_variants();
  return absl::OkStatus();
}

// Checks what fields mean together, with the variant applied. Lines are those of the scenario's own groups.
absl::Status CheckTogether(const Place& place, const Scenario& scenario) {
  if (scenario.groups_size() == 0) return Refuse(place, "groups", "is empty, a scenario needs one");
  bool ends = false;
  for (int i = 0; i < scenario.groups_size(); ++i) {
    const ClientGroup& group = scenario.groups(i);
    const Place here = Within(place, "groups", group, i, absl::StrCat("group \"", group.name(), "\": "));
    if (!group.has_prompt_tokens()) return Refuse(here, "prompt_tokens", "is missing");
    if (group.shared_prompt_tokens() >= group.prompt_tokens()) {
      return Refuse(here, "shared_prompt_tokens",
                    absl::StrCat("is ", group.shared_prompt_tokens(), ", it must be below prompt_tokens, ",
                                 group.prompt_tokens()));
    }
    if (group.has_rate() && group.clients() > 1) {
      return Refuse(here, "clients", absl::StrCat("is ", group.clients(), ", a group with a rate has one"));
    }
    if (group.clients() * group.prompt_tokens() > kRunningPromptTokensMax) {
      return Refuse(here, "prompt_tokens",
                    absl::StrCat("is ", group.prompt_tokens(), " for each of ", group.clients(),
                                 " clients, the limit for all of them is ", kRunningPromptTokensMax));
    }
    ends |= !group.until_others_end();
  }
  if (!ends) return Refuse(place, "groups", "all have until_others_end, so that none would end");
  for (const Aim& aim : scenario.aims()) {
    const ClientGroup* group = GroupNamed(scenario, aim.group());
    if (group == nullptr) return Refuse(place, "aims", absl::StrCat("name \"", aim.group(), "\", which is no group"));
    if (group->background() && aim.has_at_most_times_quiet()) {
      return Refuse(place, "aims",
                    absl::StrCat("compare \"", aim.group(), "\" with its quiet run, which a background has not"));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<Scenario> ParseScenario(const std::string& path, const std::string& text, const std::string& variant) {
  Scenario scenario;
  Locations locations;
  FirstError error(path);
  TextFormat::Parser parser;
  parser.RecordErrorsTo(&error);
  parser.WriteLocationsTo(&locations);
  parser.SetRecursionLimit(kNestingMax);
  if (!parser.ParseFromString(text, &scenario)) {
    GF_RETURN_IF_ERROR(error.status());
    return absl::InvalidArgumentError(absl::StrCat(path, ": is not a scenario"));
  }
  const Place place{path, scenario, &locations, -1, ""};
  GF_RETURN_IF_ERROR(CheckName(place, scenario.name()));
  GF_RETURN_IF_ERROR(CheckGroups(place, scenario));
  GF_RETURN_IF_ERROR(CheckAims(place, scenario));
  GF_RETURN_IF_ERROR(CheckVariants(place, scenario));
  GF_RETURN_IF_ERROR(Apply(path, variant, &scenario));
  GF_RETURN_IF_ERROR(CheckTogether(place, scenario));
  return scenario;
}

absl::StatusOr<Scenario> ReadScenario(const std::string& path, const std::string& variant) {
  GF_ASSIGN_OR_RETURN(const std::string text, ReadSmallFile(path, kFileBytesMax));
  return ParseScenario(path, text, variant);
}

}  // namespace goldfinch
