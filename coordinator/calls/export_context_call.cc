#include "coordinator/calls/export_context_call.h"

#include <algorithm>

#include "absl/strings/str_format.h"

namespace goldfinch {

void ExportContextCall::Begin() {
  absl::StatusOr<FileQuery> query = read_();
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (is_done()) return;  // the client has gone
    if (!query.ok()) return Done(query.status());
    next_ = query->offset;
    if (environment_->request_log.Take()) SetLogged();
  }
  transfers_->OpenFile(
      caller_.client, *std::move(query),
      [self = Self()](absl::StatusOr<std::shared_ptr<ContextTransfers::File>> file) { self->Opened(std::move(file)); });
}

void ExportContextCall::Stop(const absl::Status& status) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (is_done()) return;
  file_.reset();
  Done(status);
}

void ExportContextCall::Opened(absl::StatusOr<std::shared_ptr<ContextTransfers::File>> file) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (is_done()) return;
  if (!file.ok()) return Done(file.status());
  file_ = *std::move(file);
  ReadOn();
}

void ExportContextCall::ReadOn() {
  const int64_t size = std::min(kTransferPieceBytes, file_->bytes() - next_);
  if (size == 0) {
    return file_->ReadDigest([self = Self()](const absl::StatusOr<Sha256Digest>& digest) { self->DigestRead(digest); });
  }
  const int64_t offset = next_;
  next_ += size;
  file_->Read(offset, size, [self = Self()](absl::StatusOr<std::string> piece) { self->PieceRead(std::move(piece)); });
}

void ExportContextCall::PieceRead(absl::StatusOr<std::string> piece) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (is_done()) return;
  if (!piece.ok()) return Done(piece.status());
  piece_ = *std::move(piece);
  Wake();
}

void ExportContextCall::DigestRead(const absl::StatusOr<Sha256Digest>& digest) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (is_done()) return;
  if (digest.ok()) digest_ = *digest;
  Done(digest.status());
}

bool ExportContextCall::TakeMessage() {
  const bool ends = succeeded() && digest_;
  if (file_ == nullptr || (!piece_ && !ends)) return false;
  message_.Clear();
  if (!first_sent_) {
    message_.set_file_bytes(file_->bytes());
    message_.set_etag(file_->etag());
  }
  first_sent_ = true;
  if (piece_) {
    bytes_sent_ += static_cast<int64_t>(piece_->size());
    *message_.mutable_data() = *std::move(piece_);
    piece_.reset();
    ReadOn();
  } else {
    message_.set_sha256(digest_->data(), digest_->size());
    digest_.reset();
    file_.reset();
  }
  return true;
}

std::string ExportContextCall::Work() const { return absl::StrFormat("bytes=%d ", bytes_sent_); }

}  // namespace goldfinch
