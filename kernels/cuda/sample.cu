// Sampling; a block has a row. The steps are those of kernels/cpu/sample.cc, with e^x by the same arithmetic.
//
// Weights, which are at most 1, are summed as whole numbers in units of 2^-44. So sums do not depend on the order,
// every run draws the same token, and the error of a sum of 2^16 weights is 2^-28 of the largest one, below that of
// e^x.
//
// Instead of sorting, the last score to keep is found from the masses and counts of 16 buckets. The first buckets are
// by distance from the best score (most logits are in two or three of them; by the bits of floats it would be worse),
// the next ones by the ordered bits of the scores in the one bucket that contains the border, which nearly always fits
// in shared memory. Each thread has buckets of its own: with atomics, equal scores, of which there may be many, would
// wait for each other.
//
// Bound by memory; predictions: docs/cuda-predictions.md.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "kernels/cuda/device.h"
#include "kernels/cuda/ops.h"

namespace goldfinch::cuda {
namespace {

constexpr int kThreadsMax = 512;
constexpr int kScoresPerThreadMin = 16;  // fewer threads where there are few logits
constexpr int kWarpsMax = kThreadsMax / kWarp;
constexpr int kBuckets = 16;
constexpr int kListMax = 6144;
constexpr int kParts = kWarp;  // of the ids, in a search by id
constexpr int kPadding = 32;   // rows of scores are padded to a multiple of this, and so are aligned

// A thread's bucket is one word: the count in the upper bits, the mass in the lower.
constexpr int kMassBits = 44, kCountShift = 54;
static_assert(kSampleVocabMax / kThreadsMax < int64_t{1} << (64 - kCountShift), "a thread's count fits");
static_assert(kSampleVocabMax / kThreadsMax <= int64_t{1} << (kCountShift - kMassBits - 1), "a thread's mass fits");
constexpr uint64_t kMassMask = (uint64_t{1} << kCountShift) - 1;

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// A change to one logit. Changes to the same logit form a chain, in their order.
struct Change {
  double amount;
  int32_t id;    // -1 if it is not the first in its chain
  int32_t next;  // index of the next one, or -1
};

struct Row {
  double temperature;
  double top_p;
  double uniform;
  int64_t top_k;
  float min_p;
  int32_t change_begin, change_end;
  int32_t banned_begin, banned_end;
};

struct Shared {
  uint64_t buckets[kBuckets * kThreadsMax];  // [bucket, thread]
  uint64_t reduced[kWarpsMax];
  uint64_t masses[kBuckets];
  uint64_t counts[kBuckets];
  uint64_t parts[kParts];
  int32_t list_count;
  alignas(16) float list[kListMax];  // scores of the bucket that contains the border
};

__device__ inline uint32_t FloatBits(float x) {
  static_assert(sizeof(uint32_t) == sizeof(float));
  uint32_t bits;
  memcpy(&bits, &x, sizeof(bits));
  return bits;
}
__device__ inline float BitsFloat(uint32_t bits) {
  float x;
  memcpy(&x, &bits, sizeof(x));
  return x;
}

// Whole numbers in the same order as the floats, of which none is -0.
__device__ inline uint32_t OrderedBits(float x) {
  const uint32_t bits = FloatBits(x);
  return bits ^ (bits >> 31 != 0 ? 0xFFFFFFFF : 0x80000000);
}

// e^x for x <= 0 as in kernels/cpu/sample.cc; 0 for NaN.
__device__ inline float Exp(float x) {
  constexpr float kRound = 0x1.8p23F;
  const float shifted = x * 1.44269504F + kRound;
  const float n = shifted - kRound;
  const float r = (x - n * 0x1.62e4p-1F) - n * 0x1.7f7d1cp-20F;
  float y = 1.0F / 5040;
  y = y * r + 1.0F / 720;
  y = y * r + 1.0F / 120;
  y = y * r + 1.0F / 24;
  y = y * r + 1.0F / 6;
  y = y * r + 0.5F;
  y = y * r + 1.0F;
  y = y * r + 1.0F;
  return x >= -87.0F ? BitsFloat(FloatBits(y) + (FloatBits(shifted) << 23)) : 0.0F;
}

__device__ inline uint64_t Mass(float weight) { return static_cast<uint64_t>(weight * 0x1p44F); }
static_assert(kMassBits == 44);

template <typename T, typename Combine>
__device__ T WarpReduce(T x, Combine combine) {
#pragma unroll
  for (int mask = kWarp / 2; mask > 0; mask /= 2) x = combine(x, ShflXor(x, mask));
  return x;
}

// Combines a value of every thread of the block; every thread gets the result.
template <typename Combine>
__device__ uint64_t BlockReduce(uint64_t x, Shared& shared, Combine combine) {
  x = WarpReduce(x, combine);
  __syncthreads();  // the last result has been read
  if (threadIdx.x % kWarp == 0) shared.reduced[threadIdx.x / kWarp] = x;
  __syncthreads();
  x = shared.reduced[0];
  for (int warp = 1; warp < static_cast<int>(blockDim.x) / kWarp; ++warp) x = combine(x, shared.reduced[warp]);
  return x;
}

struct Add {
  __device__ uint64_t operator()(uint64_t a, uint64_t b) const { return a + b; }
};
struct Larger {
  __device__ uint64_t operator()(uint64_t a, uint64_t b) const { return a < b ? b : a; }
};

// Loads of a thread that are under way at once: a single row takes as long as its latency.
constexpr int kUnroll = 4;

// Calls use(index, score) for all scores. `count` is a multiple of 4, `scores` are aligned.
template <typename Use>
__device__ void ForEachScore(const float* scores, int count, Use use) {
  const int step = static_cast<int>(blockDim.x) * 4;
  for (int first = static_cast<int>(threadIdx.x) * 4; first < count; first += kUnroll * step) {
    Vec<float, 4> scores4[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int i = first + u * step;
      if (i < count) scores4[u] = *reinterpret_cast<const Vec<float, 4>*>(scores + i);
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int i = first + u * step;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        if (i < count) use(i + j, scores4[u].v[j]);
      }
    }
  }
}

// Copies the logits as scores, -infinity from `limit` on. Returns false, to every thread, if one is not finite.
template <int V>
__device__ bool CopyLogits(const float* logits, int vocab, int limit, int stride, float* scores, Shared& shared) {
  uint64_t bad = 0;
  const int step = static_cast<int>(blockDim.x) * V;
  for (int first = static_cast<int>(threadIdx.x) * V; first < stride; first += kUnroll * step) {
    float v[kUnroll][V];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int i = first + u * step;
#pragma unroll
      for (int j = 0; j < V; ++j) v[u][j] = 0;
      if (i < vocab) LoadFloats<V>(logits + i, v[u]);
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int i = first + u * step;
#pragma unroll
      for (int j = 0; j < V; ++j) {
        bad |= (FloatBits(v[u][j]) & 0x7FFFFFFF) > 0x7F7FFFFF ? 1 : 0;
        v[u][j] = i + j < limit ? v[u][j] + 0.0F : -kInfinity;  // -0 becomes 0: equals must have equal bits
      }
      if (i < stride) StoreFloats<V>(v[u], scores + i);
    }
  }
  return BlockReduce(bad, shared, Larger()) == 0;
}

