// Opens the model that a worker serves, and loads the stage of it that a Form assigns to the worker.
#ifndef GOLDFINCH_WORKER_STAGE_LOADER_H_
#define GOLDFINCH_WORKER_STAGE_LOADER_H_

#include <cstdint>
#include <memory>
#include <string>
#include <unordered_set>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/stage_memory.h"
#include "kernels/backend.h"
#include "worker/checkpoint/checkpoint.h"
#include "worker/model/model.h"
#include "worker/model/model_config.h"
#include "worker/stage/stage.h"
#include "worker/stage_assignment.h"
#include "worker/worker_options.h"

namespace goldfinch {

namespace cluster::v1 {
class Described;
class Form;
class Welcome;
}  // namespace cluster::v1

// Keeps the model and the stage from one generation to the next, so that a group that forms again with the same layers
// and limits loads nothing. For one thread at a time.
class StageLoader {
 public:
  // `options` and `backend` must outlive the loader.
  StageLoader(const WorkerOptions& options, Backend& backend);

  // Whether a coordinator may name this heartbeat timeout: above 0 and at most a day. NaN is none.
  static bool IsHeartbeatTimeout(double seconds) { return seconds > 0 && seconds <= 24 * 3600; }

  // Opens the checkpoint and configuration that WorkerOptions or else Welcome names, unless they are open and the files
  // unchanged, and fills every field of `described` except `error`. INVALID_ARGUMENT names the bad field of Welcome;
  // other errors are those of reading the files. The stage that was loaded from another model is discarded.
  absl::Status OpenModel(const cluster::v1::Welcome& welcome, cluster::v1::Described* described);

  // Loads the stage that `form` asks for. Plans its memory before it takes any. FAILED_PRECONDITION before OpenModel;
  // INVALID_ARGUMENT names the bad field of Form; DATA_LOSS as of CheckModelUnchanged; RESOURCE_EXHAUSTED if the stage
  // does not fit in memory_bytes, or in the part of it that the Form allows.
  absl::StatusOr<StageAssignment> LoadStage(const cluster::v1::Form& form);
  // Reserves memory for the stage's kept rows and logs how all memory is used. To be called after everything else that
  // the stage needs is allocated, as kept rows take what is left. After an error nobody may use the stage, and the next
  // LoadStage makes another.
  absl::Status ReserveKept(const StageAssignment& assignment);

  // DATA_LOSS if a file of the model was changed since OpenModel: then what the stage computes may be wrong, and
  // LoadStage fails until OpenModel is called again. A system call for each file.
  absl::Status CheckModelUnchanged() const;

  // Gives back the memory of the stage and its weights; the model stays open. The next LoadStage loads them again.
  void Release();
  // Whether there is any to give back.
  bool loaded() const { return model_ != nullptr; }

  // Valid after LoadStage has succeeded. Nobody may use the stage while OpenModel, LoadStage or Release runs.
  Stage& stage() { return *stage_; }
  const ModelShape& shape() const { return shape_; }
  const StageMemory& memory() const { return memory_; }

 private:
  void Log(const std::string& line) const;
  absl::Status ReadSettings(const cluster::v1::Welcome& welcome);
  absl::Status OpenFiles(const cluster::v1::Welcome& welcome);
  ModelMemory MeasuredMemory() const;
  absl::Status PlanMemory(const StageAssignment& assignment);
  bool KeptRowsFit() const;
  absl::Status LoadLayers(const StageAssignment& assignment);
  absl::Status LoadWeights(const StageAssignment& assignment);
  absl::Status VerifyWeights(const StageAssignment& assignment);

  const WorkerOptions& options_;
  Backend& backend_;

  // The model, since OpenModel.
  DType cache_dtype_ = DType::kBf16;
  std::string verify_;  // "all", "finite" or "none"
  std::string opened_model_, opened_config_;
  std::shared_ptr<const Checkpoint> checkpoint_;
  ModelConfig config_;
  ModelShape shape_;
  std::shared_ptr<const Model> measured_;     // all layers, without weights
  std::unordered_set<std::string> verified_;  // names of tensors

  // The stage, since LoadStage.
  int64_t memory_bytes_ = 0;  // this worker's limit: what it may use, or the part of it that Form allows
  StageMemory memory_;
  int64_t kept_bytes_ = 0;              // the most for its kept rows
  std::shared_ptr<const Model> model_;  // its layers, with weights
  std::unique_ptr<Stage> stage_;
  enum class KeptRows { kNone, kReserved, kFailed };
  KeptRows kept_rows_ = KeptRows::kNone;  // of the stage; kFailed: it has lost memory that it needs
};

}  // namespace goldfinch

#endif  // GOLDFINCH_WORKER_STAGE_LOADER_H_
