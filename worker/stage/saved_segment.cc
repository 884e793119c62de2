#include "worker/stage/saved_segment.h"

#include <algorithm>

namespace goldfinch {

std::shared_ptr<const Mark> CopyEnd::Pending() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (mark_ != nullptr && mark_->reached()) mark_ = nullptr;
  return mark_;
}

void SavedPart::ForEachRange(int64_t begin, int64_t bytes,
                             absl::FunctionRef<void(char* data, int64_t bytes)> use) const {
  for (const HostRange& range : ranges) {
    if (bytes <= 0) return;
    if (begin < range.bytes) {
      const int64_t count = std::min(bytes, range.bytes - begin);
      use(range.data + begin, count);
      bytes -= count;
      begin = 0;
    } else {
      begin -= range.bytes;
    }
  }
}

const SavedPart* SavedSegment::Find(int layer, StatePartKind kind) const {
  for (const std::shared_ptr<const SavedPart>& part : parts) {
    if (part->Is(layer, kind)) return part.get();
  }
  return nullptr;
}

}  // namespace goldfinch
