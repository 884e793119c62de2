// goldfinch context import: gives a context in a file, or a tuned state, to a server.
#include <algorithm>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/types/span.h"
#include "base/safe_text.h"
#include "base/sha256.h"
#include "base/status.h"
#include "clients/cli/context/context_commands.h"
#include "clients/cli/context/transfer_retry.h"
#include "clients/cli/local/exchange_file.h"
#include "clients/cli/local/tuned_state.h"
#include "clients/cli/remote/context_name.h"
#include "clients/cli/remote/remote.h"
#include "clients/cli/terminal/terminal.h"
#include "coordinator/store/files.h"
#include "coordinator/store/segment.h"
#include "grpcpp/client_context.h"
#include "protos/contexts.grpc.pb.h"
#include "protos/generate.grpc.pb.h"

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

// What is given to the server.
struct Source {
  int64_t bytes = 0;
  Sha256Digest sha256{};
  std::function<absl::Status(int64_t offset, absl::Span<char> bytes)> read;
};

class Import {
 public:
  // `source` and `remote` must outlive it.
  Import(const ContextOptions& options, const Source& source, const Remote& remote)
      : options_(options),
        source_(source),
        size_(source.bytes),
        remote_(remote),
        stub_(v1::Contexts::NewStub(remote.channel())),
        upload_(UploadOf(source.sha256, options.keep.name)) {}

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
      GF_RETURN_IF_ERROR(source_.read(at, absl::MakeSpan(*request.mutable_data())));
      const int64_t end = at + static_cast<int64_t>(request.data().size());
      request.set_last(end == size_);
      if (request.last()) {
        *request.mutable_keep_as() = ToMessage(options_.keep);
        request.set_sha256(std::string(BytesOf(source_.sha256)));
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
  const Source& source_;
  const int64_t size_;
  const Remote& remote_;
  const std::unique_ptr<v1::Contexts::Stub> stub_;
  const std::string upload_;
  int64_t farthest_ = -1;               // that the server has been
  std::optional<v1::Context> context_;  // as soon as it is there
  ProgressBar bar_{"importing", "bytes"};
};

// What contexts of the server's model are like.
absl::StatusOr<ContextModel> ModelOf(const Remote& remote) {
  grpc::ClientContext context;
  remote.Prepare(&context);
  v1::GetModelInfoResponse info;
  GF_RETURN_IF_ERROR(
      remote.ToRequestStatus(v1::Goldfinch::NewStub(remote.channel())->GetModelInfo(&context, {}, &info)));
  if (!info.has_contexts()) {
    return absl::FailedPreconditionError(
        "the server does not say what its contexts are like: it keeps none, or no group of workers has been ready yet");
  }
  ContextModel model;
  model.identity = {.fingerprint = info.fingerprint(),
                    .vocabulary = info.contexts().vocabulary(),
                    .cache_dtype = info.cache_dtype(),
                    .numerics = info.contexts().numerics(),
                    .format_version = static_cast<int>(info.contexts().format_version())};
  model.vocab_size = info.vocab_size();
  for (const v1::ContextPart& part : info.contexts().parts()) {
    const std::optional<StatePartKind> kind = ParseContextPartKind(part.kind());
    const std::optional<ElementType> type = ParseElementType(part.type());
    if (!kind || !type) {
      return absl::FailedPreconditionError(absl::StrCat("the server's contexts have a part ", Quoted(part.kind()),
                                                        " of ", Quoted(part.type()),
                                                        ", which this program does not know"));
    }
    ContextPart& same = model.parts.emplace_back(ContextPart{static_cast<int>(part.layer()), *kind, *type, {}});
    same.shape.assign(part.shape().begin(), part.shape().end());
  }
  return model;
}

absl::StatusOr<v1::Context> ImportTunedState(const ContextOptions& options, const Remote& remote) {
  GF_ASSIGN_OR_RETURN(const ContextModel model, ModelOf(remote));
  GF_ASSIGN_OR_RETURN(const std::string file, TunedStateExchange(options.file, model));
  Sha256 hash;
  hash.Add(file);
  const Source source = {.bytes = static_cast<int64_t>(file.size()),
                         .sha256 = hash.Finish(),
                         .read = [&file](int64_t offset, absl::Span<char> bytes) {
                           file.copy(bytes.data(), bytes.size(), offset);
                           return absl::OkStatus();
                         }};
  return Import(options, source, remote).Run();
}

absl::StatusOr<v1::Context> ImportFile(const ContextOptions& options, const Remote& remote) {
  // What the server would refuse need not go there; and the digest is needed before the first byte.
  GF_ASSIGN_OR_RETURN(const ExchangeFileInfo info, CheckExchangeFile(options.file));
  GF_ASSIGN_OR_RETURN(const OpenFile file, OpenExchangeFile(options.file));
  const Source source = {
      .bytes = info.header.file_bytes, .sha256 = info.sha256, .read = [&file](int64_t offset, absl::Span<char> bytes) {
        return Files::System()->Read(file, offset, bytes);
      }};
  return Import(options, source, remote).Run();
}

}  // namespace

absl::Status RunContextImport(const ContextOptions& options) {
  GF_ASSIGN_OR_RETURN(const std::unique_ptr<Remote> remote, Remote::Open(options.remote));
  GF_ASSIGN_OR_RETURN(const v1::Context context,
                      IsTunedState(options.file) ? ImportTunedState(options, *remote) : ImportFile(options, *remote));
  PrintContext(context, options.json);
  return absl::OkStatus();
}

}  // namespace goldfinch
