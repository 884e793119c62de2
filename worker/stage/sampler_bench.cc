// Time to draw one token from 65,536 logits, on one thread. A line's time is that of one token.
#include <algorithm>
#include <cstdint>
#include <memory>
#include <random>
#include <utility>
#include <vector>

#include "benchmark/benchmark.h"
#include "worker/stage/sampler.h"

namespace goldfinch {
namespace {

constexpr int64_t kVocab = 65536;
constexpr int64_t kSampleable = 65530;

std::shared_ptr<const SamplerVocabulary> Vocabulary() {
  std::vector<bool> sampleable(kVocab, true);
  std::fill(sampleable.begin() + kSampleable, sampleable.end(), false);
  return std::make_shared<SamplerVocabulary>(std::move(sampleable), std::vector<bool>(kVocab));
}

std::vector<float> NormalLogits(float deviation) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal(0, deviation);
  std::vector<float> logits(kVocab);
  for (float& logit : logits) logit = normal(random);
  return logits;
}

void Run(benchmark::State& state, const SamplingOptions& options, const std::vector<float>& logits) {
  Sampler sampler(options, Vocabulary());
  for (int32_t id = 0; id < 1000; ++id) sampler.Observe(id * 7);  // an answer of a thousand tokens
  SamplerScratch scratch;
  int64_t position = 0;
  for (auto _ : state) {
    const auto token = sampler.Sample(logits, position++, scratch);
    if (!token.ok()) state.SkipWithError(token.status().ToString().c_str());
    benchmark::DoNotOptimize(token->id);
  }
  state.counters["kept"] = static_cast<double>(sampler.Distribution(logits, 0, scratch)->ids.size());
}

// Deviation 3: half of the probability is with some hundred tokens, as where a model is unsure.
void Default(benchmark::State& state) { Run(state, {}, NormalLogits(3)); }
void Greedy(benchmark::State& state) { Run(state, {.temperature = 0}, NormalLogits(3)); }
void Logprobs20(benchmark::State& state) { Run(state, {.logprobs = 20}, NormalLogits(3)); }
void Temperature(benchmark::State& state) { Run(state, {.temperature = 0.7}, NormalLogits(3)); }
void TopK50(benchmark::State& state) { Run(state, {.top_p = 1, .top_k = 50}, NormalLogits(3)); }
void KeepAll(benchmark::State& state) { Run(state, {.temperature = 0.7, .top_p = 1}, NormalLogits(3)); }
// The worst: every token stays in the running until the end.
void NearlyFlat(benchmark::State& state) { Run(state, {.temperature = 0.7}, NormalLogits(0.01F)); }
void Flat(benchmark::State& state) { Run(state, {.temperature = 0.7}, std::vector<float>(kVocab, 1)); }

BENCHMARK(Default)->Unit(benchmark::kMicrosecond);
BENCHMARK(Greedy)->Unit(benchmark::kMicrosecond);
BENCHMARK(Logprobs20)->Unit(benchmark::kMicrosecond);
BENCHMARK(Temperature)->Unit(benchmark::kMicrosecond);
BENCHMARK(TopK50)->Unit(benchmark::kMicrosecond);
BENCHMARK(KeepAll)->Unit(benchmark::kMicrosecond);
BENCHMARK(NearlyFlat)->Unit(benchmark::kMicrosecond);
BENCHMARK(Flat)->Unit(benchmark::kMicrosecond);

}  // namespace
}  // namespace goldfinch

BENCHMARK_MAIN();
