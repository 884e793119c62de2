#include "worker/checkpoint/fingerprint.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string_view>

#include "absl/strings/str_format.h"

namespace goldfinch {
namespace {

constexpr int64_t kSampleBytes = 4096;  // read at each of three places of a tensor

class Hash {
 public:
  void Add(std::string_view bytes) {
    Mix(bytes.size());
    for (; bytes.size() >= 8; bytes.remove_prefix(8)) Mix(Word(bytes.substr(0, 8)));
    Mix(Word(bytes));
  }
  void Mix(uint64_t word) {  // the finalizer of splitmix64
    uint64_t z = state_ ^ word;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB;
    state_ = (z ^ (z >> 31)) + 0x9E3779B97F4A7C15;
  }
  uint64_t value() const { return state_; }

 private:
  static uint64_t Word(std::string_view bytes) {
    uint64_t word = 0;
    std::memcpy(&word, bytes.data(), bytes.size());
    return word;
  }

  uint64_t state_ = 0;
};

}  // namespace

std::string Fingerprint(const Checkpoint& checkpoint) {
  Hash hash;
  for (const CheckpointTensor& tensor : checkpoint.tensors()) {
    hash.Add(tensor.name);
    hash.Add(Name(tensor.data.dtype));
    hash.Mix(tensor.data.shape.rank());
    for (int axis = 0; axis < tensor.data.shape.rank(); ++axis) hash.Mix(tensor.data.shape[axis]);
    for (const ConstTensor& data : {tensor.data, tensor.scales}) {
      if (!data) continue;
      const std::string_view bytes(static_cast<const char*>(data.data), data.bytes());
      const size_t size = std::min<size_t>(bytes.size(), kSampleBytes);
      for (const size_t begin : {size_t{0}, (bytes.size() - size) / 2, bytes.size() - size}) {
        hash.Add(bytes.substr(begin, size));
      }
    }
  }
  return absl::StrFormat("%016x", hash.value());
}

}  // namespace goldfinch
