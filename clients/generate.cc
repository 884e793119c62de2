// goldfinch generate: continues a prompt.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <iostream>
#include <memory>
#include <random>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "base/status.h"
#include "clients/commands.h"
#include "clients/model.h"
#include "clients/terminal.h"
#include "coordinator/tokenizer/text_stream.h"
#include "coordinator/tokenizer/vocabulary.h"
#include "nlohmann/json.hpp"
#include "worker/sampler.h"

namespace goldfinch {
namespace {

constexpr int32_t kEndOfText = 0;

double Now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

// The World models' chat form: one question, newlines in it single, and no space at the end.
std::string ChatPrompt(std::string_view text) {
  std::string question;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '\r' && i + 1 < text.size() && text[i + 1] == '\n') continue;
    if (text[i] == '\n' && question.ends_with('\n')) continue;
    question += text[i];
  }
  const std::string trimmed(absl::StripAsciiWhitespace(question));
  return trimmed.empty() ? "" : absl::StrCat("User: ", trimmed, "\n\nAssistant:");
}

// Ids without text have no meaning, but for the end of text.
std::shared_ptr<const SamplerVocabulary> VocabularyOf(const Tokenizer& tokenizer, int64_t vocab_size) {
  std::vector<bool> sampleable(vocab_size), repeats_freely(vocab_size);
  for (int32_t id = 0; id < vocab_size; ++id) {
    const std::string_view text = tokenizer.TokenBytes(id);
    sampleable[id] = id == kEndOfText || !text.empty();
    repeats_freely[id] = !text.empty() && RepeatsFreely(text);
  }
  return std::make_shared<SamplerVocabulary>(std::move(sampleable), std::move(repeats_freely));
}

// The sampler's errors begin with the name of an option, "top_p is 2"; the user knows the flag, --top-p.
absl::Status NameFlag(const absl::Status& status) {
  const std::string message(status.message());
  const size_t end = message.find_first_not_of("abcdefghijklmnopqrstuvwxyz_");
  if (end == std::string::npos) return status;
  const std::string option = message.substr(0, end);
  const std::string flag = option == "banned_tokens" ? "ban" : absl::StrReplaceAll(option, {{"_", "-"}});
  return absl::Status(status.code(), absl::StrCat("--", flag, message.substr(end)));
}

absl::StatusOr<SamplingOptions> SamplingOf(const GenerateOptions& options, const SamplerVocabulary& vocabulary) {
  SamplingOptions sampling;
  sampling.temperature = options.temperature;
  sampling.top_p = options.top_p;
  sampling.top_k = options.top_k;
  sampling.min_p = options.min_p;
  sampling.presence_penalty = options.presence_penalty;
  sampling.frequency_penalty = options.frequency_penalty;
  sampling.penalty_decay = options.penalty_decay;
  sampling.seed = options.has_seed ? options.seed : std::random_device()();
  for (const std::string& entry : options.logit_bias) {
    const std::vector<std::string> parts = absl::StrSplit(entry, '=');
    int32_t id = 0;
    double bias = 0;
    if (parts.size() != 2 || !absl::SimpleAtoi(parts[0], &id) || !absl::SimpleAtod(parts[1], &bias)) {
      return UsageError(absl::StrCat("--logit-bias is \"", entry, "\", expected ID=BIAS"));
    }
    sampling.logit_bias.push_back({id, bias});
  }
  sampling.banned_tokens = options.ban;
  if (options.ignore_eos) sampling.banned_tokens.push_back(kEndOfText);
  if (options.logprobs >= 0) sampling.logprobs = options.logprobs;
  if (absl::Status status = Validate(sampling, vocabulary); !status.ok()) return AsUsageError(NameFlag(status));
  return sampling;
}

struct GeneratedToken {
  int32_t id;
  float logprob;
  std::vector<TokenLogprob> top;
};

struct Generation {
  std::vector<GeneratedToken> tokens;
  std::string text;
  std::string finish_reason = "length";
  int64_t cached_tokens = 0;  // the last token is not run, so it leaves nothing
  double prefill_seconds = 0;
  double decode_seconds = 0;  // of the tokens after the first, whose logits come with the prompt
};

