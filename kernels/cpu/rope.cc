#include "kernels/cpu/rope.h"

#include "kernels/cpu/ops.h"

namespace goldfinch::cpu {

void Rope(Context& context, Tensor x, RowSpans spans, int head_size, double base) {
  const int64_t width = x.dim(1);
  const RopeFrequencies frequencies(head_size, base);
  context.positions.resize(x.dim(0));
  for (const RowSpan& span : spans) {
    for (int i = 0; i < span.row_count; ++i) context.positions[span.row_begin + i] = span.position + i;
  }
  context.pool.ParallelFor(
      x.dim(0),
      [&](int64_t row, int) { RopeRow(x.f32() + row * width, width, head_size, context.positions[row], frequencies); },
      8 * width);
}

}  // namespace goldfinch::cpu
