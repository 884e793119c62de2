#include "clients/cli/flags/help_formatter.h"

#include <string_view>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "clients/cli/flags/flag_group.h"

namespace goldfinch {
namespace {

constexpr size_t kColumn = 34;  // the column at which phrases begin
constexpr size_t kWidth = 100;

// A name on the left and a phrase on the right, broken at spaces; the phrase starts on a line of its own if the name is
// too long.
std::string Entry(const std::string& name, const std::string& phrase) {
  std::string text;
  std::string line = absl::StrCat("  ", name);
  if (line.size() + 2 > kColumn) {
    absl::StrAppend(&text, line, "\n");
    line.clear();
  }
  bool first = true;  // whether the next word is the first on its line
  line.resize(kColumn, ' ');
  for (const absl::string_view word : absl::StrSplit(phrase, ' ')) {
    if (!first && line.size() + 1 + word.size() > kWidth) {
      absl::StrAppend(&text, line, "\n");
      line.assign(kColumn, ' ');
      first = true;
    }
    absl::StrAppend(&line, first ? "" : " ", word);
    first = false;
  }
  return absl::StrCat(text, line, "\n");
}

// "--max-queue COUNT", "-n, --samples COUNT"; "FILE" of what is no flag.
std::string NameOf(const CLI::Option& flag) {
  if (flag.get_lnames().empty() && flag.get_snames().empty()) return flag.get_type_name();
  const std::string value = !flag.get_option_text().empty() ? flag.get_option_text()
                            : flag.get_type_size() != 0     ? flag.get_type_name()
                                                            : std::string();
  return absl::StrCat(absl::StrReplaceAll(flag.get_name(false, true), {{",", ", "}}), value.empty() ? "" : " ", value);
}

std::string PhraseOf(const CLI::Option& flag) {
  std::string phrase = flag.get_description();
  if (flag.get_required()) return phrase + " [required]";
  if (!flag.get_default_str().empty()) absl::StrAppend(&phrase, " [default: ", flag.get_default_str(), "]");
  return phrase;
}

std::string Usage(const CLI::App& command, const std::string& name) {
  std::string usage = absl::StrCat("Usage: ", name);
  for (const CLI::Option* flag : command.get_options([](const CLI::Option* one) { return one->get_positional(); })) {
    absl::StrAppend(&usage, " ", flag->get_type_name());
  }
  if (!command.get_subcommands({}).empty()) return absl::StrCat(usage, " COMMAND [FLAGS]\n");
  for (const CLI::Option* flag : command.get_options({})) {
    if (flag->get_required() && !flag->get_positional()) absl::StrAppend(&usage, " ", NameOf(*flag));
  }
  return absl::StrCat(usage, " [FLAGS]\n");
}

}  // namespace

std::string HelpFormatter::make_help(const CLI::App* command, std::string name, CLI::AppFormatMode) const {
  std::string text = absl::StrCat(command->get_description(), "\n\n", Usage(*command, name));
  const std::vector<const CLI::App*> commands = command->get_subcommands({});
  if (!commands.empty()) absl::StrAppend(&text, "\ncommands:\n");
  for (const CLI::App* one : commands) absl::StrAppend(&text, Entry(one->get_name(), one->get_description()));
  for (const char* heading : kFlagHeadings) {
    const auto flags = command->get_options([&](const CLI::Option* flag) { return flag->get_group() == heading; });
    if (!flags.empty())
      absl::StrAppend(&text, "\n", std::string_view(heading) == kOtherFlags ? "other" : heading, ":\n");
    for (const CLI::Option* flag : flags) absl::StrAppend(&text, Entry(NameOf(*flag), PhraseOf(*flag)));
  }
  return command->get_footer().empty() ? text : absl::StrCat(text, "\n", command->get_footer(), "\n");
}

}  // namespace goldfinch
