// What this machine can do at most, for benches to compare with.
#ifndef GOLDFINCH_TESTS_BENCH_CEILINGS_H_
#define GOLDFINCH_TESTS_BENCH_CEILINGS_H_

#include <algorithm>
#include <cstdint>

#include "tests/bench/harness.h"

namespace goldfinch {

// Seconds of the fastest of a few runs, so that other work on the machine does not lower a ceiling.
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

// The most bytes a second that the threads read, each its own part of a buffer again and again: with the widest vectors
// of the processor, in huge pages if there are any, along one stream a thread or several, with or without prefetching,
// whichever is fastest. `bytes` should be what the measured program reads before it reads anything again, so that
// caches help it as much as they help here. The call takes that much memory while it runs.
double ReadBytesPerSecond(int threads, int64_t bytes);

}  // namespace goldfinch

#endif  // GOLDFINCH_TESTS_BENCH_CEILINGS_H_
