// Hosts and ports as text.
#ifndef GOLDFINCH_BASE_HOST_PORT_H_
#define GOLDFINCH_BASE_HOST_PORT_H_

#include <string>
#include <vector>

namespace goldfinch {

// "127.0.0.1:50051" or "[::1]:50051": an IPv6 address gets brackets unless it has them.
std::string HostPort(const std::string& host, int port);

// The hosts of a list that commas separate, without brackets and spaces around them, each once. Empty ones are left out.
std::vector<std::string> SplitHosts(const std::string& hosts);

}  // namespace goldfinch

#endif  // GOLDFINCH_BASE_HOST_PORT_H_