// Ends with a barrier, after which the block sees the scores.
__device__ void ChangeScores(const Row& row, const Change* changes, const int32_t* banned, const int32_t* holes,
                             int hole_count, int limit, float* scores) {
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  __syncthreads();
  for (int i = row.change_begin + thread; i < row.change_end; i += threads) {
    const int32_t id = changes[i].id;
    if (id < 0 || id >= limit) continue;
    float score = scores[id];
    for (int32_t at = i; at >= 0; at = changes[at].next) {
      score = static_cast<float>(static_cast<double>(score) + changes[at].amount) + 0.0F;
    }
    scores[id] = score;
  }
  __syncthreads();
  for (int i = row.banned_begin + thread; i < row.banned_end; i += threads) scores[banned[i]] = -kInfinity;
  for (int i = thread; i < hole_count; i += threads) scores[holes[i]] = -kInfinity;
  __syncthreads();
}

struct Best {
  float score;
  int32_t id;  // the lowest of equal scores
};

__device__ Best FindBest(const float* scores, int count, Shared& shared) {
  uint64_t best = 0;
  ForEachScore(scores, count, [&best](int id, float score) {
    const uint64_t key = uint64_t{OrderedBits(score)} << 32 | (0xFFFFFFFF - static_cast<uint32_t>(id));
    if (best < key) best = key;
  });
  best = BlockReduce(best, shared, Larger());
  const auto bits = static_cast<uint32_t>(best >> 32);
  return {BitsFloat(bits ^ (bits >> 31 != 0 ? 0x80000000 : 0xFFFFFFFF)),
          static_cast<int32_t>(0xFFFFFFFF - static_cast<uint32_t>(best))};
}

