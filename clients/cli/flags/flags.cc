// Flags of the commands that need no server: generate, which can also use one, and those on files.
#include "clients/cli/flags/flags.h"

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "clients/cli/flags/flag_group.h"
#include "clients/cli/flags/shared_flags.h"

namespace goldfinch {
namespace {

constexpr int64_t kTokensMax = int64_t{1} << 30;

void AddRunFlags(CLI::App& command, ModelOptions& options) {
  AddModelFlag(command, "--model", options.model);
  AddConfigFlag(command, options.config);
  AddVerifyFlag(command, options.verify);
  AddBackendFlags(command, options.backend);
  AddMaxModelLenFlag(command, options.max_model_len);
  AddMaxStepTokensFlag(command, options.max_step_tokens, int64_t{1} << 13,
                       "Most tokens of the prompt that go through the layers at a time");
  AddCacheDTypeFlag(command, options.cache_dtype);
  AddGoldTierFlag(command, options.gold_tier);
  AddMemoryShareFlag(command, options.gpu_memory_utilization);
}

CLI::Option* AddPromptFlags(CLI::App& command, GenerateOptions& options) {
  FlagGroup flags(command, kPromptFlags);
  CLI::Option* prompt =
      flags.Text("--prompt", options.prompt, "TEXT", "The prompt")->default_str("read from standard input");
  flags.Text("--prompt-file", options.prompt_file, "FILE", "File that holds the prompt, instead of --prompt")
      ->excludes(prompt);
  flags.Switch("--chat", options.chat,
               "Treat the prompt as a question to a World model: wraps it as `User: ... Assistant:`");
  return prompt;
}

CLI::Option* AddSamplingFlags(CLI::App& command, GenerateOptions& options) {
  FlagGroup flags(command, kSamplingFlags);
  flags.InLimits("--max-tokens", options.max_tokens, "TOKENS",
                 "Most tokens to generate; the default is cut to what fits", 0, kTokensMax);
  flags.Several("--stop", options.stop, "TEXT", "Text that ends the answer and is not part of it");
  flags.Switch("--ignore-eos", options.ignore_eos, "Never draw token 0, which ends a text");
  flags.Unchecked("--temperature", options.temperature, "NUMBER",
                  "Randomness of the draws, 0.0 to 100.0; 0 always takes the most likely token");
  flags.Unchecked("--top-p", options.top_p, "SHARE",
                  "Draw from the most likely tokens that have this share of the probability, 0.0 to 1.0");
  flags.Unchecked("--top-k", options.top_k, "COUNT", "Draw from this many most likely tokens; 0 is no limit");
  flags.Unchecked("--min-p", options.min_p, "SHARE",
                  "Least probability of a token to draw, as a share of the most likely one's, 0.0 to 1.0; 0 is no "
                  "limit");
  flags.Unchecked("--presence-penalty", options.presence_penalty, "LOGITS",
                  "Taken off the logit of every token that the answer has already, -100.0 to 100.0");
  flags.Unchecked("--frequency-penalty", options.frequency_penalty, "LOGITS",
                  "Taken off a token's logit for each time that the answer has it already, -100.0 to 100.0");
  flags.Unchecked("--penalty-decay", options.penalty_decay, "FACTOR",
                  "What is left of those counts after each token, 0.0 to 1.0");
  CLI::Option* seed = flags.Text("--seed", options.seed, "NUMBER", "Seed of the random draws, 0 to 2^64 - 1")
                          ->check(InRange(uint64_t{0}, UINT64_MAX))
                          ->default_str("random");
  flags.Several("--logit-bias", options.logit_bias, "ID=BIAS",
                "Number to add to the logit of the token ID, -100.0 to 100.0");
  flags.Several("--ban", options.ban, "ID", "Token that is never drawn");
  return seed;
}

// The command's flags that are not in `others`, without --help, in their order.
std::vector<CLI::Option*> FlagsSoFar(CLI::App& command, const std::vector<CLI::Option*>& others) {
  return command.get_options([&](CLI::Option* flag) {
    return flag != command.get_help_ptr() && std::find(others.begin(), others.end(), flag) == others.end();
  });
}

// The command runs a model here (`local` flags) or asks a server (`remote` flags). The first flag of each list says
// which: --model or --server.
void CheckOneOf(const std::vector<CLI::Option*>& local, const std::vector<CLI::Option*>& remote) {
  const bool server = remote[0]->count() > 0;
  for (const CLI::Option* flag : server ? local : remote) {
    if (flag->count() == 0) continue;
    throw CLI::ExcludesError(flag->get_name() + (server ? " cannot be used with --server" : " needs --server"),
                             CLI::ExitCodes::ExcludesError);
  }
  if (!server && local[0]->count() == 0) {
    throw CLI::RequiredError("--model is required, or --server", CLI::ExitCodes::RequiredError);
  }
}

}  // namespace

void AddGenerate(CLI::App& app, GenerateOptions& options) {
  CLI::App& command = *app.add_subcommand("generate", "Continue a prompt, with a model on this machine or on a server");
  command.footer("Example: goldfinch generate --server 127.0.0.1:50051 --prompt \"In the beginning\" --max-tokens 300");
  AddRunFlags(command, options.model);
  AddVocabFlag(command, options.model.vocab);
  const std::vector<CLI::Option*> local = FlagsSoFar(command, {});
  AddServerFlags(command, options.remote);
  FlagGroup(command, kSamplingFlags)
      .InLimits("-n,--samples", options.samples, "COUNT", "Answers to generate for the prompt (with --server)", 1, 64);
  FlagGroup(command, kNetworkFlags)
      .InLimits("--priority", options.priority, "NUMBER", "Requests of higher priority go first (with --server)", -100,
                100);
  FlagGroup context(command, kContextFlags);
  CLI::Option* keep_as = context.Text("--keep-as", options.keep.name, "NAME",
                                      "Keep prompt and answer as a context of this name (with --server)");
  for (CLI::Option* flag : AddKeepFlags(command, options.keep)) flag->needs(keep_as);
  AddBreakpointFlag(command, options.breakpoints, "the prompt");
  const std::vector<CLI::Option*> remote = FlagsSoFar(command, local);
  context.Text("--context", options.context, "NAME[@TOKEN]|FILE",
               "Go on from this context of the server, or from its first TOKEN tokens; with --model from a file that "
               "`goldfinch context export` has written, or from a tuned state (.pth with blocks.N.att.time_state)");
  local[0]->required(false)->description(local[0]->get_description() + "; or give --server");
  remote[0]->required(false)->description(remote[0]->get_description() + "; or give --model");
  CLI::Option* prompt = AddPromptFlags(command, options);
  CLI::Option* seed = AddSamplingFlags(command, options);
  FlagGroup output(command, kOutputFlags);
  output
      .Text("--logprobs", options.logprobs, "COUNT",
            "Also print (with --json) the log-probability of each token, and of this many most likely ones, 0 to 20")
      ->check(InRange(0, 20));
  output.Switch("--json", options.json, "Print one JSON object instead of text");
  const CLI::Option* max_tokens = command.get_option("--max-tokens");
  command.parse_complete_callback([&options, prompt, seed, max_tokens, local, remote] {
    CheckOneOf(local, remote);
    options.has_prompt = prompt->count() > 0;
    options.has_max_tokens = max_tokens->count() > 0;
    options.has_seed = seed->count() > 0;
  });
}

void AddInspect(CLI::App& app, InspectOptions& options) {
  CLI::App& command = *app.add_subcommand("inspect", "Show a model's layers, sizes and memory per token");
  AddModelFlag(command, "model,--model", options.model.model);
  AddConfigFlag(command, options.model.config);
  AddCacheDTypeFlag(command, options.model.cache_dtype);
  FlagGroup(command, kOutputFlags).Switch("--json", options.json, "Print JSON instead of a table");
}

void AddLogits(CLI::App& app, LogitsOptions& options) {
  CLI::App& command =
      *app.add_subcommand("logits", "Write the logits at every position, to compare a model with a reference");
  AddRunFlags(command, options.model);
  FlagGroup(command, kPromptFlags)
      .Text("--tokens", options.tokens, "FILE", "Token ids: a .npy file of integers")
      ->required();
  FlagGroup(command, kOutputFlags)
      .Text("--out", options.out, "FILE", "File to write: .npy, float32 [tokens, vocabulary]")
      ->required();
}

void AddQuantize(CLI::App& app, QuantizeCommandOptions& options) {
  CLI::App& command = *app.add_subcommand("quantize", "Write a copy of a model with its large matrices in 8 or 4 bits");
  command.footer("Example: goldfinch quantize model.pth model-int8.safetensors --dtype int8");
  AddModelFlag(command, "model,--model", options.model);
  AddConfigFlag(command, options.config);
  FlagGroup output(command, kOutputFlags);
  output.Text("out,--out", options.out, "OUT", "The .safetensors file to write")->required();
  output.Choice("--dtype", options.dtype, {"int8", "int4"}, "Type of the mixers' and the head's matrices")->required();
  output.Several("--keep", options.keep, "NAME", "Matrix to leave as it is, such as head.weight or 'blocks.0.*'");
  output.Switch("--force", options.force, "Overwrite the file if it exists");
  AddThreadsFlag(command, options.threads);
}

namespace {

CLI::App& AddTokenizer(CLI::App& app, TokenizeOptions& options, const char* name, const char* purpose,
                       const std::string& what) {
  CLI::App& command = *app.add_subcommand(name, purpose);
  FlagGroup(command, kModelFlags).Text("--model", options.model, "PATH", "Model whose vocabulary to use");
  AddVocabFlag(command, options.vocab);
  FlagGroup flags(command, kPromptFlags);
  CLI::Option* text = flags.Text("--text", options.text, "TEXT", what)->default_str("read from standard input");
  flags.Text("--file", options.file, "FILE", "File to read instead of --text")->excludes(text);
  command.parse_complete_callback([&options, text] { options.has_text = text->count() > 0; });
  return command;
}

}  // namespace

void AddTokenize(CLI::App& app, TokenizeOptions& options) {
  CLI::App& command = AddTokenizer(app, options, "tokenize", "Print the token ids of a text", "The text");
  FlagGroup(command, kOutputFlags).Switch("--json", options.json, "Print JSON instead of ids");
}

void AddDetokenize(CLI::App& app, TokenizeOptions& options) {
  AddTokenizer(app, options, "detokenize", "Print the text of token ids", "The ids");
}

}  // namespace goldfinch
