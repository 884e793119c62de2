#include "clients/cli/serve/file_watch.h"

#include <fstream>
#include <future>
#include <string>

#include "base/mapped_file.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace goldfinch {
namespace {

TEST(FileWatchTest, TellsOfAChangeOnce) {
  const std::string path = testing::TempDir() + "/watched";
  std::ofstream(path) << std::string(10000, 'g');
  const absl::StatusOr<MappedFile> file = MappedFile::Open(path);
  ASSERT_TRUE(file.ok()) << file.status();
  // A text, since ThreadSanitizer does not see the counts of references in abseil. It throws if it is set twice.
  std::promise<std::string> told;
  FileWatch watch(0.01, [&](const absl::Status& status) { told.set_value(status.ToString()); });
  std::ofstream(path, std::ios::app) << "more";
  const std::string status = told.get_future().get();
  EXPECT_THAT(status, testing::StartsWith("DATA_LOSS: "));
  EXPECT_THAT(status, testing::HasSubstr("watched: was changed while it was in use: it has 10004 bytes"));
}

TEST(FileWatchTest, EndsWhereNothingChanges) {
  const FileWatch watch(3600, [](const absl::Status& status) { FAIL() << status; });
}

}  // namespace
}  // namespace goldfinch
