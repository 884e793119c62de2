#include "base/mapped_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
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

// How much of the mapping that holds `address` is in this process's memory; -1: there is no such mapping.
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

// A file that was last changed long ago, so that a change has another time however coarse the clock is.
std::string OldFile(const std::string& name, size_t size) {
  const std::string path = Path(name);
  Write(path, std::string(size, 'g'));
  const timespec times[2] = {{1'000'000'000, 0}, {1'000'000'000, 0}};
  EXPECT_EQ(utimensat(AT_FDCWD, path.c_str(), times, 0), 0);
  return path;
}

// Writes into the file and leaves its size as it is.
void Overwrite(const std::string& path, size_t offset) {
  std::fstream file(path, std::ios::binary | std::ios::in | std::ios::out);
  file.seekp(static_cast<std::streamoff>(offset));
  file << "x";
}

TEST(MappedFileTest, AFileThatIsWrittenToIsChanged) {
  const std::string path = OldFile("mapped_file_written", 1 << 20);
  const absl::StatusOr<MappedFile> file = MappedFile::Open(path);
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_TRUE(file->CheckUnchanged().ok());
  EXPECT_TRUE(MappedFile::CheckAllUnchanged().ok());
  Overwrite(path, 1000);
  for (const absl::Status& status : {file->CheckUnchanged(), MappedFile::CheckAllUnchanged()}) {
    EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
    EXPECT_THAT(status.message(), HasSubstr("mapped_file_written: was changed while it was in use: it was written to"));
  }
}

TEST(MappedFileTest, AFileOfAnotherSizeIsChanged) {
  const std::string path = OldFile("mapped_file_resized", 1 << 20);
  const absl::StatusOr<MappedFile> file = MappedFile::Open(path);
  ASSERT_TRUE(file.ok()) << file.status();
  ASSERT_EQ(truncate(path.c_str(), 10), 0);
  EXPECT_THAT(file->CheckUnchanged().message(), HasSubstr("it has 10 bytes and had 1048576"));
  EXPECT_THAT(MappedFile::CheckAllUnchanged().message(), HasSubstr("it has 10 bytes and had 1048576"));
}

TEST(MappedFileTest, SamplesFindAChangeThatHidesItsTime) {
  const std::string path = OldFile("mapped_file_hidden", 1 << 20);
  const absl::StatusOr<MappedFile> file = MappedFile::Open(path);
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_TRUE(MappedFile::CheckAllUnchanged().ok());
  OldFile("mapped_file_hidden", 1 << 20);
  EXPECT_TRUE(file->CheckUnchanged().ok()) << "written again with what it held";
  EXPECT_TRUE(MappedFile::CheckAllUnchanged().ok());
  for (const size_t offset : {size_t{0}, size_t{(1 << 20) - 1}}) {
    Overwrite(path, offset);
    const timespec times[2] = {{1'000'000'000, 0}, {1'000'000'000, 0}};
    ASSERT_EQ(utimensat(AT_FDCWD, path.c_str(), times, 0), 0);
    EXPECT_TRUE(file->CheckUnchanged().ok());
    EXPECT_THAT(MappedFile::CheckAllUnchanged().message(), HasSubstr("its bytes are not those that were read"));
    OldFile("mapped_file_hidden", 1 << 20);
    EXPECT_TRUE(MappedFile::CheckAllUnchanged().ok());
  }
}

TEST(MappedFileTest, AFileThatIsReplacedOrRenamedOrDeletedIsNotChanged) {
  const std::string path = OldFile("mapped_file_replaced", 1 << 16);
  {
    const absl::StatusOr<MappedFile> file = MappedFile::Open(path);
    ASSERT_TRUE(file.ok()) << file.status();
    EXPECT_TRUE(MappedFile::CheckAllUnchanged().ok());
    Write(Path("mapped_file_new"), "new");
    ASSERT_EQ(chmod(path.c_str(), 0600), 0);
    ASSERT_EQ(link(path.c_str(), Path("mapped_file_link").c_str()), 0);
    ASSERT_EQ(unlink(Path("mapped_file_link").c_str()), 0);
    ASSERT_EQ(rename(Path("mapped_file_new").c_str(), path.c_str()), 0);
    EXPECT_TRUE(file->CheckUnchanged().ok());
    ASSERT_EQ(unlink(path.c_str()), 0);
    EXPECT_TRUE(file->CheckUnchanged().ok());
    EXPECT_TRUE(MappedFile::CheckAllUnchanged().ok());
  }
  EXPECT_TRUE(MappedFile::CheckAllUnchanged().ok()) << "it is no longer mapped";
}

TEST(MappedFileDeathTest, AFaultNamesTheFileAndTheCause) {
  testing::FLAGS_gtest_death_test_style = "threadsafe";
  const std::string path = OldFile("mapped_file_cut\x1b", 1 << 14);
  const auto read_behind_the_end = [&] {
    MappedFile::ReportFaults();
    const absl::StatusOr<MappedFile> file = MappedFile::Open(path);
    if (!file.ok() || truncate(path.c_str(), 10) != 0) return;
    const volatile char* byte = file->bytes().data() + 8192;
    [[maybe_unused]] const char read = *byte;
  };
  EXPECT_EXIT(read_behind_the_end(), testing::KilledBySignal(SIGBUS),
              "goldfinch: .*mapped_file_cut.x1b: cannot be read at byte 8192: it was cut short while it was in use, "
              "to 10 bytes from 16384.* This process ends\n");
}

TEST(MappedFileDeathTest, AnotherFaultEndsTheProcessAsBefore) {
  testing::FLAGS_gtest_death_test_style = "threadsafe";
  const auto be_sent_one = [] {
    MappedFile::ReportFaults();
    raise(SIGBUS);
  };
  EXPECT_EXIT(be_sent_one(), testing::KilledBySignal(SIGBUS), "^$");
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
