// Linear attention on the matrix units, head size 64, 16-bit activations: 16 rows (a chunk) at a time.
//
// With l = log2 of a row's decay, L_t its sum over the rows of the chunk before row t, and L their total, per key i:
//   A_ts = sum over i of r_ti k_si 2^(L_t - L_(s+1)), s < t
//   y_t  = (r_t 2^L_t) S + sum over s < t of A_ts v_s + (r_t u k_t) v_t
//   S'   = 2^L (S + sum over s of (k_s 2^-L_(s+1)) v_s)
// so that two products with the factors R = r 2^L_t and K = k 2^-L_(s+1) are all there is: A = R K^T, y = A V + R S,
// S' = 2^L (S + K^T V). R's factors are at most 1. K's grow to 2^-L, as much as a key fades within the chunk: for keys
// that fade by more than 2^-kFadeMax (or by NaN) the chunk takes K = k 2^(L - L_(s+1)), whose factors are at most 1, in
// S' = 2^L S + K^T V, and their part of A is summed exactly, row by row (AddExactPairs). Nothing is clamped.
//
// A block has one head of a segment: rows of a sequence that follow each other. Its four warps prepare a chunk each of
// a tile of 64 rows (R, K, A), then run through the four chunks in order, 16 value columns of the state each. The state
// lies in the accumulators of K^T V turned over, [value, key]: two of them, packed, are what R S wants as its second
// operand. The next tile's rows are on their way meanwhile.
//
// A product with masked elements would turn what NaN it meets in a masked place into the result: A is masked by
// choice, not multiplication, and where A V is not finite it is summed without the masked part (SumBelow).
//
// Factors are rounded to bf16, whatever the range of fp16 activations: those in two parts, the second one what the
// first rounds off, and three products for one.
#ifndef GOLDFINCH_KERNELS_CUDA_WKV_CHUNK_H_
#define GOLDFINCH_KERNELS_CUDA_WKV_CHUNK_H_

#include <bit>
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
constexpr int kStateSize = kChunkHeadSize * kChunkHeadSize;

// R and K stay within bf16 and fp32 for |k| < 2^47 and |r| > 2^-46.
constexpr float kFadeMax = 80;
constexpr float kLog2E = 1.44269504f;

// Rows that follow each other in a sequence, from one state to another.
struct WkvSegment {
  int32_t row_begin;
  int32_t row_count;
  const float* from;  // [H, 64, 64], or null: zeros
  float* to;          // [H, 64, 64], or null: not kept
  float* decay;       // [H, 64]: of keys, from state to state; only where nothing but states is asked for
};

// What a block shares. kStates: only the state is asked for, not y.
template <typename T, bool kStates>
struct ChunkShared {
  static constexpr int kParts = std::is_same_v<T, bf16_t> ? 1 : 2;
  static constexpr int kBlocks = kParts == 1 ? 3 : 2;  // that the shared memory of a multiprocessor holds (H100)
  static constexpr int kFactorWords = kTileRows * kChunkLd / 2;

