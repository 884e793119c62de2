// What is kept of a text: a segment, its parts and its key, as plain data. docs/GLOSSARY.md has the words.
//
// A segment has the ids and the per-token parts of the positions [begin, end) of a text. It may also have the snapshot
// at `end`: everything else that a sequence is there. The segment that ends at `begin` is its parent; one that begins
// at 0 has none. There is one exception: a segment of no tokens, with begin = end = 0, is a snapshot alone, which is a
// tuned initial state. A text that was read from such a state has it as the parent of its first segment, which begins
// at 0. So it has another key than the same ids that were read without it.
#ifndef GOLDFINCH_COORDINATOR_STORE_SEGMENT_H_
#define GOLDFINCH_COORDINATOR_STORE_SEGMENT_H_

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "base/sha256.h"
#include "base/state_part_kind.h"
#include "coordinator/contexts/segment_key.h"

namespace goldfinch {

// The version of what parts mean. A change that makes old bytes wrong is a new number.
inline constexpr int kContextFormat = 1;

inline constexpr int64_t kContextPartsMax = 4096;
inline constexpr int64_t kContextTokensMax = int64_t{1} << 40;
inline constexpr int64_t kSegmentBytesMax = int64_t{1} << 42;

enum class ElementType : uint8_t { kF32, kI32, kF16, kBf16, kU16, kI8 };
int64_t BytesOf(ElementType type);
// "f32", "i32", "f16", "bf16", "u16", "int8".
const char* Name(ElementType type);
std::optional<ElementType> ParseElementType(std::string_view name);

// Whether it is a part of ContextModel: every kind but ids and logits, which SegmentSpec has beside its model.
bool IsContextPart(StatePartKind kind);
// Nothing if no such kind has this name.
std::optional<StatePartKind> ParseContextPartKind(std::string_view name);

// Everything is kept by layer of the model, whatever stages made it.
struct ContextPart {
  int layer = 0;
  StatePartKind kind = StatePartKind::kTimeShift;  // IsContextPart
  ElementType type = ElementType::kF32;
  std::vector<int64_t> shape;  // of one sequence or one token; 1 to 3 numbers

  bool per_token() const { return IsPerToken(kind); }
  bool operator==(const ContextPart&) const = default;
};

// A model, as far as its contexts need it.
struct ContextModel {
  ContextIdentity identity;
  int64_t vocab_size = 0;
  std::vector<ContextPart> parts;  // ascending by (layer, kind)

  bool operator==(const ContextModel&) const = default;
};

std::string Hex(const SegmentKey& key);

struct SegmentSpec {
  ContextModel model;
  std::string name_space;  // who may see it: an API key's name, or empty
  std::optional<SegmentKey> parent;
  int64_t begin = 0;
  int64_t end = 0;
  bool has_snapshot = false;
  // The GOLD layers have run all positions before this one, at most `end`; 0 without a snapshot.
  int64_t gold_position = 0;
  bool has_logits = false;  // the snapshot has the logits that follow the last token

  int64_t tokens() const { return end - begin; }
};

// Where the bytes of one part lie. Sections follow each other without gaps: the ids, then the per-token parts, then the
// other parts, then the logits. So what belongs to the snapshot is last, and can be cut off.
struct SegmentSection {
  enum class What : uint8_t { kIds, kPart, kLogits };
  What what = What::kIds;
  int part = -1;                         // in ContextModel::parts
  ElementType type = ElementType::kI32;  // ids: u16 where the vocabulary allows, else i32
  int64_t offset = 0;                    // from the first section
  int64_t bytes = 0;
  bool in_snapshot = false;
};

struct SegmentLayout {
  std::vector<SegmentSection> sections;  // the ids come first, always; sections may be empty only if there is no token
  int64_t bytes = 0;                     // of all sections
  int64_t bytes_before_snapshot = 0;

  // The index of the section of a part, or -1 if the segment has none.
  int Find(const ContextModel& model, int layer, StatePartKind kind) const;
};

// Where the sections of a segment lie. Checks every field of it and all sizes: INVALID_ARGUMENT names the field and the
// limit.
absl::StatusOr<SegmentLayout> LayOut(const SegmentSpec& segment);
// Whether a context of the model `have` is of use for the model `want`, which takes that they are equal.
// FAILED_PRECONDITION names the first thing that differs, as it is in both.
absl::Status CheckSameModel(const ContextModel& have, const ContextModel& want);

// Computes the key of a segment while its ids come. It is that of coordinator/contexts/segment_key.h. That key is of
// ids, of which a segment of no tokens has none: the key of such a segment also covers its snapshot.
class SegmentKeyHash {
 public:
  explicit SegmentKeyHash(const SegmentSpec& segment);

  void AddIds(absl::Span<const int32_t> ids);
  // For segments of no tokens: the digest of each section of the snapshot, in their order.
  void AddSection(const Sha256Digest& digest) { AddBytes(digest); }
  SegmentKey Finish() { return hash_.Finish(); }

 private:
  void AddBytes(const Sha256Digest& bytes);
  void AddText(std::string_view text);
  void AddNumber(int64_t number);

  Sha256 hash_;
};
SegmentKey KeyOf(const SegmentSpec& segment, absl::Span<const int32_t> ids);

}  // namespace goldfinch

#endif  // GOLDFINCH_COORDINATOR_STORE_SEGMENT_H_
