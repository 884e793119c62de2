// The program: reads the command line and runs one command.
#include <csignal>
#include <cstdio>
#include <exception>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/status/status.h"
#include "absl/strings/numbers.h"
#include "clients/commands.h"
#include "clients/options.h"
#include "clients/terminal.h"
#include "spdlog/sinks/stdout_color_sinks.h"
#include "spdlog/spdlog.h"

namespace goldfinch {
namespace {

// CLI11 reads -1 as the largest number, and cuts off what is larger still.
std::string IsSeed(const std::string& text) {
  uint64_t seed = 0;
  return absl::SimpleAtoi(text, &seed) ? "" : text + " is not an integer from 0 to 18446744073709551615";
}

void AddModelFlag(CLI::App& command, std::string& model) {
  command.add_option("--model", model, "checkpoint: a .pth or .safetensors file, or the folder of one")
      ->required()
      ->type_name("PATH");
}

void AddModelFlags(CLI::App& command, ModelOptions& options) {
  AddModelFlag(command, options.model);
  command.add_option("--config", options.config, "model settings, JSON or YAML [config.json beside the model]")
      ->type_name("FILE");
  command.add_option("--cache-dtype", options.cache_dtype, "type of the caches' numbers")
      ->check(CLI::IsMember({"f32", "f16", "bf16"}))
      ->capture_default_str();
}

void AddRunFlags(CLI::App& command, ModelOptions& options, const char* chunk_flag) {
  AddModelFlags(command, options);
  command.add_option("--threads", options.threads, "threads; 0: one per core")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
  command.add_option("--max-model-len", options.max_model_len, "most tokens of a sequence, prompt and output together")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 30))
      ->capture_default_str();
  command.add_option(chunk_flag, options.max_batched_tokens, "tokens of a prompt that go through the layers at a time")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 13))
      ->capture_default_str();
  command
      .add_option("--verify", options.verify,
                  "what to check while reading weights: all (checksums, NaN), finite (NaN; for files saved without "
                  "checksums), none")
      ->check(CLI::IsMember({"all", "finite", "none"}))
      ->capture_default_str();
}

void AddVocabFlag(CLI::App& command, std::string& vocab) {
  command.add_option("--vocab", vocab, "vocabulary file, or bytes [beside the model; bytes for models of 257 tokens]")
      ->type_name("FILE");
}

void AddGenerate(CLI::App& app, GenerateOptions& options) {
  CLI::App& command = *app.add_subcommand("generate", "continues a prompt; text goes to standard output as it is made");
  AddRunFlags(command, options.model, "--max-num-batched-tokens");
  AddVocabFlag(command, options.model.vocab);
  CLI::Option* prompt =
      command.add_option("--prompt", options.prompt, "the prompt [standard input]")->type_name("TEXT");
  command.add_option("--prompt-file", options.prompt_file, "the prompt's file")->type_name("FILE")->excludes(prompt);
  command.add_flag("--chat", options.chat,
                   "the prompt is a question to a World model: wraps it as `User: ... Assistant:`");
  command.add_option("--max-tokens", options.max_tokens, "most tokens to generate")
      ->check(CLI::Range(int64_t{0}, int64_t{1} << 30))
      ->capture_default_str();
  command.add_option("--stop", options.stop, "text that ends the output; may be given several times")
      ->type_name("TEXT")
      ->allow_extra_args(false);
  command.add_flag("--ignore-eos", options.ignore_eos, "go on after token 0, which ends a text");
  command.add_option("--temperature", options.temperature, "0: always the likeliest token")->capture_default_str();
  command.add_option("--top-p", options.top_p, "share of the probability to draw from")->capture_default_str();
  command.add_option("--top-k", options.top_k, "most tokens to draw from; 0: no limit")->capture_default_str();
  command.add_option("--min-p", options.min_p, "least probability, as a share of the likeliest token's; 0: no limit")
      ->capture_default_str();
  command.add_option("--presence-penalty", options.presence_penalty, "taken off logits of tokens generated before")
      ->capture_default_str();
  command.add_option("--frequency-penalty", options.frequency_penalty, "taken off for each time a token was generated")
      ->capture_default_str();
  command.add_option("--penalty-decay", options.penalty_decay, "what is left of a count after each token")
      ->capture_default_str();
  CLI::Option* seed = command.add_option("--seed", options.seed, "of the random draws [random]")->check(IsSeed);
  command.add_option("--logit-bias", options.logit_bias, "added to a token's logit; may be given several times")
      ->type_name("ID=BIAS")
      ->allow_extra_args(false);
  command.add_option("--ban", options.ban, "a token that is never drawn; may be given several times")
      ->type_name("ID")
      ->allow_extra_args(false);
  command
      .add_option("--logprobs", options.logprobs,
                  "log-probabilities of each token and of so many likeliest ones (with --json)")
      ->check(CLI::Range(0, 20))
      ->type_name("COUNT");
  command.add_flag("--json", options.json, "one JSON object instead of text");
  command.parse_complete_callback([&options, prompt, seed] {
    options.has_prompt = prompt->count() > 0;
    options.has_seed = seed->count() > 0;
  });
}

