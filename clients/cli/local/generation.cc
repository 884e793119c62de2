#include "clients/cli/local/generation.h"

#include <cstdio>
#include <iostream>
#include <string_view>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "base/status.h"
#include "clients/cli/local/model.h"
#include "clients/cli/terminal/printable.h"
#include "clients/cli/terminal/terminal.h"
#include "nlohmann/json.hpp"

namespace goldfinch {
namespace {

// The chat form of the World models: one question, in it no two newlines in a row, and no space at its end.
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

double Rate(double amount, double seconds) { return seconds > 0 ? amount / seconds : 0; }

nlohmann::json SampleJson(const GeneratedSample& sample, bool logprobs, const TokenText& token_text) {
  const auto describe = [&](int32_t id, float logprob) {
    nlohmann::json token = {{"id", id}, {"text", token_text(id)}};
    if (logprobs) token["logprob"] = logprob;
    return token;
  };
  nlohmann::json json = {
      {"text", sample.text}, {"finish_reason", sample.finish_reason}, {"tokens", nlohmann::json::array()}};
  for (const GeneratedToken& token : sample.tokens) {
    nlohmann::json entry = describe(token.id, token.logprob);
    for (const GeneratedToken::Likely& top : token.top) entry["top"].push_back(describe(top.id, top.logprob));
    json["tokens"].push_back(std::move(entry));
  }
  return json;
}

// One reason for each sample: "length", or "length, stop".
std::string FinishReasons(const Generation& generation) {
  std::string reasons;
  for (const GeneratedSample& sample : generation.samples) {
    absl::StrAppend(&reasons, reasons.empty() ? "" : ", ", sample.finish_reason);
  }
  return reasons;
}

}  // namespace

absl::StatusOr<std::string> ReadPrompt(const GenerateOptions& options, int64_t limit) {
  GF_ASSIGN_OR_RETURN(std::string prompt,
                      ReadText("--prompt", options.prompt, options.has_prompt, options.prompt_file, limit));
  if (options.chat) prompt = ChatPrompt(prompt);
  if (prompt.empty() && options.context.empty()) return UsageError("the prompt is empty");
  return prompt;
}

std::vector<std::string> StopTexts(const GenerateOptions& options) {
  std::vector<std::string> stops = options.stop;
  if (options.chat) stops.emplace_back("\n\n");
  return stops;
}

absl::StatusOr<std::vector<LogitBias>> ParseLogitBias(const GenerateOptions& options) {
  std::vector<LogitBias> biases;
  for (const std::string& entry : options.logit_bias) {
    const std::vector<std::string> parts = absl::StrSplit(entry, '=');
    int32_t id = 0;
    double bias = 0;
    if (parts.size() != 2 || !absl::SimpleAtoi(parts[0], &id) || !absl::SimpleAtod(parts[1], &bias)) {
      return UsageError(absl::StrCat("--logit-bias is \"", entry, "\", expected ID=BIAS"));
    }
    biases.push_back({id, bias});
  }
  return biases;
}

void PrintSummary(const Generation& generation) {
  int64_t tokens = 0;
  for (const GeneratedSample& sample : generation.samples) tokens += static_cast<int64_t>(sample.tokens.size());
  const int64_t decoded = tokens - static_cast<int64_t>(generation.samples.size());
  const std::string kept =
      generation.cached_tokens == 0 ? "" : absl::StrCat(" (", WithCommas(generation.cached_tokens), " of them kept)");
  absl::FPrintF(
      stderr, "prompt    %s tokens%s in %.2f s, %.4g tokens/s\n", WithCommas(generation.prompt_tokens), kept,
      generation.prefill_seconds,
      Rate(static_cast<double>(generation.prompt_tokens - generation.cached_tokens), generation.prefill_seconds));
  const std::string rate =
      decoded < 1 ? ""
                  : absl::StrFormat(", %.4g tokens/s", Rate(static_cast<double>(decoded), generation.decode_seconds));
  absl::FPrintF(stderr, "output    %s tokens in %.2f s%s; ended by %s; seed %d\n", WithCommas(tokens),
                generation.decode_seconds, rate, FinishReasons(generation), generation.seed);
  absl::FPrintF(stderr, "cache     %s; a transformer of this shape would have kept %s\n",
                HumanBytes(generation.cache_bytes), HumanBytes(generation.transformer_cache_bytes));
}

nlohmann::json ToJson(const Generation& generation, bool logprobs, const TokenText& token_text) {
  nlohmann::json json = nlohmann::json::object();
  if (generation.samples.size() == 1) {
    json = SampleJson(generation.samples[0], logprobs, token_text);
  } else {
    for (const GeneratedSample& sample : generation.samples) {
      json["samples"].push_back(SampleJson(sample, logprobs, token_text));
    }
  }
  json["seed"] = generation.seed;
  json["prompt_tokens"] = generation.prompt_tokens;
  json["cached_tokens"] = generation.cached_tokens;
  json["prefill_seconds"] = generation.prefill_seconds;
  json["decode_seconds"] = generation.decode_seconds;
  json["cache_bytes"] = generation.cache_bytes;
  json["transformer_cache_bytes"] = generation.transformer_cache_bytes;
  return json;
}

void PrintJson(const nlohmann::json& json) { std::cout << JsonText(json, 2) << "\n"; }

}  // namespace goldfinch
