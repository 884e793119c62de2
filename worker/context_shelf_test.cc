#include "worker/context_shelf.h"

#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "base/crc32c.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/cpu/cpu_backend.h"
#include "worker/model/fake_device.h"

namespace goldfinch {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using Code = absl::StatusCode;

constexpr int64_t kBytes = 64 << 10, kVocab = 40, kPositionsMax = 1000;

const StatePart kShift{2, StatePartKind::kTimeShift, DType::kF32, {8}};
const StatePart kIds{2, StatePartKind::kIds, DType::kU16, {}};
const StatePart kRows{2, StatePartKind::kRows, DType::kBf16, {4}};
const StatePart kKeys{1, StatePartKind::kKeys, DType::kF16, {4}};
const StatePart kLogits{3, StatePartKind::kLogits, DType::kF32, {kVocab}};
// Another stage's.
const StatePart kInt8Rows{2, StatePartKind::kRows, DType::kInt8, {6}};

class ContextShelfTest : public testing::Test {
 public:
  void SetUp() override { shelf = Make(kBytes, {kKeys, kShift, kIds, kRows, kLogits}); }

  std::unique_ptr<ContextShelf> Make(int64_t bytes, std::vector<StatePart> parts) {
    auto made = ContextShelf::Create(device, bytes);
    EXPECT_TRUE(made.ok()) << made.status();
    (*made)->SetParts({std::move(parts), kVocab, kPositionsMax});
    return *std::move(made);
  }

  // Saves zeros.
  absl::Status Save(uint64_t number, int64_t begin, int64_t end, int64_t gold_position = 0, bool logits = false) {
    return shelf->Save(number, begin, end, gold_position, logits, [&](const SavedSegment& to) {
      saved_parts = to.parts.size();
      for (const auto& part : to.parts) {
        part->ForEachRange(0, part->bytes(), [](char* data, int64_t bytes) { std::memset(data, 0, bytes); });
      }
      return device.queue().Record();
    });
  }

  // The one piece of a part of segment 7, of the positions [10, 20).
  static PartPiece Piece(const StatePart& part, std::string_view bytes) {
    return {.segment = 7,
            .part = part,
            .begin = 10,
            .end = 20,
            .gold_position = 0,
            .offset = 0,
            .bytes = bytes,
            .crc32c = Crc32c(bytes)};
  }
  absl::Status PutWhole(const StatePart& part, std::string_view bytes) { return shelf->Put(Piece(part, bytes)); }

