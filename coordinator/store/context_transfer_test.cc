// Exchange files: out of a store, into another, and what is refused.
#include "coordinator/store/context_transfer.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "base/crc32c.h"
#include "coordinator/store/store_test_util.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace goldfinch {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

// The same context in one piece and cut into segments at these places.
struct Context {
  TestSegment whole;
  std::vector<TestSegment> chain;
};
Context MakeContext(const std::vector<int64_t>& borders, ElementType rows = ElementType::kF16) {
  SegmentSpec segment;
  segment.model = TestContextModel(rows);
  segment.end = borders.back();
  segment.gold_position = segment.end - 2;
  segment.has_snapshot = segment.has_logits = true;
  Context context = {MakeTestSegment(segment, 1), {}};
  int64_t begin = 0;
  for (const int64_t end : borders) {
    SegmentSpec part = segment;
    part.begin = begin;
    part.end = end;
    part.gold_position = std::max<int64_t>(0, end - 2);
    if (begin > 0) part.parent = context.chain.back().key;
    TestSegment made = MakeTestSegment(part, 50 + static_cast<int>(end));
    for (size_t i = 0; i < made.sections.size(); ++i) {
      const std::string& bytes = context.whole.sections[i];
      const int64_t token_bytes = static_cast<int64_t>(bytes.size()) / segment.end;
      if (i < 2) made.sections[i] = bytes.substr(begin * token_bytes, (end - begin) * token_bytes);
      if (i >= 2 && end == segment.end) made.sections[i] = bytes;
    }
    made.ids.assign(context.whole.ids.begin() + begin, context.whole.ids.begin() + end);
    made.key = KeyOf(part, made.ids);
    context.chain.push_back(made);
    begin = end;
  }
  return context;
}

std::vector<SegmentKey> KeysOf(const std::vector<TestSegment>& chain) {
  std::vector<SegmentKey> keys;
  for (const TestSegment& segment : chain) keys.push_back(segment.key);
  return keys;
}

std::string ReadAll(ContextExport* transfer, int64_t piece_bytes) {
  std::string file(transfer->bytes(), '\0');
  for (int64_t at = 0; at < transfer->bytes(); at += piece_bytes) {
    const int64_t size = std::min(piece_bytes, transfer->bytes() - at);
    EXPECT_EQ(transfer->Read(at, {file.data() + at, static_cast<size_t>(size)}), absl::OkStatus()) << at;
  }
  return file;
}

class TransferTest : public testing::Test {
 protected:
  std::unique_ptr<ContextExport> Export(const Context& context) {
    for (const TestSegment& segment : context.chain) {
      EXPECT_EQ(SaveTestSegment(store_.get(), segment, 1000), absl::OkStatus());
    }
    auto transfer = ContextExport::Open(store_.get(), KeysOf(context.chain));
    EXPECT_TRUE(transfer.ok()) << transfer.status();
    return *std::move(transfer);
  }

  absl::StatusOr<SegmentKey> Import(const std::string& file, const ContextImportOptions& options = {},
                                    size_t piece_bytes = 999, const Sha256Digest* digest = nullptr) {
    ContextImport transfer(store_.get(), options);
    for (size_t at = 0; at < file.size(); at += piece_bytes) {
      const absl::Status status = transfer.Append(file.substr(at, piece_bytes));
      if (!status.ok()) return status;
    }
    return transfer.Finish(digest);
  }
  std::string ImportMessage(const std::string& file) { return Import(file).status().ToString(); }

  const std::string folder_ =
      EmptyTestFolder(absl::StrCat("transfer_", testing::UnitTest::GetInstance()->current_test_info()->name()));
  std::unique_ptr<SegmentStore> store_ = OpenTestStore(folder_);
};

Sha256Digest DigestOf(const std::string& bytes) {
  Sha256 hash;
  hash.Add(bytes);
  return hash.Finish();
}

TEST_F(TransferTest, TheFileIsTheSameHoweverTheContextIsCutAndRead) {
  for (const ElementType rows : {ElementType::kF32, ElementType::kF16, ElementType::kBf16, ElementType::kI8}) {
    SCOPED_TRACE(Name(rows));
    const Context whole = MakeContext({40}, rows), cut = MakeContext({1, 3, 17, 40}, rows);
    const auto expected = ExchangeFile(whole.whole.segment, whole.whole.sections);
    ASSERT_TRUE(expected.ok()) << expected.status();
    for (const Context* context : {&whole, &cut}) {
      const auto transfer = Export(*context);
      for (const int64_t piece : {1, 77, 1 << 20}) EXPECT_EQ(ReadAll(transfer.get(), piece), *expected) << piece;
      EXPECT_EQ(*transfer->Digest(), DigestOf(*expected));
      char byte = 0;
      EXPECT_TRUE(absl::IsOutOfRange(transfer->Read(transfer->bytes(), {&byte, 1})));
    }
    ASSERT_EQ(store_->Delete(whole.chain[0].key), absl::OkStatus());
    const auto key = Import(*expected);
    ASSERT_TRUE(key.ok()) << key.status();
    EXPECT_EQ(*key, whole.whole.key);
    EXPECT_EQ(*LoadSections(store_.get(), *key), whole.whole.sections);
    EXPECT_EQ(store_->Find(*key)->gold_position, 38);
  }
}

