// Once a stage exists, Forward takes no memory: neither from the heap nor, when its pages have been touched, from the
// system. All of C++'s allocations in this program are counted.
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/backend.h"
#include "worker/model.h"
#include "worker/random_model.h"
#include "worker/stage.h"

namespace {

std::atomic<int64_t> allocations = 0;

void* Counted(size_t size, size_t alignment) {
  ++allocations;
  void* memory = nullptr;
  if (posix_memalign(&memory, std::max(alignment, sizeof(void*)), size) != 0) std::abort();
  return memory;
}

}  // namespace

void* operator new(size_t size) { return Counted(size, alignof(std::max_align_t)); }
void* operator new[](size_t size) { return Counted(size, alignof(std::max_align_t)); }
void* operator new(size_t size, std::align_val_t alignment) { return Counted(size, static_cast<size_t>(alignment)); }
void* operator new[](size_t size, std::align_val_t alignment) { return Counted(size, static_cast<size_t>(alignment)); }
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete[](void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, size_t) noexcept { std::free(memory); }
void operator delete[](void* memory, size_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { std::free(memory); }
void operator delete[](void* memory, std::align_val_t) noexcept { std::free(memory); }
void operator delete(void* memory, size_t, std::align_val_t) noexcept { std::free(memory); }
void operator delete[](void* memory, size_t, std::align_val_t) noexcept { std::free(memory); }

namespace goldfinch {
namespace {

// The exact number: /proc/self/statm may be off by some pages for each thread.
int64_t ResidentBytes() {
  std::FILE* file = std::fopen("/proc/self/smaps_rollup", "r");
  if (file == nullptr) return 0;  // a kernel before 4.14
  char line[200];
  int64_t kilobytes = 0;
  while (std::fgets(line, sizeof(line), file) != nullptr && std::sscanf(line, "Rss: %ld kB", &kilobytes) != 1) {
  }
  std::fclose(file);
  EXPECT_GT(kilobytes, 0);
  return kilobytes * 1024;
}

constexpr int64_t kVocab = 40;
constexpr int64_t kDecodedTokens = 300;

class StageAllocationTest : public testing::TestWithParam<std::vector<std::string>> {};

TEST_P(StageAllocationTest, DecodeTakesNoMemory) {
  const std::unique_ptr<Backend> backend = MakeCpuBackend(/*threads=*/2);
  const auto model = LoadModel(*backend, OpenTensors(RandomModel({.layers = GetParam(), .vocab_size = kVocab})), {});
  ASSERT_TRUE(model.ok()) << model.status();
  const auto created = Stage::Create(*backend, *model, {.max_sequences = 4, .max_tokens = 128, .cache_tokens = 4096});
  ASSERT_TRUE(created.ok()) << created.status();
  Stage& stage = **created;
  const std::vector<int32_t> prompt = RandomTokens(100, kVocab, /*seed=*/1);
  StageOutput output;

  // A prompt beside a decoding sequence, then both decode; greedy.
  const auto run = [&] {
    const int first = *stage.Open(), second = *stage.Open();
    int64_t failures = 0;
    int32_t ids[2] = {1, 2};
    for (int64_t i = 0; i < kDecodedTokens; ++i) {
      const absl::Span<const int32_t> second_ids = i == 0 ? absl::MakeConstSpan(prompt) : absl::MakeConstSpan(&ids[1], 1);
      const Chunk chunks[] = {{first, absl::MakeConstSpan(&ids[0], 1), 1}, {second, second_ids, 1}};
      if (!stage.Forward(chunks, {}, &output).ok()) ++failures;
      for (int row = 0; row < 2; ++row) {
        const float* logits = output.logits.f32() + row * kVocab;
        ids[row] = static_cast<int32_t>(std::max_element(logits, logits + kVocab) - logits);
      }
    }
    // Forks and closed sequences use what was set aside at the start, too.
    const int copy = *stage.Fork(first);
    stage.Close(first);
    stage.Close(second);
    stage.Close(copy);
    return failures;
  };

  ASSERT_EQ(run(), 0);
  const int64_t resident_bytes = ResidentBytes();
  const int64_t before = allocations;
  const int64_t failures = run();
  EXPECT_EQ(allocations - before, 0) << "over " << kDecodedTokens << " steps";
  EXPECT_EQ(failures, 0);
  // The pages of the caches are the same as in the first run. A little is for what the system does by itself.
  EXPECT_LE(ResidentBytes() - resident_bytes, 64 * 1024);
}

TEST(AllocationCounterTest, Counts) {
  const int64_t before = allocations;
  std::make_unique<std::string>(100, 'x').reset();
  EXPECT_EQ(allocations - before, 2);
}

INSTANTIATE_TEST_SUITE_P(Kinds, StageAllocationTest,
                         testing::Values(std::vector<std::string>{"finch_c2", "finch_c2", "gold", "gold"},
                                         std::vector<std::string>{"eagle", "finch", "gptalpha", "llama"}),
                         [](const auto& info) { return info.param.front(); });

}  // namespace
}  // namespace goldfinch
