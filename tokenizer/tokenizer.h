// Converts text to token ids and back, with the World vocabulary (greedy longest match over bytes) or the plain byte
// vocabulary.
#ifndef GOLDFINCH_TOKENIZER_TOKENIZER_H_
#define GOLDFINCH_TOKENIZER_TOKENIZER_H_

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "tokenizer/byte_trie.h"
#include "tokenizer/vocabulary.h"

namespace goldfinch {

// Immutable and thread-safe. Token 0 ends a text; Encode never returns it.
class Tokenizer {
 public:
  // The byte vocabulary: 257 tokens, byte b is id b + 1.
  static std::unique_ptr<Tokenizer> Bytes();
  // Reads a vocabulary file (see vocabulary.h). Errors name the file, the line and what is wrong there.
  static absl::StatusOr<std::unique_ptr<Tokenizer>> FromFile(const std::string& path);
  // The same from text in memory; `name` stands for the file in error messages.
  static absl::StatusOr<std::unique_ptr<Tokenizer>> FromText(std::string_view text, std::string_view name);

  // Appends the ids of `text`, which may be any bytes, valid UTF-8 or not. Cannot fail. Takes linear time: it looks at
  // each byte kTokenBytesMax times at most, in English text 1.3 times on average.
  void Encode(std::string_view text, std::vector<int32_t>* ids) const;
  // Appends the bytes of `ids`; token 0 has none. INVALID_ARGUMENT names the first id that is not a token, and leaves
  // `text` unchanged.
  absl::Status Decode(absl::Span<const int32_t> ids, std::string* text) const;
  // The bytes of one token, valid as long as the tokenizer lives; empty for 0 and for ids that are not tokens.
  std::string_view TokenBytes(int32_t id) const { return vocabulary_.TokenBytes(id); }
  // One more than the highest id that is a token.
  int32_t vocab_size() const { return vocabulary_.size(); }

 private:
  explicit Tokenizer(Vocabulary vocabulary);

  Vocabulary vocabulary_;
  ByteTrie trie_;
};

}  // namespace goldfinch

#endif  // GOLDFINCH_TOKENIZER_TOKENIZER_H_
