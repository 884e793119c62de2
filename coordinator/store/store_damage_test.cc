// Files that something has damaged, and files that someone has made up: no wrong byte is served, and nothing crashes.
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/crc32c.h"
#include "coordinator/store/file_format.h"
#include "coordinator/store/store.h"
#include "coordinator/store/store.pb.h"
#include "coordinator/store/store_test_util.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace goldfinch {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

// About a kilobyte.
TestSegment Small() {
  SegmentSpec segment;
  segment.model = TestContextModel();
  segment.model.vocab_size = 10;
  segment.model.parts = {{0, StatePartKind::kWkv, ElementType::kF32, {1, 4, 4}},
                         {0, StatePartKind::kRows, ElementType::kF16, {4}}};
  segment.end = 5;
  segment.has_snapshot = segment.has_logits = true;
  return MakeTestSegment(segment, 1);
}

class DamageTest : public testing::Test {
 protected:
  DamageTest() {
    const auto store = OpenTestStore(folder_);
    EXPECT_EQ(SaveTestSegment(store.get(), small_), absl::OkStatus());
    good_ = ReadTestFile(path_);
  }

  // What a start and a whole reading make of such a file.
  void ExpectFound(const std::string& bytes) {
    WriteTestFile(path_, bytes);
    const auto store = OpenTestStore(folder_);
    if (store->Find(small_.key)) {
      const auto reader = store->Load(small_.key);
      ASSERT_TRUE(reader.ok()) << reader.status();
      int lost = 0;
      for (size_t i = 0; i < small_.sections.size(); ++i) {
        std::string section(small_.sections[i].size(), '\0');
        const absl::Status status = (*reader)->Read(static_cast<int>(i), 0, absl::MakeSpan(section));
        if (status.ok()) {
          EXPECT_EQ(section, small_.sections[i]) << "a wrong byte is served";
        } else {
          EXPECT_TRUE(absl::IsDataLoss(status)) << status;
          EXPECT_EQ(section, std::string(section.size(), '\0')) << "nothing of it is handed out";
          ++lost;
        }
      }
      EXPECT_GT(lost, 0);
    }
    EXPECT_FALSE(store->Find(small_.key).has_value());
    EXPECT_EQ(store->totals().quarantined_total, 1);
    EXPECT_EQ(store->totals().bytes, BytesIn(folder_));
    EXPECT_TRUE(fs::exists(absl::StrCat(folder_, "/quarantine/", Hex(small_.key), ".segment")));
    EXPECT_TRUE(absl::IsNotFound(store->Load(small_.key).status()));
  }

  const std::string folder_ =
      EmptyTestFolder(absl::StrCat("damage_", testing::UnitTest::GetInstance()->current_test_info()->name()));
  const TestSegment small_ = Small();
  const std::string path_ = absl::StrCat(folder_, "/", Hex(small_.key), ".segment");
  std::string good_;
};

TEST_F(DamageTest, EveryByteThatIsFlippedIsFound) {
  const auto header_bytes = SegmentHeaderBytes(good_.substr(0, kFilePrefixBytes));
  ASSERT_TRUE(header_bytes.ok());
  for (size_t i = 0; i < good_.size(); ++i) {
    if (i >= 8 && i < 12) continue;  // the version: below
    SCOPED_TRACE(absl::StrCat("byte ", i, " of ", good_.size(), ", the header has ", *header_bytes));
    std::string bad = good_;
    bad[i] = static_cast<char>(bad[i] ^ (1 << (i % 8)));
    ASSERT_NO_FATAL_FAILURE(ExpectFound(bad));
  }
}

TEST_F(DamageTest, EveryTruncationIsFoundButThatWhichDropsTheSnapshot) {
  const auto header = DecodeSegmentHeader(good_.substr(0, *SegmentHeaderBytes(good_.substr(0, kFilePrefixBytes))));
  ASSERT_TRUE(header.ok()) << header.status();
  for (size_t size = 0; size < good_.size(); ++size) {
    if (static_cast<int64_t>(size) == header->FileBytes(false)) continue;
    SCOPED_TRACE(size);
    ASSERT_NO_FATAL_FAILURE(ExpectFound(good_.substr(0, size)));
  }
  ExpectFound(good_ + "x");
  WriteTestFile(path_, good_.substr(0, header->FileBytes(false)));
  const auto store = OpenTestStore(folder_);
  ASSERT_TRUE(store->Find(small_.key).has_value());
  EXPECT_FALSE(store->Find(small_.key)->has_snapshot);
  EXPECT_EQ(LoadSections(store.get(), small_.key)->at(1), small_.sections[1]);
}

