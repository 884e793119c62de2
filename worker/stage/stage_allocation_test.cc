// Loading takes no more of the heap than its staging. Once a stage exists, Forward takes no memory: neither from the
// heap nor, when its pages have been touched, from the system. malloc and its kin are replaced by ones that count.
#include <malloc.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <ostream>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/types/span.h"
#include "gtest/gtest.h"
#include "kernels/backend.h"
#include "worker/model/fake_device.h"
#include "worker/model/model.h"
#include "worker/model/random_model.h"
#include "worker/stage/stage.h"

namespace {

std::atomic<int64_t> allocations = 0;
std::atomic<size_t> largest = 0;  // bytes

void Count(size_t bytes) {
  ++allocations;
  size_t before = largest;
  while (bytes > before && !largest.compare_exchange_weak(before, bytes)) continue;
}

}  // namespace

// glibc's own, under the names that it keeps for programs that replace them.
extern "C" {
void* __libc_malloc(size_t size);                      // NOLINT: the name is glibc's
void* __libc_calloc(size_t count, size_t size);        // NOLINT
void* __libc_realloc(void* memory, size_t size);       // NOLINT
void* __libc_memalign(size_t alignment, size_t size);  // NOLINT

void* malloc(size_t size) noexcept {
  Count(size);
  return __libc_malloc(size);
}
void* calloc(size_t nmemb, size_t size) noexcept {
  Count(nmemb * size);
  return __libc_calloc(nmemb, size);
}
void* realloc(void* ptr, size_t size) noexcept {
  Count(size);
  return __libc_realloc(ptr, size);
}
void* memalign(size_t alignment, size_t size) noexcept {
  Count(size);
  return __libc_memalign(alignment, size);
}
void* aligned_alloc(size_t alignment, size_t size) noexcept { return memalign(alignment, size); }
int posix_memalign(void** memptr, size_t alignment, size_t size) noexcept {
  *memptr = memalign(alignment, size);
  return *memptr == nullptr ? ENOMEM : 0;
}
}

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
constexpr int64_t kSteps = 150;

struct Setup {
  std::vector<std::string> layers;
  int threads;
};
void PrintTo(const Setup& setup, std::ostream* out) { *out << testing::PrintToString(setup.layers); }

class StageAllocationTest : public testing::TestWithParam<Setup> {};

TEST_P(StageAllocationTest, DecodeTakesNoMemory) {
  const std::unique_ptr<Backend> backend = MakeCpuBackend(GetParam().threads);
  const auto model =
      LoadModel(*backend, OpenTensors(RandomModel({.layers = GetParam().layers, .vocab_size = kVocab})), {});
  ASSERT_TRUE(model.ok()) << model.status();
  const auto created =
      Stage::Create(*backend, *model, {.max_sequences = 4, .cache_tokens = 4096, .max_step_tokens = 128});
  ASSERT_TRUE(created.ok()) << created.status();
  Stage& stage = **created;
  // This is so little that sequences take kept rows from each other.
  if (stage.gold_tiers() != nullptr) {
    ASSERT_TRUE(stage.ReserveKept(stage.gold_tiers()->TierBytes(GoldTier::kFull, 200)).ok());
  }
  const std::vector<int32_t> prompt = RandomTokens(100, kVocab, /*seed=*/1);
  StageOutput output;

  // A prompt beside a decoding sequence, then both decode; greedy.
  const auto run = [&] {
    const int first = *stage.Open(), second = *stage.Open();
    int64_t failures = 0;
    int32_t ids[2] = {1, 2};
    for (int64_t i = 0; i < kSteps; ++i) {
      const absl::Span<const int32_t> second_ids =
          i == 0 ? absl::MakeConstSpan(prompt) : absl::MakeConstSpan(&ids[1], 1);
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
  // Which thread meets which op first, and sets scratch memory aside for it, is chance: a run may still take some. What
  // a step takes shows in every run.
  int64_t taken = 1, growth_bytes = 1;
  for (int attempt = 0; attempt < 6 && (taken > 0 || growth_bytes > 0); ++attempt) {
    const int64_t resident_bytes = ResidentBytes();
    const int64_t before = allocations;
    const int64_t failures = run();
    taken = allocations - before;
    growth_bytes = ResidentBytes() - resident_bytes;
    ASSERT_EQ(failures, 0);
    ASSERT_LT(taken, kSteps);
  }
  EXPECT_EQ(taken, 0) << "allocations in " << kSteps << " steps of two sequences";
  EXPECT_LE(growth_bytes, 0);
  if (stage.gold_tiers() != nullptr) {
    EXPECT_GT(stage.gold_tiers()->drops(), 0);
  }
}

// Weights go from the file to a device a part at a time: the host never holds a copy of a matrix.
TEST(LoadAllocationTest, LoadingToADeviceTakesNoMoreThanItsStaging) {
  const auto checkpoint = OpenTensors(RandomModel({.layers = {"finch_c2", "gold"}, .width = 1024}));
  const int64_t matrix_bytes = checkpoint->Find("blocks.0.att.key.weight")->data.bytes();
  constexpr int64_t kStagingBytes = (int64_t{1} << 20) + (64 << 10);
  ASSERT_GT(matrix_bytes, kStagingBytes);
  FakeDevice device(MakeCpuBackend(/*threads=*/1));
  largest = 0;
  const auto model = LoadModel(device, checkpoint, {});
  const auto taken = static_cast<int64_t>(largest);
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_GT((*model)->bytes.total(), 5 * matrix_bytes);
  EXPECT_LE(taken, kStagingBytes);
}

TEST(AllocationCounterTest, Counts) {
  const int64_t before = allocations;
  std::make_unique<std::string>(100, 'x').reset();
  EXPECT_EQ(allocations - before, 2);
  std::free(std::aligned_alloc(64, 64));
  EXPECT_EQ(allocations - before, 3);
}

INSTANTIATE_TEST_SUITE_P(Kinds, StageAllocationTest,
                         testing::Values(Setup{{"finch_c2", "finch_c2", "gold", "gold"}, 1},
                                         Setup{{"finch_c2", "gold"}, 2},
                                         Setup{{"eagle", "finch", "gptalpha", "llama"}, 1}),
                         [](const auto& info) {
                           return absl::StrCat(info.param.layers.front(), "_", info.param.layers.back(), "_",
                                               info.param.threads);
                         });

}  // namespace
}  // namespace goldfinch
