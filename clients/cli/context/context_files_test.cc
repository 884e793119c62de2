// goldfinch context export, import and verify, against a fake server.
#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "clients/cli/context/context_test_util.h"
#include "clients/cli/local/exchange_file.h"
#include "clients/cli/terminal/terminal.h"
#include "coordinator/store/exchange.h"
#include "coordinator/store/segment.h"
#include "coordinator/store/store_test_util.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "protos/generate.pb.h"
#include "worker/checkpoint/checkpoint_test_util.h"

namespace goldfinch {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

class ContextFilesTest : public ContextCommandsTest {
 protected:
  void SetUp() override {
    ContextCommandsTest::SetUp();
    const TestSegment segment = MakeTestSegment(/*tokens=*/200'000);
    file_ = ExchangeFile(segment.segment, segment.sections).value();
    ASSERT_GT(file_.size(), size_t{3} << 20) << "several pieces";
    folder_ = NewFolder();
    path_ = folder_ + "/book.safetensors";
    contexts_.file = file_;
  }

  static std::string NewFolder() {
    std::string folder = EmptyTestFolder("context_files");
    std::filesystem::create_directories(folder);
    return folder;
  }

  ContextOptions Export(double retry_seconds = 60) const {
    ContextOptions options = Options("export");
    options.name = "book";
    options.file = path_;
    options.retry_seconds = retry_seconds;
    return options;
  }

  ContextOptions Import(double retry_seconds = 60) const {
    ContextOptions options = Options("import");
    options.file = path_;
    options.keep = {.name = "book", .expire_after_seconds = 7, .replace = "v3"};
    options.retry_seconds = retry_seconds;
    return options;
  }

  void ExpectExported() {
    EXPECT_EQ(ReadTestFile(path_), file_);
    EXPECT_THAT(NamesIn(folder_), testing::ElementsAre("book.safetensors"));
  }

  std::string file_;
  std::string folder_;
  std::string path_;
};

grpc::Status Broken() { return {grpc::StatusCode::UNAVAILABLE, "the connection broke"}; }

TEST_F(ContextFilesTest, ExportWritesTheFile) {
  const CommandOutput output = Run(Export());
  ASSERT_TRUE(output.status.ok()) << output.status;
  ExpectExported();
  EXPECT_THAT(output.err, StartsWith(path_ + ": "));
  EXPECT_EQ(contexts_.exports[0].name(), "book");
  EXPECT_EQ(contexts_.exports[0].etag(), "");
  // Another time only with --force.
  EXPECT_EQ(Run(Export()).status.message(), path_ + " exists; --force overwrites it");
  ContextOptions force = Export();
  force.force = true;
  force.etag = "v1";
  ASSERT_TRUE(Run(force).status.ok());
  EXPECT_EQ(contexts_.exports.back().etag(), "v1");
  ExpectExported();
}

TEST_F(ContextFilesTest, ExportGoesOnAfterTheConnectionBroke) {
  contexts_.breaks = {1, 0, 2};
  const CommandOutput output = Run(Export());
  ASSERT_TRUE(output.status.ok()) << output.status;
  ExpectExported();
  std::vector<uint64_t> offsets;
  for (const v1::ExportContextRequest& request : contexts_.exports) {
    offsets.push_back(request.offset());
    EXPECT_EQ(request.etag(), request.offset() == 0 ? "" : "v1");
  }
  EXPECT_THAT(offsets, testing::ElementsAre(0, 1 << 20, 1 << 20, 3 << 20));
}

TEST_F(ContextFilesTest, ExportGoesOnInALaterRun) {
  contexts_.breaks = {2};
  CommandOutput output = Run(Export(/*retry_seconds=*/0));
  EXPECT_TRUE(absl::IsUnavailable(output.status)) << output.status;
  EXPECT_THAT(std::string(output.status.message()), HasSubstr("2.1 MB have come, run the command again"));
  EXPECT_FALSE(std::filesystem::exists(path_));
  output = Run(Export());
  ASSERT_TRUE(output.status.ok()) << output.status;
  EXPECT_EQ(contexts_.exports.back().offset(), uint64_t{2} << 20);
  EXPECT_EQ(contexts_.exports.back().etag(), "v1");
  ExpectExported();
}

TEST_F(ContextFilesTest, ExportBeginsAgainIfTheContextHasChanged) {
  contexts_.breaks = {2};
  ASSERT_FALSE(Run(Export(/*retry_seconds=*/0)).status.ok());
  contexts_.etag = "v2";
  CommandOutput output = Run(Export());
  ASSERT_TRUE(output.status.ok()) << output.status;
  EXPECT_THAT(output.err, HasSubstr("the context has changed since its first 2.1 MB came: begins again\n"));
  EXPECT_EQ(contexts_.exports.back().offset(), 0u);
  ExpectExported();
  // Who names an etag wants no other state.
  ContextOptions options = Export();
  options.force = true;
  options.etag = "v1";
  EXPECT_TRUE(absl::IsAborted(Run(options).status));
}

TEST_F(ContextFilesTest, ExportBelievesNothing) {
  contexts_.sha256 = DigestOf("something else");
  EXPECT_TRUE(absl::IsDataLoss(Run(Export()).status));
  EXPECT_THAT(NamesIn(folder_), testing::IsEmpty());
  contexts_.sha256.clear();
  contexts_.file_bytes_claimed = 100;
  EXPECT_TRUE(absl::IsInternal(Run(Export()).status)) << "more bytes than it said";
  contexts_.file_bytes_claimed = file_.size() + 1;
  EXPECT_TRUE(absl::IsInternal(Run(Export()).status)) << "fewer bytes than it said";
  contexts_.file_bytes_claimed = 0;
  contexts_.etag = std::string(65, 'x');
  EXPECT_TRUE(absl::IsInternal(Run(Export()).status)) << "an etag that is too long";
  NewFolder();
  contexts_.status = grpc::Status(grpc::StatusCode::NOT_FOUND, "there is no context \"book\"");
  contexts_.etag = "v1";
  EXPECT_TRUE(absl::IsNotFound(Run(Export()).status));
  EXPECT_THAT(NamesIn(folder_), testing::IsEmpty());
}

TEST_F(ContextFilesTest, ImportSendsTheFile) {
  WriteTestFile(path_, file_);
  const CommandOutput output = Run(Import());
  ASSERT_TRUE(output.status.ok()) << output.status;
  EXPECT_EQ(contexts_.received, file_);
  EXPECT_THAT(output.out, HasSubstr("name       book\n"));
  ASSERT_GT(contexts_.imports.size(), 3u);
  const v1::ImportContextRequest& last = contexts_.imports.back();
  EXPECT_TRUE(last.last());
  EXPECT_EQ(last.keep_as().name(), "book");
  EXPECT_EQ(last.keep_as().expire_after_seconds(), 7);
  EXPECT_EQ(last.keep_as().etag(), "v3");
  EXPECT_EQ(last.upload().size(), 64u);
  EXPECT_FALSE(contexts_.imports[1].last());
}

TEST_F(ContextFilesTest, ImportGoesOnAfterTheConnectionBroke) {
  WriteTestFile(path_, file_);
  int calls = 0;
  // Once before the server has taken the bytes, and once after that.
  contexts_.before_import = [&](const v1::ImportContextRequest&) { return ++calls == 2 ? Broken() : grpc::Status(); };
  contexts_.after_import = [&](const v1::ImportContextRequest&) { return calls == 3 ? Broken() : grpc::Status(); };
  const CommandOutput output = Run(Import());
  ASSERT_TRUE(output.status.ok()) << output.status;
  EXPECT_EQ(contexts_.received, file_);
}

TEST_F(ContextFilesTest, ImportGoesOnInALaterRun) {
  WriteTestFile(path_, file_);
  contexts_.before_import = [](const v1::ImportContextRequest& request) {
    return request.offset() >= uint64_t{2} << 20 ? Broken() : grpc::Status();
  };
  EXPECT_TRUE(absl::IsUnavailable(Run(Import(/*retry_seconds=*/0)).status));
  contexts_.before_import = nullptr;
  const size_t before = contexts_.imports.size();
  ASSERT_TRUE(Run(Import()).status.ok());
  EXPECT_EQ(contexts_.received, file_);
  EXPECT_EQ(contexts_.imports[before + 1].offset(), uint64_t{2} << 20);
}

TEST_F(ContextFilesTest, ImportSendsNothingOfADamagedFile) {
  file_[file_.size() / 2] ^= 1;
  WriteTestFile(path_, file_);
  const CommandOutput output = Run(Import());
  EXPECT_THAT(std::string(output.status.message()), StartsWith(path_ + ": "));
  EXPECT_TRUE(contexts_.imports.empty());
}

// What the server says of its contexts is what the file is made for.
TEST_F(ContextFilesTest, ImportMakesAContextOfATunedState) {
  const std::vector<int64_t> shape = {2, 8, 8};
  ASSERT_TRUE(WritePth(path_, {{"blocks.0.att.time_state", DType::kBf16, shape, std::vector<float>(128, 1.5f)},
                               {"blocks.1.att.time_state", DType::kBf16, shape, std::vector<float>(128, -2)}})
                  .ok());
  const ContextModel model = TestContextModel();
  service_.model.set_fingerprint(model.identity.fingerprint);
  service_.model.set_cache_dtype(model.identity.cache_dtype);
  service_.model.set_vocab_size(static_cast<uint32_t>(model.vocab_size));
  CommandOutput output = Run(Import());
  EXPECT_TRUE(absl::IsFailedPrecondition(output.status)) << output.status;
  EXPECT_TRUE(contexts_.imports.empty());

  v1::ContextFormat& format = *service_.model.mutable_contexts();
  format.set_format_version(static_cast<uint32_t>(model.identity.format_version));
  format.set_vocabulary(model.identity.vocabulary);
  format.set_numerics(model.identity.numerics);
  for (const ContextPart& part : model.parts) {
    v1::ContextPart& told = *format.add_parts();
    told.set_layer(static_cast<uint32_t>(part.layer));
    told.set_kind(KindName(part.kind));
    told.set_type(Name(part.type));
    for (const int64_t axis : part.shape) told.add_shape(static_cast<uint64_t>(axis));
  }
  output = Run(Import());
  ASSERT_TRUE(output.status.ok()) << output.status;
  const std::string sent = path_ + ".sent";
  WriteTestFile(sent, contexts_.received);
  const absl::StatusOr<ExchangeFileInfo> info = CheckExchangeFile(sent);
  ASSERT_TRUE(info.ok()) << info.status();
  EXPECT_EQ(info->header.segment.model, model);
  EXPECT_EQ(info->header.segment.end, 0);
  EXPECT_EQ(contexts_.imports.back().keep_as().name(), "book");
}

TEST_F(ContextFilesTest, VerifyShowsWhatIsInTheFile) {
  WriteTestFile(path_, file_);
  ContextOptions options = Options("verify");
  options.remote = {};
  options.file = path_;
  CommandOutput output = Run(options);
  ASSERT_TRUE(output.status.ok()) << output.status;
  EXPECT_THAT(output.out, StartsWith("file        " + path_));
  EXPECT_THAT(output.out, HasSubstr("tokens      200,000"));
  EXPECT_THAT(output.out, HasSubstr("part           layers  type"));
  EXPECT_THAT(output.out, HasSubstr("\nwkv            0-1     f32"));
  options.json = true;
  output = Run(options);
  const nlohmann::json json = nlohmann::json::parse(output.out);
  EXPECT_EQ(json["tokens"], 200'000);
  EXPECT_EQ(json["file_bytes"], file_.size());
  EXPECT_EQ(json["fingerprint"], TestContextModel().identity.fingerprint);
  EXPECT_FALSE(json["tensors"].empty());
}

TEST_F(ContextFilesTest, VerifySaysWhatIsWrong) {
  ContextOptions options = Options("verify");
  options.file = path_;
  EXPECT_TRUE(absl::IsNotFound(Run(options).status));
  const auto verify = [&](const std::string& bytes) {
    WriteTestFile(path_, bytes);
    const CommandOutput output = Run(options);
    EXPECT_EQ(ExitCode(output.status), 1);
    EXPECT_EQ(output.out, "");
    EXPECT_THAT(std::string(output.status.message()), StartsWith(path_ + ": "));
    return output.status;
  };
  std::string flipped = file_;
  flipped[flipped.size() - 3] ^= 1;
  EXPECT_TRUE(absl::IsDataLoss(verify(flipped)));
  EXPECT_FALSE(verify(file_.substr(0, file_.size() - 1)).ok());
  EXPECT_FALSE(verify(file_ + "x").ok());
  EXPECT_FALSE(verify("").ok());
  EXPECT_FALSE(verify("a text").ok());
  options.file = folder_;
  EXPECT_FALSE(Run(options).status.ok()) << "a folder";
}

}  // namespace
}  // namespace goldfinch
