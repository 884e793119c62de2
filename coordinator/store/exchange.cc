#include "coordinator/store/exchange.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "base/check.h"
#include "base/crc32c.h"
#include "base/safe_text.h"
#include "base/safetensors_header.h"
#include "base/status.h"

namespace goldfinch {
namespace {

using What = SegmentSection::What;

constexpr int64_t kTensorsMax = kContextPartsMax + 2;  // parts, ids and logits
constexpr char kVersionKey[] = "goldfinch.context";
constexpr char kChecksumPrefix[] = "crc32c.";

// By ElementType.
constexpr std::array<std::string_view, 6> kTypeNames = {"F32", "I32", "F16", "BF16", "U16", "I8"};

template <typename... Why>
absl::Status Bad(const Why&... why) {
  return absl::InvalidArgumentError(absl::StrCat("the exchange file ", why...));
}

std::string_view SafetensorsName(ElementType type) { return kTypeNames[static_cast<size_t>(type)]; }

std::string TensorName(const SegmentSpec& segment, const SegmentSection& section) {
  if (section.what == What::kIds) return "ids";
  if (section.what == What::kLogits) return "logits";
  const ContextPart& part = segment.model.parts[section.part];
  return absl::StrCat("layers.", part.layer, ".", KindName(part.kind));
}

std::vector<int64_t> ShapeOf(const SegmentSpec& segment, const SegmentSection& section) {
  if (section.what == What::kIds) return {segment.tokens()};
  if (section.what == What::kLogits) return {segment.model.vocab_size};
  const ContextPart& part = segment.model.parts[section.part];
  std::vector<int64_t> shape = part.shape;
  if (part.per_token()) shape.insert(shape.begin(), segment.tokens());
  return shape;
}

// In the order of their bytes.
std::vector<ExchangeTensor> TensorsOf(const SegmentSpec& segment, const SegmentLayout& layout) {
  std::vector<ExchangeTensor> tensors;
  for (const int64_t element_bytes : {4, 2, 1}) {
    for (size_t i = 0; i < layout.sections.size(); ++i) {
      const SegmentSection& section = layout.sections[i];
      if (BytesOf(section.type) != element_bytes) continue;
      tensors.push_back({TensorName(segment, section), static_cast<int>(i), 0, section.bytes});
    }
  }
  return tensors;
}

std::string HeaderText(const ExchangeHeader& header) {
  const ContextModel& model = header.segment.model;
  nlohmann::ordered_json metadata = {
      {kVersionKey, absl::StrCat(model.identity.format_version)},
      {"fingerprint", model.identity.fingerprint},
      {"vocabulary", model.identity.vocabulary},
      {"cache_dtype", model.identity.cache_dtype},
      {"numerics", model.identity.numerics},
      {"vocab_size", absl::StrCat(model.vocab_size)},
      {"position", absl::StrCat(header.segment.end)},
      {"gold_position", absl::StrCat(header.segment.gold_position)},
  };
  for (const ExchangeTensor& tensor : header.tensors) {
    metadata[kChecksumPrefix + tensor.name] = absl::StrFormat("%08x", tensor.checksum);
  }
  nlohmann::ordered_json json = {{"__metadata__", std::move(metadata)}};
  int64_t at = 0;
  for (const ExchangeTensor& tensor : header.tensors) {
    const SegmentSection& section = header.layout.sections[tensor.section];
    json[tensor.name] = {{"dtype", SafetensorsName(section.type)},
                         {"shape", ShapeOf(header.segment, section)},
                         {"data_offsets", {at, at + tensor.bytes}}};
    at += tensor.bytes;
  }
  std::string text = json.dump(-1, ' ', true, nlohmann::ordered_json::error_handler_t::replace);
  text.append((8 - text.size() % 8) % 8, ' ');
  const uint64_t size = text.size();
  return std::string(reinterpret_cast<const char*>(&size), sizeof(size)) + text;
}

// ---- Reading

absl::StatusOr<int64_t> NumberOf(const SafetensorsHeader& file, const std::string& key) {
  const auto found = file.metadata.find(key);
  int64_t number = 0;
  if (found == file.metadata.end()) return Bad("has no ", Quoted(key), " in its metadata");
  if (!absl::SimpleAtoi(found->second, &number)) return Bad("has ", Quoted(found->second), " as its ", Quoted(key));
  return number;
}

absl::StatusOr<std::string> TextOf(const SafetensorsHeader& file, const std::string& key) {
  const auto found = file.metadata.find(key);
  if (found == file.metadata.end()) return Bad("has no ", Quoted(key), " in its metadata");
  return found->second;
}

absl::StatusOr<uint32_t> ChecksumOf(const SafetensorsHeader& file, const std::string& tensor) {
  GF_ASSIGN_OR_RETURN(const std::string text, TextOf(file, kChecksumPrefix + tensor));
  uint32_t checksum = 0;
  if (text.size() != 8 || !absl::SimpleHexAtoi(text, &checksum)) {
    return Bad("has ", Quoted(text), " as the checksum of tensor ", Quoted(tensor));
  }
  return checksum;
}

// The part that a tensor is, or nothing.
std::optional<ContextPart> PartOf(const SafetensorsEntry& entry) {
  const std::vector<std::string> words = absl::StrSplit(entry.name, '.');
  if (words.size() != 3 || words[0] != "layers") return std::nullopt;
  ContextPart part;
  const std::optional<StatePartKind> kind = ParseContextPartKind(words[2]);
  const auto* const type = std::find(kTypeNames.begin(), kTypeNames.end(), entry.dtype);
  if (!kind || type == kTypeNames.end() || !absl::SimpleAtoi(words[1], &part.layer)) return std::nullopt;
  part.kind = *kind;
  part.type = static_cast<ElementType>(type - kTypeNames.begin());
  // Numbers beyond int64 become negative, which LayOut refuses.
  part.shape.assign(entry.shape.begin(), entry.shape.end());
  if (part.per_token() && !part.shape.empty()) part.shape.erase(part.shape.begin());
  return part;
}

absl::Status ReadMetadata(const SafetensorsHeader& file, SegmentSpec* segment) {
  ContextIdentity& identity = segment->model.identity;
  GF_ASSIGN_OR_RETURN(const int64_t format, NumberOf(file, kVersionKey));
  if (format != kContextFormat) {
    return absl::FailedPreconditionError(
        absl::StrCat("the exchange file is of version ", format, ", this program reads version ", kContextFormat));
  }
  GF_ASSIGN_OR_RETURN(identity.fingerprint, TextOf(file, "fingerprint"));
  GF_ASSIGN_OR_RETURN(identity.vocabulary, TextOf(file, "vocabulary"));
  GF_ASSIGN_OR_RETURN(identity.cache_dtype, TextOf(file, "cache_dtype"));
  GF_ASSIGN_OR_RETURN(identity.numerics, TextOf(file, "numerics"));
  GF_ASSIGN_OR_RETURN(segment->model.vocab_size, NumberOf(file, "vocab_size"));
  GF_ASSIGN_OR_RETURN(segment->end, NumberOf(file, "position"));
  GF_ASSIGN_OR_RETURN(segment->gold_position, NumberOf(file, "gold_position"));
  return absl::OkStatus();
}

// Whether a tensor is what the layout says of its section.
absl::Status CheckTensor(const SafetensorsEntry& entry, const ExchangeHeader& header, const SegmentSection& section) {
  const std::vector<int64_t> shape = ShapeOf(header.segment, section);
  const uint64_t bytes = entry.data_offsets[1] - entry.data_offsets[0];
  const bool same_shape = std::equal(shape.begin(), shape.end(), entry.shape.begin(), entry.shape.end(),
                                     [](int64_t a, uint64_t b) { return static_cast<uint64_t>(a) == b; });
  if (!same_shape || entry.dtype != SafetensorsName(section.type) || bytes != static_cast<uint64_t>(section.bytes)) {
    return Bad("has tensor ", Quoted(entry.name), " of ", bytes, " bytes, whose type or shape does not fit position ",
               header.segment.end, " and a vocabulary of ", header.segment.model.vocab_size);
  }
  // The last two bytes of a row of 8 bits are its scale.
  if (section.what == What::kPart && section.type == ElementType::kI8 && shape.back() < 3) {
    return Bad("has tensor ", Quoted(entry.name), " with rows of ", shape.back(), " bytes");
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<ExchangeHeader> NewExchangeHeader(const SegmentSpec& segment, absl::Span<const uint32_t> checksums,
                                                 std::string* text) {
  ExchangeHeader header;
  header.segment = segment;
  header.segment.name_space.clear();
  GF_ASSIGN_OR_RETURN(header.layout, LayOut(segment));
  GF_CHECK(segment.begin == 0 && segment.has_snapshot && checksums.size() == header.layout.sections.size());
  header.tensors = TensorsOf(segment, header.layout);
  for (ExchangeTensor& tensor : header.tensors) tensor.checksum = checksums[tensor.section];
  *text = HeaderText(header);
  header.header_bytes = header.file_bytes = static_cast<int64_t>(text->size());
  for (ExchangeTensor& tensor : header.tensors) {
    tensor.offset = header.file_bytes;
    header.file_bytes += tensor.bytes;
  }
  return header;
}

absl::StatusOr<ExchangeHeader> ParseExchangeHeader(std::string_view json) {
  ExchangeHeader header;
  SegmentSpec& segment = header.segment;
  absl::StatusOr<SafetensorsHeader> file = ParseSafetensorsHeader(json);
  if (!file.ok()) return Bad("is damaged: ", std::string(file.status().message()));
  GF_RETURN_IF_ERROR(ReadMetadata(*file, &segment));
  segment.has_snapshot = true;
  // What the file claims of itself is below these limits from here on, so that no sum of it overflows.
  if (file->data_bytes > static_cast<uint64_t>(kSegmentBytesMax)) {
    return Bad("has tensors of ", file->data_bytes, " bytes, the limit is ", kSegmentBytesMax);
  }
  if (file->entries.size() > static_cast<size_t>(kTensorsMax)) {
    return Bad("has ", file->entries.size(), " tensors, the limit is ", kTensorsMax);
  }
  for (const SafetensorsEntry& entry : file->entries) {
    if (entry.name == "ids") continue;
    if (entry.name == "logits") {
      segment.has_logits = true;
      continue;
    }
    const std::optional<ContextPart> part = PartOf(entry);
    if (!part) return Bad("has tensor ", Quoted(entry.name), " of an unknown name or type");
    segment.model.parts.push_back(*part);
  }
  std::sort(segment.model.parts.begin(), segment.model.parts.end(), [](const ContextPart& a, const ContextPart& b) {
    return std::pair(a.layer, a.kind) < std::pair(b.layer, b.kind);
  });
  absl::StatusOr<SegmentLayout> layout = LayOut(segment);
  if (!layout.ok()) return Bad("does not fit: ", std::string(layout.status().message()));
  header.layout = *std::move(layout);
  header.tensors = TensorsOf(segment, header.layout);
  header.header_bytes = static_cast<int64_t>(kSafetensorsLengthBytes + json.size());
  header.file_bytes = header.header_bytes + static_cast<int64_t>(file->data_bytes);
  std::map<std::string, const SafetensorsEntry*> by_name;
  for (const SafetensorsEntry& entry : file->entries) by_name[entry.name] = &entry;
  if (by_name.size() != header.tensors.size()) {
    return Bad("has ", by_name.size(), " tensors, a context like this has ", header.tensors.size());
  }
  for (ExchangeTensor& tensor : header.tensors) {
    const auto found = by_name.find(tensor.name);
    if (found == by_name.end()) return Bad("has no tensor ", Quoted(tensor.name));
    GF_RETURN_IF_ERROR(CheckTensor(*found->second, header, header.layout.sections[tensor.section]));
    GF_ASSIGN_OR_RETURN(tensor.checksum, ChecksumOf(*file, tensor.name));
    tensor.offset = header.header_bytes + static_cast<int64_t>(found->second->data_offsets[0]);
  }
  // Another program may have written them in another order.
  std::sort(header.tensors.begin(), header.tensors.end(), [](const ExchangeTensor& a, const ExchangeTensor& b) {
    return std::pair(a.offset, a.bytes) < std::pair(b.offset, b.bytes);
  });
  return header;
}

absl::StatusOr<std::string> ExchangeFile(const SegmentSpec& segment, absl::Span<const std::string> sections) {
  std::vector<uint32_t> checksums;
  checksums.reserve(sections.size());
  for (const std::string& section : sections) checksums.push_back(Crc32c(section));
  std::string file;
  GF_ASSIGN_OR_RETURN(const ExchangeHeader header, NewExchangeHeader(segment, checksums, &file));
  for (const ExchangeTensor& tensor : header.tensors) {
    GF_CHECK_EQ(static_cast<int64_t>(sections[tensor.section].size()), tensor.bytes);
    file += sections[tensor.section];
  }
  return file;
}

}  // namespace goldfinch
