// The exchange file: a context as one safetensors file, which any program that reads safetensors can open.
//
// It has these tensors:
//   ids                 [n] U16 or I32, depending on the vocabulary
//   layers.L.rows       [n, ...]; likewise `keys` and `values`, if the model has them
//   layers.L.wkv        [...]; likewise the other parts of the snapshot at n
//   logits              [vocab] F32, if the context has them
// Tensors of n rows are empty at position 0. Tensors with larger elements come first, so that each is aligned. The
// metadata has `goldfinch.context`, which is the version of the format; the identity in `fingerprint`, `vocabulary`,
// `cache_dtype` and `numerics`; `vocab_size`, `position` (n) and `gold_position`; and for every tensor `crc32c.TENSOR`,
// eight hexadecimal digits. All other numbers are decimal. The bytes depend only on the context (identity, ids, parts
// and snapshot), not on the segments, the names or the server that it was kept in.
#ifndef GOLDFINCH_COORDINATOR_STORE_EXCHANGE_H_
#define GOLDFINCH_COORDINATOR_STORE_EXCHANGE_H_

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "base/sha256.h"
#include "coordinator/store/segment.h"

namespace goldfinch {

// The most that a header may have, lengths included.
inline constexpr int64_t kExchangeHeaderBytesMax = 4 << 20;

struct ExchangeTensor {
  std::string name;
  int section = 0;     // of the layout
  int64_t offset = 0;  // in the file
  int64_t bytes = 0;
  uint32_t checksum = 0;
};

struct ExchangeHeader {
  SegmentSpec segment;  // [0, n), without namespace
  SegmentLayout layout;
  std::vector<ExchangeTensor> tensors;  // in the order of their bytes
  int64_t header_bytes = 0;             // where the first tensor begins
  int64_t file_bytes = 0;
};

// The header of the file of `segment`, which begins at 0 and has a snapshot; `checksums` are those of its sections.
// *text gets the bytes with which the file begins. INVALID_ARGUMENT as LayOut.
absl::StatusOr<ExchangeHeader> NewExchangeHeader(const SegmentSpec& segment, absl::Span<const uint32_t> checksums,
                                                 std::string* text);
// Reads the JSON that follows the length. It may be anything: what is returned has passed LayOut. INVALID_ARGUMENT
// names the tensor or the key of the metadata.
absl::StatusOr<ExchangeHeader> ParseExchangeHeader(std::string_view json);
// A whole file in memory, for small contexts: `sections` are the bytes of the layout's.
absl::StatusOr<std::string> ExchangeFile(const SegmentSpec& segment, absl::Span<const std::string> sections);

// What an ExchangeParser finds. An error ends the parsing.
class ExchangeSink {
 public:
  virtual ~ExchangeSink() = default;
  virtual absl::Status OnHeader(const ExchangeHeader& header) = 0;
  virtual absl::Status OnIds(absl::Span<const int32_t> ids) = 0;
  // The next bytes of a section other than the ids.
  virtual absl::Status OnBytes(int section, std::string_view bytes) = 0;
};

// Reads an exchange file that comes in pieces of any size, and trusts nothing in it: it checks sizes, types, positions,
// ids and checksums, and that every number is finite. It takes memory for the header and 64 KiB more. Errors are final:
// INVALID_ARGUMENT, DATA_LOSS for a checksum, and the sink's.
class ExchangeParser {
 public:
  explicit ExchangeParser(ExchangeSink* sink) : sink_(sink) {}

  absl::Status Append(std::string_view bytes);
  int64_t received() const { return received_; }
  // OK if the whole file has come, and, where a digest is known, if its SHA-256 is that. To be called once.
  absl::Status Finish(const Sha256Digest* digest);

 private:
  absl::Status Take(std::string_view* bytes);
  absl::Status TakeHeader(std::string_view* bytes);
  absl::Status TakeTensor(std::string_view* bytes);
  absl::Status FinishTensors();
  absl::Status CheckElements(const ExchangeTensor& tensor, std::string_view elements);

  ExchangeSink* const sink_;
  absl::Status status_;
  std::string text_;  // of the header, as far as it has come
  bool has_header_ = false;
  ExchangeHeader header_;
  size_t tensor_ = 0;    // the tensor that comes next
  int64_t taken_ = 0;    // bytes of whole elements of it that have come
  std::string carried_;  // bytes of an element that has not come as a whole
  char last_byte_ = 0;   // of a tensor of 8 bits
  uint32_t checksum_ = 0;
  int64_t received_ = 0;
  Sha256 hash_;
};

}  // namespace goldfinch

#endif  // GOLDFINCH_COORDINATOR_STORE_EXCHANGE_H_
