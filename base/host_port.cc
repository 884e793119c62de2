#include "base/host_port.h"

#include <arpa/inet.h>
#include <netinet/in.h>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"

namespace goldfinch {
namespace {

bool AllDigits(std::string_view text) { return text.find_first_not_of("0123456789") == std::string_view::npos; }

}  // namespace

std::string HostPort::ToString() const {
  return host.find(':') == std::string::npos ? absl::StrCat(host, ":", port) : absl::StrCat("[", host, "]:", port);
}

absl::StatusOr<HostPort> ParseHostPort(std::string_view text) {
  const auto error = [&](std::string_view why) {
    return absl::InvalidArgumentError(absl::StrCat("\"", std::string(text), "\" is not HOST:PORT: ", std::string(why)));
  };
  HostPort result;
  std::string_view port;
  if (!text.empty() && text[0] == '[') {
    const size_t end = text.find(']');
    if (end == std::string_view::npos) return error("a bracket is not closed");
    result.host = text.substr(1, end - 1);
    in6_addr address;
    // A zone, as in fe80::1%eth0, is not part of the address.
    const std::string number = result.host.substr(0, result.host.find('%'));
    if (inet_pton(AF_INET6, number.c_str(), &address) != 1) return error("in the brackets is no IPv6 address");
    port = text.substr(end + 1);
    if (port.empty() || port[0] != ':') return error("the port is missing");
    port.remove_prefix(1);
  } else {
    const size_t colon = text.rfind(':');
    if (colon == std::string_view::npos) return error("the port is missing");
    result.host = text.substr(0, colon);
    port = text.substr(colon + 1);
    if (result.host.find(':') != std::string::npos) return error("an IPv6 address needs brackets, as in [::1]:50051");
    if (result.host.find_first_of("/ \t") != std::string::npos) return error("the host has a space or a slash in it");
  }
  if (result.host.empty()) return error("the host is missing");
  if (port.empty()) return error("the port is missing");
  if (!AllDigits(port) || !absl::SimpleAtoi(std::string(port), &result.port) || result.port < 1 ||
      result.port > 65535) {
    return error("the port must be a number from 1 to 65535");
  }
  return result;
}

std::string WithoutBrackets(std::string_view host) {
  const bool brackets = host.size() >= 2 && host.front() == '[' && host.back() == ']';
  return std::string(brackets ? host.substr(1, host.size() - 2) : host);
}

bool IsLoopback(std::string_view host) {
  const std::string name = WithoutBrackets(host);
  if (absl::EqualsIgnoreCase(name, "localhost")) return true;
  in_addr v4;
  if (inet_pton(AF_INET, name.c_str(), &v4) == 1) return ntohl(v4.s_addr) >> 24 == 127;
  in6_addr v6;
  if (inet_pton(AF_INET6, name.c_str(), &v6) != 1) return false;
  if (IN6_IS_ADDR_LOOPBACK(&v6)) return true;
  return IN6_IS_ADDR_V4MAPPED(&v6) && v6.s6_addr[12] == 127;
}

}  // namespace goldfinch
