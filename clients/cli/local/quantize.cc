// goldfinch quantize: writes a copy of a checkpoint with its large matrices in 8 or 4 bits.
#include <filesystem>
#include <memory>
#include <string>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/safe_text.h"
#include "base/status.h"
#include "clients/cli/local/local_commands.h"
#include "clients/cli/machine/machine_limits.h"
#include "clients/cli/terminal/terminal.h"
#include "kernels/backend.h"
#include "worker/checkpoint/checkpoint.h"
#include "worker/model/model.h"
#include "worker/model/model_config.h"
#include "worker/model/quantize_model.h"

namespace goldfinch {

absl::Status RunQuantize(const QuantizeCommandOptions& options) {
  GF_ASSIGN_OR_RETURN(const std::shared_ptr<const Checkpoint> checkpoint, Checkpoint::Open(options.model));
  GF_ASSIGN_OR_RETURN(const ModelConfig config, FindModelConfig(options.config, options.model));
  // Loading checks every tensor's name and shape, so that nothing is written that could not be read back.
  const std::unique_ptr<Backend> backend = MakeCpuBackend(1);
  GF_RETURN_IF_ERROR(LoadModel(*backend, checkpoint, config).status());
  std::error_code error;
  if (std::filesystem::equivalent(options.out, checkpoint->path(), error)) {
    return UsageError(absl::StrCat(options.out, ": is the model itself"));
  }

  ProgressBar bar("quantizing", "bytes");
  QuantizeOptions quantize;
  quantize.dtype = options.dtype == "int8" ? DType::kInt8 : DType::kInt4;
  quantize.keep = options.keep;
  quantize.overwrite = options.force;
  quantize.threads = options.threads > 0 ? options.threads : ThisMachine().cpus.threads();
  quantize.progress = [&](int64_t done, int64_t all) { bar.Update(done, all); };
  const absl::StatusOr<QuantizeReport> report = QuantizeModel(*checkpoint, options.out, quantize);
  bar.Done();
  if (absl::IsAlreadyExists(report.status())) {
    return UsageError(absl::StrCat(std::string(report.status().message()), "; --force overwrites it"));
  }
  GF_RETURN_IF_ERROR(report.status());

  absl::PrintF("%s: %s, was %s; %d matrices in %s\n", SafeText(options.out), HumanBytes(report->bytes),
               HumanBytes(checkpoint->file_bytes()), report->matrices, options.dtype);
  if (!report->kept.empty()) absl::PrintF("kept as they were: %d\n", report->kept.size());
  for (const std::string& matrix : report->unfit) {
    absl::PrintF("kept as it was, as sizes must be multiples of 16 and 32: %s\n", SafeText(matrix));
  }
  return absl::OkStatus();
}

}  // namespace goldfinch