TEST_F(TransferTest, ATransferGoesOnAtAnyOffset) {
  const Context context = MakeContext({5, 9});
  const auto transfer = Export(context);
  const std::string file = ReadAll(transfer.get(), 1 << 20);
  for (const int64_t offset : {int64_t{1}, int64_t{100}, transfer->bytes() / 2, transfer->bytes() - 1}) {
    const auto again = ContextExport::Open(store_.get(), KeysOf(context.chain));
    ASSERT_TRUE(again.ok());
    std::string rest(file.size() - offset, '\0');
    ASSERT_EQ((*again)->Read(offset, absl::MakeSpan(rest)), absl::OkStatus());
    EXPECT_EQ(rest, file.substr(offset));
    EXPECT_EQ(*(*again)->Digest(), DigestOf(file));
  }
}

TEST_F(TransferTest, AnImportTakesPiecesOfAnySizeAndKeepsOneOfEach) {
  const Context context = MakeContext({30}, ElementType::kI8);
  const std::string file = *ExchangeFile(context.whole.segment, context.whole.sections);
  const Sha256Digest digest = DigestOf(file);
  ContextImportOptions ann;
  ann.name_space = "ann";
  for (const size_t piece : {size_t{1}, size_t{3}, size_t{4096}, file.size()}) {
    EXPECT_EQ(*Import(file, {}, piece, &digest), context.whole.key) << piece;
    EXPECT_NE(*Import(file, ann, piece, &digest), context.whole.key) << "another owner's is another segment";
  }
  EXPECT_THAT(store_->Segments(), SizeIs(2));
  EXPECT_THAT(Import(file, {}, 999, &context.whole.key).status().ToString(), HasSubstr("its SHA-256 is not the one"));
}

TEST_F(TransferTest, AContextAtPosition0IsAStateAlone) {
  const TestSegment tuned = MakeTestSegment(0, 4);
  const std::string file = *ExchangeFile(tuned.segment, tuned.sections);
  const auto key = Import(file);
  ASSERT_TRUE(key.ok()) << key.status();
  EXPECT_EQ(*key, tuned.key);
  EXPECT_EQ(*LoadSections(store_.get(), *key), tuned.sections);
  const auto transfer = ContextExport::Open(store_.get(), {*key});
  ASSERT_TRUE(transfer.ok()) << transfer.status();
  EXPECT_EQ(ReadAll(transfer->get(), 100), file);
  ContextImportOptions options;
  options.model = tuned.segment.model;
  EXPECT_TRUE(Import(file, options).ok());
  // What continues it has another key than the same ids alone, and is not exported as if it were those.
  TestSegment text = MakeTestSegment(5);
  const SegmentKey without = text.key;
  text.segment.parent = tuned.key;
  text.key = KeyOf(text.segment, text.ids);
  EXPECT_NE(text.key, without);
  ASSERT_EQ(SaveTestSegment(store_.get(), text), absl::OkStatus());
  EXPECT_TRUE(absl::IsFailedPrecondition(ContextExport::Open(store_.get(), {tuned.key, text.key}).status()));
  EXPECT_TRUE(absl::IsFailedPrecondition(ContextExport::Open(store_.get(), {text.key}).status()));
}

TEST_F(TransferTest, WhatIsNoContextIsNotExported) {
  const Context context = MakeContext({5, 9}), other = MakeContext({6, 9});
  Export(context);
  Export(other);
  const auto status = [&](const std::vector<SegmentKey>& keys) {
    return ContextExport::Open(store_.get(), keys).status();
  };
  EXPECT_TRUE(absl::IsInvalidArgument(status({})));
  EXPECT_TRUE(absl::IsFailedPrecondition(status({context.chain[1].key}))) << "no beginning";
  EXPECT_TRUE(absl::IsFailedPrecondition(status({context.chain[0].key, other.chain[1].key}))) << "another's end";
  EXPECT_TRUE(absl::IsNotFound(status({MakeTestSegment(2, 99).key})));
  ASSERT_EQ(store_->DropSnapshot(context.chain[1].key), absl::OkStatus());
  EXPECT_THAT(status(KeysOf(context.chain)).ToString(), HasSubstr("has no snapshot at its end, position 9"));
}

