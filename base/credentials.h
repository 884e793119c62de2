// TLS from PEM files, for both ends of both gRPC ports.
#ifndef GOLDFINCH_BASE_CREDENTIALS_H_
#define GOLDFINCH_BASE_CREDENTIALS_H_

#include <memory>
#include <string>

#include "absl/status/statusor.h"

namespace grpc {
class ChannelCredentials;
}

struct ssl_ctx_st;  // SSL_CTX

namespace goldfinch {

// Paths to PEM files. An empty path means "not given"; if all are empty, the connection is not encrypted.
struct TlsFiles {
  std::string certificate;  // of this end, with the chain that leads to its root
  std::string key;          // of `certificate`, without a password
  std::string roots;        // that the other end's certificate must lead to
};

// Both read the files once. NOT_FOUND, PERMISSION_DENIED or INVALID_ARGUMENT names the file: if it is missing, is not
// PEM of the expected kind, or if the key does not match the certificate.

// For servers that speak HTTP/2: TLS 1.2 and 1.3 with forward secrecy. It needs `certificate` and `key`; null if all
// are empty. With `roots` the server asks clients for a certificate, and takes none without.
absl::StatusOr<std::shared_ptr<ssl_ctx_st>> MakeServerTls(const TlsFiles& files);
// `certificate` and `key` are needed only if the server requires a client certificate. If `roots` is empty but they are
// given, the system's roots are used.
absl::StatusOr<std::shared_ptr<grpc::ChannelCredentials>> MakeChannelCredentials(const TlsFiles& files);

}  // namespace goldfinch

#endif  // GOLDFINCH_BASE_CREDENTIALS_H_
