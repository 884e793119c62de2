#include "clients/cli/terminal/printable.h"

#include <unistd.h>

#include <cstdint>
#include <iostream>
#include <utility>

#include "absl/strings/str_format.h"
#include "base/safe_text.h"
#include "nlohmann/json.hpp"

namespace goldfinch {
namespace {

void AppendByte(char c, std::string* text) { absl::StrAppendFormat(text, "\\x%02x", static_cast<uint8_t>(c)); }

// The code point of a whole character in UTF-8.
uint32_t CodePoint(std::string_view character) {
  const auto first = static_cast<uint8_t>(character[0]);
  if (character.size() == 1) return first;
  uint32_t code = first & (0x7f >> character.size());
  for (const char c : character.substr(1)) code = code << 6 | (static_cast<uint8_t>(c) & 0x3f);
  return code;
}

}  // namespace

std::string TerminalEscaper::Append(std::string_view piece) {
  std::string text;
  for (size_t i = 0; i < piece.size(); ++i) {
    const char c = piece[i];
    Utf8Scanner::Step step = scanner_.Feed(c);
    if (step == Utf8Scanner::Step::kErrorBeforeByte) {
      for (const char broken : std::exchange(character_, "")) AppendByte(broken, &text);
      step = scanner_.Feed(c);
    }
    if (step == Utf8Scanner::Step::kError) {
      AppendByte(c, &text);
      continue;
    }
    character_ += c;
    if (step == Utf8Scanner::Step::kMore) continue;
    const uint32_t code = CodePoint(character_);
    if (c == '\n' || c == '\t' || !SteersText(code)) {
      text += character_;
    } else if (character_.size() == 1) {
      AppendByte(c, &text);
    } else {
      absl::StrAppendFormat(&text, "\\u%04x", code);
    }
    character_.clear();
  }
  return text;
}

std::string TerminalEscaper::Finish() {
  std::string text;
  for (const char broken : std::exchange(character_, "")) AppendByte(broken, &text);
  scanner_ = Utf8Scanner();
  return text;
}

TextOutput::TextOutput() : TextOutput(isatty(STDOUT_FILENO) != 0) {}

void TextOutput::Print(std::string_view piece) {
  if (escape_) {
    std::cout << escaper_.Append(piece);
  } else {
    std::cout << piece;
  }
}

void TextOutput::Finish() {
  if (escape_) std::cout << escaper_.Finish();
}

std::string JsonText(const nlohmann::json& json, int indent) {
  const std::string dumped = json.dump(indent, ' ', /*ensure_ascii=*/false, nlohmann::json::error_handler_t::replace);
  // Outside of strings JSON has nothing but ASCII, and within them no C0, so all that is found here is in a string.
  std::string text;
  for (size_t i = 0; i < dumped.size();) {
    const auto first = static_cast<uint8_t>(dumped[i]);
    const size_t size = first < 0x80 ? 1 : first < 0xe0 ? 2 : first < 0xf0 ? 3 : 4;
    const std::string_view character = std::string_view(dumped).substr(i, size);
    const uint32_t code = CodePoint(character);
    if (code >= 0x20 && SteersText(code)) {
      absl::StrAppendFormat(&text, "\\u%04x", code);
    } else {
      text += character;
    }
    i += size;
  }
  return text;
}

}  // namespace goldfinch
