// Texts of strangers, made safe to log, to show and to pass on.
#ifndef GOLDFINCH_BASE_SAFE_TEXT_H_
#define GOLDFINCH_BASE_SAFE_TEXT_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace goldfinch {

// Whether a character of Unicode could fake a line, steer a terminal or turn the order of letters around: control
// characters (C0 with newline and tab, DEL, C1), the separators of lines and paragraphs, and the marks of bidirectional
// text.
bool SteersText(uint32_t code);

// The text on one line, in at most `bytes_max` bytes, of which the last are "..." if it was cut. Escaped are the
// characters that steer a text and those of no width, as in "\x1b" or "\u202e", and each byte that is not UTF-8. Safe
// texts stay as they are.
std::string SafeText(std::string_view text, size_t bytes_max = std::string_view::npos);

// A name from a file as it may stand in a message: in quotes, without control characters, shortened if it is very long.
std::string Quoted(std::string_view name);

}  // namespace goldfinch

#endif  // GOLDFINCH_BASE_SAFE_TEXT_H_
