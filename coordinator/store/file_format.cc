#include "coordinator/store/file_format.h"

#include <cstring>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/crc32c.h"
#include "base/stage_extent.h"
#include "base/status.h"
#include "coordinator/store/store.pb.h"

namespace goldfinch {
namespace {

constexpr std::string_view kSegmentMagic = "GFSEGM\r\n";
constexpr std::string_view kNameMagic = "GFNAME\r\n";
constexpr uint32_t kFieldsBytesMax = 512 << 10;
constexpr int64_t kChecksumsMax = kSegmentBytesMax / kBlockBytes + kContextPartsMax + 2;
constexpr int64_t kSecondsMax = int64_t{1} << 40;

template <typename... What>
absl::Status Damaged(const What&... what) {
  return absl::DataLossError(absl::StrCat(what...));
}

void AppendU32(uint32_t number, std::string* out) { out->append(reinterpret_cast<const char*>(&number), 4); }

uint32_t U32At(std::string_view bytes, size_t at) {
  uint32_t number = 0;
  std::memcpy(&number, bytes.data() + at, sizeof(number));
  return number;
}

int64_t HeaderBytes(int64_t fields_bytes, int64_t checksums) {
  return kFilePrefixBytes + fields_bytes + 4 * checksums + 4;
}

std::string Encode(std::string_view magic, const std::string& fields, const std::vector<uint32_t>& checksums) {
  std::string out(magic);
  AppendU32(kStoreVersion, &out);
  AppendU32(static_cast<uint32_t>(fields.size()), &out);
  AppendU32(static_cast<uint32_t>(checksums.size()), &out);
  out += fields;
  for (const uint32_t checksum : checksums) AppendU32(checksum, &out);
  AppendU32(Crc32c(out), &out);
  return out;
}

absl::StatusOr<int64_t> HeaderBytesOf(std::string_view magic, std::string_view prefix) {
  if (prefix.size() < static_cast<size_t>(kFilePrefixBytes))
    return Damaged("it is cut short: ", prefix.size(), " bytes");
  if (prefix.substr(0, magic.size()) != magic) return Damaged("it does not begin like a file of the store");
  const uint32_t version = U32At(prefix, 8), fields_bytes = U32At(prefix, 12);
  const int64_t checksums = U32At(prefix, 16);
  if (version != kStoreVersion) {
    return absl::FailedPreconditionError(
        absl::StrCat("it is of version ", version, ", this program reads version ", kStoreVersion));
  }
  if (fields_bytes > kFieldsBytesMax || checksums > kChecksumsMax) {
    return Damaged("its header has ", fields_bytes, " bytes of fields and ", checksums, " checksums, the limits are ",
                   kFieldsBytesMax, " and ", kChecksumsMax);
  }
  return HeaderBytes(fields_bytes, checksums);
}

// Checks length and checksum of `header` and parses its fields.
template <typename Fields>
absl::Status Decode(std::string_view magic, std::string_view header, Fields* fields, std::vector<uint32_t>* checksums) {
  GF_ASSIGN_OR_RETURN(const int64_t bytes, HeaderBytesOf(magic, header));
  if (bytes != static_cast<int64_t>(header.size())) {
    return Damaged("its header has ", bytes, " bytes, there are ", header.size());
  }
  const std::string_view checked = header.substr(0, header.size() - 4);
  if (Crc32c(checked) != U32At(header, checked.size())) return Damaged("the checksum of its header is wrong");
  const uint32_t fields_bytes = U32At(header, 12), count = U32At(header, 16);
  if (!fields->ParseFromArray(header.data() + kFilePrefixBytes, static_cast<int>(fields_bytes))) {
    return Damaged("the fields of its header are damaged");
  }
  for (uint32_t i = 0; i < count; ++i) {
    checksums->push_back(U32At(header, kFilePrefixBytes + fields_bytes + 4 * size_t{i}));
  }
  return absl::OkStatus();
}

// Numbers beyond int64 become negative, which the checks of every field refuse.
int64_t Signed(uint64_t number) { return static_cast<int64_t>(number); }

std::string BytesOfKey(const SegmentKey& key) { return {reinterpret_cast<const char*>(key.data()), key.size()}; }

bool ReadKey(const std::string& bytes, SegmentKey* key) {
  if (bytes.size() != key->size()) return false;
  std::memcpy(key->data(), bytes.data(), key->size());
  return true;
}

// By the indices of parts; 0 where a segment has no section of one.
std::vector<int64_t> BytesOfParts(const SegmentSpec& segment, const SegmentLayout& layout) {
  std::vector<int64_t> bytes(segment.model.parts.size());
  for (const SegmentSection& section : layout.sections) {
    if (section.what == SegmentSection::What::kPart) bytes[section.part] = section.bytes;
  }
  return bytes;
}

std::string FieldsOf(const SegmentHeader& header) {
  const SegmentSpec& segment = header.segment;
  const ContextIdentity& identity = segment.model.identity;
  store::SegmentFields fields;
  fields.set_fingerprint(identity.fingerprint);
  fields.set_vocabulary(identity.vocabulary);
  fields.set_cache_dtype(identity.cache_dtype);
  fields.set_numerics(identity.numerics);
  fields.set_format(identity.format_version);
  fields.set_vocab_size(segment.model.vocab_size);
  const std::vector<int64_t> bytes_of_parts = BytesOfParts(segment, header.layout);
  for (size_t i = 0; i < segment.model.parts.size(); ++i) {
    const ContextPart& part = segment.model.parts[i];
    store::Part* out = fields.add_parts();
    out->set_layer(part.layer);
    out->set_kind(KindName(part.kind));
    out->set_type(Name(part.type));
    for (const int64_t number : part.shape) out->add_shape(number);
    out->set_bytes(bytes_of_parts[i]);
  }
  fields.set_namespace_(segment.name_space);
  fields.set_key(BytesOfKey(header.key));
  if (segment.parent) fields.set_parent(BytesOfKey(*segment.parent));
  fields.set_begin(segment.begin);
  fields.set_end(segment.end);
  fields.set_has_snapshot(segment.has_snapshot);
  fields.set_gold_position(segment.gold_position);
  fields.set_has_logits(segment.has_logits);
  fields.set_id_type(Name(header.layout.sections[0].type));
  fields.set_bytes(header.layout.bytes);
  return fields.SerializeAsString();
}

absl::StatusOr<ContextPart> PartOf(const store::Part& fields) {
  const std::optional<StatePartKind> kind = ParseContextPartKind(fields.kind());
  const std::optional<ElementType> type = ParseElementType(fields.type());
  if (!kind || !type || fields.layer() >= kModelLayersMax) return Damaged("it has a part of an unknown kind or type");
  return ContextPart{static_cast<int>(fields.layer()), *kind, *type, {fields.shape().begin(), fields.shape().end()}};
}

absl::Status FillSegment(const store::SegmentFields& fields, SegmentHeader* header) {
  SegmentSpec& segment = header->segment;
  segment.model.identity = {fields.fingerprint(), fields.vocabulary(), fields.cache_dtype(), fields.numerics(),
                            static_cast<int>(fields.format())};
  segment.model.vocab_size = Signed(fields.vocab_size());
  if (fields.parts_size() > kContextPartsMax) return Damaged("it has ", fields.parts_size(), " parts");
  for (const store::Part& part : fields.parts()) {
    GF_ASSIGN_OR_RETURN(segment.model.parts.emplace_back(), PartOf(part));
  }
  segment.name_space = fields.namespace_();
  if (!ReadKey(fields.key(), &header->key)) return Damaged("its key has ", fields.key().size(), " bytes");
  if (!fields.parent().empty() && !ReadKey(fields.parent(), &segment.parent.emplace())) {
    return Damaged("its parent's key has ", fields.parent().size(), " bytes");
  }
  segment.begin = Signed(fields.begin());
  segment.end = Signed(fields.end());
  segment.has_snapshot = fields.has_snapshot();
  segment.gold_position = Signed(fields.gold_position());
  segment.has_logits = fields.has_logits();
  auto layout = LayOut(segment);
  if (!layout.ok()) return Damaged(std::string(layout.status().message()));
  header->layout = *std::move(layout);
  return absl::OkStatus();
}

int64_t BlocksOfSections(const SegmentLayout& layout) {
  int64_t blocks = 0;
  for (const SegmentSection& section : layout.sections) blocks += BlocksOf(section.bytes);
  return blocks;
}

}  // namespace

int64_t SegmentHeader::FirstBlock(int section) const {
  int64_t block = 0;
  for (int i = 0; i < section; ++i) block += BlocksOf(layout.sections[i].bytes);
  return block;
}

void SegmentHeader::LeaveOutSnapshot() {
  segment.has_snapshot = segment.has_logits = false;
  segment.gold_position = 0;
  while (layout.sections.back().in_snapshot) layout.sections.pop_back();
  layout.bytes = layout.bytes_before_snapshot;
  checksums.resize(BlocksOfSections(layout));
}

absl::StatusOr<SegmentHeader> NewSegmentHeader(const SegmentSpec& segment) {
  SegmentHeader header;
  header.segment = segment;
  GF_ASSIGN_OR_RETURN(header.layout, LayOut(segment));
  header.checksums.resize(BlocksOfSections(header.layout));
  header.header_bytes =
      HeaderBytes(static_cast<int64_t>(FieldsOf(header).size()), static_cast<int64_t>(header.checksums.size()));
  return header;
}

std::string EncodeSegmentHeader(const SegmentHeader& header) {
  std::string bytes = Encode(kSegmentMagic, FieldsOf(header), header.checksums);
  GF_CHECK_EQ(static_cast<int64_t>(bytes.size()), header.header_bytes);
  return bytes;
}

absl::StatusOr<int64_t> SegmentHeaderBytes(std::string_view prefix) { return HeaderBytesOf(kSegmentMagic, prefix); }

absl::StatusOr<SegmentHeader> DecodeSegmentHeader(std::string_view bytes) {
  SegmentHeader header;
  store::SegmentFields fields;
  GF_RETURN_IF_ERROR(Decode(kSegmentMagic, bytes, &fields, &header.checksums));
  GF_RETURN_IF_ERROR(FillSegment(fields, &header));
  const SegmentLayout& layout = header.layout;
  bool agrees = fields.bytes() == static_cast<uint64_t>(layout.bytes) &&
                fields.id_type() == Name(layout.sections[0].type) &&
                BlocksOfSections(layout) == static_cast<int64_t>(header.checksums.size());
  const std::vector<int64_t> bytes_of_parts = BytesOfParts(header.segment, layout);
  for (int i = 0; i < fields.parts_size(); ++i) agrees = agrees && Signed(fields.parts(i).bytes()) == bytes_of_parts[i];
  if (!agrees) return Damaged("the sizes in its header do not agree");
  header.header_bytes = static_cast<int64_t>(bytes.size());
  return header;
}

absl::Status CheckName(const ContextName& name) {
  const auto check_text = [](const char* field, const std::string& text) {
    if (text.size() <= kContextTextBytesMax) return absl::OkStatus();
    return absl::InvalidArgumentError(
        absl::StrCat("the ", field, " of a context has ", text.size(), " bytes, the limit is ", kContextTextBytesMax));
  };
  const auto check_number = [](const char* field, int64_t number, int64_t max) {
    if (number >= 0 && number <= max) return absl::OkStatus();
    return absl::InvalidArgumentError(
        absl::StrCat("the ", field, " of a context is ", number, ", it must be from 0 to ", max));
  };
  if (name.name.empty()) return absl::InvalidArgumentError("the name of a context is empty");
  if (name.revision == 0) return absl::InvalidArgumentError("the revision of a context is 0, the first one is 1");
  GF_RETURN_IF_ERROR(check_text("name", name.name));
  GF_RETURN_IF_ERROR(check_text("namespace", name.name_space));
  GF_RETURN_IF_ERROR(check_number("position", name.position, kContextTokensMax));
  GF_RETURN_IF_ERROR(check_number("expiry", name.expires_unix_seconds, kSecondsMax));
  return check_number("time to keep", name.keep_seconds, kSecondsMax);
}

std::string EncodeName(const ContextName& name) {
  store::NameFields fields;
  fields.set_id(name.id);
  fields.set_namespace_(name.name_space);
  fields.set_name(name.name);
  fields.set_segment(BytesOfKey(name.segment));
  fields.set_position(name.position);
  fields.set_pinned(name.pinned);
  fields.set_expires_unix_seconds(name.expires_unix_seconds);
  fields.set_keep_seconds(name.keep_seconds);
  fields.set_revision(name.revision);
  return Encode(kNameMagic, fields.SerializeAsString(), {});
}

absl::StatusOr<ContextName> DecodeName(std::string_view file) {
  store::NameFields fields;
  std::vector<uint32_t> checksums;
  GF_RETURN_IF_ERROR(Decode(kNameMagic, file, &fields, &checksums));
  ContextName name = {fields.id(),
                      fields.namespace_(),
                      fields.name(),
                      {},
                      Signed(fields.position()),
                      fields.pinned(),
                      Signed(fields.expires_unix_seconds()),
                      Signed(fields.keep_seconds()),
                      fields.revision()};
  if (!checksums.empty() || !ReadKey(fields.segment(), &name.segment)) return Damaged("its fields are damaged");
  const absl::Status status = CheckName(name);
  if (!status.ok()) return Damaged(std::string(status.message()));
  return name;
}

}  // namespace goldfinch