  // As they come from memory. A warp's rows are its own; once it has prepared them, w's place is its to scribble on.
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

// The range of fp16 is not enough; see above.
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

// A chunk of one head, as the warp that prepares it sees it. A lane has keys 2 lane and 2 lane + 1.
template <typename T, bool kOneMinusKeys>
struct Chunk {
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

// The keys of bits `even` and `odd`: A_ts over s < t, exactly, into pairs[t * kWordsOfRow + s], as floats. Lane s % 16
// has the column s, half of the keys each half of the warp.
template <typename T, bool kOneMinusKeys>
__device__ void AddExactPairs(const Chunk<T, kOneMinusKeys>& chunk, uint32_t even, uint32_t odd, int lane,
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

// K = k 2^(L - L_(s+1)) of the lane's keys that fade fast. Parts of K are `part_stride` apart.
template <int kParts, typename T, bool kOneMinusKeys>
__device__ void SetFastFactors(const Chunk<T, kOneMinusKeys>& chunk, bool fast_even, bool fast_odd, int lane,
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

// R, K, A and decays of one chunk, by one warp.
template <bool kStates, typename T, bool kOneMinusKeys>
__device__ void PrepareChunk(const Chunk<T, kOneMinusKeys>& chunk, float2 bonus, int c, int lane,
                             ChunkShared<T, kStates>& shared) {
  constexpr int kParts = ChunkShared<T, kStates>::kParts;
  constexpr int kFactorRow = kChunkLd / 2;
  uint32_t* const w = reinterpret_cast<uint32_t*>(shared.w) + c * kChunkRows * kWordsOfRow;
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
  shared.decay[c][2 * lane] = FastExp2(sum.x);
  shared.decay[c][2 * lane + 1] = FastExp2(sum.y);
  const bool fast_even = !(sum.x >= -kFadeMax), fast_odd = !(sum.y >= -kFadeMax);
  const uint32_t even = Ballot(fast_even), odd = Ballot(fast_odd);
  if (lane == 0) {
    shared.fast[c][0] = even;
    shared.fast[c][1] = odd;
  }

  if constexpr (!kStates) {
    if ((even | odd) != 0) {
      const uint32_t kept = (fast_even ? 0u : 0x0000FFFFu) | (fast_odd ? 0u : 0xFFFF0000u);
#pragma unroll 1
      for (int t = 0; t < kChunkRows; ++t) {
#pragma unroll
        for (int p = 0; p < kParts; ++p) shared.key_factor[p][(c * kChunkRows + t) * kFactorRow + lane] &= kept;
      }
    }
    __syncwarp();
    float a[2][4] = {};
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
    float own = 0;  // r u k of row lane % 16
    if (chunk.x.bonus != nullptr) {
      const uint32_t* const shares = w + lane % 16 * kWordsOfRow;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        // Rows begin at one bank: each lane of eight begins elsewhere.
        const auto four = *reinterpret_cast<const Vec<uint32_t, 4>*>(shares + (lane / 16 * 4 + j + lane) % 8 * 4);
#pragma unroll
        for (int i = 0; i < 4; ++i) own += std::bit_cast<float>(four.v[i]);
      }
      own += ShflXor(own, 16);
    }
    const float own_low = Shfl(own, lane / 4), own_high = Shfl(own, lane / 4 + 8);
    if ((even | odd) != 0) {
      __syncwarp();  // the shares have been read
      AddExactPairs(chunk, even, odd, lane, w);
      __syncwarp();
    }
#pragma unroll
    for (int tile = 0; tile < 2; ++tile) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int t = lane / 4 + i / 2 * 8, s = tile * 8 + lane % 4 * 2 + i % 2;
        float& to = a[tile][i];
        if (s < t) {
          if ((even | odd) != 0) to += std::bit_cast<float>(w[t * kWordsOfRow + s]);
        } else {
          to = s > t ? 0.f : (i < 2 ? own_low : own_high);
        }
      }
    }
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
  if ((even | odd) != 0) {
    __syncwarp();  // all have read K as it was
    SetFastFactors<kParts>(chunk, fast_even, fast_odd, lane, shared.key_factor[0] + c * kChunkRows * kFactorRow,
                           ChunkShared<T, kStates>::kFactorWords);
  }
}

// A V of one element, without what is masked: rows s < t, and t itself if there is a bonus.
template <typename T, int kParts>
__device__ float SumBelow(const Vec<uint32_t, 4> (&pairs)[kParts][kWarp], const T* v, int t, bool has_bonus) {
  float sum = 0;
  for (int s = 0; s < (has_bonus ? t + 1 : t); ++s) {
    const int lane = t % 8 * 4 + s % 8 / 2, word = t / 8 + s / 8 * 2;
    float pair = 0;
    for (int p = 0; p < kParts; ++p) {
      const float2 both = Unpack2<bf16_t>(pairs[p][lane].v[word]);
      pair += s % 2 == 0 ? both.x : both.y;
    }
    sum += pair * ToFloat(v[s * kChunkLd]);
  }
  return sum;
}

// Block (head of a segment).
template <typename T, bool kStates, bool kOneMinusKeys>
__global__ void __launch_bounds__(kChunkThreads, ChunkShared<T, kStates>::kBlocks)
    WkvChunksKernel(const WkvTensors<T> x, const WkvSegment* segments) {
  using Shared = ChunkShared<T, kStates>;
  constexpr int kParts = Shared::kParts;
  constexpr int kFactorRow = kChunkLd / 2;
  Shared& shared = *DynamicShared<Shared>();
  const WkvSegment segment = segments[blockIdx.x / x.heads];
  const int head = static_cast<int>(blockIdx.x) % x.heads;
  const int lane = threadIdx.x % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  const int64_t width = int64_t{x.heads} * kChunkHeadSize;
  const int64_t begin = segment.row_begin * width + int64_t{head} * kChunkHeadSize;

  // A warp's own rows of a tile: 8 lanes a row, so that a load takes four whole lines.
  const auto load_rows = [&](int tile_row, int buffer) {
#pragma unroll
    for (int i = 0; i < kChunkRows / 4; ++i) {
      const int row = warp * kChunkRows + i * 4 + lane / 8, column = lane % 8 * 8;
      const bool there = tile_row + row < segment.row_count;
      const int64_t from = begin + (there ? tile_row + row : 0) * width + column;
      const int to = row * kChunkHeadSize + column;
      if constexpr (!kStates) CopyAsync16(shared.r + to, x.r + from, there);
      CopyAsync16(shared.k + to, x.k + from, there);
      if (x.w != nullptr) CopyAsync16(shared.w + to, x.w + from, there);
      CopyAsync16(shared.v[buffer] + row * kChunkLd + column, x.v + from, there);
    }
    CopyAsyncCommit();
  };
  load_rows(0, 0);

  float2 bonus = make_float2(0.f, 0.f);
  const int64_t keys = int64_t{head} * kChunkHeadSize + 2 * lane;
  if (!kStates && x.bonus != nullptr) bonus = make_float2(x.bonus[keys], x.bonus[keys + 1]);

  // state[tile][i]: key 8 tile + 2 (lane % 4) + i % 2, value column 16 warp + lane / 4 + i / 2 * 8.
  const int64_t state_at = int64_t{head} * kStateSize + lane % 4 * 2 * kChunkHeadSize + warp * 16 + lane / 4;
  float state[8][4] = {};
  if (segment.from != nullptr) {
#pragma unroll
    for (int tile = 0; tile < 8; ++tile) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        state[tile][i] = segment.from[state_at + (tile * 8 + i % 2) * kChunkHeadSize + i / 2 * 8];
      }
    }
  }
  float segment_decay = 1;

