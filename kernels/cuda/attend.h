// Causal softmax attention of a call's rows over positions that are given a part at a time: all of a paged cache at
// once (kv_attention.cu), or chunks whose keys and values are rebuilt one after the other (gold_attention.cu).
//
// A task is a tile of query rows of one span and a run of positions. For each row and head it leaves a maximum, a sum
// and a weighted sum of values in a slot; tasks of later parts continue from what the slot holds, so that the number of
// slots does not grow with the number of parts. At the end the slots of a row are merged by log-sum-exp.
#ifndef GOLDFINCH_KERNELS_CUDA_ATTEND_H_
#define GOLDFINCH_KERNELS_CUDA_ATTEND_H_

#include <cstdint>
#include <limits>
#include <vector>

#include "absl/types/span.h"
#include "kernels/backend.h"
#include "kernels/cuda/context.h"

namespace goldfinch::cuda {

// Where the keys and values of a part are stored.
struct StoredKeys {
  const void* keys = nullptr;    // rows of D
  const void* values = nullptr;  // rows of D
  DType dtype = DType::kBf16;
  int64_t page_tokens = 0;  // 0: no pages; a part's positions follow each other from AttendPart::first_row on
  // [rows, 4]: scale and mean * scale of the key, then of the value. With unfinished norms only.
  const float* row_factors = nullptr;
};

// Keys and values whose LayerNorm is still to be done: where x is stored, the key is (x - mean) * scale * weight +
// bias, with the mean and scale of its row. The key norm's weight goes into the query, and its bias makes no difference
// to a softmax; the value norm's weight and bias come after the sum.
struct UnfinishedNorms {
  NormWeights key;
  NormWeights value;

  explicit operator bool() const { return static_cast<bool>(key.weight); }
};

// Positions [begin, end) of a span's sequence. A call of Add has at most one part of a span, and a span's parts follow
// each other from call to call.
struct AttendPart {
  int span = 0;
  int64_t begin = 0;
  int64_t end = 0;
  int64_t first_row = 0;  // without pages: the row of StoredKeys that has position `begin`
};

// A tile of query rows and a run of positions. Nothing is done for an empty run.
struct AttendTask {
  int32_t span = 0;
  int32_t row = 0;       // of q
  int32_t rows = 0;      // 1 at least
  int32_t resumes = 0;   // 1 if the slots hold the result of earlier parts
  int64_t position = 0;  // of the first row, in its sequence
  int64_t begin = 0;
  int64_t end = 0;
  int64_t first_row = 0;  // without pages: the row of StoredKeys that has position `begin`
  int64_t slot_row = 0;   // the slot of the tile's first row; those of the others follow
};

class Attention {
 public:
  // The arguments must outlive it. `device_spans` are `spans` as the device has them, with page tables if keys are in
  // pages. A part has at most `part_positions` positions. Takes scratch memory until the caller's Frame ends, so that
  // must be after its own end.
  Attention(Context& context, ConstTensor q, RowSpans spans, const DeviceSpan* device_spans, int head_size,
            DType key_dtype, const UnfinishedNorms& norms, Tensor out,
            int64_t part_positions = std::numeric_limits<int32_t>::max());

  // Queues the attention of every row to those of these positions that it sees.
  void Add(const StoredKeys& stored, absl::Span<const AttendPart> parts);
  // Queues the merge of all parts into `out`.
  void Finish();

 private:
  // How a tile is computed: see attend.cu.
  enum Kind { kMatrix64, kMatrix32, kMatrix16, kStream4, kStream1, kPlain, kKinds };
  struct Tile {
    Kind kind;
    int span;
    int row;
    int rows;
    int64_t position;
    int64_t slot_row;  // as in AttendTask
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
  float* offsets_ = nullptr;  // [slot rows, heads]: what the means of values add to every column; unfinished norms only
};

// The smallest power of two that is not below the count; 0 if the count is 0.
int64_t PowerOfTwoFrom(int64_t count);

// Cuts the spans, in order, into lists of at most `rows_max` rows: slots take memory for each row.
std::vector<std::vector<RowSpan>> CutRows(RowSpans spans, int64_t rows_max);
// The rows of a list for queries of that width.
int64_t AttentionRowsMax(int64_t width);

}  // namespace goldfinch::cuda

#endif  // GOLDFINCH_KERNELS_CUDA_ATTEND_H_
