// One pass over the bytes of a checkpoint: checksums, NaN and infinity.
#ifndef GOLDFINCH_WORKER_CHECKPOINT_SCAN_H_
#define GOLDFINCH_WORKER_CHECKPOINT_SCAN_H_

#include <cstdint>
#include <functional>
#include <string_view>
#include <vector>

#include "kernels/tensor.h"
#include "worker/checkpoint/layout.h"

namespace goldfinch {

// Whether an element is NaN or infinite. The bytes may be unaligned; bytes behind the last whole element are not looked
// at.
bool HasNonFinite(std::string_view bytes, DType dtype);

struct PartScan {
  uint32_t crc32 = 0;
  bool non_finite = false;  // only parts with a dtype are looked at
};

// The scan of each part, in their order, by `threads` threads, the calling one among them. `progress` (may be null) is
// called by the calling thread, with the bytes read so far.
std::vector<PartScan> ScanParts(const std::vector<const FilePart*>& parts, bool checksums, int threads,
                                const std::function<void(int64_t bytes)>& progress);

}  // namespace goldfinch

#endif  // GOLDFINCH_WORKER_CHECKPOINT_SCAN_H_
