// UTF-8, one byte at a time.
#ifndef GOLDFINCH_TOKENIZER_UTF8_H_
#define GOLDFINCH_TOKENIZER_UTF8_H_

#include <cstdint>
#include <string>
#include <string_view>

namespace goldfinch {

// Finds the characters of a stream of bytes. Knows an error at the first byte that cannot go on, so that each maximal
// subpart of a broken character is one error (Unicode 15, section 3.9; the practice of browsers and of Python).
class Utf8Scanner {
 public:
  enum class Step {
    kMore,             // The byte begins or continues a character that is not complete.
    kCharacter,        // The byte completes a character.
    kError,            // The byte is an error by itself.
    kErrorBeforeByte,  // The bytes since the last complete character are an error; feed this byte again.
  };

  Step Feed(char c);
  // True between characters.
  bool at_start() const { return missing_ == 0; }

 private:
  int missing_ = 0;  // Bytes that the character still needs.
  // The next byte's range: narrower than 80..BF after E0, ED, F0 and F4, for overlong forms, surrogates and > U+10FFFF.
  uint8_t next_min_ = 0x80;
  uint8_t next_max_ = 0xbf;
};

bool IsValidUtf8(std::string_view text);

// Appends the UTF-8 of a code point. False, and nothing appended, if it is a surrogate or above U+10FFFF.
bool AppendUtf8(uint32_t code, std::string* text);

}  // namespace goldfinch

#endif  // GOLDFINCH_TOKENIZER_UTF8_H_
