#include "clients/cli/serve/cluster_setup.h"

#include <string>

#include "absl/status/status.h"
#include "clients/cli/terminal/terminal.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "worker/model/random_model.h"

namespace goldfinch {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

TEST(ClusterSetupTest, AnOpenClusterPortIsRefusedWithTheFlagsThatMendIt) {
  ServeOptions options;
  EXPECT_EQ(CheckClusterPort(options), absl::OkStatus()) << "loopback is the default";
  options.host = "0.0.0.0";
  const absl::Status status = CheckClusterPort(options);
  EXPECT_EQ(ExitCode(status), 2);
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr("--host is 0.0.0.0"), HasSubstr("--cluster-key-file"), HasSubstr("--cluster-root-cert"),
                    HasSubstr("--cluster-host 127.0.0.1"), HasSubstr("--insecure-cluster")));
  ServeOptions tls = options;
  tls.cluster_tls = {.certificate = "c.pem", .key = "k.pem", .roots = ""};
  EXPECT_FALSE(CheckClusterPort(tls).ok()) << "TLS proves nothing about workers";
  tls.cluster_tls.roots = "ca.pem";
  EXPECT_EQ(CheckClusterPort(tls), absl::OkStatus());
  ServeOptions key = options;
  key.cluster_key_file = "cluster.key";
  EXPECT_EQ(CheckClusterPort(key), absl::OkStatus());
  ServeOptions insecure = options;
  insecure.insecure_cluster = true;
  EXPECT_EQ(CheckClusterPort(insecure), absl::OkStatus());
  ServeOptions apart = options;
  apart.cluster_host = "::1";
  EXPECT_EQ(CheckClusterPort(apart), absl::OkStatus()) << "the public port is another matter";
  apart = {};
  apart.cluster_host = "10.0.0.1";
  EXPECT_THAT(std::string(CheckClusterPort(apart).message()), HasSubstr("--cluster-host is 10.0.0.1"));
}

TEST(ClusterSetupTest, TheModelIsDescribedByItsOwnFile) {
  ServeOptions options;
  options.model = testing::TempDir() + "/model.safetensors";
  ASSERT_TRUE(WriteSafetensors(options.model, RandomModel({.layers = {"finch", "finch"}})).ok());
  MembershipOptions membership;
  ASSERT_EQ(DescribeModel(options, &membership), absl::OkStatus());
  ASSERT_TRUE(membership.description.has_value());
  EXPECT_EQ(membership.description->layers_size(), 2);
  const std::string fingerprint = membership.description->fingerprint();
  EXPECT_EQ(fingerprint.size(), 16U);

  options.model_fingerprint = fingerprint;
  EXPECT_EQ(DescribeModel(options, &membership), absl::OkStatus());
  options.model_fingerprint = "0123456789abcdef";
  EXPECT_THAT(std::string(DescribeModel(options, &membership).message()),
              HasSubstr("the fingerprint is " + fingerprint + ", --model-fingerprint is 0123456789abcdef"));

  // The file is on the workers' machines only.
  options.model += ".missing";
  membership = {};
  EXPECT_EQ(DescribeModel(options, &membership), absl::OkStatus());
  EXPECT_FALSE(membership.description.has_value());
  EXPECT_EQ(membership.fingerprint, "0123456789abcdef");
  options.model_fingerprint.clear();
  EXPECT_THAT(std::string(DescribeModel(options, &membership).message()), HasSubstr("--model-fingerprint"));
}

}  // namespace
}  // namespace goldfinch