// Sets the masses and counts of all buckets. bucket(score) is the bucket of a score, or negative if it has none.
template <typename Bucket>
__device__ void FillBuckets(const float* scores, int count, float best, Shared& shared, Bucket bucket) {
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  uint64_t* const mine = shared.buckets + thread;
  for (int b = 0; b < kBuckets; ++b) mine[b * kThreadsMax] = 0;
  ForEachScore(scores, count, [=](int, float score) {
    const int b = bucket(score);
    if (b >= 0) mine[b * kThreadsMax] += (uint64_t{1} << kCountShift) + Mass(Exp(score - best));
  });
  __syncthreads();
  for (int b = thread / kWarp; b < kBuckets; b += threads / kWarp) {
    uint64_t mass = 0, members = 0;
    for (int i = thread % kWarp; i < threads; i += kWarp) {
      const uint64_t packed = shared.buckets[b * kThreadsMax + i];
      mass += packed & kMassMask;
      members += packed >> kCountShift;
    }
    mass = WarpReduce(mass, Add());
    members = WarpReduce(members, Add());
    if (thread % kWarp == 0) {
      shared.masses[b] = mass;
      shared.counts[b] = members;
    }
  }
  __syncthreads();
}

// The limits of what may be kept, and what is above the buckets that are searched.
struct Border {
  double mass_needed;
  int64_t count_max;
  uint64_t mass_above = 0;
  int64_t count_above = 0;

  __device__ bool Reaches(uint64_t mass, uint64_t count) const {
    return static_cast<double>(mass_above + mass) >= mass_needed ||
           count_above + static_cast<int64_t>(count) >= count_max;
  }
  // The bucket in which a limit is reached, or the last one.
  __device__ int Walk(const Shared& shared, int last) {
    int at = 0;
    for (; at < last && !Reaches(shared.masses[at], shared.counts[at]); ++at) {
      mass_above += shared.masses[at];
      count_above += static_cast<int64_t>(shared.counts[at]);
    }
    return at;
  }
};

// The lowest id such that values of the ids up to it sum to more than `target_of(sum of all)`; for every thread.
template <typename Value, typename Target>
__device__ int FindById(const float* scores, int count, Shared& shared, Value value, Target target_of) {
  constexpr int kScoresAtOnce = 8;
  const int warp = static_cast<int>(threadIdx.x) / kWarp, warps = static_cast<int>(blockDim.x) / kWarp;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  int begin = 0, end = count;
  uint64_t target = 0;
  bool first = true;
  do {
    const int part = CeilDiv(end - begin, kParts);
    __syncthreads();  // parts may still be read
    for (int p = warp; p < kParts; p += warps) {
      const int part_end = min(end, begin + (p + 1) * part);
      uint64_t sum = 0;
      for (int i = begin + p * part + lane; i < part_end; i += kScoresAtOnce * kWarp) {
        float at_once[kScoresAtOnce];
#pragma unroll
        for (int u = 0; u < kScoresAtOnce; ++u) {
          at_once[u] = i + u * kWarp < part_end ? scores[i + u * kWarp] : -kInfinity;
        }
#pragma unroll
        for (int u = 0; u < kScoresAtOnce; ++u) {
          if (i + u * kWarp < part_end) sum += value(i + u * kWarp, at_once[u]);
        }
      }
      sum = WarpReduce(sum, Add());
      if (lane == 0) shared.parts[p] = sum;
    }
    __syncthreads();
    if (first) {
      uint64_t total = 0;
      for (int p = 0; p < kParts; ++p) total += shared.parts[p];
      if (total == 0) return -1;
      target = target_of(total);
      first = false;
    }
    int p = 0;
    for (; p < kParts - 1 && shared.parts[p] <= target; ++p) target -= shared.parts[p];
    begin += p * part;
    end = min(end, begin + part);
  } while (end - begin > 1);
  return begin;
}

// Which scores top_p and top_k leave: those of more bits than `bits`, and of as many up to an id.
struct Cut {
  uint32_t bits = 0;
  int32_t last_equal = 0;

  __device__ bool Keeps(int32_t id, float score) const {
    const uint32_t ordered = OrderedBits(score);
    return ordered > bits || (ordered == bits && id <= last_equal);
  }
};

