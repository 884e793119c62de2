// Replaces the names of fields in messages by the flags that set them.
#ifndef GOLDFINCH_CLIENTS_CLI_FLAGS_FLAG_NAMES_H_
#define GOLDFINCH_CLIENTS_CLI_FLAGS_FLAG_NAMES_H_

#include <optional>
#include <string>
#include <string_view>

#include "absl/status/status.h"

namespace goldfinch {

// Everything below the program names fields and limits, "max_model_len is 10", because other callers use that code
// too. Whoever typed the command line knows the flag, --max-model-len. This replaces the names of fields by flags,
// whole words only, and leaves flags as they are, so that translating twice does no harm. A field whose name is an
// ordinary word (device, memory) is replaced only where the words around it show that the field is meant.
std::string NameFlags(std::string_view message);

// The same status with its message translated; code and payloads stay.
absl::Status NameFlags(const absl::Status& status);

// Translates a server's error about a request that `goldfinch generate` made: the message with the flag in place of the
// field that it begins with, "--top-p is 2" for "sampling.top_p is 2". Nothing if it begins with no field that a flag
// sets. The rest stays as it is, as the limits of a server are not flags of its client.
std::optional<std::string> NameRequestFlag(std::string_view message);

}  // namespace goldfinch

#endif  // GOLDFINCH_CLIENTS_CLI_FLAGS_FLAG_NAMES_H_
