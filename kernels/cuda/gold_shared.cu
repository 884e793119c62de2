// Attention over kept rows (tier T2): flash decoding (arXiv 2311.01282) in which tiles of keys and values are made from
// kk, the embedding and the LoRAs' tanh rows in registers, and never stored.
//
// The statistics of the norms are kept, so that columns of keys and values are independent and each warp has the 64 of
// one head. With q' = q * weight of the key norm:
//   score = scale_k (q' . kx + (up_k q') . h_k) - sum(q') mean_k scale_k
//   out   = (sum p scale_v vx + (sum p scale_v h_v) up_v - sum p mean_v scale_v) * weight + bias
// so that the LoRAs' up sides meet the query before and the sums after the positions, and only the mix is done for each
// position:
//   kx = kk + (prev(kk) - kk) * (mix_key + h_mix up_mix), 16 positions by 64 columns as accumulators of mma.m16n8k16,
//        which are the fragments of the next product, q' kx^T;
//   vx = likewise of xo = weight (emb scale - offset) + bias rms, with columns as rows of the accumulators, so that
//        they are the fragments of p vx.
//
// Counted for one layer and position, D = 2048, 32 heads, ranks 32 and 64, bf16, up to 16 query rows of a span:
//   device memory   kk 4096, embedding row 4096, tanh rows 384, input and factors 32: 8.6 KB (T3: 8.2). Rows of ids
//                   that are frequent come from the L2 cache: of text more than half, of random ids one in six
//   L2 cache        columns once and 1/16 more for the tile's row before, the rest once for each 4 heads: 12.4 KB
//   shared memory   12.4 KB in; 1.2 KB a head out, of which queries 0.25: 50 KB
//   matrix units    mix 2 * 32 * 2048, 16 rows of q' and p 2 * 16 * 2048, LoRAs 2 * 16 * 64 * 32 multiply-adds: 0.26 M,
//                   0.52 MFLOP (folded; 1.1 if keys and values were made whole)
//   instructions    of a warp, 16 positions of a head: 64 products, 150 for elements of keys (unpack, mix, pack) and
//   270
//                   for those of values, which are normed too, 36 ldmatrix, 90 for the softmax, 90 for copies and
//                   addresses: about 700, 1400 a position
// For 2^20 positions that is 3.1 ms of device memory at 2.9 TB/s (all ids random; 2.3 of text), 2.4 ms of the L2 cache,
// 1.8 ms of shared memory, 1.4 ms of the matrix units at 400 TFLOP/s, 1.6 ms of issue, 2.7 at the 60 % that 8 warps of
// a multiprocessor may reach. Reading and issue overlap but in part. The prediction for one layer, 1 to 16 rows:
//     32k positions  0.13 ms     T3 0.11 ms (kv_attention.cu), T0 0.75 ms (gold_attention.cu)
//     128k           0.49 ms     T3 0.42 ms                    T0 3.0 ms
//     1M             3.9 ms      T3 3.3 ms                     T0 24 ms
// 1.2 times T3 with ids drawn evenly from the vocabulary, which is what a benchmark does, and as fast as T3 with the
// ids of a text; a prompt's tail, 8 layers of 9 rows over 1M positions, 31 ms. What is read bounds it from below
// at 1.05 times T3 if no embedding row is found in a cache: xo in place of the embedding would be as many bytes, and
// double what is kept.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "kernels/cuda/attend.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/gold_shared.h"
#include "kernels/cuda/ops.h"

