// How the command line names a context.
#ifndef GOLDFINCH_CLIENTS_CLI_REMOTE_CONTEXT_NAME_H_
#define GOLDFINCH_CLIENTS_CLI_REMOTE_CONTEXT_NAME_H_

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "clients/cli/flags/options.h"

namespace goldfinch {

namespace v1 {
class KeepAs;
}  // namespace v1

struct ContextReference {
  std::string name;
  std::optional<uint64_t> tokens;  // only so many of its first tokens
};

// "NAME@1000" is NAME and 1000 tokens, "NAME" and "NAME@" are all of NAME; so "a@7@" is all of a context "a@7".
// UsageError, which begins with `flag`.
absl::StatusOr<ContextReference> ParseContextName(const std::string& flag, std::string_view text);

v1::KeepAs ToMessage(const KeepOptions& options);

}  // namespace goldfinch

#endif  // GOLDFINCH_CLIENTS_CLI_REMOTE_CONTEXT_NAME_H_