  FakeDevice device{MakeCpuBackend(/*threads=*/1)};
  std::unique_ptr<ContextShelf> shelf;
  size_t saved_parts = 0;  // by the last Save
};

std::string BytesOf(const SavedPart& part) {
  std::string bytes;
  part.ForEachRange(0, part.bytes(), [&](const char* data, int64_t count) { bytes.append(data, count); });
  return bytes;
}

TEST_F(ContextShelfTest, SegmentsAreSavedUntilTheShelfIsFullAndFreedByDrops) {
  uint64_t number = 0;
  absl::Status full;
  while ((full = Save(number, 0, 100)).ok()) ASSERT_LT(++number, 1000u);
  EXPECT_EQ(full.code(), Code::kResourceExhausted);
  EXPECT_THAT(std::string(full.message()), AllOf(HasSubstr("no room for"), HasSubstr("of 65536 bytes")));
  EXPECT_EQ(number, kBytes / (100 * (8 + 8 + 2) + 32 + 4 * 512 + 4 * 32)) << "all of it is used, but for the rounding";
  EXPECT_EQ(shelf->Find(number).status().code(), Code::kNotFound) << "what was not saved is not there";
  shelf->Drop(3);
  shelf->Drop(77);
  EXPECT_EQ(shelf->Find(3).status().code(), Code::kNotFound);
  EXPECT_TRUE(Save(number, 0, 100).ok());
  for (uint64_t i = 0; i <= number; ++i) shelf->Drop(i);
  EXPECT_EQ(shelf->used_bytes(), 0);
}

// Whatever the order in which memory is freed, it is one again at the end.
TEST_F(ContextShelfTest, MemoryInRangesHoldsWhatFits) {
  shelf->SetParts({{kKeys, kShift, kIds, kRows}, kVocab, /*max_sequence_tokens=*/10000});
  for (uint64_t i = 0; i < 20; ++i) ASSERT_TRUE(Save(i, 0, 17 + 3 * static_cast<int64_t>(i)).ok());
  for (uint64_t i = 0; i < 20; i += 2) shelf->Drop(i);
  const int64_t free = kBytes - shelf->used_bytes();
  // More than any gap has.
  const int64_t tokens = (free - 4 * 600) / 18 - 8;
  ASSERT_GT(tokens, 200);
  std::string rows(tokens * 8, '\x3D');
  std::memset(rows.data() + 100, 1, 50);
  ASSERT_TRUE(Save(100, 0, tokens).ok());
  shelf->Drop(100);
  PartPiece piece = Piece(kRows, rows);
  piece.segment = 50;
  piece.begin = 0;
  piece.end = tokens;
  ASSERT_TRUE(shelf->Put(piece).ok());
  EXPECT_EQ(BytesOf(*shelf->Find(50)->Find(2, StatePartKind::kRows)), rows);
  for (const uint64_t i : {7, 1, 19, 3, 50, 17, 5, 15, 13, 11, 9}) shelf->Drop(i);
  EXPECT_EQ(shelf->used_bytes(), 0);
  EXPECT_TRUE(Save(1, 0, 1000).ok());
}

TEST_F(ContextShelfTest, SnapshotsComeAndGoAndRowsStay) {
  ASSERT_TRUE(Save(7, 10, 20, 20, /*logits=*/true).ok());
  EXPECT_EQ(saved_parts, 5u);
  shelf->DropSnapshot(7);
  EXPECT_EQ(shelf->Find(7)->parts.size(), 3u);
  EXPECT_EQ(shelf->Find(7)->Find(2, StatePartKind::kTimeShift), nullptr);
  EXPECT_EQ(shelf->Find(7)->gold_position, 0);
  ASSERT_TRUE(Save(7, 10, 20, 19).ok());
  EXPECT_EQ(saved_parts, 1u) << "rows that are there are not saved again";
  EXPECT_EQ(shelf->Find(7)->gold_position, 19);
  ASSERT_TRUE(Save(7, 9, 20).ok());
  EXPECT_EQ(shelf->Find(7)->begin, 9) << "what came late of a segment that was dropped gives way";
  EXPECT_EQ(saved_parts, 4u);
  shelf->SetParts({{kShift}, kVocab, kPositionsMax});
  ASSERT_TRUE(Save(8, 0, 0).ok());
  shelf->DropSnapshot(8);
  EXPECT_FALSE(shelf->Find(8).ok()) << "nothing is left of it";
}

// What the device still copies to or from is not given to others, and nobody waits for it.
TEST_F(ContextShelfTest, MemoryIsHeldUntilCopiesAreDone) {
  device.HoldMarks(true);
  ASSERT_TRUE(Save(1, 0, 100).ok());
  const int64_t used = shelf->used_bytes();
  shelf->Drop(1);
  EXPECT_EQ(shelf->used_bytes(), used);
  device.HoldMarks(false);
  EXPECT_EQ(shelf->used_bytes(), 0);

  ASSERT_TRUE(Save(2, 0, 100).ok());
  device.HoldMarks(true);
  size_t segments = 0;
  ASSERT_TRUE(shelf
                  ->Restore({2},
                            [&](absl::Span<const SavedSegment* const> chain) {
                              segments = chain.size();
                              return absl::StatusOr<std::shared_ptr<const Mark>>(device.queue().Record());
                            })
                  .ok());
  EXPECT_EQ(segments, 1u);
  shelf->Drop(2);
  EXPECT_GT(shelf->used_bytes(), 0);
  device.HoldMarks(false);
  EXPECT_EQ(shelf->used_bytes(), 0);
  const absl::Status gone = shelf->Restore(
      {2}, [](auto) -> absl::StatusOr<std::shared_ptr<const Mark>> { return absl::InternalError("not called"); });
  EXPECT_EQ(gone.code(), Code::kNotFound);
  EXPECT_THAT(std::string(gone.message()), HasSubstr("segment 2"));
}

TEST_F(ContextShelfTest, WhoIsGoneDoesNotWaitForTheDevice) {
  device.HoldMarks(true);
  ASSERT_TRUE(Save(1, 0, 100).ok());
  const auto segment = shelf->Find(1);
  int asked = 0;
  const absl::Status status = shelf->Await(*segment->parts[0], [&] { return ++asked < 3; });
  EXPECT_EQ(status.code(), Code::kCancelled);
  EXPECT_EQ(asked, 3);
  device.HoldMarks(false);
  EXPECT_TRUE(shelf->Await(*segment->parts[0], [] { return false; }).ok());
}

// A device has an event for every mark that is held.
TEST_F(ContextShelfTest, MarksAreGivenBackWhenCopiesAreDone) {
  device.HoldMarks(true);
  std::weak_ptr<const Mark> saving;
  ASSERT_TRUE(shelf
                  ->Save(1, 0, 100, /*gold_position=*/0, /*logits=*/false,
                         [&](const SavedSegment&) {
                           std::shared_ptr<const Mark> mark = device.queue().Record();
                           saving = mark;
                           return mark;
                         })
                  .ok());
  const absl::StatusOr<SavedSegment> segment = shelf->Find(1);
  ASSERT_TRUE(segment.ok());
  EXPECT_GT(shelf->used_bytes(), 0);
  EXPECT_EQ(segment->parts[0]->Pending(), saving.lock()) << "as long as the copies are under way";
  EXPECT_FALSE(saving.expired());
  device.HoldMarks(false);
  EXPECT_GT(shelf->used_bytes(), 0);
  EXPECT_TRUE(saving.expired()) << "though the segment stays";
  EXPECT_EQ(segment->parts[0]->Pending(), nullptr);
  EXPECT_TRUE(shelf->Await(*segment->parts[0], [] { return false; }).ok());
}

TEST_F(ContextShelfTest, WhatIsPutInPiecesIsThereWhenItIsWhole) {
  const std::string rows(80, '\x3E');
  PartPiece piece = Piece(kRows, {});
  for (const int64_t size : {1, 63, 9, 7}) {
    piece.bytes = std::string_view(rows).substr(piece.offset, size);
    piece.crc32c.reset();
    if (piece.offset + size == 80) piece.crc32c = Crc32c(rows);
    ASSERT_TRUE(shelf->Put(piece).ok()) << piece.offset;
    EXPECT_EQ(shelf->Find(7).ok(), piece.offset + size == 80);
    piece.offset += size;
  }
  EXPECT_EQ(BytesOf(*shelf->Find(7)->Find(2, StatePartKind::kRows)), rows);
  EXPECT_TRUE(PutWhole(kRows, std::string(80, '\x3F')).ok());
  EXPECT_EQ(BytesOf(*shelf->Find(7)->Find(2, StatePartKind::kRows)), rows) << "what is there stays";

  // A snapshot with its own position.
  const std::string shift(32, '\0');
  piece = Piece(kShift, shift);
  piece.gold_position = 18;
  ASSERT_TRUE(shelf->Put(piece).ok());
  EXPECT_EQ(shelf->Find(7)->gold_position, 18);
  // Segments of no tokens have nothing per token.
  piece = Piece(kIds, "");
  piece.segment = 9;
  piece.begin = piece.end = 0;
  EXPECT_TRUE(shelf->Put(piece).ok());
  EXPECT_EQ(shelf->Find(9)->parts.size(), 1u);
}

TEST_F(ContextShelfTest, HostilePiecesAreRefusedBeforeMemoryIsTaken) {
  constexpr int64_t kMin = std::numeric_limits<int64_t>::min(), kMax = std::numeric_limits<int64_t>::max();
  ASSERT_TRUE(Save(5, 10, 20, 15).ok());
  const int64_t used = shelf->used_bytes();
  const std::string rows(80, '\x3E'), big((1 << 20) + 1, '\0'), shift(32, '\0');
  const std::vector<std::pair<std::string, std::function<void(PartPiece&)>>> cases = {
      {"rows of layer 3 is no part", [](PartPiece& p) { p.part.layer = 3; }},
      {"rows of layer -1 is no part", [](PartPiece& p) { p.part.layer = -1; }},
      {"values of layer 2 is no part", [](PartPiece& p) { p.part.kind = StatePartKind::kValues; }},
      {"is f16 [4], expected bf16 [4]", [](PartPiece& p) { p.part.dtype = DType::kF16; }},
      {"is bf16 [4, 1], expected bf16 [4]",
       [](PartPiece& p) {
         p.part.shape = {4, 1};
       }},
      {"is bf16 [9223372036854775807]", [&](PartPiece& p) { p.part.shape = {kMax}; }},
      {"positions [-1, 20)", [](PartPiece& p) { p.begin = -1; }},
      {"positions [21, 20)", [](PartPiece& p) { p.begin = 21; }},
      {"[10, 1001), the limit is 1000", [](PartPiece& p) { p.end = 1001; }},
      {"[10, 9223372036854775807)", [&](PartPiece& p) { p.end = kMax; }},
      {"[-9223372036854775808, 20)", [&](PartPiece& p) { p.begin = kMin; }},
      {"1048577 bytes, the limit is 1048576", [&](PartPiece& p) { p.bytes = big; }},
      {"80 bytes at 1 of rows of layer 2, which has 80", [](PartPiece& p) { p.offset = 1; }},
      {"at -1 of", [](PartPiece& p) { p.offset = -1; }},
      {"at 9223372036854775807 of", [&](PartPiece& p) { p.offset = kMax; }},
      {"at -9223372036854775808 of", [&](PartPiece& p) { p.offset = kMin; }},
      {"last piece of rows of layer 2 lacks its crc32c", [](PartPiece& p) { p.crc32c.reset(); }},
      {"in the middle of rows of layer 2 has a crc32c", [](PartPiece& p) { p.bytes.remove_suffix(1); }},
      {"a piece at 1 of rows of layer 2, expected 0",
       [](PartPiece& p) {
         p.offset = 1;
         p.bytes.remove_prefix(1);
       }},
      {"empty piece",
       [](PartPiece& p) {
         p.bytes = {};
         p.crc32c.reset();
       }},
      {"segment 5 is of the positions [10, 20), not of [11, 20)",
       [](PartPiece& p) {
         p.segment = 5;
         p.begin = 11;
         p.bytes.remove_suffix(8);
       }},
      {"gold_position is 21, the limit is 20",
       [&](PartPiece& p) {
         p = Piece(kShift, shift);
         p.gold_position = 21;
       }},
      {"gold_position is -1",
       [&](PartPiece& p) {
         p = Piece(kShift, shift);
         p.gold_position = -1;
       }},
      {"gold_position is 14, that of segment 5 is 15",
       [&](PartPiece& p) {
         p = Piece(kShift, shift);
         p.segment = 5;
         p.gold_position = 14;
       }},
  };
  for (const auto& [named, spoil] : cases) {
    PartPiece piece = Piece(kRows, rows);
    spoil(piece);
    const absl::Status status = shelf->Put(piece);
    EXPECT_EQ(status.code(), Code::kInvalidArgument) << named;
    EXPECT_THAT(std::string(status.message()), HasSubstr(named));
    EXPECT_EQ(shelf->used_bytes(), used);
  }
  shelf->SetParts({{kRows}, kVocab, int64_t{1} << 36});
  PartPiece huge = Piece(kRows, std::string_view(rows).substr(0, 64));
  huge.crc32c.reset();
  huge.end = int64_t{1} << 36;
  const absl::Status status = shelf->Put(huge);
  EXPECT_EQ(status.code(), Code::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()), HasSubstr("68719476726 rows of 8 bytes, the shelf has 65536"));
  shelf->SetParts({});
  EXPECT_FALSE(PutWhole(kRows, rows).ok()) << "no stage takes anything";
  EXPECT_EQ(shelf->used_bytes(), used);
}

