#include "coordinator/contexts/packed_ids.h"

#include <algorithm>
#include <cstring>

#include "base/check.h"

namespace goldfinch {
namespace {

// Blocks are compared without a branch in them, which compilers turn into SIMD.
constexpr size_t kBlock = 64;

bool IsWide(absl::Span<const int32_t> ids) {
  uint32_t bits = 0;
  for (const int32_t id : ids) bits |= static_cast<uint32_t>(id);
  return bits > UINT16_MAX;
}

template <typename Stored>
size_t EqualIds(const Stored* stored, const int32_t* ids, size_t count) {
  size_t done = 0;
  for (; done + kBlock <= count; done += kBlock) {
    uint32_t difference = 0;
    for (size_t i = 0; i < kBlock; ++i) {
      Stored value;
      std::memcpy(&value, stored + done + i, sizeof(value));
      difference |= static_cast<uint32_t>(value) ^ static_cast<uint32_t>(ids[done + i]);
    }
    if (difference != 0) break;
  }
  for (; done < count; ++done) {
    Stored value;
    std::memcpy(&value, stored + done, sizeof(value));
    if (static_cast<uint32_t>(value) != static_cast<uint32_t>(ids[done])) break;
  }
  return done;
}

}  // namespace

PackedIds::PackedIds(absl::Span<const int32_t> ids) : wide_(IsWide(ids)) {
  units_.resize(ids.size() * stride());
  if (wide_) {
    std::memcpy(units_.data(), ids.data(), ids.size() * sizeof(int32_t));
  } else {
    std::copy(ids.begin(), ids.end(), units_.begin());
  }
}

int32_t PackedIds::operator[](size_t index) const {
  if (!wide_) return units_[index];
  int32_t id;
  std::memcpy(&id, &units_[2 * index], sizeof(id));
  return id;
}

size_t PackedIds::CommonPrefix(absl::Span<const int32_t> ids) const {
  const size_t count = std::min(size(), ids.size());
  if (!wide_) return EqualIds(units_.data(), ids.data(), count);
  return EqualIds(reinterpret_cast<const uint32_t*>(units_.data()), ids.data(), count);
}

PackedIds PackedIds::TakeFront(size_t count) {
  GF_CHECK_LE(count, size());
  const uint16_t* const middle = units_.data() + count * stride();
  PackedIds front(units_.data(), middle, wide_);
  units_ = std::vector<uint16_t>(middle, static_cast<const uint16_t*>(units_.data() + units_.size()));
  return front;
}

void PackedIds::Append(const PackedIds& other) {
  if (wide_ == other.wide_) {
    std::vector<uint16_t> units;
    units.reserve(units_.size() + other.units_.size());
    units.insert(units.end(), units_.begin(), units_.end());
    units.insert(units.end(), other.units_.begin(), other.units_.end());
    units_ = std::move(units);
    return;
  }
  std::vector<int32_t> ids(size() + other.size());
  CopyTo(ids.data());
  other.CopyTo(ids.data() + size());
  *this = PackedIds(ids);
}

void PackedIds::CopyTo(int32_t* out) const {
  if (wide_) {
    std::memcpy(out, units_.data(), units_.size() * sizeof(uint16_t));
  } else {
    std::copy(units_.begin(), units_.end(), out);
  }
}

}  // namespace goldfinch
