#include "base/shared_key.h"

#include <cstdint>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/small_file.h"
#include "base/status.h"
#include "openssl/crypto.h"
#include "openssl/evp.h"
#include "openssl/hmac.h"
#include "openssl/rand.h"

namespace goldfinch {
namespace {

// The size goes before the text, so that no text can pass for the end of one and the beginning of the next.
void AppendSized(std::string_view text, std::string* out) {
  for (int shift = 0; shift < 64; shift += 8) out->push_back(static_cast<char>(uint64_t{text.size()} >> shift));
  out->append(text);
}

}  // namespace

absl::StatusOr<SharedKey> SharedKey::FromFile(const std::string& path) {
  GF_ASSIGN_OR_RETURN(const std::string text, ReadSmallFile(path, kFileBytesMax));
  const std::string secret(absl::StripAsciiWhitespace(text));
  if (secret.size() < kFileBytesMin) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": the key has ", secret.size(),
                                                   " bytes, it must have at least ", kFileBytesMin,
                                                   "; `openssl rand -hex 32` makes one"));
  }
  return SharedKey(secret);
}

std::string SharedKey::Prove(std::string_view role, std::initializer_list<std::string_view> parts) const {
  std::string message;
  AppendSized(role, &message);
  for (const std::string_view part : parts) AppendSized(part, &message);
  std::string proof(kProofBytes, '\0');
  unsigned int size = 0;
  const unsigned char* const done = HMAC(EVP_sha256(), secret_.data(), static_cast<int>(secret_.size()),
                                         reinterpret_cast<const unsigned char*>(message.data()), message.size(),
                                         reinterpret_cast<unsigned char*>(proof.data()), &size);
  GF_CHECK(done != nullptr && size == kProofBytes);
  return proof;
}

bool SharedKey::Accepts(std::string_view proof, std::string_view role,
                        std::initializer_list<std::string_view> parts) const {
  const std::string expected = Prove(role, parts);
  return proof.size() == expected.size() && CRYPTO_memcmp(proof.data(), expected.data(), expected.size()) == 0;
}

std::string MakeNonce() {
  std::string nonce(SharedKey::kNonceBytes, '\0');
  GF_CHECK(RAND_bytes(reinterpret_cast<unsigned char*>(nonce.data()), static_cast<int>(nonce.size())) == 1);
  return nonce;
}

}  // namespace goldfinch
