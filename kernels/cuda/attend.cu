// Causal softmax attention: flash decoding (arXiv 2205.14135, 2311.01282) with three kinds of tiles. Predictions:
// docs/cuda-predictions.md.
//
//   Matrix  5 query rows of a span and more, 16-bit types, heads of 64 or 128: a block has one head, 16, 32 or 64 rows
//           and tiles of 64 positions, copied three deep, multiplied on the matrix units (attend_matrix.h).
//   Stream  up to 4 rows, or types that the matrix units lack: a warp has 512 bytes of every row, so that a block of 8
//           reads 4 KB rows (D = 2048 in 16 bits) whole; 8 positions are under way at once (attend_stream.h).
//   Plain   what is left, such as heads of 48: a warp has a row and head (attend_stream.h).
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <vector>

#include "kernels/cuda/attend.h"
#include "kernels/cuda/attend_matrix.h"
#include "kernels/cuda/attend_merge.h"
#include "kernels/cuda/attend_stream.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/online_softmax.h"

namespace goldfinch::cuda {
namespace {

constexpr int kBlocksWanted = 4;                   // of a multiprocessor
constexpr int64_t kSlotFloats = int64_t{1} << 24;  // of the slots of query rows that are attended to at once, about

bool PowerOfTwo(int64_t x) { return (x & (x - 1)) == 0; }

dim3 Blocks(int64_t count) {
  GF_CHECK_LE(count, int64_t{1} << 30);
  return dim3(static_cast<unsigned>(count));
}

// `shape` has the number of blocks.
template <typename T, int kRowWarps>
void RunMatrix(Stream stream, LaunchShape shape, const attend::Arguments& a) {
  if constexpr (sizeof(T) == 2) {
    const bool unfinished = a.row_factors != nullptr;
    shape.block = dim3(attend::kMatrixThreads);
    shape.shared_bytes = size_t{attend::kMatrixStages} * 2 * attend::kMatrixPositions * a.head_size * sizeof(T);
    if (a.head_size == 64) {
      Launch(stream,
             unfinished ? attend::MatrixKernel<T, 64, kRowWarps, true> : attend::MatrixKernel<T, 64, kRowWarps, false>,
             shape, a);
    } else if (!unfinished) {
      Launch(stream, attend::MatrixKernel<T, 128, kRowWarps, false>, shape, a);
    } else if constexpr (kRowWarps < attend::kMatrixWarps) {
      Launch(stream, attend::MatrixKernel<T, 128, kRowWarps, true>, shape, a);
    } else {
      GF_CHECK(false);
    }
  } else {
    GF_CHECK(false);
  }
}

template <typename T, int kRows>
void RunStream(Stream stream, LaunchShape shape, const attend::Arguments& a) {
  const int64_t warps = CeilDiv<int64_t>(a.width * static_cast<int64_t>(sizeof(T)), kWarp * 16);
  shape.block = dim3(static_cast<unsigned>(std::min<int64_t>(warps, attend::kStreamWarps)) * kWarp);
  const int64_t head_lanes = a.head_size * static_cast<int64_t>(sizeof(T)) / 16;
  if constexpr (sizeof(T) == 2) {
    if (a.row_factors != nullptr) {
      Launch(stream,
             head_lanes == 8 ? attend::StreamKernel<T, 8, kRows, true> : attend::StreamKernel<T, 0, kRows, true>, shape,
             a);
      return;
    }
  }
  Launch(stream,
         head_lanes == 8    ? attend::StreamKernel<T, 8, kRows, false>
         : head_lanes == 16 ? attend::StreamKernel<T, 16, kRows, false>
                            : attend::StreamKernel<T, 0, kRows, false>,
         shape, a);
}

// What a kind of tiles looks like.
struct KindShape {
  int rows;      // of a tile, at most
  int64_t unit;  // positions: parts are cut at multiples
  // The number of tasks does not depend on positions: some are empty, so that a decode step's launches stay the same
  // from token to token. There are no more of them than blocks that run at once, and an empty one returns at once.
  bool steady;
};
// The shape of each Attention::Kind.
constexpr KindShape kShapes[] = {{64, 64, false}, {32, 64, false}, {16, 64, false},
                                 {4, 32, false},  {1, 32, true},   {1, 32, true}};

}  // namespace

Attention::Attention(Context& context, ConstTensor q, RowSpans spans, const DeviceSpan* device_spans, int head_size,
                     DType key_dtype, const UnfinishedNorms& norms, Tensor out, int64_t part_positions)
    : context_(context),
      q_(q),
      spans_(spans),
      device_spans_(device_spans),
      head_size_(head_size),
      key_dtype_(key_dtype),
      norms_(norms),
      out_(out),
      width_(q.dim(1)),
      heads_(width_ / head_size) {
  int64_t counts[kKinds] = {};
  for (int i = 0; i < static_cast<int>(spans.size()); ++i) {
    const RowSpan& span = spans[i];
    for (int row = 0; row < span.row_count;) {
      const Kind kind = KindOf(span.row_count - row);
      const int rows = std::min(span.row_count - row, kShapes[kind].rows);
      tiles_.push_back({kind, i, span.row_begin + row, rows, span.position + row, 0, 0});
      ++counts[kind];
      row += rows;
    }
  }
  for (int kind = 0; kind < kKinds; ++kind) {
    if (counts[kind] == 0) continue;
    const int64_t wanted = int64_t{kBlocksWanted} * context.multiprocessors();
    splits_[kind] = std::min(CeilDiv(wanted, counts[kind] * BlocksOf(static_cast<Kind>(kind))),
                             CeilDiv(part_positions, kShapes[kind].unit));
  }
  int64_t rows = 0;
  for (Tile& tile : tiles_) {
    tile.slot_row = rows;
    rows += tile.rows * (kShapes[tile.kind].steady ? splits_[tile.kind] : SplitsOf(tile, tile.position + tile.rows));
  }
  values_ = context.Scratch<float>(rows * width_);
  maxima_ = context.Scratch<float>(rows * heads_);
  sums_ = context.Scratch<float>(rows * heads_);
  if (norms) offsets_ = context.Scratch<float>(rows * heads_);
}

// The blocks that one task takes.
int64_t Attention::BlocksOf(Kind kind) const {
  if (kind != kStream1 && kind != kStream4) return heads_;
  return CeilDiv<int64_t>(width_ * SizeOf(key_dtype_), int64_t{attend::kStreamWarps} * kWarp * 16);
}

// Tasks of a tile that sees so many positions.
int64_t Attention::SplitsOf(const Tile& tile, int64_t positions) const {
  return std::min<int64_t>(splits_[tile.kind], CeilDiv(positions, kShapes[tile.kind].unit));
}

Attention::Kind Attention::KindOf(int rows) const {
  const bool halves = SizeOf(key_dtype_) == 2;
  if (rows > kShapes[kStream4].rows && halves && q_.dtype == key_dtype_ && (head_size_ == 64 || head_size_ == 128)) {
    // Heads of 128 and norms at once leave no registers for 64 rows.
    if (rows > 32 && !(norms_ && head_size_ == 128)) return kMatrix64;
    return rows > 16 ? kMatrix32 : kMatrix16;
  }
  const int64_t head_lanes = head_size_ * SizeOf(key_dtype_) / 16;
  if (!PowerOfTwo(head_lanes) || head_lanes > kWarp) return kPlain;
  return rows == 1 ? kStream1 : kStream4;
}

void Attention::Add(const StoredKeys& stored, absl::Span<const AttendPart> parts) {
  const Context::Frame frame(context_);
  std::vector<AttendTask> tasks[kKinds];
  int64_t tiles[kKinds] = {};
  auto tile = tiles_.begin();
  for (const AttendPart& part : parts) {
    while (tile->span != part.span) ++tile;
    for (; tile != tiles_.end() && tile->span == part.span; ++tile) {
      ++tiles[tile->kind];
      const int64_t end = std::min(part.end, tile->position + tile->rows);
      if (part.begin >= end) continue;
      const int64_t length = end - part.begin;
      const int64_t unit = kShapes[tile->kind].unit;
      const int64_t step = CeilDiv(CeilDiv(length, SplitsOf(*tile, length)), unit) * unit;
      int used = 0;
      for (int64_t begin = part.begin; begin < end; begin += step, ++used) {
        tasks[tile->kind].push_back({.span = tile->span,
                                     .row = tile->row,
                                     .rows = tile->rows,
                                     .resumes = used < tile->slots_used ? 1 : 0,
                                     .position = tile->position,
                                     .begin = begin,
                                     .end = std::min(end, begin + step),
                                     .first_row = part.first_row + begin - part.begin,
                                     .slot_row = tile->slot_row + int64_t{used} * tile->rows});
      }
      tile->slots_used = std::max(tile->slots_used, used);
    }
  }
  for (int kind = 0; kind < kKinds; ++kind) {
    // Parts begin and end at other spans from token to token: their number is rounded up.
    if (kShapes[kind].steady) tasks[kind].resize(PowerOfTwoFrom(tiles[kind]) * splits_[kind]);
    if (!tasks[kind].empty()) Run(static_cast<Kind>(kind), stored, tasks[kind]);
  }
}

void Attention::Run(Kind kind, const StoredKeys& stored, absl::Span<const AttendTask> tasks) const {
  GF_CHECK(stored.dtype == key_dtype_);
  for (const void* rows : {stored.keys, stored.values, q_.data}) {
    GF_CHECK_EQ(reinterpret_cast<uintptr_t>(rows) % 16, 0u) << "rows are read 16 bytes at a time";
  }
  GF_CHECK_EQ(stored.row_factors != nullptr, static_cast<bool>(norms_));
  const auto stream = static_cast<Stream>(context_.stream());
  const attend::Arguments a{.tasks = context_.UploadShared(tasks),
                            .spans = device_spans_,
                            .q = q_.data,
                            .q_dtype = q_.dtype,
                            .keys = stored.keys,
                            .values = stored.values,
                            .width = width_,
                            .page_tokens = stored.page_tokens,
                            .head_size = head_size_,
                            .heads = static_cast<int>(heads_),
                            .scale = kScoreUnit / std::sqrt(static_cast<float>(head_size_)),
                            .row_factors = stored.row_factors,
                            .key_weight = norms_ ? norms_.key.weight.f32() : nullptr,
                            .slot_values = values_,
                            .slot_maxima = maxima_,
                            .slot_sums = sums_,
                            .slot_offsets = offsets_};
  const LaunchShape shape{Blocks(static_cast<int64_t>(tasks.size()) * BlocksOf(kind)), dim3(kWarp)};
  VisitFloatType(stored.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    switch (kind) {
      case kMatrix64:
        return RunMatrix<T, 4>(stream, shape, a);
      case kMatrix32:
        return RunMatrix<T, 2>(stream, shape, a);
      case kMatrix16:
        return RunMatrix<T, 1>(stream, shape, a);
      case kStream4:
        return RunStream<T, 4>(stream, shape, a);
      case kStream1:
        return RunStream<T, 1>(stream, shape, a);
      default:
        return Launch(stream,
                      head_size_ <= 64    ? attend::PlainKernel<T, 2>
                      : head_size_ <= 256 ? attend::PlainKernel<T, 8>
                                          : attend::PlainKernel<T, 32>,
                      shape, a);
    }
  });
}

