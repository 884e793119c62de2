// goldfinch context export: writes a context of a server to a file.
#include <sys/file.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/types/span.h"
#include "base/safe_text.h"
#include "base/sha256.h"
#include "base/small_file.h"
#include "base/status.h"
#include "clients/cli/context/context_commands.h"
#include "clients/cli/context/transfer_retry.h"
#include "clients/cli/remote/remote.h"
#include "clients/cli/terminal/terminal.h"
#include "coordinator/store/files.h"
#include "grpcpp/client_context.h"
#include "protos/contexts.grpc.pb.h"

namespace goldfinch {
namespace {

constexpr size_t kEtagBytesMax = 64;
constexpr int64_t kPieceBytes = 1 << 20;

std::string FolderOf(const std::string& path) {
  const std::string folder = std::filesystem::path(path).parent_path().string();
  return folder.empty() ? "." : folder;
}

// FILE.partial, which grows as bytes come, and FILE.partial.etag: of the context that they are of.
class PartialFile {
 public:
  explicit PartialFile(std::string path)
      : path_(std::move(path)), partial_(path_ + ".partial"), etag_path_(partial_ + ".etag") {}

  // Goes on with what an earlier run has left.
  absl::Status Open() {
    absl::StatusOr<OpenFile> file = files_.OpenToWrite(partial_);
    if (absl::IsNotFound(file.status())) file = files_.Create(partial_);
    GF_RETURN_IF_ERROR(file.status());
    file_ = *std::move(file);
    if (flock(file_.fd(), LOCK_EX | LOCK_NB) != 0) {
      return absl::FailedPreconditionError(absl::StrCat(SafeText(partial_), ": another export writes it"));
    }
    struct stat about {};
    if (fstat(file_.fd(), &about) != 0) return FileError(errno, partial_, "read");
    const absl::StatusOr<std::string> etag = ReadSmallFile(etag_path_, kEtagBytesMax);
    if (!etag.ok() || etag->empty()) return Restart();
    etag_ = *etag;
    return HashWhatIsThere(about.st_size);
  }

  // What is there is of the context with this etag, and has so many bytes.
  const std::string& etag() const { return etag_; }
  int64_t bytes() const { return bytes_; }

  absl::Status Restart() {
    GF_RETURN_IF_ERROR(RemoveEtag());
    GF_RETURN_IF_ERROR(files_.Truncate(file_, 0));
    etag_.clear();
    bytes_ = 0;
    hash_ = Sha256();
    return absl::OkStatus();
  }

  // Nothing is there yet, and what comes is of this.
  absl::Status Begin(const std::string& etag) {
    GF_RETURN_IF_ERROR(RemoveEtag());
    GF_ASSIGN_OR_RETURN(const OpenFile file, files_.Create(etag_path_));
    GF_RETURN_IF_ERROR(files_.Write(file, 0, etag));
    etag_ = etag;
    return absl::OkStatus();
  }

  absl::Status Append(std::string_view bytes) {
    GF_RETURN_IF_ERROR(files_.Write(file_, bytes_, bytes));
    hash_.Add(bytes);
    bytes_ += static_cast<int64_t>(bytes.size());
    return absl::OkStatus();
  }

  // Leaves nothing behind. What cannot be removed does no harm.
  void Discard() {
    Restart().IgnoreError();
    files_.Remove(partial_).IgnoreError();
  }

  // All has come. DATA_LOSS, after which nothing of it is left, if it is not what the digest says.
  absl::Status Finish(std::string_view digest) {
    const Sha256Digest have = hash_.Finish();
    if (digest != std::string_view(reinterpret_cast<const char*>(have.data()), have.size())) {
      Discard();
      return absl::DataLossError(
          absl::StrCat(SafeText(partial_), ": the SHA-256 does not match; run the command again"));
    }
    GF_RETURN_IF_ERROR(files_.SyncData(file_));
    GF_RETURN_IF_ERROR(files_.Rename(partial_, path_));
    GF_RETURN_IF_ERROR(RemoveEtag());
    return files_.SyncFolder(FolderOf(path_));
  }

 private:
  absl::Status RemoveEtag() {
    const absl::Status status = files_.Remove(etag_path_);
    return absl::IsNotFound(status) ? absl::OkStatus() : status;
  }

  absl::Status HashWhatIsThere(int64_t size) {
    GF_ASSIGN_OR_RETURN(const OpenFile file, files_.OpenToRead(partial_));
    ProgressBar bar("reading what has come already", "bytes");
    std::vector<char> piece;
    for (bytes_ = 0; bytes_ < size; bytes_ += static_cast<int64_t>(piece.size())) {
      piece.resize(std::min(size - bytes_, kPieceBytes));
      GF_RETURN_IF_ERROR(files_.Read(file, bytes_, absl::MakeSpan(piece)));
      hash_.Add(std::string_view(piece.data(), piece.size()));
      bar.Update(bytes_, size);
    }
    return absl::OkStatus();
  }

