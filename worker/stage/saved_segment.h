// What one stage has saved of a segment of a text (docs/GLOSSARY.md), in the host's memory: the rows of its positions,
// and the snapshot at its end. Everything is kept by layer of the model, so that a stage with other layers can use it.
#ifndef GOLDFINCH_WORKER_STAGE_SAVED_SEGMENT_H_
#define GOLDFINCH_WORKER_STAGE_SAVED_SEGMENT_H_

#include <cstdint>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "absl/functional/function_ref.h"
#include "kernels/queue.h"
#include "worker/model/state_parts.h"

namespace goldfinch {

struct HostRange {
  char* data = nullptr;
  int64_t bytes = 0;
};

// The end of a copy. Thread-safe. It gives the copy's mark back as soon as anybody finds it reached, as segments are
// kept for hours, and a device has an event of its own for every mark that somebody holds.
class CopyEnd {
 public:
  explicit CopyEnd(std::shared_ptr<const Mark> mark) : mark_(std::move(mark)) {}
  // What to wait for; null if the copy has ended.
  std::shared_ptr<const Mark> Pending() const;

 private:
  mutable std::mutex mutex_;
  mutable std::shared_ptr<const Mark> mark_;
};

// The bytes of one part: what its positions have, one after another, or its value. They lie in ranges, in order, each
// of which but the last has a multiple of 64 bytes.
struct SavedPart {
  StatePart part;
  int64_t rows = 1;  // positions of a part that is per token
  std::vector<HostRange> ranges = {};
  std::shared_ptr<const CopyEnd> written = nullptr;  // of the copy that brings the bytes; null: they are there

  int64_t bytes() const { return rows * part.bytes(); }
  bool Is(int layer, StatePartKind kind) const { return part.layer == layer && part.kind == kind; }
  // Reached when the bytes are there; null: they are.
  std::shared_ptr<const Mark> Pending() const { return written == nullptr ? nullptr : written->Pending(); }
  // Calls `use` for bytes [begin, begin + bytes) of the part, range by range.
  void ForEachRange(int64_t begin, int64_t bytes, absl::FunctionRef<void(char* data, int64_t bytes)> use) const;
};

struct SavedSegment {
  int64_t begin = 0;  // its positions are [begin, end)
  int64_t end = 0;
  // Where there is a snapshot at `end`: the GOLD layers have run all positions before this one.
  int64_t gold_position = 0;
  std::vector<std::shared_ptr<const SavedPart>> parts = {};
  // The same one for the same text up to `end`, whoever saved it and when, and for no other; 0: it is not known.
  uint64_t number = 0;

  // Null if the segment lacks it.
  const SavedPart* Find(int layer, StatePartKind kind) const;
};

}  // namespace goldfinch

#endif  // GOLDFINCH_WORKER_STAGE_SAVED_SEGMENT_H_
