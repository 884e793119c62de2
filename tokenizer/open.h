// Opens the tokenizer that a model needs, and derives from it what the sampler has to know.
#ifndef GOLDFINCH_TOKENIZER_OPEN_H_
#define GOLDFINCH_TOKENIZER_OPEN_H_

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "base/sampling.h"
#include "tokenizer/tokenizer.h"

namespace goldfinch {

// `vocab` is a vocabulary file or "bytes". If it is empty, the model decides: the byte vocabulary if its config says so
// (`configured` is "bytes") or if the config says nothing and `vocab_size` is 256 or 257; else the World vocabulary,
// which FindVocabulary looks for. A `vocab_size` of 0 means that it is unknown. INVALID_ARGUMENT if the vocabulary has
// ids that the model does not have.
absl::StatusOr<std::unique_ptr<Tokenizer>> OpenTokenizer(const std::string& vocab, const std::string& model_path,
                                                         const std::string& configured, int64_t vocab_size);

// What the sampler has to know of the ids of a model with `vocab_size` > 0 logits. Ids without a text are never
// sampled, except for the end of text.
std::shared_ptr<const SamplerVocabulary> MakeSamplerVocabulary(const Tokenizer& tokenizer, int64_t vocab_size);

}  // namespace goldfinch

#endif  // GOLDFINCH_TOKENIZER_OPEN_H_