namespace goldfinch::cuda {
namespace {

constexpr float kLog2E = 1.4426950408889634f;
constexpr int kHead = 64;       // columns of a head
constexpr int kGroupHeads = 4;  // of a block, a warp each
constexpr int kColumns = kGroupHeads * kHead;
constexpr int kThreads = kGroupHeads * kWarp;
constexpr int kTile = 16;  // positions
constexpr int kRows = 16;  // query rows of a tile
constexpr int kMix = 32;   // ranks are filled up to these
constexpr int kLora = 64;
constexpr int kStages = 3;
constexpr int kMergeThreads = 256;
constexpr int kSplitUnit = 64;     // positions
constexpr int kBlocksPerUnit = 2;  // of a multiprocessor at once

// A tile of query rows.
struct KeptTile {
  int32_t span;
  int32_t row;       // of q
  int32_t rows;      // 1 to kRows
  int32_t slot_row;  // of the slots: where the first row of the first split is
};

struct KeptArguments {
  const KeptTile* tiles;
  const DeviceSpan* spans;
  SharedPages pages;
  int splits;
  int groups;  // of heads
  int heads;
  int mix_rank;
  int lora_rank;
  int64_t width;
  float score_scale;          // in units of log 2
  const void* queries;        // [rows, heads, 2, 64] of T: q' and up_k q'
  const void* embedding;      // [vocab, D] of T
  const float* ln0_weight;    // [D]
  const float* ln0_bias;      // [D]
  const float* mix_key;       // [D]
  const float* mix_value;     // [D]
  const void* mix_up;         // [2, m, D] of T
  const void* value_up;       // [m', D] of T
  const float* value_weight;  // [D]: of the value norm
  const float* value_bias;    // [D]
  float* slot_values;         // [slot rows, D]: sums of p scale_v vx
  float* slot_loras;          // [slot rows, heads, kLora]: of p scale_v h_v
  float* slot_maxima;         // [slot rows, heads], in units of log 2
  float* slot_sums;           // [slot rows, heads]
  float* slot_offsets;        // [slot rows, heads]: of p mean_v scale_v
};

__device__ constexpr float Infinity() { return std::numeric_limits<float>::infinity(); }

// What a maximum is subtracted as: where nothing was seen yet it is -infinity, which would give a NaN.
__device__ inline float Base(float maximum) { return maximum == -Infinity() ? 0.f : maximum; }

// Rows of 16-bit tiles in shared memory have their 16-byte pieces in an order of their own, so that the 8 rows of an
// 8x8 matrix lie in different banks.
template <int kRowColumns>
__device__ inline int PieceAt(int row, int piece) {
  return row * kRowColumns + (piece ^ (row & 7)) * 8;
}

// The positions of a tile's rows and those that a split has of them.
struct SplitRange {
  int64_t position;  // of the first row
  int64_t length;    // positions that the last row sees
  int64_t step;      // of a split

  __device__ SplitRange(const KeptArguments& a, const KeptTile& tile) {
    const DeviceSpan& span = a.spans[tile.span];
    position = span.position + tile.row - span.row_begin;
    length = position + tile.rows;
    step = CeilDiv<int64_t>(CeilDiv<int64_t>(length, a.splits), kSplitUnit) * kSplitUnit;
  }
};

// --- Fold -----------------------------------------------------------------------------------------------------------

// q' and up_k q' of a row and head: block (head, row - first_row), a warp an entry of the latter.
template <typename T>
__global__ void __launch_bounds__(kMergeThreads) FoldKernel(const T* q, int first_row, const float* key_weight,
                                                            const T* key_up, int lora_rank, int64_t width, T* queries) {
  const int lane = threadIdx.x % kWarp;
  const int64_t row = first_row + static_cast<int>(blockIdx.y), column = int64_t{blockIdx.x} * kHead + 2 * lane;
  const float2 pair = Unpack2<T>(*reinterpret_cast<const uint32_t*>(q + row * width + column));
  const uint32_t weighted = Pack2<T>(pair.x * key_weight[column], pair.y * key_weight[column + 1]);
  T* const to = queries + (row * gridDim.x + blockIdx.x) * (kHead + kLora);
  if (static_cast<int>(threadIdx.x) < kWarp) *reinterpret_cast<uint32_t*>(to + 2 * lane) = weighted;
  const float2 x = Unpack2<T>(weighted);
  for (int i = static_cast<int>(threadIdx.x) / kWarp; i < kLora; i += kMergeThreads / kWarp) {
    float2 up = make_float2(0, 0);
    if (i < lora_rank) up = Unpack2<T>(*reinterpret_cast<const uint32_t*>(key_up + i * width + column));
    // What is past the rank is zero, whatever the query.
    const float dot = WarpSum(i < lora_rank ? x.x * up.x + x.y * up.y : 0.f);
    if (lane == 0) to[kHead + i] = FromFloat<T>(dot);
  }
}

// --- Attend ---------------------------------------------------------------------------------------------------------

// A stage of the pipeline in shared memory. Row 0 of the wide ones is the position before the tile.
template <typename T>
struct Stage {
  T keys[(kTile + 1) * kColumns];
  T embeddings[(kTile + 1) * kColumns];
  T mix[kTile * 2 * kMix];  // tanh rows: key part, value part
  T key_lora[kTile * kLora];
  T value_lora[kTile * kLora];
  Vec<float, 4> factors[kTile];
  KeptInput inputs[kTile + 1];
  KeptInput unused[7];  // the next stage starts at a multiple of 128 bytes
};

template <typename T>
struct KeptShared {
  Stage<T> stages[kStages];
  T queries[kGroupHeads][2][kRows * kHead];  // q', up_k q'
  float mix_key[kColumns];
  float mix_value[kColumns];
  float ln0_weight[kColumns];
  float ln0_bias[kColumns];
};
static_assert(sizeof(Stage<uint16_t>) % 128 == 0);

// mix_up as fragments of mma: of 16 columns, 16 of the rank. As A they are [columns, rank] (a0 .. a3), as B [rank,
// columns]: {0, 2} of the first 8 columns, {1, 3} of the others.
__device__ inline void LoadMixUp(const uint16_t* up, int rank, int64_t width, int64_t column,
                                 uint32_t (&to)[kHead / 16][kMix / 16][4]) {
  const int lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4;
#pragma unroll
  for (int s = 0; s < kHead / 16; ++s) {
#pragma unroll
    for (int k = 0; k < kMix / 16; ++k) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int row = k * 16 + i / 2 * 8 + 2 * t;  // even, as is the rank
        const uint16_t* from = up + row * width + column + s * 16 + i % 2 * 8 + g;
        to[s][k][i] = row < rank ? from[0] | static_cast<uint32_t>(from[width]) << 16 : 0;
      }
    }
  }
}