class Generator {
 public:
  Generator(const GenerateOptions& options, Engine& engine, const Tokenizer& tokenizer, Sampler sampler,
            TextStream stream)
      : options_(options),
        engine_(engine),
        tokenizer_(tokenizer),
        sampler_(std::move(sampler)),
        stream_(std::move(stream)) {}

  absl::StatusOr<Generation> Run(absl::Span<const int32_t> prompt) {
    GF_ASSIGN_OR_RETURN(const int slot, engine_.stage().Open());
    Generation result;
    const double start = Now();
    ProgressBar bar("reading the prompt", "tokens");
    const auto count = static_cast<int64_t>(prompt.size());
    GF_ASSIGN_OR_RETURN(absl::Span<const float> logits,
                        engine_.Prefill(slot, prompt, [&](int64_t done) { bar.Update(done, count); }));
    bar.Done();
    result.prefill_seconds = Now() - start;
    int64_t position = count;
    for (int64_t i = 0; i < options_.max_tokens; ++i, ++position) {
      // The last token's logits are not wanted, so it is not run.
      if (i > 0) {
        GF_ASSIGN_OR_RETURN(logits, engine_.Decode(slot, result.tokens.back().id));
      }
      GF_ASSIGN_OR_RETURN(const Token token, sampler_.Sample(logits, position, scratch_));
      sampler_.Observe(token.id);
      result.tokens.push_back({token.id, token.logprob, {token.top.begin(), token.top.end()}});
      const int32_t id = token.id;
      if (id == kEndOfText) {
        result.finish_reason = "end of text";
        break;
      }
      GF_RETURN_IF_ERROR(Emit(tokenizer_.TokenBytes(id), &result));
      if (stream_.stop().has_value()) {
        result.finish_reason = "stop";
        break;
      }
    }
    std::string rest;
    stream_.Finish(&rest);
    GF_RETURN_IF_ERROR(Print(rest, &result));
    result.decode_seconds = Now() - start - result.prefill_seconds;
    result.cached_tokens = engine_.stage().position(slot);
    return result;
  }

 private:
  absl::Status Emit(std::string_view bytes, Generation* result) {
    std::string text;
    stream_.Append(bytes, &text);
    return Print(text, result);
  }

  absl::Status Print(const std::string& text, Generation* result) {
    result->text += text;
    if (options_.json || text.empty()) return absl::OkStatus();
    std::cout << text;
    return FlushOutput();
  }

  const GenerateOptions& options_;
  Engine& engine_;
  const Tokenizer& tokenizer_;
  Sampler sampler_;
  SamplerScratch scratch_;
  TextStream stream_;
};

double Rate(double amount, double seconds) { return seconds > 0 ? amount / seconds : 0; }

int64_t CacheBytes(const Generation& result, const Engine& engine) {
  return engine.shape().CacheBytesPerToken(engine.options().stage.cache_dtype) * result.cached_tokens;
}

int64_t TransformerBytes(const Generation& result, const Engine& engine) {
  return engine.shape().TransformerBytesPerToken() * result.cached_tokens;
}

void PrintSummary(const Generation& result, int64_t prompt_tokens, const Engine& engine, uint64_t seed) {
  const auto generated = static_cast<int64_t>(result.tokens.size());
  absl::FPrintF(stderr, "prompt    %s tokens in %.2f s, %.4g tokens/s\n", WithCommas(prompt_tokens),
                result.prefill_seconds, Rate(static_cast<double>(prompt_tokens), result.prefill_seconds));
  const std::string rate =
      generated < 2
          ? ""
          : absl::StrFormat(", %.4g tokens/s", Rate(static_cast<double>(generated - 1), result.decode_seconds));
  absl::FPrintF(stderr, "output    %s tokens in %.2f s%s; ended by %s; seed %d\n", WithCommas(generated),
                result.decode_seconds, rate, result.finish_reason, seed);
  absl::FPrintF(stderr, "cache     %s; a transformer of this shape would have kept %s\n",
                HumanBytes(CacheBytes(result, engine)), HumanBytes(TransformerBytes(result, engine)));
}

