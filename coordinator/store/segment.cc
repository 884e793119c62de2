#include "coordinator/store/segment.h"

#include <algorithm>
#include <array>
#include <bit>
#include <tuple>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/safe_text.h"
#include "base/stage_extent.h"
#include "base/status.h"
#include "base/token_ids.h"

namespace goldfinch {
namespace {

static_assert(std::endian::native == std::endian::little, "numbers are kept as they lie in memory");

constexpr int64_t kShapeNumbersMax = 3;
constexpr int64_t kPartBytesMax = int64_t{1} << 36;  // of one sequence or one token
constexpr int64_t kVocabSizeMax = int64_t{1} << 31;

struct NamedType {
  ElementType type;
  const char* name;
  int64_t bytes;
};
constexpr std::array<NamedType, 6> kTypes = {{{ElementType::kF32, "f32", 4},
                                              {ElementType::kI32, "i32", 4},
                                              {ElementType::kF16, "f16", 2},
                                              {ElementType::kBf16, "bf16", 2},
                                              {ElementType::kU16, "u16", 2},
                                              {ElementType::kI8, "int8", 1}}};

template <typename... What>
absl::Status Bad(const What&... what) {
  return absl::InvalidArgumentError(absl::StrCat("a segment's ", what...));
}

absl::Status CheckRange(const char* field, int64_t value, int64_t min, int64_t max) {
  if (value >= min && value <= max) return absl::OkStatus();
  return Bad(field, " is ", value, ", it must be from ", min, " to ", max);
}

absl::Status CheckText(const char* field, std::string_view text) {
  if (text.size() <= kContextTextBytesMax) return absl::OkStatus();
  return Bad(field, " has ", text.size(), " bytes, the limit is ", kContextTextBytesMax);
}

std::string NameOf(const ContextPart& part) { return absl::StrCat("layers.", part.layer, ".", KindName(part.kind)); }

// Bytes for one sequence or one token.
absl::StatusOr<int64_t> PartBytes(const ContextPart& part) {
  const auto bad = [&](const auto&... what) { return Bad("part ", NameOf(part), " has ", what...); };
  if (part.shape.empty() || part.shape.size() > static_cast<size_t>(kShapeNumbersMax)) {
    return bad(part.shape.size(), " numbers in its shape, it must have from 1 to ", kShapeNumbersMax);
  }
  int64_t bytes = BytesOf(part.type);
  for (const int64_t number : part.shape) {
    if (number < 1 || number > kPartBytesMax / bytes) {
      return bad("the shape [", absl::StrJoin(part.shape, ", "), "], it must have from 1 to ", kPartBytesMax, " bytes");
    }
    bytes *= number;
  }
  return bytes;
}

// Adds up sections; no sum of sizes that passes can overflow.
class Layouter {
 public:
  absl::Status Add(SegmentSection section, int64_t times, int64_t bytes_each) {
    if (times > 0 && bytes_each > (kSegmentBytesMax - layout.bytes) / times) {
      return Bad("sections have more than ", kSegmentBytesMax, " bytes");
    }
    section.offset = layout.bytes;
    section.bytes = times * bytes_each;
    layout.bytes += section.bytes;
    if (!section.in_snapshot) layout.bytes_before_snapshot = layout.bytes;
    layout.sections.push_back(section);
    return absl::OkStatus();
  }

