// The World vocabulary file: finding it, reading it, and the table of token texts it holds.
//
// A line is `id literal length`: the id, a Python str (its UTF-8 is meant) or bytes literal, and the number of bytes of
// the text. Ids run from 1 to 65535, in any order and with gaps; texts are distinct, of 1 to 128 bytes; every single
// byte is a token.
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

// The texts of tokens by id. Thread-compatible: const access from many threads is safe.
class Vocabulary {
 public:
  // Byte b is token b + 1.
  static Vocabulary Bytes();
  // Reads a vocabulary file. NOT_FOUND if there is none at `path`; INVALID_ARGUMENT names the file, the line and what
  // is wrong in it.
  static absl::StatusOr<Vocabulary> FromFile(const std::string& path);
  // The same from text in memory; `name` stands for the file in errors.
  static absl::StatusOr<Vocabulary> FromText(std::string_view text, std::string_view name);

  // The bytes of token `id`, valid as long as this object is neither changed nor moved; empty if there is no such
  // token.
  std::string_view TokenBytes(int32_t id) const {
    if (id < 0 || id >= size()) return {};
    return std::string_view(bytes_).substr(tokens_[id].begin, tokens_[id].size);
  }
  // One more than the highest id that has bytes.
  int32_t size() const { return static_cast<int32_t>(tokens_.size()); }

 private:
  struct Token {
    uint32_t begin = 0;
    uint32_t size = 0;
  };

  Vocabulary() = default;
  // `id` is in 1..kTokenIdMax and free; `text` is not empty.
  void Add(int32_t id, std::string_view text);

  std::string bytes_;          // The texts, in the order of Add.
  std::vector<Token> tokens_;  // [id]
};

// The path of the vocabulary file for `model_path` (a file or a directory): `flag` (the value of --vocab) unless it is
// empty, else rwkv_vocab_v20230424.txt inside the model's directory or beside it. NOT_FOUND says what to do.
absl::StatusOr<std::string> FindVocabulary(const std::string& flag, const std::string& model_path);

}  // namespace goldfinch

#endif  // GOLDFINCH_TOKENIZER_VOCABULARY_H_