TEST_F(DamageTest, AFileThatIsCutWhileItIsOpenIsFound) {
  const auto store = OpenTestStore(folder_);
  const auto reader = store->Load(small_.key);
  ASSERT_TRUE(reader.ok());
  fs::resize_file(path_, good_.size() - 1);
  std::string logits(small_.sections.back().size(), '\0');
  const int last = static_cast<int>(small_.sections.size()) - 1;
  EXPECT_TRUE(absl::IsDataLoss((*reader)->Read(last, 0, absl::MakeSpan(logits))));
  char byte = 0;
  EXPECT_TRUE(absl::IsDataLoss((*reader)->Read(0, 0, {&byte, 1}))) << "a segment that was found damaged stays so";
  EXPECT_EQ(store->totals().quarantined_total, 1);
  // It can be saved again, and then an old reader's damage is not the new file's.
  EXPECT_EQ(SaveTestSegment(store.get(), small_), absl::OkStatus());
  EXPECT_EQ(*LoadSections(store.get(), small_.key), small_.sections);
}

TEST_F(DamageTest, AFileThatIsGoneIsNotFound) {
  const auto store = OpenTestStore(folder_);
  fs::remove(path_);
  EXPECT_TRUE(absl::IsNotFound(store->Load(small_.key).status()));
  EXPECT_FALSE(store->Find(small_.key).has_value());
  EXPECT_EQ(store->totals().bytes, 0);
}

TEST_F(DamageTest, AFileOfAnotherVersionIsLeftAlone) {
  std::string newer = good_;
  newer[8] = 2;
  WriteTestFile(path_, newer);
  const auto store = OpenTestStore(folder_);
  EXPECT_THAT(store->Segments(), IsEmpty());
  EXPECT_EQ(store->totals().quarantined_total, 0);
  EXPECT_EQ(store->totals().bytes, BytesIn(folder_)) << "it takes room";
  EXPECT_TRUE(absl::IsFailedPrecondition(SaveTestSegment(store.get(), small_))) << "it is not written over";
  EXPECT_EQ(ReadTestFile(path_), newer);
}

TEST_F(DamageTest, AFileUnderTheNameOfAnotherIsFound) {
  TestSegment other = MakeTestSegment(3);
  fs::rename(path_, absl::StrCat(folder_, "/", Hex(other.key), ".segment"));
  const auto store = OpenTestStore(folder_);
  EXPECT_THAT(store->Segments(), IsEmpty());
  EXPECT_EQ(store->totals().quarantined_total, 1);
}

TEST_F(DamageTest, TheQuarantineKeepsFewFilesAndMakesWay) {
  for (int i = 0; i < 12; ++i) {
    const std::string name(64, static_cast<char>('a' + i % 6));
    WriteTestFile(absl::StrCat(folder_, "/", i, name.substr(2), ".segment"), std::string(1000, 'x'));
  }
  {
    const auto store = OpenTestStore(folder_);
    EXPECT_EQ(store->totals().quarantined_total, 12);
    EXPECT_EQ(store->totals().quarantine_bytes, 8000);
    EXPECT_EQ(store->totals().bytes, BytesIn(folder_));
  }
  const auto store = OpenTestStore(folder_, 2 * static_cast<int64_t>(good_.size()) + 100);
  EXPECT_EQ(store->totals().quarantine_bytes, 8000);
  SegmentSpec next = small_.segment;
  next.name_space = "b";
  ASSERT_EQ(SaveTestSegment(store.get(), MakeTestSegment(next, 1)), absl::OkStatus()) << "its room is needed";
  EXPECT_EQ(store->totals().quarantine_bytes, 0);
  EXPECT_EQ(store->totals().bytes, BytesIn(folder_));
}

TEST_F(DamageTest, EveryByteOfANameThatIsFlippedIsFound) {
  const std::string folder = EmptyTestFolder("damage_names");
  std::string path;
  {
    const auto store = OpenTestStore(folder);
    ContextName name;
    name.name = "document";
    name.position = 5;
    ASSERT_TRUE(store->PutName(name).ok());
    path = folder + "/" + NamesIn(folder).at(0);
  }
  const std::string good = ReadTestFile(path);
  const auto expect_found = [&](const std::string& bytes) {
    WriteTestFile(path, bytes);
    const auto store = OpenTestStore(folder);
    EXPECT_THAT(store->Names(), IsEmpty());
    EXPECT_EQ(store->totals().quarantined_total, 1);
  };
  for (size_t i = 0; i < good.size(); ++i) {
    if (i >= 8 && i < 12) continue;  // another version
    SCOPED_TRACE(i);
    std::string bad = good;
    bad[i] = static_cast<char>(bad[i] ^ (1 << (i % 8)));
    expect_found(bad);
    expect_found(good.substr(0, i));
  }
  WriteTestFile(path, good);
  EXPECT_THAT(OpenTestStore(folder)->Names(), SizeIs(1));
}

// ---- Headers that someone has made up, with the right checksum

class HostileHeaderTest : public testing::Test {
 protected:
  HostileHeaderTest() {
    const auto made = NewSegmentHeader(Small().segment);
    const std::string header = EncodeSegmentHeader(*made);
    prefix_ = header.substr(0, 12);
    count_ = static_cast<uint32_t>(made->checksums.size());
    const size_t fields_bytes = header.size() - kFilePrefixBytes - 4 * count_ - 4;
    EXPECT_TRUE(good_.ParseFromString(header.substr(kFilePrefixBytes, fields_bytes)));
  }

