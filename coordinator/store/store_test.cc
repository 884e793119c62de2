#include "coordinator/store/store.h"

#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "coordinator/store/segment_reader.h"
#include "coordinator/store/segment_writer.h"
#include "coordinator/store/store_test_util.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace goldfinch {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

class StoreTest : public testing::Test {
 protected:
  void Reopen(int64_t bytes_max = 1 << 30) {
    store_.reset();
    store_ = OpenTestStore(folder_, bytes_max);
  }
  absl::Status Save(const TestSegment& segment) { return SaveTestSegment(store_.get(), segment); }
  // The room that is counted is the room that is taken.
  void ExpectExactRoom() { EXPECT_EQ(store_->totals().bytes, BytesIn(folder_)); }

  const std::string folder_ =
      EmptyTestFolder(absl::StrCat("store_", testing::UnitTest::GetInstance()->current_test_info()->name()));
  std::unique_ptr<SegmentStore> store_ = OpenTestStore(folder_);
};

TEST_F(StoreTest, WhatWasSavedIsReadBackTheSameInPiecesOfAnySize) {
  const TestSegment root = MakeTestSegment(100), child = MakeTestChild(root, 37, 2);
  ASSERT_EQ(Save(root), absl::OkStatus());
  ASSERT_EQ(Save(child), absl::OkStatus());
  for (const bool restarted : {false, true}) {
    if (restarted) Reopen();
    for (const TestSegment* segment : {&root, &child}) {
      for (const size_t piece : {size_t{1}, size_t{13}, size_t{1} << 20}) {
        const auto sections = LoadSections(store_.get(), segment->key, piece);
        ASSERT_TRUE(sections.ok()) << sections.status();
        EXPECT_EQ(*sections, segment->sections);
      }
      const auto reader = store_->Load(segment->key);
      ASSERT_TRUE(reader.ok());
      EXPECT_EQ((*reader)->segment().model, segment->segment.model);
      EXPECT_EQ((*reader)->Verify(), absl::OkStatus());
      std::vector<int32_t> ids(10);
      ASSERT_EQ((*reader)->ReadIds(5, absl::MakeSpan(ids)), absl::OkStatus());
      EXPECT_EQ(ids, std::vector<int32_t>(segment->ids.begin() + 5, segment->ids.begin() + 15));
    }
    const auto stored = store_->Find(child.key);
    ASSERT_TRUE(stored.has_value());
    EXPECT_EQ(stored->parent, root.key);
    EXPECT_EQ(stored->begin, 100);
    EXPECT_EQ(stored->end, 137);
    EXPECT_TRUE(stored->has_snapshot && stored->has_logits);
    EXPECT_EQ(stored->gold_position, 137);
    EXPECT_EQ(*stored->identity, child.segment.model.identity);
    EXPECT_EQ(stored->identity, store_->Find(root.key)->identity) << "equal identities are shared";
    ExpectExactRoom();
  }
}