void Attention::Finish() {
  const Context::Frame frame(context_);
  std::vector<attend::MergeRow> rows;
  for (const Tile& tile : tiles_) {
    for (int row = 0; row < tile.rows; ++row) {
      rows.push_back({tile.slot_row + row, tile.row + row, tile.rows, tile.slots_used});
    }
  }
  const attend::MergeArguments a{.rows = context_.UploadShared(absl::MakeConstSpan(rows)),
                                 .slot_values = values_,
                                 .slot_maxima = maxima_,
                                 .slot_sums = sums_,
                                 .slot_offsets = offsets_,
                                 .value_weight = norms_ ? norms_.value.weight.f32() : nullptr,
                                 .value_bias = norms_ ? norms_.value.bias.f32() : nullptr,
                                 .width = width_,
                                 .head_size = head_size_,
                                 .heads = static_cast<int>(heads_)};
  const LaunchShape shape{Blocks(static_cast<int64_t>(rows.size()) * heads_), dim3(attend::kMergeThreads),
                          (kWarp + attend::kMergeThreads) * sizeof(float)};
  VisitFloatType(out_.dtype, [&](auto tag) {
    using Act = typename decltype(tag)::type;
    Launch(static_cast<Stream>(context_.stream()), attend::MergeKernel<Act>, shape, a, static_cast<Act*>(out_.data));
  });
}

std::vector<std::vector<RowSpan>> CutRows(RowSpans spans, int64_t rows_max) {
  std::vector<std::vector<RowSpan>> cuts(1);
  int64_t rows = 0;
  for (RowSpan span : spans) {
    while (span.row_count > 0) {
      RowSpan part = span;
      part.row_count = static_cast<int32_t>(std::min<int64_t>(span.row_count, rows_max - rows));
      cuts.back().push_back(part);
      rows += part.row_count;
      span.row_begin += part.row_count;
      span.position += part.row_count;
      span.row_count -= part.row_count;
      if (rows < rows_max) continue;
      cuts.emplace_back();
      rows = 0;
    }
  }
  if (cuts.back().empty()) cuts.pop_back();
  return cuts;
}

int64_t PowerOfTwoFrom(int64_t count) {
  return count == 0 ? 0 : static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(count)));
}

int64_t AttentionRowsMax(int64_t width) { return std::max<int64_t>(64, kSlotFloats / width / 64 * 64); }

}  // namespace goldfinch::cuda
