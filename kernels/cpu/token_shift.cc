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

void DdLerpTarget(Context& context, ConstTensor x, const DdLerpWeights& weights, Tensor out) {
  const int64_t rows = x.dim(0), width = x.dim(1);
  const int64_t targets = weights.mix.dim(0), rank = weights.up.dim(1);
  const Scratch::Frame frame(context.scratch[0]);
  float* mixed = context.scratch[0].Floats(rows * width);
  context.pool.ParallelFor(
      rows,
      [&](int64_t row, int) HWY_ATTR {
        LerpRow(x.f32() + row * width, context.prev_rows[row], weights.mix_x.f32(), width, mixed + row * width);
      },
      width);
  const Tensor hidden{context.scratch[0].Floats(rows * targets * rank), DType::kF32, {rows, targets * rank}};
  MatMul(context, {mixed, DType::kF32, {rows, width}}, weights.down, {.activation = Activation::kTanh}, hidden);

  // Each task: 64 columns of one target for a block of rows.
  const int64_t column_blocks = (width + kBlockOut - 1) / kBlockOut;
  const int64_t row_blocks = (rows + kBlockRows - 1) / kBlockRows;
  context.pool.ParallelFor(
      targets * column_blocks * row_blocks,
      [&](int64_t task, int thread) HWY_ATTR {
        Scratch& scratch = context.scratch[thread];
        const Scratch::Frame task_frame(scratch);
        const int64_t column = task % column_blocks * kBlockOut, count = std::min(kBlockOut, width - column);
        const int64_t row = task / column_blocks % row_blocks * kBlockRows,
                      row_count = std::min(kBlockRows, rows - row);
        const int64_t g = task / column_blocks / row_blocks;
        float* tile = scratch.Floats(row_count * kBlockOut);
        VisitWeight(weights.up.data, weights.up.dtype, [&](auto* up) HWY_ATTR {
          ProductTile(hidden.f32() + row * targets * rank + g * rank, targets * rank, row_count, up + g * rank * width,
                      false, rank, width, column, count, scratch, tile);
        });
        const float* mix = weights.mix.f32() + g * width + column;
        for (int64_t i = 0; i < row_count; ++i) {
          const float* xr = x.f32() + (row + i) * width + column;
          const float* prev = context.prev_rows[row + i] + column;
          FillRow(out.f32() + (g * rows + row + i) * width + column, count, [&](size_t j, size_t left) HWY_ATTR {
            const VF xv = LoadN(xr + j, left);
            const VF amount = hn::Add(LoadN(mix + j, left), LoadN(tile + i * kBlockOut + j, left));
            return hn::MulAdd(hn::Sub(LoadN(prev + j, left), xv), amount, xv);
          });
        }
      },
      std::min(kBlockRows, rows) * rank * std::min(kBlockOut, width));
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
