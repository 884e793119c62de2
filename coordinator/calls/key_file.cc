#include "coordinator/calls/key_file.h"

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <set>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "base/check.h"
#include "base/status.h"
#include "coordinator/calls/request_limits.h"
#include "openssl/evp.h"
#include "yaml-cpp/yaml.h"

namespace goldfinch {
namespace {

constexpr size_t kNameCharactersMax = 64;
constexpr int64_t kRequestsMax = int64_t{1} << 20;
constexpr int64_t kTokensPerMinuteMax = int64_t{1} << 50;

template <typename... Parts>
absl::Status Invalid(const Parts&... parts) {
  return absl::InvalidArgumentError(absl::StrCat(parts...));
}

absl::Status CheckKey(std::string_view key, const std::string& where) {
  if (key.size() < ApiKey::kCharactersMin || key.size() > ApiKey::kCharactersMax) {
    return Invalid(where, ": the key has ", key.size(), " characters, the limits are ", ApiKey::kCharactersMin, " and ",
                   ApiKey::kCharactersMax);
  }
  const auto bad = std::find_if(key.begin(), key.end(), [](char c) { return !absl::ascii_isgraph(c); });
  if (bad == key.end()) return absl::OkStatus();
  return Invalid(where, ": character ", bad - key.begin() + 1, " of the key is a space or is not printable ASCII");
}

absl::StatusOr<std::vector<ApiKey>> ParsePlain(const std::string& path, const std::string& text) {
  std::vector<ApiKey> keys;
  std::set<KeyDigest> digests;
  int number = 0;
  for (const absl::string_view line : absl::StrSplit(text, '\n')) {
    ++number;
    const std::string key(absl::StripAsciiWhitespace(line));
    if (key.empty() || key[0] == '#') continue;
    GF_RETURN_IF_ERROR(CheckKey(key, absl::StrCat(path, ":", number)));
    const KeyDigest digest = DigestOfKey(key);
    if (!digests.insert(digest).second) continue;
    keys.push_back({.digest = digest, .name = absl::StrCat("key-", number), .limits = kPlainKeyLimits});
  }
  return keys;
}

// ---- YAML ----

std::string Scalar(const YAML::Node& node) { return node.IsScalar() ? node.Scalar() : std::string(); }

// A field that is misspelled must not be ignored: it may be the one that limits or expires a key.
absl::Status CheckFields(const YAML::Node& map, const std::string& where, std::initializer_list<const char*> known) {
  if (!map.IsMap()) return Invalid(where, " is not a map");
  for (const auto& field : map) {
    const std::string name = Scalar(field.first);
    if (std::find(known.begin(), known.end(), name) == known.end()) {
      return Invalid(where, " has an unknown field \"", absl::CEscape(name), "\"");
    }
  }
  return absl::OkStatus();
}

absl::Status ReadNumber(const YAML::Node& map, const char* field, const std::string& where, int64_t least, int64_t most,
                        int64_t* value) {
  const YAML::Node node = map[field];
  if (!node) return absl::OkStatus();
  if (absl::SimpleAtoi(Scalar(node), value) && *value >= least && *value <= most) return absl::OkStatus();
  return Invalid(where, ".", field, " is not a whole number from ", least, " to ", most);
}

absl::Status ReadLimits(const YAML::Node& map, const std::string& where, ClientLimits* limits) {
  GF_RETURN_IF_ERROR(CheckFields(map, where, {"max_running", "max_queued", "tokens_per_minute", "max_priority"}));
  int64_t running = 0, queued = 0, priority = 0;
  GF_RETURN_IF_ERROR(ReadNumber(map, "max_running", where, 0, kRequestsMax, &running));
  GF_RETURN_IF_ERROR(ReadNumber(map, "max_queued", where, 0, kRequestsMax, &queued));
  GF_RETURN_IF_ERROR(ReadNumber(map, "tokens_per_minute", where, 0, kTokensPerMinuteMax, &limits->tokens_per_minute));
  GF_RETURN_IF_ERROR(ReadNumber(map, "max_priority", where, int64_t{-kPriorityMax}, int64_t{kPriorityMax}, &priority));
  limits->max_running = static_cast<int>(running);
  limits->max_queued = static_cast<int>(queued);
  limits->max_priority = static_cast<int>(priority);
  return absl::OkStatus();
}

absl::Status ReadDigest(const YAML::Node& entry, const std::string& where, KeyDigest* digest) {
  const YAML::Node key = entry["key"], hash = entry["sha256"];
  if (key.IsDefined() == hash.IsDefined()) return Invalid(where, " must have one of sha256 and key");
  if (key) {
    GF_RETURN_IF_ERROR(CheckKey(Scalar(key), where));
    *digest = DigestOfKey(Scalar(key));
    return absl::OkStatus();
  }
  const std::string hex = Scalar(hash);
  const bool good = hex.size() == 2 * digest->size() &&
                    std::all_of(hex.begin(), hex.end(), [](unsigned char c) { return absl::ascii_isxdigit(c); });
  if (!good) return Invalid(where, ".sha256 is not ", 2 * digest->size(), " hexadecimal digits");
  const std::string bytes = absl::HexStringToBytes(hex);
  std::copy(bytes.begin(), bytes.end(), digest->begin());
  return absl::OkStatus();
}

absl::Status ReadRoles(const YAML::Node& roles, const std::string& where, ApiKey* key) {
  if (!roles.IsSequence()) return Invalid(where, ".roles is not a list");
  for (const auto& role : roles) {
    if (Scalar(role) != "operator") {
      return Invalid(where, ".roles has \"", absl::CEscape(Scalar(role)), "\", the only role is operator");
    }
    key->is_operator = true;
  }
  return absl::OkStatus();
}

absl::StatusOr<ApiKey> ReadEntry(const YAML::Node& entry, const std::string& where) {
  GF_RETURN_IF_ERROR(CheckFields(entry, where, {"name", "sha256", "key", "roles", "expires", "limits"}));
  ApiKey key;
  key.name = entry["name"] ? Scalar(entry["name"]) : std::string();
  // The name stands in lines of the log as one word.
  const bool plain = std::all_of(key.name.begin(), key.name.end(), [](unsigned char c) {
    return absl::ascii_isalnum(c) || absl::StrContains("._@-", std::string(1, static_cast<char>(c)));
  });
  if (!plain || key.name.empty() || key.name.size() > kNameCharactersMax) {
    return Invalid(where, ".name must be 1 to ", kNameCharactersMax, " letters, digits and . _ @ -");
  }
  GF_RETURN_IF_ERROR(ReadDigest(entry, where, &key.digest));
  if (entry["limits"]) GF_RETURN_IF_ERROR(ReadLimits(entry["limits"], where + ".limits", &key.limits));
  if (entry["roles"]) GF_RETURN_IF_ERROR(ReadRoles(entry["roles"], where, &key));
  if (entry["expires"]) {
    absl::Time time;
    std::string error;
    if (!absl::ParseTime(absl::RFC3339_full, Scalar(entry["expires"]), &time, &error)) {
      return Invalid(where, ".expires is not a time of RFC 3339, such as 2027-06-30T00:00:00Z");
    }
    key.expires = time;
  }
  return key;
}

absl::StatusOr<std::vector<ApiKey>> ReadYaml(const std::string& path, const YAML::Node& root) {
  GF_RETURN_IF_ERROR(CheckFields(root, path, {"keys"}));
  const YAML::Node entries = root["keys"];
  std::vector<ApiKey> keys;
  if (entries.IsNull()) return keys;
  if (!entries.IsSequence()) return Invalid(path, ": keys is not a list");
  std::set<KeyDigest> digests;
  std::set<std::string> names;
  for (size_t i = 0; i < entries.size(); ++i) {
    const std::string where = absl::StrCat(path, ": keys[", i, "]");
    GF_ASSIGN_OR_RETURN(ApiKey key, ReadEntry(entries[i], where));
    if (!names.insert(key.name).second) return Invalid(where, ": another key is called ", key.name, ", too");
    if (!digests.insert(key.digest).second) return Invalid(where, " is the same key as one before it");
    keys.push_back(std::move(key));
  }
  return keys;
}

absl::StatusOr<std::vector<ApiKey>> ParseYaml(const std::string& path, const std::string& text) {
  // yaml-cpp reports errors by exceptions. What it says may quote the file, and so a key: only the place is passed on.
  try {
    return ReadYaml(path, YAML::Load(text));
  } catch (const YAML::Exception& error) {
    return Invalid(path, ":", error.mark.is_null() ? 1 : error.mark.line + 1, ": not YAML");
  }
}

// No key can be `keys:`, which is too short for one.
bool IsYaml(const std::string& text) {
  for (const absl::string_view line : absl::StrSplit(text, '\n')) {
    const absl::string_view content = absl::StripAsciiWhitespace(line);
    if (content.empty() || content[0] == '#' || content == "---") continue;
    return content == "keys:";
  }
  return false;
}

}  // namespace

KeyDigest DigestOfKey(std::string_view key) {
  KeyDigest digest;
  unsigned int size = 0;
  GF_CHECK(EVP_Digest(key.data(), key.size(), digest.data(), &size, EVP_sha256(), nullptr) == 1);
  GF_CHECK_EQ(size, digest.size());
  return digest;
}

absl::StatusOr<std::vector<ApiKey>> ParseKeyFile(const std::string& path, const std::string& text) {
  GF_ASSIGN_OR_RETURN(std::vector<ApiKey> keys, IsYaml(text) ? ParseYaml(path, text) : ParsePlain(path, text));
  if (keys.empty()) return Invalid(path, ": holds no key");
  return keys;
}

}  // namespace goldfinch
