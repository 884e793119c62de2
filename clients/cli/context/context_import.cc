// goldfinch context import: gives a context in a file to a server.
#include <algorithm>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/types/span.h"
#include "base/sha256.h"
#include "base/status.h"
#include "clients/cli/context/context_commands.h"
#include "clients/cli/context/transfer_retry.h"
#include "clients/cli/local/exchange_file.h"
#include "clients/cli/remote/context_name.h"
#include "clients/cli/remote/remote.h"
#include "clients/cli/terminal/terminal.h"
#include "coordinator/store/files.h"
#include "grpcpp/client_context.h"
#include "protos/contexts.grpc.pb.h"

namespace goldfinch {
namespace {

constexpr int64_t kPieceBytes = 1 << 20;

std::string_view BytesOf(const Sha256Digest& digest) {
  return {reinterpret_cast<const char*>(digest.data()), digest.size()};
}

// The same file under the same name is the same upload, so that a later run goes on with it.
std::string UploadOf(const Sha256Digest& file, const std::string& name) {
  Sha256 hash;
  hash.Add(BytesOf(file));
  hash.Add(name);
  return absl::BytesToHexString(std::string(BytesOf(hash.Finish())));
}

class Import {
 public:
  Import(const ContextOptions& options, const ExchangeFileInfo& info, const OpenFile& file, const Remote& remote)
      : options_(options),
        info_(info),
        size_(info.header.file_bytes),
        file_(file),
        remote_(remote),
        stub_(v1::Contexts::NewStub(remote.channel())),
        upload_(UploadOf(info.sha256, options.keep.name)) {}

  absl::StatusOr<v1::Context> Run() {
    TransferRetry retry(options_.retry_seconds);
    while (true) {
      const absl::Status status = Upload(&retry);
      bar_.Done();
      if (context_) return *std::move(context_);
      if (!retry.Wait(status)) return status;
    }
  }

 private:
  // From where the server is to the end. Sets context_ unless it fails.
  absl::Status Upload(TransferRetry* retry) {
    v1::ImportContextRequest ask;
    ask.set_upload(upload_);
    GF_ASSIGN_OR_RETURN(int64_t at, Send(ask));
    NoteProgress(at, retry);
    while (!context_) {
      v1::ImportContextRequest request;
      request.set_upload(upload_);
      request.set_offset(at);
      request.mutable_data()->resize(std::min(kPieceBytes, size_ - at));
      GF_RETURN_IF_ERROR(Files::System()->Read(file_, at, absl::MakeSpan(*request.mutable_data())));
      const int64_t end = at + static_cast<int64_t>(request.data().size());
      request.set_last(end == size_);
      if (request.last()) {
        *request.mutable_keep_as() = ToMessage(options_.keep);
        request.set_sha256(std::string(BytesOf(info_.sha256)));
      }
      GF_ASSIGN_OR_RETURN(const int64_t received, Send(request));
      if (!context_ && (request.last() || received <= at)) {
        return absl::InternalError(absl::StrCat("the server acknowledged ", received, " bytes, expected ", end,
                                                request.last() ? ", and sent no context" : ""));
      }
      at = received;
      NoteProgress(at, retry);
    }
    return absl::OkStatus();
  }

  // The server answers, and is at `at`.
  void NoteProgress(int64_t at, TransferRetry* retry) {
    if (at > farthest_) retry->Progress();
    farthest_ = std::max(farthest_, at);
    bar_.Update(at, size_);
  }

  // Returns how far the server is.
  absl::StatusOr<int64_t> Send(const v1::ImportContextRequest& request) {
    grpc::ClientContext context;
    remote_.Prepare(&context);
    v1::ImportContextResponse response;
    GF_RETURN_IF_ERROR(remote_.ToRequestStatus(stub_->Import(&context, request, &response)));
    if (response.has_context()) context_ = std::move(*response.mutable_context());
    if (response.received() > static_cast<uint64_t>(size_)) {
      return absl::InternalError(
          absl::StrCat("the server has received ", response.received(), " of ", size_, " bytes"));
    }
    return static_cast<int64_t>(response.received());
  }

  const ContextOptions& options_;
  const ExchangeFileInfo& info_;
  const int64_t size_;
  const OpenFile& file_;
  const Remote& remote_;
  const std::unique_ptr<v1::Contexts::Stub> stub_;
  const std::string upload_;
  int64_t farthest_ = -1;               // that the server has been
  std::optional<v1::Context> context_;  // as soon as it is there
  ProgressBar bar_{"importing", "bytes"};
};

}  // namespace

absl::Status RunContextImport(const ContextOptions& options) {
  GF_ASSIGN_OR_RETURN(const std::unique_ptr<Remote> remote, Remote::Open(options.remote));
  // What the server would refuse need not go there; and the digest is needed before the first byte.
  GF_ASSIGN_OR_RETURN(const ExchangeFileInfo info, CheckExchangeFile(options.file));
  GF_ASSIGN_OR_RETURN(const OpenFile file, OpenExchangeFile(options.file));
  GF_ASSIGN_OR_RETURN(const v1::Context context, Import(options, info, file, *remote).Run());
  PrintContext(context, options.json);
  return absl::OkStatus();
}

}  // namespace goldfinch
