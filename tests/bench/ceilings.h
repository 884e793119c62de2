// What this machine can do, for benches to compare with.
#ifndef GOLDFINCH_TESTS_BENCH_CEILINGS_H_
#define GOLDFINCH_TESTS_BENCH_CEILINGS_H_

#include <algorithm>
#include <chrono>
#include <cstdint>

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

// The most that the threads read, each its own part of a buffer again and again: with the widest vectors that the
// processor has, in huge pages if there are any, along one stream a thread or several, with prefetches far ahead or
// none, whichever is fastest. `bytes` should be what the measured program reads before it reads anything again, so that
// caches help it as much as they help here; memory of that size is taken for the time of the call.
double ReadBytesPerSecond(int threads, int64_t bytes);

}  // namespace goldfinch

#endif  // GOLDFINCH_TESTS_BENCH_CEILINGS_H_
