// Any bytes as a segment's header, as the file of a name and as an exchange file. The first byte says which; with its
// highest bit the checksum of a header is put right, so that what is behind it is reached.
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/types/span.h"
#include "base/check.h"
#include "base/crc32c.h"
#include "coordinator/store/exchange.h"
#include "coordinator/store/file_format.h"

namespace goldfinch {
namespace {

// Whatever a parser lets through fits its layout.
class CheckingSink : public ExchangeSink {
 public:
  absl::Status OnHeader(const ExchangeHeader& header) override {
    const auto layout = LayOut(header.segment);
    GF_CHECK(layout.ok());
    GF_CHECK_EQ(header.file_bytes, header.header_bytes + layout->bytes);
    GF_CHECK_EQ(header.tensors.size(), layout->sections.size());
    for (const SegmentSection& section : layout->sections) left_.push_back(section.bytes);
    vocab_size_ = header.segment.model.vocab_size;
    id_bytes_ = BytesOf(layout->sections[0].type);
    return absl::OkStatus();
  }
  absl::Status OnIds(absl::Span<const int32_t> ids) override {
    for (const int32_t id : ids) GF_CHECK(id >= 0 && id < vocab_size_);
    Take(0, static_cast<int64_t>(ids.size()) * id_bytes_);
    return absl::OkStatus();
  }
  absl::Status OnBytes(int section, std::string_view bytes) override {
    GF_CHECK_GT(section, 0);
    Take(section, static_cast<int64_t>(bytes.size()));
    return absl::OkStatus();
  }
  void CheckComplete() const {
    for (const int64_t left : left_) GF_CHECK_EQ(left, 0);
  }

 private:
  void Take(int section, int64_t bytes) {
    left_.at(section) -= bytes;
    GF_CHECK_GE(left_[section], 0);
  }

  std::vector<int64_t> left_;
  int64_t vocab_size_ = 0;
  int64_t id_bytes_ = 0;
};

void ReadHeader(std::string_view bytes) {
  (void)SegmentHeaderBytes(bytes.substr(0, kFilePrefixBytes));
  const auto header = DecodeSegmentHeader(bytes);
  if (!header.ok()) return;
  const auto layout = LayOut(header->segment);
  GF_CHECK(layout.ok());
  GF_CHECK_EQ(layout->bytes, header->layout.bytes);
  // What was read is written the same, but for fields that this version does not know.
  const auto again = DecodeSegmentHeader([&] {
    auto copy = NewSegmentHeader(header->segment);
    GF_CHECK(copy.ok());
    copy->key = header->key;
    copy->checksums = header->checksums;
    return EncodeSegmentHeader(*copy);
  }());
  GF_CHECK(again.ok() && again->key == header->key && again->checksums == header->checksums);
}

void ReadName(std::string_view bytes) {
  const auto name = DecodeName(bytes);
  if (name.ok()) {
    GF_CHECK(*DecodeName(EncodeName(*name)) == *name);
  }
}

void ReadExchangeFile(std::string_view bytes, size_t piece_bytes) {
  CheckingSink sink;
  ExchangeParser parser(&sink);
  for (size_t at = 0; at < bytes.size(); at += piece_bytes) {
    if (!parser.Append(bytes.substr(at, piece_bytes)).ok()) return;
  }
  if (parser.Finish(nullptr).ok()) sink.CheckComplete();
}

}  // namespace
}  // namespace goldfinch

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  std::string bytes(reinterpret_cast<const char*>(data + 1), size - 1);
  if ((data[0] & 0x80) != 0 && bytes.size() >= 4) {
    const uint32_t checksum = goldfinch::Crc32c(std::string_view(bytes).substr(0, bytes.size() - 4));
    bytes.replace(bytes.size() - 4, 4, reinterpret_cast<const char*>(&checksum), 4);
  }
  switch (data[0] & 3) {
    case 0:
      goldfinch::ReadHeader(bytes);
      break;
    case 1:
      goldfinch::ReadName(bytes);
      break;
    case 2:
      goldfinch::ReadExchangeFile(bytes, bytes.size());
      break;
    default:
      goldfinch::ReadExchangeFile(bytes, 1 + (data[0] >> 2) % 16);
  }
  return 0;
}
