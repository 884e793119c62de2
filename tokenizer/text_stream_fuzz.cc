// The first two lines of the input are stop strings. Whatever the cuts, the stream emits the same valid UTF-8.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/check.h"
#include "tokenizer/text_stream.h"
#include "tokenizer/utf8.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using goldfinch::TextStream;
  std::string_view input(reinterpret_cast<const char*>(data), size);
  std::vector<std::string> stop_strings;
  while (stop_strings.size() < 2) {
    const std::string_view line = input.substr(0, input.find('\n'));
    stop_strings.emplace_back(line);
    input.remove_prefix(std::min(input.size(), line.size() + 1));
  }
  auto whole = TextStream::Create(stop_strings);
  if (!whole.ok()) return 0;
  TextStream byte_by_byte = *whole;

  std::string expected;
  whole->Append(input, &expected);
  whole->Finish(&expected);
  std::string text;
  for (const char byte : input) {
    byte_by_byte.Append({&byte, 1}, &text);
    GF_CHECK(goldfinch::IsValidUtf8(text));
  }
  byte_by_byte.Finish(&text);
  GF_CHECK(text == expected);
  GF_CHECK(whole->stop() == byte_by_byte.stop());
  for (const std::string& stop_string : stop_strings) GF_CHECK(text.find(stop_string) == std::string::npos);
  return 0;
}
