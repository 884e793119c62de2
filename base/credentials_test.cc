#include "base/credentials.h"

#include <fstream>
#include <string>

#include "absl/strings/match.h"
#include "base/test_certificates.h"
#include "gtest/gtest.h"

namespace goldfinch {
namespace {

class CredentialsTest : public testing::Test {
 protected:
  static std::string Write(const std::string& name, const std::string& text) {
    const std::string path = testing::TempDir() + "/" + name;
    std::ofstream(path, std::ios::binary) << text;
    return path;
  }
  // Both ends refuse the files, and say why.
  static void ExpectRefused(const TlsFiles& files, absl::StatusCode code, const std::string& message) {
    for (const absl::Status& status : {MakeServerTls(files).status(), MakeChannelCredentials(files).status()}) {
      EXPECT_EQ(status.code(), code) << status;
      EXPECT_TRUE(absl::StrContains(std::string(status.message()), message)) << status;
    }
  }

  const TestAuthority authority_{testing::TempDir(), "authority"};
  const TlsFiles good_ = authority_.Issue("end");
};

TEST_F(CredentialsTest, NoFilesIsPlainText) {
  EXPECT_TRUE(MakeServerTls({}).ok());
  EXPECT_TRUE(MakeChannelCredentials({}).ok());
}

TEST_F(CredentialsTest, GoodFilesAreTaken) {
  EXPECT_TRUE(MakeServerTls(good_).ok());
  EXPECT_TRUE(MakeServerTls({good_.certificate, good_.key, ""}).ok());
  EXPECT_TRUE(MakeChannelCredentials(good_).ok());
  EXPECT_TRUE(MakeChannelCredentials({"", "", good_.roots}).ok());
  EXPECT_TRUE(MakeChannelCredentials({good_.certificate, good_.key, ""}).ok());
}

TEST_F(CredentialsTest, AFileThatIsNotThere) {
  ExpectRefused({"/nowhere/a.pem", good_.key, ""}, absl::StatusCode::kNotFound, "/nowhere/a.pem: cannot be read");
  ExpectRefused({good_.certificate, "/nowhere/a.key", ""}, absl::StatusCode::kNotFound, "/nowhere/a.key: ");
  ExpectRefused({good_.certificate, good_.key, "/nowhere/r.pem"}, absl::StatusCode::kNotFound, "/nowhere/r.pem: ");
}

TEST_F(CredentialsTest, ADirectoryIsNoFile) { EXPECT_FALSE(MakeChannelCredentials({"", "", testing::TempDir()}).ok()); }

TEST_F(CredentialsTest, NotPem) {
  const std::string text = Write("text.pem", "-----BEGIN CERTIFICATE-----\nnot base64\n-----END CERTIFICATE-----\n");
  ExpectRefused({text, good_.key, ""}, absl::StatusCode::kInvalidArgument, "text.pem: holds no PEM certificate");
  ExpectRefused({good_.certificate, good_.key, text}, absl::StatusCode::kInvalidArgument, "text.pem: holds no");
  // The certificate where the key belongs.
  ExpectRefused({good_.certificate, good_.certificate, ""}, absl::StatusCode::kInvalidArgument,
                "end.pem: holds no PEM private key");
  ExpectRefused({good_.certificate, Write("empty.key", ""), ""}, absl::StatusCode::kInvalidArgument, "empty.key: ");
}

TEST_F(CredentialsTest, AFileThatIsTooLarge) {
  const std::string path = Write("large.pem", std::string((1 << 20) + 1, 'x'));
  ExpectRefused({good_.certificate, good_.key, path}, absl::StatusCode::kInvalidArgument,
                "large.pem: more than 1048576");
}

TEST_F(CredentialsTest, AKeyOfAnotherCertificate) {
  const TlsFiles other = authority_.Issue("other");
  ExpectRefused({good_.certificate, other.key, ""}, absl::StatusCode::kInvalidArgument,
                "other.key: is not the key of the certificate " + good_.certificate);
}

TEST_F(CredentialsTest, FilesThatNeedEachOther) {
  ExpectRefused({good_.certificate, "", ""}, absl::StatusCode::kInvalidArgument, "end.pem: a certificate without its");
  ExpectRefused({"", good_.key, ""}, absl::StatusCode::kInvalidArgument, "end.key: a key without its certificate");
  const absl::Status status = MakeServerTls({"", "", good_.roots}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(absl::StrContains(std::string(status.message()), good_.roots)) << status;
}

}  // namespace
}  // namespace goldfinch
