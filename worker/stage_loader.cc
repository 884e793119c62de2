#include "worker/stage_loader.h"

#include <cstdint>
#include <optional>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "protos/cluster.pb.h"
#include "worker/model/model_memory.h"
#include "worker/model_description.h"
#include "worker/stage/gold_tiers.h"

namespace goldfinch {

StageLoader::StageLoader(const WorkerOptions& options, Backend& backend) : options_(options), backend_(backend) {}

void StageLoader::Log(const std::string& line) const {
  if (options_.log) options_.log(line);
}

// ---- The model ----

absl::Status StageLoader::OpenModel(const cluster::v1::Welcome& welcome, cluster::v1::Described* described) {
  GF_RETURN_IF_ERROR(ReadSettings(welcome));
  GF_RETURN_IF_ERROR(OpenFiles(welcome));
  GF_RETURN_IF_ERROR(CheckCacheDType(*checkpoint_, shape_, cache_dtype_));
  DescribeModel(*checkpoint_, shape_, config_, cache_dtype_, MeasuredMemory(), described);
  return absl::OkStatus();
}

absl::Status StageLoader::ReadSettings(const cluster::v1::Welcome& welcome) {
  if (!IsHeartbeatTimeout(welcome.heartbeat_timeout_seconds())) {
    return absl::InvalidArgumentError(absl::StrCat("Welcome.heartbeat_timeout_seconds is ",
                                                   welcome.heartbeat_timeout_seconds(),
                                                   ", it must be above 0 and at most a day"));
  }
  const std::optional<DType> cache_dtype = ParseCacheDType(welcome.cache_dtype());
  if (!cache_dtype) {
    return absl::InvalidArgumentError(
        absl::StrCat("Welcome.cache_dtype is \"", welcome.cache_dtype(), "\", expected f32, f16, bf16 or int8"));
  }
  cache_dtype_ = *cache_dtype;
  verify_ = welcome.verify();
  if (verify_ != "all" && verify_ != "finite" && verify_ != "none") {
    return absl::InvalidArgumentError(
        absl::StrCat("Welcome.verify is \"", verify_, "\", expected all, finite or none"));
  }
  return absl::OkStatus();
}

absl::Status StageLoader::OpenFiles(const cluster::v1::Welcome& welcome) {
  const std::string& model = options_.model.empty() ? welcome.model() : options_.model;
  const std::string& config = options_.config.empty() ? welcome.config() : options_.config;
  const bool opened = checkpoint_ != nullptr && model == opened_model_ && config == opened_config_;
  if (opened && CheckModelUnchanged().ok()) return absl::OkStatus();
  Release();
  checkpoint_.reset();
  verified_.clear();
  GF_ASSIGN_OR_RETURN(std::unique_ptr<Checkpoint> checkpoint, Checkpoint::Open(model));
  GF_RETURN_IF_ERROR(CheckMultiplies(backend_, *checkpoint));
  GF_ASSIGN_OR_RETURN(config_, FindModelConfig(config, model));
  GF_ASSIGN_OR_RETURN(measured_, MeasureModel(*checkpoint, config_, backend_.reads_weights_in_place()));
  shape_ = measured_->shape;
  checkpoint_ = std::move(checkpoint);
  opened_model_ = model;
  opened_config_ = config;
  return absl::OkStatus();
}

// ---- The stage ----

absl::StatusOr<StageAssignment> StageLoader::LoadStage(const cluster::v1::Form& form) {
  if (checkpoint_ == nullptr) return absl::FailedPreconditionError("Form before the model was described");
  GF_ASSIGN_OR_RETURN(StageAssignment assignment, AssignStage(form, shape_, cache_dtype_));
  GF_RETURN_IF_ERROR(CheckModelUnchanged());
  assignment.options.gold_tier = options_.gold_tier;
  memory_bytes_ = options_.memory_bytes;
  if (form.memory_bytes() > 0 && form.memory_bytes() < static_cast<uint64_t>(memory_bytes_)) {
    memory_bytes_ = static_cast<int64_t>(form.memory_bytes());
  }
  GF_RETURN_IF_ERROR(PlanMemory(assignment));
  GF_RETURN_IF_ERROR(LoadLayers(assignment));
  GF_RETURN_IF_ERROR(CheckModelUnchanged());  // also while they were read
  return assignment;
}

// What the model takes on this worker, with the copies of snapshots that Stage::ReserveSaving makes if there is a
// shelf.
ModelMemory StageLoader::MeasuredMemory() const {
  ModelMemory memory = MemoryOf(*measured_, cache_dtype_, backend_);
  if (options_.shelf_bytes > 0 && !backend_.host_accessible()) memory.snapshot_copies = kSnapshotCopies;
  return memory;
}

// The coordinator has planned by the same numbers, so a stage fails to fit only if this worker's limit is another one
// than it registered with.
absl::Status StageLoader::PlanMemory(const StageAssignment& assignment) {
  const ModelMemory model = MeasuredMemory();
  const StageSettings settings = MemorySettings(assignment.first_layer, assignment.last_layer, assignment.options,
                                                assignment.stages - assignment.stage - 1);
  memory_ = PlanStageMemory(model, settings);
  const int64_t limit_bytes = memory_bytes_;
  if (limit_bytes > 0 && memory_.total() > limit_bytes) {
    return absl::ResourceExhaustedError(absl::StrCat("layers ", assignment.first_layer, " to ",
                                                     assignment.last_layer - 1, ": ",
                                                     MemoryShortage(memory_, limit_bytes)));
  }
  kept_bytes_ = options_.kept_bytes.value_or(KeptBytes(model, settings, limit_bytes));
  return absl::OkStatus();
}

// The generation before may have reserved more for the stage's kept rows than there is now, or much less than there is
// now. Less by an eighth is not worth a new stage, and one block is what rounding takes.
bool StageLoader::KeptRowsFit() const {
  if (kept_rows_ == KeptRows::kFailed) return false;
  const GoldTiers* tiers = stage_->gold_tiers();
  if (tiers == nullptr || kept_rows_ == KeptRows::kNone) return true;
  const int64_t possible = stage_->KeptBytesOf(kept_bytes_);
  return tiers->reserved_bytes() <= kept_bytes_ &&
         tiers->reserved_bytes() >= possible - possible / 8 - tiers->block_bytes();
}

absl::Status StageLoader::LoadLayers(const StageAssignment& assignment) {
  const bool same_layers =
      model_ != nullptr && model_->first_layer == assignment.first_layer && model_->last_layer == assignment.last_layer;
  const bool same_stage = same_layers && stage_ != nullptr && stage_->options() == assignment.options;
  if (same_stage && KeptRowsFit()) return absl::OkStatus();
  stage_.reset();  // now, so that the next stage can have its memory
  if (!same_layers) GF_RETURN_IF_ERROR(LoadWeights(assignment));
  GF_ASSIGN_OR_RETURN(stage_, Stage::Create(backend_, model_, assignment.options));
  kept_rows_ = KeptRows::kNone;
  return absl::OkStatus();
}

absl::Status StageLoader::LoadWeights(const StageAssignment& assignment) {
  model_.reset();
  GF_RETURN_IF_ERROR(VerifyWeights(assignment));
  GF_ASSIGN_OR_RETURN(model_, LoadModel(backend_, checkpoint_, config_, assignment.first_layer, assignment.last_layer));
  return absl::OkStatus();
}

// Each tensor is verified once in the life of the process, so that a group that forms again waits for new layers only.
absl::Status StageLoader::VerifyWeights(const StageAssignment& assignment) {
  if (verify_ == "none") return absl::OkStatus();
  const StageExtent extent = shape_.Extent(assignment.first_layer, assignment.last_layer);
  const auto needed = [&](std::string_view name) {
    const std::optional<TensorHome> home = FindTensorHome(shape_, name);
    return home && StageHas(extent, *home) && !verified_.contains(std::string(name));
  };
  GF_ASSIGN_OR_RETURN(
      const std::vector<std::string> non_finite,
      checkpoint_->Verify({.threads = backend_.threads(), .checksums = verify_ == "all", .tensors = needed}));
  for (const std::string& name : non_finite) {
    Log(absl::StrCat(checkpoint_->path(), ": tensor ", name, " has values that are NaN or infinite"));
  }
  for (const CheckpointTensor& tensor : checkpoint_->tensors()) {
    if (needed(tensor.name)) verified_.insert(tensor.name);
  }
  return absl::OkStatus();
}

void StageLoader::Release() {
  stage_.reset();  // it uses the model's weights
  model_.reset();
}

absl::Status StageLoader::CheckModelUnchanged() const {
  return checkpoint_ == nullptr ? absl::OkStatus() : checkpoint_->CheckFilesUnchanged();
}

absl::Status StageLoader::ReserveKept(const StageAssignment& assignment) {
  if (stage_->gold_tiers() != nullptr) {
    // A stage that the generation before has left has its kept rows already.
    if (kept_rows_ != KeptRows::kReserved) {
      kept_rows_ = KeptRows::kFailed;  // also if it throws
      GF_RETURN_IF_ERROR(stage_->ReserveKept(kept_bytes_, /*borrow=*/!options_.kept_bytes));
      kept_rows_ = KeptRows::kReserved;
    }
    memory_.kept_rows = stage_->gold_tiers()->reserved_bytes();
  }
  Log(absl::StrCat("memory of layers ", assignment.first_layer, " to ", assignment.last_layer - 1, ", ",
                   assignment.options.max_sequences, " sequences, caches of ", assignment.options.cache_tokens,
                   " tokens:"));
  for (const std::string& line : MemoryTable(memory_, memory_bytes_)) Log(absl::StrCat("  ", line));
  return absl::OkStatus();
}

}  // namespace goldfinch
