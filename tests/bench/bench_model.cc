// Writes a GoldFinch or Finch checkpoint with random bf16 weights, for benches.
#include <cstdint>
#include <cstdio>
#include <string>

#include "CLI/CLI.hpp"
#include "tests/bench/random_checkpoint.h"

int main(int argc, char** argv) {
  std::string out;
  goldfinch::RandomCheckpointSpec spec;
  CLI::App app("Writes a GoldFinch or Finch checkpoint with random weights.", "bench_model");
  app.add_option("--out", out, "the .safetensors to write")->required();
  app.add_option("--layers", spec.layers, "layers")->check(CLI::Range(2, 100))->capture_default_str();
  app.add_option("--width", spec.width, "model width, a multiple of 64")
      ->check(CLI::Range(64, 16384))
      ->capture_default_str();
  app.add_option("--vocab-size", spec.vocab_size, "tokens")->check(CLI::Range(1, 1 << 20))->capture_default_str();
  app.add_option("--ratio", spec.ratio, "one layer in so many is GOLD")->check(CLI::Range(2, 6))->capture_default_str();
  app.add_flag("--finch", spec.finch, "a plain Finch (RWKV-6): no GOLD layers");
  CLI11_PARSE(app, argc, argv);
  const absl::Status status = goldfinch::WriteRandomCheckpoint(spec, out);
  if (!status.ok()) std::fprintf(stderr, "bench_model: %s\n", std::string(status.message()).c_str());
  return status.ok() ? 0 : 1;
}
