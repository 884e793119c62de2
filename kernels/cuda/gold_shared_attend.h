// Device code of GoldSharedAttention: attention of a tile of query rows to a split of the positions, whose keys and
// values are made in registers from shared rows. gold_shared.cu explains the method.
#ifndef GOLDFINCH_KERNELS_CUDA_GOLD_SHARED_ATTEND_H_
#define GOLDFINCH_KERNELS_CUDA_GOLD_SHARED_ATTEND_H_

#include <cstdint>

#include "kernels/cuda/device.h"
#include "kernels/cuda/gold_shared.h"
#include "kernels/cuda/gold_shared_split.h"
#include "kernels/cuda/gold_shared_tile.h"
#include "kernels/cuda/matrix_tile.h"
#include "kernels/cuda/online_softmax.h"

namespace goldfinch::cuda::shared_rows {

// --- What a warp keeps in registers ----------------------------------------------------------------------------------

// mix_up of 64 columns as fragments of mma: of 16 columns, 16 of the rank. As first operand they are [columns, rank] (0
// to 3), as second [rank, columns]: {0, 2} of the first 8 columns, {1, 3} of the others.
using MixUp = uint32_t[kHead / 16][kMixRank / 16][4];

__device__ __forceinline__ void LoadMixUp(const uint16_t* up, int rank, int64_t width, int64_t column, MixUp& to) {
  const int lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4;
#pragma unroll
  for (int s = 0; s < kHead / 16; ++s) {
#pragma unroll
    for (int k = 0; k < kMixRank / 16; ++k) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int row = k * 16 + i / 2 * 8 + 2 * t;  // even, as is the rank
        const uint16_t* from = up + row * width + column + s * 16 + i % 2 * 8 + g;
        to[s][k][i] = row < rank ? from[0] | static_cast<uint32_t>(from[width]) << 16 : 0;
      }
    }
  }
}

// sum(q') of rows g and g + 8.
template <typename T>
__device__ __forceinline__ void SumQueries(const Arguments& a, const Task& task, float (&q_sum)[2]) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    q_sum[half] = 0;
    if (task.has_head && task.g + half * 8 < task.tile.rows) {
      const T* const q = task.Query<T>(a, task.g + half * 8);
      for (int i = 2 * task.t; i < kHead; i += 8) {
        const float2 pair = Unpack2<T>(*reinterpret_cast<const uint32_t*>(q + i));
        q_sum[half] += pair.x + pair.y;
      }
    }
    q_sum[half] = RowSum(q_sum[half]);
  }
}

// The softmax so far of rows g and g + 8. Sums are of the lane's positions until the end.
struct Accumulators {
  float maximum[2] = {-Infinity(), -Infinity()};
  float sum[2] = {0, 0};               // of p
  float offset[2] = {0, 0};            // of p mean_v scale_v
  float values[kHead / 8][4] = {};     // of p scale_v vx
  float loras[kLoraRank / 8][4] = {};  // of p scale_v h_v

  __device__ __forceinline__ void Raise(const float (&raised)[2]) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float keep = FastExp2(maximum[half] - FiniteMaximum(raised[half]));
      maximum[half] = raised[half];
      sum[half] *= keep;
      offset[half] *= keep;
#pragma unroll
      for (int n = 0; n < kHead / 8; ++n) {
        values[n][2 * half] *= keep;
        values[n][2 * half + 1] *= keep;
      }
#pragma unroll
      for (int n = 0; n < kLoraRank / 8; ++n) {
        loras[n][2 * half] *= keep;
        loras[n][2 * half + 1] *= keep;
      }
    }
  }
};

// --- Scores: rows g and g + 8, positions 2t and 2t + 1 of each half of the tile --------------------------------------

