// Linear attention on the matrix units, head size 64, 16-bit activations: 16 rows (a chunk) at a time. A warp prepares
// its chunk in wkv_chunk_prepare.h.
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
// A block has one head of a segment: rows of a sequence that follow each other. Each of its four warps prepares one
// chunk of a tile of 64 rows (R, K, A); then all go through the four chunks in order, each for 16 value columns. The
// state lies in the accumulators of K^T V turned over, [value, key]: two of them, packed, are what R S wants as its
// second operand. The next tile's rows are on their way meanwhile.
//
// A product would carry a NaN in a masked place into its result. So A is masked by choice, not multiplication, and
// where A V is not finite it is summed again without the masked part (SumBelow).
//
// Factors are rounded to bf16, because fp16 does not have the range. With fp16 activations they have two parts, of
// which the second is what the first rounds off, and every product is three.
#ifndef GOLDFINCH_KERNELS_CUDA_WKV_CHUNK_H_
#define GOLDFINCH_KERNELS_CUDA_WKV_CHUNK_H_

#include <cstdint>

#include "kernels/cuda/device.h"
#include "kernels/cuda/wkv_chunk_prepare.h"
#include "kernels/cuda/wkv_recurrence.h"

namespace goldfinch::cuda {

// Rows that follow each other in a sequence, from one state to another.
struct WkvSegment {
  int32_t row_begin;
  int32_t row_count;
  const float* from;  // [H, 64, 64], or null: zeros
  float* to;          // [H, 64, 64], or null: not kept
  float* decay;       // [H, 64]: of keys, from state to state; only where nothing but states is asked for
};

// --- What a warp does with a tile ------------------------------------------------------------------------------------

// What a warp works on: 16 value columns of a head of a segment.
template <typename T, bool kStates>
struct WkvWarp {
  const WkvTensors<T>& x;
  const WkvSegment segment;
  const int head;
  const int lane;
  const int warp;
  const int64_t width;
  const int64_t begin;  // of the head in the segment's first row

  // Block (head of a segment).
  __device__ WkvWarp(const WkvTensors<T>& tensors, const WkvSegment* segments)
      : x(tensors),
        segment(segments[blockIdx.x / tensors.heads]),
        head(static_cast<int>(blockIdx.x) % tensors.heads),
        lane(threadIdx.x % kWarp),
        warp(static_cast<int>(threadIdx.x) / kWarp),
        width(int64_t{tensors.heads} * kChunkHeadSize),
        begin(segment.row_begin * width + int64_t{head} * kChunkHeadSize) {}

