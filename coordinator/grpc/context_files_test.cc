// Contexts.Export and Contexts.Import over a real store: whole transfers, broken ones, and clients that mean harm.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <fstream>
#include <functional>
#include <future>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "base/sha256.h"
#include "coordinator/calls/key_ring.h"
#include "coordinator/grpc/service_test_util.h"
#include "coordinator/store/exchange.h"
#include "coordinator/store/segment_writer.h"
#include "coordinator/store/store_test_util.h"
#include "gmock/gmock.h"
#include "grpcpp/client_context.h"
#include "gtest/gtest.h"

namespace goldfinch {
namespace {

using testing::HasSubstr;
using testing::IsEmpty;
using testing::SizeIs;

constexpr int64_t kTokensMax = 200'000;

std::string DigestOf(const std::string& bytes) {
  Sha256 hash;
  hash.Add(bytes);
  const Sha256Digest digest = hash.Finish();
  return {reinterpret_cast<const char*>(digest.data()), digest.size()};
}

std::string FileOf(const TestSegment& segment) {
  const auto file = ExchangeFile(segment.segment, segment.sections);
  EXPECT_TRUE(file.ok()) << file.status();
  return *file;
}

void AwaitTrue(const std::function<bool()>& done) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(60);
  while (!done()) {
    ASSERT_LT(std::chrono::steady_clock::now(), end);
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
}

struct Download {
  std::string bytes, etag, sha256;
  uint64_t file_bytes = 0;
  size_t responses = 0;
  grpc::Status status;
};

class ContextFilesTest : public testing::Test {
 protected:
  explicit ContextFilesTest(ServiceOptions options = {}) : harness_(std::move(options)) {
    FakeDispatcher::Files files;
    files.open_export = [this](const ExportContextQuery& query) -> absl::StatusOr<StoredContext> {
      if (query.etag != 0 && query.etag != 7) return absl::AbortedError("context \"doc\" has changed");
      if (!export_status_.ok()) return export_status_;
      if (may_open_.valid()) may_open_.get();
      return StoredContext{.etag = 7, .store = store_, .chain = chain_, .hold = Hold()};
    };
    files.open_import = [this]() -> absl::StatusOr<ImportTarget> {
      return ImportTarget{store_, TestContextModel(), kTokensMax};
    };
    files.make_room = [this](int64_t) -> absl::StatusOr<std::shared_ptr<const void>> {
      if (!room_status_.ok()) return room_status_;
      return Hold();
    };
    files.keep_import = [this](ImportedContext imported) -> absl::StatusOr<NamedContext> {
      if (!keep_status_.ok()) return keep_status_;
      const absl::Status published = imported.writer->Publish();
      if (!published.ok()) return published;
      ids_ = imported.ids;
      return NamedContext{
          .name = imported.keep_as.name, .tokens = static_cast<int64_t>(imported.ids.size()), .etag = 9};
    };
    harness_.dispatcher().SetFiles(files);
    harness_.dispatcher().AnswerContexts(NamedContextPage{.contexts = {{.name = "doc", .etag = 9}}, .next = ""});
  }
  ~ContextFilesTest() override { EXPECT_EQ(held_, 0) << "of what was held or made room for, not all was given back"; }

  std::shared_ptr<const void> Hold() {
    ++held_;
    return {nullptr, [this](const void*) { --held_; }};
  }

  // A context of two segments, whose file has some MiB.
  std::string KeepLarge() {
    const TestSegment first = MakeTestSegment(70'000, 1), second = MakeTestChild(first, 80'000, 2);
    for (const TestSegment* const segment : {&first, &second}) {
      EXPECT_EQ(SaveTestSegment(store_.get(), *segment, 1 << 20), absl::OkStatus());
      chain_.push_back(segment->key);
    }
    TestSegment whole = second;
    whole.segment.begin = 0;
    whole.segment.parent.reset();
    whole.sections[0] = first.sections[0] + second.sections[0];
    whole.sections[1] = first.sections[1] + second.sections[1];
    return FileOf(whole);
  }

