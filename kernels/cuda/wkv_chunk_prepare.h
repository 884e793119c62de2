// The first half of wkv_chunk.h: a warp prepares a chunk of 16 rows, which means its R, K, A and decays.
#ifndef GOLDFINCH_KERNELS_CUDA_WKV_CHUNK_PREPARE_H_
#define GOLDFINCH_KERNELS_CUDA_WKV_CHUNK_PREPARE_H_

#include <bit>
#include <cstdint>
#include <type_traits>

#include "kernels/cuda/device.h"
#include "kernels/cuda/wkv_recurrence.h"

namespace goldfinch::cuda {

constexpr int kChunkHeadSize = 64;
constexpr int kChunkRows = 16;
constexpr int kChunksOfTile = 4;
constexpr int kTileRows = kChunkRows * kChunksOfTile;
constexpr int kChunkThreads = kChunksOfTile * kWarp;
constexpr int kChunkLd = kChunkHeadSize + 8;  // of tiles that ldmatrix reads: rows begin 4 banks apart
constexpr int kWordsOfRow = kChunkHeadSize / 2;
constexpr int kFactorRow = kChunkLd / 2;  // words of a row of R or K
constexpr int kStateSize = kChunkHeadSize * kChunkHeadSize;

// R and K stay within bf16 and fp32 for |k| < 2^47 and |r| > 2^-46.
constexpr float kFadeMax = 80;
constexpr float kLog2E = 1.44269504f;  // log2(e)

// Shared memory of a block. kStates: only the state is asked for, not y.
template <typename T, bool kStates>
struct WkvChunkShared {
  static constexpr int kParts = std::is_same_v<T, bf16_t> ? 1 : 2;
  static constexpr int kBlocks = kParts == 1 ? 3 : 2;  // that the shared memory of a multiprocessor holds (H100)
  static constexpr int kFactorWords = kTileRows * kChunkLd / 2;

  // As they come from memory. Each warp reads only its own rows; while it prepares them it uses w's place as scratch.
  T k[kTileRows * kChunkHeadSize];
  T w[kTileRows * kChunkHeadSize];
  T r[kStates ? 8 : kTileRows * kChunkHeadSize];
  T v[2][kTileRows * kChunkLd];
  // Pairs of keys.
  uint32_t key_factor[kParts][kFactorWords];
  uint32_t query_factor[kParts][kStates ? 4 : kFactorWords];
  Vec<uint32_t, 4> pairs[kStates ? 1 : kChunksOfTile][kParts][kWarp];  // A, as the first operand of a product
  float decay[kChunksOfTile][kChunkHeadSize];                          // 2^L
  uint32_t fast[kChunksOfTile][2];  // bit i: key 2 i, key 2 i + 1 fades by more than 2^-kFadeMax
};

// A pair of numbers as bf16, with fp16 activations in two parts: the second one is what the first rounds off.
template <typename T>
__device__ inline void Split(float low, float high, uint32_t (&parts)[std::is_same_v<T, bf16_t> ? 1 : 2]) {
  parts[0] = Pack2<bf16_t>(low, high);
  if constexpr (!std::is_same_v<T, bf16_t>) {
    const float2 rounded = Unpack2<bf16_t>(parts[0]);
    parts[1] = Pack2<bf16_t>(low - rounded.x, high - rounded.y);
  }
}

// d += a b.
template <int kParts>
__device__ inline void MmaParts(float (&d)[4], const uint32_t (&a)[kParts][4], const uint32_t (&b)[kParts][2]) {
  if constexpr (kParts == 2) {
    Mma16816<bf16_t>(d, a[0], b[1]);
    Mma16816<bf16_t>(d, a[1], b[0]);
  }
  Mma16816<bf16_t>(d, a[0], b[0]);
}

// log2 of exp(-exp(w)).
__device__ inline float LogDecay(float w) { return -kLog2E * FastExp2(kLog2E * w); }

// 1 - 2^l, l <= 0; where they are near each other their difference would have few digits.
__device__ inline float OneMinusExp2(float l) {
  const float x = -0.693147181f * l;
  const float series = x * (1 - x * (1 / 2.f) * (1 - x * (1 / 3.f) * (1 - x * (1 / 4.f) * (1 - x * (1 / 5.f)))));
  return x < 0.25f ? series : 1 - FastExp2(l);
}

// A chunk of one head, for the warp that prepares it. A lane has keys 2 lane and 2 lane + 1.
template <typename T, bool kOneMinusKeys>
struct WkvChunk {
  const WkvTensors<T>& x;
  int head;
  int64_t at;         // of its first row's head in x
  int rows;           // the rest of the 16 is zeros that change nothing
  const uint32_t* r;  // [16, 32] shared
  const uint32_t* k;

