// Flags of `goldfinch context` and its commands.
#include <string>
#include <utility>

#include "clients/cli/flags/flag_group.h"
#include "clients/cli/flags/flags.h"
#include "clients/cli/flags/shared_flags.h"

namespace goldfinch {
namespace {

// Adds the commands one by one.
class ContextCommands {
 public:
  ContextCommands(CLI::App& app, ContextOptions& options) : app_(app), options_(options) {}

  CLI::App& Add(const std::string& name, const std::string& purpose) {
    CLI::App& command = *app_.add_subcommand(name, purpose);
    command.parse_complete_callback([this_command = name, &options = options_] { options.command = this_command; });
    return command;
  }

  void Name(CLI::App& command, const char* type, const std::string& help) {
    FlagGroup(command, kContextFlags).Text("name", options_.name, type, help)->required();
  }

  // The name of a context that the command makes.
  void NewName(CLI::App& command, const char* type, const std::string& help) {
    FlagGroup(command, kContextFlags).Text("new-name", options_.keep.name, type, help)->required();
    AddKeepFlags(command, options_.keep);
  }

  void Etag(CLI::App& command) {
    FlagGroup(command, kContextFlags)
        .Text("--etag", options_.etag, "ETAG", "Do it only if the context still has this etag, as `show` prints it");
  }

  void Server(CLI::App& command) { AddServerFlags(command, options_.remote); }

  // For commands that have a text read.
  void TextAndServer(CLI::App& command) {
    FlagGroup flags(command, kPromptFlags);
    CLI::Option* text =
        flags.Text("--text", options_.text, "TEXT", "The text")->default_str("read from standard input");
    flags.Text("--file", options_.text_file, "FILE", "File that holds the text, instead of --text")->excludes(text);
    Server(command);
    FlagGroup(command, kNetworkFlags)
        .InLimits("--priority", options_.priority, "NUMBER", "Requests of higher priority go first", -100, 100);
    command.parse_complete_callback([name = command.get_name(), text, &options = options_] {
      options.command = name;
      options.has_text = text->count() > 0;
    });
  }

  void Retry(CLI::App& command) {
    FlagGroup(command, kTimeoutFlags)
        .Seconds("--retry", options_.retry_seconds,
                 "How many seconds to try to go on where it was after the connection broke; 0 gives up at once", 0);
  }

  void Json(CLI::App& command) {
    FlagGroup(command, kOutputFlags).Switch("--json", options_.json, "Print JSON instead of a table");
  }

 private:
  CLI::App& app_;
  ContextOptions& options_;
};

void AddTextCommands(ContextCommands& commands, ContextOptions& options) {
  CLI::App& create = commands.Add("create", "Have a text read, and keep it under a name");
  create.footer("Example: goldfinch context create book --server 127.0.0.1:50051 --file book.txt");
  commands.NewName(create, "NAME", "Name to give it");
  FlagGroup(create, kContextFlags)
      .Text("--from", options.from, "NAME[@TOKEN]",
            "Begin with the tokens of this context, or with so many of them, and read the text after them");
  AddBreakpointFlag(create, options.breakpoints, "the text");
  commands.TextAndServer(create);
  commands.Json(create);

  CLI::App& append = commands.Add("append", "Have more text read at the end of a context");
  commands.Name(append, "NAME", "Name of the context");
  commands.Etag(append);
  commands.TextAndServer(append);
  commands.Json(append);
}

void AddNameCommands(ContextCommands& commands, ContextOptions& options) {
  CLI::App& list = commands.Add("list", "List the contexts");
  commands.Server(list);
  commands.Json(list);

  CLI::App& show = commands.Add("show", "Show what is kept of a context");
  commands.Name(show, "NAME", "Name of the context");
  commands.Server(show);
  commands.Json(show);

  CLI::App& fork = commands.Add("fork", "Give a name to the first tokens of a context, which it shares");
  fork.footer(
      "NAME@1000 stands for the first 1000 tokens, NAME for all of them. NAME@ is a name that itself ends like that: "
      "a@7@ is all of a@7.");
  commands.Name(fork, "NAME[@TOKEN]", "Name of the context");
  commands.NewName(fork, "NEW", "Name to give to the new one");
  commands.Server(fork);
  commands.Json(fork);

  CLI::App& rename = commands.Add("rename", "Give a context another name");
  commands.Name(rename, "NAME", "Name of the context");
  FlagGroup(rename, kContextFlags).Text("new-name", options.new_name, "NEW", "Name to give to it")->required();
  commands.Etag(rename);
  commands.Server(rename);
  commands.Json(rename);

  const std::pair<const char*, const char*> changes[] = {
      {"pin", "Keep a context from expiring, and its bytes in memory"},
      {"unpin", "Let a context that was pinned expire again, and its bytes be moved out of memory"},
  };
  for (const auto& [name, purpose] : changes) {
    CLI::App& command = commands.Add(name, purpose);
    commands.Name(command, "NAME", "Name of the context");
    commands.Etag(command);
    commands.Server(command);
    commands.Json(command);
  }

  CLI::App& remove = commands.Add("delete", "Remove a context");
  commands.Name(remove, "NAME", "Name of the context");
  commands.Etag(remove);
  commands.Server(remove);
}

void AddFileCommands(ContextCommands& commands, ContextOptions& options) {
  CLI::App& get = commands.Add("export", "Write a context to a safetensors file");
  get.footer(
      "What has come is in FILE.partial until the file is whole. The same command goes on there after it was ended. "
      "The "
      "server needs a place beside its workers' memory: --context-dir, or --protect-memory of `goldfinch "
      "coordinator`.");
  commands.Name(get, "NAME", "Name of the context");
  FlagGroup output(get, kOutputFlags);
  output.Text("out", options.file, "FILE", "The file to write")->required();
  output.Switch("--force", options.force, "Overwrite the file if it exists");
  commands.Etag(get);
  commands.Server(get);
  commands.Retry(get);

  CLI::App& put = commands.Add(
      "import", "Give a server a context that was exported to a file, or a tuned state (.pth) as one of no tokens");
  put.footer(
      "The same command goes on where it was after it was ended. The server needs --context-dir, or --protect-memory "
      "of `goldfinch coordinator`.");
  FlagGroup(put, kContextFlags).Text("file", options.file, "FILE", "The file")->required();
  commands.NewName(put, "NAME", "Name to give it");
  commands.Server(put);
  commands.Retry(put);
  commands.Json(put);

  CLI::App& verify = commands.Add("verify", "Check an exported file, and show what is in it; needs no server");
  FlagGroup(verify, kContextFlags).Text("file", options.file, "FILE", "The file")->required();
  commands.Json(verify);
}

}  // namespace

void AddContext(CLI::App& app, ContextOptions& options) {
  CLI::App& group =
      *app.add_subcommand("context", "Make, list, export and import contexts: texts that a server has read and keeps");
  group.require_subcommand(1);
  ContextCommands commands(group, options);
  AddTextCommands(commands, options);
  AddNameCommands(commands, options);
  AddFileCommands(commands, options);
  group.footer("`goldfinch context COMMAND --help` lists the flags of a command.");
}

}  // namespace goldfinch