  SegmentLayout layout;
};

absl::Status CheckModel(const ContextModel& model) {
  GF_RETURN_IF_ERROR(CheckText("fingerprint of the model", model.identity.fingerprint));
  GF_RETURN_IF_ERROR(CheckText("vocabulary", model.identity.vocabulary));
  GF_RETURN_IF_ERROR(CheckText("type of the cache", model.identity.cache_dtype));
  GF_RETURN_IF_ERROR(CheckText("class of numerics", model.identity.numerics));
  GF_RETURN_IF_ERROR(CheckRange("format", model.identity.format_version, kContextFormat, kContextFormat));
  GF_RETURN_IF_ERROR(CheckRange("vocab_size", model.vocab_size, 1, kVocabSizeMax));
  GF_RETURN_IF_ERROR(CheckRange("number of parts", static_cast<int64_t>(model.parts.size()), 0, kContextPartsMax));
  const ContextPart* before = nullptr;
  for (const ContextPart& part : model.parts) {
    GF_RETURN_IF_ERROR(CheckRange("layer of a part", part.layer, 0, kModelLayersMax - 1));
    if (!IsContextPart(part.kind)) return Bad("model has the part ", NameOf(part), ", which belongs to no model");
    if (before != nullptr && std::tie(before->layer, before->kind) >= std::tie(part.layer, part.kind)) {
      return Bad("part ", NameOf(part), " comes behind ", NameOf(*before), "; parts ascend by layer and kind");
    }
    before = &part;
  }
  return absl::OkStatus();
}

absl::Status CheckPositions(const SegmentSpec& segment) {
  GF_RETURN_IF_ERROR(CheckRange("begin", segment.begin, 0, kContextTokensMax));
  GF_RETURN_IF_ERROR(CheckRange("end", segment.end, 0, kContextTokensMax));
  if (segment.begin > 0 && !segment.parent) return Bad("begin is ", segment.begin, ", but it has no parent");
  const bool empty = segment.end == 0 && segment.has_snapshot && !segment.parent;
  if (segment.begin >= segment.end && !empty) {
    return Bad("end is ", segment.end, ", which is not behind its begin, ", segment.begin);
  }
  if (!segment.has_snapshot && (segment.has_logits || segment.gold_position != 0)) {
    return Bad("logits and gold_position belong to a snapshot, and it has none");
  }
  if (segment.has_logits && segment.end == 0) return Bad("logits are those of its last token, and it has no token");
  return CheckRange("gold_position", segment.gold_position, 0, segment.end);
}

}  // namespace

int64_t BytesOf(ElementType type) { return kTypes[static_cast<size_t>(type)].bytes; }

const char* Name(ElementType type) { return kTypes[static_cast<size_t>(type)].name; }

std::optional<ElementType> ParseElementType(std::string_view name) {
  for (const NamedType& named : kTypes) {
    if (name == named.name) return named.type;
  }
  return std::nullopt;
}

bool IsContextPart(StatePartKind kind) { return kind != StatePartKind::kIds && kind != StatePartKind::kLogits; }

std::optional<StatePartKind> ParseContextPartKind(std::string_view name) {
  const std::optional<StatePartKind> kind = ParseKindName(name);
  return kind && IsContextPart(*kind) ? kind : std::nullopt;
}

std::string Hex(const SegmentKey& key) {
  return absl::BytesToHexString({reinterpret_cast<const char*>(key.data()), key.size()});
}

int SegmentLayout::Find(const ContextModel& model, int layer, StatePartKind kind) const {
  for (size_t i = 0; i < sections.size(); ++i) {
    if (sections[i].what != SegmentSection::What::kPart) continue;
    const ContextPart& part = model.parts[sections[i].part];
    if (part.layer == layer && part.kind == kind) return static_cast<int>(i);
  }
  return -1;
}

absl::StatusOr<SegmentLayout> LayOut(const SegmentSpec& segment) {
  using What = SegmentSection::What;
  const ContextModel& model = segment.model;
  GF_RETURN_IF_ERROR(CheckModel(model));
  GF_RETURN_IF_ERROR(CheckText("namespace", segment.name_space));
  GF_RETURN_IF_ERROR(CheckPositions(segment));
  Layouter layouter;
  const ElementType id_type = *ParseElementType(IdTypeName(model.vocab_size));
  GF_RETURN_IF_ERROR(layouter.Add({What::kIds, -1, id_type}, segment.tokens(), BytesOf(id_type)));
  for (const bool in_snapshot : {false, true}) {
    if (in_snapshot && !segment.has_snapshot) break;
    for (size_t i = 0; i < model.parts.size(); ++i) {
      const ContextPart& part = model.parts[i];
      if (part.per_token() == in_snapshot) continue;
      GF_ASSIGN_OR_RETURN(const int64_t bytes, PartBytes(part));
      SegmentSection section = {What::kPart, static_cast<int>(i), part.type};
      section.in_snapshot = in_snapshot;
      GF_RETURN_IF_ERROR(layouter.Add(section, in_snapshot ? 1 : segment.tokens(), bytes));
    }
  }
  if (segment.has_logits) {
    SegmentSection logits = {What::kLogits, -1, ElementType::kF32};
    logits.in_snapshot = true;
    GF_RETURN_IF_ERROR(layouter.Add(logits, model.vocab_size, BytesOf(ElementType::kF32)));
  }
  return std::move(layouter.layout);
}

absl::Status CheckSameModel(const ContextModel& have, const ContextModel& want) {
  if (have.identity != want.identity) {
    return absl::FailedPreconditionError(absl::StrCat("the context is of ", SafeText(have.identity.ToString()),
                                                      "; this model is ", SafeText(want.identity.ToString())));
  }
  if (have.vocab_size != want.vocab_size) {
    return absl::FailedPreconditionError(absl::StrCat("the context's model has a vocabulary of ", have.vocab_size,
                                                      " tokens; this model's has ", want.vocab_size));
  }
  if (have.parts == want.parts) return absl::OkStatus();
  const auto [a, b] = std::mismatch(have.parts.begin(), have.parts.end(), want.parts.begin(), want.parts.end());
  const auto describe = [](auto part, auto end) {
    if (part == end) return std::string("nothing more");
    return absl::StrCat(NameOf(*part), " of ", Name(part->type), " [", absl::StrJoin(part->shape, ", "), "]");
  };
  return absl::FailedPreconditionError(absl::StrCat("the context has ", describe(a, have.parts.end()),
                                                    " where this model has ", describe(b, want.parts.end())));
}

SegmentKeyHash::SegmentKeyHash(const SegmentSpec& segment) {
  const ContextIdentity& identity = segment.model.identity;
  AddText("goldfinch segment");
  AddText(identity.fingerprint);
  AddText(identity.vocabulary);
  AddText(identity.cache_dtype);
  AddText(identity.numerics);
  AddNumber(identity.format_version);
  AddText(segment.name_space);
  AddNumber(segment.parent ? static_cast<int64_t>(segment.parent->size()) : 0);
  if (segment.parent) AddBytes(*segment.parent);
  AddNumber(segment.tokens());
}

void SegmentKeyHash::AddIds(absl::Span<const int32_t> ids) {
  hash_.Add({reinterpret_cast<const char*>(ids.data()), ids.size() * sizeof(int32_t)});
}

void SegmentKeyHash::AddBytes(const Sha256Digest& bytes) {
  hash_.Add({reinterpret_cast<const char*>(bytes.data()), bytes.size()});
}

// The size goes before the text, so that no text can pass for the end of one and the beginning of the next.
void SegmentKeyHash::AddText(std::string_view text) {
  AddNumber(static_cast<int64_t>(text.size()));
  hash_.Add(text);
}

void SegmentKeyHash::AddNumber(int64_t number) { hash_.Add({reinterpret_cast<const char*>(&number), sizeof(number)}); }

SegmentKey KeyOf(const SegmentSpec& segment, absl::Span<const int32_t> ids) {
  return KeyOf(segment.model.identity, segment.name_space, segment.parent ? &*segment.parent : nullptr, ids);
}

}  // namespace goldfinch
