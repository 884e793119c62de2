// Causal attention over tiles of keys and values that are made on the fly, included once per SIMD target.
//
// Positions are cut into tiles of kTile from position 0 on. Each tile gives, per query row and head, a maximum, a sum
// and a weighted sum of values; tiles are merged in order of position. The cut does not depend on the queries, so a
// query's result is the same bit for bit whatever rows and threads share the call.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "absl/types/span.h"
#include "kernels/backend.h"
#include "kernels/cpu/ops.h"
#include "kernels/cpu/scratch.h"

#if defined(GOLDFINCH_KERNELS_CPU_ATTEND_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef GOLDFINCH_KERNELS_CPU_ATTEND_INL_H_
#undef GOLDFINCH_KERNELS_CPU_ATTEND_INL_H_
#else
#define GOLDFINCH_KERNELS_CPU_ATTEND_INL_H_
#endif

#include "hwy/highway.h"
#include "kernels/cpu/gemm-inl.h"
#include "kernels/cpu/vector-inl.h"

HWY_BEFORE_NAMESPACE();
namespace goldfinch::cpu::HWY_NAMESPACE {

constexpr int64_t kTile = 64;                         // positions
constexpr int64_t kPartialFloats = int64_t{1} << 22;  // partial results held at once: 16 MB, or one tile a thread

// What one tile says about the query rows of its span that reach it.
struct Partial {
  const RowSpan* span;
  int64_t first_position;  // of the tile
  int64_t first_row;       // of the span that sees the tile
  float* maximum;          // [rows, heads]
  float* sum;              // [rows, heads]
  float* values;           // [rows, D]
};

// to[rows, head_size] = p[rows, seen] v[seen, head_size], where row r sees min(count, first_seen + r) values: what a
// row does not see must not touch it, not even as 0 * NaN.
inline void WeightedValues(const float* p, int64_t rows, const float* v, int64_t width, int64_t count,
                           int64_t first_seen, int64_t head_size, float* to) {
  const int64_t lanes = hn::Lanes(DF());
  for (int64_t r = 0; r < rows;) {
    const int64_t seen = std::min(count, first_seen + r);
    const bool whole = seen == count && r + kRows <= rows;  // so do the rows after it
    const float* pr = p + r * kTile;
    float* out = to + r * width;
    int64_t column = 0;
    for (; column + 4 * lanes <= head_size; column += 4 * lanes) {
      if (whole) {
        AxpyTile<kRows, 4>(pr, kTile, v + column, width, count, false, out + column, width);
      } else {
        AxpyTile<1, 4>(pr, kTile, v + column, width, seen, false, out + column, width);
      }
    }
    for (; column < head_size; column += lanes) {
      for (int64_t i = 0; i < (whole ? kRows : 1); ++i) {
        AxpyTile<1, 1>(pr + i * kTile, kTile, v + column, width, seen, false, out + i * width + column, width);
      }
    }
    r += whole ? kRows : 1;
  }
}

// Attends the rows of a partial to its tile: k, v [count, D].
inline void AttendTile(ConstTensor q, int64_t head_size, const float* k, const float* v, int64_t count,
                       Scratch& scratch, const Partial& partial) {
  const DF df;
  const int64_t width = q.dim(1), heads = width / head_size, rows = partial.span->row_count - partial.first_row;
  const float scale = 1.f / std::sqrt(static_cast<float>(head_size));
  const Scratch::Frame frame(scratch);
  float* scores = scratch.Floats(rows * kTile);
  const float* q_rows = q.f32() + (partial.span->row_begin + partial.first_row) * width;
  // A row's own position is the last that it sees.
  const int64_t first_seen = partial.span->position + partial.first_row - partial.first_position + 1;
  for (int64_t head = 0; head < heads; ++head) {
    const int64_t column = head * head_size;
    DotBlock(q_rows + column, width, rows, k + column, width, count, head_size, false, scores, kTile);
    for (int64_t r = 0; r < rows; ++r) {
      float* row = scores + r * kTile;
      const int64_t seen = std::min(count, first_seen + r);
      VF largest = hn::Set(df, -std::numeric_limits<float>::infinity());
      for (int64_t i = 0; i < seen; i += hn::Lanes(df)) {
        const VF score = hn::Mul(hn::LoadU(df, row + i), hn::Set(df, scale));
        hn::StoreU(score, df, row + i);
        largest = hn::Max(largest, hn::IfThenElse(hn::FirstN(df, seen - i), score, largest));
      }
      const float maximum = hn::GetLane(hn::MaxOfLanes(df, largest));
      VF total = hn::Zero(df);
      for (int64_t i = 0; i < seen; i += hn::Lanes(df)) {
        const VF e = Exp(hn::Sub(hn::LoadU(df, row + i), hn::Set(df, maximum)));
        const VF kept = hn::IfThenElseZero(hn::FirstN(df, seen - i), e);
        hn::StoreU(kept, df, row + i);
        total = hn::Add(total, kept);
      }
      partial.maximum[r * heads + head] = maximum;
      partial.sum[r * heads + head] = hn::GetLane(hn::SumOfLanes(df, total));
    }
    WeightedValues(scores, rows, v + column, width, count, first_seen, head_size, partial.values + column);
  }
}

// Adds a partial to the running result of one of its rows: online softmax (arXiv 1805.02867).
inline void MergeRow(const Partial& partial, int64_t row, int64_t width, int64_t heads, float* maximum, float* sum,
                     float* out) {
  const DF df;
  const int64_t head_size = width / heads;
  const int64_t r = row - partial.span->row_begin - partial.first_row;
  for (int64_t head = 0; head < heads; ++head) {
    float& m = maximum[row * heads + head];
    float& s = sum[row * heads + head];
    const float pm = partial.maximum[r * heads + head];
    const float merged = std::max(m, pm);
    const float keep = std::exp(m - merged), take = std::exp(pm - merged);
    s = s * keep + partial.sum[r * heads + head] * take;
    m = merged;
    const float* from = partial.values + r * width + head * head_size;
    float* to = out + row * width + head * head_size;
    FillRow(to, head_size, [&](size_t i, size_t left) HWY_ATTR {
      return hn::MulAdd(LoadN(to + i, left), hn::Set(df, keep), hn::Mul(LoadN(from + i, left), hn::Set(df, take)));
    });
  }
}

// out = softmax attention of q over tiles. make_tile(span, first_position, count, scratch, &k, &v) sets k and v to the
// rows [count, D] of the positions first_position .. first_position + count of the span's sequence, in `scratch` or
// elsewhere.
template <class MakeTile>
void TiledAttention(Context& context, ConstTensor q, RowSpans spans, int64_t head_size, MakeTile make_tile,
                    Tensor out) {
  const int64_t rows = q.dim(0), width = q.dim(1), heads = width / head_size;
  Scratch& scratch = context.scratch[0];
  const Scratch::Frame frame(scratch);
  float* maximum = scratch.Floats(rows * heads);
  float* sum = scratch.Floats(rows * heads);
  std::fill_n(maximum, rows * heads, -std::numeric_limits<float>::infinity());
  std::fill_n(sum, rows * heads, 0.f);
  std::fill_n(out.f32(), rows * width, 0.f);

  // Waves of tiles: made and attended to in parallel, then merged in order.
  size_t span = 0;
  int64_t position = 0;
  while (span < spans.size()) {
    const Scratch::Frame wave_frame(scratch);
    constexpr int kMaxWave = 256;
    Partial wave[kMaxWave];
    int tiles = 0;
    for (int64_t floats = 0; span < spans.size() && tiles < kMaxWave; ++tiles) {
      const RowSpan& s = spans[span];
      const int64_t first_row = std::max<int64_t>(0, position - s.position), count = s.row_count - first_row;
      floats += count * (width + 2 * heads);
      if (tiles >= context.pool.threads() && floats > kPartialFloats) break;
      wave[tiles] = {&s,
                     position,
                     first_row,
                     scratch.Floats(count * heads),
                     scratch.Floats(count * heads),
                     scratch.Floats(count * width)};
      position += kTile;
      if (position >= s.position + s.row_count) {
        ++span;
        position = 0;
      }
    }
    context.pool.ParallelFor(tiles, [&](int64_t task, int thread) HWY_ATTR {
      const Scratch::Frame tile_frame(context.scratch[thread]);
      const Partial& partial = wave[task];
      const int64_t end = partial.span->position + partial.span->row_count;
      const int64_t count = std::min(kTile, end - partial.first_position);
      const float* k;
      const float* v;
      make_tile(*partial.span, partial.first_position, count, context.scratch[thread], &k, &v);
      AttendTile(q, head_size, k, v, count, context.scratch[thread], partial);
    });
    // Rows are merged in parallel, the tiles of a row in order.
    const int64_t first_merged = wave[0].span->row_begin;
    const RowSpan& last_span = *wave[tiles - 1].span;
    context.pool.ParallelFor(
        last_span.row_begin + last_span.row_count - first_merged,
        [&](int64_t task, int) {
          const int64_t row = first_merged + task;
          for (const Partial& partial : absl::MakeConstSpan(wave, tiles)) {
            const int64_t begin = partial.span->row_begin + partial.first_row;
            if (row < begin || row >= partial.span->row_begin + partial.span->row_count) continue;
            MergeRow(partial, row, width, heads, maximum, sum, out.f32());
          }
        },
        tiles * width);
  }
  context.pool.ParallelFor(
      rows,
      [&](int64_t row, int) HWY_ATTR {
        for (int64_t head = 0; head < heads; ++head) {
          float* to = out.f32() + row * width + head * head_size;
          const VF scale = hn::Set(DF(), 1.f / sum[row * heads + head]);
          FillRow(to, head_size, [&](size_t i, size_t left) HWY_ATTR { return hn::Mul(LoadN(to + i, left), scale); });
        }
      },
      width);
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace goldfinch::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // GOLDFINCH_KERNELS_CPU_ATTEND_INL_H_
