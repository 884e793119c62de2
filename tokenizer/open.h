// Which tokenizer a model wants, and what drawing tokens has to know of it.
#ifndef GOLDFINCH_TOKENIZER_OPEN_H_
#define GOLDFINCH_TOKENIZER_OPEN_H_

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "base/sampling.h"
#include "tokenizer/tokenizer.h"

namespace goldfinch {

// `vocab`: a file or "bytes"; empty: bytes for models of 256 or 257 tokens or whose config says so (`configured`), else
// the World vocabulary beside the model. INVALID_ARGUMENT if it has ids that the model has not; a `vocab_size` of 0 is
// unknown.
absl::StatusOr<std::unique_ptr<Tokenizer>> OpenTokenizer(const std::string& vocab, const std::string& model_path,
                                                         const std::string& configured, int64_t vocab_size);

// Of a model with `vocab_size` > 0 logits. Ids without text have no meaning, but for the end of text.
std::shared_ptr<const SamplerVocabulary> MakeSamplerVocabulary(const Tokenizer& tokenizer, int64_t vocab_size);

}  // namespace goldfinch

#endif  // GOLDFINCH_TOKENIZER_OPEN_H_