TEST_F(TransferTest, AnotherModelIsRefusedAndBothAreNamed) {
  const Context context = MakeContext({9});
  const std::string file = *ExchangeFile(context.whole.segment, context.whole.sections);
  const auto message = [&](const std::function<void(ContextModel*)>& change) {
    ContextImportOptions options;
    options.model = context.whole.segment.model;
    change(&*options.model);
    const absl::Status status = Import(file, options).status();
    EXPECT_TRUE(status.ok() || absl::IsFailedPrecondition(status));
    return status.ToString();
  };
  EXPECT_EQ(message([](ContextModel*) {}), "OK");
  EXPECT_THAT(
      message([](ContextModel* m) { m->identity.fingerprint = "feed"; }),
      HasSubstr("the context is of 0123456789abcdef/world-1/f16/cpu-f32/1; this model is feed/world-1/f16/cpu-f32/1"));
  EXPECT_THAT(message([](ContextModel* m) { m->vocab_size = 999; }),
              HasSubstr("a vocabulary of 1000 tokens; this model's has 999"));
  EXPECT_THAT(message([](ContextModel* m) { m->parts[6].shape = {9}; }),
              HasSubstr("the context has layers.1.rows of f16 [8] where this model has layers.1.rows of f16 [9]"));
  EXPECT_THAT(message([](ContextModel* m) { m->parts.pop_back(); }), HasSubstr("where this model has nothing more"));
}

TEST_F(TransferTest, EveryTruncationAndEveryFlippedByteIsFound) {
  SegmentSpec segment;
  segment.model = TestContextModel();
  segment.model.vocab_size = 10;
  segment.model.parts = {{0, StatePartKind::kWkv, ElementType::kF32, {1, 2, 2}},
                         {0, StatePartKind::kRows, ElementType::kF16, {2}}};
  segment.end = 3;
  segment.has_snapshot = true;
  const TestSegment small = MakeTestSegment(segment, 1);
  const std::string file = *ExchangeFile(small.segment, small.sections);
  const Sha256Digest digest = DigestOf(file);
  for (size_t size = 0; size < file.size(); ++size) {
    EXPECT_FALSE(Import(file.substr(0, size)).ok()) << size;
    std::string bad = file;
    bad[size] = static_cast<char>(bad[size] ^ (1 << (size % 8)));
    EXPECT_FALSE(Import(bad, {}, 999, &digest).ok()) << size;
  }
  EXPECT_THAT(ImportMessage(file + "x"), HasSubstr("has more than the"));
  // Without a digest, the checksums of the tensors find what the header does not.
  std::string bad = file;
  bad.back() ^= 1;
  EXPECT_THAT(ImportMessage(bad), HasSubstr("DATA_LOSS: the exchange file is damaged: the checksum of tensor"));
  EXPECT_THAT(store_->Segments(), IsEmpty());
  EXPECT_EQ(store_->totals().bytes, 0);
  EXPECT_THAT(NamesIn(folder_), IsEmpty());
}

TEST_F(TransferTest, NumbersThatAreNotFiniteAreRefused) {
  const auto message = [&](ElementType rows, size_t section, size_t at, const std::string& bytes) {
    TestSegment made = MakeContext({9}, rows).whole;
    made.sections[section].replace(at, bytes.size(), bytes);
    return ImportMessage(*ExchangeFile(made.segment, made.sections));
  };
  const std::string nan32("\0\0\xc0\x7f", 4), infinity32("\0\0\x80\xff", 4), nan16("\x01\x7c", 2),
      nan_bf16("\xc0\x7f", 2);
  EXPECT_EQ(message(ElementType::kF32, 1, 0, "abcd"), "OK");
  EXPECT_THAT(message(ElementType::kF32, 1, 8, nan32), HasSubstr("in tensor 'layers.1.rows' that is not finite"));
  EXPECT_THAT(message(ElementType::kF16, 1, 142, nan16), HasSubstr("in tensor 'layers.1.rows' that is not finite"));
  EXPECT_THAT(message(ElementType::kBf16, 1, 0, nan_bf16), HasSubstr("in tensor 'layers.1.rows' that is not finite"));
  EXPECT_THAT(message(ElementType::kF16, 4, 0, infinity32), HasSubstr("in tensor 'layers.0.wkv' that is not finite"));
  EXPECT_THAT(message(ElementType::kF16, 9, 3996, nan32), HasSubstr("in tensor 'logits' that is not finite"));
  // In a row of 8 bits only the scale can be otherwise.
  for (const size_t row : {0, 1, 8}) {
    EXPECT_THAT(message(ElementType::kI8, 1, 10 * row + 8, nan_bf16), HasSubstr("'layers.1.rows' that is not finite"));
    EXPECT_EQ(message(ElementType::kI8, 1, 10 * row + 6, nan_bf16), "OK");
  }
  // Wherever a piece ends.
  TestSegment made = MakeContext({9}, ElementType::kI8).whole;
  made.sections[1].replace(48, 2, nan_bf16);
  const std::string file = *ExchangeFile(made.segment, made.sections);
  for (size_t piece = 1; piece < 40; ++piece) EXPECT_FALSE(Import(file, {}, piece).ok()) << piece;
}