__device__ Cut FindCut(const Row& row, const float* scores, int count, float best, Shared& shared) {
  const auto distance_bucket = [best](float score) {
    // -infinity is what was banned. Distances, like scores, are in order, though some of them are rounded to equals.
    return score == -kInfinity ? -1 : static_cast<int>(fminf(best - score, static_cast<float>(kBuckets - 1)));
  };
  FillBuckets(scores, count, best, shared, distance_bucket);
  uint64_t total = 0;
  for (int b = 0; b < kBuckets; ++b) total += shared.masses[b];
  Border border{row.top_p >= 1 ? static_cast<double>(kInfinity) : row.top_p * static_cast<double>(total),
                row.top_k == 0 ? std::numeric_limits<int64_t>::max() : row.top_k};
  const int bucket = border.Walk(shared, kBuckets - 1);
  uint64_t equals = shared.counts[bucket];
  if (!border.Reaches(shared.masses[bucket], equals)) return {};  // all stay

  // The scores of the bucket by themselves, if there is room, and which there are.
  const bool fits = equals <= kListMax;
  if (threadIdx.x == 0) shared.list_count = 0;
  __syncthreads();
  uint64_t high64 = 0, inverse_low = 0;
  ForEachScore(scores, count, [&](int, float score) {
    if (distance_bucket(score) != bucket) return;
    const uint64_t bits = OrderedBits(score);
    high64 = max(high64, bits);
    inverse_low = max(inverse_low, 0xFFFFFFFF - bits);
    if (fits) shared.list[atomicAdd(&shared.list_count, 1)] = score;  // in any order: sums do not mind
  });
  auto high = static_cast<uint32_t>(BlockReduce(high64, shared, Larger()));
  auto low = static_cast<uint32_t>(0xFFFFFFFF - BlockReduce(inverse_low, shared, Larger()));
  const float* members = scores;
  int member_count = count;
  if (fits) {
    members = shared.list;
    member_count = CeilDiv(static_cast<int>(equals), 4) * 4;
    const int padding = static_cast<int>(equals) + static_cast<int>(threadIdx.x);
    if (padding < member_count) shared.list[padding] = -kInfinity;
    __syncthreads();
  }

  while (low < high) {
    int shift = 0;
    while ((high - low) >> shift >= kBuckets) ++shift;
    FillBuckets(members, member_count, best, shared, [=](float score) {
      const uint32_t below = high - OrderedBits(score);  // wraps around for scores above
      return below <= high - low ? static_cast<int>(below >> shift) : -1;
    });
    const int at = border.Walk(shared, static_cast<int>((high - low) >> shift));
    equals = shared.counts[at];
    high -= static_cast<uint32_t>(at) << shift;
    const uint32_t width = (uint32_t{1} << shift) - 1;
    if (high - low > width) low = high - width;
  }

  const int64_t kept_equals = border.count_max - border.count_above;
  if (kept_equals >= static_cast<int64_t>(equals)) return {low, std::numeric_limits<int32_t>::max()};
  const int last_equal = FindById(
      scores, count, shared, [low](int, float score) { return uint64_t{OrderedBits(score) == low ? 1u : 0u}; },
      [kept_equals](uint64_t) { return static_cast<uint64_t>(kept_equals - 1); });
  return {low, last_equal};
}

template <int V>
__global__ void __launch_bounds__(kThreadsMax, 2)
    SampleKernel(const float* logits, int vocab, int limit, const Row* rows, const Change* changes,
                 const int32_t* banned, const int32_t* holes, int hole_count, int stride, float* all_scores,
                 int32_t* tokens) {
  Shared& shared = *DynamicShared<Shared>();
  const Row row = rows[blockIdx.x];
  float* const scores = all_scores + int64_t{blockIdx.x} * stride;
  const int count = CeilDiv(limit, 4) * 4;

  // --- Step 1 ---
  if (!CopyLogits<V>(logits + int64_t{blockIdx.x} * vocab, vocab, limit, stride, scores, shared)) {
    if (threadIdx.x == 0) tokens[blockIdx.x] = -1;
    return;
  }
  ChangeScores(row, changes, banned, holes, hole_count, limit, scores);
  const Best best = FindBest(scores, count, shared);
  if (row.temperature == 0) {
    if (threadIdx.x == 0) tokens[blockIdx.x] = best.id;
    return;
  }

  // --- Steps 2 and 3 ---
  Cut cut;
  if (row.top_p < 1 || row.top_k > 0) cut = FindCut(row, scores, count, best.score, shared);

  // --- Steps 4 and 5 ---
  const double sharpness = 1 / row.temperature;
  const auto mass = [&](int32_t id, float score) -> uint64_t {
    if (score == -kInfinity || !cut.Keeps(id, score)) return 0;
    const float distance = score - best.score;
    if (row.min_p > 0 && Exp(distance) < row.min_p) return 0;
    if (distance == 0) return Mass(1);  // whatever the temperature
    if (row.temperature == 1) return Mass(Exp(distance));
    const double exact = static_cast<double>(score) - static_cast<double>(best.score);
    return Mass(Exp(static_cast<float>(exact * sharpness)));
  };
  const double uniform = row.uniform;
  const int token = FindById(scores, count, shared, mass, [uniform](uint64_t total) {
    return min(static_cast<uint64_t>(uniform * static_cast<double>(total)), total - 1);
  });
  if (threadIdx.x == 0) tokens[blockIdx.x] = token < 0 ? best.id : token;
}

