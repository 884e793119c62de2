// goldfinch generate --server: continues a prompt on a server.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <iostream>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/safe_text.h"
#include "base/status.h"
#include "clients/cli/local/generation.h"
#include "clients/cli/remote/context_name.h"
#include "clients/cli/remote/remote.h"
#include "clients/cli/remote/remote_commands.h"
#include "clients/cli/terminal/printable.h"
#include "clients/cli/terminal/terminal.h"
#include "grpcpp/client_context.h"
#include "nlohmann/json.hpp"
#include "protos/generate.grpc.pb.h"

namespace goldfinch {
namespace {

constexpr int64_t kPromptBytesMax = int64_t{1} << 30;  // half of the largest message that protobuf allows

absl::StatusOr<v1::GenerateRequest> RequestOf(const GenerateOptions& options) {
  v1::GenerateRequest request;
  GF_ASSIGN_OR_RETURN(*request.mutable_text(), ReadPrompt(options, kPromptBytesMax));
  if (!options.context.empty()) {
    GF_ASSIGN_OR_RETURN(const ContextReference context, ParseContextName("--context", options.context));
    request.set_context(context.name);
    if (context.tokens) request.set_context_tokens(*context.tokens);
  }
  if (!options.keep.name.empty()) *request.mutable_keep_as() = ToMessage(options.keep);
  for (const uint64_t position : options.breakpoints) request.add_breakpoints(position);
  if (options.has_max_tokens) request.set_max_tokens(options.max_tokens);
  request.set_n(options.samples);
  request.set_seed(options.has_seed ? options.seed : std::random_device()());
  for (std::string& stop : StopTexts(options)) request.add_stop(std::move(stop));
  request.set_ignore_eos(options.ignore_eos);
  if (options.logprobs >= 0) request.set_logprobs(options.logprobs);
  request.set_priority(options.priority);
  request.set_progress(true);
  v1::SamplingOptions& sampling = *request.mutable_sampling();
  sampling.set_temperature(options.temperature);
  sampling.set_top_p(options.top_p);
  if (options.top_k < 0) return UsageError(absl::StrCat("--top-k is ", options.top_k, ", it must be at least 0"));
  sampling.set_top_k(options.top_k);
  sampling.set_min_p(options.min_p);
  sampling.set_presence_penalty(options.presence_penalty);
  sampling.set_frequency_penalty(options.frequency_penalty);
  sampling.set_penalty_decay(options.penalty_decay);
  GF_ASSIGN_OR_RETURN(const std::vector<LogitBias> biases, ParseLogitBias(options));
  for (const LogitBias& entry : biases) {
    if (entry.id < 0) return UsageError(absl::StrCat("--logit-bias names token ", entry.id, ", it must be at least 0"));
    (*sampling.mutable_logit_bias())[entry.id] += entry.bias;
  }
  for (const int32_t id : options.ban) {
    if (id < 0) return UsageError(absl::StrCat("--ban is ", id, ", it must be at least 0"));
    sampling.add_banned_tokens(id);
  }
  return request;
}

// Prints the first sample's text as it arrives, and the text of each other sample after those before it.
class SamplePrinter {
 public:
  SamplePrinter(size_t samples, bool silent) : pending_(samples), ended_(samples), silent_(silent) {}

  absl::Status Begin() { return Title(); }

  absl::Status Text(size_t sample, const std::string& text) {
    if (silent_ || text.empty()) return absl::OkStatus();
    if (sample != shown_) {
      pending_[sample] += text;
      return absl::OkStatus();
    }
    output_.Print(text);
    return FlushOutput();
  }

  absl::Status End(size_t sample) {
    ended_[sample] = true;
    while (!silent_ && shown_ < ended_.size() && ended_[shown_]) {
      output_.Finish();
      std::cout << "\n";
      if (++shown_ == ended_.size()) break;
      GF_RETURN_IF_ERROR(Title());
      output_.Print(std::exchange(pending_[shown_], ""));
    }
    return FlushOutput();
  }

 private:
  absl::Status Title() {
    if (silent_ || ended_.size() == 1) return absl::OkStatus();
    std::cout << "--- sample " << shown_ + 1 << " of " << ended_.size() << " ---\n";
    return FlushOutput();
  }

  std::vector<std::string> pending_;
  std::vector<bool> ended_;
  const bool silent_;
  TextOutput output_;
  size_t shown_ = 0;
};

std::string NameOf(v1::FinishReason reason) {
  switch (reason) {
    case v1::END_OF_TEXT:
      return "end of text";
    case v1::STOP:
      return "stop";
    default:
      return "length";
  }
}

// One Generate call.
class RemoteGeneration {
 public:
  RemoteGeneration(const GenerateOptions& options, const Remote& remote)
      : remote_(remote), printer_(options.samples, options.json) {
    generation_.samples.resize(options.samples);
    remote.Prepare(&context_);
  }