TEST_F(TransferTest, WhatAFileSaysOfItselfIsChecked) {
  const TestSegment made = MakeContext({9}).whole;
  const std::string good = *ExchangeFile(made.segment, made.sections);
  const auto message = [&](const std::string& from, const std::string& to) {
    EXPECT_THAT(good, HasSubstr(from));
    uint64_t size = 0;
    std::memcpy(&size, good.data(), sizeof(size));
    const std::string data = good.substr(8 + size), header = absl::StrReplaceAll(good.substr(8, size), {{from, to}});
    size = header.size();
    return ImportMessage(std::string(reinterpret_cast<const char*>(&size), sizeof(size)) + header + data);
  };
  EXPECT_THAT(message("\"goldfinch.context\":\"1\"", "\"goldfinch.context\":\"2\""), HasSubstr("is of version 2"));
  EXPECT_THAT(message("goldfinch.context", "goldfinch.contexts"),
              HasSubstr("has no 'goldfinch.context' in its metadata"));
  EXPECT_THAT(message("\"position\":\"9\"", "\"position\":\"8\""), HasSubstr("does not fit position 8"));
  EXPECT_THAT(message("\"position\":\"9\"", "\"position\":\"-9\""), HasSubstr("end is -9"));
  EXPECT_THAT(message("\"position\":\"9\"", "\"position\":\"99999999999999999999\""), HasSubstr("as its 'position'"));
  EXPECT_THAT(message("\"gold_position\":\"7\"", "\"gold_position\":\"10\""), HasSubstr("gold_position is 10"));
  EXPECT_THAT(message("\"vocab_size\":\"1000\"", "\"vocab_size\":\"1001\""), HasSubstr("does not fit"));
  EXPECT_THAT(message("\"dtype\":\"U16\"", "\"dtype\":\"F16\""), HasSubstr("tensor 'ids'"));
  EXPECT_THAT(message("\"dtype\":\"F16\"", "\"dtype\":\"F64\""), HasSubstr("of an unknown name or type"));
  EXPECT_THAT(message("layers.0.wkv", "layers.x.wkv"), HasSubstr("'layers.x.wkv' of an unknown name"));
  EXPECT_THAT(message("layers.0.wkv", "layers.00.wkv"), HasSubstr("has no tensor 'layers.0.wkv'"));
  EXPECT_THAT(message("layers.0.wkv", "layers.5000.wkv"), HasSubstr("layer of a part is 5000"));
  EXPECT_THAT(message("crc32c.layers.0.wkv\":\"", "crc32c.layers.0.wkv\":\"z"), HasSubstr("as the checksum of tensor"));
  EXPECT_THAT(message("\"ids\":{", "\"id\":{"), HasSubstr("of an unknown name"));
  EXPECT_THAT(message("[9,8]", "[8,9]"), HasSubstr("tensor 'layers.1.rows'"));
  EXPECT_THAT(ImportMessage(std::string(8, '\xff')), HasSubstr("the limit is 4194304"));
  EXPECT_THAT(ImportMessage(std::string("\2\0\0\0\0\0\0\0{}", 10)), HasSubstr("holds no tensor"));
  TestSegment wrong_id = made;
  wrong_id.sections[0][1] = 4;  // 1024 and more
  EXPECT_THAT(ImportMessage(*ExchangeFile(wrong_id.segment, wrong_id.sections)), HasSubstr("has the token id"));
}

// clients/python/tests/exchange_cases.py reads this file with the package safetensors.
TEST_F(TransferTest, TheFileThatIsKeptInTheRepositoryIsTheOneThatIsWritten) {
  const TestSegment made = MakeContext({9}).whole;
  const std::string file = *ExchangeFile(made.segment, made.sections);
  const std::string path = "coordinator/store/testdata/context.safetensors";
  if (const char* const out = std::getenv("WRITE_EXCHANGE_FILE")) WriteTestFile(out, file);
  EXPECT_EQ(ReadTestFile(path), file) << "WRITE_EXCHANGE_FILE=" << path << " writes a new one";
}

}  // namespace
}  // namespace goldfinch