  // log2 of the decays of any two keys, from memory.
  __device__ float2 Decay(int t, int word) const {
    if (t >= rows) return make_float2(0.f, 0.f);
    float both[2];
    if (x.w == nullptr) {
      LoadFloats<2>(x.constant_w + head * kChunkHeadSize + 2 * word, both);
    } else {
      LoadFloats<2>(x.w + at + int64_t{t} * x.heads * kChunkHeadSize + 2 * word, both);
    }
    return make_float2(LogDecay(both[0]), LogDecay(both[1]));
  }
  __device__ float2 Key(int t, int word, float2 decay) const {
    float2 key = Unpack2<T>(k[t * kWordsOfRow + word]);
    if constexpr (kOneMinusKeys) {
      key.x *= OneMinusExp2(decay.x);
      key.y *= OneMinusExp2(decay.y);
    }
    return key;
  }
};

// The share in A_ts, s < t, of the keys of bits `even` and `odd`, exactly, into pairs[t * kWordsOfRow + s] as floats.
// Lane s % 16 has the column s, half of the keys each half of the warp.
template <typename T, bool kOneMinusKeys>
__device__ void AddExactPairs(const WkvChunk<T, kOneMinusKeys>& chunk, uint32_t even, uint32_t odd, int lane,
                              uint32_t* pairs) {
  const int s = lane % kChunkRows, half = lane / kChunkRows * kChunkRows;
  float sums[kChunkRows] = {};
  const uint32_t mine = half == 0 ? even : odd;
  for (int next = 0;; ++next) {
    while (next < kWarp && (mine >> next & 1) == 0) ++next;
    const bool there = next < kWarp;
    if (Ballot(there) == 0) break;
    const int word = there ? next : 0;
    const float2 log_decays = chunk.Decay(s, word);
    const float2 keys = chunk.Key(s, word, log_decays);
    const float2 queries = Unpack2<T>(chunk.r[s * kWordsOfRow + word]);
    const float own_decay = FastExp2(half == 0 ? log_decays.x : log_decays.y);
    const float own_query = half == 0 ? queries.x : queries.y;
    float key = half == 0 ? keys.x : keys.y;
#pragma unroll
    for (int t = 1; t < kChunkRows; ++t) {
      const float query = Shfl(own_query, half + t), decay = Shfl(own_decay, half + t);
      if (there && s < t) {
        sums[t] += query * key;
        key *= decay;
      }
    }
  }
#pragma unroll
  for (int t = 0; t < kChunkRows; ++t) {
    const float sum = sums[t] + ShflXor(sums[t], kChunkRows);
    if (half == 0) pairs[t * kWordsOfRow + s] = std::bit_cast<uint32_t>(sum);
  }
}

// K = k 2^(L - L_(s+1)) for those of the lane's keys that fade fast. Parts of K are `part_stride` apart.
template <int kParts, typename T, bool kOneMinusKeys>
__device__ void SetFastFactors(const WkvChunk<T, kOneMinusKeys>& chunk, bool fast_even, bool fast_odd, int lane,
                               uint32_t* factor, int part_stride) {
  if (!fast_even && !fast_odd) return;
  float2 after = make_float2(0.f, 0.f);
  for (int t = kChunkRows - 1; t >= 0; --t) {
    const float2 decay = chunk.Decay(t, lane);
    const float2 key = chunk.Key(t, lane, decay);
    uint32_t parts[kParts];
    Split<T>(key.x * FastExp2(after.x), key.y * FastExp2(after.y), parts);
    const uint32_t changed = (fast_even ? 0x0000FFFFu : 0u) | (fast_odd ? 0xFFFF0000u : 0u);
#pragma unroll
    for (int p = 0; p < kParts; ++p) {
      uint32_t& to = factor[p * part_stride + t * (kChunkLd / 2) + lane];
      to = (to & ~changed) | (parts[p] & changed);
    }
    after.x += decay.x;
    after.y += decay.y;
  }
}

// The tile of pairs of a warp's chunk, before it is packed: rows lane / 4 and + 8, columns lane % 4 * 2, + 1, + 8 and
// + 9.
using ChunkPairs = float[2][4];

// Sets R, K and the share of each lane in r u k, and returns L of the lane's keys.
template <bool kStates, typename T, bool kOneMinusKeys>
__device__ __forceinline__ float2 SetFactors(const WkvChunk<T, kOneMinusKeys>& chunk, float2 bonus, int c, int lane,
                                             WkvChunkShared<T, kStates>& shared, uint32_t* w) {
  constexpr int kParts = WkvChunkShared<T, kStates>::kParts;
  float2 sum = make_float2(0.f, 0.f);  // L_t
  const auto set_factors = [&](int t, float2 decay) {
    const float2 key = chunk.Key(t, lane, decay);
    uint32_t parts[kParts];
    const int to = (c * kChunkRows + t) * kFactorRow + lane;
    if constexpr (!kStates) {
      const float2 query = Unpack2<T>(chunk.r[t * kWordsOfRow + lane]);
      // The lane's share of r u k takes the place of its w.
      w[t * kWordsOfRow + lane] = std::bit_cast<uint32_t>(query.x * (bonus.x * key.x) + query.y * (bonus.y * key.y));
      Split<T>(query.x * FastExp2(sum.x), query.y * FastExp2(sum.y), parts);
#pragma unroll
      for (int p = 0; p < kParts; ++p) shared.query_factor[p][to] = parts[p];
    }
    sum.x += decay.x;
    sum.y += decay.y;
    Split<T>(key.x * FastExp2(-sum.x), key.y * FastExp2(-sum.y), parts);
#pragma unroll
    for (int p = 0; p < kParts; ++p) shared.key_factor[p][to] = parts[p];
  };
  // Half of all work is here: no branches.
  if (chunk.rows == kChunkRows && chunk.x.w != nullptr) {
#pragma unroll 8
    for (int t = 0; t < kChunkRows; ++t) {
      const float2 both = Unpack2<T>(w[t * kWordsOfRow + lane]);
      set_factors(t, make_float2(LogDecay(both.x), LogDecay(both.y)));
    }
  } else {
#pragma unroll 1
    for (int t = 0; t < kChunkRows; ++t) set_factors(t, chunk.Decay(t, lane));
  }
  return sum;
}

// Zeros in K for those of the lane's keys that fade fast, so that they do not count in R K^T.
template <typename T, bool kStates>
__device__ __forceinline__ void ClearFastFactors(bool fast_even, bool fast_odd, int c, int lane,
                                                 WkvChunkShared<T, kStates>& shared) {
  const uint32_t kept = (fast_even ? 0u : 0x0000FFFFu) | (fast_odd ? 0u : 0xFFFF0000u);
#pragma unroll 1
  for (int t = 0; t < kChunkRows; ++t) {
#pragma unroll
    for (int p = 0; p < WkvChunkShared<T, kStates>::kParts; ++p) {
      shared.key_factor[p][(c * kChunkRows + t) * kFactorRow + lane] &= kept;
    }
  }
}

// a = R K^T, masked places among them.
template <typename T, bool kStates>
__device__ __forceinline__ void MultiplyFactors(int c, int lane, const WkvChunkShared<T, kStates>& shared,
                                                ChunkPairs& a) {
  constexpr int kParts = WkvChunkShared<T, kStates>::kParts;
#pragma unroll
  for (int i = 0; i < kChunkHeadSize; i += 16) {
    uint32_t query[kParts][4], key[kParts][4], low[kParts][2], high[kParts][2];
#pragma unroll
    for (int p = 0; p < kParts; ++p) {
      LdMatrix4(query[p], shared.query_factor[p] + (c * kChunkRows + lane % 16) * kFactorRow + i / 2 + lane / 16 * 4);
      LdMatrix4(key[p], shared.key_factor[p] + (c * kChunkRows + lane % 8 + lane / 16 * 8) * kFactorRow + i / 2 +
                            lane / 8 % 2 * 4);
      low[p][0] = key[p][0], low[p][1] = key[p][1], high[p][0] = key[p][2], high[p][1] = key[p][3];
    }
    MmaParts<kParts>(a[0], query, low);
    MmaParts<kParts>(a[1], query, high);
  }
}

// r u k of row lane % 16, from the shares in w.
__device__ __forceinline__ float SumShares(const uint32_t* w, int lane) {
  float own = 0;
  const uint32_t* const shares = w + lane % 16 * kWordsOfRow;
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    // All rows begin at the same bank, so each of eight lanes begins at another place of its row.
    const auto four = *reinterpret_cast<const Vec<uint32_t, 4>*>(shares + (lane / 16 * 4 + j + lane) % 8 * 4);
#pragma unroll
    for (int i = 0; i < 4; ++i) own += std::bit_cast<float>(four.v[i]);
  }
  return own + ShflXor(own, 16);
}

