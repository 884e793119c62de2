// What a front listens on, and what it lets clients do.
#ifndef GOLDFINCH_COORDINATOR_FRONT_FRONT_OPTIONS_H_
#define GOLDFINCH_COORDINATOR_FRONT_FRONT_OPTIONS_H_

#include <cstdint>
#include <string>
#include <vector>

#include "base/credentials.h"

namespace goldfinch {

struct FrontLimits {
  // ---- Connections ----
  // Each takes three descriptors, so a low limit of descriptors lowers this one.
  int connections_max = 4096;
  // The most connections of one address; an IPv6 address counts by its first 64 bits. Loopback is exempt: proxies and
  // load tests on this machine come from one address.
  int connections_per_address_max = 256;

  // ---- Times ----
  double handshake_seconds = 10;  // for TLS and for the first bytes of HTTP/2
  double header_seconds = 10;     // for the rest of a header block, or of any other frame that has begun
  // A request whose message has begun must get `body_progress_bytes` more of it in each such time, or its end. Time in
  // which the client must not send, because the server has no room or does not read, does not count.
  double body_seconds = 30;
  int64_t body_progress_bytes = 16 << 10;

  // ---- HTTP/2 ----
  int64_t header_block_bytes_max = 64 << 10;  // compressed, over HEADERS and CONTINUATION; gRPC itself takes 8 KiB
  int continuations_max = 8;                  // frames of one header block
  int streams_max = 4096;                     // open at a time on one connection

  // ---- Open calls ----
  // A call beyond these is refused, and its connection goes on. Each takes some 20 KB in the server.
  int calls_max = 16384;  // over all connections; at least twice the next one
  // The most of one address, which are counted as its connections are. When fewer are left over all connections, they
  // are the most, so that clients who come later find some. Loopback is exempt.
  int calls_per_address_max = 4096;

  // ---- Bytes of unfinished requests ----
  // What one connection may have sent of messages that are not complete, and of those that have not been looked at. A
  // connection that sends more is closed.
  int64_t connection_bytes_max = int64_t{64} << 20;
  // Over all connections. A message of more than 64 KiB reserves its length first; if there is no room it waits.
  int64_t total_bytes_max = int64_t{256} << 20;
  // When a message has waited so long, the address that holds the most loses its largest connection.
  double patience_seconds = 5;
  // A longer message gets RESOURCE_EXHAUSTED. A prompt of a million ids has 3 MB, a text of as many tokens 5 MB.
  int64_t message_bytes_max = int64_t{16} << 20;
};

struct FrontOptions {
  // Names or addresses, without brackets. "0.0.0.0" is every IPv4 address, "::" every address of both kinds.
  std::vector<std::string> hosts = {"127.0.0.1"};
  int port = 0;       // 0 takes a free port, the same for all hosts
  TlsFiles tls = {};  // without a certificate: plain text
  FrontLimits limits = {};
};

}  // namespace goldfinch

#endif  // GOLDFINCH_COORDINATOR_FRONT_FRONT_OPTIONS_H_
