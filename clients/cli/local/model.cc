#include "clients/cli/local/model.h"

#include <cerrno>
#include <cstring>
#include <fstream>
#include <iostream>
#include <istream>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/safe_text.h"
#include "base/status.h"
#include "clients/cli/machine/device.h"
#include "clients/cli/terminal/terminal.h"
#include "spdlog/spdlog.h"
#include "tokenizer/utf8.h"
#include "worker/stage/gold_tiers.h"

namespace goldfinch {
namespace {

absl::StatusOr<std::string> ReadAll(std::istream& in, const std::string& name, int64_t limit) {
  std::string text;
  std::vector<char> buffer(1 << 16);
  while (in.read(buffer.data(), static_cast<std::streamsize>(buffer.size())), in.gcount() > 0) {
    text.append(buffer.data(), in.gcount());
    if (static_cast<int64_t>(text.size()) > limit) {
      return absl::InvalidArgumentError(absl::StrCat(name, ": more than ", limit, " bytes of text"));
    }
  }
  if (in.bad()) return absl::DataLossError(absl::StrCat(name, ": cannot be read: ", std::strerror(errno)));
  return text;
}

absl::Status CheckUtf8(const std::string& text, const std::string& name) {
  if (IsValidUtf8(text)) return absl::OkStatus();
  Utf8Scanner scanner;
  size_t start = 0;  // where the current character begins
  for (size_t i = 0; i < text.size(); ++i) {
    if (scanner.at_start()) start = i;
    const Utf8Scanner::Step step = scanner.Feed(text[i]);
    if (step == Utf8Scanner::Step::kError || step == Utf8Scanner::Step::kErrorBeforeByte) break;
  }
  return absl::InvalidArgumentError(absl::StrCat(name, ": not UTF-8 at byte ", start));
}

}  // namespace

absl::StatusOr<std::string> ReadText(const std::string& flag, const std::string& text, bool has_text,
                                     const std::string& file, int64_t limit) {
  if (has_text && !file.empty()) return UsageError("give the text or a file, not both");
  std::string result = text;
  std::string name = flag;
  if (!has_text && !file.empty()) {
    std::ifstream in(file, std::ios::binary);
    if (!in) return absl::NotFoundError(absl::StrCat(file, ": cannot be read: ", std::strerror(errno)));
    name = file;
    GF_ASSIGN_OR_RETURN(result, ReadAll(in, name, limit));
  } else if (!has_text) {
    name = "standard input";
    GF_ASSIGN_OR_RETURN(result, ReadAll(std::cin, name, limit));
  }
  GF_RETURN_IF_ERROR(CheckUtf8(result, name));
  return result;
}

absl::StatusOr<std::unique_ptr<Engine>> OpenEngine(const ModelOptions& options, int64_t max_logit_rows) {
  EngineOptions engine;
  engine.model_path = options.model;
  engine.config_path = options.config;
  engine.max_model_len = options.max_model_len;
  engine.stage.max_step_tokens = options.max_step_tokens;
  engine.stage.max_logit_rows = max_logit_rows;
  engine.stage.cache_dtype = *ParseCacheDType(options.cache_dtype);  // the flag allows no other names
  engine.stage.gold_tier = *ParseGoldTier(options.gold_tier);        // likewise
  GF_ASSIGN_OR_RETURN(std::unique_ptr<Backend> backend, OpenDevice(options.backend));
  GF_ASSIGN_OR_RETURN(engine.memory_bytes, UsableMemoryBytes(*backend, options.gpu_memory_utilization));
  engine.kept_bytes = engine.memory_bytes;
  // The system commits memory of the CPU when it is first used, so a short text takes less than what is reserved.
  engine.limits_only_kept = backend->kind() == DeviceKind::kCpu;
  return Engine::Load(engine, std::move(backend));
}

absl::Status VerifyWeights(const ModelOptions& options, const Engine& engine) {
  if (options.verify == "none") return absl::OkStatus();
  ProgressBar bar("reading weights", "bytes");
  GF_ASSIGN_OR_RETURN(
      const std::vector<std::string> non_finite,
      engine.VerifyWeights(options.verify == "all", [&](int64_t done, int64_t all) { bar.Update(done, all); }));
  bar.Done();
  for (const std::string& name : non_finite) {
    spdlog::warn(SafeText(absl::StrCat(options.model, ": tensor ", name, " has values that are NaN or infinite")));
  }
  return absl::OkStatus();
}

}  // namespace goldfinch