// scores += q' kx^T with kx = kk + (prev(kk) - kk) * (mix_key + h_mix up_mix), 16 columns at a time.
template <typename T>
__device__ __forceinline__ void AddMixedKeyScores(const SharedMemory<T>& shared, const Stage<T>& stage,
                                                  const Task& task, const MixUp& key_up, float (&scores)[2][4]) {
  const int lane = task.lane, warp = task.warp;
  uint32_t hidden[kMixRank / 16][4];
#pragma unroll
  for (int k = 0; k < kMixRank / 16; ++k) {
    LdMatrix4(hidden[k], stage.mix + PieceOffset<kLoraRank>(lane % 16, 2 * k + lane / 16));
  }
#pragma unroll
  for (int s = 0; s < kHead / 16; ++s) {
    float mixed[2][4];
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      const auto amount =
          *reinterpret_cast<const Vec<float, 2>*>(shared.mix_key + warp * kHead + s * 16 + n * 8 + 2 * task.t);
#pragma unroll
      for (int i = 0; i < 4; ++i) mixed[n][i] = amount.v[i % 2];
    }
#pragma unroll
    for (int k = 0; k < kMixRank / 16; ++k) {
      Mma16816<T>(mixed[0], hidden[k], {key_up[s][k][0], key_up[s][k][2]});
      Mma16816<T>(mixed[1], hidden[k], {key_up[s][k][1], key_up[s][k][3]});
    }
    uint32_t here[4], before[4], keys[2][2];
    const int piece = warp * (kHead / 8) + 2 * s + lane / 16;
    LdMatrix4(here, stage.keys + PieceOffset<kColumns>(lane % 16 + 1, piece));
    LdMatrix4(before, stage.keys + PieceOffset<kColumns>(lane % 16, piece));
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
    LdMatrix4(q, shared.queries[warp][0] + PieceOffset<kHead>(lane % 16, 2 * s + lane / 16));
    Mma16816<T>(scores[0], q, {keys[0][0], keys[1][0]});
    Mma16816<T>(scores[1], q, {keys[0][1], keys[1][1]});
  }
}

// scores += (up_k q') h_k.
template <typename T>
__device__ __forceinline__ void AddKeyLoraScores(const SharedMemory<T>& shared, const Stage<T>& stage, const Task& task,
                                                 float (&scores)[2][4]) {
  const int lane = task.lane;
#pragma unroll
  for (int k = 0; k < kLoraRank / 16; ++k) {
    uint32_t fold[4], b[4];
    LdMatrix4(fold, shared.queries[task.warp][1] + PieceOffset<kLoraRank>(lane % 16, 2 * k + lane / 16));
    LdMatrix4(b, stage.key_lora + PieceOffset<kLoraRank>(lane / 16 * 8 + lane % 8, 2 * k + lane / 8 % 2));
    Mma161616<T>(scores[0], scores[1], fold, b);
  }
}

// --- Softmax ---------------------------------------------------------------------------------------------------------

// Turns the products of a tile, whose first position is `tile_begin`, into weights p scale_v, with the key norm applied
// to scores; raises the maximum and adds p and p mean_v scale_v to their sums.
template <typename T>
__device__ __forceinline__ void Soften(const Arguments& a, const Stage<T>& stage, const Task& task, int64_t tile_begin,
                                       const float (&q_sum)[2], Accumulators& sums, float (&scores)[2][4]) {
  float value_scale[4], value_offset[4], raised[2] = {sums.maximum[0], sums.maximum[1]};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int at = i / 2 * 8 + 2 * task.t + i % 2;
    const Vec<float, 4> factors = stage.factors[at];
    value_scale[i] = factors.v[2];
    value_offset[i] = factors.v[3];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float& score = scores[i / 2][2 * half + i % 2];
      score = (score * factors.v[0] - q_sum[half] * factors.v[1]) * a.score_scale;
      const int64_t last_seen = task.position + task.g + half * 8;
      if (tile_begin + at >= task.end || tile_begin + at > last_seen) score = -Infinity();
      raised[half] = fmaxf(raised[half], score);
    }
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) raised[half] = RowMax(raised[half]);
  // After the first tiles the maximum seldom rises.
  if (Ballot(raised[0] > sums.maximum[0] || raised[1] > sums.maximum[1]) != 0) sums.Raise(raised);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float& p = scores[i / 2][2 * half + i % 2];
      const bool unseen = p == -Infinity();
      p = FastExp2(p - FiniteMaximum(sums.maximum[half]));
      sums.sum[half] += p;
      if (unseen) continue;
      sums.offset[half] += p * value_offset[i];
      p *= value_scale[i];
    }
  }
}