TEST_F(ContextShelfTest, BytesThatAreWrongAreNoSegment) {
  const auto expect_loss = [&](const StatePart& part, const std::string& bytes, const std::string& named) {
    const absl::Status status = PutWhole(part, bytes);
    EXPECT_EQ(status.code(), Code::kDataLoss) << named;
    EXPECT_THAT(std::string(status.message()), HasSubstr(named));
    EXPECT_FALSE(shelf->Find(7).ok());
    EXPECT_EQ(shelf->used_bytes(), 0);
  };
  const std::string rows(80, '\x3E');
  PartPiece wrong = Piece(kRows, rows);
  wrong.crc32c = *wrong.crc32c ^ 1;
  EXPECT_THAT(std::string(shelf->Put(wrong).message()), HasSubstr("crc32c of rows of layer 2 is"));
  const auto with = [](std::string bytes, size_t at, std::initializer_list<unsigned char> value) {
    for (const unsigned char byte : value) bytes[at++] = static_cast<char>(byte);
    return bytes;
  };
  expect_loss(kRows, with(rows, 78, {0x80, 0x7F}), "rows of layer 2 has a number that is not finite");
  expect_loss(kRows, with(rows, 0, {0xC0, 0xFF}), "not finite");
  expect_loss(kKeys, with(rows, 2, {0x00, 0x7C}), "keys of layer 1 has a number");
  expect_loss(kShift, with(std::string(32, '\0'), 28, {0x00, 0x00, 0x80, 0x7F}), "time_shift of layer 2");
  expect_loss(kShift, with(std::string(32, '\0'), 0, {0x01, 0x00, 0xC0, 0xFF}), "not finite");
  expect_loss(kIds, with(std::string(20, '\0'), 18, {40, 0}), "token id 40, outside the vocabulary of 40");
  expect_loss(kIds, with(std::string(20, '\0'), 0, {0xFF, 0xFF}), "token id 65535");
  // 8-bit rows may have any number; their scales are bf16.
  shelf->SetParts({{kInt8Rows}, kVocab, kPositionsMax});
  expect_loss(kInt8Rows, with(std::string(60, '\0'), 58, {0xC0, 0x7F}), "not finite");
  EXPECT_TRUE(PutWhole(kInt8Rows, with(std::string(60, '\0'), 0, {0xFF, 0xFF, 0x80, 0x7F})).ok());
}

