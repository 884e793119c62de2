#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/token_shift.cc"
#include <algorithm>
#include <cstring>

#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "kernels/cpu/gemm-inl.h"
#include "kernels/cpu/ops.h"
#include "kernels/cpu/vector-inl.h"

HWY_BEFORE_NAMESPACE();
namespace goldfinch::cpu::HWY_NAMESPACE {
namespace {

void TokenShiftTarget(Context& context, ConstTensor x, ConstTensor mix, Tensor out) {
  const int64_t rows = x.dim(0), width = x.dim(1), targets = mix.dim(0);
  context.pool.ParallelFor(
      rows,
      [&](int64_t row, int) HWY_ATTR {
        for (int64_t g = 0; g < targets; ++g) {
          LerpRow(x.f32() + row * width, context.prev_rows[row], mix.f32() + g * width, width,
                  out.f32() + (g * rows + row) * width);
        }
      },
      targets * width);
}

// One call of DdLerp. Every number is computed in one order of operations, however the work is divided.
class DdLerpCall {
 public:
  DdLerpCall(Context& context, ConstTensor x, const DdLerpWeights& weights, Tensor out)
      : context_(context),
        x_(x.f32()),
        weights_(weights),
        out_(out.f32()),
        rows_(x.dim(0)),
        width_(x.dim(1)),
        targets_(weights.mix.dim(0)),
        rank_(weights.up.dim(1)),
        hidden_width_(targets_ * rank_) {}

  void Run() const {
    const int64_t threads = context_.pool.threads();
    if (rows_ >= threads * kFewestBlockRows) {
      RunBlocks(threads);
    } else {
      RunColumns();
    }
  }

 private:
  static constexpr int64_t kFewestBlockRows = 32;       // fewer do not repay widening the weights
  static constexpr int64_t kMostBlockRows = 66;         // what so many rows need stays in the L2 cache
  static constexpr int64_t kUpColumns = 8 * kBlockOut;  // written one after another, which is fast

  // The way for many rows: each thread takes some of them through all steps.
  void RunBlocks(int64_t threads) const {
    const int64_t rounds = (rows_ + threads * kMostBlockRows - 1) / (threads * kMostBlockRows);
    const int64_t block_rows = ((rows_ + rounds * threads - 1) / (rounds * threads) + kRows - 1) / kRows * kRows;
    context_.pool.ParallelFor((rows_ + block_rows - 1) / block_rows, [&](int64_t task, int thread) HWY_ATTR {
      Scratch& scratch = context_.scratch[thread];
      const Scratch::Frame frame(scratch);
      const int64_t row = task * block_rows, count = std::min(block_rows, rows_ - row);
      float* mixed = scratch.Floats(count * width_);
      float* hidden = scratch.Floats(count * hidden_width_);
      float* tile = scratch.Floats(count * kUpColumns);
      MixInput(row, count, mixed);
      VisitWeight(weights_.down.data.data, weights_.down.data.dtype, [&](auto* down) HWY_ATTR {
        for (int64_t column = 0; column < hidden_width_; column += kBlockOut) {
          const int64_t columns = std::min(kBlockOut, hidden_width_ - column);
          ProductTile(mixed, width_, count, down, false, width_, hidden_width_, column, columns, scratch, tile);
          for (int64_t i = 0; i < count; ++i) {
            std::copy_n(tile + i * kBlockOut, columns, hidden + i * hidden_width_ + column);
          }
        }
      });
      TanhRow(hidden, count * hidden_width_);
      for (int64_t g = 0; g < targets_; ++g) {
        for (int64_t column = 0; column < width_; column += kUpColumns) {
          Up(hidden, row, count, g, column, std::min(kUpColumns, width_ - column), scratch, tile);
        }
      }
    });
  }

  // For few rows: most of the time goes to reading the weights, so threads share their columns.
  void RunColumns() const {
    const Scratch::Frame frame(context_.scratch[0]);
    float* mixed = context_.scratch[0].Floats(rows_ * width_);
    float* hidden = context_.scratch[0].Floats(rows_ * hidden_width_);
    context_.pool.ParallelFor(
        rows_, [&](int64_t row, int) HWY_ATTR { MixInput(row, 1, mixed + row * width_); }, width_);
    constexpr int64_t kDownColumns = 32;
    const bool narrow = rows_ <= kRows && hidden_width_ % kDownColumns == 0;
    if (narrow) {
      context_.pool.ParallelFor(
          hidden_width_ / kDownColumns,
          [&](int64_t task, int) HWY_ATTR {
            constexpr int kVectors = 16 / hn::MaxLanes(DF());
            VisitWeight(weights_.down.data.data, weights_.down.data.dtype, [&](auto* down) HWY_ATTR {
              for (int64_t row = 0; row < rows_; ++row) {
                for (int64_t i = 0; i < kDownColumns; i += 16) {
                  const int64_t column = task * kDownColumns + i;
                  AxpyTile<1, kVectors>(mixed + row * width_, width_, down + column, hidden_width_, width_, false,
                                        hidden + row * hidden_width_ + column, hidden_width_);
                }
              }
            });
          },
          rows_ * width_ * kDownColumns);
      TanhRow(hidden, rows_ * hidden_width_);
    } else {
      MatMul(context_, {mixed, DType::kF32, {rows_, width_}}, weights_.down, {.activation = Activation::kTanh},
             {hidden, DType::kF32, {rows_, hidden_width_}});
    }

    // Long runs are written faster, but every thread must have work.
    int64_t run = kUpColumns;
    while (run > kBlockOut && targets_ * ((width_ + run - 1) / run) < 2 * context_.pool.threads()) run /= 2;
    const int64_t runs = (width_ + run - 1) / run, row_blocks = (rows_ + kBlockRows - 1) / kBlockRows;
    context_.pool.ParallelFor(
        targets_ * runs * row_blocks,
        [&](int64_t task, int thread) HWY_ATTR {
          Scratch& scratch = context_.scratch[thread];
          const Scratch::Frame task_frame(scratch);
          const int64_t column = task % runs * run, columns = std::min(run, width_ - column);
          const int64_t row = task / runs % row_blocks * kBlockRows, count = std::min(kBlockRows, rows_ - row);
          Up(hidden + row * hidden_width_, row, count, task / runs / row_blocks, column, columns, scratch,
             scratch.Floats(count * run));
        },
        std::min(rows_, kBlockRows) * rank_ * std::min(run, width_));
  }