// A: what is above the diagonal becomes zero, the diagonal r u k; below it the exact pairs in `exact` are added, if
// any.
__device__ __forceinline__ void MaskPairs(float own, const uint32_t* exact, int lane, ChunkPairs& a) {
  const float own_low = Shfl(own, lane / 4), own_high = Shfl(own, lane / 4 + 8);
#pragma unroll
  for (int tile = 0; tile < 2; ++tile) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int t = lane / 4 + i / 2 * 8, s = tile * 8 + lane % 4 * 2 + i % 2;
      float& to = a[tile][i];
      if (s < t) {
        if (exact != nullptr) to += std::bit_cast<float>(exact[t * kWordsOfRow + s]);
      } else {
        to = s > t ? 0.f : (i < 2 ? own_low : own_high);
      }
    }
  }
}

// A as the first operand of the product with V.
template <typename T, bool kStates>
__device__ __forceinline__ void StorePairs(const ChunkPairs& a, int c, int lane, WkvChunkShared<T, kStates>& shared) {
  constexpr int kParts = WkvChunkShared<T, kStates>::kParts;
  uint32_t words[4][kParts];
  Split<T>(a[0][0], a[0][1], words[0]);
  Split<T>(a[0][2], a[0][3], words[1]);
  Split<T>(a[1][0], a[1][1], words[2]);
  Split<T>(a[1][2], a[1][3], words[3]);
#pragma unroll
  for (int p = 0; p < kParts; ++p) {
    shared.pairs[c][p][lane] = {{words[0][p], words[1][p], words[2][p], words[3][p]}};
  }
}

