// Shared by the tests, fuzz targets and benchmarks of the tokenizer.
#ifndef GOLDFINCH_TOKENIZER_TEST_VOCABULARY_H_
#define GOLDFINCH_TOKENIZER_TEST_VOCABULARY_H_

#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "absl/strings/str_format.h"
#include "tokenizer/tokenizer.h"

namespace goldfinch {

// Relative to the root of the repository or of a test's run files. `./dev test` fetches the file; it may be missing.
inline constexpr char kWorldVocabularyPath[] = "third_party/world_vocab/rwkv_vocab_v20230424.txt";

// The 256 lines that every vocabulary needs: byte b is id b + 1, as in the World vocabulary.
inline std::string SingleByteLines() {
  std::string lines;
  for (int byte = 0; byte < 256; ++byte) absl::StrAppendFormat(&lines, "%d b'\\x%02x' 1\n", byte + 1, byte);
  return lines;
}

// Greedy longest match by trying every length, with the texts from TokenBytes.
class NaiveEncoder {
 public:
  explicit NaiveEncoder(const Tokenizer& tokenizer) {
    for (int32_t id = 0; id < tokenizer.vocab_size(); ++id) {
      const std::string_view bytes = tokenizer.TokenBytes(id);
      if (!bytes.empty()) ids_.emplace(bytes, id);
    }
  }

  std::vector<int32_t> Encode(std::string_view text) const {
    std::vector<int32_t> ids;
    while (!text.empty()) {
      std::string_view match = text.substr(0, kTokenBytesMax);
      while (!ids_.contains(match)) match.remove_suffix(1);
      ids.push_back(ids_.at(match));
      text.remove_prefix(match.size());
    }
    return ids;
  }

 private:
  std::unordered_map<std::string_view, int32_t> ids_;
};

}  // namespace goldfinch

#endif  // GOLDFINCH_TOKENIZER_TEST_VOCABULARY_H_
