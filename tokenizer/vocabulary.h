// The World vocabulary: finds its file, reads it, and keeps the table of token texts.
//
// Each line of the file is `id literal length`: the id, a Python bytes literal or str literal (which stands for its
// UTF-8), and the length of the text in bytes. Ids are 1 to 65535, in any order and with gaps. Texts are distinct and
// have 1 to 128 bytes. Every single byte is a token.
#ifndef GOLDFINCH_TOKENIZER_VOCABULARY_H_
#define GOLDFINCH_TOKENIZER_VOCABULARY_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace goldfinch {

inline constexpr int32_t kTokenIdMax = 65535;
inline constexpr size_t kTokenBytesMax = 128;

// The texts of tokens by id. Const access from several threads is safe.
class Vocabulary {
 public:
  // Byte b is token b + 1.
  static Vocabulary Bytes();
  // Reads a vocabulary file. NOT_FOUND if there is no file at `path`; INVALID_ARGUMENT names the file, the line and
  // what is wrong there.
  static absl::StatusOr<Vocabulary> FromFile(const std::string& path);
  // The same from text in memory; `name` stands for the file in error messages.
  static absl::StatusOr<Vocabulary> FromText(std::string_view text, std::string_view name);

  // The bytes of token `id`; empty if there is no such token. Valid until this object is changed or moved.
  std::string_view TokenBytes(int32_t id) const {
    if (id < 0 || id >= size()) return {};
    return std::string_view(bytes_).substr(tokens_[id].begin, tokens_[id].size);
  }
  // One more than the highest id that is a token.
  int32_t size() const { return static_cast<int32_t>(tokens_.size()); }

 private:
  struct Token {
    uint32_t begin = 0;
    uint32_t size = 0;
  };

  Vocabulary() = default;
  // Requires that `id` is in 1..kTokenIdMax and has no text yet, and that `text` is not empty.
  void Add(int32_t id, std::string_view text);

  std::string bytes_;          // The texts, in the order in which they were added.
  std::vector<Token> tokens_;  // [id]
};

// The path of the vocabulary file for `model_path`, a file or a directory: `vocab` unless it is empty, else
// rwkv_vocab_v20230424.txt in the model's directory or beside the model. NOT_FOUND, which begins with the field's name
// "vocab", says what to do.
absl::StatusOr<std::string> FindVocabulary(const std::string& vocab, const std::string& model_path);

}  // namespace goldfinch

#endif  // GOLDFINCH_TOKENIZER_VOCABULARY_H_