  Files& files_ = *Files::System();
  const std::string path_, partial_, etag_path_;
  OpenFile file_;
  std::string etag_;
  int64_t bytes_ = 0;
  Sha256 hash_;
};

class Export {
 public:
  Export(const ContextOptions& options, const Remote& remote, PartialFile* file)
      : options_(options), remote_(remote), file_(*file), stub_(v1::Contexts::NewStub(remote.channel())) {}

  absl::Status Run() {
    // What is there is of another state of the context than the one that is asked for.
    if (!options_.etag.empty() && options_.etag != file_.etag()) GF_RETURN_IF_ERROR(file_.Restart());
    TransferRetry retry(options_.retry_seconds);
    while (true) {
      const bool resumed = file_.bytes() > 0;
      const int64_t before = file_.bytes();
      const absl::Status status = Download();
      if (file_.bytes() > before) retry.Progress();
      if (status.ok()) return status;
      if (absl::IsAborted(status) && resumed && options_.etag.empty()) {
        std::fprintf(stderr, "the context has changed since its first %s came: begins again\n",
                     HumanBytes(file_.bytes()).c_str());
        GF_RETURN_IF_ERROR(file_.Restart());
        continue;
      }
      if (!retry.Wait(status)) return Left(status);
    }
  }

 private:
  // What is there stays for the next run.
  absl::Status Left(const absl::Status& status) {
    if (file_.bytes() == 0) {
      file_.Discard();
      return status;
    }
    absl::Status left(status.code(), absl::StrCat(std::string(status.message()), "; ", HumanBytes(file_.bytes()),
                                                  " have come, run the command again to go on there"));
    return ExitCode(status) == 2 ? AsUsageError(left) : left;
  }

  absl::Status Download() {
    v1::ExportContextRequest request;
    request.set_name(options_.name);
    request.set_offset(file_.bytes());
    request.set_etag(options_.etag.empty() ? file_.etag() : options_.etag);
    grpc::ClientContext context;
    remote_.Prepare(&context);
    const std::unique_ptr<grpc::ClientReader<v1::ExportContextResponse>> reader = stub_->Export(&context, request);
    v1::ExportContextResponse response;
    file_bytes_.reset();
    std::string digest;
    absl::Status status;
    while (status.ok() && reader->Read(&response)) {
      status = Take(response);
      if (!response.sha256().empty()) digest = response.sha256();
    }
    bar_.Done();
    if (!status.ok()) context.TryCancel();
    const grpc::Status end = reader->Finish();
    GF_RETURN_IF_ERROR(status);
    GF_RETURN_IF_ERROR(remote_.ToRequestStatus(end));
    if (!file_bytes_ || file_.bytes() != *file_bytes_ || digest.empty()) {
      return absl::InternalError(absl::StrCat("the server has ended the call after ", file_.bytes(), " bytes of ",
                                              file_bytes_.value_or(0), digest.empty() ? ", without a SHA-256" : ""));
    }
    return file_.Finish(digest);
  }

  absl::Status Take(const v1::ExportContextResponse& response) {
    if (!file_bytes_) {
      file_bytes_ = static_cast<int64_t>(response.file_bytes());
      if (response.etag().empty() || response.etag().size() > kEtagBytesMax) {
        return absl::InternalError(absl::StrCat("the server has sent an etag of ", response.etag().size(),
                                                " bytes, it must have from 1 to ", kEtagBytesMax));
      }
      if (file_.bytes() > 0 && response.etag() != file_.etag()) {
        return absl::AbortedError("the context has changed while it was exported");
      }
      if (file_.bytes() == 0) GF_RETURN_IF_ERROR(file_.Begin(response.etag()));
    }
    if (static_cast<int64_t>(response.data().size()) > *file_bytes_ - file_.bytes()) {
      return absl::InternalError(
          absl::StrCat("the server has sent more than the ", *file_bytes_, " bytes that the file should have"));
    }
    if (!response.data().empty()) GF_RETURN_IF_ERROR(file_.Append(response.data()));
    bar_.Update(file_.bytes(), *file_bytes_);
    return absl::OkStatus();
  }

  const ContextOptions& options_;
  const Remote& remote_;
  PartialFile& file_;
  const std::unique_ptr<v1::Contexts::Stub> stub_;
  std::optional<int64_t> file_bytes_;  // by the first response of this call
  ProgressBar bar_{"exporting", "bytes"};
};

}  // namespace

absl::Status RunContextExport(const ContextOptions& options) {
  GF_ASSIGN_OR_RETURN(const std::unique_ptr<Remote> remote, Remote::Open(options.remote));
  std::error_code unused;
  if (!options.force && std::filesystem::exists(options.file, unused)) {
    return UsageError(absl::StrCat(SafeText(options.file), " exists; --force overwrites it"));
  }
  PartialFile file(options.file);
  GF_RETURN_IF_ERROR(file.Open());
  GF_RETURN_IF_ERROR(Export(options, *remote, &file).Run());
  std::fprintf(stderr, "%s: %s\n", SafeText(options.file).c_str(), HumanBytes(file.bytes()).c_str());
  return absl::OkStatus();
}

}  // namespace goldfinch
