// The cases of tests/golden, and how far results are from them.
#ifndef GOLDFINCH_TESTS_PARITY_GOLDEN_CASE_H_
#define GOLDFINCH_TESTS_PARITY_GOLDEN_CASE_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/types/span.h"
#include "worker/checkpoint/checkpoint.h"
#include "worker/model/model_config.h"

namespace goldfinch {

struct GoldenCase {
  std::string name;
  std::shared_ptr<const Checkpoint> checkpoint;
  ModelConfig config;
  std::vector<int32_t> tokens;
  std::vector<float> logits;      // [tokens, vocab]
  std::vector<float> compressed;  // [tokens, D/16]; empty without GOLD layers
};

// The folders of tests/golden.
std::vector<std::string> GoldenNames();
// Those of them with GOLD layers.
std::vector<std::string> GoldenNamesWithGold();
// Aborts if the files cannot be read. They are in tests/golden: of $GOLDFINCH_TEST_DATA if that is set, else of the
// first of these that has it: the working folder, the test's run files, the folders that the program lies in.
GoldenCase ReadGoldenCase(const std::string& name);

// ||ours - expected|| / ||expected||; infinite if the sizes differ or something is not a number.
double RelativeError(absl::Span<const float> ours, absl::Span<const float> expected);
double RelativeError(absl::Span<const float> ours, absl::Span<const double> expected);

}  // namespace goldfinch

#endif  // GOLDFINCH_TESTS_PARITY_GOLDEN_CASE_H_