  // Starts the copy of the warp's own rows of a tile: 8 lanes a row, so that a load takes four whole lines.
  __device__ __forceinline__ void CopyRows(int tile_row, int buffer, WkvChunkShared<T, kStates>& shared) const {
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
  }
  // The warp's own chunk of a tile, of which `rows` are left.
  template <bool kOneMinusKeys>
  __device__ __forceinline__ WkvChunk<T, kOneMinusKeys> OwnChunk(int tile_row, int rows,
                                                                 const WkvChunkShared<T, kStates>& shared) const {
    return {x,
            head,
            begin + (int64_t{tile_row} + warp * kChunkRows) * width,
            min(rows - warp * kChunkRows, kChunkRows),
            reinterpret_cast<const uint32_t*>(shared.r) + (kStates ? 0 : warp * kChunkRows * kWordsOfRow),
            reinterpret_cast<const uint32_t*>(shared.k) + warp * kChunkRows * kWordsOfRow};
  }
};

// The state as accumulators: state[tile][i] has key 8 tile + 2 (lane % 4) + i % 2, value column 16 warp + lane / 4 +
// i / 2 * 8.
using WkvState = float[8][4];

// Calls use(element of the accumulators, where it is in a tensor of states).
template <typename Use>
__device__ __forceinline__ void ForEachStateElement(int head, int warp, int lane, WkvState& state, Use use) {
  const int64_t at = int64_t{head} * kStateSize + lane % 4 * 2 * kChunkHeadSize + warp * 16 + lane / 4;
#pragma unroll
  for (int tile = 0; tile < 8; ++tile) {
#pragma unroll
    for (int i = 0; i < 4; ++i) use(state[tile][i], at + (tile * 8 + i % 2) * kChunkHeadSize + i / 2 * 8);
  }
}

// V of the warp's columns, from row `row` of the tile on, as second operand of A V and first of V^T K.
template <typename T, int kParts>
__device__ __forceinline__ void LoadValues(const T* tile, int row, int warp, int lane, uint32_t (&v)[kParts][4]) {
  LdMatrix4Trans(v[0], tile + (row + lane % 8 + lane / 16 * 8) * kChunkLd + warp * 16 + lane / 8 % 2 * 8);
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

// y = A V. `values` is the chunk's first row of V.
template <typename T, int kParts>
__device__ __forceinline__ void MultiplyPairs(const Vec<uint32_t, 4> (&pairs)[kParts][kWarp], const T* values,
                                              const uint32_t (&v)[kParts][4], bool has_bonus, int warp, int lane,
                                              float (&y)[2][4]) {
  uint32_t a[kParts][4];
#pragma unroll
  for (int p = 0; p < kParts; ++p) {
    const Vec<uint32_t, 4> words = pairs[p][lane];
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
  if (Ballot(!(any - any == 0)) == 0) return;
#pragma unroll 1
  for (int element = 0; element < 8; ++element) {
    const int row_of = lane / 4 + element % 4 / 2 * 8;
    const int column = warp * 16 + element / 4 * 8 + lane % 4 * 2 + element % 2;
    const float sum = SumBelow<T, kParts>(pairs, values + column, row_of, has_bonus);
    // Registers have no run-time indices.
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      if (j == element) y[j / 4][j % 4] = sum;
    }
  }
}

// y += R S, for the chunk from row `row` of the tile on.
template <typename T, bool kStates>
__device__ __forceinline__ void AddStateProduct(const WkvChunkShared<T, kStates>& shared, const WkvState& state,
                                                int row, int lane, float (&y)[2][4]) {
  constexpr int kParts = WkvChunkShared<T, kStates>::kParts;
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
}

// y to the rows of the segment from `row` on. Lanes swap so that each has four columns in a row, and stores fill whole
// sectors.
template <typename T, bool kStates>
__device__ __forceinline__ void StoreOut(const WkvWarp<T, kStates>& at, int row, const float (&y)[2][4]) {
  const bool odd = at.lane % 2 != 0;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float* const low = y[0] + 2 * half;
    const float* const high = y[1] + 2 * half;
    const float other0 = ShflXor(odd ? low[0] : high[0], 1), other1 = ShflXor(odd ? low[1] : high[1], 1);
    float four[4] = {odd ? other0 : low[0], odd ? other1 : low[1], odd ? high[0] : other0, odd ? high[1] : other1};
    const int at_row = row + at.lane / 4 + half * 8;
    if (at_row < at.segment.row_count) {
      T* const to = at.x.out + at.begin + at_row * at.width + at.warp * 16 + (odd ? 8 : 0) + at.lane % 4 / 2 * 4;
      if (at.x.accumulate) {
        float before[4];
        LoadFloats<4>(to, before);
#pragma unroll
        for (int j = 0; j < 4; ++j) four[j] += before[j];
      }
      StoreFloats<4>(four, to);
    }
  }
}

// The state times 2^L, for the keys that fade fast or for the others; for all keys if there are no fast ones.
template <typename T, bool kStates>
__device__ __forceinline__ void Fade(const WkvChunkShared<T, kStates>& shared, int c, bool fast, int lane,
                                     WkvState& state) {
  const uint32_t even = shared.fast[c][0], odd = shared.fast[c][1];
  const bool some_fast = (even | odd) != 0;
#pragma unroll
  for (int tile = 0; tile < 8; ++tile) {
    float decay[2];
    LoadFloats<2>(shared.decay[c] + tile * 8 + lane % 4 * 2, decay);
    const int bit = tile * 4 + lane % 4;
    const bool fades0 = !some_fast || ((even >> bit & 1) != 0) == fast;
    const bool fades1 = !some_fast || ((odd >> bit & 1) != 0) == fast;
#pragma unroll
    for (int i = 0; i < 4; i += 2) {
      if (fades0) state[tile][i] *= decay[0];
      if (fades1) state[tile][i + 1] *= decay[1];
    }
  }
}

// S' = 2^L (S + K^T V); for keys that fade fast 2^L S + K^T V.
template <typename T, bool kStates, int kParts>
__device__ __forceinline__ void UpdateState(const WkvChunkShared<T, kStates>& shared, int c, int lane,
                                            const uint32_t (&v)[kParts][4], WkvState& state) {
  if ((shared.fast[c][0] | shared.fast[c][1]) != 0) Fade(shared, c, /*fast=*/true, lane, state);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    uint32_t key[kParts][4], low[kParts][2], high[kParts][2];
#pragma unroll
    for (int p = 0; p < kParts; ++p) {
      LdMatrix4Trans(key[p], shared.key_factor[p] + (c * kChunkRows + lane % 16) * kFactorRow + i * 8 + lane / 16 * 4);
      low[p][0] = key[p][0], low[p][1] = key[p][1], high[p][0] = key[p][2], high[p][1] = key[p][3];
    }
    MmaParts<kParts>(state[2 * i], v, low);
    MmaParts<kParts>(state[2 * i + 1], v, high);
  }
  Fade(shared, c, /*fast=*/false, lane, state);
}