// Adds p b to the sums of 8 columns. `sees` is the last position of the tile that row 0 sees; each row sees one more,
// and what a row does not see must not touch it, not even as 0 * NaN.
template <typename T>
__device__ inline void AddSeen(float (&sums)[4], const uint32_t (&p)[4], const uint32_t (&b)[2], int64_t sees,
                               int rows) {
  if (sees >= kTile - 1 || rows == 1) {
    Mma16816<T>(sums, p, b);
    return;
  }
  const int lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4;
#pragma unroll 1
  for (int row = 0; row < rows; ++row) {
    const int64_t last = sees + row;
    uint32_t seen[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int at = 8 * i + 2 * t;
      seen[i] = at + 1 <= last ? b[i] : at <= last ? b[i] & 0xFFFF : 0;
    }
    float part[4] = {0, 0, 0, 0};
    Mma16816<T>(part, p, seen);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (g + 8 * half != row) continue;
      sums[2 * half] += part[2 * half];
      sums[2 * half + 1] += part[2 * half + 1];
    }
  }
}

// Block (x, y): group x % groups of heads, split x / groups, tile y of query rows.
template <typename T>
__global__ void __launch_bounds__(kThreads, kBlocksPerUnit) KeptKernel(KeptArguments a) {
  KeptShared<T>& shared = *DynamicShared<KeptShared<T>>();
  const KeptTile tile = a.tiles[blockIdx.y];
  const int group = static_cast<int>(blockIdx.x) % a.groups, split = static_cast<int>(blockIdx.x) / a.groups;
  const int lane = threadIdx.x % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp, g = lane / 4, t = lane % 4;
  const SplitRange range(a, tile);
  const int64_t begin = split * range.step;
  if (begin >= range.length) return;
  const int64_t end = begin + range.step < range.length ? begin + range.step : range.length;
  const int tiles = static_cast<int>((end - begin + kTile - 1) / kTile);
  const int32_t* const table = a.spans[tile.span].kept;
  const int64_t group_column = int64_t{group} * kColumns;
  const int head = group * kGroupHeads + warp;
  const int64_t column = group_column + warp * kHead;
  const bool there = head < a.heads;

  // Where a row of a tile is, one a lane: fetched a tile ahead, because the embedding's row is known by the id.
  struct Place {
    int32_t page;  // -1: nothing there
    int32_t row;   // of the page
    KeptInput input;
  };
  const auto fetch = [&](int index) {
    Place place = {-1, 0, {0, 0, 0, 0}};
    const int64_t position = begin + int64_t{index} * kTile - 1 + lane;
    if (lane > kTile || position < 0 || position >= end) return place;
    const auto at = static_cast<uint32_t>(position), tokens = static_cast<uint32_t>(a.pages.page_tokens);
    place.page = table[at / tokens];
    place.row = static_cast<int32_t>(at % tokens);
    const char* page = a.pages.data + place.page * a.pages.page_bytes;
    place.input = LoadBits(reinterpret_cast<const KeptInput*>(page + a.pages.inputs_at) + place.row);
    return place;
  };
  // The lane's 16-byte piece of a row's tanh rows: which one of a page's row, and of which part of the stage.
  const int part = lane < 4 ? 0 : lane < 8 ? 1 : lane < 16 ? 2 : 3;  // mix of keys, of values; LoRAs of keys, of values
  const int part_column = (part < 2 ? lane % 4 : lane % 8) * 8;
  const bool has_piece = lane < 24 && part_column < (part < 2 ? a.mix_rank : a.lora_rank);
  const int piece_column = part_column + (part == 0   ? 0
                                          : part == 1 ? a.mix_rank
                                                      : 2 * a.mix_rank + (part == 2 ? 0 : a.lora_rank));
  const auto load = [&](int index, const Place& place) {
    Stage<T>& stage = shared.stages[index % kStages];
#pragma unroll 1
    for (int row = warp; row <= kTile; row += kGroupHeads) {
      const int32_t page_index = Shfl(place.page, row), page_row = Shfl(place.row, row);
      const int32_t id = Shfl(place.input.id, row);
      const bool known = page_index >= 0;
      const char* page = a.pages.data + (known ? page_index : 0) * a.pages.page_bytes;
      const int64_t c = group_column + lane * 8;
      const bool copied = known && c < a.width;
      const int to = PieceAt<kColumns>(row, lane);
      CopyAsync16(stage.keys + to, reinterpret_cast<const T*>(page) + (copied ? page_row * a.width + c : 0), copied);
      CopyAsync16(stage.embeddings + to, static_cast<const T*>(a.embedding) + (copied ? id * a.width + c : 0), copied);
      if (row == 0) continue;
      if (lane < 24) {
        T* const parts = part < 2 ? stage.mix : part == 2 ? stage.key_lora : stage.value_lora;
        CopyAsync16(parts + PieceAt<kLora>(row - 1, part == 1 ? 4 + lane % 4 : part_column / 8),
                    reinterpret_cast<const T*>(page + a.pages.tanh_at) +
                        (known && has_piece ? page_row * int64_t{a.pages.tanh_width} + piece_column : 0),
                    known && has_piece);
      } else if (lane == 24) {
        CopyAsync16(stage.factors + row - 1, page + a.pages.factors_at + page_row * sizeof(stage.factors[0]), known);
      }
    }
    if (warp == 0 && lane <= kTile) stage.inputs[lane] = place.input;
  };

  // Of the warp's own columns; the barrier of the first tile comes before they are read.
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int c = warp * kHead + lane + i * kWarp;
    shared.mix_key[c] = there ? a.mix_key[group_column + c] : 0;
    shared.mix_value[c] = there ? a.mix_value[group_column + c] : 0;
    shared.ln0_weight[c] = there ? a.ln0_weight[group_column + c] : 0;
    shared.ln0_bias[c] = there ? a.ln0_bias[group_column + c] : 0;
  }
  const auto query_at = [&](int row) { return ((int64_t{tile.row} + row) * a.heads + head) * (kHead + kLora); };
