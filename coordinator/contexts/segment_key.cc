#include "coordinator/contexts/segment_key.h"

#include <algorithm>
#include <cstddef>

#include "absl/strings/str_cat.h"
#include "base/sha256.h"

namespace goldfinch {
namespace {

class Hasher {
 public:
  void Bytes(const uint8_t* bytes, size_t size) { digest_.Add({reinterpret_cast<const char*>(bytes), size}); }
  // Little-endian.
  void Number(uint64_t number) {
    std::array<uint8_t, 8> bytes;
    for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<uint8_t>(number >> (8 * i));
    Bytes(bytes.data(), bytes.size());
  }
  void Text(std::string_view text) {
    Number(text.size());
    digest_.Add(text);
  }
  SegmentKey Digest() { return digest_.Finish(); }

 private:
  Sha256 digest_;
};

}  // namespace

std::string ContextIdentity::ToString() const {
  return absl::StrCat(fingerprint, "/", vocabulary, "/", cache_dtype, "/", numerics, "/", format_version);
}

SegmentKey KeyOf(const ContextIdentity& identity, std::string_view name_space, const SegmentKey* parent,
                 absl::Span<const int32_t> ids) {
  Hasher hasher;
  hasher.Text("goldfinch segment");
  hasher.Text(identity.fingerprint);
  hasher.Text(identity.vocabulary);
  hasher.Text(identity.cache_dtype);
  hasher.Text(identity.numerics);
  hasher.Number(static_cast<uint64_t>(identity.format_version));
  hasher.Text(name_space);
  hasher.Number(parent == nullptr ? 0 : parent->size());
  if (parent != nullptr) hasher.Bytes(parent->data(), parent->size());
  hasher.Number(ids.size());
  std::array<uint8_t, 4096> buffer;  // ids are hashed as little-endian numbers of four bytes
  constexpr size_t kIds = buffer.size() / 4;
  while (!ids.empty()) {
    const size_t count = std::min(kIds, ids.size());
    for (size_t i = 0; i < count; ++i) {
      const auto id = static_cast<uint32_t>(ids[i]);
      for (size_t j = 0; j < 4; ++j) buffer[4 * i + j] = static_cast<uint8_t>(id >> (8 * j));
    }
    hasher.Bytes(buffer.data(), 4 * count);
    ids.remove_prefix(count);
  }
  return hasher.Digest();
}

}  // namespace goldfinch
