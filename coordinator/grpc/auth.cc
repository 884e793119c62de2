#include "coordinator/grpc/auth.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "grpcpp/server_context.h"
#include "openssl/crypto.h"
#include "openssl/evp.h"

namespace goldfinch {
namespace {

constexpr std::string_view kScheme = "Bearer ";

absl::Status CheckKey(std::string_view key, const std::string& where) {
  if (key.size() < ApiKeys::kCharactersMin || key.size() > ApiKeys::kCharactersMax) {
    return absl::InvalidArgumentError(absl::StrCat(where, ": the key has ", key.size(), " characters, the limits are ",
                                                   ApiKeys::kCharactersMin, " and ", ApiKeys::kCharactersMax));
  }
  const auto bad = std::find_if(key.begin(), key.end(), [](char c) { return !absl::ascii_isgraph(c); });
  if (bad == key.end()) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(where, ": character ", bad - key.begin() + 1, " of the key is a space or is not printable ASCII"));
}

}  // namespace

ApiKeys::Digest ApiKeys::DigestOf(std::string_view key) {
  Digest digest;
  unsigned int size = 0;
  GF_CHECK(EVP_Digest(key.data(), key.size(), digest.data(), &size, EVP_sha256(), nullptr) == 1);
  GF_CHECK_EQ(size, digest.size());
  return digest;
}

absl::StatusOr<std::unique_ptr<const ApiKeys>> ApiKeys::FromFile(const std::string& path) {
  std::ifstream in(path);
  if (!in) return absl::NotFoundError(absl::StrCat(path, ": cannot be read: ", std::strerror(errno)));
  auto keys = std::make_unique<ApiKeys>();
  std::string line;
  for (int number = 1; std::getline(in, line); ++number) {
    const std::string key(absl::StripAsciiWhitespace(line));
    if (key.empty() || key[0] == '#') continue;
    if (absl::Status status = CheckKey(key, absl::StrCat(path, ":", number)); !status.ok()) return status;
    keys->digests_.push_back(DigestOf(key));
  }
  if (in.bad()) return absl::DataLossError(absl::StrCat(path, ": cannot be read"));
  if (keys->digests_.empty()) return absl::InvalidArgumentError(absl::StrCat(path, ": holds no key"));
  return keys;
}

bool ApiKeys::Has(std::string_view key) const {
  const Digest digest = DigestOf(key);
  bool found = false;
  for (const Digest& known : digests_) found |= CRYPTO_memcmp(known.data(), digest.data(), digest.size()) == 0;
  return found;
}

absl::Status Authorize(const ApiKeys* keys, const grpc::ServerContextBase& context) {
  if (keys == nullptr) return absl::OkStatus();
  const auto entry = context.client_metadata().find("authorization");
  if (entry == context.client_metadata().end()) {
    return absl::UnauthenticatedError("no API key: the metadata `authorization: Bearer KEY` is missing");
  }
  const std::string_view value(entry->second.data(), entry->second.size());
  if (value.size() < kScheme.size() ||
      !absl::EqualsIgnoreCase(std::string(value.substr(0, kScheme.size())), std::string(kScheme))) {
    return absl::UnauthenticatedError("the metadata `authorization` is not of the form `Bearer KEY`");
  }
  if (!keys->Has(value.substr(kScheme.size()))) return absl::UnauthenticatedError("the API key is not known");
  return absl::OkStatus();
}

}  // namespace goldfinch