#pragma unroll
  for (int i = 0; i < kRows / 2; ++i) {
    const int row = 2 * i + lane / 16, piece = lane % 16;
    const bool known = there && row < tile.rows;
    CopyAsync16(shared.queries[warp][piece / 8] + PieceAt<kHead>(row, piece % 8),
                static_cast<const T*>(a.queries) + (known ? query_at(row) + piece * 8 : 0), known);
  }
  Place next = fetch(0);
#pragma unroll
  for (int index = 0; index < kStages - 1; ++index) {
    if (index < tiles) load(index, next);
    CopyAsyncCommit();
    next = fetch(index + 1);
  }

  uint32_t key_up[kHead / 16][kMix / 16][4], value_up[kHead / 16][kMix / 16][4];
  float q_sum[2] = {0, 0};
  {
    const auto* mix_up = static_cast<const uint16_t*>(a.mix_up);
    const int64_t mine = there ? column : 0;
    LoadMixUp(mix_up, a.mix_rank, a.width, mine, key_up);
    LoadMixUp(mix_up + a.mix_rank * a.width, a.mix_rank, a.width, mine, value_up);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (there && g + half * 8 < tile.rows) {
        const T* const q = static_cast<const T*>(a.queries) + query_at(g + half * 8);
        for (int i = 2 * t; i < kHead; i += 8) {
          const float2 pair = Unpack2<T>(*reinterpret_cast<const uint32_t*>(q + i));
          q_sum[half] += pair.x + pair.y;
        }
      }
      q_sum[half] += ShflXor(q_sum[half], 1);
      q_sum[half] += ShflXor(q_sum[half], 2);
    }
  }

  float maximum[2] = {-Infinity(), -Infinity()}, sum[2] = {0, 0}, offset[2] = {0, 0};  // sums of the lane's positions
  float values[kHead / 8][4] = {}, loras[kLora / 8][4] = {};
#pragma unroll 1
  for (int index = 0; index < tiles; ++index) {
    CopyAsyncWait<kStages - 2>();
    __syncthreads();  // the tile is there for all, and nobody reads the one before it any more
    if (index + kStages - 1 < tiles) load(index + kStages - 1, next);
    CopyAsyncCommit();
    next = fetch(index + kStages);
    if (!there) continue;
    const Stage<T>& stage = shared.stages[index % kStages];
    const int64_t tile_begin = begin + int64_t{index} * kTile;

    // Scores: rows g and g + 8, positions 2t and 2t + 1 of each half of the tile.
    float scores[2][4] = {};
    uint32_t hidden[kMix / 16][4];
#pragma unroll
    for (int k = 0; k < kMix / 16; ++k) {
      LdMatrix4(hidden[k], stage.mix + PieceAt<kLora>(lane % 16, 2 * k + lane / 16));
    }
#pragma unroll
    for (int s = 0; s < kHead / 16; ++s) {
      float mixed[2][4];
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        const auto amount =
            *reinterpret_cast<const Vec<float, 2>*>(shared.mix_key + warp * kHead + s * 16 + n * 8 + 2 * t);
#pragma unroll
        for (int i = 0; i < 4; ++i) mixed[n][i] = amount.v[i % 2];
      }
#pragma unroll
      for (int k = 0; k < kMix / 16; ++k) {
        Mma16816<T>(mixed[0], hidden[k], {key_up[s][k][0], key_up[s][k][2]});
        Mma16816<T>(mixed[1], hidden[k], {key_up[s][k][1], key_up[s][k][3]});
      }
      uint32_t here[4], before[4], keys[2][2];
      const int piece = warp * (kHead / 8) + 2 * s + lane / 16;
      LdMatrix4(here, stage.keys + PieceAt<kColumns>(lane % 16 + 1, piece));
      LdMatrix4(before, stage.keys + PieceAt<kColumns>(lane % 16, piece));
#pragma unroll
      for (int n = 0; n < 2; ++n) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const float2 x = Unpack2<T>(here[2 * n + half]), x0 = Unpack2<T>(before[2 * n + half]);
          keys[n][half] = Pack2<T>(x.x + (x0.x - x.x) * mixed[n][2 * half],  //
                                   x.y + (x0.y - x.y) * mixed[n][2 * half + 1]);
        }
      }
      uint32_t q[4];
      LdMatrix4(q, shared.queries[warp][0] + PieceAt<kHead>(lane % 16, 2 * s + lane / 16));
      Mma16816<T>(scores[0], q, {keys[0][0], keys[1][0]});
      Mma16816<T>(scores[1], q, {keys[0][1], keys[1][1]});
    }
