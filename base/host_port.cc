#include "base/host_port.h"

#include <algorithm>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace goldfinch {

std::string HostPort(const std::string& host, int port) {
  const bool bare_ipv6 = host.find(':') != std::string::npos && !host.starts_with('[');
  return bare_ipv6 ? absl::StrCat("[", host, "]:", port) : absl::StrCat(host, ":", port);
}

std::vector<std::string> SplitHosts(const std::string& hosts) {
  std::vector<std::string> result;
  for (const absl::string_view part : absl::StrSplit(hosts, ',')) {
    std::string host(absl::StripAsciiWhitespace(part));
    if (host.starts_with('[') && host.ends_with(']')) host = host.substr(1, host.size() - 2);
    if (!host.empty() && std::find(result.begin(), result.end(), host) == result.end()) {
      result.push_back(std::move(host));
    }
  }
  return result;
}

}  // namespace goldfinch