  absl::Status Run(const v1::GenerateRequest& request) {
    const std::unique_ptr<v1::Goldfinch::Stub> stub = v1::Goldfinch::NewStub(remote_.channel());
    const std::unique_ptr<grpc::ClientReader<v1::GenerateResponse>> reader = stub->Generate(&context_, request);
    v1::GenerateResponse response;
    absl::Status status = absl::OkStatus();
    while (status.ok() && reader->Read(&response)) status = Take(response);
    bar_.Done();
    if (!status.ok()) context_.TryCancel();
    const grpc::Status end = reader->Finish();
    GF_RETURN_IF_ERROR(status);
    if (!end.ok()) return remote_.ToRequestStatus(end);
    GF_RETURN_IF_ERROR(Begin());
    for (size_t i = 0; i < generation_.samples.size(); ++i) GF_RETURN_IF_ERROR(printer_.End(i));
    return absl::OkStatus();
  }

  const Generation& generation() const { return generation_; }
  const v1::Usage& usage() const { return usage_; }
  const std::string& request_id() const { return request_id_; }

 private:
  absl::Status Take(const v1::GenerateResponse& response) {
    if (!response.request_id().empty()) {
      request_id_ = response.request_id();
      generation_.seed = response.seed();
    }
    if (response.has_progress()) {
      const v1::Progress& progress = response.progress();
      bar_.Update(static_cast<int64_t>(progress.prompt_tokens_done()), static_cast<int64_t>(progress.prompt_tokens()));
      return absl::OkStatus();
    }
    if (response.has_usage()) TakeUsage(response.usage());
    if (response.index() >= generation_.samples.size()) {
      return absl::InternalError(absl::StrCat("the server answers for sample ", response.index(), " of ",
                                              generation_.samples.size(), ", counted from 0"));
    }
    return TakeSample(response);
  }

  absl::Status TakeSample(const v1::GenerateResponse& response) {
    GeneratedSample& sample = generation_.samples[response.index()];
    for (const v1::Token& token : response.tokens()) {
      GeneratedToken& said = sample.tokens.emplace_back();
      said.id = static_cast<int32_t>(token.id());
      said.logprob = token.logprob();
      for (const v1::TokenLogprob& top : token.top()) {
        said.top.push_back({static_cast<int32_t>(top.id()), top.logprob()});
      }
    }
    if (!response.tokens().empty() || !response.text().empty()) GF_RETURN_IF_ERROR(Begin());
    sample.text += response.text();
    GF_RETURN_IF_ERROR(printer_.Text(response.index(), response.text()));
    if (response.finish_reason() == v1::FINISH_REASON_UNSPECIFIED) return absl::OkStatus();
    sample.finish_reason = NameOf(response.finish_reason());
    GF_RETURN_IF_ERROR(Begin());
    return printer_.End(response.index());
  }

  // Called once the prompt has been read.
  absl::Status Begin() {
    if (std::exchange(begun_, true)) return absl::OkStatus();
    bar_.Done();
    return printer_.Begin();
  }

  void TakeUsage(const v1::Usage& usage) {
    usage_ = usage;
    generation_.prompt_tokens = static_cast<int64_t>(usage.prompt_tokens());
    generation_.cached_tokens = static_cast<int64_t>(usage.cached_tokens());
    generation_.prefill_seconds = usage.prefill_seconds();
    generation_.decode_seconds = usage.decode_seconds();
    generation_.cache_bytes = static_cast<int64_t>(usage.cache_bytes());
    generation_.transformer_cache_bytes = static_cast<int64_t>(usage.transformer_cache_bytes());
  }

  const Remote& remote_;
  grpc::ClientContext context_;
  ProgressBar bar_{"reading the prompt", "tokens"};
  SamplePrinter printer_;
  bool begun_ = false;
  Generation generation_;
  v1::Usage usage_;
  std::string request_id_;
};

// The texts of all tokens in the answer, which only the server knows.
absl::StatusOr<std::map<int32_t, std::string>> TokenTexts(const Remote& remote, const Generation& generation) {
  std::map<int32_t, std::string> texts;
  for (const GeneratedSample& sample : generation.samples) {
    for (const GeneratedToken& token : sample.tokens) {
      texts[token.id];
      for (const GeneratedToken::Likely& top : token.top) texts[top.id];
    }
  }
  for (auto& [id, text] : texts) {
    GF_ASSIGN_OR_RETURN(text, remote.TokenBytes(id));
  }
  return texts;
}

absl::Status PrintRemoteJson(const Remote& remote, const RemoteGeneration& call, bool logprobs) {
  GF_ASSIGN_OR_RETURN(const auto texts, TokenTexts(remote, call.generation()));
  nlohmann::json json = ToJson(call.generation(), logprobs, [&](int32_t id) { return texts.at(id); });
  json["request_id"] = call.request_id();
  json["queue_seconds"] = call.usage().queue_seconds();
  json["recoveries"] = call.usage().recoveries();
  PrintJson(json);
  return absl::OkStatus();
}

}  // namespace

absl::Status RunRemoteGenerate(const GenerateOptions& options) {
  GF_ASSIGN_OR_RETURN(const std::unique_ptr<Remote> remote, Remote::Open(options.remote));
  GF_ASSIGN_OR_RETURN(const v1::GenerateRequest request, RequestOf(options));
  RemoteGeneration call(options, *remote);
  GF_RETURN_IF_ERROR(call.Run(request));
  if (options.json) return PrintRemoteJson(*remote, call, options.logprobs >= 0);
  PrintSummary(call.generation());
  if (!options.keep.name.empty()) absl::FPrintF(stderr, "kept      as %s\n", SafeText(options.keep.name));
  return absl::OkStatus();
}

}  // namespace goldfinch