nlohmann::json ToJson(const Generation& result, int64_t prompt_tokens, const Engine& engine, const Tokenizer& tokenizer,
                      uint64_t seed, bool logprobs) {
  nlohmann::json json = {{"text", result.text},
                         {"finish_reason", result.finish_reason},
                         {"seed", seed},
                         {"prompt_tokens", prompt_tokens},
                         {"prefill_seconds", result.prefill_seconds},
                         {"decode_seconds", result.decode_seconds},
                         {"cache_bytes", CacheBytes(result, engine)},
                         {"transformer_cache_bytes", TransformerBytes(result, engine)},
                         {"tokens", nlohmann::json::array()}};
  const auto describe = [&](int32_t id, float logprob) {
    nlohmann::json token = {{"id", id}, {"text", tokenizer.TokenBytes(id)}};
    if (logprobs) token["logprob"] = logprob;
    return token;
  };
  for (const GeneratedToken& token : result.tokens) {
    nlohmann::json entry = describe(token.id, token.logprob);
    for (const TokenLogprob& top : token.top) entry["top"].push_back(describe(top.id, top.logprob));
    json["tokens"].push_back(std::move(entry));
  }
  return json;
}

}  // namespace

absl::Status RunGenerate(const GenerateOptions& options) {
  // A prompt of more bytes than this cannot fit, whatever its tokens are.
  const int64_t limit_bytes = options.model.max_model_len * static_cast<int64_t>(kTokenBytesMax);
  GF_ASSIGN_OR_RETURN(std::string prompt,
                      ReadText("--prompt", options.prompt, options.has_prompt, options.prompt_file, limit_bytes));
  if (options.chat) prompt = ChatPrompt(prompt);
  if (prompt.empty()) return UsageError("the prompt is empty");
  std::vector<std::string> stops = options.stop;
  if (options.chat) stops.emplace_back("\n\n");
  absl::StatusOr<TextStream> stream = TextStream::Create(stops);
  if (!stream.ok()) return UsageError(absl::StrCat("--stop: ", std::string(stream.status().message())));

  GF_ASSIGN_OR_RETURN(const std::unique_ptr<Engine> engine, OpenEngine(options.model, 1));
  const int64_t vocab_size = engine->shape().vocab_size;
  GF_ASSIGN_OR_RETURN(const std::unique_ptr<Tokenizer> tokenizer,
                      OpenTokenizer(options.model.vocab, options.model.model, engine->config().vocabulary, vocab_size));
  const std::shared_ptr<const SamplerVocabulary> vocabulary = VocabularyOf(*tokenizer, vocab_size);
  GF_ASSIGN_OR_RETURN(const SamplingOptions sampling, SamplingOf(options, *vocabulary));
  std::vector<int32_t> ids;
  tokenizer->Encode(prompt, &ids);
  if (absl::Status status = engine->CheckLength(static_cast<int64_t>(ids.size()), options.max_tokens); !status.ok()) {
    return AsUsageError(status);
  }
  GF_RETURN_IF_ERROR(VerifyWeights(options.model, *engine));
  Generator generator(options, *engine, *tokenizer, Sampler(sampling, vocabulary), *std::move(stream));
  GF_ASSIGN_OR_RETURN(const Generation result, generator.Run(ids));
  const auto prompt_tokens = static_cast<int64_t>(ids.size());
  if (options.json) {
    std::cout << ToJson(result, prompt_tokens, *engine, *tokenizer, sampling.seed, options.logprobs >= 0)
                     .dump(2, ' ', false, nlohmann::json::error_handler_t::replace)
              << "\n";
  } else {
    std::cout << "\n";
    GF_RETURN_IF_ERROR(FlushOutput());
    PrintSummary(result, prompt_tokens, *engine, sampling.seed);
  }
  return absl::OkStatus();
}

}  // namespace goldfinch
