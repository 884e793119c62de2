// The shelf of a worker (docs/GLOSSARY.md): saved segments by number, in a bounded part of the host's memory. The
// worker's own stage saves segments there and opens sequences from them; others come from outside, part by part. A
// shelf knows nothing of texts: the coordinator decides who needs which segment, and what is dropped when.
#ifndef GOLDFINCH_WORKER_CONTEXT_SHELF_H_
#define GOLDFINCH_WORKER_CONTEXT_SHELF_H_

#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string_view>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/compute_device.h"
#include "kernels/queue.h"
#include "worker/host_arena.h"
#include "worker/model/state_parts.h"
#include "worker/stage/saved_segment.h"

namespace goldfinch {

// What a shelf accepts: the parts of the stage that uses it, for sequences of a limited length.
struct ShelfParts {
  std::vector<StatePart> parts;  // Stage::saved_parts()
  int64_t vocab_size = 0;
  int64_t max_sequence_tokens = 0;  // Form.max_sequence_tokens
};

// Bytes of a part that comes from outside, as they were sent: nothing in them is trusted.
struct PartPiece {
  uint64_t segment = 0;
  StatePart part;
  int64_t begin = 0;  // of the segment
  int64_t end = 0;
  int64_t gold_position = 0;  // of the snapshot, for parts of it
  int64_t offset = 0;         // in the part
  std::string_view bytes;
  std::optional<uint32_t> crc32c;  // of the whole part, with its last piece
};

// Thread-safe, except Put and AbandonPut. It takes all its memory when it is made. What it keeps besides, to find the
// parts, is bounded too, because every part counts kPartOverheadBytes more than its bytes.
class ContextShelf {
 public:
  // The memory comes from `device`, which must outlive the shelf. With 0 bytes, nothing can be kept. RESOURCE_EXHAUSTED
  // if there is no memory.
  static absl::StatusOr<std::unique_ptr<ContextShelf>> Create(ComputeDevice& device, int64_t bytes);
  // Waits until no copy uses the memory any more.
  ~ContextShelf();

  // Forgets all segments: they belong to another coordinator, or to another model.
  void Clear();
  // From now on, parts have to be those of this stage. What is there stays, whatever stage has saved it.
  void SetParts(ShelfParts parts);

  // ---- For the thread that runs the stage's steps.

  // Saves a segment of positions [begin, end) under a number. Rows that are there already are not saved again; a
  // snapshot that is there is replaced. `copy` queues the copies (Stage::Save) and returns their mark.
  // RESOURCE_EXHAUSTED, which leaves everything as it was, if there is no room. If the number has parts of other
  // positions, they came after the coordinator had dropped them, and are freed.
  absl::Status Save(uint64_t segment, int64_t begin, int64_t end, int64_t gold_position, bool logits,
                    absl::FunctionRef<std::shared_ptr<const Mark>(const SavedSegment& to)> copy);
  // Calls `open` (Stage::Restore) with the segments of a chain, and keeps them until the mark that it returns is
  // reached. NOT_FOUND names a segment that is not there; other errors are those of `open`.
  absl::Status Restore(
      absl::Span<const uint64_t> chain,
      absl::FunctionRef<absl::StatusOr<std::shared_ptr<const Mark>>(absl::Span<const SavedSegment* const>)> open);

  // ---- For any thread.

  // Frees a segment, or only its snapshot, as soon as no copy uses it. Nothing happens if it is not there.
  void Drop(uint64_t segment);
  void DropSnapshot(uint64_t segment);
  // The segment with the parts that are there; they stay as long as the copy does. NOT_FOUND if there is none.
  absl::StatusOr<SavedSegment> Find(uint64_t segment) const;
  // Waits until the bytes of a part are there. The fault of the device, if they never will be. CANCELLED if `wanted`,
  // which is called now and then, says that nobody waits for them any more: a device may be held up for long.
  absl::Status Await(const SavedPart& part, absl::FunctionRef<bool()> wanted) const;
  int64_t bytes() const { return arena_->bytes(); }
  int64_t used_bytes();

  // ---- From outside: for one thread at a time.

  // Takes the next piece of a part, or the first piece of another part, which drops an unfinished one. The part is on
  // the shelf after its last piece, if its checksum is right, its numbers are finite and its ids are in the vocabulary;
  // else DATA_LOSS. INVALID_ARGUMENT names what is wrong with a piece, the value and the limit, before any memory is
  // taken; RESOURCE_EXHAUSTED says how much room there is. After an error the part must begin anew. A part that is
  // there already stays as it is.
  absl::Status Put(const PartPiece& piece);
  // Drops an unfinished part.
  void AbandonPut();

 private:
  // A part on its way from outside.
  struct Incoming {
    uint64_t segment = 0;
    uint64_t epoch = 0;
    std::shared_ptr<SavedPart> part = nullptr;
    int64_t begin = 0;
    int64_t end = 0;
    int64_t gold_position = 0;
    int64_t received = 0;
    uint32_t crc32c = 0;
  };
  struct Held {
    std::shared_ptr<const Mark> until;
    std::vector<std::shared_ptr<const SavedPart>> parts;
  };

  ContextShelf(const ComputeDevice& device, std::shared_ptr<void> memory, int64_t bytes);

  // Null if there is no room.
  std::shared_ptr<SavedPart> MakePart(const StatePart& part, int64_t rows) const;
  absl::Status FullError(int64_t bytes) const;
  absl::Status PutPiece(const PartPiece& piece);
  absl::Status Finish(const Incoming& incoming, const PartPiece& piece);

  // ---- With mutex_ held.

  absl::Status CheckPiece(const PartPiece& piece) const;
  // Checks it against what the shelf has of the segment.
  absl::Status CheckAgrees(const PartPiece& piece) const;
  void LetGo();  // of what is held without need: parts that no copy uses any more, and marks of copies that have ended

  const ComputeDevice& device_;
  const std::shared_ptr<HostArena> arena_;  // parts release what they have of it

  mutable std::mutex mutex_;
  ShelfParts accepted_;
  uint64_t epoch_ = 0;  // how often it was cleared
  std::map<uint64_t, SavedSegment> segments_;
  std::deque<Held> held_;

  std::optional<Incoming> incoming_;  // of the thread that calls Put
};

}  // namespace goldfinch

#endif  // GOLDFINCH_WORKER_CONTEXT_SHELF_H_
