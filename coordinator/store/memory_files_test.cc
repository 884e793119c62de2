#include "coordinator/store/memory_files.h"

#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "coordinator/store/segment_reader.h"
#include "coordinator/store/segment_writer.h"
#include "coordinator/store/store.h"
#include "coordinator/store/store_test_util.h"
#include "gtest/gtest.h"

namespace goldfinch {
namespace {

TEST(MemoryFilesTest, AFileKeepsWhatWasWrittenOverItsBlocks) {
  MemoryFiles files;
  const auto file = files.Create("f/a");
  ASSERT_TRUE(file.ok());
  EXPECT_TRUE(absl::IsAlreadyExists(files.Create("f/a").status()));
  std::string bytes(600'000, 'x');
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<char>(i * 7);
  ASSERT_TRUE(files.Write(*file, 1000, bytes).ok());
  std::string read(bytes.size() + 1000, '?');
  ASSERT_TRUE(files.Read(*file, 0, absl::MakeSpan(read)).ok());
  EXPECT_EQ(read, std::string(1000, '\0') + bytes);
  EXPECT_TRUE(absl::IsDataLoss(files.Read(*file, 1, absl::MakeSpan(read)))) << "it ends before";

  ASSERT_TRUE(files.Truncate(*file, 300'000).ok());
  ASSERT_TRUE(files.Truncate(*file, 301'000).ok());
  std::string tail(2000, '?');
  ASSERT_TRUE(files.Read(*file, 299'000, absl::MakeSpan(tail)).ok());
  EXPECT_EQ(tail, bytes.substr(298'000, 1000) + std::string(1000, '\0'));

  ASSERT_TRUE(files.Rename("f/a", "f/b").ok());
  EXPECT_TRUE(absl::IsNotFound(files.OpenToRead("f/a").status()));
  const auto again = files.OpenToRead("f/b");
  ASSERT_TRUE(again.ok());
  ASSERT_TRUE(files.Remove("f/b").ok());
  EXPECT_EQ(files.StateOf(*again)->bytes, 301'000) << "who has it open can go on";
}

TEST(MemoryFilesTest, AStoreInMemoryIsAsOneOnDisk) {
  MemoryFiles files;
  const auto store = OpenTestStore("memory", 1 << 20, &files);
  const TestSegment parent = MakeTestSegment(70), child = MakeTestChild(parent, 20, 2);
  ASSERT_TRUE(SaveTestSegment(store.get(), parent).ok());
  ASSERT_TRUE(SaveTestSegment(store.get(), child).ok());
  EXPECT_EQ(LoadSections(store.get(), parent.key).value(), parent.sections);
  EXPECT_EQ(LoadSections(store.get(), child.key).value(), child.sections);

  const int64_t before = store->totals().bytes;
  ASSERT_TRUE(store->DropSnapshot(parent.key).ok());
  EXPECT_LT(store->totals().bytes, before);
  EXPECT_FALSE(store->Find(parent.key)->has_snapshot);
  EXPECT_EQ((*store->Load(parent.key))->Verify(), absl::OkStatus());
  store->Touch(child.key, 1234);
  EXPECT_EQ(store->Find(child.key)->used_unix_seconds, 1234);
  for (const TestSegment& one : {child, parent}) ASSERT_TRUE(store->Delete(one.key).ok());
  EXPECT_EQ(store->totals().bytes, 0);
  EXPECT_TRUE(files.NamesIn("memory")->empty());
}

TEST(MemoryFilesTest, AFullStoreSaysSo) {
  MemoryFiles files;
  const auto store = OpenTestStore("memory", 1000, &files);
  EXPECT_TRUE(absl::IsResourceExhausted(SaveTestSegment(store.get(), MakeTestSegment(200))));
  EXPECT_EQ(store->totals().bytes, 0);
  EXPECT_TRUE(files.NamesIn("memory")->empty());
}

}  // namespace
}  // namespace goldfinch
