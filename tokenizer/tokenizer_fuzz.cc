// Reads the input as a vocabulary, alone and after the 256 single bytes; then encodes and decodes the input itself.
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/check.h"
#include "tokenizer/test_vocabulary.h"
#include "tokenizer/tokenizer.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using goldfinch::Tokenizer;
  static const std::string* const single_bytes = new std::string(goldfinch::SingleByteLines());
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  for (const std::string& lines : {std::string(input), *single_bytes + std::string(input)}) {
    const auto tokenizer = Tokenizer::FromText(lines, "fuzz");
    if (!tokenizer.ok()) continue;
    std::vector<int32_t> ids;
    (*tokenizer)->Encode(input, &ids);
    GF_CHECK(ids == goldfinch::NaiveEncoder(**tokenizer).Encode(input));
    std::string text;
    GF_CHECK((*tokenizer)->Decode(ids, &text).ok());
    GF_CHECK(text == input);
  }
  return 0;
}
