// Texts of strangers, made safe to log, to show and to pass on.
#ifndef GOLDFINCH_BASE_SAFE_TEXT_H_
#define GOLDFINCH_BASE_SAFE_TEXT_H_

#include <cstddef>
#include <string>
#include <string_view>

namespace goldfinch {

// The text on one line, in at most `bytes_max` bytes, of which the last are "..." if it was cut. Bytes that are not
// UTF-8 and characters that could fake a line, steer a terminal or turn the order of letters around become \xNN:
// control characters (C0, DEL, C1), line and paragraph separators, and the marks of bidirectional text. Safe texts stay
// as they are.
std::string SafeText(std::string_view text, size_t bytes_max);

}  // namespace goldfinch

#endif  // GOLDFINCH_BASE_SAFE_TEXT_H_
