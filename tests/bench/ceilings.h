// What this machine can do, for benches to compare with.
#ifndef GOLDFINCH_TESTS_BENCH_CEILINGS_H_
#define GOLDFINCH_TESTS_BENCH_CEILINGS_H_

#include <algorithm>
#include <chrono>

namespace goldfinch {

inline double Now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Seconds of the fastest of a few runs: the ceilings should not be lowered by what else the machine did.
template <class Run>
double Fastest(int runs, Run run) {
  double best = 1e30;
  for (int i = 0; i < runs; ++i) {
    const double start = Now();
    run();
    best = std::min(best, Now() - start);
  }
  return best;
}

// All threads read their part of a buffer of 2 GiB, far larger than the caches.
double ReadBytesPerSecond(int threads);

}  // namespace goldfinch

#endif  // GOLDFINCH_TESTS_BENCH_CEILINGS_H_
