// Certificates for tests, made when they are needed.
#ifndef GOLDFINCH_BASE_TEST_CERTIFICATES_H_
#define GOLDFINCH_BASE_TEST_CERTIFICATES_H_

#include <memory>
#include <string>

#include "base/credentials.h"

namespace goldfinch {

// An authority, and what it has signed.
class TestAuthority {
 public:
  // Files are written into `folder`, named after `name`.
  TestAuthority(std::string folder, std::string name);
  ~TestAuthority();
  TestAuthority(const TestAuthority&) = delete;
  TestAuthority& operator=(const TestAuthority&) = delete;

  const std::string& roots() const { return roots_; }
  // A certificate for localhost and 127.0.0.1 with its key, and this authority as roots.
  TlsFiles Issue(const std::string& name) const;

 private:
  struct Signer;

  const std::string folder_;
  const std::string roots_;
  const std::unique_ptr<Signer> signer_;
};

}  // namespace goldfinch

#endif  // GOLDFINCH_BASE_TEST_CERTIFICATES_H_
