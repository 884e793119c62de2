// Whole models in plain double, written from the papers alone (arXiv 2404.05892, arXiv 2407.12077): the full sequence
// at once, no states, no caches, and no code shared with the engine that it judges.
#ifndef GOLDFINCH_TESTS_PARITY_REFERENCE_MODEL_H_
#define GOLDFINCH_TESTS_PARITY_REFERENCE_MODEL_H_

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace goldfinch {

struct ReferenceTensor {
  std::vector<int64_t> shape;
  std::vector<double> values;
};

// By the authors' names.
using ReferenceWeights = std::map<std::string, ReferenceTensor>;

struct ReferenceConfig {
  int64_t head_size = 64;
  double rope_base = 0;  // of all attention layers; 0: none
  bool use_v2 = true;
  bool use_one_minus_w = true;
};

struct ReferenceOutput {
  std::vector<double> logits;      // [tokens, vocab]
  std::vector<double> compressed;  // [tokens, D/16]; empty without GOLD layers
};

ReferenceOutput RunReference(const ReferenceWeights& weights, const ReferenceConfig& config,
                             const std::vector<int32_t>& tokens);

}  // namespace goldfinch

#endif  // GOLDFINCH_TESTS_PARITY_REFERENCE_MODEL_H_