  Download Export(uint64_t offset = 0, const std::string& etag = "", int seconds = 100) {
    v1::ExportContextRequest request;
    request.set_name("doc");
    request.set_offset(offset);
    request.set_etag(etag);
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(seconds));
    const auto reader = harness_.contexts().Export(&context, request);
    Download download;
    for (v1::ExportContextResponse response; reader->Read(&response); ++download.responses) {
      EXPECT_LE(response.data().size(), size_t{1} << 20);
      EXPECT_TRUE(download.sha256.empty()) << "nothing follows the digest";
      EXPECT_EQ(response.file_bytes() > 0, download.responses == 0);
      if (download.responses == 0) {
        download.file_bytes = response.file_bytes();
        download.etag = response.etag();
      }
      download.bytes += response.data();
      download.sha256 = response.sha256();
    }
    download.status = reader->Finish();
    return download;
  }

  struct Answer {
    v1::ImportContextResponse response;
    grpc::Status status;
  };
  Answer Import(const v1::ImportContextRequest& request, const std::string& key = "") {
    grpc::ClientContext context;
    if (!key.empty()) context.AddMetadata("authorization", "Bearer " + key);
    Answer answer;
    answer.status = harness_.contexts().Import(&context, request, &answer.response);
    return answer;
  }
  static v1::ImportContextRequest Part(const std::string& file, size_t offset, size_t size,
                                       const std::string& upload = "up") {
    v1::ImportContextRequest request;
    request.set_upload(upload);
    request.set_offset(offset);
    request.set_data(file.substr(offset, size));
    if (offset + size < file.size()) return request;
    request.set_last(true);
    request.set_sha256(DigestOf(file));
    request.mutable_keep_as()->set_name("doc");
    return request;
  }
  v1::ImportContextRequest Ask(const std::string& upload = "up") {
    v1::ImportContextRequest request;
    request.set_upload(upload);
    return request;
  }
  // Uploads all of it, from where the server is.
  Answer ImportAll(const std::string& file, size_t piece = 1 << 20, const std::string& upload = "up") {
    Answer answer = Import(Ask(upload));
    while (answer.status.ok() && !answer.response.has_context()) {
      answer = Import(Part(file, answer.response.received(), piece, upload));
    }
    return answer;
  }

