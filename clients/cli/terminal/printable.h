// Text of a model as it may be printed, and JSON with text from outside: what steers a text (base/safe_text.h) is
// escaped. Names and messages, which are to be on one line, go through SafeText.
#ifndef GOLDFINCH_CLIENTS_CLI_TERMINAL_PRINTABLE_H_
#define GOLDFINCH_CLIENTS_CLI_TERMINAL_PRINTABLE_H_

#include <string>
#include <string_view>

#include "nlohmann/json_fwd.hpp"
#include "tokenizer/utf8.h"

namespace goldfinch {

// Escapes a text that comes in pieces, which may end within a character. Escaped are the characters that steer a text,
// but for newline and tab, and bytes that are not UTF-8: "\x1b" for a byte, "\u202e" for a character. All else is
// unchanged, characters of no width too, which several scripts need.
class TerminalEscaper {
 public:
  // The next part of the text; the bytes of a character that is not complete yet are held back.
  std::string Append(std::string_view piece);
  // What has been held back. The text is at its end, and the next one may begin.
  std::string Finish();

 private:
  Utf8Scanner scanner_;
  std::string character_;  // its bytes so far
};

// Prints the text of a model to standard output, escaped if that is a terminal and else byte for byte.
class TextOutput {
 public:
  TextOutput();
  explicit TextOutput(bool escape) : escape_(escape) {}

  void Print(std::string_view piece);
  // To be called at the end of each text.
  void Finish();

 private:
  const bool escape_;
  TerminalEscaper escaper_;
};

// JSON in which the same characters stand as \uXXXX. Bytes that are not UTF-8 become U+FFFD. `indent` as of
// nlohmann::json::dump: -1 makes one line.
std::string JsonText(const nlohmann::json& json, int indent);

}  // namespace goldfinch

#endif  // GOLDFINCH_CLIENTS_CLI_TERMINAL_PRINTABLE_H_
