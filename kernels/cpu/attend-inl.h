// Causal attention over tiles of keys and values that are stored or made on the fly; included once per SIMD target.
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

constexpr int64_t kTile = 64;                         // positions of a tile
constexpr int64_t kPartialFloats = int64_t{1} << 22;  // of partial results held at once: 16 MB, or one tile per thread

// One of `parts` shares of [0, count), as equal as can be: [begin, end).
struct Share {
  Share(int64_t count, int64_t parts, int64_t part) : begin(count * part / parts), end(count * (part + 1) / parts) {}
  int64_t begin;
  int64_t end;
};

// What one tile contributes to the query rows of its span that see it.
struct Partial {
  const RowSpan* span;
  int64_t first_position;  // of the tile
  int64_t count;           // positions of the tile
  int64_t first_row;       // the first row of the span that sees the tile
  float* maximum;          // [rows, heads]
  float* sum;              // [rows, heads]
  float* values;           // [rows, D]
};

// to[rows, head_size] (+)= p[rows, seen] v[seen, head_size], where row r sees min(count, first_seen + r) values, or
// none if that is negative. What a row does not see must not touch it, not even as 0 * NaN.
inline void WeightedValues(const float* p, int64_t rows, const float* v, int64_t width, int64_t count,
                           int64_t first_seen, int64_t head_size, bool add, float* to) {
  const int64_t lanes = hn::Lanes(DF());
  for (int64_t r = 0; r < rows;) {
    const int64_t seen = std::clamp<int64_t>(first_seen + r, 0, count);
    const bool whole = seen == count && r + kRows <= rows;  // and so do the rows after it
    const float* pr = p + r * kTile;
    float* out = to + r * width;
    int64_t column = 0;
    for (; column + 4 * lanes <= head_size; column += 4 * lanes) {
      if (whole) {
        AxpyTile<kRows, 4>(pr, kTile, v + column, width, count, add, out + column, width);
      } else {
        AxpyTile<1, 4>(pr, kTile, v + column, width, seen, add, out + column, width);
      }
    }
    for (; column < head_size; column += lanes) {
      for (int64_t i = 0; i < (whole ? kRows : 1); ++i) {
        AxpyTile<1, 1>(pr + i * kTile, kTile, v + column, width, seen, add, out + i * width + column, width);
      }
    }
    r += whole ? kRows : 1;
  }
}

// Up to so many rows read a tile in the order of memory: a few positions at a time, and for each position all heads.
// More rows go through it head by head, which reads each row of q only once.
constexpr int64_t kStreamRows = 2 * kRows;
constexpr int64_t kStreamPositions = 8;

