// The kinds of transports by which rows go between the stages of a group: what all rooms have to know of them.
// worker/transport implements them.
#ifndef GOLDFINCH_BASE_TRANSPORTS_H_
#define GOLDFINCH_BASE_TRANSPORTS_H_

#include <string_view>
#include <vector>

namespace goldfinch {

inline constexpr char kLocalTransport[] = "local";  // within one process
inline constexpr char kTcpTransport[] = "tcp";
inline constexpr char kNcclTransport[] = "nccl";  // between CUDA devices

struct TransportFacts {
  std::string_view name;            // in Register.transport, in flags and in messages
  double assumed_bytes_per_second;  // of a link from one stage to another, until it is measured or given
  // Peers connect to an IP address of the worker, Register.address, so they must be able to reach it.
  bool has_address;
};

inline constexpr TransportFacts kTransports[] = {
    {kLocalTransport, 10e9, false},  // a copy in memory
    {kTcpTransport, 1.25e9, true},   // 10 Gbit/s Ethernet
    {kNcclTransport, 25e9, false},   // a 200 Gbit/s network card for each GPU
};

// Null if there is no transport of this name.
inline const TransportFacts* FindTransport(std::string_view name) {
  for (const TransportFacts& kind : kTransports) {
    if (kind.name == name) return &kind;
  }
  return nullptr;
}

inline std::vector<std::string_view> TransportNames() {
  std::vector<std::string_view> names;
  for (const TransportFacts& kind : kTransports) names.push_back(kind.name);
  return names;
}

}  // namespace goldfinch

#endif  // GOLDFINCH_BASE_TRANSPORTS_H_
