#include "worker/stage/engine.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/status.h"
#include "worker/checkpoint/checkpoint.h"
#include "worker/model/model_memory.h"

namespace goldfinch {

absl::StatusOr<std::unique_ptr<Engine>> Engine::Load(const EngineOptions& options, std::unique_ptr<Backend> backend) {
  std::unique_ptr<Engine> engine(new Engine);
  engine->options_ = options;
  GF_ASSIGN_OR_RETURN(std::shared_ptr<const Checkpoint> checkpoint, Checkpoint::Open(options.model_path));
  GF_ASSIGN_OR_RETURN(engine->config_, FindModelConfig(options.config_path, options.model_path));
  GF_ASSIGN_OR_RETURN(const ModelShape shape, ReadModelShape(*checkpoint, engine->config_));
  GF_RETURN_IF_ERROR(CheckCacheDType(*checkpoint, shape, options.stage.cache_dtype));
  engine->backend_ = std::move(backend);
  StageOptions& stage = engine->options_.stage;
  stage.max_sequence_tokens = options.max_model_len;
  stage.cache_tokens = options.max_model_len * stage.max_sequences;
  if (options.memory_bytes > 0 && !options.limits_only_kept) {
    GF_ASSIGN_OR_RETURN(const std::shared_ptr<const Model> measured,
                        MeasureModel(*checkpoint, engine->config_, engine->backend_->reads_weights_in_place()));
    const StageMemory memory = PlanStageMemory(MemoryOf(*measured, stage.cache_dtype, *engine->backend_),
                                               MemorySettings(0, measured->last_layer, stage));
    if (memory.total() > options.memory_bytes) {
      return absl::ResourceExhaustedError(
          absl::StrCat(options.model_path, ": ", MemoryShortage(memory, options.memory_bytes)));
    }
  }
  GF_ASSIGN_OR_RETURN(engine->model_, LoadModel(*engine->backend_, checkpoint, engine->config_));
  GF_ASSIGN_OR_RETURN(engine->stage_, Stage::Create(*engine->backend_, engine->model_, stage));
  int64_t kept_bytes = options.kept_bytes;
  if (options.memory_bytes > 0) {
    kept_bytes = std::min(kept_bytes, options.memory_bytes - engine->stage_->memory().total());
  }
  GF_RETURN_IF_ERROR(engine->stage_->ReserveKept(kept_bytes));
  return engine;
}

absl::StatusOr<std::vector<std::string>> Engine::VerifyWeights(
    bool checksums, const std::function<void(int64_t done, int64_t all)>& progress) const {
  const Checkpoint& checkpoint = *model_->checkpoint;
  const int64_t all = checkpoint.file_bytes();
  return checkpoint.Verify({.threads = backend_->threads(), .checksums = checksums, .progress = [&](int64_t done) {
                              if (progress) progress(done, all);
                            }});
}

absl::Status Engine::CheckLength(int64_t prompt_tokens, int64_t max_tokens) const {
  if (prompt_tokens == 0) return absl::InvalidArgumentError("the prompt is empty");
  if (prompt_tokens > options_.max_model_len) {
    return absl::InvalidArgumentError(
        absl::StrCat("prompt has ", prompt_tokens, " tokens, max_model_len is ", options_.max_model_len));
  }
  if (max_tokens > options_.max_model_len - prompt_tokens) {
    return absl::InvalidArgumentError(absl::StrCat("prompt has ", prompt_tokens, " tokens and max_tokens is ",
                                                   max_tokens, ", together more than max_model_len, which is ",
                                                   options_.max_model_len));
  }
  return absl::OkStatus();
}

absl::StatusOr<absl::Span<const float>> Engine::Prefill(int slot, absl::Span<const int32_t> ids,
                                                        absl::FunctionRef<void(int64_t tokens)> progress) {
  GF_CHECK(!ids.empty());
  StageOutput output;
  const auto count = static_cast<int64_t>(ids.size());
  for (int64_t begin = 0; begin < count;) {
    const int64_t tokens = std::min(options_.stage.max_step_tokens, count - begin);
    const Chunk chunk{slot, ids.subspan(begin, tokens), begin + tokens == count ? 1 : 0};
    GF_RETURN_IF_ERROR(stage_->Forward({&chunk, 1}, {}, &output));
    GF_RETURN_IF_ERROR(backend_->Synchronize());
    begin += tokens;
    progress(begin);
  }
  return HostLogits(output.logits);
}

absl::StatusOr<absl::Span<const float>> Engine::Decode(int slot, int32_t id) {
  StageOutput output;
  const Chunk chunk{slot, {&id, 1}, 1};
  GF_RETURN_IF_ERROR(stage_->Forward({&chunk, 1}, {}, &output));
  return HostLogits(output.logits);
}

absl::Status Engine::Score(int slot, absl::Span<const int32_t> ids,
                           absl::FunctionRef<absl::Status(int64_t first, absl::Span<const float> logits)> use) {
  const auto count = static_cast<int64_t>(ids.size());
  const int64_t most = std::min(options_.stage.max_step_tokens, options_.stage.max_logit_rows);
  for (int64_t begin = 0; begin < count; begin += most) {
    const int64_t tokens = std::min(most, count - begin);
    const Chunk chunk{slot, ids.subspan(begin, tokens), tokens};
    StageOutput output;
    GF_RETURN_IF_ERROR(stage_->Forward({&chunk, 1}, {}, &output));
    GF_ASSIGN_OR_RETURN(const absl::Span<const float> logits, HostLogits(output.logits));
    GF_RETURN_IF_ERROR(use(begin, logits));
  }
  return absl::OkStatus();
}

absl::StatusOr<absl::Span<const float>> Engine::HostLogits(ConstTensor logits) {
  if (backend_->host_accessible()) return absl::MakeConstSpan(logits.f32(), logits.shape.elements());
  logits_.resize(logits.shape.elements());
  backend_->CopyToHost(logits, logits_.data());
  GF_RETURN_IF_ERROR(backend_->Synchronize());
  return absl::MakeConstSpan(logits_);
}

}  // namespace goldfinch
