#include "base/safe_text.h"

#include <algorithm>
#include <cstdint>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace goldfinch {
namespace {

constexpr std::string_view kCut = "...";

struct Character {
  size_t bytes = 1;
  uint32_t code = 0;
  bool valid = false;
};

// The character that the text begins with. `text` is not empty.
Character First(std::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<uint32_t>(static_cast<unsigned char>(text[i])); };
  const uint32_t lead = byte(0);
  if (lead < 0x80) return {1, lead, true};
  const size_t bytes = lead >= 0xF0 ? 4 : lead >= 0xE0 ? 3 : 2;
  if (lead < 0xC2 || lead > 0xF4 || text.size() < bytes) return {};
  uint32_t code = lead & (0x7FU >> bytes);
  for (size_t i = 1; i < bytes; ++i) {
    if ((byte(i) & 0xC0) != 0x80) return {};
    code = code << 6 | (byte(i) & 0x3F);
  }
  constexpr uint32_t kLeast[] = {0, 0, 0x80, 0x800, 0x10000};  // by number of bytes; smaller codes are overlong
  if (code < kLeast[bytes] || code > 0x10FFFF || (code >= 0xD800 && code <= 0xDFFF)) return {};
  return {bytes, code, true};
}

// Letters of several scripts need some of them, names and messages do not.
bool IsInvisible(uint32_t code) {
  return (code >= 0x200B && code <= 0x200D) || (code >= 0x2060 && code <= 0x2065) || code == 0xFEFF;
}

}  // namespace

bool SteersText(uint32_t code) {
  return code < 0x20 || (code >= 0x7F && code < 0xA0) ||       // C0, DEL, C1
         code == 0x61C || code == 0x200E || code == 0x200F ||  // marks of direction
         (code >= 0x2028 && code <= 0x202E) ||                 // separators, embeddings and overrides of direction
         (code >= 0x2066 && code <= 0x206F);                   // isolates, and what came before them
}

std::string SafeText(std::string_view text, size_t bytes_max) {
  std::string safe;
  size_t whole = 0;  // how much of `safe` may stay if the text is cut
  while (!text.empty()) {
    const Character character = First(text);
    const std::string_view bytes = text.substr(0, character.bytes);
    std::string piece(bytes);
    if (!character.valid || (character.bytes == 1 && SteersText(character.code))) {
      piece = absl::StrFormat("\\x%02x", static_cast<unsigned char>(bytes[0]));
    } else if (SteersText(character.code) || IsInvisible(character.code)) {
      piece = absl::StrFormat("\\u%04x", character.code);
    }
    if (piece.size() > bytes_max - safe.size()) {
      safe.resize(whole);
      safe.append(kCut.substr(0, std::min(kCut.size(), bytes_max - whole)));
      return safe;
    }
    safe += piece;
    if (kCut.size() <= bytes_max - safe.size()) whole = safe.size();
    text.remove_prefix(character.bytes);
  }
  return safe;
}

std::string Quoted(std::string_view name) {
  constexpr size_t kShown = 120;
  return absl::StrCat("'", absl::CHexEscape(std::string(name.substr(0, kShown))), name.size() > kShown ? "...'" : "'");
}

}  // namespace goldfinch
