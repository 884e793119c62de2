#include <optional>

#include "kernels/cpu/ops.h"
#include "kernels/sampling.h"

namespace goldfinch::cpu {

void Sample(Context& context, ConstTensor logits, int64_t limit, absl::Span<const int32_t> holes,
            absl::Span<const SampleRow> rows, absl::Span<int32_t> tokens) {
  const int64_t vocab = logits.dim(1);
  context.pool.ParallelFor(
      static_cast<int64_t>(rows.size()),
      [&](int64_t row, int thread) {
        const std::optional<sampling::TokenDistribution> distribution =
            sampling::Distribution({logits.f32() + row * vocab, static_cast<size_t>(vocab)}, limit, holes, rows[row],
                                   context.sample_scratch[thread]);
        tokens[row] = distribution ? sampling::Draw(*distribution, rows[row].uniform) : -1;
      },
      4 * vocab);
}

}  // namespace goldfinch::cpu
