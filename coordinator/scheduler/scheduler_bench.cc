// The time that the scheduler takes for one Step of many sequences: planning it, encoding it for a stage, decoding and
// applying its results.
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <utility>

#include "benchmark/benchmark.h"
#include "coordinator/scheduler/scheduler.h"
#include "coordinator/scheduler/step.h"
#include "coordinator/scheduler/step_encoding.h"
#include "protos/cluster.pb.h"

namespace goldfinch {
namespace {

struct NullSink : RequestSink {
  void OnProgress(int64_t) override {}
  Verdict OnToken(int, const OutputToken&) override { return Verdict::kContinue; }
  void OnSampleDone(int, Finish) override {}
  Verdict OnScores(int, int64_t, absl::Span<const OutputToken>, std::string) override { return Verdict::kContinue; }
  void OnDone(const absl::Status&, const RequestUsage&) override {}
};

// `decoding` sequences that decode, and as many that read their prompts.
class Cluster {
 public:
  explicit Cluster(int decoding) : scheduler_({1 << 20}) {
    GroupCapacity capacity;
    capacity.max_sequences = 2 * decoding;
    capacity.cache_tokens = int64_t{1} << 40;
    capacity.max_sequence_tokens = int64_t{1} << 30;
    capacity.max_step_tokens = decoding + 512;
    capacity.max_logit_rows = 2 * decoding;
    scheduler_.GenerationReady(0, capacity, 0);
    for (int i = 0; i < decoding; ++i) Submit(1, int64_t{1} << 20);
    for (int i = 0; i < 4; ++i) Step();
    for (int i = 0; i < decoding; ++i) Submit(1 << 16, 1);
    Step();
  }

  bool Plan() { return scheduler_.NextStep(0, now_, &plan_); }
  void Encode() { EncodeStep(plan_, {1, /*id_bytes=*/2, /*reads_ids=*/true, /*is_last=*/true}, &encoded_); }
  void Answer() {
    done_.Clear();
    done_.set_id(plan_.id);
    for (const StepPlan::Chunk& chunk : plan_.chunks) {
      if (chunk.logit_rows == 0) continue;
      cluster::v1::ChunkResult& result = *done_.add_results();
      result.set_sequence(chunk.sequence);
      result.set_token(7);
    }
  }
  void Apply() {
    now_ += 1;
    DecodeStepDone(&done_, &result_);
    if (!scheduler_.Apply(0, &result_, now_).ok()) std::abort();
    scheduler_.TakeEvents();
  }
  size_t chunks() const { return plan_.chunks.size(); }

 private:
  void Submit(int64_t prompt, int64_t tokens) {
    Request request;
    request.prompt.assign(prompt, 5);
    request.generate.emplace();
    request.generate->max_tokens = tokens;
    scheduler_.Submit(++last_, std::move(request), std::make_shared<NullSink>(), now_);
  }
  void Step() {
    while (Plan()) {
      Answer();
      Apply();
      break;
    }
  }

  Scheduler scheduler_;
  StepPlan plan_;
  cluster::v1::Step encoded_;
  cluster::v1::StepDone done_;
  StepResult result_;
  double now_ = 0;
  uint64_t last_ = 0;
};

// The whole Step, and in the counters its parts in microseconds.
void BM_Step(benchmark::State& state) {
  Cluster cluster(static_cast<int>(state.range(0)));
  using Clock = std::chrono::steady_clock;
  std::chrono::duration<double, std::micro> plan{}, encode{}, apply{};
  for (auto _ : state) {
    const auto start = Clock::now();
    if (!cluster.Plan()) std::abort();
    const auto planned = Clock::now();
    cluster.Encode();
    const auto encoded = Clock::now();
    cluster.Answer();  // the workers' part
    const auto answered = Clock::now();
    cluster.Apply();
    const auto applied = Clock::now();
    plan += planned - start;
    encode += encoded - planned;
    apply += applied - answered;
    state.SetIterationTime(std::chrono::duration<double>((encoded - start) + (applied - answered)).count());
  }
  const auto per_step = [&](auto total) { return total.count() / static_cast<double>(state.iterations()); };
  state.counters["plan_us"] = per_step(plan);
  state.counters["encode_us"] = per_step(encode);
  state.counters["apply_us"] = per_step(apply);
  state.counters["chunks"] = static_cast<double>(cluster.chunks());
}
BENCHMARK(BM_Step)->Arg(64)->Arg(1000)->Iterations(2000)->UseManualTime()->Unit(benchmark::kMicrosecond);

}  // namespace
}  // namespace goldfinch
