// Addresses as users write them: HOST:PORT.
#ifndef GOLDFINCH_BASE_HOST_PORT_H_
#define GOLDFINCH_BASE_HOST_PORT_H_

#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace goldfinch {

struct HostPort {
  std::string host;  // a name or an IP address, without brackets
  int port = 0;      // 1 to 65535

  // With an IPv6 address in brackets.
  std::string ToString() const;
};

// Takes "host:1", "10.0.0.7:1" and "[::1]:1". INVALID_ARGUMENT quotes the text and says what is missing: nothing is
// guessed, neither a port nor where an IPv6 address ends.
absl::StatusOr<HostPort> ParseHostPort(std::string_view text);

// "::1" of "[::1]"; any other text as it is.
std::string WithoutBrackets(std::string_view host);

// Whether only this machine reaches a port on `host`: an address in 127.0.0.0/8, ::1, or the name localhost. May have
// brackets.
bool IsLoopback(std::string_view host);

}  // namespace goldfinch

#endif  // GOLDFINCH_BASE_HOST_PORT_H_
