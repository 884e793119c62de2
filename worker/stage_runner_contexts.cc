// The parts of a step that save sequences to the shelf, and open them from there.
#include <cstring>
#include <memory>
#include <optional>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "protos/cluster.pb.h"
#include "worker/stage_runner.h"

namespace goldfinch {

using cluster::v1::ChunkResult;
using cluster::v1::NewSequence;
using cluster::v1::SaveSegment;
using cluster::v1::Step;
using cluster::v1::StepDone;

namespace {

// What the sequence that the step opens at `index` is a copy of; null: it is opened by itself, or what it names is not
// opened before it.
const NewSequence* Original(const Step& step, int index) {
  for (int i = 0; i < index; ++i) {
    if (step.open(i).sequence() == step.open(index).copy_of()) return &step.open(i);
  }
  return nullptr;
}

}  // namespace

absl::Status StageRunner::OpenCopy(const Step& step, int index) {
  const NewSequence& message = step.open(index);
  const NewSequence* const original = Original(step, index);
  if (original == nullptr) {
    return Invalid("copy_of: sequence ", message.sequence(), " is a copy of ", message.copy_of(),
                   ", which this step does not open before it");
  }
  if (!message.restore().empty()) return Invalid("copy_of: sequence ", message.sequence(), " has restore, too");
  if (is_last_ && message.draw() && (!message.has_seed() || original->restore().empty())) {
    return Invalid("draw: sequence ", message.sequence(), " has no seed, or is no copy of one with restore");
  }
  GF_ASSIGN_OR_RETURN(const Sequence* of, Find(message.copy_of(), "copy_of"));
  return AddCopy(message, *of, "copy_of");
}

absl::StatusOr<int> StageRunner::Restore(const NewSequence& message) {
  if (shelf_ == nullptr) return Invalid("restore: sequence ", message.sequence(), ", and there is no shelf");
  const std::vector<uint64_t> chain(message.restore().begin(), message.restore().end());
  int slot = 0;
  const absl::Status status = shelf_->Restore(
      chain, [&](absl::Span<const SavedSegment* const> segments) -> absl::StatusOr<std::shared_ptr<const Mark>> {
        GF_ASSIGN_OR_RETURN(slot, stage_.Restore(segments));
        return backend_.queue().Record();
      });
  if (!status.ok()) {
    return absl::Status(status.code(),
                        absl::StrCat("Step: restore: sequence ", message.sequence(), ": ", status.message()));
  }
  return slot;
}

// The tokens that follow restored sequences and copies of them. Their logits are on the host.
absl::Status StageRunner::Draw(const Step& step, StepDone* done) {
  std::optional<SavedSegment> segment;  // that restored_logits_ are of
  for (int i = 0; i < step.open_size(); ++i) {
    const NewSequence& message = step.open(i);
    if (!message.draw()) continue;
    const NewSequence& restored = message.copy_of() != 0 ? *Original(step, i) : message;
    const uint64_t number = *restored.restore().rbegin();
    if (!segment || segment->number != number) {
      GF_ASSIGN_OR_RETURN(segment, shelf_->Find(number));
      GF_RETURN_IF_ERROR(LoadLogits(*segment));
    }
    GF_ASSIGN_OR_RETURN(Sequence * sequence, Find(message.sequence(), "draw"));
    ChunkResult* result = done->add_results();
    result->set_sequence(message.sequence());
    SampleInto(restored_logits_, *sequence, segment->end, result);
  }
  return absl::OkStatus();
}

// Fills restored_logits_ with those of the segment's snapshot.
absl::Status StageRunner::LoadLogits(const SavedSegment& segment) {
  const SavedPart* const part = segment.Find(shape_.layers() - 1, StatePartKind::kLogits);
  if (part == nullptr) return Invalid("draw: segment ", segment.number, " has no logits");
  if (const std::shared_ptr<const Mark> mark = part->Pending(); mark != nullptr) mark->Wait();
  GF_RETURN_IF_ERROR(backend_.status());
  restored_logits_.resize(shape_.vocab_size);
  char* to = reinterpret_cast<char*>(restored_logits_.data());
  part->ForEachRange(0, part->bytes(), [&](const char* data, int64_t bytes) {
    std::memcpy(to, data, bytes);
    to += bytes;
  });
  return absl::OkStatus();
}

// Those that may be closed by the same step.
absl::Status StageRunner::SaveWithoutChunks(const Step& step, StepDone* done) {
  if (step.saves().empty()) return absl::OkStatus();
  absl::flat_hash_set<uint64_t> with_chunks;
  for (const cluster::v1::Chunk& chunk : step.chunks()) with_chunks.insert(chunk.sequence());
  for (const SaveSegment& message : step.saves()) {
    if (!with_chunks.contains(message.sequence())) GF_RETURN_IF_ERROR(Save(message, {}, done));
  }
  return absl::OkStatus();
}

absl::Status StageRunner::SaveWithChunks(const Step& step, ConstTensor logits, StepDone* done) {
  if (step.saves().empty()) return absl::OkStatus();
  absl::flat_hash_map<uint64_t, ConstTensor> last_rows;  // of logits, by sequence
  int64_t row = 0;
  for (size_t i = 0; i < chunks_.size(); ++i) {
    row += chunks_[i].logit_rows;
    const bool has_logits = logits && chunks_[i].logit_rows > 0;
    last_rows[step.chunks(static_cast<int>(i)).sequence()] = has_logits ? Rows(logits, row - 1, 1) : ConstTensor();
  }
  for (const SaveSegment& message : step.saves()) {
    const auto found = last_rows.find(message.sequence());
    if (found != last_rows.end()) GF_RETURN_IF_ERROR(Save(message, found->second, done));
  }
  return absl::OkStatus();
}

// `logits` [1, vocab]: those that follow its last token; empty if there are none.
absl::Status StageRunner::Save(const SaveSegment& message, ConstTensor logits, StepDone* done) {
  GF_ASSIGN_OR_RETURN(const Sequence* sequence, Find(message.sequence(), "saves"));
  const int64_t position = stage_.position(sequence->slot);
  if (message.begin() > static_cast<uint64_t>(position)) {
    return Invalid("saves: begin of sequence ", message.sequence(), " is ", message.begin(), ", it has taken ",
                   position, " tokens");
  }
  const auto copy = [&](const SavedSegment& to) { return stage_.Save(sequence->slot, logits, to); };
  const absl::Status status = shelf_ == nullptr
                                  ? absl::ResourceExhaustedError("there is no shelf")
                                  : shelf_->Save(message.segment(), static_cast<int64_t>(message.begin()), position,
                                                 stage_.gold_position(sequence->slot), static_cast<bool>(logits), copy);
  if (absl::IsResourceExhausted(status)) {
    done->add_unsaved(message.segment());
  } else if (!status.ok()) {
    return Invalid("saves: ", status.message());
  }
  return absl::OkStatus();
}

}  // namespace goldfinch
