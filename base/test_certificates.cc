#include "base/test_certificates.h"

#include <cstdio>
#include <utility>

#include "base/check.h"
#include "openssl/evp.h"
#include "openssl/pem.h"
#include "openssl/x509.h"
#include "openssl/x509v3.h"

namespace goldfinch {
namespace {

constexpr int kDaySeconds = 86400;

void AddExtension(X509* certificate, int kind, const char* value) {
  X509_EXTENSION* extension = X509V3_EXT_conf_nid(nullptr, nullptr, kind, value);
  GF_CHECK(extension != nullptr) << value;
  GF_CHECK(X509_add_ext(certificate, extension, -1) == 1);
  X509_EXTENSION_free(extension);
}

// A certificate for the public half of `key`, not signed yet.
X509* NewCertificate(EVP_PKEY* key, const std::string& name, int64_t serial) {
  X509* certificate = X509_new();
  X509_set_version(certificate, X509_VERSION_3);
  ASN1_INTEGER_set_int64(X509_get_serialNumber(certificate), serial);
  X509_gmtime_adj(X509_getm_notBefore(certificate), -kDaySeconds);
  X509_gmtime_adj(X509_getm_notAfter(certificate), kDaySeconds);
  X509_NAME_add_entry_by_txt(X509_get_subject_name(certificate), "CN", MBSTRING_UTF8,
                             reinterpret_cast<const unsigned char*>(name.c_str()), -1, -1, 0);
  X509_set_pubkey(certificate, key);
  return certificate;
}

template <typename Write>
void WriteFile(const std::string& path, Write write) {
  std::FILE* file = std::fopen(path.c_str(), "w");
  GF_CHECK(file != nullptr) << path;
  GF_CHECK(write(file) == 1) << path;
  GF_CHECK(std::fclose(file) == 0) << path;
}

}  // namespace

struct TestAuthority::Signer {
  ~Signer() {
    X509_free(certificate);
    EVP_PKEY_free(key);
  }

  EVP_PKEY* key = nullptr;
  X509* certificate = nullptr;
};

TestAuthority::TestAuthority(std::string folder, std::string name)
    : folder_(std::move(folder)), roots_(folder_ + "/" + name + ".pem"), signer_(std::make_unique<Signer>()) {
  signer_->key = EVP_EC_gen("P-256");
  signer_->certificate = NewCertificate(signer_->key, name, 1);
  X509_set_issuer_name(signer_->certificate, X509_get_subject_name(signer_->certificate));
  AddExtension(signer_->certificate, NID_basic_constraints, "critical,CA:TRUE");
  GF_CHECK(X509_sign(signer_->certificate, signer_->key, EVP_sha256()) > 0);
  WriteFile(roots_, [&](std::FILE* file) { return PEM_write_X509(file, signer_->certificate); });
}

TestAuthority::~TestAuthority() = default;

TlsFiles TestAuthority::Issue(const std::string& name) const {
  const TlsFiles files = {folder_ + "/" + name + ".pem", folder_ + "/" + name + ".key", roots_};
  EVP_PKEY* key = EVP_EC_gen("P-256");
  X509* certificate = NewCertificate(key, name, 2);
  X509_set_issuer_name(certificate, X509_get_subject_name(signer_->certificate));
  AddExtension(certificate, NID_subject_alt_name, "DNS:localhost,IP:127.0.0.1");
  GF_CHECK(X509_sign(certificate, signer_->key, EVP_sha256()) > 0);
  WriteFile(files.certificate, [&](std::FILE* file) { return PEM_write_X509(file, certificate); });
  WriteFile(files.key,
            [&](std::FILE* file) { return PEM_write_PrivateKey(file, key, nullptr, nullptr, 0, nullptr, nullptr); });
  X509_free(certificate);
  EVP_PKEY_free(key);
  return files;
}

}  // namespace goldfinch