// A stream that breaks, a coordinator that restarts.
TEST_F(ContextShelfTest, WhatIsUnfinishedOrOfAnotherCoordinatorIsForgotten) {
  const std::string rows(80, '\x3E');
  PartPiece half = Piece(kRows, std::string_view(rows).substr(0, 40));
  half.crc32c.reset();
  ASSERT_TRUE(shelf->Put(half).ok());
  EXPECT_GT(shelf->used_bytes(), 0);
  shelf->AbandonPut();
  EXPECT_EQ(shelf->used_bytes(), 0);

  ASSERT_TRUE(shelf->Put(half).ok());
  ASSERT_TRUE(Save(3, 0, 10).ok());
  shelf->Clear();
  EXPECT_FALSE(shelf->Find(3).ok());
  shelf->SetParts({{kRows}, kVocab, kPositionsMax});
  PartPiece rest = Piece(kRows, std::string_view(rows).substr(40));
  rest.offset = 40;
  rest.crc32c = Crc32c(rows);
  EXPECT_EQ(shelf->Put(rest).code(), Code::kCancelled);
  EXPECT_FALSE(shelf->Find(7).ok());
  EXPECT_EQ(shelf->used_bytes(), 0);
}

TEST_F(ContextShelfTest, WithoutMemoryNothingIsKept) {
  shelf = Make(0, {kRows});
  EXPECT_EQ(Save(1, 0, 1).code(), Code::kResourceExhausted);
  EXPECT_EQ(PutWhole(kRows, std::string(80, '\0')).code(), Code::kResourceExhausted);
}