  for (int tile_row = 0, buffer = 0; tile_row < segment.row_count; tile_row += kTileRows, buffer ^= 1) {
    CopyAsyncWait<0>();
    __syncwarp();
    const int rows = segment.row_count - tile_row;
    if (warp * kChunkRows < rows) {
      const Chunk<T, kOneMinusKeys> chunk{
          x,
          head,
          begin + (int64_t{tile_row} + warp * kChunkRows) * width,
          min(rows - warp * kChunkRows, kChunkRows),
          reinterpret_cast<const uint32_t*>(shared.r) + (kStates ? 0 : warp * kChunkRows * kWordsOfRow),
          reinterpret_cast<const uint32_t*>(shared.k) + warp * kChunkRows * kWordsOfRow};
      PrepareChunk<kStates>(chunk, bonus, warp, lane, shared);
    }
    __syncwarp();
    if (tile_row + kTileRows < segment.row_count) load_rows(tile_row + kTileRows, buffer ^ 1);
    __syncthreads();  // all chunks have been prepared

    const int chunks = min(CeilDiv(rows, kChunkRows), kChunksOfTile);
    for (int c = 0; c < chunks; ++c) {
      const int row = c * kChunkRows;
      uint32_t v[kParts][4];
      LdMatrix4Trans(v[0],
                     shared.v[buffer] + (row + lane % 8 + lane / 16 * 8) * kChunkLd + warp * 16 + lane / 8 % 2 * 8);
      if constexpr (kParts == 2) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float2 both = Unpack2<T>(v[0][i]);
          uint32_t parts[kParts];
          Split<T>(both.x, both.y, parts);
          v[0][i] = parts[0];
          v[1][i] = parts[1];
        }
      }