  // to = x + (prev(x) - x) * mix_x for the rows [row, row + count).
  void MixInput(int64_t row, int64_t count, float* to) const {
    for (int64_t i = 0; i < count; ++i) {
      LerpRow(x_ + (row + i) * width_, context_.prev_rows[row + i], weights_.mix_x.f32(), width_, to + i * width_);
    }
  }

  // Writes columns [column, column + columns), at most kUpColumns, of target g in the rows [row, row + count), whose
  // tanh rows are `hidden`. `tile` is memory for blocks [count, kBlockOut] of columns.
  void Up(const float* hidden, int64_t row, int64_t count, int64_t g, int64_t column, int64_t columns, Scratch& scratch,
          float* tile) const {
    const int64_t block_floats = count * kBlockOut;
    VisitWeight(weights_.up.data, weights_.up.dtype, [&](auto* up) HWY_ATTR {
      const float* from = hidden + g * rank_;
      const auto* of_target = up + g * rank_ * width_;
      if (count <= kRows && columns % kBlockOut == 0) {
        // The weight is read in place, a long run of each of its rows at a time.
        constexpr int64_t kRankStep = 8;
        for (int64_t i = 0; i < rank_; i += kRankStep) {
          for (int64_t c = 0; c < columns; c += kBlockOut) {
            AxpyBlock(from + i, hidden_width_, count, of_target + i * width_ + column + c, width_,
                      std::min(kRankStep, rank_ - i), i > 0, tile + c / kBlockOut * block_floats, kBlockOut);
          }
        }
        return;
      }
      for (int64_t c = 0; c < columns; c += kBlockOut) {
        ProductTile(from, hidden_width_, count, of_target, false, rank_, width_, column + c,
                    std::min(kBlockOut, columns - c), scratch, tile + c / kBlockOut * block_floats);
      }
    });
    for (int64_t i = 0; i < count; ++i) {
      for (int64_t c = 0; c < columns; c += kBlockOut) {
        const float* xr = x_ + (row + i) * width_ + column + c;
        const float* prev = context_.prev_rows[row + i] + column + c;
        const float* mix = weights_.mix.f32() + g * width_ + column + c;
        const float* up = tile + c / kBlockOut * block_floats + i * kBlockOut;
        float* to = out_ + (g * rows_ + row + i) * width_ + column + c;
        FillRow(to, std::min(kBlockOut, columns - c), [&](size_t j, size_t left) HWY_ATTR {
          const VF xv = LoadN(xr + j, left);
          const VF amount = hn::Add(LoadN(mix + j, left), LoadN(up + j, left));
          return hn::MulAdd(hn::Sub(LoadN(prev + j, left), xv), amount, xv);
        });
      }
    }
  }

  Context& context_;
  const float* const x_;
  const DdLerpWeights& weights_;
  float* const out_;
  const int64_t rows_, width_, targets_, rank_, hidden_width_;
};

void DdLerpTarget(Context& context, ConstTensor x, const DdLerpWeights& weights, Tensor out) {
  DdLerpCall(context, x, weights, out).Run();
}

}  // namespace

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace goldfinch::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace goldfinch::cpu {
HWY_EXPORT(TokenShiftTarget);
HWY_EXPORT(DdLerpTarget);
namespace {

// Fills context.prev_rows: for each row, the row before it in its sequence.
void FindPrevRows(Context& context, ConstTensor x, RowSpans spans, ConstTensor shift) {
  const int64_t width = x.dim(1);
  context.prev_rows.resize(x.dim(0));
  for (const RowSpan& span : spans) {
    context.prev_rows[span.row_begin] = shift.f32() + span.slot * width;
    for (int i = 1; i < span.row_count; ++i) {
      context.prev_rows[span.row_begin + i] = x.f32() + (span.row_begin + i - 1) * width;
    }
  }
}

void KeepLastRows(ConstTensor x, RowSpans spans, Tensor shift) {
  const int64_t width = x.dim(1);
  for (const RowSpan& span : spans) {
    std::memcpy(shift.f32() + span.slot * width, x.f32() + (span.row_begin + span.row_count - 1) * width,
                width * sizeof(float));
  }
}

}  // namespace

void TokenShift(Context& context, ConstTensor x, RowSpans spans, Tensor shift, ConstTensor mix, Tensor out) {
  FindPrevRows(context, x, spans, shift);
  HWY_DYNAMIC_DISPATCH(TokenShiftTarget)(context, x, mix, out);
  KeepLastRows(x, spans, shift);
}

void DdLerp(Context& context, ConstTensor x, RowSpans spans, Tensor shift, const DdLerpWeights& weights, Tensor out) {
  FindPrevRows(context, x, spans, shift);
  HWY_DYNAMIC_DISPATCH(DdLerpTarget)(context, x, weights, out);
  KeepLastRows(x, spans, shift);
}

}  // namespace goldfinch::cpu
#endif