// Chains the changes of one logit, of each row.
class Chains {
 public:
  explicit Chains(int64_t vocab) : vocab_(vocab) {}

  void Append(absl::Span<const LogitChange> changes, std::vector<Change>& all) {
    if (changes.empty()) return;
    newest_.resize(vocab_, -1);
    for (const LogitChange& change : changes) {
      int32_t& newest = newest_[change.id];
      const auto index = static_cast<int32_t>(all.size());
      if (newest >= 0) all[newest].next = index;
      all.push_back({change.amount, newest < 0 ? change.id : -1, -1});
      newest = index;
    }
    for (const LogitChange& change : changes) newest_[change.id] = -1;
  }

 private:
  const int64_t vocab_;
  std::vector<int32_t> newest_;  // [vocab] index of the last change of a logit so far, or -1
};

}  // namespace

void Sample(Context& context, ConstTensor logits, int64_t limit, absl::Span<const int32_t> holes,
            absl::Span<const SampleRow> rows, absl::Span<int32_t> tokens) {
  const Context::Frame frame(context);
  const int64_t vocab = logits.dim(1);
  GF_CHECK_LE(vocab, kSampleVocabMax);

  std::vector<Row> device_rows;
  std::vector<Change> changes;
  std::vector<int32_t> banned;
  Chains chains(vocab);
  for (const SampleRow& row : rows) {
    Row device_row{row.temperature, row.top_p, row.uniform, row.top_k, static_cast<float>(row.min_p), 0, 0, 0, 0};
    device_row.change_begin = static_cast<int32_t>(changes.size());
    chains.Append(row.changes, changes);
    device_row.change_end = static_cast<int32_t>(changes.size());
    device_row.banned_begin = static_cast<int32_t>(banned.size());
    banned.insert(banned.end(), row.banned.begin(), row.banned.end());
    device_row.banned_end = static_cast<int32_t>(banned.size());
    device_rows.push_back(device_row);
  }
  const auto count = static_cast<int64_t>(rows.size());
  const int64_t stride = CeilDiv<int64_t>(vocab, kPadding) * kPadding;
  auto* const scores = context.Scratch<float>(count * stride);
  auto* const device_tokens = context.Scratch<int32_t>(count);
  const bool vectors = vocab % 4 == 0 && reinterpret_cast<uintptr_t>(logits.data) % 16 == 0;
  const int64_t threads = CeilDiv<int64_t>(CeilDiv<int64_t>(vocab, kScoresPerThreadMin), kWarp) * kWarp;
  context.Submit(/*repeats=*/false, [&] {
    const Row* uploaded_rows = context.Upload(absl::MakeConstSpan(device_rows));
    const Change* uploaded_changes = context.Upload(absl::MakeConstSpan(changes));
    const int32_t* uploaded_banned = context.Upload(absl::MakeConstSpan(banned));
    const int32_t* uploaded_holes = context.Upload(holes);
    Launch(static_cast<Stream>(context.stream()), vectors ? SampleKernel<4> : SampleKernel<1>,
           {dim3(static_cast<unsigned>(count)), dim3(static_cast<unsigned>(std::min<int64_t>(threads, kThreadsMax))),
            sizeof(Shared)},
           logits.f32(), static_cast<int>(vocab), static_cast<int>(limit), uploaded_rows, uploaded_changes,
           uploaded_banned, uploaded_holes, static_cast<int>(holes.size()), static_cast<int>(stride), scores,
           device_tokens);
  });
  context.runtime().CopyToHost(device_tokens, tokens.data(), count * static_cast<int64_t>(sizeof(int32_t)));
}

}  // namespace goldfinch::cuda
