// Device code of GoldSharedAttention: what a block works on, and how tiles of shared rows come to its shared memory.
#ifndef GOLDFINCH_KERNELS_CUDA_GOLD_SHARED_TILE_H_
#define GOLDFINCH_KERNELS_CUDA_GOLD_SHARED_TILE_H_

#include <cstdint>

#include "kernels/cuda/device.h"
#include "kernels/cuda/gold_shared.h"
#include "kernels/cuda/gold_shared_split.h"
#include "kernels/cuda/matrix_tile.h"

namespace goldfinch::cuda::shared_rows {

constexpr int kGroupHeads = 4;  // of a block, a warp each
constexpr int kColumns = kGroupHeads * kHead;
constexpr int kThreads = kGroupHeads * kWarp;
constexpr int kTile = 16;  // positions
constexpr int kStages = 3;
constexpr int kBlocksPerUnit = 2;  // of a multiprocessor at once

// A stage of the pipeline in shared memory. Row 0 of the wide ones is the position before the tile.
template <typename T>
struct Stage {
  T keys[(kTile + 1) * kColumns];
  T embeddings[(kTile + 1) * kColumns];
  T mix[kTile * 2 * kMixRank];  // tanh rows: key part, value part
  T key_lora[kTile * kLoraRank];
  T value_lora[kTile * kLoraRank];
  Vec<float, 4> factors[kTile];
  SharedRowInput inputs[kTile + 1];
  SharedRowInput unused[7];  // the next stage starts at a multiple of 128 bytes
};
static_assert(sizeof(Stage<uint16_t>) % 128 == 0);

template <typename T>
struct SharedMemory {
  Stage<T> stages[kStages];
  T queries[kGroupHeads][2][kQueryRows * kHead];  // q', up_k q'
  float mix_key[kColumns];
  float mix_value[kColumns];
  float ln0_weight[kColumns];
  float ln0_bias[kColumns];
};

// What a thread works on: the query rows and positions of its block, the head and columns of its warp.
struct Task : LanePlace {
  QueryTile tile;
  int split;
  int head;
  bool has_head;         // the last group may have fewer heads
  int64_t group_column;  // the block's first
  int64_t column;        // the warp's first
  int64_t position;      // of the tile's first row
  int64_t begin;         // positions of the split; there are none if begin >= end
  int64_t end;

  // Block (x, y): group x % groups of heads, split x / groups, tile y of query rows.
  __device__ explicit Task(const Arguments& a) {
    tile = a.tiles[blockIdx.y];
    const int group = static_cast<int>(blockIdx.x) % a.groups;
    split = static_cast<int>(blockIdx.x) / a.groups;
    head = group * kGroupHeads + warp;
    has_head = head < a.heads;
    group_column = int64_t{group} * kColumns;
    column = group_column + warp * kHead;
    const SplitRange range(a, tile);
    position = range.position;
    begin = split * range.step;
    end = begin + range.step < range.length ? begin + range.step : range.length;
  }

  // The queries of a row of the tile: q' and up_k q'.
  template <typename T>
  __device__ const T* Query(const Arguments& a, int row) const {
    return static_cast<const T*>(a.queries) + ((int64_t{tile.row} + row) * a.heads + head) * (kHead + kLoraRank);
  }
};

// --- Copies to shared memory -----------------------------------------------------------------------------------------

// Where a row of a tile is, one a lane. It is looked up a tile ahead, because the embedding's row is known by the id.
struct RowPlace {
  int32_t page;  // -1: nothing there
  int32_t row;   // of the page
  SharedRowInput input;
};

__device__ __forceinline__ RowPlace FindRow(const Arguments& a, const Task& task, const int32_t* table, int index) {
  RowPlace place = {-1, 0, {0, 0, 0, 0}};
  const int64_t position = task.begin + int64_t{index} * kTile - 1 + task.lane;
  if (task.lane > kTile || position < 0 || position >= task.end) return place;
  const auto at = static_cast<uint32_t>(position), tokens = static_cast<uint32_t>(a.pages.page_tokens);
  place.page = table[at / tokens];
  place.row = static_cast<int32_t>(at % tokens);
  const char* page = a.pages.data + place.page * a.pages.page_bytes;
  place.input = LoadBits(reinterpret_cast<const SharedRowInput*>(page + a.pages.inputs_at) + place.row);
  return place;
}

// The 16-byte piece of a row's tanh rows that a lane copies: where it is in a page's row, and where in the stage.
struct TanhPiece {
  int part;         // mix of keys, of values; LoRAs of keys, of values
  int part_column;  // of the part
  int page_column;  // of the page's row
  bool there;       // within the rank; else it is filled with zeros

