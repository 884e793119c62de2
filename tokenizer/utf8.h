// Reading UTF-8 one byte at a time, and writing it.
#ifndef GOLDFINCH_TOKENIZER_UTF8_H_
#define GOLDFINCH_TOKENIZER_UTF8_H_

#include <cstdint>
#include <string>
#include <string_view>

namespace goldfinch {

// Finds the characters in a stream of bytes. It reports an error at the first byte that cannot continue a character, so
// each maximal subpart of a broken character is one error (Unicode 15, section 3.9, as browsers and Python do it).
class Utf8Scanner {
 public:
  enum class Step {
    kMore,             // The byte begins or continues a character that is not complete.
    kCharacter,        // The byte completes a character.
    kError,            // The byte is an error by itself.
    kErrorBeforeByte,  // The bytes since the last complete character are an error; feed this byte again.
  };

  Step Feed(char c);
  // Whether the bytes so far end with a whole character.
  bool at_start() const { return missing_ == 0; }

 private:
  int missing_ = 0;  // Bytes that the character still needs.
  // The range of the next byte. It is narrower than 80..BF after E0, ED, F0 and F4, which excludes overlong forms,
  // surrogates and code points above U+10FFFF.
  uint8_t next_min_ = 0x80;
  uint8_t next_max_ = 0xbf;
};

bool IsValidUtf8(std::string_view text);

// Appends the UTF-8 of a code point. Returns false and appends nothing if it is a surrogate or above U+10FFFF.
bool AppendUtf8(uint32_t code, std::string* text);

}  // namespace goldfinch

#endif  // GOLDFINCH_TOKENIZER_UTF8_H_
