// Text from outside (of a model, a server, a file) as it may be printed: what could steer a terminal, fake a line or
// turn the direction of the text around is escaped.
#ifndef GOLDFINCH_CLIENTS_CLI_PRINTABLE_H_
#define GOLDFINCH_CLIENTS_CLI_PRINTABLE_H_

#include <string>
#include <string_view>

#include "nlohmann/json_fwd.hpp"
#include "tokenizer/utf8.h"

namespace goldfinch {

// Escapes a text that comes in pieces, which may end within a character. Escaped are the controls of ASCII and Latin-1
// (C0 but for newline and tab, DEL, C1), the controls of bidirectional text, the separators of lines and paragraphs
// (U+2028, U+2029), and bytes that are not UTF-8: "\x1b" for a byte, "\u202e" for a character. All else is unchanged.
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

// A whole text on one line: newlines and tabs are escaped too. For names and messages in tables, errors and the log.
std::string OneLine(std::string_view text);

// JSON in which the same characters stand as \uXXXX. Bytes that are not UTF-8 become U+FFFD. `indent` as of
// nlohmann::json::dump: -1 makes one line.
std::string JsonText(const nlohmann::json& json, int indent);

}  // namespace goldfinch

#endif  // GOLDFINCH_CLIENTS_CLI_PRINTABLE_H_
