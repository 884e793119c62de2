// Runs the steps of one generation on one stage: receives rows, runs Stage::Forward, sends rows on, and in the last
// stage draws tokens and scores.
#ifndef GOLDFINCH_WORKER_STAGE_RUNNER_H_
#define GOLDFINCH_WORKER_STAGE_RUNNER_H_

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <unordered_map>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/types/span.h"
#include "kernels/backend.h"
#include "worker/context_shelf.h"
#include "worker/stage/sampler.h"
#include "worker/stage/scorer.h"
#include "worker/stage/stage.h"
#include "worker/stage_assignment.h"
#include "worker/transport/transport.h"

namespace goldfinch {

namespace cluster::v1 {
class Chunk;
class ChunkResult;
class NewSequence;
class SaveSegment;
class Step;
class StepDone;
}  // namespace cluster::v1

// A step that the back end may not have finished. For one thread at a time. Times are taken by the host's clock; the
// end of what a device does is when Poll has seen it.
class RunningStep {
 public:
  // Whether the whole step is done. Does not wait. Takes the times, so it has to be called often.
  bool Poll();
  // When Poll first returned true.
  std::chrono::steady_clock::time_point end() const { return end_; }
  // Sets busy_seconds and bubble_seconds of a step that is done. `free_since` is when the step before it was done.
  void FillTimes(std::chrono::steady_clock::time_point free_since, cluster::v1::StepDone* done) const;

 private:
  friend class StageRunner;
  using Clock = std::chrono::steady_clock;

  Clock::time_point begin_;
  std::shared_ptr<const Mark> rows_;  // reached when its rows have arrived; null from then on, and without rows
  std::shared_ptr<const Mark> done_;
  Clock::time_point receive_begin_;
  Clock::time_point receive_end_;  // receive_begin_ where there are no rows to receive
  double send_seconds_ = 0;        // during which sends have blocked
  Clock::time_point end_;
};

// For one thread at a time. After any error the generation must end, as its stages no longer agree on the sequences.
class StageRunner {
 public:
  // `stage` has the assignment's layers and no open sequence. It, the back end and the shelf must outlive the runner.
  // Without a shelf, nothing is saved. RESOURCE_EXHAUSTED: there is no memory for rows from other stages.
  static absl::StatusOr<std::unique_ptr<StageRunner>> Create(const StageAssignment& assignment, Backend& backend,
                                                             Stage& stage, ContextShelf* shelf = nullptr);
  // Closes all sequences that are open.
  ~StageRunner();
  StageRunner(const StageRunner&) = delete;
  StageRunner& operator=(const StageRunner&) = delete;

  // Runs the step, or queues it on the back end and returns before it is done. Fills all of `done` except generation,
  // id and seconds; the results are valid once `running` is done and neither the transport nor the back end has failed.
  // INVALID_ARGUMENT names what is wrong with the step; other errors are those of Stage and Transport.
  absl::Status Run(const cluster::v1::Step& step, Transport& transport, cluster::v1::StepDone* done,
                   RunningStep* running);

 private:
  struct Sequence {
    int slot = 0;
    int64_t step = 0;  // the last step that had a chunk of it, counted by steps_
    std::optional<Sampler> sampler = {};
  };

  // What is wrong with a step.
  template <class... Parts>
  static absl::Status Invalid(const Parts&... parts) {
    return absl::InvalidArgumentError(absl::StrCat("Step: ", parts...));
  }

  StageRunner(const StageAssignment& assignment, Backend& backend, Stage& stage, ContextShelf* shelf);
  absl::Status AllocateBuffer(const Shape& shape, DType dtype, Tensor* buffer);