// --- Values: columns g and g + 8, positions 2t and 2t + 1 of each half of the tile -----------------------------------

// Adds p b to the sums of 8 columns. `sees` is the last position of the tile that row 0 sees; each row sees one more,
// and what a row does not see must not touch it, not even as 0 * NaN.
template <typename T>
__device__ __forceinline__ void AddSeen(float (&sums)[4], const uint32_t (&p)[4], const uint32_t (&b)[2], int64_t sees,
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

// values += p vx with vx = xo + (prev(xo) - xo) * (mix_value + h_mix up_mix), 16 columns at a time.
template <typename T>
__device__ __forceinline__ void AddMixedValues(const SharedMemory<T>& shared, const Stage<T>& stage, const Task& task,
                                               const MixUp& value_up, const uint32_t (&p)[4], int64_t sees,
                                               Accumulators& sums) {
  const int lane = task.lane, warp = task.warp;
  SharedRowInput inputs[2][3];  // of positions 2t - 1, 2t, 2t + 1
  uint32_t hidden[kMixRank / 16][4];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
#pragma unroll
    for (int i = 0; i < 3; ++i) inputs[half][i] = stage.inputs[half * 8 + 2 * task.t + i];
  }
#pragma unroll
  for (int k = 0; k < kMixRank / 16; ++k) {
    LdMatrix4(hidden[k],
              stage.mix + PieceOffset<kLoraRank>(lane / 16 * 8 + lane % 8, kMixRank / 8 + 2 * k + lane / 8 % 2));
  }
#pragma unroll
  for (int s = 0; s < kHead / 16; ++s) {
    float mixed[2][4], weight[2], bias[2];
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      const int at = warp * kHead + s * 16 + c * 8 + task.g;
      weight[c] = shared.ln0_weight[at];
      bias[c] = shared.ln0_bias[at];
#pragma unroll
      for (int i = 0; i < 4; ++i) mixed[i / 2][2 * c + i % 2] = shared.mix_value[at];
    }
#pragma unroll
    for (int k = 0; k < kMixRank / 16; ++k) Mma161616<T>(mixed[0], mixed[1], value_up[s][k], hidden[k]);
    uint32_t here[4], before[4], b[2][2];
    const int row = lane / 16 * 8 + lane % 8, piece = warp * (kHead / 8) + 2 * s + lane / 8 % 2;
    LdMatrix4Trans(here, stage.embeddings + PieceOffset<kColumns>(row + 1, piece));
    LdMatrix4Trans(before, stage.embeddings + PieceOffset<kColumns>(row, piece));
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const auto normed = [&](float x, const SharedRowInput& input) {
          return weight[c] * (x * input.scale - input.offset) + bias[c] * input.rms;
        };
        const float2 pair = Unpack2<T>(here[2 * half + c]);
        const float x0 = normed(Unpack2<T>(before[2 * half + c]).x, inputs[half][0]);
        const float x1 = normed(pair.x, inputs[half][1]), x2 = normed(pair.y, inputs[half][2]);
        b[c][half] = Pack2<T>(x1 + (x0 - x1) * mixed[half][2 * c], x2 + (x1 - x2) * mixed[half][2 * c + 1]);
      }
    }
    AddSeen<T>(sums.values[2 * s], p, b[0], sees, task.tile.rows);
    AddSeen<T>(sums.values[2 * s + 1], p, b[1], sees, task.tile.rows);
  }
}

// loras += p h_v.
template <typename T>
__device__ __forceinline__ void AddValueLoras(const Stage<T>& stage, const Task& task, const uint32_t (&p)[4],
                                              int64_t sees, Accumulators& sums) {
#pragma unroll
  for (int n = 0; n < kLoraRank / 16; ++n) {
    uint32_t b[4];
    LdMatrix4Trans(b, stage.value_lora + PieceOffset<kLoraRank>(task.lane % 16, 2 * n + task.lane / 16));
    AddSeen<T>(sums.loras[2 * n], p, {b[0], b[1]}, sees, task.tile.rows);
    AddSeen<T>(sums.loras[2 * n + 1], p, {b[2], b[3]}, sees, task.tile.rows);
  }
}

