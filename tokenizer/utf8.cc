#include "tokenizer/utf8.h"

namespace goldfinch {

Utf8Scanner::Step Utf8Scanner::Feed(char c) {
  const auto byte = static_cast<uint8_t>(c);
  if (missing_ > 0) {
    const bool fits = byte >= next_min_ && byte <= next_max_;
    next_min_ = 0x80;
    next_max_ = 0xbf;
    if (!fits) {
      missing_ = 0;
      return Step::kErrorBeforeByte;
    }
    return --missing_ == 0 ? Step::kCharacter : Step::kMore;
  }
  if (byte < 0x80) return Step::kCharacter;
  if (byte < 0xc2 || byte > 0xf4) return Step::kError;
  missing_ = byte < 0xe0 ? 1 : byte < 0xf0 ? 2 : 3;
  if (byte == 0xe0) next_min_ = 0xa0;
  if (byte == 0xed) next_max_ = 0x9f;
  if (byte == 0xf0) next_min_ = 0x90;
  if (byte == 0xf4) next_max_ = 0x8f;
  return Step::kMore;
}

bool IsValidUtf8(std::string_view text) {
  Utf8Scanner scanner;
  for (const char c : text) {
    const Utf8Scanner::Step step = scanner.Feed(c);
    if (step == Utf8Scanner::Step::kError || step == Utf8Scanner::Step::kErrorBeforeByte) return false;
  }
  return scanner.at_start();
}

bool AppendUtf8(uint32_t code, std::string* text) {
  if (code > 0x10ffff || (code >= 0xd800 && code <= 0xdfff)) return false;
  const auto continuation = [code](int shift) { return static_cast<char>(0x80 | ((code >> shift) & 0x3f)); };
  if (code < 0x80) {
    text->push_back(static_cast<char>(code));
  } else if (code < 0x800) {
    text->append({static_cast<char>(0xc0 | (code >> 6)), continuation(0)});
  } else if (code < 0x10000) {
    text->append({static_cast<char>(0xe0 | (code >> 12)), continuation(6), continuation(0)});
  } else {
    text->append({static_cast<char>(0xf0 | (code >> 18)), continuation(12), continuation(6), continuation(0)});
  }
  return true;
}

}  // namespace goldfinch
