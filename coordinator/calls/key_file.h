// The file of API keys, which says who may call and what each of them may do.
//
// Its plain form has one key a line; empty lines and lines that begin with '#' are comments. Such keys are called
// key-1, key-2 and so on, by their lines, and have kPlainKeyLimits.
//
// The other form is YAML, and begins with the line `keys:`
//
//   keys:
//     - name: alice                    # for logs and messages
//       sha256: 9f86d081884c7d65...    # printf %s "$KEY" | sha256sum
//       roles: [operator]              # default none
//       expires: 2027-06-30T00:00:00Z  # RFC 3339; default never
//       limits:                        # a limit that is missing is none; max_priority is 0 by default
//         max_running: 8
//         max_queued: 32
//         tokens_per_minute: 200000
//         max_priority: 10
//     - name: bob
//       key: the-key-itself            # instead of sha256
#ifndef GOLDFINCH_COORDINATOR_CALLS_KEY_FILE_H_
#define GOLDFINCH_COORDINATOR_CALLS_KEY_FILE_H_

#include <array>
#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "coordinator/scheduler/client.h"

namespace goldfinch {

// What a key of the plain form gets. Whoever calls a server without keys gets ClientLimits{}: no priority above 0.
inline constexpr ClientLimits kPlainKeyLimits = {.max_priority = 100};

using KeyDigest = std::array<unsigned char, 32>;  // SHA-256

struct ApiKey {
  static constexpr size_t kCharactersMin = 16;
  static constexpr size_t kCharactersMax = 512;

  KeyDigest digest = {};
  std::string name;
  ClientLimits limits = {};
  bool is_operator = false;                // has the role of that name
  std::optional<absl::Time> expires = {};  // from then on it is refused
};

KeyDigest DigestOfKey(std::string_view key);

// Returns at least one key; no two have the same name or digest. Errors name the file and the line or the entry, never
// a key. `path` is for the messages.
absl::StatusOr<std::vector<ApiKey>> ParseKeyFile(const std::string& path, const std::string& text);

}  // namespace goldfinch

#endif  // GOLDFINCH_COORDINATOR_CALLS_KEY_FILE_H_
