// Attention over a paged cache of keys and values: all of it is one part (attend.h).
#include <cstdint>
#include <vector>

#include "kernels/cuda/attend.h"
#include "kernels/cuda/ops.h"

namespace goldfinch::cuda {

void KvAttention(Context& context, ConstTensor q, RowSpans spans, const KvCache& cache, int head_size, Tensor out) {
  for (const std::vector<RowSpan>& cut : CutRows(spans, AttentionRowsMax(q.dim(1)))) {
    const Context::Frame frame(context);
    Attention attention(context, q, cut, context.UploadSpans(cut, cache.page_tokens()), head_size, cache.keys.dtype, {},
                        out);
    std::vector<AttendPart> parts;
    for (int i = 0; i < static_cast<int>(cut.size()); ++i)
      parts.push_back({i, 0, cut[i].position + cut[i].row_count, 0});
    attention.Add({cache.keys.data, cache.values.data, cache.keys.dtype, cache.page_tokens()}, parts);
    attention.Finish();
  }
}

}  // namespace goldfinch::cuda
