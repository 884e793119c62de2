// How `goldfinch --help` and `goldfinch COMMAND --help` look.
#ifndef GOLDFINCH_CLIENTS_CLI_FLAGS_HELP_FORMATTER_H_
#define GOLDFINCH_CLIENTS_CLI_FLAGS_HELP_FORMATTER_H_

#include <string>

#include "CLI/CLI.hpp"

namespace goldfinch {

// Prints lines of at most 100 characters. Flags stand under their headings (kFlagHeadings), each with the name of its
// value on the left, and on the right the phrase that says what it does, with the default in brackets.
class HelpFormatter : public CLI::Formatter {
 public:
  std::string make_help(const CLI::App* command, std::string name, CLI::AppFormatMode mode) const override;
};

}  // namespace goldfinch

#endif  // GOLDFINCH_CLIENTS_CLI_FLAGS_HELP_FORMATTER_H_
