// Token ids in as little memory as their values allow.
#ifndef GOLDFINCH_COORDINATOR_CONTEXTS_PACKED_IDS_H_
#define GOLDFINCH_COORDINATOR_CONTEXTS_PACKED_IDS_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/types/span.h"

namespace goldfinch {

// Two bytes an id if all are below 65,536, otherwise four. Not thread-safe.
class PackedIds {
 public:
  PackedIds() = default;
  explicit PackedIds(absl::Span<const int32_t> ids);

  size_t size() const { return units_.size() / stride(); }
  bool empty() const { return units_.empty(); }
  int32_t operator[](size_t index) const;
  int64_t bytes() const { return static_cast<int64_t>(units_.capacity() * sizeof(uint16_t)); }

  // How many ids at the beginning of both are equal.
  size_t CommonPrefix(absl::Span<const int32_t> ids) const;
  // Takes the first `count` ids away and returns them.
  PackedIds TakeFront(size_t count);
  void Append(const PackedIds& other);
  // Writes the ids to `out`, which has size() places.
  void CopyTo(int32_t* out) const;

 private:
  PackedIds(const uint16_t* begin, const uint16_t* end, bool wide) : units_(begin, end), wide_(wide) {}
  size_t stride() const { return wide_ ? 2 : 1; }

  std::vector<uint16_t> units_;  // of a wide id both halves, as they lie in memory
  bool wide_ = false;
};

}  // namespace goldfinch

#endif  // GOLDFINCH_COORDINATOR_CONTEXTS_PACKED_IDS_H_
