// What the engine does with a whole model, beside what the machine could do: pre-fill against the rate of oneDNN's
// matrix product, decode against the bandwidth of reading memory, both measured in the same run.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <random>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/status.h"
#include "dnnl.h"
#include "nlohmann/json.hpp"
#include "tests/bench/ceilings.h"
#include "tests/bench/model_costs.h"
#include "worker/engine.h"
#include "worker/gold_tiers.h"

namespace goldfinch {
namespace {

constexpr int kDecodesAfterPrompt = 4;

struct Options {
  std::string model;
  std::vector<int64_t> prompts = {512, 4096, 16384};
  int64_t decode_tokens = 48;
  int threads = 0;
  std::string gold_tier = "auto";
  int64_t kept_bytes = int64_t{4} << 30;
  bool json = false;
};

// oneDNN's fp32 product of the shape that pre-fill has most of: [512, D] times [D, 3.5 D].
double OneDnnFlopsPerSecond(int64_t width) {
  const int64_t rows = 512, out = width * 7 / 2;
  std::vector<float> x(rows * width, 0.5f), w(out * width, 0.25f), y(rows * out);
  const double seconds = Fastest(
      8, [&] { dnnl_sgemm('N', 'T', rows, out, width, 1.f, x.data(), width, w.data(), width, 0.f, y.data(), out); });
  return 2.0 * static_cast<double>(rows * width * out) / seconds;
}

// A memory figure of this process ("VmHWM": the most so far), in bytes.
int64_t MemoryOf(const std::string& field) {
  std::ifstream status("/proc/self/status");
  std::string line;
  while (std::getline(status, line)) {
    if (line.starts_with(field + ":")) return std::stoll(line.substr(field.size() + 1)) * 1024;
  }
  return 0;
}

class Table {
 public:
  void Add(const std::string& quantity, const std::string& value, const std::string& of, double ratio,
           const std::string& aim) {
    absl::PrintF("%-26s %16s   %-30s %8s  %s\n", quantity, value, of, ratio > 0 ? absl::StrFormat("%.3f", ratio) : "",
                 aim);
    std::fflush(stdout);
  }
};

absl::Status Run(const Options& options) {
  nlohmann::json json;
  Table table;
  absl::PrintF("%-26s %16s   %-30s %8s  %s\n", "quantity", "value", "of", "ratio", "aim");

  EngineOptions engine_options;
  engine_options.model_path = options.model;
  engine_options.stage.gold_tier = *ParseGoldTier(options.gold_tier);
  engine_options.kept_bytes = options.kept_bytes;
  const double load_start = Now();
  GF_ASSIGN_OR_RETURN(const std::unique_ptr<Engine> engine,
                      Engine::Load(engine_options, MakeCpuBackend(options.threads)));
  GF_RETURN_IF_ERROR(engine->VerifyWeights(/*checksums=*/true, nullptr).status());
  const double load_seconds = Now() - load_start;
  GF_ASSIGN_OR_RETURN(const std::unique_ptr<Checkpoint> checkpoint, Checkpoint::Open(options.model));
  const ModelCosts costs = CostsOf(*checkpoint, engine->shape());
  const auto file_bytes = static_cast<double>(checkpoint->file_bytes());
  table.Add("load and check weights", absl::StrFormat("%.2f s", load_seconds),
            absl::StrFormat("%.2f GB/s", file_bytes / load_seconds / 1e9), 0, "");
  json["load_seconds"] = load_seconds;

  std::mt19937 random(1);
  const int64_t longest = *std::max_element(options.prompts.begin(), options.prompts.end());
  std::vector<int32_t> ids(longest);
  for (int32_t& id : ids) id = static_cast<int32_t>(random() % engine->shape().vocab_size);

  double first_rate = 0;
  for (int64_t tokens : options.prompts) {
    const double product_rate = OneDnnFlopsPerSecond(engine->shape().width);
    GF_ASSIGN_OR_RETURN(const int slot, engine->stage().Open());
    const double start = Now();
    GF_RETURN_IF_ERROR(engine->Prefill(slot, absl::MakeSpan(ids).first(tokens), [](int64_t) {}).status());
    const double rate = static_cast<double>(tokens) / (Now() - start);
    const double decode_start = Now();
    for (int i = 0; i < kDecodesAfterPrompt; ++i) GF_RETURN_IF_ERROR(engine->Decode(slot, ids[i]).status());
    const double decode_seconds = (Now() - decode_start) / kDecodesAfterPrompt;
    const int64_t kept_bytes = engine->stage().gold_tiers() ? engine->stage().gold_tiers()->kept_bytes() : 0;
    engine->stage().Close(slot);
    if (first_rate == 0) first_rate = rate;
    table.Add(absl::StrCat("prefill ", tokens), absl::StrFormat("%.1f tokens/s", rate),
              absl::StrFormat("oneDNN %.1f GFLOP/s", product_rate / 1e9), rate * costs.prefill_flops / product_rate,
              ">= 0.70");
    table.Add("", "", "the first prompt's rate", rate / first_rate, "0.95 to 1.05");
    table.Add(absl::StrCat("decode after ", tokens), absl::StrFormat("%.3f s/token", decode_seconds),
              absl::StrFormat("%.1f MB kept by GOLD layers", static_cast<double>(kept_bytes) / 1e6), 0, "");
    json["prefill"].push_back({{"tokens", tokens},
                               {"decode_seconds", decode_seconds},
                               {"gold_kept_bytes", kept_bytes},
                               {"tokens_per_second", rate},
                               {"onednn_flops_per_second", product_rate},
                               {"ratio", rate * costs.prefill_flops / product_rate}});
  }

  GF_ASSIGN_OR_RETURN(const int slot, engine->stage().Open());
  GF_RETURN_IF_ERROR(engine->Prefill(slot, absl::MakeSpan(ids).first(64), [](int64_t) {}).status());
  // Before the bandwidth test takes its own buffer. oneDNN's operands, about 80 MB, are in it.
  const int64_t peak_bytes = MemoryOf("VmHWM");
  const double bandwidth = ReadBytesPerSecond(engine->backend().threads());
  const double start = Now();
  for (int64_t i = 0; i < options.decode_tokens; ++i) GF_RETURN_IF_ERROR(engine->Decode(slot, ids[i]).status());
  const double decode_rate = static_cast<double>(options.decode_tokens) / (Now() - start);
  table.Add("decode, short context", absl::StrFormat("%.2f tokens/s", decode_rate),
            absl::StrFormat("reads at %.1f GB/s", bandwidth / 1e9), decode_rate * costs.decode_bytes / bandwidth,
            ">= 0.80");
  json["decode"] = {{"tokens_per_second", decode_rate},
                    {"read_bytes_per_second", bandwidth},
                    {"ratio", decode_rate * costs.decode_bytes / bandwidth}};

  table.Add("peak memory", absl::StrFormat("%.2f GB", static_cast<double>(peak_bytes) / 1e9),
            absl::StrFormat("file of %.2f GB", file_bytes / 1e9), static_cast<double>(peak_bytes) / file_bytes,
            "<= 1.20");
  table.Add("cache", absl::StrCat(engine->shape().CacheBytesPerToken(DType::kBf16), " bytes/token"),
            absl::StrCat("transformer: ", engine->shape().TransformerBytesPerToken()), 0, "");
  json["peak_bytes"] = peak_bytes;
  json["file_bytes"] = checkpoint->file_bytes();
  json["cache_bytes_per_token"] = engine->shape().CacheBytesPerToken(DType::kBf16);
  if (options.json) std::cout << json.dump(2) << "\n";
  return absl::OkStatus();
}

}  // namespace
}  // namespace goldfinch

