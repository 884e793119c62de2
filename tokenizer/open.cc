#include "tokenizer/open.h"

#include <string_view>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/status.h"
#include "base/token_ids.h"
#include "tokenizer/vocabulary.h"

namespace goldfinch {
namespace {}  // namespace

absl::StatusOr<std::unique_ptr<Tokenizer>> OpenTokenizer(const std::string& vocab, const std::string& model_path,
                                                         const std::string& configured, int64_t vocab_size) {
  const bool bytes_by_default =
      configured == "bytes" || (configured.empty() && (vocab_size == 256 || vocab_size == 257));
  if (vocab == "bytes" || (vocab.empty() && bytes_by_default)) return Tokenizer::Bytes();
  GF_ASSIGN_OR_RETURN(const std::string path, FindVocabulary(vocab, model_path));
  GF_ASSIGN_OR_RETURN(std::unique_ptr<Tokenizer> tokenizer, Tokenizer::FromFile(path));
  if (vocab_size > 0 && tokenizer->vocab_size() > vocab_size) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": the vocabulary has ids up to ", tokenizer->vocab_size() - 1,
                                                   ", the model has only ", vocab_size, " ids"));
  }
  return tokenizer;
}

std::shared_ptr<const SamplerVocabulary> MakeSamplerVocabulary(const Tokenizer& tokenizer, int64_t vocab_size) {
  GF_CHECK_GT(vocab_size, 0);
  std::vector<bool> sampleable(vocab_size), repeats_freely(vocab_size);
  for (int32_t id = 0; id < vocab_size; ++id) {
    const std::string_view text = tokenizer.TokenBytes(id);
    sampleable[id] = id == kEndOfTextId || !text.empty();
    repeats_freely[id] = !text.empty() && RepeatsFreely(text);
  }
  return std::make_shared<SamplerVocabulary>(std::move(sampleable), std::move(repeats_freely));
}

}  // namespace goldfinch
