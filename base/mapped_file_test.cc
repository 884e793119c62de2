#include "base/mapped_file.h"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <string>
#include <string_view>
#include <utility>

#include "absl/status/status.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace goldfinch {
namespace {

using ::testing::HasSubstr;

std::string Path(const std::string& name) { return ::testing::TempDir() + "/" + name; }

void Write(const std::string& path, const std::string& bytes) { std::ofstream(path, std::ios::binary) << bytes; }

TEST(MappedFileTest, ShowsTheBytesOfTheFile) {
  const std::string path = Path("mapped_file_plain");
  Write(path, std::string("gold\0finch", 10));
  absl::StatusOr<MappedFile> file = MappedFile::Open(path);
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ(file->bytes(), std::string_view("gold\0finch", 10));
  MappedFile::WillNeed(file->bytes().substr(3));
}

// How much of the mapping that holds `address` is in this process's memory.
int64_t ResidentKilobytes(const void* address) {
  std::ifstream maps("/proc/self/smaps");
  std::string line;
  bool inside = false;
  while (std::getline(maps, line)) {
    uint64_t begin = 0, end = 0;
    int64_t kilobytes = 0;
    if (std::sscanf(line.c_str(), "%lx-%lx ", &begin, &end) == 2) {
      const auto wanted = reinterpret_cast<uintptr_t>(address);
      inside = begin <= wanted && wanted < end;
    } else if (inside && std::sscanf(line.c_str(), "Rss: %ld kB", &kilobytes) == 1) {
      return kilobytes;
    }
  }
  return -1;
}

TEST(MappedFileTest, WhatIsNotNeededLeavesTheProcess) {
  const std::string path = Path("mapped_file_large");
  Write(path, std::string(1 << 20, 'g'));
  absl::StatusOr<MappedFile> file = MappedFile::Open(path);
  ASSERT_TRUE(file.ok()) << file.status();
  const std::string_view bytes = file->bytes();
  EXPECT_EQ(std::count(bytes.begin(), bytes.end(), 'g'), 1 << 20);
  EXPECT_EQ(ResidentKilobytes(bytes.data()), 1 << 10);
  MappedFile::DontNeed(bytes.substr(0, 3 << 18));
  EXPECT_EQ(ResidentKilobytes(bytes.data()), 1 << 8);
  EXPECT_EQ(std::count(bytes.begin(), bytes.end(), 'g'), 1 << 20) << "and is read again";
}

TEST(MappedFileTest, BytesStayWhenItMoves) {
  const std::string path = Path("mapped_file_moved");
  Write(path, "goldfinch");
  absl::StatusOr<MappedFile> file = MappedFile::Open(path);
  ASSERT_TRUE(file.ok()) << file.status();
  const char* address = file->bytes().data();
  MappedFile moved = *std::move(file);
  EXPECT_EQ(moved.bytes().data(), address);
  EXPECT_EQ(moved.bytes(), "goldfinch");
}

TEST(MappedFileTest, ErrorsNameThePath) {
  const absl::Status missing = MappedFile::Open(Path("no_such_file")).status();
  EXPECT_EQ(missing.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(missing.message(), HasSubstr("no_such_file"));

  const absl::Status directory = MappedFile::Open(::testing::TempDir()).status();
  EXPECT_EQ(directory.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(directory.message(), HasSubstr("is a directory"));

  Write(Path("mapped_file_empty"), "");
  const absl::Status empty = MappedFile::Open(Path("mapped_file_empty")).status();
  EXPECT_EQ(empty.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(empty.message(), HasSubstr("mapped_file_empty: is empty"));

  ASSERT_EQ(mkfifo(Path("mapped_file_pipe").c_str(), 0600), 0);
  EXPECT_THAT(MappedFile::Open(Path("mapped_file_pipe")).status().message(), HasSubstr("is not a regular file"));
  unlink(Path("mapped_file_pipe").c_str());
}

}  // namespace
}  // namespace goldfinch
