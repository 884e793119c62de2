#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/matmul.cc"
#include <algorithm>

#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "kernels/cpu/epilogue-inl.h"
#include "kernels/cpu/gemm-inl.h"
#include "kernels/cpu/ops.h"

HWY_BEFORE_NAMESPACE();
namespace goldfinch::cpu::HWY_NAMESPACE {
namespace {

void MatMulTarget(Context& context, ConstTensor x, Matrix weight, const Epilogue& epilogue, Tensor out) {
  const int64_t rows = x.dim(0), in = weight.in(), width = weight.out();
  if (rows == 0) return;
  const int64_t column_blocks = (width + kBlockOut - 1) / kBlockOut;
  // Narrow weights are cut by rows as well, so that every thread has work.
  int64_t block_rows = std::min(rows, kBlockRows);
  while (block_rows > 8 * kRows &&
         column_blocks * ((rows + block_rows - 1) / block_rows) < 4 * context.pool.threads()) {
    block_rows = (block_rows / 2 + kRows - 1) / kRows * kRows;
  }
  const int64_t row_blocks = (rows + block_rows - 1) / block_rows;
  context.pool.ParallelFor(
      column_blocks * row_blocks,
      [&](int64_t task, int thread) HWY_ATTR {
        Scratch& scratch = context.scratch[thread];
        const Scratch::Frame frame(scratch);
        const int64_t row = task / column_blocks * block_rows, column = task % column_blocks * kBlockOut;
        const int64_t row_count = std::min(block_rows, rows - row), count = std::min(kBlockOut, width - column);
        float* tile = scratch.Floats(row_count * kBlockOut);
        VisitWeight(weight.data.data, weight.data.dtype, [&](auto* w) HWY_ATTR {
          ProductTile(x.f32() + row * in, in, row_count, w, weight.layout == Matrix::Layout::kOutIn, in, width, column,
                      count, scratch, tile);
        });
        for (int64_t i = 0; i < row_count; ++i) FinishRow(tile + i * kBlockOut, epilogue, row + i, column, count, out);
      },
      std::min(block_rows, rows) * in * std::min(kBlockOut, width));
}

}  // namespace

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace goldfinch::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace goldfinch::cpu {
HWY_EXPORT(MatMulTarget);

void MatMul(Context& context, ConstTensor x, Matrix weight, const Epilogue& epilogue, Tensor out) {
  HWY_DYNAMIC_DISPATCH(MatMulTarget)(context, x, weight, epilogue, out);
}

const char* TargetName() {
  const int64_t targets = hwy::SupportedTargets() & HWY_TARGETS;  // the best has the lowest bit
  return hwy::TargetName(targets & -targets);
}

}  // namespace goldfinch::cpu
#endif