#pragma unroll
    for (int k = 0; k < kLora / 16; ++k) {
      uint32_t fold[4], b[4];
      LdMatrix4(fold, shared.queries[warp][1] + PieceAt<kLora>(lane % 16, 2 * k + lane / 16));
      LdMatrix4(b, stage.key_lora + PieceAt<kLora>(lane / 16 * 8 + lane % 8, 2 * k + lane / 8 % 2));
      Mma16816<T>(scores[0], fold, {b[0], b[1]});
      Mma16816<T>(scores[1], fold, {b[2], b[3]});
    }

    // Softmax.
    float value_scale[4], value_offset[4], raised[2] = {maximum[0], maximum[1]};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int at = i / 2 * 8 + 2 * t + i % 2;
      const Vec<float, 4> factors = stage.factors[at];
      value_scale[i] = factors.v[2];
      value_offset[i] = factors.v[3];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float& score = scores[i / 2][2 * half + i % 2];
        score = (score * factors.v[0] - q_sum[half] * factors.v[1]) * a.score_scale;
        if (tile_begin + at >= end || tile_begin + at > range.position + g + half * 8) score = -Infinity();
        raised[half] = fmaxf(raised[half], score);
      }
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      raised[half] = fmaxf(raised[half], ShflXor(raised[half], 1));
      raised[half] = fmaxf(raised[half], ShflXor(raised[half], 2));
    }
    // Seldom after the first tiles.
    if (Ballot(raised[0] > maximum[0] || raised[1] > maximum[1]) != 0) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float keep = FastExp2(maximum[half] - Base(raised[half]));
        maximum[half] = raised[half];
        sum[half] *= keep;
        offset[half] *= keep;
#pragma unroll
        for (int n = 0; n < kHead / 8; ++n) {
          values[n][2 * half] *= keep;
          values[n][2 * half + 1] *= keep;
        }
#pragma unroll
        for (int n = 0; n < kLora / 8; ++n) {
          loras[n][2 * half] *= keep;
          loras[n][2 * half + 1] *= keep;
        }
      }
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float& p = scores[i / 2][2 * half + i % 2];
        const bool unseen = p == -Infinity();
        p = FastExp2(p - Base(maximum[half]));
        sum[half] += p;
        if (unseen) continue;
        offset[half] += p * value_offset[i];
        p *= value_scale[i];
      }
    }
    const uint32_t p[4] = {Pack2<T>(scores[0][0], scores[0][1]), Pack2<T>(scores[0][2], scores[0][3]),
                           Pack2<T>(scores[1][0], scores[1][1]), Pack2<T>(scores[1][2], scores[1][3])};

    // Values: columns g and g + 8, positions 2t and 2t + 1 of each half of the tile.
    const int64_t sees = range.position - tile_begin;
    KeptInput inputs[2][3];  // of positions 2t - 1, 2t, 2t + 1
    uint32_t value_hidden[kMix / 16][4];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int i = 0; i < 3; ++i) inputs[half][i] = stage.inputs[half * 8 + 2 * t + i];
    }
#pragma unroll
    for (int k = 0; k < kMix / 16; ++k) {
      LdMatrix4(value_hidden[k], stage.mix + PieceAt<kLora>(lane / 16 * 8 + lane % 8, kMix / 8 + 2 * k + lane / 8 % 2));
    }
#pragma unroll
    for (int s = 0; s < kHead / 16; ++s) {
      float mixed[2][4], weight[2], bias[2];
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const int at = warp * kHead + s * 16 + c * 8 + g;
        weight[c] = shared.ln0_weight[at];
        bias[c] = shared.ln0_bias[at];
#pragma unroll
        for (int i = 0; i < 4; ++i) mixed[i / 2][2 * c + i % 2] = shared.mix_value[at];
      }
