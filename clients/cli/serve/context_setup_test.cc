#include "clients/cli/serve/context_setup.h"

#include <filesystem>
#include <string>

#include "absl/status/status.h"
#include "clients/cli/terminal/terminal.h"
#include "coordinator/store/store.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace goldfinch {
namespace {

using ::testing::HasSubstr;

std::string EmptyFolder(const std::string& name) {
  const std::string folder = testing::TempDir() + "/" + name;
  std::filesystem::remove_all(folder);
  return folder;
}

TEST(ContextSetupTest, AFolderBelongsToOneServer) {
  ServeOptions options;
  options.context_dir = EmptyFolder("contexts");
  options.context_disk = 1 << 30;
  CoordinatorOptions first, second;
  ASSERT_EQ(OpenContextStore(options, /*embedded=*/true, &first), absl::OkStatus());
  ASSERT_NE(first.store, nullptr);
  EXPECT_TRUE(first.store_tier.durable);
  EXPECT_EQ(first.store->totals().bytes_max, 1 << 30);
  const absl::Status refused = OpenContextStore(options, /*embedded=*/true, &second);
  EXPECT_TRUE(absl::IsFailedPrecondition(refused));
  EXPECT_THAT(std::string(refused.message()), HasSubstr("--context-dir: " + options.context_dir + ": is in use by"));
  first.store.reset();
  EXPECT_EQ(OpenContextStore(options, /*embedded=*/true, &second), absl::OkStatus());
}

TEST(ContextSetupTest, WithoutAFolderWorkersOfTheirOwnAreProtectedInMemory) {
  ServeOptions options;
  CoordinatorOptions embedded, apart, none, off;
  ASSERT_EQ(OpenContextStore(options, /*embedded=*/true, &embedded), absl::OkStatus());
  EXPECT_EQ(embedded.store, nullptr);
  ASSERT_EQ(OpenContextStore(options, /*embedded=*/false, &apart), absl::OkStatus());
  ASSERT_NE(apart.store, nullptr);
  EXPECT_FALSE(apart.store_tier.durable);
  EXPECT_GT(apart.store_tier.bytes_max, 0);
  options.protect_memory = 0;
  ASSERT_EQ(OpenContextStore(options, /*embedded=*/false, &none), absl::OkStatus());
  EXPECT_EQ(none.store, nullptr);
  options = {};
  options.no_prefix_cache = true;
  ASSERT_EQ(OpenContextStore(options, /*embedded=*/false, &off), absl::OkStatus());
  EXPECT_EQ(off.store, nullptr);
}

TEST(ContextSetupTest, FlagsThatMakeNoSenseTogetherAreRefused) {
  CoordinatorOptions coordinator;
  ServeOptions options;
  options.context_disk = 1000;
  EXPECT_EQ(ExitCode(OpenContextStore(options, true, &coordinator)), 2);
  options.context_dir = EmptyFolder("contexts2");
  options.no_prefix_cache = true;
  EXPECT_EQ(ExitCode(OpenContextStore(options, true, &coordinator)), 2);
  options = {};
  options.context_dir = testing::TempDir() + "/there/is/none";
  const absl::Status status = OpenContextStore(options, true, &coordinator);
  EXPECT_TRUE(absl::IsNotFound(status)) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("--context-dir: "));
}

}  // namespace
}  // namespace goldfinch
