#include "tests/bench/ceilings.h"

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <barrier>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <iterator>
#include <thread>
#include <vector>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "tests/bench/ceilings.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace goldfinch::HWY_NAMESPACE {
namespace {
namespace hn = hwy::HWY_NAMESPACE;

// The sum of `words`, a multiple of 8 * kStreams, read along so many parts at once, a cache line of each in turn.
// Prefetches run `ahead` bytes before the loads; 0: none.
template <int kStreams>
HWY_ATTR uint64_t SumStreams(const uint64_t* data, size_t words, size_t ahead) {
  const hn::CappedTag<uint64_t, 8> d;
  constexpr size_t kLine = 8;
  const size_t part = words / kStreams, lanes = hn::Lanes(d);
  auto even = hn::Zero(d), odd = hn::Zero(d);
  for (size_t i = 0; i < part; i += kLine) {
    for (int s = 0; s < kStreams; ++s) {
      const uint64_t* line = data + s * part + i;
      if (ahead > 0) __builtin_prefetch(reinterpret_cast<const char*>(line) + ahead);
      for (size_t j = 0; j < kLine; j += 2 * lanes) {
        even = hn::Add(even, hn::Load(d, line + j));
        if (j + lanes < kLine) odd = hn::Add(odd, hn::Load(d, line + j + lanes));
      }
    }
  }
  return hn::GetLane(hn::SumOfLanes(d, hn::Add(even, odd)));
}

HWY_ATTR uint64_t SumWords(const uint64_t* data, size_t words, int streams, size_t ahead) {
  switch (streams) {
    case 1:
      return SumStreams<1>(data, words, ahead);
    case 2:
      return SumStreams<2>(data, words, ahead);
    case 4:
      return SumStreams<4>(data, words, ahead);
    default:
      return SumStreams<8>(data, words, ahead);
  }
}

}  // namespace

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace goldfinch::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace goldfinch {
namespace {
HWY_EXPORT(SumWords);

struct Variant {
  int streams;
  size_t ahead;  // bytes
};
constexpr Variant kVariants[] = {{1, 1024}, {2, 0}, {2, 2048}, {4, 0}, {4, 4096}, {8, 1024}};
constexpr int kRounds = 3;

}  // namespace

double ReadBytesPerSecond(int threads, int64_t bytes) {
  constexpr size_t kUnit = 512;  // words: whole pages, so whole lines in each of up to 8 streams
  const size_t words_a_thread = std::max<size_t>(1, static_cast<size_t>(bytes) / 8 / threads / kUnit) * kUnit;
  const size_t mapped = words_a_thread * 8 * threads;
  void* memory = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) std::abort();
  madvise(memory, mapped, MADV_HUGEPAGE);
  auto* data = static_cast<uint64_t*>(memory);

  // Threads wait where a run begins and where it ends, so that starting them is in no time that counts.
  std::barrier gate(threads + 1);
  std::atomic<uint64_t> sum = 0;
  std::vector<std::thread> readers;
  for (int t = 0; t < threads; ++t) {
    readers.emplace_back([&, t] {
      uint64_t* own = data + words_a_thread * t;
      std::fill_n(own, words_a_thread, 1);
      for (int round = 0; round < kRounds; ++round) {
        for (const Variant& variant : kVariants) {
          gate.arrive_and_wait();
          sum += HWY_DYNAMIC_DISPATCH(SumWords)(own, words_a_thread, variant.streams, variant.ahead);
          gate.arrive_and_wait();
        }
      }
    });
  }
  double best = 1e30;
  for (int round = 0; round < kRounds; ++round) {
    for (size_t variant = 0; variant < std::size(kVariants); ++variant) {
      gate.arrive_and_wait();
      const double start = Now();
      gate.arrive_and_wait();
      best = std::min(best, Now() - start);
    }
  }
  for (std::thread& reader : readers) reader.join();
  munmap(memory, mapped);
  // The sums are wanted, so the loops must run.
  if (sum != uint64_t{mapped / 8} * std::size(kVariants) * kRounds) std::abort();
  return static_cast<double>(mapped) / best;
}

}  // namespace goldfinch
#endif
