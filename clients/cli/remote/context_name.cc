#include "clients/cli/remote/context_name.h"

#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "clients/cli/terminal/terminal.h"
#include "protos/generate.pb.h"

namespace goldfinch {

absl::StatusOr<ContextReference> ParseContextName(const std::string& flag, std::string_view text) {
  ContextReference parsed{std::string(text), std::nullopt};
  const size_t at = text.rfind('@');
  if (at != std::string_view::npos) {
    const std::string number(text.substr(at + 1));
    const bool digits = std::all_of(number.begin(), number.end(),
                                    [](char c) { return absl::ascii_isdigit(static_cast<unsigned char>(c)); });
    if (digits) parsed.name = std::string(text.substr(0, at));
    if (digits && !number.empty()) {
      uint64_t tokens = 0;
      if (!absl::SimpleAtoi(number, &tokens) || tokens == 0) {
        return UsageError(absl::StrCat(flag, " is \"", std::string(text),
                                       "\", whose number of tokens is not from 1 to ", UINT64_MAX));
      }
      parsed.tokens = tokens;
    }
  }
  if (parsed.name.empty()) return UsageError(absl::StrCat(flag, " is \"", std::string(text), "\", which has no name"));
  return parsed;
}

v1::KeepAs ToMessage(const KeepOptions& options) {
  v1::KeepAs message;
  message.set_name(options.name);
  if (options.expire_after_seconds) message.set_expire_after_seconds(*options.expire_after_seconds);
  message.set_etag(options.replace);
  return message;
}

}  // namespace goldfinch
