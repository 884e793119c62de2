#include "clients/cli/remote/proxy.h"

#include <cstdlib>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "base/host_port.h"

namespace goldfinch {
namespace {

// Those that gRPC knows, in its order.
constexpr const char* kProxies[] = {"grpc_proxy", "https_proxy", "http_proxy"};
constexpr const char* kExceptions[] = {"no_grpc_proxy", "no_proxy", "NO_PROXY"};

bool IsException(const std::string& host) {
  for (const char* name : kExceptions) {
    const char* const value = std::getenv(name);
    if (value == nullptr) continue;
    for (absl::string_view entry : absl::StrSplit(value, ',', absl::SkipWhitespace())) {
      entry = absl::StripAsciiWhitespace(entry);
      if (entry == "*") return true;
      absl::ConsumePrefix(&entry, "*");
      absl::ConsumePrefix(&entry, ".");
      // As gRPC does it: example.com is in ample.com.
      if (!entry.empty() && absl::EndsWithIgnoreCase(host, entry)) return true;
    }
  }
  return false;
}

// "proxy:3128" of "http://user:password@proxy:3128/".
std::string AddressOf(absl::string_view url) {
  const size_t scheme = url.find("://");
  if (scheme != absl::string_view::npos) url.remove_prefix(scheme + 3);
  url = url.substr(0, url.find('/'));
  const size_t user = url.rfind('@');
  if (user != absl::string_view::npos) url.remove_prefix(user + 1);
  return std::string(url);
}

}  // namespace

std::optional<Proxy> ProxyFor(const std::string& host) {
  if (IsLoopback(host) || IsException(host)) return std::nullopt;
  for (const char* name : kProxies) {
    const char* const value = std::getenv(name);
    if (value == nullptr) continue;
    if (*value == '\0') return std::nullopt;  // gRPC looks no further
    return Proxy{name, AddressOf(value)};
  }
  return std::nullopt;
}

}  // namespace goldfinch