// --- The kernel ------------------------------------------------------------------------------------------------------

template <typename T, bool kStates, bool kOneMinusKeys>
__global__ void __launch_bounds__(kChunkThreads, WkvChunkShared<T, kStates>::kBlocks)
    WkvChunksKernel(const WkvTensors<T> x, const WkvSegment* segments) {
  using Shared = WkvChunkShared<T, kStates>;
  Shared& shared = *DynamicShared<Shared>();
  const WkvWarp<T, kStates> at(x, segments);
  const int lane = at.lane, warp = at.warp, row_count = at.segment.row_count;
  at.CopyRows(0, 0, shared);

  float2 bonus = make_float2(0.f, 0.f);
  const int64_t keys = int64_t{at.head} * kChunkHeadSize + 2 * lane;
  if (!kStates && x.bonus != nullptr) bonus = make_float2(x.bonus[keys], x.bonus[keys + 1]);
  WkvState state = {};
  if (at.segment.from != nullptr) {
    ForEachStateElement(at.head, warp, lane, state, [&](float& s, int64_t from) { s = at.segment.from[from]; });
  }
  float segment_decay = 1;

  for (int tile_row = 0, buffer = 0; tile_row < row_count; tile_row += kTileRows, buffer ^= 1) {
    CopyAsyncWait<0>();
    __syncwarp();
    const int rows = row_count - tile_row;
    if (warp * kChunkRows < rows) {
      PrepareChunk<kStates>(at.template OwnChunk<kOneMinusKeys>(tile_row, rows, shared), bonus, warp, lane, shared);
    }
    __syncwarp();
    if (tile_row + kTileRows < row_count) at.CopyRows(tile_row + kTileRows, buffer ^ 1, shared);
    __syncthreads();  // all chunks have been prepared

    const int chunks = min(CeilDiv(rows, kChunkRows), kChunksOfTile);
    for (int c = 0; c < chunks; ++c) {
      const int row = c * kChunkRows;
      uint32_t v[Shared::kParts][4];
      LoadValues(shared.v[buffer], row, warp, lane, v);
      if constexpr (!kStates) {
        float y[2][4] = {};
        MultiplyPairs(shared.pairs[c], shared.v[buffer] + row * kChunkLd, v, x.bonus != nullptr, warp, lane, y);
        AddStateProduct(shared, state, row, lane, y);
        StoreOut(at, tile_row + row, y);
      }
      UpdateState(shared, c, lane, v, state);
      if constexpr (kStates) {
        if (threadIdx.x < kChunkHeadSize) segment_decay *= shared.decay[c][threadIdx.x];
      }
    }
    __syncthreads();  // all chunks have been used
  }

  if (at.segment.to != nullptr) {
    ForEachStateElement(at.head, warp, lane, state, [&](float& s, int64_t to) { at.segment.to[to] = s; });
  }
  if constexpr (kStates) {
    if (threadIdx.x < kChunkHeadSize) at.segment.decay[at.head * kChunkHeadSize + threadIdx.x] = segment_decay;
  }
}

// --- Scan ------------------------------------------------------------------------------------------------------------

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