  absl::StatusOr<Sequence*> Find(uint64_t id, const char* field);
  absl::Status Add(const cluster::v1::NewSequence& message, absl::StatusOr<int> slot, std::optional<Sampler> sampler);
  absl::Status AddCopy(const cluster::v1::NewSequence& message, const Sequence& of, const char* field);
  absl::Status Close(const cluster::v1::Step& step);
  absl::Status Open(const cluster::v1::Step& step);
  absl::Status OpenCopy(const cluster::v1::Step& step, int index);
  absl::StatusOr<int> Restore(const cluster::v1::NewSequence& message);
  absl::Status Draw(const cluster::v1::Step& step, cluster::v1::StepDone* done);
  absl::Status LoadLogits(const SavedSegment& segment);
  absl::Status SaveWithoutChunks(const cluster::v1::Step& step, cluster::v1::StepDone* done);
  absl::Status SaveWithChunks(const cluster::v1::Step& step, ConstTensor logits, cluster::v1::StepDone* done);
  absl::Status Save(const cluster::v1::SaveSegment& message, ConstTensor logits, cluster::v1::StepDone* done);
  absl::Status ReadChunks(const cluster::v1::Step& step);
  absl::Status ReadIds(const cluster::v1::Chunk& message);
  absl::Status CheckResultFields(const cluster::v1::Chunk& message) const;
  absl::Status Receive(Transport& transport, cluster::v1::StepDone* done, RunningStep* running, StageInput* input);
  absl::Status Send(Transport& transport, const StageOutput& output, RunningStep* running);
  // Returns the rows in memory that the host can read; they stay there until the next call. Waits for them.
  ConstTensor OnHost(ConstTensor rows);
  absl::Status FillResults(const cluster::v1::Step& step, ConstTensor logits, cluster::v1::StepDone* done);
  // Fills drawn_ with the tokens that the back end draws itself, which it does where the host cannot read its memory.
  void DrawOnDevice(const cluster::v1::Step& step, ConstTensor logits);
  // Returns `count` rows of logits from row `first` on.
  absl::Span<const float> RowsOnHost(ConstTensor logits, int64_t first, int64_t count);
  // Draws the token of position `position` from the logits of the one before.
  void SampleInto(absl::Span<const float> logits, Sequence& sequence, int64_t position,
                  cluster::v1::ChunkResult* result);
  void ScoreInto(const cluster::v1::Chunk& message, absl::Span<const float> logits, cluster::v1::ChunkResult* result);
  absl::Status Fork(const cluster::v1::Step& step);
  void FillTiers(cluster::v1::StepDone* done) const;

  const StageAssignment assignment_;
  Backend& backend_;
  Stage& stage_;
  ContextShelf* const shelf_;  // may be null
  const ModelShape& shape_;
  const bool is_last_;
  const bool reads_ids_;    // the stage embeds ids, or keeps them with compressed rows
  const int64_t id_bytes_;  // of one id in a Chunk

  std::vector<std::shared_ptr<void>> memory_;
  Tensor hidden_;      // [hidden_rows_max, D]
  Tensor compressed_;  // [max_step_tokens, CompressedRowWidth of D/16]
  // For logits that the host reads; null where the host can read the back end's memory.
  std::unique_ptr<char[]> staging_;
  int64_t staging_bytes_ = 0;

  std::unordered_map<uint64_t, Sequence> sequences_;
  SamplerScratch scratch_;
  Scorer scorer_;

  const int64_t drops_before_;  // of kept rows, in earlier generations of the stage
  int64_t steps_ = 0;           // how many have been run, the current one included

  // Vectors of the current step, kept to reuse their memory.
  std::vector<float> restored_logits_;
  std::vector<int32_t> ids_;
  std::vector<Chunk> chunks_;
  std::vector<Sequence*> owners_;                  // the sequence of each chunk
  std::vector<int32_t> drawn_;                     // for each row of logits: the token, or kNotDrawn
  std::vector<SampleRow> draws_;                   // how to draw from rows that follow each other
  std::vector<std::vector<LogitChange>> changes_;  // what draws_ refer to
};

}  // namespace goldfinch

#endif  // GOLDFINCH_WORKER_STAGE_RUNNER_H_