  absl::Status Decode(const std::string& fields, uint32_t checksums) {
    std::string header = prefix_;
    const auto append = [&](uint32_t number) { header.append(reinterpret_cast<const char*>(&number), 4); };
    append(static_cast<uint32_t>(fields.size()));
    append(checksums);
    header += fields;
    for (uint32_t i = 0; i < checksums && i < 100; ++i) append(i);
    append(Crc32c(header));
    return DecodeSegmentHeader(header).status();
  }
  std::string Message(const std::function<void(store::SegmentFields*)>& change) {
    store::SegmentFields fields = good_;
    change(&fields);
    return Decode(fields.SerializeAsString(), count_).ToString();
  }

  std::string prefix_;
  uint32_t count_ = 0;
  store::SegmentFields good_;
};

TEST_F(HostileHeaderTest, NumbersThatCannotBeAreRefused) {
  using Fields = store::SegmentFields;
  constexpr uint64_t kHuge = uint64_t{1} << 63;
  EXPECT_EQ(Message([](Fields*) {}), "OK");
  EXPECT_THAT(Message([](Fields* f) { f->set_end(kHuge); }),
              HasSubstr("DATA_LOSS: a segment's end is -9223372036854775808"));
  EXPECT_THAT(Message([](Fields* f) { f->set_end(uint64_t{1} << 30); }),
              HasSubstr("DATA_LOSS: the sizes in its header"));
  EXPECT_THAT(Message([](Fields* f) { f->set_begin(5); }), HasSubstr("but it has no parent"));
  EXPECT_THAT(Message([](Fields* f) { f->set_gold_position(~uint64_t{0}); }), HasSubstr("gold_position is -1"));
  EXPECT_THAT(Message([](Fields* f) { f->set_vocab_size(kHuge); }), HasSubstr("vocab_size is"));
  EXPECT_THAT(Message([](Fields* f) { f->set_format(2); }), HasSubstr("format is 2"));
  EXPECT_THAT(Message([](Fields* f) { f->set_key("short"); }), HasSubstr("its key has 5 bytes"));
  EXPECT_THAT(Message([](Fields* f) { f->set_parent("short"); }), HasSubstr("its parent's key has 5 bytes"));
  EXPECT_THAT(Message([](Fields* f) { f->set_bytes(f->bytes() + 1); }), HasSubstr("the sizes in its header"));
  EXPECT_THAT(Message([](Fields* f) { f->set_id_type("i32"); }), HasSubstr("the sizes in its header"));
  EXPECT_THAT(Message([](Fields* f) { f->mutable_parts(0)->set_bytes(kHuge); }), HasSubstr("the sizes in its header"));
  EXPECT_THAT(Message([](Fields* f) { f->mutable_parts(0)->set_shape(0, ~uint64_t{0}); }),
              HasSubstr("the shape [-1, 4, 4]"));
  EXPECT_THAT(Message([](Fields* f) { f->mutable_parts(0)->clear_shape(); }), HasSubstr("has 0 numbers in its shape"));
  EXPECT_THAT(Message([](Fields* f) {
                for (int i = 0; i < 60'000; ++i) f->mutable_parts(0)->add_shape(1);
              }),
              HasSubstr("has 60003 numbers in its shape"));
  EXPECT_THAT(Message([](Fields* f) { f->mutable_parts(0)->set_kind("magic"); }), HasSubstr("unknown kind"));
  EXPECT_THAT(Message([](Fields* f) { f->mutable_parts(0)->set_type("f64"); }), HasSubstr("unknown kind or type"));
  EXPECT_THAT(Message([](Fields* f) { f->mutable_parts(0)->set_layer(~uint32_t{0}); }), HasSubstr("unknown kind"));
  EXPECT_THAT(Message([](Fields* f) { f->mutable_parts()->SwapElements(0, 1); }), HasSubstr("parts ascend"));
  EXPECT_THAT(Message([](Fields* f) { *f->add_parts() = f->parts(1); }), HasSubstr("parts ascend"));
  EXPECT_THAT(Message([](Fields* f) {
                while (f->parts_size() <= kContextPartsMax) f->add_parts();
              }),
              HasSubstr("it has 4097 parts"));
}

TEST_F(HostileHeaderTest, SizesOfAHeaderThatCannotBeAreRefused) {
  const std::string fields = good_.SerializeAsString();
  EXPECT_THAT(Decode(fields, count_ + 1).ToString(), HasSubstr("the sizes in its header"));
  EXPECT_THAT(Decode(fields, 0).ToString(), HasSubstr("the sizes in its header"));
  EXPECT_THAT(Decode(fields, ~uint32_t{0}).ToString(), HasSubstr("4294967295 checksums"));
  EXPECT_THAT(Decode(std::string(600 << 10, '\x3a'), 0).ToString(), HasSubstr("614400 bytes of fields"));
  EXPECT_THAT(Decode("\xff\xff\xff", 0).ToString(), HasSubstr("the fields of its header are damaged"));
  EXPECT_THAT(Decode(fields, 50).ToString(), HasSubstr("the sizes in its header"));
  EXPECT_THAT(Decode(fields, 1000).ToString(), HasSubstr("its header has"));
}

}  // namespace
}  // namespace goldfinch
