#include "coordinator/store/context_transfer.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/crc32c.h"
#include "base/status.h"

namespace goldfinch {

absl::StatusOr<std::unique_ptr<ContextExport>> ContextExport::Open(SegmentStore* store,
                                                                   absl::Span<const SegmentKey> chain) {
  if (chain.empty()) return absl::InvalidArgumentError("a context without a segment cannot be exported");
  std::unique_ptr<ContextExport> transfer(new ContextExport(store));
  GF_RETURN_IF_ERROR(transfer->ReadChain(chain));
  return transfer;
}

absl::Status ContextExport::ReadChain(absl::Span<const SegmentKey> chain) {
  SegmentSpec whole;
  std::vector<uint32_t> checksums;
  for (size_t i = 0; i < chain.size(); ++i) {
    chain_.push_back({chain[i]});
    GF_ASSIGN_OR_RETURN(const SegmentReader* const reader, ReaderOf(i));
    const SegmentSpec& segment = reader->segment();
    const bool continues = i == 0 ? segment.begin == 0 && !segment.parent
                                  : segment.parent == chain[i - 1] && segment.begin == chain_[i - 1].end &&
                                        segment.model == whole.model && segment.name_space == whole.name_space;
    if (!continues) {
      return absl::FailedPreconditionError(
          absl::StrCat("segment ", Hex(chain[i]), " does not continue the text that ends at ", whole.end));
    }
    chain_[i].begin = segment.begin;
    chain_[i].end = segment.end;
    // Sections that belong to the snapshot are the last ones, so that those of rows have the same numbers everywhere.
    const std::vector<SegmentSection>& sections = reader->layout().sections;
    checksums.resize(sections.size());
    for (size_t s = 0; s < sections.size(); ++s) {
      const uint32_t before = sections[s].in_snapshot ? 0 : checksums[s];
      checksums[s] = JoinCrc32c(before, reader->Checksum(static_cast<int>(s)), sections[s].bytes);
    }
    whole = segment;
  }
  if (chain_.size() > 1 && chain_[0].end == 0) {
    return absl::FailedPreconditionError(
        "the context begins with a tuned state, of which an exchange file cannot tell; export the state alone");
  }
  if (!whole.has_snapshot) {
    return absl::FailedPreconditionError(absl::StrCat("the context has no snapshot at its end, position ", whole.end));
  }
  whole.begin = 0;
  whole.parent.reset();
  GF_ASSIGN_OR_RETURN(header_, NewExchangeHeader(whole, checksums, &header_text_));
  return absl::OkStatus();
}

absl::StatusOr<SegmentReader*> ContextExport::ReaderOf(size_t link) {
  if (reader_ == nullptr || reader_link_ != link) {
    GF_ASSIGN_OR_RETURN(reader_, store_->Load(chain_[link].key));
    reader_link_ = link;
  }
  return reader_.get();
}

absl::Status ContextExport::Read(int64_t offset, absl::Span<char> bytes) {
  const auto size = static_cast<int64_t>(bytes.size());
  if (offset < 0 || offset > header_.file_bytes || size > header_.file_bytes - offset) {
    return absl::OutOfRangeError(absl::StrCat("bytes ", offset, " to ", offset, " + ", size,
                                              " of an exchange file, which has ", header_.file_bytes));
  }
  for (int64_t done = 0; done < size;) {
    GF_ASSIGN_OR_RETURN(const int64_t read, ReadSome(offset + done, bytes.subspan(done)));
    done += read;
  }
  if (hashed_ >= offset && hashed_ < offset + size) {
    hash_.Add(std::string_view(bytes.data(), bytes.size()).substr(hashed_ - offset));
    hashed_ = offset + size;
  }
  return absl::OkStatus();
}

absl::StatusOr<int64_t> ContextExport::ReadSome(int64_t offset, absl::Span<char> bytes) {
  const auto size = static_cast<int64_t>(bytes.size());
  if (offset < header_.header_bytes) {
    const int64_t part = std::min(size, header_.header_bytes - offset);
    std::memcpy(bytes.data(), header_text_.data() + offset, part);
    return part;
  }
  const auto next = std::upper_bound(header_.tensors.begin(), header_.tensors.end(), offset,
                                     [](int64_t at, const ExchangeTensor& tensor) { return at < tensor.offset; });
  const ExchangeTensor& tensor = *std::prev(next);
  const bool in_snapshot = header_.layout.sections[tensor.section].in_snapshot;
  int64_t at = offset - tensor.offset;
  int64_t part = std::min(size, tensor.bytes - at);
  size_t link = chain_.size() - 1;
  if (!in_snapshot) {
    const int64_t token_bytes = tensor.bytes / header_.segment.end;
    const auto found = std::upper_bound(chain_.begin(), chain_.end(), at / token_bytes,
                                        [](int64_t token, const Link& candidate) { return token < candidate.end; });
    link = found - chain_.begin();
    part = std::min(part, found->end * token_bytes - at);
    at -= found->begin * token_bytes;
  }
  GF_ASSIGN_OR_RETURN(SegmentReader* const reader, ReaderOf(link));
  if (in_snapshot && !reader->segment().has_snapshot) {
    return absl::NotFoundError("the context's snapshot has been dropped");
  }
  GF_RETURN_IF_ERROR(reader->Read(tensor.section, at, bytes.subspan(0, part)));
  return part;
}

absl::StatusOr<Sha256Digest> ContextExport::Digest() {
  GF_RETURN_IF_ERROR(DigestSome(header_.file_bytes).status());
  if (!digest_) digest_ = hash_.Finish();
  return *digest_;
}

absl::StatusOr<bool> ContextExport::DigestSome(int64_t bytes_max) {
  const int64_t end = hashed_ + std::min(bytes_max, header_.file_bytes - hashed_);
  std::string piece;
  while (hashed_ < end) {
    piece.resize(std::min(kBlockBytes, end - hashed_));
    GF_RETURN_IF_ERROR(Read(hashed_, absl::MakeSpan(piece)));
  }
  return hashed_ == header_.file_bytes;
}

Sha256Digest ContextExport::Version() const {
  Sha256 hash;
  hash.Add(header_text_);
  return hash.Finish();
}

absl::Status ContextImport::OnHeader(const ExchangeHeader& header) {
  if (options_.model) GF_RETURN_IF_ERROR(CheckSameModel(header.segment.model, *options_.model));
  SegmentSpec segment = header.segment;
  if (segment.end > options_.tokens_max) {
    return absl::InvalidArgumentError(
        absl::StrCat("the context has ", segment.end, " tokens, the limit is ", options_.tokens_max));
  }
  segment.name_space = options_.name_space;
  if (options_.make_room) {
    GF_ASSIGN_OR_RETURN(const SegmentHeader file, NewSegmentHeader(segment));
    GF_RETURN_IF_ERROR(options_.make_room(file.FileBytes(true)));
  }
  GF_ASSIGN_OR_RETURN(writer_, store_->Save(segment));
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<SegmentWriter>> ContextImport::Seal(const Sha256Digest* digest) {
  GF_RETURN_IF_ERROR(parser_.Finish(digest));
  GF_RETURN_IF_ERROR(writer_->Seal().status());
  return std::move(writer_);
}

absl::StatusOr<SegmentKey> ContextImport::Finish(const Sha256Digest* digest) {
  GF_ASSIGN_OR_RETURN(const std::unique_ptr<SegmentWriter> writer, Seal(digest));
  const absl::Status status = writer->Publish();
  if (!status.ok() && !absl::IsAlreadyExists(status)) return status;
  return writer->key();
}

}  // namespace goldfinch
