// goldfinch logits: writes the logits at every position, to compare a model with a reference.
#include <algorithm>
#include <string>

#include "absl/strings/str_cat.h"
#include "base/npy.h"
#include "base/status.h"
#include "clients/cli/local/local_commands.h"
#include "clients/cli/local/model.h"
#include "clients/cli/terminal/terminal.h"

namespace goldfinch {

absl::Status RunLogits(const LogitsOptions& options) {
  GF_ASSIGN_OR_RETURN(const NpyArray<int32_t> tokens, ReadNpyInts(options.tokens, options.model.max_model_len));
  int64_t long_axes = 0;
  for (int64_t size : tokens.shape) long_axes += size != 1 ? 1 : 0;
  if (long_axes > 1) {
    return absl::InvalidArgumentError(
        absl::StrCat(options.tokens, ": has ", tokens.shape.size(), " axes, expected one sequence"));
  }
  GF_ASSIGN_OR_RETURN(const std::unique_ptr<Engine> engine, OpenEngine(options.model, options.model.max_step_tokens));
  const auto count = static_cast<int64_t>(tokens.values.size());
  if (absl::Status status = engine->CheckLength(count, 0); !status.ok()) {
    return absl::InvalidArgumentError(absl::StrCat(options.tokens, ": ", std::string(status.message())));
  }
  for (int64_t i = 0; i < count; ++i) {
    if (tokens.values[i] < 0 || tokens.values[i] >= engine->shape().vocab_size) {
      return absl::InvalidArgumentError(absl::StrCat(options.tokens, ": element ", i, " is ", tokens.values[i],
                                                     ", the model has ids 0 to ", engine->shape().vocab_size - 1));
    }
  }
  GF_ASSIGN_OR_RETURN(NpyWriter out, NpyWriter::Create(options.out, count, engine->shape().vocab_size));
  GF_RETURN_IF_ERROR(VerifyWeights(options.model, *engine));
  GF_ASSIGN_OR_RETURN(const int slot, engine->stage().Open());
  ProgressBar bar("logits", "tokens");
  GF_RETURN_IF_ERROR(engine->Score(slot, tokens.values, [&](int64_t first, absl::Span<const float> logits) {
    bar.Update(std::min(count, first + options.model.max_step_tokens), count);
    return out.Append(logits);
  }));
  return out.Close();
}

}  // namespace goldfinch
