#include "base/credentials.h"

#include <cerrno>
#include <cstddef>
#include <cstring>
#include <fstream>
#include <iterator>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "grpcpp/security/credentials.h"
#include "grpcpp/security/server_credentials.h"
#include "openssl/bio.h"
#include "openssl/err.h"
#include "openssl/evp.h"
#include "openssl/pem.h"
#include "openssl/x509.h"

namespace goldfinch {
namespace {

constexpr size_t kFileBytesMax = size_t{1} << 20;  // the roots of a system are some 200 KB

template <auto free>
struct Free {
  void operator()(auto* object) const { free(object); }
};
using Bio = std::unique_ptr<BIO, Free<BIO_free_all>>;
using Certificate = std::unique_ptr<X509, Free<X509_free>>;
using Key = std::unique_ptr<EVP_PKEY, Free<EVP_PKEY_free>>;

struct Pem {
  std::string certificate;
  std::string key;
  std::string roots;
};

absl::StatusOr<std::string> ReadFile(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) {
    const int error = errno;
    const std::string message = absl::StrCat(path, ": cannot be read: ", std::strerror(error));
    return error == EACCES ? absl::PermissionDeniedError(message) : absl::NotFoundError(message);
  }
  std::string text(kFileBytesMax + 1, '\0');
  in.read(text.data(), static_cast<std::streamsize>(text.size()));
  if (in.bad()) return absl::DataLossError(absl::StrCat(path, ": cannot be read"));
  text.resize(in.gcount());
  if (text.size() > kFileBytesMax) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": more than ", kFileBytesMax, " bytes"));
  }
  return text;
}

Bio Open(const std::string& text) { return Bio(BIO_new_mem_buf(text.data(), static_cast<int>(text.size()))); }

// OpenSSL would ask for a password on the terminal.
int NoPassword(char*, int, int, void*) { return -1; }

// The first certificate.
absl::StatusOr<Certificate> ParseCertificate(const std::string& path, const std::string& text) {
  Certificate certificate(PEM_read_bio_X509(Open(text).get(), nullptr, NoPassword, nullptr));
  ERR_clear_error();
  if (certificate == nullptr) return absl::InvalidArgumentError(absl::StrCat(path, ": holds no PEM certificate"));
  return certificate;
}

absl::StatusOr<Key> ParseKey(const std::string& path, const std::string& text) {
  Key key(PEM_read_bio_PrivateKey(Open(text).get(), nullptr, NoPassword, nullptr));
  ERR_clear_error();
  if (key == nullptr) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": holds no PEM private key without a password"));
  }
  return key;
}

absl::StatusOr<Pem> ReadPem(const TlsFiles& files) {
  Pem pem;
  if (files.certificate.empty() != files.key.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat(files.certificate.empty() ? files.key : files.certificate, ": ",
                     files.certificate.empty() ? "a key without its certificate" : "a certificate without its key"));
  }
  if (!files.certificate.empty()) {
    GF_ASSIGN_OR_RETURN(pem.certificate, ReadFile(files.certificate));
    GF_ASSIGN_OR_RETURN(pem.key, ReadFile(files.key));
    GF_ASSIGN_OR_RETURN(const Certificate certificate, ParseCertificate(files.certificate, pem.certificate));
    GF_ASSIGN_OR_RETURN(const Key key, ParseKey(files.key, pem.key));
    const bool match = X509_check_private_key(certificate.get(), key.get()) == 1;
    ERR_clear_error();
    if (!match) {
      return absl::InvalidArgumentError(
          absl::StrCat(files.key, ": is not the key of the certificate ", files.certificate));
    }
  }
  if (!files.roots.empty()) {
    GF_ASSIGN_OR_RETURN(pem.roots, ReadFile(files.roots));
    GF_RETURN_IF_ERROR(ParseCertificate(files.roots, pem.roots).status());
  }
  return pem;
}

}  // namespace

absl::StatusOr<std::shared_ptr<grpc::ServerCredentials>> MakeServerCredentials(const TlsFiles& files) {
  GF_ASSIGN_OR_RETURN(Pem pem, ReadPem(files));
  if (pem.certificate.empty() && !pem.roots.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat(files.roots, ": roots for clients' certificates, but the server has no certificate itself"));
  }
  if (pem.certificate.empty()) return grpc::InsecureServerCredentials();
  grpc::SslServerCredentialsOptions options(pem.roots.empty()
                                                ? GRPC_SSL_DONT_REQUEST_CLIENT_CERTIFICATE
                                                : GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY);
  options.pem_root_certs = pem.roots;
  options.pem_key_cert_pairs = {{.private_key = pem.key, .cert_chain = pem.certificate}};
  return grpc::SslServerCredentials(options);
}

absl::StatusOr<std::shared_ptr<grpc::ChannelCredentials>> MakeChannelCredentials(const TlsFiles& files) {
  GF_ASSIGN_OR_RETURN(const Pem pem, ReadPem(files));
  if (pem.certificate.empty() && pem.roots.empty()) return grpc::InsecureChannelCredentials();
  return grpc::SslCredentials(
      {.pem_root_certs = pem.roots, .pem_private_key = pem.key, .pem_cert_chain = pem.certificate});
}

}  // namespace goldfinch
