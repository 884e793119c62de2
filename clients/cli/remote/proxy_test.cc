#include "clients/cli/remote/proxy.h"

#include <cstdlib>
#include <string>

#include "gtest/gtest.h"

namespace goldfinch {
namespace {

class ProxyTest : public testing::Test {
 protected:
  ProxyTest() { Unset(); }
  // Other tests of the program must not go through these proxies.
  ~ProxyTest() override { Unset(); }

 private:
  static void Unset() {
    for (const char* name : {"grpc_proxy", "https_proxy", "http_proxy", "no_grpc_proxy", "no_proxy", "NO_PROXY"}) {
      unsetenv(name);
    }
  }
};

TEST_F(ProxyTest, WithoutVariablesThereIsNone) {
  EXPECT_FALSE(ProxyFor("server").has_value());
  setenv("http_proxy", "", 1);
  EXPECT_FALSE(ProxyFor("server").has_value());
}

TEST_F(ProxyTest, LoopbackIsReachedDirectly) {
  setenv("http_proxy", "http://127.0.0.1:9", 1);
  for (const char* host : {"localhost", "127.0.0.1", "127.3.2.1", "::1"}) EXPECT_FALSE(ProxyFor(host).has_value());
  ASSERT_TRUE(ProxyFor("server").has_value());
  EXPECT_EQ(ProxyFor("server")->variable, "http_proxy");
  EXPECT_EQ(ProxyFor("server")->address, "127.0.0.1:9");
}

TEST_F(ProxyTest, TheFirstVariableCounts) {
  setenv("http_proxy", "http://a:1", 1);
  setenv("https_proxy", "http://user:password@b:2/", 1);
  EXPECT_EQ(ProxyFor("server")->variable, "https_proxy");
  EXPECT_EQ(ProxyFor("server")->address, "b:2") << "no password";
  setenv("grpc_proxy", "c:3", 1);
  EXPECT_EQ(ProxyFor("server")->address, "c:3");
}

TEST_F(ProxyTest, Exceptions) {
  setenv("http_proxy", "http://a:1", 1);
  setenv("no_proxy", "10.0.0.7, .example.com,*.svc", 1);
  for (const char* host : {"10.0.0.7", "gpu.example.com", "example.com", "gf.default.svc", "GPU.EXAMPLE.COM"}) {
    EXPECT_FALSE(ProxyFor(host).has_value()) << host;
  }
  for (const char* host : {"10.0.0.8", "example.org", "svc.example.org"})
    EXPECT_TRUE(ProxyFor(host).has_value()) << host;
  setenv("NO_PROXY", "*", 1);
  EXPECT_FALSE(ProxyFor("example.org").has_value());
}

}  // namespace
}  // namespace goldfinch