// Attention of the rows of a partial over its tile, k and v [partial.count, D], in some of the heads. Each sum has one
// order, whatever the heads and rows of the call.
inline void AttendTile(ConstTensor q, int64_t head_size, const Share& of_heads, const float* k, const float* v,
                       Scratch& scratch, const Partial& partial) {
  const DF df;
  const int64_t width = q.dim(1), heads = width / head_size, rows = partial.span->row_count - partial.first_row;
  const int64_t count = partial.count;
  const float scale = 1.f / std::sqrt(static_cast<float>(head_size));
  const Scratch::Frame frame(scratch);
  const bool stream = rows <= kStreamRows;
  const int64_t heads_at_once = stream ? of_heads.end - of_heads.begin : 1, step = stream ? kStreamPositions : kTile;
  float* scores = scratch.Floats(heads_at_once * rows * kTile);  // [heads at once, rows, kTile]
  const float* q_rows = q.f32() + (partial.span->row_begin + partial.first_row) * width;
  // A row's own position is the last that it sees.
  const int64_t first_seen = partial.span->position + partial.first_row - partial.first_position + 1;
  for (int64_t begin = of_heads.begin; begin < of_heads.end; begin += heads_at_once) {
    const auto for_heads = [&](auto use) HWY_ATTR {
      for (int64_t i = 0; i < heads_at_once; ++i) use(begin + i, (begin + i) * head_size, scores + i * rows * kTile);
    };
    for (int64_t at = 0; at < count; at += step) {
      for_heads([&](int64_t, int64_t column, float* of_head) HWY_ATTR {
        DotBlock(q_rows + column, width, rows, k + at * width + column, width, std::min(step, count - at), head_size,
                 false, of_head + at, kTile);
      });
    }
    for_heads([&](int64_t head, int64_t, float* of_head) HWY_ATTR {
      for (int64_t r = 0; r < rows; ++r) {
        float* row = of_head + r * kTile;
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
    });
    for (int64_t at = 0; at < count; at += step) {
      for_heads([&](int64_t, int64_t column, const float* of_head) HWY_ATTR {
        WeightedValues(of_head + at, rows, v + at * width + column, width, std::min(step, count - at), first_seen - at,
                       head_size, at > 0, partial.values + column);
      });
    }
  }
}

// Adds a partial to the running result of one of its rows, in some of the heads: online softmax (arXiv 1805.02867).
inline void MergeRow(const Partial& partial, int64_t row, int64_t width, int64_t heads, const Share& of_heads,
                     float* maximum, float* sum, float* out) {
  const DF df;
  const int64_t head_size = width / heads;
  const int64_t r = row - partial.span->row_begin - partial.first_row;
  for (int64_t head = of_heads.begin; head < of_heads.end; ++head) {
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

// What a source makes. Keys and values do not need each other.
enum class Made : uint8_t { kKeys, kValues };

// Tiles that are made and attended to in parallel, and then merged in order of position.
struct Wave {
  static constexpr int kTilesMax = 256;

  Partial tiles[kTilesMax];
  int64_t count = 0;
  // Each thread gets the same number of whole tiles. The tiles that are left, at most one per thread, are made and
  // attended to by all threads together: first a few positions at a time, then a few heads. The last tile of a
  // sequence is often not full, so it is better among these.
  int64_t whole = 0;
  int64_t left() const { return count - whole; }
  absl::Span<const Partial> left_tiles() const { return absl::MakeConstSpan(tiles + whole, left()); }
  float* made = nullptr;  // [left, 2, kTile, D] keys and values of those that are left; null if all are stored
};

// One call of TiledAttention.
template <class Source>
class TiledAttentionCall {
 public:
  TiledAttentionCall(Context& context, ConstTensor q, RowSpans spans, int64_t head_size, const Source& source,
                     Tensor out)
      : context_(context),
        q_(q),
        spans_(spans),
        head_size_(head_size),
        source_(source),
        out_(out),
        rows_(q.dim(0)),
        width_(q.dim(1)),
        heads_(width_ / head_size),
        threads_(context.pool.threads()),
        head_parts_(std::min(heads_, threads_)),
        frame_(context.scratch[0]),
        maximum_(context.scratch[0].Floats(rows_ * heads_)),
        sum_(context.scratch[0].Floats(rows_ * heads_)) {}

  void Run() {
    std::fill_n(maximum_, rows_ * heads_, -std::numeric_limits<float>::infinity());
    std::fill_n(sum_, rows_ * heads_, 0.f);
    std::fill_n(out_.f32(), rows_ * width_, 0.f);
    while (span_ < spans_.size()) {
      const Scratch::Frame wave_frame(context_.scratch[0]);
      Wave wave;
      PlanWave(&wave);
      AttendWholeTiles(wave);
      AttendLeftTiles(wave);
      MergeWave(wave);
    }
    Normalize();
  }

 private:
  // The next tiles, with memory for what they give.
  void PlanWave(Wave* wave) {
    Scratch& scratch = context_.scratch[0];
    for (int64_t floats = 0; span_ < spans_.size() && wave->count < Wave::kTilesMax; ++wave->count) {
      const RowSpan& span = spans_[span_];
      const int64_t end = span.position + span.row_count;
      const int64_t first_row = std::max<int64_t>(0, position_ - span.position), rows = span.row_count - first_row;
      floats += rows * (width_ + 2 * heads_);
      if (wave->count >= threads_ && floats > kPartialFloats) break;
      wave->tiles[wave->count] = {&span,
                                  position_,
                                  std::min(kTile, end - position_),
                                  first_row,
                                  scratch.Floats(rows * heads_),
                                  scratch.Floats(rows * heads_),
                                  scratch.Floats(rows * width_)};
      position_ += kTile;
      if (position_ >= end) {
        ++span_;
        position_ = 0;
      }
    }
    wave->whole = (wave->count - 1) / threads_ * threads_;
    const absl::Span<const Partial> left = wave->left_tiles();
    const bool make = std::any_of(left.begin(), left.end(), [&](const Partial& tile) {
      const float *keys, *values;
      return !Find(tile, &keys, &values);
    });
    if (make) wave->made = scratch.Floats(wave->left() * 2 * kTile * width_);
  }

  // Whole tiles, one a thread at a time. With them, the keys and values of the tiles that are left are made.
  void AttendWholeTiles(const Wave& wave) {
    const int64_t position_parts = wave.made != nullptr ? (threads_ + wave.left() - 1) / wave.left() : 0;
    const int64_t make_parts = 2 * position_parts;
    context_.pool.ParallelFor(wave.whole + wave.left() * make_parts, [&](int64_t task, int thread) HWY_ATTR {
      Scratch& scratch = context_.scratch[thread];
      const Scratch::Frame frame(scratch);
      if (task < wave.whole) return MakeAndAttend(wave.tiles[task], scratch);
      const int64_t index = (task - wave.whole) / make_parts, part = (task - wave.whole) % make_parts;
      const Made what = part < position_parts ? Made::kKeys : Made::kValues;
      const Share share(wave.left_tiles()[index].count, position_parts, part % position_parts);
      MakeLeftTile(wave, index, what, share, scratch);
    });
  }

  void MakeAndAttend(const Partial& tile, Scratch& scratch) {
    const float *keys, *values;
    if (!Find(tile, &keys, &values)) {
      float* made_keys = scratch.Floats(tile.count * width_);
      float* made_values = scratch.Floats(tile.count * width_);
      source_.Make(Made::kKeys, *tile.span, tile.first_position, tile.count, scratch, made_keys);
      source_.Make(Made::kValues, *tile.span, tile.first_position, tile.count, scratch, made_values);
      keys = made_keys;
      values = made_values;
    }
    AttendTile(q_, head_size_, {heads_, 1, 0}, keys, values, scratch, tile);
  }

  // Makes the keys or the values of a share of the positions of a tile that is left, unless they are stored.
  void MakeLeftTile(const Wave& wave, int64_t index, Made what, const Share& positions, Scratch& scratch) {
    const Partial& tile = wave.left_tiles()[index];
    const float *keys, *values;
    if (positions.begin == positions.end || Find(tile, &keys, &values)) return;
    float* to = wave.made + (2 * index + (what == Made::kKeys ? 0 : 1)) * kTile * width_;
    source_.Make(what, *tile.span, tile.first_position + positions.begin, positions.end - positions.begin, scratch,
                 to + positions.begin * width_);
  }

  // The tiles that are left, some heads of each at a time.
  void AttendLeftTiles(const Wave& wave) {
    int64_t work = 0;
    for (const Partial& tile : wave.left_tiles()) {
      work += 2 * tile.count * (tile.span->row_count - tile.first_row) * width_;
    }
    const int64_t tasks = wave.left() * head_parts_;
    context_.pool.ParallelFor(
        tasks,
        [&](int64_t task, int thread) HWY_ATTR {
          const int64_t index = task / head_parts_;
          const Partial& tile = wave.left_tiles()[index];
          const float *keys, *values;
          if (!Find(tile, &keys, &values)) {
            keys = wave.made + 2 * index * kTile * width_;
            values = keys + kTile * width_;
          }
          const Share of_heads(heads_, head_parts_, task % head_parts_);
          AttendTile(q_, head_size_, of_heads, keys, values, context_.scratch[thread], tile);
        },
        work / tasks);
  }

  // Rows are merged in parallel, the tiles of a row in order.
  void MergeWave(const Wave& wave) {
    const int64_t merge_parts = rows_ < threads_ ? head_parts_ : 1;
    const RowSpan& last = *wave.tiles[wave.count - 1].span;
    const int64_t first_row = wave.tiles[0].span->row_begin, rows = last.row_begin + last.row_count - first_row;
    context_.pool.ParallelFor(
        rows * merge_parts,
        [&](int64_t task, int) {
          const int64_t row = first_row + task / merge_parts;
          const Share of_heads(heads_, merge_parts, task % merge_parts);
          for (const Partial& partial : absl::MakeConstSpan(wave.tiles, wave.count)) {
            const int64_t begin = partial.span->row_begin + partial.first_row;
            if (row < begin || row >= partial.span->row_begin + partial.span->row_count) continue;
            MergeRow(partial, row, width_, heads_, of_heads, maximum_, sum_, out_.f32());
          }
        },
        2 * wave.count * width_ / merge_parts);
  }

  void Normalize() {
    context_.pool.ParallelFor(
        rows_,
        [&](int64_t row, int) HWY_ATTR {
          for (int64_t head = 0; head < heads_; ++head) {
            float* to = out_.f32() + row * width_ + head * head_size_;
            const VF scale = hn::Set(DF(), 1.f / sum_[row * heads_ + head]);
            FillRow(to, head_size_,
                    [&](size_t i, size_t left) HWY_ATTR { return hn::Mul(LoadN(to + i, left), scale); });
          }
        },
        width_);
  }

  bool Find(const Partial& tile, const float** keys, const float** values) const {
    return source_.Find(*tile.span, tile.first_position, tile.count, keys, values);
  }

  Context& context_;
  const ConstTensor q_;
  const RowSpans spans_;
  const int64_t head_size_;
  const Source& source_;
  const Tensor out_;
  const int64_t rows_, width_, heads_, threads_, head_parts_;
  const Scratch::Frame frame_;
  // The running result of every row; its weighted values are in out_.
  float* const maximum_;  // [rows, heads]
  float* const sum_;      // [rows, heads]
  // Where the next tile begins: at a position of the sequence of this span.
  size_t span_ = 0;
  int64_t position_ = 0;
};

// out = softmax attention of q over tiles. `source` provides the keys and values [count, D] of the positions first ..
// first + count of a span's sequence:
//   bool Find(span, first, count, const float** keys, const float** values) const
//     sets both to where they are stored, or returns false if they must be made;
//   void Make(what, span, first, count, scratch, float* to) const
//     makes keys or values. A row is the same whatever positions are made with it.
template <class Source>
void TiledAttention(Context& context, ConstTensor q, RowSpans spans, int64_t head_size, const Source& source,
                    Tensor out) {
  TiledAttentionCall<Source>(context, q, spans, head_size, source, out).Run();
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace goldfinch::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // GOLDFINCH_KERNELS_CPU_ATTEND_INL_H_