void AddInspect(CLI::App& app, InspectOptions& options) {
  CLI::App& command = *app.add_subcommand("inspect", "shows layers, sizes, and what a sequence costs");
  command
      .add_option("model,--model", options.model.model, "checkpoint: a .pth or .safetensors file, or the folder of one")
      ->required()
      ->type_name("PATH");
  command.add_option("--config", options.model.config, "model settings, JSON or YAML [config.json beside the model]")
      ->type_name("FILE");
  command.add_option("--cache-dtype", options.model.cache_dtype, "type of the caches' numbers")
      ->check(CLI::IsMember({"f32", "f16", "bf16"}))
      ->capture_default_str();
  command.add_flag("--json", options.json, "JSON instead of a table");
}

void AddLogits(CLI::App& app, LogitsOptions& options) {
  CLI::App& command = *app.add_subcommand("logits", "writes the logits of every position, float32 [tokens, vocab]");
  AddRunFlags(command, options.model, "--chunk-tokens");
  command.add_option("--tokens", options.tokens, "token ids, a .npy of integers")->required()->type_name("FILE");
  command.add_option("--out", options.out, "the .npy to write")->required()->type_name("FILE");
}

void AddTokenize(CLI::App& app, TokenizeOptions& options, const char* name, const char* help, const char* text_help) {
  CLI::App& command = *app.add_subcommand(name, help);
  command.add_option("--model", options.model, "the model whose vocabulary to use")->type_name("PATH");
  AddVocabFlag(command, options.vocab);
  CLI::Option* text = command.add_option("--text", options.text, text_help)->type_name("TEXT");
  command.add_option("--file", options.file, "its file [standard input]")->type_name("FILE")->excludes(text);
  if (std::string(name) == "tokenize") command.add_flag("--json", options.json, "JSON instead of ids");
  command.parse_complete_callback([&options, text] { options.has_text = text->count() > 0; });
}

// Why the command line is wrong. What is unknown comes first: CLI11 would say what it misses in its place.
std::string ParseMessage(const CLI::App& app, const CLI::ParseError& error) {
  const std::vector<std::string> unknown = app.remaining(/*recurse=*/true);
  return unknown.empty() ? std::string(error.what()) : "unknown command or flag: " + unknown[0];
}

void PrintError(const std::string& message) { std::fprintf(stderr, "goldfinch: %s\n", OneLine(message).c_str()); }

int Main(int argc, char** argv) {
  // Warnings and errors are for people at a terminal: no timestamps.
  spdlog::set_default_logger(spdlog::stderr_color_st("goldfinch"));
  spdlog::set_pattern("%n: %^%l%$: %v");

  CLI::App app("Goldfinch Serving: runs GoldFinch models, and the models they are compared with.", "goldfinch");
  app.require_subcommand(1);
  app.failure_message(CLI::FailureMessage::simple);
  GenerateOptions generate;
  InspectOptions inspect;
  LogitsOptions logits;
  TokenizeOptions tokenize, detokenize;
  AddGenerate(app, generate);
  AddInspect(app, inspect);
  AddLogits(app, logits);
  AddTokenize(app, tokenize, "tokenize", "prints the token ids of a text", "the text");
  AddTokenize(app, detokenize, "detokenize", "prints the text of token ids", "the ids");
  absl::Status status;
  try {
    app.parse(argc, argv);
    if (app.got_subcommand("generate")) status = RunGenerate(generate);
    if (app.got_subcommand("inspect")) status = RunInspect(inspect);
    if (app.got_subcommand("logits")) status = RunLogits(logits);
    if (app.got_subcommand("tokenize")) status = RunTokenize(tokenize);
    if (app.got_subcommand("detokenize")) status = RunDetokenize(detokenize);
  } catch (const CLI::Success& help) {
    app.exit(help);
  } catch (const CLI::ParseError& error) {
    PrintError(ParseMessage(app, error) + "; see goldfinch --help");
    return 2;
  } catch (const std::bad_alloc&) {
    status = absl::ResourceExhaustedError("out of memory");
  } catch (const std::exception& error) {  // of the system: threads that cannot be started, for one
    status = absl::InternalError(error.what());
  }
  if (status.ok()) status = FlushOutput();
  if (!status.ok()) PrintError(std::string(status.message()));
  return ExitCode(status);
}

}  // namespace
}  // namespace goldfinch

int main(int argc, char** argv) {
  // A reader that has gone is an error to report, not a signal to die of.
  std::signal(SIGPIPE, SIG_IGN);
  return goldfinch::Main(argc, argv);
}
