#include "clients/cli/flags/flag_names.h"

#include <algorithm>
#include <cstddef>
#include <iterator>

#include "absl/strings/ascii.h"
#include "absl/strings/cord.h"
#include "absl/strings/string_view.h"

namespace goldfinch {
namespace {

constexpr std::string_view kStart = "^";  // stands for the beginning of a message

constexpr size_t kTextsMax = 5;

struct FlagName {
  std::string_view field;
  std::string_view flag;
  // The field is only meant if one of `before` stands just before it and one of `after` just after it. An empty list
  // allows everything.
  std::string_view before[kTextsMax] = {};
  std::string_view after[kTextsMax] = {};
};

constexpr FlagName kFlagNames[] = {
    // The model and where it runs.
    {"cache_dtype", "--cache-dtype"},
    {"device", "--device", {}, {" is \"", " cpu", " cuda", " auto"}},
    {"dtype", "--dtype", {kStart}, {" is "}},
    {"address", "--address", {"set "}, {" to "}},
    {"transport", "--transport", {}, {" tcp", " nccl", " auto", " is ", " \""}},
    {"vocab", "--vocab", {kStart, "pass ", "set ", "give ", "with "}},
    {"vocab", "--vocab", {}, {" is not set"}},
    {"model_fingerprint", "--model-fingerprint"},
    {"cluster_key_file", "--cluster-key-file"},
    // Limits.
    {"max_model_len", "--max-model-len"},
    {"max_sequences", "--max-num-seqs"},
    {"max_step_tokens", "--max-num-batched-tokens"},
    {"cache_tokens", "--cache-tokens"},
    {"max_queue", "--max-queue"},
    {"max_queue_bytes", "--max-queue-bytes"},
    {"context_memory", "--context-memory"},
    {"no_prefix_cache", "--no-prefix-cache"},
    {"gpu_memory_utilization", "--gpu-memory-utilization"},
    {"memory", "--memory", {"raise ", "lower ", "--gpu-memory-utilization or ", "--gpu-memory-utilization, "}},
    // Times.
    {"shutdown timeout", "--shutdown-timeout"},
    {"recovery timeout", "--recovery-timeout"},
    {"step timeout", "--step-timeout"},
    {"stall timeout", "--stall-timeout"},
    {"form timeout", "--form-timeout"},
    {"heartbeat timeout", "--heartbeat-timeout"},
    // Requests.
    {"max_tokens", "--max-tokens"},
    {"temperature", "--temperature", {kStart}},
    {"top_p", "--top-p"},
    {"top_k", "--top-k"},
    {"min_p", "--min-p"},
    {"presence_penalty", "--presence-penalty"},
    {"frequency_penalty", "--frequency-penalty"},
    {"penalty_decay", "--penalty-decay"},
    {"logit_bias", "--logit-bias"},
    {"banned_tokens", "--ban"},
    {"logprobs", "--logprobs", {kStart}},
    {"stop", "--stop", {kStart}, {"[", " is ", " has "}},
    {"breakpoints", "--breakpoint"},
    {"keep_as.expire_after_seconds", "--expire-after"},
    {"keep_as.etag", "--replace"},
};

// Fields of a request, which a server's answer may begin with.
constexpr std::string_view kRequestFields[] = {
    "max_tokens",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "penalty_decay",
    "logit_bias",
    "banned_tokens",
    "stop",
    "logprobs",
    "breakpoints",
    "keep_as.expire_after_seconds",
    "keep_as.etag",
};

bool IsWordCharacter(char c) { return absl::ascii_isalnum(static_cast<unsigned char>(c)) || c == '_' || c == '-'; }

// Excludes slashes and dots too, as in the path models/cache_tokens.bin.
bool MayPrecede(char c) { return !IsWordCharacter(c) && c != '/' && c != '.'; }
// A key of a key=value pair of the log is none.
bool MayFollow(std::string_view rest) {
  if (rest.empty()) return true;
  if (rest[0] == '=') return false;
  if (rest[0] == '.') return rest.size() == 1 || rest[1] == ' ';
  return !IsWordCharacter(rest[0]) && rest[0] != '/';
}

// Whether `accept` is true of one of the texts, or there are none.
template <typename Accept>
bool AnyOrNone(const std::string_view (&texts)[kTextsMax], Accept accept) {
  return texts[0].empty() || std::any_of(std::begin(texts), std::end(texts),
                                         [&](std::string_view text) { return !text.empty() && accept(text); });
}

// `done` is the part of the message that has been translated; `rest` follows it and begins with the field.
bool IsMeant(const FlagName& name, std::string_view done, std::string_view rest) {
  const std::string_view after = rest.substr(name.field.size());
  return AnyOrNone(name.before,
                   [&](std::string_view text) { return text == kStart ? done.empty() : done.ends_with(text); }) &&
         AnyOrNone(name.after, [&](std::string_view text) { return after.starts_with(text); });
}

// Returns the field that `rest` begins with; null if there is none.
const FlagName* FieldAt(std::string_view done, std::string_view rest) {
  if (!done.empty() && !MayPrecede(done.back())) return nullptr;
  for (const FlagName& name : kFlagNames) {
    if (rest.starts_with(name.field) && MayFollow(rest.substr(name.field.size())) && IsMeant(name, done, rest)) {
      return &name;
    }
  }
  return nullptr;
}

std::string_view WithoutSampling(std::string_view message) {
  constexpr std::string_view kSampling = "sampling.";
  return message.starts_with(kSampling) ? message.substr(kSampling.size()) : message;
}

}  // namespace

std::string NameFlags(std::string_view message) {
  std::string done;
  std::string_view rest = WithoutSampling(message);
  while (!rest.empty()) {
    const FlagName* name = FieldAt(done, rest);
    done += name != nullptr ? name->flag : rest.substr(0, 1);
    rest.remove_prefix(name != nullptr ? name->field.size() : 1);
  }
  return done;
}

absl::Status NameFlags(const absl::Status& status) {
  if (status.ok()) return status;
  const std::string message(status.message());
  absl::Status result(status.code(), NameFlags(message));
  status.ForEachPayload([&](absl::string_view url, const absl::Cord& payload) { result.SetPayload(url, payload); });
  return result;
}

std::optional<std::string> NameRequestFlag(std::string_view message) {
  message = WithoutSampling(message);
  for (const std::string_view field : kRequestFields) {
    if (!message.starts_with(field) || !MayFollow(message.substr(field.size()))) continue;
    const auto name = std::find_if(std::begin(kFlagNames), std::end(kFlagNames),
                                   [&](const FlagName& one) { return one.field == field; });
    return std::string(name->flag) + std::string(message.substr(field.size()));
  }
  return std::nullopt;
}

}  // namespace goldfinch
