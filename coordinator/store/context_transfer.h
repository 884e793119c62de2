// Reads contexts from a store, and writes them to it, as exchange files (exchange.h).
#ifndef GOLDFINCH_COORDINATOR_STORE_CONTEXT_TRANSFER_H_
#define GOLDFINCH_COORDINATOR_STORE_CONTEXT_TRANSFER_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "base/sha256.h"
#include "coordinator/store/exchange.h"
#include "coordinator/store/segment.h"
#include "coordinator/store/segment_reader.h"
#include "coordinator/store/segment_writer.h"
#include "coordinator/store/store.h"

namespace goldfinch {

// Reads the exchange file of a context, which is made as it is read: any part of it at any time, and always the same
// bytes, so that a transfer that broke off goes on at its offset, with another ContextExport, too. Keeps one segment
// open, and its block of 1 MiB. Every call waits for the disk; one thread at a time. The store outlives it.
class ContextExport {
 public:
  // `chain`: the keys of the context's segments, from position 0 on. NOT_FOUND for one that is not there (here and in
  // later calls), FAILED_PRECONDITION if they do not continue each other, or if the last one has no snapshot;
  // also for a text that begins with a tuned state, as the file would be taken for that of the same text without it.
  static absl::StatusOr<std::unique_ptr<ContextExport>> Open(SegmentStore* store, absl::Span<const SegmentKey> chain);

  int64_t bytes() const { return header_.file_bytes; }
  // Bytes [offset, offset + bytes.size()) of the file. OUT_OF_RANGE if it has fewer; else as SegmentReader.
  absl::Status Read(int64_t offset, absl::Span<char> bytes);
  // The SHA-256 of the whole file. Costs little after the file was read from its beginning to its end; what was not
  // read in this order is read for it.
  absl::StatusOr<Sha256Digest> Digest();
  // Does a part of that: reads at most so many bytes, and says whether none are left.
  absl::StatusOr<bool> DigestSome(int64_t bytes_max);
  // The SHA-256 of the header, which has the checksums of all else: two files that have the same one are the same.
  Sha256Digest Version() const;

 private:
  struct Link {
    SegmentKey key{};
    int64_t begin = 0;
    int64_t end = 0;
  };

  explicit ContextExport(SegmentStore* store) : store_(store) {}

  absl::Status ReadChain(absl::Span<const SegmentKey> chain);
  // Reads from the beginning of `bytes` on, and says how far it came.
  absl::StatusOr<int64_t> ReadSome(int64_t offset, absl::Span<char> bytes);
  absl::StatusOr<SegmentReader*> ReaderOf(size_t link);

  SegmentStore* const store_;
  ExchangeHeader header_;
  std::string header_text_;
  std::vector<Link> chain_;
  std::unique_ptr<SegmentReader> reader_;
  size_t reader_link_ = 0;
  Sha256 hash_;
  int64_t hashed_ = 0;  // bytes of the file
  std::optional<Sha256Digest> digest_;
};

struct ContextImportOptions {
  std::string name_space = {};             // whose the context will be
  std::optional<ContextModel> model = {};  // that the context must be of; else any
  int64_t tokens_max = kContextTokensMax;
  // Called once, when the header has come and is right, with the bytes that the segment's file will have: makes room
  // for them. An error ends the import. Null: what room there is must do.
  std::function<absl::Status(int64_t file_bytes)> make_room = nullptr;
};

// Takes an exchange file in as it comes, and believes nothing of it (ExchangeParser): nothing is in the store before
// all of it has been found right. The whole context becomes one segment. Every call waits for the disk; one thread at a
// time; so does its end, which removes what has come. The store outlives it. A transfer that broke off goes on at
// `received`, as long as this object lives.
class ContextImport : private ExchangeSink {
 public:
  ContextImport(SegmentStore* store, ContextImportOptions options)
      : store_(store), options_(std::move(options)), parser_(this) {}

  // The next bytes. Errors are final: ExchangeParser's, FAILED_PRECONDITION for another model, INVALID_ARGUMENT for too
  // many tokens, RESOURCE_EXHAUSTED as soon as the header tells that there is no room.
  absl::Status Append(std::string_view bytes) { return parser_.Append(bytes); }
  int64_t received() const { return parser_.received(); }
  // The end of the file, and its SHA-256 where the sender has told it. Returns when the segment is on the disk; a
  // segment that was in the store already is as good. To be called once.
  absl::StatusOr<SegmentKey> Finish(const Sha256Digest* digest = nullptr);
  // The same without the last step, which gives the segment its place in the store: SegmentWriter::Publish. Instead of
  // Finish.
  absl::StatusOr<std::unique_ptr<SegmentWriter>> Seal(const Sha256Digest* digest = nullptr);

 private:
  absl::Status OnHeader(const ExchangeHeader& header) override;
  absl::Status OnIds(absl::Span<const int32_t> ids) override { return writer_->AppendIds(ids); }
  absl::Status OnBytes(int section, std::string_view bytes) override { return writer_->Append(section, bytes); }

  SegmentStore* const store_;
  const ContextImportOptions options_;
  std::unique_ptr<SegmentWriter> writer_;
  ExchangeParser parser_;
};

}  // namespace goldfinch

#endif  // GOLDFINCH_COORDINATOR_STORE_CONTEXT_TRANSFER_H_