// R, K, A and decays of chunk c of the tile, by one warp.
template <bool kStates, typename T, bool kOneMinusKeys>
__device__ void PrepareChunk(const WkvChunk<T, kOneMinusKeys>& chunk, float2 bonus, int c, int lane,
                             WkvChunkShared<T, kStates>& shared) {
  constexpr int kParts = WkvChunkShared<T, kStates>::kParts;
  uint32_t* const w = reinterpret_cast<uint32_t*>(shared.w) + c * kChunkRows * kWordsOfRow;
  const float2 sum = SetFactors(chunk, bonus, c, lane, shared, w);
  shared.decay[c][2 * lane] = FastExp2(sum.x);
  shared.decay[c][2 * lane + 1] = FastExp2(sum.y);
  const bool fast_even = !(sum.x >= -kFadeMax), fast_odd = !(sum.y >= -kFadeMax);
  const uint32_t even = Ballot(fast_even), odd = Ballot(fast_odd);
  const bool some_fast = (even | odd) != 0;
  if (lane == 0) {
    shared.fast[c][0] = even;
    shared.fast[c][1] = odd;
  }
  if constexpr (!kStates) {
    if (some_fast) ClearFastFactors(fast_even, fast_odd, c, lane, shared);
    __syncwarp();
    ChunkPairs a = {};
    MultiplyFactors(c, lane, shared, a);
    const float own = chunk.x.bonus != nullptr ? SumShares(w, lane) : 0.f;
    if (some_fast) {
      __syncwarp();  // the shares have been read
      AddExactPairs(chunk, even, odd, lane, w);
      __syncwarp();
    }
    MaskPairs(own, some_fast ? w : nullptr, lane, a);
    StorePairs(a, c, lane, shared);
  }
  if (some_fast) {
    __syncwarp();  // all have read K as it was
    SetFastFactors<kParts>(chunk, fast_even, fast_odd, lane, shared.key_factor[0] + c * kChunkRows * kFactorRow,
                           WkvChunkShared<T, kStates>::kFactorWords);
  }
}

}  // namespace goldfinch::cuda

#endif  // GOLDFINCH_KERNELS_CUDA_WKV_CHUNK_PREPARE_H_
