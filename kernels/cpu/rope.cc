#include "kernels/cpu/rope.h"

#include "kernels/cpu/ops.h"

namespace goldfinch::cpu {

void Rope(Context& context, Tensor x, RowSpans spans, int head_size, double base) {
  const int64_t width = x.dim(1);
  for (const RowSpan& span : spans) {
    context.pool.ParallelFor(span.row_count, [&](int64_t i, int) {
      RopeRow(x.f32() + (span.row_begin + i) * width, width, head_size, span.position + i, base);
    });
  }
}

}  // namespace goldfinch::cpu
