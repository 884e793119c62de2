// The time that the planner takes for a split of a hundred layers over equal and over mixed workers.
#include <cstdint>
#include <random>
#include <vector>

#include "base/check.h"
#include "base/stage_memory.h"
#include "benchmark/benchmark.h"
#include "coordinator/planner/model_description.h"
#include "coordinator/planner/planner.h"
#include "coordinator/planner/planner_test_util.h"
#include "protos/cluster.pb.h"

namespace goldfinch {
namespace {

constexpr int kLayers = 99;
const WorkerResources kGpu{126'000'000'000, 7e14, 4e12};

void Plan(benchmark::State& state, bool mixed) {
  const int stages = static_cast<int>(state.range(0));
  const cluster::v1::Described model = Released(kLayers);
  const ModelMemory memory = ReadModelMemory(model);
  PartitionOptions options = ReleasedOptions();
  options.max_sequence_tokens = 1 << 17;
  options.links.bytes_per_second = AssumedLinkSpeed("nccl");
  std::vector<WorkerResources> workers(stages, kGpu);
  std::mt19937 random(3);
  const auto about = [&](double value) { return value * (0.5 + static_cast<double>(random() % 1001) / 1000); };
  if (mixed) {
    for (WorkerResources& worker : workers) {
      worker = {static_cast<int64_t>(about(126e9)), about(7e14), about(4e12)};
    }
    for (int i = 0; i < stages * stages; ++i) options.links.table.push_back(about(2e9));
  }
  for (WorkerResources& worker : workers) worker.model = &memory;
  int64_t steps = 0;
  for (auto _ : state) {
    const auto partition = PartitionLayers(model, workers, options);
    GF_CHECK(partition.ok()) << partition.status();
    steps = partition->search_steps;
  }
  state.counters["steps"] = static_cast<double>(steps);
}

void BM_EqualWorkers(benchmark::State& state) { Plan(state, /*mixed=*/false); }
void BM_MixedWorkers(benchmark::State& state) { Plan(state, /*mixed=*/true); }
BENCHMARK(BM_EqualWorkers)->Arg(2)->Arg(8)->Arg(33)->Arg(64)->Unit(benchmark::kMillisecond);
BENCHMARK(BM_MixedWorkers)->Arg(2)->Arg(8)->Arg(16)->Arg(33)->Arg(48)->Arg(64)->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace goldfinch