int main(int argc, char** argv) {
  goldfinch::Options options;
  CLI::App app("Times a model: load, pre-fill, decode, memory.", "engine_bench");
  app.add_option("--model", options.model, "checkpoint")->required();
  app.add_option("--prompts", options.prompts, "prompt lengths, tokens")->capture_default_str();
  app.add_option("--decode-tokens", options.decode_tokens, "tokens to decode")
      ->check(CLI::Range(1, 100000))
      ->capture_default_str();
  app.add_option("--threads", options.threads, "threads; 0: one per core")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
  app.add_option("--gold-tier", options.gold_tier, "the most that GOLD layers keep: compressed, shared, full or auto")
      ->check(CLI::IsMember({"auto", "compressed", "shared", "full"}))
      ->capture_default_str();
  app.add_option("--kept-bytes", options.kept_bytes, "memory for it")
      ->check(CLI::Range(int64_t{0}, int64_t{1} << 50))
      ->capture_default_str();
  app.add_flag("--json", options.json, "JSON after the table");
  CLI11_PARSE(app, argc, argv);
  const absl::Status status = goldfinch::Run(options);
  if (!status.ok()) std::fprintf(stderr, "engine_bench: %s\n", std::string(status.message()).c_str());
  return status.ok() ? 0 : 1;
}
