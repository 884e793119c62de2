// goldfinch generate: continues a prompt.
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <iostream>
#include <memory>
#include <random>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/safe_text.h"
#include "base/stage_memory.h"
#include "base/status.h"
#include "base/token_ids.h"
#include "clients/cli/local/generation.h"
#include "clients/cli/local/local_commands.h"
#include "clients/cli/local/local_context.h"
#include "clients/cli/local/model.h"
#include "clients/cli/terminal/printable.h"
#include "clients/cli/terminal/terminal.h"
#include "nlohmann/json.hpp"
#include "tokenizer/open.h"
#include "tokenizer/text_stream.h"
#include "tokenizer/vocabulary.h"
#include "worker/stage/sampler.h"

namespace goldfinch {
namespace {

double Now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

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
  GF_ASSIGN_OR_RETURN(sampling.logit_bias, ParseLogitBias(options));
  sampling.banned_tokens = options.ban;
  if (options.ignore_eos) sampling.banned_tokens.push_back(kEndOfTextId);
  if (options.logprobs >= 0) sampling.logprobs = options.logprobs;
  if (absl::Status status = Validate(sampling, vocabulary); !status.ok()) return AsUsageError(status);
  return sampling;
}

class Generator {
 public:
  Generator(const GenerateOptions& options, int64_t max_tokens, Engine& engine, const Tokenizer& tokenizer,
            Sampler sampler, TextStream stream)
      : options_(options),
        max_tokens_(max_tokens),
        engine_(engine),
        tokenizer_(tokenizer),
        sampler_(std::move(sampler)),
        stream_(std::move(stream)) {}

  // After the tokens of `context`, if that is not null.
  absl::StatusOr<Generation> Run(const LocalContext* context, absl::Span<const int32_t> prompt) {
    const double open = Now();
    const int64_t kept = context == nullptr ? 0 : context->tokens();
    GF_ASSIGN_OR_RETURN(const int slot, context == nullptr ? engine_.stage().Open() : context->Open());
    Generation generation;
    GeneratedSample& result = generation.samples.emplace_back();
    absl::Span<const float> logits;
    if (prompt.empty()) {
      logits = context->logits();
    } else {
      ProgressBar bar("reading the prompt", "tokens");
      const auto count = static_cast<int64_t>(prompt.size());
      GF_ASSIGN_OR_RETURN(logits, engine_.Prefill(slot, prompt, [&](int64_t done) { bar.Update(done, count); }));
    }
    const double start = Now();
    generation.prompt_tokens = kept + static_cast<int64_t>(prompt.size());
    generation.cached_tokens = kept;
    generation.prefill_seconds = start - open;
    int64_t position = generation.prompt_tokens;
    for (int64_t i = 0; i < max_tokens_; ++i, ++position) {
      // The last token's logits are not needed, so it is not run.
      if (i > 0) {
        GF_ASSIGN_OR_RETURN(logits, engine_.Decode(slot, result.tokens.back().id));
      }
      GF_ASSIGN_OR_RETURN(const Token token, sampler_.Sample(logits, position, scratch_));
      sampler_.Observe(token.id);
      GeneratedToken& said = result.tokens.emplace_back(GeneratedToken{token.id, token.logprob});
      for (const TokenLogprob& top : token.top) said.top.push_back({top.id, top.logprob});
      const int32_t id = token.id;
      if (id == kEndOfTextId) {
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
    output_.Finish();
    generation.decode_seconds = Now() - start;
    // The last token is not run, so it leaves nothing in the caches.
    const int64_t cached_tokens = engine_.stage().position(slot);
    generation.cache_bytes = cached_tokens * engine_.shape().CacheBytesPerToken(engine_.options().stage.cache_dtype);
    generation.transformer_cache_bytes = cached_tokens * engine_.shape().TransformerBytesPerToken();
    return generation;
  }

 private:
  absl::Status Emit(std::string_view bytes, GeneratedSample* result) {
    std::string text;
    stream_.Append(bytes, &text);
    return Print(text, result);
  }

  absl::Status Print(const std::string& text, GeneratedSample* result) {
    result->text += text;
    if (options_.json || text.empty()) return absl::OkStatus();
    output_.Print(text);
    return FlushOutput();
  }

  const GenerateOptions& options_;
  const int64_t max_tokens_;
  Engine& engine_;
  const Tokenizer& tokenizer_;
  Sampler sampler_;
  SamplerScratch scratch_;
  TextStream stream_;
  TextOutput output_;
};

}  // namespace

absl::Status RunGenerate(const GenerateOptions& options) {
  // A longer prompt cannot fit, whatever its tokens are.
  const int64_t limit_bytes = options.model.max_model_len * static_cast<int64_t>(kTokenBytesMax);
  GF_ASSIGN_OR_RETURN(const std::string prompt, ReadPrompt(options, limit_bytes));
  absl::StatusOr<TextStream> stream = TextStream::Create(StopTexts(options));
  if (!stream.ok()) return UsageError(absl::StrCat("--stop: ", std::string(stream.status().message())));

  GF_ASSIGN_OR_RETURN(const std::unique_ptr<Engine> engine, OpenEngine(options.model, 1));
  const int64_t vocab_size = engine->shape().vocab_size;
  GF_ASSIGN_OR_RETURN(const std::unique_ptr<Tokenizer> tokenizer,
                      OpenTokenizer(options.model.vocab, options.model.model, engine->config().vocabulary, vocab_size));
  const std::shared_ptr<const SamplerVocabulary> vocabulary = MakeSamplerVocabulary(*tokenizer, vocab_size);
  GF_ASSIGN_OR_RETURN(const SamplingOptions sampling, SamplingOf(options, *vocabulary));
  std::vector<int32_t> ids;
  tokenizer->Encode(prompt, &ids);
  std::unique_ptr<LocalContext> context;
  if (!options.context.empty()) {
    GF_ASSIGN_OR_RETURN(context, LocalContext::Read(options.context, *engine));
    if (ids.empty() && context->logits().empty()) {
      return UsageError(absl::StrCat(SafeText(options.context),
                                     ": the context ends without logits, so a prompt is required after it"));
    }
  }
  const int64_t prompt_tokens = (context ? context->tokens() : 0) + static_cast<int64_t>(ids.size());
  const int64_t asked_for = options.has_max_tokens ? options.max_tokens : 0;
  if (absl::Status status = engine->CheckLength(prompt_tokens, asked_for); !status.ok()) return AsUsageError(status);
  // Nobody asked for the default, so it is cut to what fits.
  const int64_t max_tokens = options.has_max_tokens
                                 ? options.max_tokens
                                 : std::min(options.max_tokens, options.model.max_model_len - prompt_tokens);
  GF_RETURN_IF_ERROR(VerifyWeights(options.model, *engine));
  Generator generator(options, max_tokens, *engine, *tokenizer, Sampler(sampling, vocabulary), *std::move(stream));
  GF_ASSIGN_OR_RETURN(Generation result, generator.Run(context.get(), ids));
  result.seed = sampling.seed;
  if (options.json) {
    nlohmann::json json =
        ToJson(result, options.logprobs >= 0, [&](int32_t id) { return std::string(tokenizer->TokenBytes(id)); });
    for (const MemoryPart& part : engine->stage().memory().Parts()) json["memory"][part.name] = part.bytes;
    PrintJson(json);
  } else {
    std::cout << "\n";
    GF_RETURN_IF_ERROR(FlushOutput());
    PrintSummary(result);
  }
  return absl::OkStatus();
}

}  // namespace goldfinch