TEST_F(StoreTest, SectionsOfManyBlocksAreReadAtAnyPlace) {
  SegmentSpec segment;
  segment.model = TestContextModel(ElementType::kF32);
  segment.end = 100'000;  // rows of 3.2 MB
  const TestSegment made = MakeTestSegment(segment, 3);
  ASSERT_EQ(SaveTestSegment(store_.get(), made, 300'001), absl::OkStatus());
  const auto reader = store_->Load(made.key);
  ASSERT_TRUE(reader.ok());
  const std::string& rows = made.sections[1];
  for (const int64_t at : {int64_t{0}, kBlockBytes - 1, kBlockBytes, 2 * kBlockBytes + 5, int64_t{3'199'000}}) {
    std::string bytes(1000, '\0');
    ASSERT_EQ((*reader)->Read(1, at, absl::MakeSpan(bytes)), absl::OkStatus());
    EXPECT_EQ(bytes, rows.substr(at, 1000)) << at;
  }
  std::string bytes(1000, '\0');
  EXPECT_TRUE(absl::IsOutOfRange((*reader)->Read(1, 3'199'001, absl::MakeSpan(bytes))));
}

TEST_F(StoreTest, ADroppedSnapshotFreesItsRoomAndTheRowsStay) {
  const TestSegment segment = MakeTestSegment(100);
  ASSERT_EQ(Save(segment), absl::OkStatus());
  const int64_t before = store_->totals().bytes;
  auto reader = store_->Load(segment.key);
  ASSERT_TRUE(reader.ok());
  ASSERT_EQ(store_->DropSnapshot(segment.key), absl::OkStatus());
  EXPECT_EQ(store_->DropSnapshot(segment.key), absl::OkStatus());
  char byte = 0;
  const int last = static_cast<int>(segment.sections.size()) - 1;
  EXPECT_TRUE(absl::IsNotFound((*reader)->Read(last, 0, {&byte, 1}))) << "of a reader that was open";
  for (const bool restarted : {false, true}) {
    if (restarted) Reopen();
    EXPECT_LT(store_->totals().bytes, before);
    ExpectExactRoom();
    const auto stored = store_->Find(segment.key);
    EXPECT_FALSE(stored->has_snapshot || stored->has_logits);
    const auto sections = LoadSections(store_.get(), segment.key);
    ASSERT_TRUE(sections.ok()) << sections.status();
    EXPECT_THAT(*sections, ElementsAre(segment.sections[0], segment.sections[1]));
    EXPECT_EQ((*store_->Load(segment.key))->Verify(), absl::OkStatus());
  }
  EXPECT_EQ(store_->totals().quarantined_total, 0);
}

TEST_F(StoreTest, ASegmentWithASnapshotTakesThePlaceOfOneWithout) {
  const TestSegment segment = MakeTestSegment(100);
  ASSERT_EQ(Save(segment), absl::OkStatus());
  EXPECT_TRUE(absl::IsAlreadyExists(Save(segment)));
  ASSERT_EQ(store_->DropSnapshot(segment.key), absl::OkStatus());
  ASSERT_EQ(Save(segment), absl::OkStatus());
  EXPECT_TRUE(store_->Find(segment.key)->has_snapshot);
  EXPECT_EQ(*LoadSections(store_.get(), segment.key), segment.sections);
  ExpectExactRoom();
}

TEST_F(StoreTest, KeysTellNamespacesModelsParentsAndStatesApart) {
  const TestSegment segment = MakeTestSegment(10);
  SegmentSpec other = segment.segment;
  other.name_space = "ann";
  const SegmentKey of_namespace = KeyOf(other, segment.ids);
  other = segment.segment;
  other.model.identity.fingerprint = "another";
  const SegmentKey of_model = KeyOf(other, segment.ids);
  EXPECT_NE(of_namespace, segment.key);
  EXPECT_NE(of_model, segment.key);
  EXPECT_NE(of_model, of_namespace);
  other = segment.segment;
  other.begin = 10;
  other.end = 20;
  other.parent = segment.key;
  const SegmentKey of_child = KeyOf(other, segment.ids);
  other.parent = of_model;
  EXPECT_NE(KeyOf(other, segment.ids), of_child);
  // Without a token the snapshot is what is told apart.
  const TestSegment tuned = MakeTestSegment(0, 1), otherwise_tuned = MakeTestSegment(0, 2);
  EXPECT_NE(tuned.key, otherwise_tuned.key);
  ASSERT_EQ(Save(tuned), absl::OkStatus());
  ASSERT_EQ(Save(otherwise_tuned), absl::OkStatus());
  EXPECT_EQ((*store_->Load(tuned.key))->Verify(), absl::OkStatus());
  EXPECT_EQ(*LoadSections(store_.get(), otherwise_tuned.key), otherwise_tuned.sections);
}

TEST_F(StoreTest, WhatIsNotCommittedLeavesNothing) {
  const TestSegment segment = MakeTestSegment(10);
  {
    auto writer = store_->Save(segment.segment, segment.key);
    ASSERT_TRUE(writer.ok());
    EXPECT_TRUE(absl::IsAlreadyExists(store_->Save(segment.segment, segment.key).status())) << "while it is saved";
    ASSERT_EQ((*writer)->AppendIds(segment.ids), absl::OkStatus());
    EXPECT_GT(store_->totals().bytes, 0) << "room is taken when a save begins";
    EXPECT_THAT((*writer)->Commit().status().ToString(), HasSubstr("section 1 of a segment has 160 bytes, of which 0"));
  }
  EXPECT_EQ(store_->totals().bytes, 0);
  EXPECT_THAT(NamesIn(folder_), IsEmpty());
  EXPECT_EQ(Save(segment), absl::OkStatus());
}

TEST_F(StoreTest, BytesThatDoNotBelongAreRefused) {
  const TestSegment segment = MakeTestSegment(10);
  auto writer = store_->Save(segment.segment, MakeTestSegment(10, 2).key);
  ASSERT_TRUE(writer.ok());
  EXPECT_THAT((*writer)->AppendIds({1000}).ToString(),
              HasSubstr("token id 1000 is not in the vocabulary, which has 1000 tokens"));
  EXPECT_TRUE(absl::IsInvalidArgument((*writer)->AppendIds({-1})));
  ASSERT_EQ((*writer)->AppendIds(segment.ids), absl::OkStatus());
  EXPECT_THAT((*writer)->AppendIds({1}).ToString(), HasSubstr("gets 20 + 2 bytes, it has 20"));
  for (size_t i = 1; i < segment.sections.size(); ++i) {
    ASSERT_EQ((*writer)->Append(static_cast<int>(i), segment.sections[i]), absl::OkStatus());
  }
  EXPECT_THAT((*writer)->Commit().status().ToString(), HasSubstr("a segment's ids give the key"));
}

TEST_F(StoreTest, WhatCannotBeASegmentIsRefused) {
  const auto message = [&](auto change) {
    SegmentSpec segment = MakeTestSegment(10).segment;
    change(&segment);
    return store_->Save(segment).status().ToString();
  };
  EXPECT_THAT(message([](SegmentSpec* s) { s->end = -1; }), HasSubstr("end is -1, it must be from 0 to"));
  EXPECT_THAT(message([](SegmentSpec* s) { s->begin = 3; }), HasSubstr("begin is 3, but it has no parent"));
  EXPECT_THAT(message([](SegmentSpec* s) { s->gold_position = 11; }), HasSubstr("gold_position is 11"));
  EXPECT_THAT(message([](SegmentSpec* s) { s->has_snapshot = false; }), HasSubstr("belong to a snapshot"));
  EXPECT_THAT(message([](SegmentSpec* s) { s->model.vocab_size = 0; }), HasSubstr("vocab_size is 0"));
  EXPECT_THAT(message([](SegmentSpec* s) { s->model.parts[0].shape = {-4}; }), HasSubstr("the shape [-4]"));
  EXPECT_THAT(message([](SegmentSpec* s) {
                s->model.parts[0].shape = {int64_t{1} << 33, int64_t{1} << 33};
              }),
              HasSubstr("it must have from 1 to"));
  EXPECT_THAT(message([](SegmentSpec* s) {
                s->model.parts[6].shape = {int64_t{1} << 34};
                s->end = int64_t{1} << 39;
                s->gold_position = 0;
              }),
              HasSubstr("sections have more than"));
  EXPECT_THAT(message([](SegmentSpec* s) { std::swap(s->model.parts[0], s->model.parts[1]); }),
              HasSubstr("parts ascend"));
  EXPECT_THAT(message([](SegmentSpec* s) { s->model.parts[1] = s->model.parts[0]; }), HasSubstr("parts ascend"));
  EXPECT_THAT(message([](SegmentSpec* s) { s->name_space = std::string(257, 'x'); }),
              HasSubstr("namespace has 257 bytes"));
  EXPECT_EQ(store_->totals().bytes, 0);
}

TEST_F(StoreTest, TheLimitIsKeptBeforeAnythingIsWritten) {
  const TestSegment first = MakeTestSegment(100, 1), second = MakeTestSegment(100, 2);
  ASSERT_EQ(Save(first), absl::OkStatus());
  const int64_t bytes = store_->totals().bytes;
  Reopen(2 * bytes - 1);
  const absl::Status full = Save(second);
  EXPECT_TRUE(absl::IsResourceExhausted(full));
  EXPECT_THAT(full.ToString(), HasSubstr(folder_ + ": has no room for"));
  EXPECT_THAT(NamesIn(folder_), SizeIs(1));
  ASSERT_EQ(store_->Delete(first.key), absl::OkStatus());
  EXPECT_TRUE(absl::IsNotFound(store_->Delete(first.key)));
  EXPECT_EQ(Save(second), absl::OkStatus());
  Reopen(2 * bytes);
  EXPECT_EQ(Save(first), absl::OkStatus()) << "the limit is the last byte";
  EXPECT_EQ(store_->totals().bytes, 2 * bytes);
  ExpectExactRoom();
  // A lower limit of a later start takes nothing away.
  Reopen(10);
  EXPECT_THAT(store_->Segments(), SizeIs(2));
  EXPECT_TRUE(absl::IsResourceExhausted(Save(MakeTestSegment(1, 3))));
}

TEST_F(StoreTest, WhenASegmentWasUsedIsKeptOverARestart) {
  const TestSegment segment = MakeTestSegment(10);
  ASSERT_EQ(Save(segment), absl::OkStatus());
  EXPECT_GT(store_->Find(segment.key)->used_unix_seconds, 1'600'000'000);
  store_->Touch(segment.key, 1'234'567'890);
  ASSERT_EQ(store_->DropSnapshot(segment.key), absl::OkStatus());
  EXPECT_EQ(store_->Find(segment.key)->used_unix_seconds, 1'234'567'890);
  Reopen();
  EXPECT_EQ(store_->Find(segment.key)->used_unix_seconds, 1'234'567'890);
}

TEST_F(StoreTest, WhatIsUnfinishedIsSweptAndWhatIsForeignStays) {
  WriteTestFile(folder_ + "/7.partial", "half");
  WriteTestFile(folder_ + "/README", "mine");
  Reopen();
  EXPECT_THAT(NamesIn(folder_), ElementsAre("README"));
  EXPECT_EQ(store_->totals().bytes, 0);
}

TEST_F(StoreTest, ASecondProcessIsRefused) {
  StoreOptions options;
  options.folder = folder_;
  const auto refused = SegmentStore::Open(options).status();
  EXPECT_TRUE(absl::IsFailedPrecondition(refused));
  EXPECT_THAT(refused.ToString(), HasSubstr(absl::StrCat(folder_, ": is in use by process ", getpid(), ";")));
  store_.reset();
  const pid_t child = fork();
  if (child == 0) _exit(SegmentStore::Open(options).ok() ? 0 : 1);
  int status = -1;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
  Reopen();  // the lock ended with the process
}

TEST_F(StoreTest, AFolderThatCannotBeMadeIsAnError) {
  StoreOptions options;
  options.folder = folder_ + "/missing/folder";
  EXPECT_THAT(SegmentStore::Open(options).status().ToString(),
              HasSubstr("NOT_FOUND: " + options.folder + ": cannot be made: No such file"));
  WriteTestFile(folder_ + "/file", "");
  options.folder = folder_ + "/file";
  EXPECT_FALSE(SegmentStore::Open(options).ok());
}

TEST_F(StoreTest, ManyThreadsSaveReadAndDelete) {
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([this, t] {
      for (int i = 0; i < 10; ++i) {
        // Two threads always want the same segment.
        const TestSegment segment = MakeTestSegment(5 + i, t / 2 + 1);
        const absl::Status saved = SaveTestSegment(store_.get(), segment, 500);
        EXPECT_TRUE(saved.ok() || absl::IsAlreadyExists(saved)) << saved;
        const auto sections = LoadSections(store_.get(), segment.key);
        if (sections.ok()) {
          EXPECT_EQ(sections->at(1), segment.sections[1]);
        }
        if (i % 3 == 0) (void)store_->DropSnapshot(segment.key);
        if (i % 2 == 0) (void)store_->Delete(segment.key);
        (void)store_->totals();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(store_->totals().quarantined_total, 0);
  ExpectExactRoom();
}

// ---- Names

ContextName NewName(const std::string& name, const TestSegment& segment) {
  ContextName made;
  made.name = name;
  made.segment = segment.key;
  made.position = segment.segment.end;
  return made;
}

TEST_F(StoreTest, NamesAreKeptOverARestart) {
  const TestSegment segment = MakeTestSegment(10);
  ContextName name = NewName("contract", segment);
  name.pinned = true;
  name.expires_unix_seconds = 2'000'000'000;
  name.keep_seconds = 3600;
  const auto kept = store_->PutName(name);
  ASSERT_TRUE(kept.ok()) << kept.status();
  EXPECT_EQ(kept->revision, 1u);
  EXPECT_NE(kept->id, 0u);
  name.name_space = "ann";
  ASSERT_TRUE(store_->PutName(name).ok()) << "the same name in another namespace";
  ExpectExactRoom();
  Reopen();
  EXPECT_THAT(store_->Names(), SizeIs(2));
  EXPECT_THAT(store_->Names(), testing::Contains(*kept));
  ExpectExactRoom();
  ASSERT_EQ(store_->DeleteName(kept->id), absl::OkStatus());
  EXPECT_TRUE(absl::IsNotFound(store_->DeleteName(kept->id)));
  Reopen();
  EXPECT_THAT(store_->Names(), SizeIs(1));
}

TEST_F(StoreTest, OfTwoChangesToOneRevisionTheSecondIsRefused) {
  const TestSegment segment = MakeTestSegment(10);
  const auto first = store_->PutName(NewName("contract", segment));
  ASSERT_TRUE(first.ok());
  ContextName longer = *first;
  longer.position = 5;
  longer.name = "a longer name than before";
  const auto second = store_->PutName(longer);
  ASSERT_TRUE(second.ok());
  EXPECT_EQ(second->revision, 2u);
  EXPECT_EQ(second->id, first->id);
  const auto late = store_->PutName(*first);
  EXPECT_TRUE(absl::IsAborted(late.status()));
  EXPECT_THAT(late.status().ToString(), HasSubstr("has revision 2, the change was made to revision 1"));
  ExpectExactRoom();
  // The old name is free, the new one is not.
  EXPECT_TRUE(store_->PutName(NewName("contract", segment)).ok());
  EXPECT_TRUE(absl::IsAlreadyExists(store_->PutName(NewName(longer.name, segment)).status()));
  Reopen();
  EXPECT_THAT(store_->Names(), testing::Contains(*second));
  EXPECT_THAT(store_->Names(), SizeIs(2));
}

TEST_F(StoreTest, NamesThatCannotBeAreRefused) {
  const TestSegment segment = MakeTestSegment(10);
  EXPECT_TRUE(absl::IsInvalidArgument(store_->PutName(NewName("", segment)).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(store_->PutName(NewName(std::string(257, 'x'), segment)).status()));
  ContextName unknown = NewName("x", segment);
  unknown.id = 77;
  unknown.revision = 1;
  EXPECT_TRUE(absl::IsNotFound(store_->PutName(unknown).status()));
  ASSERT_TRUE(store_->PutName(NewName(std::string("\xff\0\n", 3), segment)).ok()) << "any bytes are a name";
  Reopen(20);
  EXPECT_THAT(store_->Names(), SizeIs(1));
  EXPECT_TRUE(absl::IsResourceExhausted(store_->PutName(NewName("y", segment)).status()));
}

}  // namespace
}  // namespace goldfinch
