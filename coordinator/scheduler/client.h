// Who sends a request, and what the server allows them. Requests of one client share what the server gives that client.
#ifndef GOLDFINCH_COORDINATOR_SCHEDULER_CLIENT_H_
#define GOLDFINCH_COORDINATOR_SCHEDULER_CLIENT_H_

#include <cstdint>
#include <string>

namespace goldfinch {

// 0 means that there is no limit, except for max_priority.
struct ClientLimits {
  int max_running = 0;            // requests that have been admitted and have not ended
  int max_queued = 0;             // requests that wait
  int64_t tokens_per_minute = 0;  // tokens of prompts and answers together
  int max_priority = 0;           // the highest priority that a request may ask for

  bool operator==(const ClientLimits&) const = default;
};

// Immutable. One object stands for one client: calls with the same API key share it; without keys, calls from the same
// address do.
struct Client {
  std::string name;  // the name of the API key, or the address; for logs and for fairness
  ClientLimits limits;
  // Whose contexts it shares: the name of the API key, which no other client can have; empty without keys.
  std::string name_space = {};

  bool operator==(const Client&) const = default;
};

}  // namespace goldfinch

#endif  // GOLDFINCH_COORDINATOR_SCHEDULER_CLIENT_H_
