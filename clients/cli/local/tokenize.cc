// goldfinch tokenize, goldfinch detokenize.
#include <cctype>
#include <iostream>
#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "base/status.h"
#include "clients/cli/local/local_commands.h"
#include "clients/cli/local/model.h"
#include "clients/cli/terminal/printable.h"
#include "clients/cli/terminal/terminal.h"
#include "nlohmann/json.hpp"
#include "tokenizer/open.h"
#include "worker/checkpoint/checkpoint.h"
#include "worker/model/model.h"
#include "worker/model/model_config.h"

namespace goldfinch {
namespace {

constexpr int64_t kMaxTextBytes = int64_t{4} << 30;

absl::StatusOr<std::unique_ptr<Tokenizer>> TokenizerFor(const TokenizeOptions& options) {
  if (options.model.empty()) {
    if (options.vocab.empty()) return UsageError("give --vocab FILE, --vocab bytes, or --model");
    return OpenTokenizer(options.vocab, "", "", 0);
  }
  GF_ASSIGN_OR_RETURN(const std::unique_ptr<Checkpoint> checkpoint, Checkpoint::Open(options.model));
  GF_ASSIGN_OR_RETURN(const ModelConfig config, FindModelConfig("", options.model));
  GF_ASSIGN_OR_RETURN(const ModelShape shape, ReadModelShape(*checkpoint, config));
  return OpenTokenizer(options.vocab, options.model, config.vocabulary, shape.vocab_size);
}

}  // namespace

absl::Status RunTokenize(const TokenizeOptions& options) {
  GF_ASSIGN_OR_RETURN(const std::unique_ptr<Tokenizer> tokenizer, TokenizerFor(options));
  GF_ASSIGN_OR_RETURN(const std::string text,
                      ReadText("--text", options.text, options.has_text, options.file, kMaxTextBytes));
  std::vector<int32_t> ids;
  tokenizer->Encode(text, &ids);
  if (options.json) {
    std::cout << nlohmann::json{{"ids", ids}, {"tokens", ids.size()}, {"bytes", text.size()}}.dump() << "\n";
    return absl::OkStatus();
  }
  std::string line;
  for (size_t i = 0; i < ids.size(); ++i) {
    absl::StrAppend(&line, i == 0 ? "" : " ", ids[i]);
    if (line.size() > (1 << 16)) {
      std::cout << line;
      line.clear();
    }
  }
  std::cout << line << "\n";
  return absl::OkStatus();
}

absl::Status RunDetokenize(const TokenizeOptions& options) {
  GF_ASSIGN_OR_RETURN(const std::unique_ptr<Tokenizer> tokenizer, TokenizerFor(options));
  GF_ASSIGN_OR_RETURN(const std::string text,
                      ReadText("--text", options.text, options.has_text, options.file, kMaxTextBytes));
  std::vector<int32_t> ids;
  const std::vector<std::string> words = absl::StrSplit(text, absl::ByAnyChar(" \t\r\n,[]"), absl::SkipEmpty());
  for (const std::string& word : words) {
    int32_t id = 0;
    if (!absl::SimpleAtoi(word, &id)) return UsageError(absl::StrCat("\"", word.substr(0, 40), "\" is not a token id"));
    ids.push_back(id);
  }
  std::string decoded;
  if (absl::Status status = tokenizer->Decode(ids, &decoded); !status.ok()) return AsUsageError(status);
  // Into a pipe the bytes go as they are, so that `tokenize | detokenize` gives back its input.
  TextOutput output;
  output.Print(decoded);
  output.Finish();
  return absl::OkStatus();
}

}  // namespace goldfinch
