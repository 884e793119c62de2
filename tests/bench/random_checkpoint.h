// A GoldFinch or Finch checkpoint with random bf16 weights, for benches: the shape of a released model, no meaning.
#ifndef GOLDFINCH_TESTS_BENCH_RANDOM_CHECKPOINT_H_
#define GOLDFINCH_TESTS_BENCH_RANDOM_CHECKPOINT_H_

#include <cstdint>
#include <string>

#include "absl/status/status.h"

namespace goldfinch {

struct RandomCheckpointSpec {
  int64_t layers = 24;
  int64_t width = 2048;  // a multiple of 64
  int64_t vocab_size = 65536;
  int64_t ratio = 3;   // layers / GOLD layers
  bool finch = false;  // a plain Finch (RWKV-6): no GOLD layers, and none of Finch-C2
};

// Writes a .safetensors file, on all cores: the same bytes for the same spec, whatever the machine. Errors name the
// path.
absl::Status WriteRandomCheckpoint(const RandomCheckpointSpec& spec, const std::string& path);

}  // namespace goldfinch

#endif  // GOLDFINCH_TESTS_BENCH_RANDOM_CHECKPOINT_H_
