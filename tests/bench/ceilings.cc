#include "tests/bench/ceilings.h"

#include <sys/mman.h>

#include <cstdint>
#include <cstdlib>
#include <thread>
#include <vector>

namespace goldfinch {

double ReadBytesPerSecond(int threads) {
  const size_t bytes = size_t{2} << 30, words = bytes / 8;
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  madvise(memory, bytes, MADV_HUGEPAGE);
  auto* data = static_cast<uint64_t*>(memory);
  std::fill_n(data, words, 1);
  std::vector<uint64_t> sums(threads * 64);
  const double seconds = Fastest(4, [&] {
    std::vector<std::thread> workers;
    for (int t = 0; t < threads; ++t) {
      workers.emplace_back([&, t] {
        uint64_t sum[8] = {};
        for (size_t i = words / threads * t; i + 8 <= words / threads * (t + 1); i += 8) {
          for (int j = 0; j < 8; ++j) sum[j] += data[i + j];
        }
        for (uint64_t part : sum) sums[t * 64] += part;
      });
    }
    for (std::thread& worker : workers) worker.join();
  });
  munmap(memory, bytes);
  if (sums[0] == 0) std::abort();  // the sums are wanted, so the loops must run
  return static_cast<double>(bytes) / seconds;
}

}  // namespace goldfinch