  // The file is refused, and nothing is left of it.
  void ExpectRefused(const std::string& file, grpc::StatusCode code, const std::string& message,
                     const std::string& digest = "") {
    SCOPED_TRACE(message);
    const std::string upload = absl::StrCat("bad", ++uploads_);
    Answer answer;
    for (size_t at = 0; answer.status.ok() && at < file.size(); at += 100'000) {
      v1::ImportContextRequest part = Part(file, at, 100'000, upload);
      if (part.last() && !digest.empty()) part.set_sha256(digest);
      answer = Import(part);
    }
    EXPECT_EQ(answer.status.error_code(), code) << answer.status.error_message();
    EXPECT_THAT(answer.status.error_message(), HasSubstr(message));
    ExpectNothing(upload);
  }
  void ExpectNothing(const std::string& upload) {
    EXPECT_EQ(Import(Ask(upload)).response.received(), 0u);
    AwaitTrue([&] { return held_ == 0 && store_->totals().bytes == 0; });
    EXPECT_THAT(store_->Segments(), IsEmpty());
    EXPECT_THAT(NamesIn(folder_), IsEmpty());
  }

  const std::string folder_ =
      EmptyTestFolder(absl::StrCat("files_", testing::UnitTest::GetInstance()->current_test_info()->name()));
  const std::shared_ptr<SegmentStore> store_ = OpenTestStore(folder_);
  std::vector<SegmentKey> chain_;
  absl::Status export_status_, room_status_, keep_status_;
  std::shared_future<void> may_open_;
  std::atomic<int> held_ = 0;
  std::vector<int32_t> ids_;
  int uploads_ = 0;
  ServiceHarness harness_;
};

// ---- Export

TEST_F(ContextFilesTest, AnExportIsTheFileInPieces) {
  const std::string file = KeepLarge();
  const Download all = Export();
  ASSERT_TRUE(all.status.ok()) << all.status.error_message();
  EXPECT_EQ(all.bytes, file);
  EXPECT_EQ(all.file_bytes, file.size());
  EXPECT_EQ(all.sha256, DigestOf(file));
  EXPECT_THAT(all.etag, testing::StartsWith("7-"));
  EXPECT_EQ(all.responses, (file.size() >> 20) + 2);
  AwaitTrue([&] { return held_ == 0; });
}

TEST_F(ContextFilesTest, AnExportGoesOnAtItsOffset) {
  const std::string file = KeepLarge();
  const std::string etag = Export().etag;
  for (const size_t offset : {size_t{1}, size_t{1} << 20, file.size() - 1, file.size()}) {
    for (const std::string& named : {etag, std::string("7"), std::string()}) {
      const Download rest = Export(offset, named);
      ASSERT_TRUE(rest.status.ok()) << rest.status.error_message();
      EXPECT_EQ(rest.bytes, file.substr(offset));
      EXPECT_EQ(rest.file_bytes, file.size());
      EXPECT_EQ(rest.sha256, DigestOf(file)) << "of the whole file";
      EXPECT_EQ(rest.etag, etag);
    }
  }
  const Download beyond = Export(file.size() + 1);
  EXPECT_EQ(beyond.status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(beyond.status.error_message(), HasSubstr(absl::StrCat("the file has ", file.size(), " bytes")));
  EXPECT_EQ(Export(1, "8").status.error_code(), grpc::StatusCode::ABORTED);
  const Download other = Export(1, "7-0123456789abcdef");
  EXPECT_EQ(other.status.error_code(), grpc::StatusCode::ABORTED) << "the same context, and another file of it";
  EXPECT_THAT(other.status.error_message(), HasSubstr("computed anew"));
  AwaitTrue([&] { return held_ == 0; });
}

TEST_F(ContextFilesTest, WhatCannotBeExportedSaysWhy) {
  export_status_ = absl::FailedPreconditionError("the server has no store");
  const Download none = Export();
  EXPECT_EQ(none.status.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_EQ(none.status.error_message(), "the server has no store");
  for (const std::string etag : {"x", "7-", "7-0123", "-0123456789abcdef", "7-0123456789abcdeg", "7-7-7"}) {
    EXPECT_EQ(Export(0, etag).status.error_code(), grpc::StatusCode::INVALID_ARGUMENT) << etag;
  }
  EXPECT_EQ(harness_.Counted("request_failure_total", "ExportContext"), 7);
}

TEST_F(ContextFilesTest, DamageEndsAnExportBeforeAWrongByte) {
  const std::string file = KeepLarge();
  const std::string name = NamesIn(folder_)[0];
  std::string bytes = ReadTestFile(folder_ + "/" + name);
  bytes[bytes.size() / 2] ^= 1;
  WriteTestFile(folder_ + "/" + name, bytes);
  const Download broken = Export();
  EXPECT_EQ(broken.status.error_code(), grpc::StatusCode::DATA_LOSS) << broken.status.error_message();
  EXPECT_EQ(broken.bytes, file.substr(0, broken.bytes.size()));
  AwaitTrue([&] { return held_ == 0; });
}

TEST_F(ContextFilesTest, AClientThatGoesLetsGoOfTheContext) {
  KeepLarge();
  v1::ExportContextRequest request;
  request.set_name("doc");
  for (int i = 0; i < 20; ++i) {  // more than may be open at once
    grpc::ClientContext context;
    const auto reader = harness_.contexts().Export(&context, request);
    v1::ExportContextResponse response;
    EXPECT_TRUE(reader->Read(&response));
    context.TryCancel();
    while (reader->Read(&response)) {
    }
    reader->Finish();
    AwaitTrue([&] { return held_ == 0; });
  }
}

TEST_F(ContextFilesTest, AClientHasSoManyExportsAtOnce) {
  std::promise<void> begin;
  may_open_ = begin.get_future().share();
  KeepLarge();
  std::vector<std::thread> others;
  for (int i = 0; i < 8; ++i) others.emplace_back([this] { Export(); });
  Download ninth;
  AwaitTrue([&] {
    ninth = Export(0, "", 1);  // it may be one of the eight
    return ninth.status.error_code() == grpc::StatusCode::RESOURCE_EXHAUSTED;
  });
  EXPECT_THAT(ninth.status.error_message(), HasSubstr("8 exports under way"));
  begin.set_value();
  for (std::thread& other : others) other.join();
  AwaitTrue([&] { return held_ == 0; });
}

class StalledFilesTest : public ContextFilesTest {
 protected:
  StalledFilesTest() : ContextFilesTest({.stall_timeout_seconds = 0.3}) {}
};

TEST_F(StalledFilesTest, AClientThatDoesNotReadIsGivenUp) {
  // Far more than the transport's own windows take.
  TestSegment large = MakeTestSegment(kTokensMax, 3);
  for (int i = 0; i < 3; ++i) {
    large = i == 0 ? large : MakeTestChild(large, 2 * kTokensMax, 3 + i);
    ASSERT_EQ(SaveTestSegment(store_.get(), large, 1 << 20), absl::OkStatus());
    chain_.push_back(large.key);
  }
  v1::ExportContextRequest request;
  request.set_name("doc");
  grpc::ClientContext context;
  const auto reader = harness_.contexts().Export(&context, request);
  AwaitTrue([&] { return harness_.Counted("request_failure_total", "ExportContext") == 1; });
  AwaitTrue([&] { return held_ == 0; });
  v1::ExportContextResponse response;
  int64_t bytes = 0;
  while (reader->Read(&response)) bytes += static_cast<int64_t>(response.data().size());
  EXPECT_LT(bytes, 16 << 20);
  EXPECT_FALSE(reader->Finish().ok());
}

// ---- Import

TEST_F(ContextFilesTest, AnImportTakesPiecesOfAnySize) {
  const TestSegment segment = MakeTestSegment(50, 5);
  const std::string file = FileOf(segment);
  for (const size_t piece : {file.size(), size_t{1000}, size_t{37}}) {
    const Answer answer = ImportAll(file, piece, absl::StrCat("piece", piece));
    ASSERT_TRUE(answer.status.ok()) << answer.status.error_message();
    EXPECT_EQ(answer.response.received(), file.size());
    EXPECT_EQ(answer.response.context().name(), "doc");
    EXPECT_EQ(answer.response.context().tokens(), 50u);
    EXPECT_EQ(ids_, segment.ids);
    EXPECT_EQ(*LoadSections(store_.get(), segment.key), segment.sections);
    ASSERT_EQ(store_->Delete(segment.key), absl::OkStatus());
    AwaitTrue([&] { return held_ == 0; });
  }
}

TEST_F(ContextFilesTest, AnImportGoesOnWhereItWas) {
  const std::string file = FileOf(MakeTestSegment(50, 5));
  EXPECT_EQ(Import(Ask()).response.received(), 0u) << "nothing is known of it";
  EXPECT_EQ(Import(Part(file, 0, 3000)).response.received(), 3000u);
  EXPECT_EQ(Import(Ask()).response.received(), 3000u);
  EXPECT_EQ(Import(Ask("another")).response.received(), 0u);
  for (const size_t offset : {size_t{0}, size_t{2999}, size_t{3001}, size_t{1} << 40}) {
    const Answer wrong = Import(Part(file, std::min(offset, file.size() - 10), 5));
    EXPECT_EQ(wrong.status.error_code(), grpc::StatusCode::ABORTED) << wrong.status.error_message();
    EXPECT_THAT(wrong.status.error_message(), HasSubstr("the upload is at 3000"));
  }
  EXPECT_EQ(Import(Part(file, 100, 5, "another")).status.error_code(), grpc::StatusCode::ABORTED);
  const Answer done = ImportAll(file, 2000);
  ASSERT_TRUE(done.status.ok()) << done.status.error_message();
  // Whoever has not got the answer asks again.
  const Answer again = Import(Ask());
  EXPECT_TRUE(again.response.has_context());
  EXPECT_EQ(again.response.received(), file.size());
  // Until the context is another one.
  harness_.dispatcher().AnswerContexts(absl::NotFoundError("there is no context"));
  EXPECT_FALSE(Import(Ask()).response.has_context());
  EXPECT_EQ(Import(Ask()).response.received(), 0u);
  AwaitTrue([&] { return held_ == 0; });
}

TEST_F(ContextFilesTest, WhatIsWrongInAMessageIsRefusedBeforeAnythingIsTaken) {
  const std::string file = FileOf(MakeTestSegment(50, 5));
  const auto message = [&](const std::function<void(v1::ImportContextRequest*)>& change) {
    v1::ImportContextRequest request = Part(file, 0, file.size());
    change(&request);
    const Answer answer = Import(request);
    EXPECT_EQ(answer.status.error_code(), grpc::StatusCode::INVALID_ARGUMENT) << answer.status.error_message();
    return answer.status.error_message();
  };
  EXPECT_THAT(message([](auto* request) { request->clear_upload(); }), HasSubstr("upload is empty"));
  EXPECT_THAT(message([](auto* request) { request->set_upload(std::string(65, 'x')); }), HasSubstr("the limit is 64"));
  EXPECT_THAT(message([](auto* request) { request->set_data(std::string((1 << 20) + 1, 'x')); }),
              HasSubstr("the limit is 1048576"));
  EXPECT_THAT(message([](auto* request) { request->clear_keep_as(); }), HasSubstr("keep_as is not set"));
  EXPECT_THAT(message([](auto* request) { request->mutable_keep_as()->set_name("a\n"); }), HasSubstr("control"));
  EXPECT_THAT(message([](auto* request) { request->clear_sha256(); }), HasSubstr("it must have 32"));
  ExpectNothing("up");
}

TEST_F(ContextFilesTest, HostileFilesAreRefusedAndLeaveNothing) {
  using Code = grpc::StatusCode;
  const TestSegment made = MakeTestSegment(9, 1);
  const std::string good = FileOf(made);
  for (const size_t size : {size_t{1}, size_t{7}, size_t{8}, size_t{100}, good.size() / 2, good.size() - 1}) {
    ExpectRefused(good.substr(0, size), Code::INVALID_ARGUMENT, "is truncated");
  }
  ExpectRefused(good, Code::DATA_LOSS, "its SHA-256 is not the one", std::string(32, 'x'));
  std::string flipped = good;
  flipped.back() ^= 1;
  ExpectRefused(flipped, Code::DATA_LOSS, "the checksum of tensor");
  ExpectRefused(good + "more", Code::INVALID_ARGUMENT, "has more than the");
  ExpectRefused(std::string(8, '\xff'), Code::INVALID_ARGUMENT, "the limit is 4194304");

  SegmentSpec other = made.segment;
  other.model.identity.fingerprint = "feed";
  ExpectRefused(FileOf(MakeTestSegment(other, 1)), Code::FAILED_PRECONDITION,
                "the context is of feed/world-1/f16/cpu-f32/1; this model is 0123456789abcdef/world-1/f16/cpu-f32/1");
  other = made.segment;
  other.model.parts[0].shape = {17};
  ExpectRefused(FileOf(MakeTestSegment(other, 1)), Code::FAILED_PRECONDITION, "where this model has");
  TestSegment nan = made;
  nan.sections[1].replace(4, 2, std::string("\x01\x7c", 2));
  ExpectRefused(FileOf(nan), Code::INVALID_ARGUMENT, "that is not finite");
  ExpectRefused(FileOf(MakeTestSegment(kTokensMax + 1, 1)), Code::INVALID_ARGUMENT,
                "the context has 200001 tokens, the limit is 200000");

  // What the header claims.
  uint64_t size = 0;
  std::memcpy(&size, good.data(), sizeof(size));
  const auto with = [&](const std::string& from, const std::string& to) {
    const std::string header = absl::StrReplaceAll(good.substr(8, size), {{from, to}});
    EXPECT_NE(header, good.substr(8, size)) << from;
    const uint64_t bytes = header.size();
    return std::string(reinterpret_cast<const char*>(&bytes), sizeof(bytes)) + header + good.substr(8 + size);
  };
  ExpectRefused(with("\"position\":\"9\"", "\"position\":\"1099511627776\""), Code::INVALID_ARGUMENT, "does not fit");
  ExpectRefused(with("\"position\":\"9\"", "\"position\":\"9223372036854775807\""), Code::INVALID_ARGUMENT, "end is");
  ExpectRefused(with("\"vocab_size\":\"1000\"", "\"vocab_size\":\"9223372036854775807\""), Code::INVALID_ARGUMENT,
                "vocab_size is");
  ExpectRefused(with("\"goldfinch.context\":\"1\"", "\"goldfinch.context\":\"2\""), Code::FAILED_PRECONDITION,
                "is of version 2");
  ExpectRefused(with("[9,8]", "[9,18446744073709551615]"), Code::INVALID_ARGUMENT, "the shape [-1]");
  // The last tensor's end, which is that of the file.
  const size_t end = good.rfind("]}", 8 + size), begin = good.rfind(',', end);
  const std::string last = good.substr(begin + 1, end - begin - 1);
  ExpectRefused(with("," + last + "]", ",18446744073709551615]"), Code::INVALID_ARGUMENT, "bytes, the limit is");
  ExpectRefused(with("," + last + "]", ",9223372036854775807]"), Code::INVALID_ARGUMENT, "bytes, the limit is");
}

TEST_F(ContextFilesTest, WithoutRoomOrANameNothingIsTaken) {
  const std::string file = FileOf(MakeTestSegment(50, 5));
  keep_status_ = absl::AlreadyExistsError("there is a context \"doc\" already");
  ExpectRefused(file, grpc::StatusCode::ALREADY_EXISTS, "there is a context");
  room_status_ = absl::ResourceExhaustedError("contexts of namespace \"\" would take 9 bytes, and its quota is 8");
  ExpectRefused(file, grpc::StatusCode::RESOURCE_EXHAUSTED, "its quota is 8");
}

TEST_F(ContextFilesTest, AClientHasSoManyUploadsAtOnce) {
  const std::string file = FileOf(MakeTestSegment(50, 5));
  for (int i = 0; i < 8; ++i) {
    EXPECT_TRUE(Import(Part(file, 0, 4000, absl::StrCat("up", i))).status.ok());
  }
  EXPECT_EQ(held_, 8);
  const Answer ninth = Import(Part(file, 0, 100, "up8"));
  EXPECT_EQ(ninth.status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_THAT(ninth.status.error_message(), HasSubstr("8 uploads that are not finished"));
  for (int i = 0; i < 8; ++i) {
    EXPECT_EQ(ImportAll(file, 1 << 20, absl::StrCat("up", i)).status.ok(), i == 0) << "the others are in the store";
  }
  EXPECT_THAT(store_->Segments(), SizeIs(1));
  EXPECT_THAT(NamesIn(folder_), SizeIs(1));
  AwaitTrue([&] { return held_ == 0; });
}

class KeyedFilesTest : public ContextFilesTest {
 protected:
  static ServiceOptions WithKeys() {
    const std::string path = testing::TempDir() + "/file_keys.yaml";
    std::ofstream(path) << "keys:\n- name: alice\n  key: 0123456789abcdef\n- name: bob\n  key: another-key-of-mine\n";
    const auto keys = KeyRing::Open(path);
    EXPECT_TRUE(keys.ok()) << keys.status();
    return {.api_keys = *keys};
  }
  KeyedFilesTest() : ContextFilesTest(WithKeys()) {}
};

TEST_F(KeyedFilesTest, UploadsBelongToTheirKey) {
  const std::string alice = "0123456789abcdef", bob = "another-key-of-mine";
  const std::string file = FileOf(MakeTestSegment(50, 5));
  EXPECT_EQ(Import(Part(file, 0, 3000), alice).response.received(), 3000u);
  EXPECT_EQ(Import(Ask(), alice).response.received(), 3000u);
  EXPECT_EQ(Import(Ask(), bob).response.received(), 0u);
  EXPECT_EQ(Import(Part(file, 3000, 10), bob).status.error_code(), grpc::StatusCode::ABORTED);
  EXPECT_EQ(Import(Part(file, 0, 100), bob).response.received(), 100u);
  EXPECT_EQ(Import(Ask()).status.error_code(), grpc::StatusCode::UNAUTHENTICATED);
  const Answer done = Import(Part(file, 3000, file.size()), alice);
  ASSERT_TRUE(done.status.ok()) << done.status.error_message();
  EXPECT_EQ(store_->Segments().at(0).name_space, "alice");
  const Answer his = Import(Part(file, 100, file.size()), bob);
  ASSERT_TRUE(his.status.ok()) << his.status.error_message();
  EXPECT_THAT(store_->Segments(), SizeIs(2));
  AwaitTrue([&] { return held_ == 0; });
}

}  // namespace
}  // namespace goldfinch