      if constexpr (!kStates) {
        float y[2][4] = {};
        uint32_t a[kParts][4];
#pragma unroll
        for (int p = 0; p < kParts; ++p) {
          const Vec<uint32_t, 4> words = shared.pairs[c][p][lane];
#pragma unroll
          for (int i = 0; i < 4; ++i) a[p][i] = words.v[i];
        }
#pragma unroll
        for (int tile = 0; tile < 2; ++tile) {
          uint32_t b[kParts][2];
#pragma unroll
          for (int p = 0; p < kParts; ++p) b[p][0] = v[p][tile], b[p][1] = v[p][2 + tile];
          MmaParts<kParts>(y[tile], a, b);
        }
        // What is not finite in v is in every row of its column by now.
        const float any = (y[0][0] + y[0][1]) + (y[1][0] + y[1][1]);
        if (Ballot(!(any - any == 0)) != 0) {
#pragma unroll 1
          for (int element = 0; element < 8; ++element) {
            const int row_of = lane / 4 + element % 4 / 2 * 8;
            const int column = warp * 16 + element / 4 * 8 + lane % 4 * 2 + element % 2;
            const float sum = SumBelow<T, kParts>(shared.pairs[c], shared.v[buffer] + row * kChunkLd + column, row_of,
                                                  x.bonus != nullptr);
            // Registers have no run-time indices.
#pragma unroll
            for (int j = 0; j < 8; ++j) {
              if (j == element) y[j / 4][j % 4] = sum;
            }
          }
        }
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          uint32_t query[kParts][4], b[2][kParts][2];
#pragma unroll
          for (int p = 0; p < kParts; ++p) {
            LdMatrix4(query[p], shared.query_factor[p] + (row + lane % 16) * kFactorRow + i * 8 + lane / 16 * 4);
          }
#pragma unroll
          for (int tile = 0; tile < 2; ++tile) {
#pragma unroll
            for (int j = 0; j < 2; ++j) {
              uint32_t parts[kParts];
              Split<T>(state[2 * i + j][2 * tile], state[2 * i + j][2 * tile + 1], parts);
#pragma unroll
              for (int p = 0; p < kParts; ++p) b[tile][p][j] = parts[p];
            }
            MmaParts<kParts>(y[tile], query, b[tile]);
          }
        }
        // Lanes swap so that each has four columns in a row, and stores fill whole sectors.
        const bool odd = lane % 2 != 0;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const float* const low = y[0] + 2 * half;
          const float* const high = y[1] + 2 * half;
          const float other0 = ShflXor(odd ? low[0] : high[0], 1), other1 = ShflXor(odd ? low[1] : high[1], 1);
          float four[4] = {odd ? other0 : low[0], odd ? other1 : low[1], odd ? high[0] : other0,
                           odd ? high[1] : other1};
          const int at_row = tile_row + row + lane / 4 + half * 8;
          if (at_row < segment.row_count) {
            T* const to = x.out + begin + at_row * width + warp * 16 + (odd ? 8 : 0) + lane % 4 / 2 * 4;
            if (x.accumulate) {
              float before[4];
              LoadFloats<4>(to, before);
#pragma unroll
              for (int j = 0; j < 4; ++j) four[j] += before[j];
            }
            StoreFloats<4>(four, to);
          }
        }
      }

      const uint32_t even = shared.fast[c][0], odd_keys = shared.fast[c][1];
      const bool some_fast = (even | odd_keys) != 0;
      const auto fade = [&](bool fast) {
#pragma unroll
        for (int tile = 0; tile < 8; ++tile) {
          float decay[2];
          LoadFloats<2>(shared.decay[c] + tile * 8 + lane % 4 * 2, decay);
          const int bit = tile * 4 + lane % 4;
          const bool fades0 = !some_fast || ((even >> bit & 1) != 0) == fast;
          const bool fades1 = !some_fast || ((odd_keys >> bit & 1) != 0) == fast;
#pragma unroll
          for (int i = 0; i < 4; i += 2) {
            if (fades0) state[tile][i] *= decay[0];
            if (fades1) state[tile][i + 1] *= decay[1];
          }
        }
      };
      if (some_fast) fade(true);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        uint32_t key[kParts][4], low[kParts][2], high[kParts][2];
