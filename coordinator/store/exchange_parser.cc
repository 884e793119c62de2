// ExchangeParser of exchange.h.
#include <algorithm>
#include <cstring>
#include <string>

#include "absl/strings/str_cat.h"
#include "base/crc32c.h"
#include "base/safe_text.h"
#include "base/safetensors_header.h"
#include "base/status.h"
#include "coordinator/store/exchange.h"

namespace goldfinch {
namespace {

constexpr size_t kPieceBytes = 64 << 10;

template <typename... Why>
absl::Status Bad(const Why&... why) {
  return absl::InvalidArgumentError(absl::StrCat("the exchange file ", why...));
}

// Whether none of the numbers, whose bits these are, has an exponent of ones only, as NaN and infinities have.
template <typename Bits>
bool AllFinite(std::string_view elements, Bits exponent) {
  bool finite = true;
  for (size_t at = 0; at < elements.size(); at += sizeof(Bits)) {
    Bits bits;
    std::memcpy(&bits, elements.data() + at, sizeof(bits));
    finite &= (bits & exponent) != exponent;
  }
  return finite;
}

// The only numbers of 8-bit rows that can be otherwise are the scales: bf16, in the last two bytes of every row. `at`
// is the first byte's place in its tensor, *low the byte before it, and then the last one.
bool AllScalesFinite(std::string_view bytes, int64_t at, int64_t row_bytes, char* low) {
  const auto count = static_cast<int64_t>(bytes.size());
  bool finite = true;
  for (int64_t i = row_bytes - 1 - at % row_bytes; i < count; i += row_bytes) {
    const char first = i == 0 ? *low : bytes[i - 1];
    finite &= (bytes[i] & 0x7F) != 0x7F || (first & 0x80) == 0;
  }
  if (count > 0) *low = bytes.back();
  return finite;
}

template <typename Id>
std::vector<int32_t> IdsOf(std::string_view elements) {
  std::vector<int32_t> ids;
  ids.reserve(elements.size() / sizeof(Id));
  for (size_t at = 0; at < elements.size(); at += sizeof(Id)) {
    Id id;
    std::memcpy(&id, elements.data() + at, sizeof(id));
    ids.push_back(id);
  }
  return ids;
}

}  // namespace

absl::Status ExchangeParser::Append(std::string_view bytes) {
  while (status_.ok() && !bytes.empty()) {
    std::string_view piece = bytes.substr(0, kPieceBytes);
    const size_t before = piece.size();
    status_ = Take(&piece);
    const std::string_view taken = bytes.substr(0, before - piece.size());
    hash_.Add(taken);
    received_ += static_cast<int64_t>(taken.size());
    bytes.remove_prefix(taken.size());
  }
  return status_;
}

absl::Status ExchangeParser::Take(std::string_view* bytes) {
  if (!has_header_) return TakeHeader(bytes);
  if (tensor_ == header_.tensors.size()) return Bad("has more than the ", header_.file_bytes, " bytes of its tensors");
  return TakeTensor(bytes);
}

absl::Status ExchangeParser::TakeHeader(std::string_view* bytes) {
  const auto take = [&](size_t wanted) {
    const std::string_view part = bytes->substr(0, wanted - std::min(wanted, text_.size()));
    text_ += part;
    bytes->remove_prefix(part.size());
  };
  take(kSafetensorsLengthBytes);
  if (text_.size() < kSafetensorsLengthBytes) return absl::OkStatus();
  absl::StatusOr<size_t> json_bytes = SafetensorsHeaderBytes(text_, kExchangeHeaderBytesMax);
  if (!json_bytes.ok()) return Bad(std::string(json_bytes.status().message()));
  take(kSafetensorsLengthBytes + *json_bytes);
  if (text_.size() < kSafetensorsLengthBytes + *json_bytes) return absl::OkStatus();
  GF_ASSIGN_OR_RETURN(header_, ParseExchangeHeader(std::string_view(text_).substr(kSafetensorsLengthBytes)));
  text_ = std::string();
  has_header_ = true;
  GF_RETURN_IF_ERROR(sink_->OnHeader(header_));
  return FinishTensors();
}

absl::Status ExchangeParser::TakeTensor(std::string_view* bytes) {
  const ExchangeTensor& tensor = header_.tensors[tensor_];
  const SegmentSection& section = header_.layout.sections[tensor.section];
  const std::string_view part = bytes->substr(0, tensor.bytes - taken_ - static_cast<int64_t>(carried_.size()));
  bytes->remove_prefix(part.size());
  std::string joined;
  std::string_view elements = part;
  if (!carried_.empty()) {
    joined = carried_ + std::string(part);
    elements = joined;
  }
  const size_t whole = elements.size() - elements.size() % BytesOf(section.type);
  const std::string rest(elements.substr(whole));
  elements = elements.substr(0, whole);
  GF_RETURN_IF_ERROR(CheckElements(tensor, elements));
  checksum_ = Crc32c(elements, checksum_);
  if (section.what == SegmentSection::What::kIds) {
    GF_RETURN_IF_ERROR(
        sink_->OnIds(section.type == ElementType::kU16 ? IdsOf<uint16_t>(elements) : IdsOf<int32_t>(elements)));
  } else {
    GF_RETURN_IF_ERROR(sink_->OnBytes(tensor.section, elements));
  }
  carried_ = rest;
  taken_ += static_cast<int64_t>(whole);
  return FinishTensors();
}

// Goes on behind all tensors that are complete, as empty ones are.
absl::Status ExchangeParser::FinishTensors() {
  while (tensor_ < header_.tensors.size() && taken_ == header_.tensors[tensor_].bytes) {
    const ExchangeTensor& tensor = header_.tensors[tensor_];
    if (checksum_ != tensor.checksum) {
      return absl::DataLossError(
          absl::StrCat("the exchange file is damaged: the checksum of tensor ", Quoted(tensor.name), " is wrong"));
    }
    ++tensor_;
    taken_ = 0;
    checksum_ = 0;
  }
  return absl::OkStatus();
}

absl::Status ExchangeParser::CheckElements(const ExchangeTensor& tensor, std::string_view elements) {
  const SegmentSection& section = header_.layout.sections[tensor.section];
  bool good = true;
  switch (section.type) {
    case ElementType::kF32:
      good = AllFinite<uint32_t>(elements, 0x7F800000);
      break;
    case ElementType::kF16:
      good = AllFinite<uint16_t>(elements, 0x7C00);
      break;
    case ElementType::kBf16:
      good = AllFinite<uint16_t>(elements, 0x7F80);
      break;
    case ElementType::kI8:
      good = AllScalesFinite(elements, taken_, header_.segment.model.parts[section.part].shape.back(), &last_byte_);
      break;
    case ElementType::kI32:
    case ElementType::kU16:
      break;
  }
  if (good && section.what == SegmentSection::What::kIds) {
    const int64_t vocab_size = header_.segment.model.vocab_size;
    for (const int32_t id : section.type == ElementType::kU16 ? IdsOf<uint16_t>(elements) : IdsOf<int32_t>(elements)) {
      if (id < 0 || id >= vocab_size) {
        return Bad("has the token id ", id, ", the vocabulary has ", vocab_size, " tokens");
      }
    }
  }
  if (good) return absl::OkStatus();
  return Bad("has a number in tensor ", Quoted(tensor.name), " that is not finite");
}

absl::Status ExchangeParser::Finish(const Sha256Digest* digest) {
  GF_RETURN_IF_ERROR(status_);
  if (!has_header_ || tensor_ < header_.tensors.size()) {
    return Bad("is truncated: ", received_, has_header_ ? absl::StrCat(" of ", header_.file_bytes) : "", " bytes");
  }
  if (digest != nullptr && hash_.Finish() != *digest) {
    return absl::DataLossError("the exchange file is damaged: its SHA-256 is not the one that was sent");
  }
  return absl::OkStatus();
}

}  // namespace goldfinch
