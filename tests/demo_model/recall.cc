// Measures recall: reads documents with questions (recall_task.py prints them, a JSON object a line) from standard
// input, runs each document once, and asks each question on a fork of that sequence, greedily.
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <iostream>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/strings/str_format.h"
#include "base/status.h"
#include "kernels/open_backend.h"
#include "nlohmann/json.hpp"
#include "tokenizer/tokenizer.h"
#include "worker/stage/engine.h"

namespace goldfinch {
namespace {

struct Options {
  std::string model = "tests/demo_model/model.pth";
  std::string cache_dtype = "bf16";
  BackendOptions backend;
  bool show_wrong = false;
};

double Now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

std::vector<int32_t> Encode(const Tokenizer& tokenizer, const std::string& text) {
  std::vector<int32_t> ids;
  tokenizer.Encode(text, &ids);
  return ids;
}

// What the model answers after the sequence in `slot` and the question: as many tokens as the answer has.
absl::StatusOr<std::string> Ask(Engine& engine, const Tokenizer& tokenizer, int slot, const std::string& question,
                                size_t answer_bytes) {
  GF_ASSIGN_OR_RETURN(const int fork, engine.stage().Fork(slot));
  GF_ASSIGN_OR_RETURN(absl::Span<const float> logits,
                      engine.Prefill(fork, Encode(tokenizer, question), [](int64_t) {}));
  std::vector<int32_t> said;
  while (true) {
    said.push_back(static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin()));
    if (said.size() == answer_bytes) break;
    GF_ASSIGN_OR_RETURN(logits, engine.Decode(fork, said.back()));
  }
  engine.stage().Close(fork);
  std::string text;
  GF_RETURN_IF_ERROR(tokenizer.Decode(said, &text));
  return text;
}

absl::Status Run(const Options& options) {
  EngineOptions engine_options;
  engine_options.model_path = options.model;
  engine_options.stage.max_sequences = 2;
  engine_options.stage.cache_dtype = *ParseCacheDType(options.cache_dtype);
  GF_ASSIGN_OR_RETURN(std::unique_ptr<Backend> backend, OpenBackend(options.backend));
  GF_ASSIGN_OR_RETURN(const std::unique_ptr<Engine> engine, Engine::Load(engine_options, std::move(backend)));
  const std::unique_ptr<Tokenizer> tokenizer = Tokenizer::Bytes();

  int64_t asked = 0, right = 0, tokens = 0;
  double prefill_seconds = 0, ask_seconds = 0;
  std::string line;
  while (std::getline(std::cin, line)) {
    const nlohmann::json task = nlohmann::json::parse(line);
    const std::vector<int32_t> document = Encode(*tokenizer, task["document"].get<std::string>());
    GF_ASSIGN_OR_RETURN(const int slot, engine->stage().Open());
    const double start = Now();
    GF_RETURN_IF_ERROR(engine->Prefill(slot, document, [](int64_t) {}).status());
    const double read = Now();
    for (const nlohmann::json& item : task["questions"]) {
      const std::string question = item["question"], answer = item["answer"];
      GF_ASSIGN_OR_RETURN(const std::string said, Ask(*engine, *tokenizer, slot, question, answer.size()));
      ++asked;
      right += said == answer ? 1 : 0;
      if (said != answer && options.show_wrong) {
        absl::FPrintF(stderr, "%s%s, right is %s (at byte %d)\n", question, said, answer,
                      item["offset"].get<int64_t>());
      }
    }
    tokens += static_cast<int64_t>(document.size());
    prefill_seconds += read - start;
    ask_seconds += Now() - read;
    engine->stage().Close(slot);
  }
  if (asked == 0) return absl::InvalidArgumentError("no questions on standard input");
  absl::PrintF("%d of %d right; pre-fill %.0f tokens/s; %.3f s a question\n", right, asked,
               static_cast<double>(tokens) / prefill_seconds, ask_seconds / static_cast<double>(asked));
  return absl::OkStatus();
}

}  // namespace
}  // namespace goldfinch

int main(int argc, char** argv) {
  goldfinch::Options options;
  CLI::App app("Measures recall on documents from standard input (recall_task.py).", "recall");
  app.add_option("--model", options.model, "checkpoint of the byte vocabulary")->capture_default_str();
  app.add_option("--cache-dtype", options.cache_dtype, "type of the cache's numbers")
      ->check(CLI::IsMember({"f32", "f16", "bf16", "int8"}))
      ->capture_default_str();
  app.add_option("--device", options.backend.device, "auto, cpu, cuda or cuda:N")->capture_default_str();
  app.add_option("--dtype", options.backend.dtype, "of activations: auto, f32, f16 or bf16")->capture_default_str();
  app.add_option("--threads", options.backend.threads, "threads; 0: one per core")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
  app.add_flag("--show-wrong", options.show_wrong, "print wrong answers to standard error");
  CLI11_PARSE(app, argc, argv);
  const absl::Status status = goldfinch::Run(options);
  if (!status.ok()) std::fprintf(stderr, "recall: %s\n", std::string(status.message()).c_str());
  return status.ok() ? 0 : 1;
}