#pragma unroll
      for (int k = 0; k < kMix / 16; ++k) {
        Mma16816<T>(mixed[0], value_up[s][k], {value_hidden[k][0], value_hidden[k][1]});
        Mma16816<T>(mixed[1], value_up[s][k], {value_hidden[k][2], value_hidden[k][3]});
      }
      uint32_t here[4], before[4], b[2][2];
      const int row = lane / 16 * 8 + lane % 8, piece = warp * (kHead / 8) + 2 * s + lane / 8 % 2;
      LdMatrix4Trans(here, stage.embeddings + PieceAt<kColumns>(row + 1, piece));
      LdMatrix4Trans(before, stage.embeddings + PieceAt<kColumns>(row, piece));
#pragma unroll
      for (int half = 0; half < 2; ++half) {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          const auto normed = [&](float x, const KeptInput& input) {
            return weight[c] * (x * input.scale - input.offset) + bias[c] * input.rms;
          };
          const float2 pair = Unpack2<T>(here[2 * half + c]);
          const float x0 = normed(Unpack2<T>(before[2 * half + c]).x, inputs[half][0]);
          const float x1 = normed(pair.x, inputs[half][1]), x2 = normed(pair.y, inputs[half][2]);
          b[c][half] = Pack2<T>(x1 + (x0 - x1) * mixed[half][2 * c], x2 + (x1 - x2) * mixed[half][2 * c + 1]);
        }
      }
      AddSeen<T>(values[2 * s], p, b[0], sees, tile.rows);
      AddSeen<T>(values[2 * s + 1], p, b[1], sees, tile.rows);
    }
#pragma unroll
    for (int n = 0; n < kLora / 16; ++n) {
      uint32_t b[4];
      LdMatrix4Trans(b, stage.value_lora + PieceAt<kLora>(lane % 16, 2 * n + lane / 16));
      AddSeen<T>(loras[2 * n], p, {b[0], b[1]}, sees, tile.rows);
      AddSeen<T>(loras[2 * n + 1], p, {b[2], b[3]}, sees, tile.rows);
    }
  }

  if (!there) return;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    for (int mask = 1; mask < 4; mask *= 2) {
      sum[half] += ShflXor(sum[half], mask);
      offset[half] += ShflXor(offset[half], mask);
    }
    const int row = g + half * 8;
    if (row >= tile.rows) continue;
    const int64_t slot = tile.slot_row + int64_t{split} * tile.rows + row, slot_head = slot * a.heads + head;
    if (t == 0) {
      a.slot_maxima[slot_head] = maximum[half];
      a.slot_sums[slot_head] = sum[half];
      a.slot_offsets[slot_head] = offset[half];
    }
#pragma unroll
    for (int n = 0; n < kHead / 8; ++n) {
      StoreFloats<2>({values[n][2 * half], values[n][2 * half + 1]},
                     a.slot_values + slot * a.width + column + n * 8 + 2 * t);
    }
#pragma unroll
    for (int n = 0; n < kLora / 8; ++n) {
      StoreFloats<2>({loras[n][2 * half], loras[n][2 * half + 1]}, a.slot_loras + slot_head * kLora + n * 8 + 2 * t);
    }
  }
}

// --- Merge ----------------------------------------------------------------------------------------------------------