#pragma unroll
        for (int p = 0; p < kParts; ++p) {
          LdMatrix4Trans(key[p], shared.key_factor[p] + (row + lane % 16) * kFactorRow + i * 8 + lane / 16 * 4);
          low[p][0] = key[p][0], low[p][1] = key[p][1], high[p][0] = key[p][2], high[p][1] = key[p][3];
        }
        MmaParts<kParts>(state[2 * i], v, low);
        MmaParts<kParts>(state[2 * i + 1], v, high);
      }
      fade(false);
      if constexpr (kStates) {
        if (threadIdx.x < kChunkHeadSize) segment_decay *= shared.decay[c][threadIdx.x];
      }
    }
    __syncthreads();  // all chunks have been used
  }

  if (segment.to != nullptr) {
#pragma unroll
    for (int tile = 0; tile < 8; ++tile) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        segment.to[state_at + (tile * 8 + i % 2) * kChunkHeadSize + i / 2 * 8] = state[tile][i];
      }
    }
  }
  if constexpr (kStates) {
    if (threadIdx.x < kChunkHeadSize) segment.decay[head * kChunkHeadSize + threadIdx.x] = segment_decay;
  }
}

// The states that the segments of a sequence begin with, from what each makes of zeros.
struct WkvScan {
  const float* state;  // [H, 64, 64]: what the first begins with
  float* starts;  // [segments, H, 64, 64]: of each but the first, what the one before makes of zeros; to be changed
  const float* decay;  // [segments, H, 64]: of keys over the segment before
  int32_t segments;
};

constexpr int kScanThreads = 256;

// A thread has four value columns of a key; block (keys of all heads, sequence).
__global__ void __launch_bounds__(kScanThreads) WkvScanKernel(const WkvScan* scans, int heads) {
  const WkvScan scan = scans[blockIdx.y];
  const int64_t at = (int64_t{blockIdx.x} * kScanThreads + threadIdx.x) * 4;
  const int64_t stride = int64_t{heads} * kStateSize, key = at / kChunkHeadSize;
  float state[4];
  LoadFloats<4>(scan.state + at, state);
  StoreFloats<4>(state, scan.starts + at);
  // Loads do not pass stores to the same array by themselves.
  constexpr int kAhead = 6;
  for (int first = 1; first < scan.segments; first += kAhead) {
    float more[kAhead][4], decay[kAhead];
#pragma unroll
    for (int j = 0; j < kAhead; ++j) {
      if (first + j >= scan.segments) break;
      LoadFloats<4>(scan.starts + (first + j) * stride + at, more[j]);
      decay[j] = scan.decay[(int64_t{first} + j) * heads * kChunkHeadSize + key];
    }
#pragma unroll
    for (int j = 0; j < kAhead; ++j) {
      if (first + j >= scan.segments) break;
#pragma unroll
      for (int i = 0; i < 4; ++i) state[i] = decay[j] * state[i] + more[j][i];
      StoreFloats<4>(state, scan.starts + (first + j) * stride + at);
    }
  }
}

}  // namespace goldfinch::cuda

#endif  // GOLDFINCH_KERNELS_CUDA_WKV_CHUNK_H_
