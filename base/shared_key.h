// A secret that two ends of a connection share, and proofs of knowing it, which do not reveal it.
#ifndef GOLDFINCH_BASE_SHARED_KEY_H_
#define GOLDFINCH_BASE_SHARED_KEY_H_

#include <cstddef>
#include <initializer_list>
#include <string>
#include <string_view>
#include <utility>

#include "absl/status/statusor.h"

namespace goldfinch {

// Immutable and thread-safe.
//
// How two ends use it: each draws a nonce, sends it, and answers with Prove of its own role and of both nonces. The
// roles differ, so that neither end's proof can be sent back to it; the nonces are new, so that no old proof fits.
class SharedKey {
 public:
  static constexpr size_t kNonceBytes = 32;
  static constexpr size_t kProofBytes = 32;
  // A file with less cannot hold a secret that nobody guesses.
  static constexpr size_t kFileBytesMin = 32;
  static constexpr size_t kFileBytesMax = 4096;

  explicit SharedKey(std::string secret) : secret_(std::move(secret)) {}
  // The secret is the file's content without spaces and line ends around it. NOT_FOUND, PERMISSION_DENIED or
  // INVALID_ARGUMENT names the file, never what it holds.
  static absl::StatusOr<SharedKey> FromFile(const std::string& path);

  // HMAC-SHA256 of the role and the parts. No two different lists have the same proof.
  std::string Prove(std::string_view role, std::initializer_list<std::string_view> parts) const;
  // Whether `proof` is that of Prove. Takes the same time for every proof of the right size.
  bool Accepts(std::string_view proof, std::string_view role, std::initializer_list<std::string_view> parts) const;

 private:
  std::string secret_;
};

// kNonceBytes bytes that nobody can foresee.
std::string MakeNonce();

}  // namespace goldfinch

#endif  // GOLDFINCH_BASE_SHARED_KEY_H_
