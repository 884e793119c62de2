// What names a segment wherever its bytes are kept.
#ifndef GOLDFINCH_COORDINATOR_CONTEXTS_SEGMENT_KEY_H_
#define GOLDFINCH_COORDINATOR_CONTEXTS_SEGMENT_KEY_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "absl/types/span.h"

namespace goldfinch {

using SegmentKey = std::array<uint8_t, 32>;

// The most bytes of each text that names something of contexts: of an identity, of a namespace, of a context's name.
inline constexpr size_t kContextTextBytesMax = 256;

// Contexts can share bytes only if their identities are equal.
struct ContextIdentity {
  std::string fingerprint;  // of the checkpoint, as the workers describe it
  std::string vocabulary;
  std::string cache_dtype;
  std::string numerics;  // "cpu-f32", "cuda-bf16", ...
  int format_version = 1;

  bool operator==(const ContextIdentity&) const = default;
  auto operator<=>(const ContextIdentity&) const = default;
  // For messages: the fields in the order above, with '/' between them.
  std::string ToString() const;
};

// SHA-256 over identity, namespace, the parent's key (null: the segment begins at 0) and the ids of the segment. Every
// text is preceded by its length, so no two different inputs have the same bytes.
SegmentKey KeyOf(const ContextIdentity& identity, std::string_view name_space, const SegmentKey* parent,
                 absl::Span<const int32_t> ids);

}  // namespace goldfinch

#endif  // GOLDFINCH_COORDINATOR_CONTEXTS_SEGMENT_KEY_H_