// Steps save, restore and drop while another thread puts and reads.
TEST_F(ContextShelfTest, TwoThreads) {
  const std::string rows(80, '\x3E');
  std::thread outside([&] {
    for (uint64_t i = 0; i < 300; ++i) {
      PartPiece piece = Piece(kRows, rows);
      piece.segment = i % 20;
      EXPECT_TRUE(shelf->Put(piece).ok());
      const auto found = shelf->Find(i % 20);
      if (found.ok() && found->Find(2, StatePartKind::kRows)) {
        EXPECT_EQ(BytesOf(*found->Find(2, StatePartKind::kRows)).size(), 80u);
      }
    }
  });
  for (uint64_t i = 0; i < 300; ++i) {
    EXPECT_TRUE(Save(i % 20, 10, 20).ok());
    const absl::Status status = shelf->Restore(
        {i % 20}, [&](auto) { return absl::StatusOr<std::shared_ptr<const Mark>>(device.queue().Record()); });
    EXPECT_TRUE(status.ok()) << status;
    if (i % 3 == 0) shelf->Drop((i + 7) % 20);
  }
  outside.join();
  for (uint64_t i = 0; i < 20; ++i) shelf->Drop(i);
  EXPECT_EQ(shelf->used_bytes(), 0);
}

}  // namespace
}  // namespace goldfinch
