#include "base/credentials.h"

#include <cstddef>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/small_file.h"
#include "base/status.h"
#include "grpcpp/security/credentials.h"
#include "openssl/bio.h"
#include "openssl/err.h"
#include "openssl/evp.h"
#include "openssl/pem.h"
#include "openssl/ssl.h"
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
    GF_ASSIGN_OR_RETURN(pem.certificate, ReadSmallFile(files.certificate, kFileBytesMax));
    GF_ASSIGN_OR_RETURN(pem.key, ReadSmallFile(files.key, kFileBytesMax));
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
    GF_ASSIGN_OR_RETURN(pem.roots, ReadSmallFile(files.roots, kFileBytesMax));
    GF_RETURN_IF_ERROR(ParseCertificate(files.roots, pem.roots).status());
  }
  return pem;
}

// Every certificate of the text.
absl::StatusOr<std::vector<Certificate>> ParseCertificates(const std::string& path, const std::string& text) {
  std::vector<Certificate> certificates;
  const Bio in = Open(text);
  while (true) {
    Certificate next(PEM_read_bio_X509(in.get(), nullptr, NoPassword, nullptr));
    if (next == nullptr) break;
    certificates.push_back(std::move(next));
  }
  // What follows the last one must be no broken certificate.
  const bool at_end = ERR_GET_REASON(ERR_peek_last_error()) == PEM_R_NO_START_LINE;
  ERR_clear_error();
  if (certificates.empty() || !at_end) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": holds no PEM certificate, or a broken one"));
  }
  return certificates;
}

// The client's list of protocols is a list of lengths and names.
int ChooseHttp2(SSL*, const unsigned char** chosen, unsigned char* length, const unsigned char* offered,
                unsigned int size, void*) {
  static constexpr unsigned char kHttp2[] = {2, 'h', '2'};
  unsigned char* result = nullptr;
  if (SSL_select_next_proto(&result, length, kHttp2, sizeof(kHttp2), offered, size) != OPENSSL_NPN_NEGOTIATED) {
    return SSL_TLSEXT_ERR_ALERT_FATAL;
  }
  *chosen = result;
  return SSL_TLSEXT_ERR_OK;
}

void SetServerRules(SSL_CTX* context) {
  SSL_CTX_set_min_proto_version(context, TLS1_2_VERSION);
  SSL_CTX_set_cipher_list(context, "ECDHE+AESGCM:ECDHE+CHACHA20");
  // No sessions: certificates are looked at for every connection, and a renewed one counts at once.
  SSL_CTX_set_session_cache_mode(context, SSL_SESS_CACHE_OFF);
  SSL_CTX_set_options(context, SSL_OP_NO_TICKET | SSL_OP_NO_RENEGOTIATION | SSL_OP_NO_COMPRESSION |
                                   SSL_OP_CIPHER_SERVER_PREFERENCE | SSL_OP_PRIORITIZE_CHACHA);
  SSL_CTX_set_alpn_select_cb(context, ChooseHttp2, nullptr);
}

absl::Status UseCertificate(const TlsFiles& files, const Pem& pem, SSL_CTX* context) {
  GF_ASSIGN_OR_RETURN(const std::vector<Certificate> chain, ParseCertificates(files.certificate, pem.certificate));
  GF_ASSIGN_OR_RETURN(const Key key, ParseKey(files.key, pem.key));
  bool good = SSL_CTX_use_certificate(context, chain[0].get()) == 1;
  for (size_t i = 1; i < chain.size() && good; ++i) good = SSL_CTX_add1_chain_cert(context, chain[i].get()) == 1;
  good = good && SSL_CTX_use_PrivateKey(context, key.get()) == 1;
  ERR_clear_error();
  if (good) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(files.certificate, ": OpenSSL does not accept it, or its key"));
}

absl::Status RequireClientCertificates(const TlsFiles& files, const Pem& pem, SSL_CTX* context) {
  GF_ASSIGN_OR_RETURN(const std::vector<Certificate> roots, ParseCertificates(files.roots, pem.roots));
  for (const Certificate& root : roots) {
    X509_STORE_add_cert(SSL_CTX_get_cert_store(context), root.get());
    SSL_CTX_add_client_CA(context, root.get());
  }
  ERR_clear_error();
  SSL_CTX_set_verify(context, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, nullptr);
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::shared_ptr<SSL_CTX>> MakeServerTls(const TlsFiles& files) {
  GF_ASSIGN_OR_RETURN(const Pem pem, ReadPem(files));
  if (pem.certificate.empty() && !pem.roots.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat(files.roots, ": roots for clients' certificates, but the server has no certificate itself"));
  }
  if (pem.certificate.empty()) return nullptr;
  std::shared_ptr<SSL_CTX> context(SSL_CTX_new(TLS_server_method()), SSL_CTX_free);
  if (context == nullptr) return absl::InternalError("TLS cannot be set up");
  SetServerRules(context.get());
  GF_RETURN_IF_ERROR(UseCertificate(files, pem, context.get()));
  if (!pem.roots.empty()) GF_RETURN_IF_ERROR(RequireClientCertificates(files, pem, context.get()));
  return context;
}

absl::StatusOr<std::shared_ptr<grpc::ChannelCredentials>> MakeChannelCredentials(const TlsFiles& files) {
  GF_ASSIGN_OR_RETURN(const Pem pem, ReadPem(files));
  if (pem.certificate.empty() && pem.roots.empty()) return grpc::InsecureChannelCredentials();
  return grpc::SslCredentials(
      {.pem_root_certs = pem.roots, .pem_private_key = pem.key, .pem_cert_chain = pem.certificate});
}

}  // namespace goldfinch