// The splits of a row and head, with what follows the sum: block (head, row, tile). A quarter of the threads has the
// splits 0, 4, .., the next 1, 5, ..; a thread of each has a column, and an entry of the LoRA's sums.
template <typename T>
__global__ void __launch_bounds__(kMergeThreads) MergeKernel(KeptArguments a, T* out) {
  static_assert(kLora == kHead);
  constexpr int kSharers = kMergeThreads / kHead;
  float* const scratch = DynamicShared<float>();  // [2 + kSharers][kMergeThreads]: see below
  const KeptTile tile = a.tiles[blockIdx.z];
  const int row = static_cast<int>(blockIdx.y), head = static_cast<int>(blockIdx.x), thread = threadIdx.x;
  if (row >= tile.rows) return;
  const SplitRange range(a, tile);
  const int splits = static_cast<int>((range.length + range.step - 1) / range.step);
  const auto slot_of = [&](int split) { return tile.slot_row + int64_t{split} * tile.rows + row; };

  float maximum = -Infinity();
  for (int split = 0; split < splits; ++split) {
    maximum = fmaxf(maximum, a.slot_maxima[slot_of(split) * a.heads + head]);
  }
  const float base = Base(maximum);
  const int sharer = thread / kHead, c = thread % kHead;
  const int64_t column = int64_t{head} * kHead + c;
  float sum = 0, offset = 0, value = 0, lora = 0;
  for (int split = sharer; split < splits; split += kSharers) {
    const int64_t slot = slot_of(split), slot_head = slot * a.heads + head;
    const float weight = FastExp2(a.slot_maxima[slot_head] - base);
    sum += weight * a.slot_sums[slot_head];
    offset += weight * a.slot_offsets[slot_head];
    value += weight * a.slot_values[slot * a.width + column];
    lora += weight * a.slot_loras[slot_head * kLora + c];
  }
  float* const parts[4] = {scratch, scratch + kMergeThreads, scratch + 2 * kMergeThreads, scratch + 3 * kMergeThreads};
  parts[0][thread] = sum;
  parts[1][thread] = offset;
  parts[2][thread] = value;
  parts[3][thread] = lora;
  __syncthreads();
  // Every quarter adds them up alike, then has a part of the LoRA's rank.
  const auto total = [&](const float* part, int at) {
    float all = 0;
    for (int i = 0; i < kSharers; ++i) all += part[i * kHead + at];
    return all;
  };
  float up = 0;
  for (int j = sharer; j < a.lora_rank; j += kSharers) {
    up += total(parts[3], j) * ToFloat(static_cast<const T*>(a.value_up)[j * a.width + column]);
  }
  float* const ups = scratch + 4 * kMergeThreads;
  ups[thread] = up;
  __syncthreads();
  if (sharer != 0) return;
  const float x = (total(parts[2], c) + total(ups, c) - total(parts[1], c)) / total(parts[0], c);
  const int64_t to = (int64_t{tile.row} + row) * a.width + column;
  out[to] = FromFloat<T>(x * a.value_weight[column] + a.value_bias[column]);
}

// --- The host's side ------------------------------------------------------------------------------------------------

template <typename T>
void Attend(Context& context, ConstTensor q, RowSpans spans, const GoldSharedWeights& shared,
            const GoldKvWeights& weights, const SharedPages& pages, Tensor out) {
  const Context::Frame frame(context);
  const auto stream = static_cast<Stream>(context.stream());
  const int64_t width = q.dim(1), rows = int64_t{spans.back().row_begin} + spans.back().row_count;
  const int heads = static_cast<int>(width / kHead), groups = CeilDiv(heads, kGroupHeads);
  std::vector<KeptTile> tiles;
  int64_t length_max = 0;
  for (int i = 0; i < static_cast<int>(spans.size()); ++i) {
    const RowSpan& span = spans[i];
    for (int row = 0; row < span.row_count; row += kRows) {
      tiles.push_back({i, span.row_begin + row, std::min(span.row_count - row, kRows), 0});
    }
    length_max = std::max(length_max, span.position + span.row_count);
  }
  // One wave of blocks that fills the device, or else several, so that an uneven last one does not matter. Lengths are
  // taken as the next power of two, so that launches stay the same from token to token.
  const auto blocks = static_cast<int64_t>(tiles.size()) * groups;
  const int64_t at_once = int64_t{kBlocksPerUnit} * context.multiprocessors();
  const int64_t wanted = at_once >= 4 * blocks ? at_once / blocks : CeilDiv(4 * at_once, blocks);
  const auto bucket = static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(length_max)));
  const auto splits = static_cast<int>(std::min(wanted, CeilDiv<int64_t>(bucket, kSplitUnit)));
  int32_t slot_rows = 0, tile_rows = 0;
  for (KeptTile& tile : tiles) {
    tile.slot_row = slot_rows;
    slot_rows += splits * tile.rows;
    tile_rows = std::max(tile_rows, tile.rows);
  }

  const auto lora_rank = static_cast<int>(weights.key_up.in());
  static_assert(kLora == kHead);
  T* queries = context.Scratch<T>(rows * heads * (kHead + kLora));
  Launch(stream, FoldKernel<T>,
         {dim3(static_cast<unsigned>(heads), static_cast<unsigned>(rows - spans[0].row_begin)), dim3(kMergeThreads)},
         static_cast<const T*>(q.data), spans[0].row_begin, weights.ln_key.weight.f32(),
         static_cast<const T*>(weights.key_up.data.data), lora_rank, width, queries);
  const KeptArguments a{.tiles = context.Upload(absl::MakeConstSpan(tiles)),
                        .spans = context.UploadSpans(spans, 0, pages.page_tokens),
                        .pages = pages,
                        .splits = splits,
                        .groups = groups,
                        .heads = heads,
                        .mix_rank = static_cast<int>(weights.mix_up.dim(1)),
                        .lora_rank = lora_rank,
                        .width = width,
                        .score_scale = kLog2E / std::sqrt(static_cast<float>(kHead)),
                        .queries = queries,
                        .embedding = shared.embedding.data,
                        .ln0_weight = shared.ln0.weight.f32(),
                        .ln0_bias = shared.ln0.bias.f32(),
                        .mix_key = weights.mix_key.f32(),
                        .mix_value = weights.mix_value.f32(),
                        .mix_up = weights.mix_up.data,
                        .value_up = weights.value_up.data.data,
                        .value_weight = weights.ln_value.weight.f32(),
                        .value_bias = weights.ln_value.bias.f32(),
                        .slot_values = context.Scratch<float>(slot_rows * width),
                        .slot_loras = context.Scratch<float>(int64_t{slot_rows} * heads * kLora),
                        .slot_maxima = context.Scratch<float>(int64_t{slot_rows} * heads),
                        .slot_sums = context.Scratch<float>(int64_t{slot_rows} * heads),
                        .slot_offsets = context.Scratch<float>(int64_t{slot_rows} * heads)};
  const auto tile_count = static_cast<unsigned>(tiles.size());
  Launch(stream, KeptKernel<T>,
         {dim3(static_cast<unsigned>(groups * splits), tile_count), dim3(kThreads), sizeof(KeptShared<T>)}, a);
  Launch(stream, MergeKernel<T>,
         {dim3(static_cast<unsigned>(heads), static_cast<unsigned>(tile_rows), tile_count), dim3(kMergeThreads),
          5 * kMergeThreads * sizeof(float)},
         a, static_cast<T*>(out.data));
}