  __device__ TanhPiece(const Arguments& a, int lane) {
    part = lane < 4 ? 0 : lane < 8 ? 1 : lane < 16 ? 2 : 3;
    part_column = (part < 2 ? lane % 4 : lane % 8) * 8;
    there = lane < kLanes && part_column < (part < 2 ? a.mix_rank : a.lora_rank);
    page_column = part_column + (part == 0   ? 0
                                 : part == 1 ? a.mix_rank
                                             : 2 * a.mix_rank + (part == 2 ? 0 : a.lora_rank));
  }

  static constexpr int kLanes = 24;
};

// Starts the copies of a tile's rows, a warp every fourth row.
template <typename T>
__device__ __forceinline__ void CopyTile(const Arguments& a, const Task& task, const TanhPiece& tanh_piece,
                                         const RowPlace& place, Stage<T>& stage) {
  const int lane = task.lane, part = tanh_piece.part;
#pragma unroll 1
  for (int row = task.warp; row <= kTile; row += kGroupHeads) {
    const int32_t page_index = Shfl(place.page, row), page_row = Shfl(place.row, row);
    const int32_t id = Shfl(place.input.id, row);
    const bool known = page_index >= 0;
    const char* page = a.pages.data + (known ? page_index : 0) * a.pages.page_bytes;
    const int64_t c = task.group_column + lane * 8;
    const bool copied = known && c < a.width;
    const int to = PieceOffset<kColumns>(row, lane);
    CopyAsync16(stage.keys + to, reinterpret_cast<const T*>(page) + (copied ? page_row * a.width + c : 0), copied);
    CopyAsync16(stage.embeddings + to, static_cast<const T*>(a.embedding) + (copied ? id * a.width + c : 0), copied);
    if (row == 0) continue;
    if (lane < TanhPiece::kLanes) {
      T* const parts = part < 2 ? stage.mix : part == 2 ? stage.key_lora : stage.value_lora;
      const bool has_piece = known && tanh_piece.there;
      CopyAsync16(parts + PieceOffset<kLoraRank>(row - 1, part == 1 ? 4 + lane % 4 : tanh_piece.part_column / 8),
                  reinterpret_cast<const T*>(page + a.pages.tanh_at) +
                      (has_piece ? page_row * int64_t{a.pages.tanh_width} + tanh_piece.page_column : 0),
                  has_piece);
    } else if (lane == TanhPiece::kLanes) {
      CopyAsync16(stage.factors + row - 1, page + a.pages.factors_at + page_row * sizeof(stage.factors[0]), known);
    }
  }
  if (task.warp == 0 && lane <= kTile) stage.inputs[lane] = place.input;
}

// Weights of the warp's own columns; the barrier of the first tile comes before they are read.
template <typename T>
__device__ __forceinline__ void CopyColumnWeights(const Arguments& a, const Task& task, SharedMemory<T>& shared) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int c = task.warp * kHead + task.lane + i * kWarp;
    shared.mix_key[c] = task.has_head ? a.mix_key[task.group_column + c] : 0;
    shared.mix_value[c] = task.has_head ? a.mix_value[task.group_column + c] : 0;
    shared.ln0_weight[c] = task.has_head ? a.ln0_weight[task.group_column + c] : 0;
    shared.ln0_bias[c] = task.has_head ? a.ln0_bias[task.group_column + c] : 0;
  }
}

// Starts the copies of q' and up_k q' of the warp's head.
template <typename T>
__device__ __forceinline__ void CopyQueries(const Arguments& a, const Task& task, SharedMemory<T>& shared) {
#pragma unroll
  for (int i = 0; i < kQueryRows / 2; ++i) {
    const int row = 2 * i + task.lane / 16, piece = task.lane % 16;
    const bool known = task.has_head && row < task.tile.rows;
    CopyAsync16(shared.queries[task.warp][piece / 8] + PieceOffset<kHead>(row, piece % 8),
                known ? task.Query<T>(a, row) + piece * 8 : static_cast<const T*>(a.queries), known);
  }
}

}  // namespace goldfinch::cuda::shared_rows

#endif  // GOLDFINCH_KERNELS_CUDA_GOLD_SHARED_TILE_H_
