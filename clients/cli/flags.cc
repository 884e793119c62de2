#include "clients/cli/flags.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/strings/numbers.h"

namespace goldfinch {
namespace {

void AddModelFlag(CLI::App& command, std::string& model) {
  command.add_option("--model", model, "checkpoint: a .pth or .safetensors file, or the folder of one")
      ->required()
      ->type_name("PATH");
}

void AddModelFlags(CLI::App& command, ModelOptions& options) {
  AddModelFlag(command, options.model);
  command.add_option("--config", options.config, "model settings, JSON or YAML [config.json beside the model]")
      ->type_name("FILE");
  AddCacheDTypeFlag(command, options.cache_dtype);
}

void AddRunFlags(CLI::App& command, ModelOptions& options, const char* chunk_flag) {
  AddModelFlags(command, options);
  AddBackendFlags(command, options.backend, "threads; 0: one per core");
  AddGoldTierFlag(command, options.gold_tier);
  AddMemoryShareFlag(command, options.gpu_memory_utilization);
  command.add_option("--max-model-len", options.max_model_len, "most tokens of a sequence, prompt and output together")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 30))
      ->capture_default_str();
  command.add_option(chunk_flag, options.max_step_tokens, "tokens of a prompt that go through the layers at a time")
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

// The command's flags that are not in `others`, without --help, in their order.
std::vector<CLI::Option*> FlagsSoFar(CLI::App& command, const std::vector<CLI::Option*>& others) {
  return command.get_options([&](CLI::Option* flag) {
    return flag != command.get_help_ptr() && std::find(others.begin(), others.end(), flag) == others.end();
  });
}

// A model here or a server, each known by its first flag, with flags of its own.
void CheckOneOf(const std::vector<CLI::Option*>& local, const std::vector<CLI::Option*>& remote) {
  const bool server = remote[0]->count() > 0;
  for (const CLI::Option* flag : server ? local : remote) {
    if (flag->count() == 0) continue;
    throw CLI::ExcludesError(flag->get_name() + (server ? " does not go with --server" : " needs --server"),
                             CLI::ExitCodes::ExcludesError);
  }
  if (!server && local[0]->count() == 0) {
    throw CLI::RequiredError("--model is required, or --server", CLI::ExitCodes::RequiredError);
  }
}

}  // namespace

std::string IsSeed(const std::string& text) {
  uint64_t seed = 0;
  return absl::SimpleAtoi(text, &seed) ? "" : text + " is not an integer from 0 to 18446744073709551615";
}

std::string IsNumber(const std::string& text) {
  double number = 0;
  return absl::SimpleAtod(text, &number) && !std::isnan(number) ? "" : text + " is not a number";
}

void AddBackendFlags(CLI::App& command, BackendOptions& options, const char* threads_help) {
  command
      .add_option("--device", options.device,
                  "what computes: cpu; cuda, or cuda:N for another GPU than the first; auto: CUDA if it can be had")
      ->check([](const std::string& text) {
        return IsDeviceName(text) ? "" : text + " is none of auto, cpu, cuda and cuda:N";
      })
      ->type_name("DEVICE")
      ->capture_default_str();
  command
      .add_option("--dtype", options.dtype,
                  "type of what goes from op to op; auto: bf16 on CUDA; the CPU computes in f32 only")
      ->check(CLI::IsMember({"auto", "f32", "f16", "bf16"}))
      ->capture_default_str();
  command.add_option("--threads", options.threads, threads_help)->check(CLI::Range(0, 1024))->capture_default_str();
}

void AddCacheDTypeFlag(CLI::App& command, std::string& cache_dtype) {
  command
      .add_option(
          "--cache-dtype", cache_dtype,
          "type of the caches' numbers; int8 (with a scale a row): for models whose only cache is the compressed one")
      ->check(CLI::IsMember({"f32", "f16", "bf16", "int8"}))
      ->capture_default_str();
}

void AddGoldTierFlag(CLI::App& command, std::string& gold_tier) {
  command
      .add_option("--gold-tier", gold_tier,
                  "what GOLD layers keep beside the compressed cache, as memory allows: compressed: nothing; shared: "
                  "what all layers share; full: keys and values; auto: as full")
      ->check(CLI::IsMember({"auto", "compressed", "shared", "full"}))
      ->capture_default_str();
}

CLI::Option* AddMemoryShareFlag(CLI::App& command, double& share) {
  return command
      .add_option("--gpu-memory-utilization", share,
                  "share of a GPU's memory to use, all programs on it together: what others use is taken off")
      ->check([](const std::string& text) {
        double number = 0;
        return absl::SimpleAtod(text, &number) && number > 0 && number <= 1 ? ""
                                                                            : text + " is not above 0 and at most 1";
      })
      ->type_name("SHARE")
      ->capture_default_str();
}

void AddGenerate(CLI::App& app, GenerateOptions& options) {
  CLI::App& command = *app.add_subcommand("generate", "continues a prompt; text goes to standard output as it is made");
  AddRunFlags(command, options.model, "--max-num-batched-tokens");
  AddVocabFlag(command, options.model.vocab);
  const std::vector<CLI::Option*> local = FlagsSoFar(command, {});
  AddServerFlags(command, options.remote);
  command.add_option("-n,--samples", options.samples, "answers to the one prompt")
      ->check(CLI::Range(1u, 64u))
      ->capture_default_str();
  command.add_option("--priority", options.priority, "higher goes first")
      ->check(CLI::Range(-100, 100))
      ->capture_default_str();
  const std::vector<CLI::Option*> remote = FlagsSoFar(command, local);
  local[0]->required(false);   // --model
  remote[0]->required(false);  // --server
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
  command.parse_complete_callback([&options, prompt, seed, local, remote] {
    CheckOneOf(local, remote);
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
  AddCacheDTypeFlag(command, options.model.cache_dtype);
  command.add_flag("--json", options.json, "JSON instead of a table");
}

void AddLogits(CLI::App& app, LogitsOptions& options) {
  CLI::App& command = *app.add_subcommand("logits", "writes the logits of every position, float32 [tokens, vocab]");
  AddRunFlags(command, options.model, "--chunk-tokens");
  command.add_option("--tokens", options.tokens, "token ids, a .npy of integers")->required()->type_name("FILE");
  command.add_option("--out", options.out, "the .npy to write")->required()->type_name("FILE");
}

void AddQuantize(CLI::App& app, QuantizeOptions& options) {
  CLI::App& command = *app.add_subcommand("quantize", "writes a model again, its large matrices in 8 or 4 bits");
  command.add_option("model,--model", options.model, "checkpoint: a .pth or .safetensors file, or the folder of one")
      ->required()
      ->type_name("PATH");
  command.add_option("out,--out", options.out, "the .safetensors file to write")->required()->type_name("FILE");
  command.add_option("--dtype", options.dtype, "of the matrices of all mixers and of the head")
      ->check(CLI::IsMember({"int8", "int4"}))
      ->required();
  command
      .add_option("--keep", options.keep, "matrices to leave as they are, such as head.weight or 'blocks.0.*'; repeat")
      ->allow_extra_args(false)
      ->type_name("NAME");
  command.add_option("--config", options.config, "model settings, JSON or YAML [config.json beside the model]")
      ->type_name("FILE");
  command.add_flag("--force", options.force, "overwrite the file if it exists");
  command.add_option("--threads", options.threads, "threads; 0: one per core")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
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

}  // namespace goldfinch