// The kernels above want what CanFuse does, of all layers as they were kept together, and sizes within their own
// limits.
bool CanAttend(const Context& context, ConstTensor q, const GoldSharedWeights& shared,
               absl::Span<const GoldKvWeights> layers, const GoldKvWeights& weights, int head_size) {
  if (q.dtype != shared.embedding.dtype || head_size != kHead || weights.rope_base != 0) return false;
  if (weights.mix_up.dim(1) > kMix || weights.key_up.in() > kLora) return false;
  if (static_cast<int64_t>(sizeof(KeptShared<uint16_t>)) > context.facts().shared_bytes) return false;
  return std::all_of(layers.begin(), layers.end(),
                     [&](const GoldKvWeights& layer) { return CanFuse(shared, layer, head_size); });
}

int64_t SectionBytes(int64_t bytes) { return CeilDiv<int64_t>(bytes, 256) * 256; }

// Places the sections of a page; returns its size.
int64_t PlaceSections(int64_t width, absl::Span<const GoldKvWeights> layers, int layer, int64_t page_tokens, DType act,
                      SharedPages& pages) {
  int64_t used = SectionBytes(page_tokens * width * SizeOf(act));
  pages.inputs_at = used;
  used += SectionBytes(page_tokens * static_cast<int64_t>(sizeof(KeptInput)));
  for (int i = 0; i < static_cast<int>(layers.size()); ++i) {
    const int64_t tanh_width = 2 * layers[i].mix_up.dim(1) + layers[i].key_up.in() + layers[i].value_up.in();
    const int64_t tanh_bytes = SectionBytes(page_tokens * tanh_width * SizeOf(act));
    if (i == layer) {
      pages.tanh_width = static_cast<int>(tanh_width);
      pages.tanh_at = used;
      pages.factors_at = used + tanh_bytes;
    }
    used += tanh_bytes + SectionBytes(page_tokens * 4 * static_cast<int64_t>(sizeof(float)));
  }
  return used;
}

}  // namespace

SharedPages PagesOf(const GoldSharedRows& rows, int64_t width, absl::Span<const GoldKvWeights> layers, int layer,
                    DType act) {
  SharedPages pages{};
  pages.data = static_cast<char*>(rows.data);
  pages.page_bytes = rows.page_bytes;
  pages.page_tokens = rows.page_tokens;
  PlaceSections(width, layers, layer, rows.page_tokens, act, pages);
  return pages;
}

int64_t GoldSharedPageBytes(int64_t width, absl::Span<const GoldKvWeights> layers, int64_t page_tokens, DType act) {
  SharedPages pages{};
  return PlaceSections(width, layers, 0, page_tokens, act, pages);
}

void GoldSharedAttention(Context& context, ConstTensor q, RowSpans spans, const GoldSharedWeights& shared,
                         absl::Span<const GoldKvWeights> layers, int layer, const GoldSharedRows& rows, int head_size,
                         Tensor out) {
  const int64_t width = q.dim(1);
  const GoldKvWeights& weights = layers[layer];
  const SharedPages pages = PagesOf(rows, width, layers, layer, context.activation_dtype());
  if (!CanAttend(context, q, shared, layers, weights, head_size)) {
    AttendToRebuilt(context, q, spans, shared, weights, pages, head_size, out);
    return;
  }
  for (const std::vector<RowSpan>& cut : CutRows(spans, AttentionRowsMax(width))) {
    if (q.dtype == DType::kF16) {
      Attend<f16_t>(context, q, cut, shared, weights, pages, out);
    } else {
      Attend<bf16_t>(context, q, cut, shared, weights, pages, out);
    }
  }
}

}  // namespace goldfinch::cuda
