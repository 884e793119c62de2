// API keys, which say who may call the public service.
#ifndef GOLDFINCH_COORDINATOR_GRPC_AUTH_H_
#define GOLDFINCH_COORDINATOR_GRPC_AUTH_H_

#include <array>
#include <cstddef>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace grpc {
class ServerContextBase;
}

namespace goldfinch {

// Immutable and thread-safe. Keys are kept as SHA-256 digests, and a comparison looks at all of them in constant time.
class ApiKeys {
 public:
  static constexpr size_t kCharactersMin = 16;
  static constexpr size_t kCharactersMax = 512;

  // The file has one key a line, of printable characters; empty lines and lines that begin with '#' are comments.
  // Errors name the file and the line, never the key.
  static absl::StatusOr<std::unique_ptr<const ApiKeys>> FromFile(const std::string& path);

  bool Has(std::string_view key) const;

 private:
  using Digest = std::array<unsigned char, 32>;

  static Digest DigestOf(std::string_view key);

  std::vector<Digest> digests_;
};

// UNAUTHENTICATED says what is wrong with the call's metadata, which must have `authorization: Bearer KEY`. OK if
// `keys` is null: then everybody may call.
absl::Status Authorize(const ApiKeys* keys, const grpc::ServerContextBase& context);

}  // namespace goldfinch

#endif  // GOLDFINCH_COORDINATOR_GRPC_AUTH_H_
