// Files that cannot be read are not damaged: a disk, or a permission, that fails at one start may be mended at the
// next one.
#include <cerrno>
#include <set>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "coordinator/store/files.h"
#include "coordinator/store/segment_reader.h"
#include "coordinator/store/store_test_util.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace goldfinch {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::SizeIs;

// Some files cannot be opened, or not be read.
class UnreadableFiles : public Files {
 public:
  int open_error = 0, read_error = 0;
  std::string path;

  absl::StatusOr<OpenFile> OpenToRead(const std::string& opened) override {
    if (open_error != 0 && opened == path) return FileError(open_error, opened, "read");
    return Files::OpenToRead(opened);
  }
  absl::Status Read(const OpenFile& file, int64_t offset, absl::Span<char> bytes) override {
    if (read_error != 0 && file.path() == path) return FileError(read_error, file.path(), "read");
    return Files::Read(file, offset, bytes);
  }
};

class StoreUnreadableTest : public testing::TestWithParam<int> {
 protected:
  StoreUnreadableTest() {
    const auto store = OpenTestStore(folder_);
    EXPECT_EQ(SaveTestSegment(store.get(), first_), absl::OkStatus());
    EXPECT_EQ(SaveTestSegment(store.get(), second_), absl::OkStatus());
    ContextName name;
    name.name = "doc";
    name.segment = first_.key;
    name.position = first_.segment.end;
    EXPECT_TRUE(store->PutName(name).ok());
    files_ = NamesIn(folder_);
    bytes_ = BytesIn(folder_);
  }

  // Nothing is lost, whatever could not be read, and all of it is there at the next start.
  void ExpectWhole() {
    EXPECT_EQ(NamesIn(folder_), files_);
    const auto store = OpenTestStore(folder_);
    EXPECT_THAT(store->Segments(), SizeIs(2));
    EXPECT_THAT(store->Names(), SizeIs(1));
    EXPECT_THAT(store->LeftAlone(), IsEmpty());
    EXPECT_EQ(store->totals().bytes, bytes_);
    EXPECT_EQ(store->totals().quarantined_total, 0);
  }

  const std::string folder_ = EmptyTestFolder("unreadable");
  const TestSegment first_ = MakeTestSegment(5, 1), second_ = MakeTestSegment(6, 2);
  std::vector<std::string> files_;
  int64_t bytes_ = 0;
  UnreadableFiles unreadable_;
};

TEST_P(StoreUnreadableTest, ASegmentIsLeftAlone) {
  for (const bool at_open : {true, false}) {
    unreadable_ = {};
    (at_open ? unreadable_.open_error : unreadable_.read_error) = GetParam();
    unreadable_.path = folder_ + "/" + Hex(first_.key) + ".segment";
    {
      const auto store = OpenTestStore(folder_, 1 << 30, &unreadable_);
      EXPECT_THAT(store->Segments(), SizeIs(1)) << "the others are there";
      EXPECT_THAT(store->Names(), SizeIs(1));
      EXPECT_THAT(store->LeftAlone(), ElementsAre(first_.key));
      EXPECT_EQ(store->totals().quarantined_total, 0);
      EXPECT_TRUE(absl::IsFailedPrecondition(SaveTestSegment(store.get(), first_))) << "and not written over";
    }
    ExpectWhole();
  }
}

TEST_P(StoreUnreadableTest, ANameIsLeftAlone) {
  for (const bool at_open : {true, false}) {
    unreadable_ = {};
    (at_open ? unreadable_.open_error : unreadable_.read_error) = GetParam();
    for (const std::string& file : files_) {
      if (file.ends_with(".context")) unreadable_.path = folder_ + "/" + file;
    }
    {
      const auto store = OpenTestStore(folder_, 1 << 30, &unreadable_);
      EXPECT_THAT(store->Segments(), SizeIs(2));
      EXPECT_THAT(store->Names(), IsEmpty());
    }
    ExpectWhole();
  }
}

TEST_P(StoreUnreadableTest, WhatCannotBeReadLaterIsNotQuarantined) {
  {
    const auto store = OpenTestStore(folder_, 1 << 30, &unreadable_);
    const auto reader = store->Load(first_.key);
    ASSERT_TRUE(reader.ok()) << reader.status();
    unreadable_.path = folder_ + "/" + Hex(first_.key) + ".segment";
    unreadable_.read_error = GetParam();
    char byte = 0;
    const absl::Status status = (*reader)->Read(1, 0, {&byte, 1});
    EXPECT_FALSE(status.ok() || absl::IsDataLoss(status) || absl::IsNotFound(status)) << status;
    EXPECT_FALSE(store->Load(first_.key).ok());
    EXPECT_TRUE(store->Find(first_.key).has_value());
    unreadable_.read_error = 0;
    EXPECT_EQ((*reader)->Read(1, 0, {&byte, 1}), absl::OkStatus()) << "it may be mended";
  }
  ExpectWhole();
}

INSTANTIATE_TEST_SUITE_P(Errors, StoreUnreadableTest, testing::Values(EIO, EACCES, EMFILE),
                         [](const auto& info) { return std::to_string(info.param); });

}  // namespace
}  // namespace goldfinch
