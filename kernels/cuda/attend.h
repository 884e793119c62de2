// Causal softmax attention of a call's rows over positions that are given a part at a time: all of a paged cache at
// once (kv_attention.cu), or rebuilt chunks of it one after the other (gold_attention.cu). kv_attention.cu defines it.
//
// A task is a tile of query rows of one span and a run of positions. It leaves, per row and head, a maximum, a sum and
// a weighted sum of values in a slot; tasks of later parts go on from what the slot holds, so that the slots do not
// grow with the number of parts. At the end the slots of a row are merged by log-sum-exp.
#ifndef GOLDFINCH_KERNELS_CUDA_ATTEND_H_
#define GOLDFINCH_KERNELS_CUDA_ATTEND_H_

#include <cstdint>
#include <limits>
#include <vector>

#include "absl/types/span.h"
#include "kernels/backend.h"
#include "kernels/cuda/context.h"

namespace goldfinch::cuda {

// Where the keys and values of a part lie.
struct StoredKeys {
  const void* keys = nullptr;    // rows of D
  const void* values = nullptr;  // rows of D
  DType dtype = DType::kBf16;
  int64_t page_tokens = 0;  // 0: positions of a part follow each other from `AttendPart::first_row` on
  // [rows, 4]: scale and mean * scale of the key, and of the value, where norms are unfinished.
  const float* row_factors = nullptr;
};

// Keys and values whose LayerNorm is still to be done: with x as stored, the key is (x - mean) * scale * weight + bias,
// with mean and scale of its row. The weight goes into the query, the bias of keys makes no difference to a softmax;
// both of values come after the sum.
struct UnfinishedNorms {
  NormWeights key;
  NormWeights value;

  explicit operator bool() const { return static_cast<bool>(key.weight); }
};

// Positions [begin, end) of a span's sequence; a span is in one part of a call at most, and each part follows the last.
struct AttendPart {
  int span = 0;
  int64_t begin = 0;
  int64_t end = 0;
  int64_t first_row = 0;  // of StoredKeys, without pages: where position `begin` is
};

// A tile of query rows over a run of positions; nothing is done for an empty run.
struct AttendTask {
  int32_t span = 0;
  int32_t row = 0;       // of q
  int32_t rows = 0;      // 1 at least
  int32_t resumes = 0;   // the slots hold what came before
  int64_t position = 0;  // of the first row in its sequence
  int64_t begin = 0;
  int64_t end = 0;
  int64_t first_row = 0;  // of `begin`, without pages
  int64_t slot_row = 0;   // of the slots: where the first row of the tile is
};

class Attention {
 public:
  // The arguments must outlive it. `spans` are also given as the device has them, with page tables if keys lie in
  // pages. The caller has a Frame that ends after it.
  // `part_positions`: of a part, at most.
  Attention(Context& context, ConstTensor q, RowSpans spans, const DeviceSpan* device_spans, int head_size,
            DType key_dtype, const UnfinishedNorms& norms, Tensor out,
            int64_t part_positions = std::numeric_limits<int32_t>::max());

  // Every row that sees them attends to these positions.
  void Add(const StoredKeys& stored, absl::Span<const AttendPart> parts);
  void Finish();

 private:
  // How a tile is done: see kv_attention.cu.
  enum Kind { kMatrix64, kMatrix32, kMatrix16, kStream4, kStream1, kPlain, kKinds };
  struct Tile {
    Kind kind;
    int span;
    int row;
    int rows;
    int64_t position;
    int64_t slot_row;  // of its first slot
    int slots_used = 0;
  };

  Kind KindOf(int rows) const;
  int64_t BlocksOf(Kind kind) const;
  int64_t SplitsOf(const Tile& tile, int64_t positions) const;
  void Run(Kind kind, const StoredKeys& stored, absl::Span<const AttendTask> tasks) const;

  Context& context_;
  const ConstTensor q_;
  const RowSpans spans_;
  const DeviceSpan* const device_spans_;
  const int head_size_;
  const DType key_dtype_;
  const UnfinishedNorms norms_;
  const Tensor out_;
  const int64_t width_;
  const int64_t heads_;

  std::vector<Tile> tiles_;      // in row order
  int64_t splits_[kKinds] = {};  // tasks of a tile and part, at most
  float* values_ = nullptr;      // [slot rows, D]
  float* maxima_ = nullptr;      // [slot rows, heads], in units of log 2
  float* sums_ = nullptr;        // [slot rows, heads]
  float* offsets_ = nullptr;  // [slot rows, heads]: what the means of values add to every column, if norms are undone
};

// The least power of two that is not below the count; 0 of 0.
int64_t PowerOfTwoFrom(int64_t count);

// The spans in order, cut so that each list has at most so many rows: slots take memory by the row.
std::vector<std::vector<RowSpan>> CutRows(RowSpans spans, int64_t rows_max);
int64_t AttentionRowsMax(int64_t width);

}  // namespace goldfinch::cuda

#endif  // GOLDFINCH_KERNELS_CUDA_ATTEND_H_
