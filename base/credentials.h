// TLS from PEM files, for both ends of both gRPC ports.
#ifndef GOLDFINCH_BASE_CREDENTIALS_H_
#define GOLDFINCH_BASE_CREDENTIALS_H_

#include <memory>
#include <string>

#include "absl/status/statusor.h"

namespace grpc {
class ChannelCredentials;
class ServerCredentials;
}  // namespace grpc

namespace goldfinch {

// Paths; empty is none. All empty: plain text.
struct TlsFiles {
  std::string certificate;  // of this end, with the chain that leads to its root
  std::string key;          // of `certificate`, without a password
  std::string roots;        // that the other end's certificate must lead to
};

// Both read the files once. NOT_FOUND, PERMISSION_DENIED or INVALID_ARGUMENT names the file: none there, not PEM of the
// kind, a key that is not the certificate's.

// A server needs `certificate` and `key`. With `roots` it asks clients for a certificate, and takes none without.
absl::StatusOr<std::shared_ptr<grpc::ServerCredentials>> MakeServerCredentials(const TlsFiles& files);
// `certificate` and `key` are for servers that ask. Without `roots`, but with those: the system's roots.
absl::StatusOr<std::shared_ptr<grpc::ChannelCredentials>> MakeChannelCredentials(const TlsFiles& files);

}  // namespace goldfinch

#endif  // GOLDFINCH_BASE_CREDENTIALS_H_
