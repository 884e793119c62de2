// How fast a stage saves a sequence to the host's memory and opens one from there, beside memcpy of as many bytes.
#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

#include "benchmark/benchmark.h"
#include "kernels/cpu/cpu_backend.h"
#include "worker/stage/stage_contexts_test_util.h"

namespace goldfinch {
namespace {

constexpr int64_t kTokensMax = 16384;

struct Setup {
  std::unique_ptr<Backend> backend = MakeCpuBackend(/*threads=*/1);
  TestPipeline pipeline{*backend,
                        {.layers = {"finch", "finch", "finch", "finch", "finch", "finch", "finch", "finch", "gold"},
                         .width = 1024,
                         .vocab_size = 4096,
                         .hidden = 64},
                        {0},
                        {.max_sequences = 2,
                         .max_sequence_tokens = kTokensMax,
                         .cache_tokens = 2 * kTokensMax,
                         .max_step_tokens = 64,
                         .max_logit_rows = 1,
                         .cache_dtype = DType::kBf16}};
};

Setup& Shared() {
  static Setup setup;
  return setup;
}

// A segment of zeros, in memory that has been written.
SavedSegment ZeroSegment(TestPipeline& pipeline, int64_t tokens, int64_t* bytes) {
  SavedSegment segment{.begin = 0, .end = tokens, .gold_position = tokens};
  for (const StatePart& part : pipeline.stage(0).saved_parts()) {
    if (part.kind == StatePartKind::kLogits) continue;
    const auto made = pipeline.MakePart(part, tokens, int64_t{1} << 40);
    made->ForEachRange(0, made->bytes(), [](char* data, int64_t count) { std::memset(data, 0, count); });
    segment.parts.push_back(made);
    *bytes += made->bytes();
  }
  return segment;
}

void BM_Restore(benchmark::State& state) {
  TestPipeline& pipeline = Shared().pipeline;
  int64_t bytes = 0;
  const std::vector<SavedSegment> chain = {ZeroSegment(pipeline, state.range(0), &bytes)};
  for (auto _ : state) pipeline.Close(pipeline.Restore(chain, 1));
  state.SetBytesProcessed(bytes * state.iterations());
}

void BM_Save(benchmark::State& state) {
  TestPipeline& pipeline = Shared().pipeline;
  int64_t bytes = 0;
  const std::vector<SavedSegment> chain = {ZeroSegment(pipeline, state.range(0), &bytes)};
  const int slot = pipeline.Restore(chain, 1);
  for (auto _ : state) pipeline.stage(0).Save(slot, {}, chain[0])->Wait();
  pipeline.Close(slot);
  state.SetBytesProcessed(bytes * state.iterations());
}

void BM_Memcpy(benchmark::State& state) {
  int64_t bytes = 0;
  ZeroSegment(Shared().pipeline, state.range(0), &bytes);
  const std::vector<char> from(bytes, 1);
  std::vector<char> to(bytes);
  for (auto _ : state) {
    std::memcpy(to.data(), from.data(), bytes);
    benchmark::DoNotOptimize(to.data());
    benchmark::ClobberMemory();
  }
  state.SetBytesProcessed(bytes * state.iterations());
}

BENCHMARK(BM_Save)->Arg(0)->Arg(kTokensMax)->Unit(benchmark::kMicrosecond);
BENCHMARK(BM_Restore)->Arg(0)->Arg(kTokensMax)->Unit(benchmark::kMicrosecond);
BENCHMARK(BM_Memcpy)->Arg(0)->Arg(kTokensMax)->Unit(benchmark::kMicrosecond);

}  // namespace
}  // namespace goldfinch

BENCHMARK_MAIN();