// --- The kernel ------------------------------------------------------------------------------------------------------

__device__ __forceinline__ void StoreSlots(const Arguments& a, const Task& task, const Accumulators& sums) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float sum = RowSum(sums.sum[half]), offset = RowSum(sums.offset[half]);
    const int row = task.g + half * 8;
    if (row >= task.tile.rows) continue;
    const int64_t slot = task.tile.slot_row + int64_t{task.split} * task.tile.rows + row;
    const int64_t slot_head = slot * a.heads + task.head;
    if (task.t == 0) {
      a.slot_maxima[slot_head] = sums.maximum[half];
      a.slot_sums[slot_head] = sum;
      a.slot_offsets[slot_head] = offset;
    }
#pragma unroll
    for (int n = 0; n < kHead / 8; ++n) {
      StoreFloats<2>({sums.values[n][2 * half], sums.values[n][2 * half + 1]},
                     a.slot_values + slot * a.width + task.column + n * 8 + 2 * task.t);
    }
#pragma unroll
    for (int n = 0; n < kLoraRank / 8; ++n) {
      StoreFloats<2>({sums.loras[n][2 * half], sums.loras[n][2 * half + 1]},
                     a.slot_loras + slot_head * kLoraRank + n * 8 + 2 * task.t);
    }
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads, kBlocksPerUnit) SharedRowsKernel(Arguments a) {
  SharedMemory<T>& shared = *DynamicShared<SharedMemory<T>>();
  const Task task(a);
  if (task.begin >= task.end) return;
  const int tiles = static_cast<int>((task.end - task.begin + kTile - 1) / kTile);
  const int32_t* const table = a.spans[task.tile.span].kept;
  const TanhPiece tanh_piece(a, task.lane);

  CopyColumnWeights(a, task, shared);
  CopyQueries(a, task, shared);
  RowPlace next = FindRow(a, task, table, 0);
#pragma unroll
  for (int index = 0; index < kStages - 1; ++index) {
    if (index < tiles) CopyTile(a, task, tanh_piece, next, shared.stages[index]);
    CopyAsyncCommit();
    next = FindRow(a, task, table, index + 1);
  }
  MixUp key_up, value_up;
  float q_sum[2];
  const auto* mix_up = static_cast<const uint16_t*>(a.mix_up);
  LoadMixUp(mix_up, a.mix_rank, a.width, task.has_head ? task.column : 0, key_up);
  LoadMixUp(mix_up + a.mix_rank * a.width, a.mix_rank, a.width, task.has_head ? task.column : 0, value_up);
  SumQueries<T>(a, task, q_sum);

  Accumulators sums;
#pragma unroll 1
  for (int index = 0; index < tiles; ++index) {
    CopyAsyncWait<kStages - 2>();
    __syncthreads();  // the tile is there for all, and nobody reads the one before it any more
    const int ahead = index + kStages - 1;
    if (ahead < tiles) CopyTile(a, task, tanh_piece, next, shared.stages[ahead % kStages]);
    CopyAsyncCommit();
    next = FindRow(a, task, table, ahead + 1);
    if (!task.has_head) continue;
    const Stage<T>& stage = shared.stages[index % kStages];
    const int64_t tile_begin = task.begin + int64_t{index} * kTile, sees = task.position - tile_begin;

    float scores[2][4] = {};
    AddMixedKeyScores(shared, stage, task, key_up, scores);
    AddKeyLoraScores(shared, stage, task, scores);
    Soften(a, stage, task, tile_begin, q_sum, sums, scores);
    uint32_t p[4];
    PackOperand<T>(scores[0], scores[1], p);
    AddMixedValues(shared, stage, task, value_up, p, sees, sums);
    AddValueLoras(stage, task, p, sees, sums);
  }
  if (task.has_head) StoreSlots(a, task, sums);
}

}  // namespace goldfinch::cuda::shared_rows

#endif  // GOLDFINCH_KERNELS_CUDA_GOLD_SHARED_ATTEND_H_
